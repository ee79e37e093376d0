"""Data as arrays, split once. No torch here: clients use it for their test sets too."""

from training.data.bundled import digits
from training.data.dataset import SPLIT_SEED, Dataset, Examples, split

__all__ = ["SPLIT_SEED", "Dataset", "Examples", "digits", "split"]
