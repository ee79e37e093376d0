"""Memory-mapped arrays of uncompressed .npz files and of .npy files.

`numpy.load` maps .npy files alone. docs/decisions/0056-data-larger-than-memory.md says why no
package does the rest.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from training.errors import InvalidData, InvalidValue

Array = NDArray[Any]
Stamp = tuple[int, int, int] | None

LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, lengths of name and extra
SIGNATURE = b"PK\x03\x04"
ENCRYPTED = 1  # bit of the flags
READ_BYTES = 2**20
# Kind of a stored NumPy dtype → dtype of the tensor. "U" are texts.
DTYPES = {"f": np.float32, "b": np.float32, "i": np.int64, "u": np.int64, "U": object}
UNREADABLE = (ValueError, OSError, EOFError, struct.error, zipfile.BadZipFile, zlib.error,
              NotImplementedError, RuntimeError, OverflowError)  # fmt: skip


@dataclass(frozen=True)
class MappedRows:
    """Rows of arrays one after another, converted as they are read."""

    arrays: Sequence[Array]  # memory-mapped or not, of one row shape
    kind: DTypeLike | None = None  # dtype of the rows [float32 or int64]
    stamps: Sequence[Stamp] = field(init=False)  # files as they were when mapped

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamps", [_stamp(array) for array in self.arrays])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of a row."""
        return self.arrays[0].shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the tensor's dtype."""
        own = self.arrays[0].dtype.kind
        return np.dtype(DTYPES[own] if self.kind is None else self.kind)

    @property
    def bounds(self) -> None:
        """Return None: any value may occur."""

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    def read(self, rows: NDArray[np.int64]) -> Array:
        """Return the rows of these numbers, converted."""
        values = np.empty((len(rows), *self.row_shape), self.dtype)
        start = 0
        for array, stamp in zip(self.arrays, self.stamps, strict=True):
            inside = (rows >= start) & (rows < start + len(array))
            if inside.any():
                _check_unchanged(array, stamp)
                values[inside] = array[rows[inside] - start]
            start += len(array)
        return values


def _stamp(array: Array) -> Stamp:
    """Return a mapped file's inode, size and time, else None."""
    path = getattr(array, "filename", None)
    if path is None:
        return None
    try:
        status = Path(path).stat()
    except OSError:  # removed: its rows stay readable
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_unchanged(array: Array, before: Stamp) -> None:
    """Raise InvalidData if a mapped file was written to since.

    Its rows would be others or, of a shorter file, end the process. A file that took its name does
    no harm: the mapping keeps the old one.
    """
    now = _stamp(array)
    if before is not None and now is not None and now[0] == before[0] and now != before:
        name = Path(str(array.filename)).name  # type: ignore[attr-defined]
        raise InvalidData(
            f"{name} was changed while it was read: leave it as it is during training, and write "
            "new data to a new file"
        )


def read_arrays(path: Path) -> dict[str, Array]:
    """Map or read an .npz file's or folder's arrays, by name.

    Raises:
        InvalidData: a file is none, is damaged, or holds pickled objects.
    """
    if not path.is_dir():
        return read_npz(path)[0]
    return {file.stem: read_npy(file) for file in sorted(path.glob("*.npy"))}


def read_npz(path: Path) -> tuple[dict[str, Array], list[str]]:
    """Map or read the arrays of an .npz file, by name.

    The list names those that are compressed, and so are read whole.

    Raises:
        InvalidData: it is no .npz file, is damaged, or holds pickled objects.
    """
    arrays, compressed = {}, []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if not member.filename.endswith(".npy"):
                    raise InvalidData(
                        f"{path.name} holds {member.filename[:80]!r}, which is no .npy: take it out"
                    )
                name = member.filename.removesuffix(".npy")
                if member.compress_type == zipfile.ZIP_STORED:
                    _check_sum(archive, member)
                    arrays[name] = _map_member(path, file, member)
                else:
                    compressed.append(name)
                    with archive.open(member) as stream:
                        arrays[name] = npy.read_array(stream, allow_pickle=False)
    except UNREADABLE as error:
        raise _unreadable(path, "no .npz file, or is damaged", error) from error
    return arrays, compressed


def read_npy(path: Path) -> Array:
    """Map the array of an .npy file.

    Raises:
        InvalidData: it is no .npy file, is damaged, or holds pickled objects.
    """
    try:
        with path.open("rb") as file:
            return _map(path, file, path.stat().st_size)
    except UNREADABLE as error:
        raise _unreadable(path, "no .npy file, or is cut off", error) from error


def _unreadable(path: Path, description: str, error: Exception) -> InvalidData:
    if isinstance(error, InvalidData):
        return error
    return InvalidData(f"{path.name} is {description}")


def _check_sum(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Read a member once, so that zipfile compares its CRC-32."""
    with archive.open(member) as stream:
        while stream.read(READ_BYTES):
            pass


def _map_member(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> Array:
    """Map the .npy file that an archive stores as it is.

    The lengths in the local header may differ from those in the archive's directory.
    """
    file.seek(member.header_offset)
    header = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    signature, flags, method, name_length, extra_length = header
    if signature != SIGNATURE or flags & ENCRYPTED or method != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{member.filename} contradicts the archive's directory")
    start = file.seek(name_length + extra_length, 1)
    return _map(path, file, start + member.file_size)


def _map(path: Path, file: BinaryIO, end: int) -> Array:
    """Map an array whose .npy header begins where `file` stands."""
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read_header:  # version 3 is for names of fields
        raise InvalidValue(f"{path.name} holds records; numbers or texts are known")
    shape, is_fortran, dtype = read_header[version](file)
    if dtype.hasobject:
        raise InvalidData(f"{path.name} holds pickled objects, which are refused")
    start = file.tell()
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if start + size != end:
        raise ValueError("the shape does not match the size")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    if not size:  # an empty range cannot be mapped
        return np.empty(shape, dtype)
    mapped: Array = np.memmap(path, dtype, "r", offset=start, shape=shape, order=order)
    return mapped
