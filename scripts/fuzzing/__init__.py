"""The cases of fuzz.py: small valid originals of every kind, and how they are changed."""

from fuzzing import pictures, texts, weights
from fuzzing.cases import KINDS, Asks

__all__ = ["KINDS", "Asks", "pictures", "texts", "weights"]
