"""Data as arrays, split once: bundled, texts, synthetic, or a user's own files. No torch here.

Clients use it for their test sets, too.
"""

from training.data.bundled import digits
from training.data.dataset import SPLIT_SEED, Dataset, Examples, digest, split

__all__ = ["SPLIT_SEED", "Dataset", "Examples", "digest", "digits", "split"]
