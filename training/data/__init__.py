"""Data sets as NumPy arrays, split into train, validation and test part.

The split is drawn once, and no module of this package imports torch.
"""

from training.data.bundled import digits
from training.data.dataset import SPLIT_SEED, Dataset, Examples, digest, split

__all__ = ["SPLIT_SEED", "Dataset", "Examples", "digest", "digits", "split"]
