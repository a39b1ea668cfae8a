"""Grad-CAM, localisation and faithfulness of heat maps."""
