"""Models by name: what a MODEL word means, and the baselines of the paper."""

from bu2td.models.words import create_model, is_library_word, list_models, word_of

__all__ = ["create_model", "is_library_word", "list_models", "word_of"]
