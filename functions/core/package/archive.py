"""Extractor for untrusted .tar.gz archives: no links, limits on members and inflation.

No file is created under a name from the archive. Links are never followed, and only the members
that the caller picks are written.
Why tarfile does not do this: docs/decisions/0018-the-archive-reader.md.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from functions.core.errors import InvalidModel, shown

MEMBERS = 64
RATIO = 200  # inflated bytes per compressed byte, beyond FREE_BYTES
FREE_BYTES = 64 * 1024 * 1024
HEADER_BYTES = 64 * 1024  # longest PAX header
BLOCK = 512
CHUNK = 64 * 1024

_REGULAR = {b"0", b"\0", b"7"}
_DIRECTORY = b"5"
_PAX = {b"x", b"g"}  # type flags of PAX headers: for one member, for all that follow
_PAX_REFUSED = ("path=", "size=", "linkpath=", "GNU.sparse")  # records that change the next member


@dataclass(frozen=True, slots=True)
class Member:
    """Name and size of a regular file in a tar archive.

    `name` has no leading `./`.
    """

    name: str
    size_bytes: int


def extract(archive: Path, target: Callable[[Member], Path | None]) -> list[Member]:
    """Extract each file of a .tar.gz to the path `target` returns.

    Members for which `target` returns None are skipped unread. Returns all members. The archive is
    read to its end, so that damage anywhere in it is reported.

    Raises:
        InvalidModel: `BAD_ARCHIVE`, with the member at fault.
    """
    members: dict[str, Member] = {}
    with archive.open("rb") as file:
        stream = _GzipStream(file)
        for member in _members(stream):
            if member.name in members:
                raise _bad(f"{shown(member.name)} is in it twice")
            if len(members) == MEMBERS:
                raise _bad(f"it has more than {MEMBERS} members")
            members[member.name] = member
            _write(stream, member, target(member))
        stream.finish()
    return list(members.values())


def _write(stream: "_GzipStream", member: Member, path: Path | None) -> None:
    if path is None:
        stream.skip(member.size_bytes)
    else:
        with path.open("xb") as file:
            stream.copy(member.size_bytes, file.write)
    stream.skip(-member.size_bytes % BLOCK)


def _members(stream: "_GzipStream") -> Iterator[Member]:
    """Yield name and size of each regular file in a tar stream.

    The caller reads or skips the content of each before it asks for the next.
    """
    while any(header := stream.read(BLOCK)):
        _check_sum(header)
        name = _name(header)
        size = _size(header[124:136], name)
        kind = header[156:157]
        if kind in _PAX:
            _check_pax(stream, size)
        elif kind in _REGULAR:
            yield Member(name, size)
        elif kind != _DIRECTORY or size:
            raise _bad(f"{shown(name)} is a link or a device; pack regular files only")


def _check_pax(stream: "_GzipStream", size: int) -> None:
    """Skip a PAX header; refuse one that renames or resizes a member.

    Harmless records, such as times and owners, are ignored.
    """
    if size > HEADER_BYTES:
        raise _bad("a PAX header is too long")
    text = stream.read(size).decode("utf-8", "replace")
    if any(f" {record}" in text for record in _PAX_REFUSED):
        raise _bad("a PAX header renames or resizes a member; pack it with short names")
    stream.skip(-size % BLOCK)


def _name(header: bytes) -> str:
    prefix = header[345:500] if header[257:263] == b"ustar\0" else b""
    parts = [part.split(b"\0")[0].decode("utf-8", "replace") for part in (prefix, header[:100])]
    name = "/".join(filter(None, parts))
    while name.startswith("./"):
        name = name[2:]
    return name


def _size(field: bytes, name: str) -> int:
    digits = field.split(b"\0")[0].strip()
    if not digits or not all(48 <= digit <= 55 for digit in digits):
        raise _bad(f"the size of {shown(name)} is not octal")
    return int(digits, 8)


def _check_sum(header: bytes) -> None:
    stated = header[148:156].split(b"\0")[0].strip()
    actual = sum(header) - sum(header[148:156]) + 8 * 32
    if not stated.isdigit() or int(stated, 8) != actual:
        raise _bad("a header's checksum is wrong")


def _bad(reason: str) -> InvalidModel:
    return InvalidModel(f"the archive cannot be read: {reason}", code="BAD_ARCHIVE")


class _GzipStream:
    """Reader of a gzip file's decompressed bytes, with a bounded inflation ratio.

    The file has one gzip member. Beyond FREE_BYTES, the limit is RATIO.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(wbits=31)
        self._buffer = b""
        self._read_bytes = 0
        self._inflated_bytes = 0

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
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
        self.copy(size, lambda _: None)

    def finish(self) -> None:
        """Check that only padding zeros follow the last member of the archive.

        Raises:
            InvalidModel: anything else follows, or the checksum of gzip is wrong.
        """
        while not self._inflater.eof:
            self._fill()
            if any(self._buffer):
                raise _bad("data follows after its end")
            self._buffer = b""
        if any(self._buffer) or self._inflater.unused_data or self._file.read(1):
            raise _bad("data follows after its end")

    def _fill(self) -> None:
        source = self._inflater.unconsumed_tail
        if not source:
            source = self._file.read(CHUNK)
            self._read_bytes += len(source)
        if self._inflater.eof or not source:
            raise _bad("it ends too early; upload it again")
        try:
            data = self._inflater.decompress(source, CHUNK)
        except zlib.error as error:
            raise _bad("it is not gzip, or damaged") from error
        self._buffer += data
        self._inflated_bytes += len(data)
        if self._inflated_bytes > FREE_BYTES + RATIO * self._read_bytes:
            raise _bad(f"it inflates to more than {RATIO} times its size")
