"""Models by name: what a MODEL word means, what a live model shows of its word, and the baselines of the paper."""

from bu2td.models.origin import Call, Origin, origin_of, shapes_of_weights
from bu2td.models.words import create_again, create_model, is_library_word, list_models

__all__ = [
    "Call",
    "Origin",
    "create_again",
    "create_model",
    "is_library_word",
    "list_models",
    "origin_of",
    "shapes_of_weights",
]
