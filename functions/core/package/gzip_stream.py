"""Decompression of untrusted gzip files with a limited ratio, against zip bombs."""

import zlib
from collections.abc import Callable
from typing import BinaryIO

from functions.core.errors import InvalidModel

MEMBERS = 100_000  # gzip members; bgzip writes one for every 64 KB
# FREE_BYTES of zeros take 6 s of CPU; beyond them, a compressed byte may inflate to RATIO bytes.
FREE_BYTES = 2 * 1024**3
RATIO = 200
CHUNK = 64 * 1024
MAGIC = 0x1F  # first byte of a gzip member


class GzipStream:
    """Reader of a gzip file's decompressed bytes.

    The file may have several gzip members (pigz, bgzip, `cat a.gz b.gz`) and zeros after them.
    Every method raises InvalidModel, `BAD_ARCHIVE`, if the file is damaged or expands too much.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0  # decompressed bytes that were read
        self._file = file
        self._source = b""
        self._inflater = zlib.decompressobj(wbits=31)
        self._members = 1
        self._buffer = b""
        self._read_bytes = 0
        self._inflated_bytes = 0

    def read(self, size: int) -> bytes:
        """Read and return the next `size` decompressed bytes."""
        while len(self._buffer) < size:
            self._fill()
        self.position += size
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def copy(self, size: int, write: Callable[[bytes], object]) -> None:
        """Pass the next `size` decompressed bytes to `write`, piece by piece."""
        while size:
            if not self._buffer:
                self._fill()
            piece = self.read(min(size, len(self._buffer)))
            write(piece)
            size -= len(piece)

    def skip(self, size: int) -> None:
        """Discard the next `size` decompressed bytes."""
        self.copy(size, lambda _: None)

    def skip_zeros(self, block: int) -> bool:
        """Skip all-zero blocks; return False if only zeros remain."""
        while self._buffer == bytes(len(self._buffer)):
            self._buffer = self._buffer[len(self._buffer) // block * block :]
            if not self._inflate():
                return False
        zeros = len(self._buffer) - len(self._buffer.lstrip(b"\0"))
        self._buffer = self._buffer[zeros // block * block :]
        return True

    def _fill(self) -> None:
        if not self._inflate():
            raise bad_archive("it ends too early; upload it again")

    def _inflate(self) -> bool:
        """Decompress one chunk into the buffer; return False at end of file."""
        if self._inflater.eof and not self._begin_member():
            return False
        source = self._source or self._read_file()
        if not source:
            raise bad_archive("it ends too early; upload it again")
        try:
            data = self._inflater.decompress(source, CHUNK)
        except zlib.error as error:
            problem = "is damaged" if self._inflated_bytes else "is not gzip, or damaged"
            raise bad_archive(f"it {problem}; pack it with tar czf model.tar.gz") from error
        is_complete = self._inflater.eof
        self._source = self._inflater.unused_data if is_complete else self._inflater.unconsumed_tail
        self._buffer += data
        self._inflated_bytes += len(data)
        if self._inflated_bytes > FREE_BYTES + RATIO * self._read_bytes:
            raise bad_archive(
                f"it inflates to more than {FREE_BYTES >> 20} MB and {RATIO} times its size"
            )
        return True

    def _begin_member(self) -> bool:
        """Start decompressing the next gzip member; return False if only zeros remain."""
        self._source = self._source.lstrip(b"\0")
        while not self._source:
            source = self._read_file()
            if not source:
                return False
            self._source = source.lstrip(b"\0")
        if self._source[0] != MAGIC:
            raise bad_archive("data follows after its end; pack it again")
        self._members += 1
        if self._members > MEMBERS:
            raise bad_archive(f"it consists of more than {MEMBERS} gzip members")
        self._inflater = zlib.decompressobj(wbits=31)
        return True

    def _read_file(self) -> bytes:
        data = self._file.read(CHUNK)
        self._read_bytes += len(data)
        return data


def bad_archive(reason: str) -> InvalidModel:
    """Return the BAD_ARCHIVE error for an archive that cannot be read."""
    return InvalidModel(f"the archive cannot be read: {reason}", code="BAD_ARCHIVE")
