"""Classifiers, and how they are trained and measured on test images."""
