"""Loaders of users' own files: CSV, Parquet, NumPy, IDX, images, sounds.

Each takes a file or folder, which is split, or a mapping with a folder for `train` and, if the
user has set them apart, for `validation` and `test`. A mistake in the data ends in InvalidData:
one sentence that names file, row and column.
"""

from training.data.arrays.loader import arrays
from training.data.idx import idx
from training.data.media.images import images, segmentation
from training.data.media.sounds import sounds
from training.data.tables import table

__all__ = ["arrays", "idx", "images", "segmentation", "sounds", "table"]
