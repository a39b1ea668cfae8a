"""Models by name: what a MODEL word means, and the baselines of the paper."""

from bu2td.models.words import create_model, list_models

__all__ = ["create_model", "list_models"]
