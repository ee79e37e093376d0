"""Data sets as arrays, split into parts once, without torch."""

from training.data.bundled import digits
from training.data.dataset import SPLIT_SEED, Dataset, Examples, digest, split

__all__ = ["SPLIT_SEED", "Dataset", "Examples", "digest", "digits", "split"]
