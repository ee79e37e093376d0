"""`model.tar.gz`, read by us and not by tarfile, whose filters have let files escape and whose headers can hang it.

Members are never created under their own names, links are never followed, and nothing is opened but what is asked for.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from functions.core.errors import InvalidModel, shown

MEMBERS = 64
RATIO = 200  # inflated bytes a compressed byte, after the first megabytes
FREE_BYTES = 64 * 1024 * 1024
HEADER_BYTES = 64 * 1024  # of a PAX header
BLOCK = 512
CHUNK = 256 * 1024

_REGULAR = {b"0", b"\0", b"7"}
_PAX_HARMFUL = ("path=", "size=", "linkpath=", "GNU.sparse")


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of the archive: its name without leading `./`."""

    name: str
    size_bytes: int


def extract(archive: Path, target: Callable[[Member], Path | None]) -> list[Member]:
    """Read the archive from end to end; write each member to the path that `target` gives for it, or skip it.

    Raises:
        InvalidModel: `BAD_ARCHIVE`, with the member at fault.
    """
    found: dict[str, Member] = {}
    with archive.open("rb") as file:
        stream = _Inflated(file)
        for member in _members(stream):
            if member.name in found:
                raise _bad(f"{shown(member.name)} is in it twice")
            if len(found) == MEMBERS:
                raise _bad(f"it has more than {MEMBERS} members")
            found[member.name] = member
            path = target(member)
            if path is None:
                stream.skip(member.size_bytes)
            else:
                with path.open("xb") as out:
                    stream.copy(member.size_bytes, out)
            stream.skip(-member.size_bytes % BLOCK)
        stream.finish()
    return list(found.values())


def _members(stream: "_Inflated") -> Iterator[Member]:
    while any(header := stream.read(BLOCK)):
        _check_sum(header)
        name = _name(header)
        size = _number(header[124:136], name)
        kind = header[156:157]
        if kind in (
            b"x",
            b"g",
        ):  # PAX: times and the like are ignored, what changes the meaning is refused
            if size > HEADER_BYTES:
                raise _bad("a PAX header is too long")
            text = stream.read(size).decode("utf-8", "replace")
            if any(f" {word}" in text for word in _PAX_HARMFUL):
                raise _bad("a PAX header renames or resizes a member; pack it with short names")
            stream.skip(-size % BLOCK)
        elif kind == b"5" and size == 0:
            continue
        elif kind in _REGULAR:
            yield Member(name, size)
        else:
            raise _bad(f"{shown(name)} is a link or a device; pack regular files only")


def _name(header: bytes) -> str:
    prefix = header[345:500] if header[257:263] == b"ustar\0" else b""
    parts = [part.split(b"\0")[0].decode("utf-8", "replace") for part in (prefix, header[:100])]
    name = "/".join(filter(None, parts))
    while name.startswith("./"):
        name = name[2:]
    return name


def _number(field: bytes, name: str) -> int:
    digits = field.split(b"\0")[0].strip()
    if not digits or not all(48 <= digit <= 55 for digit in digits):
        raise _bad(f"the size of {shown(name)} is not octal")
    return int(digits, 8)


def _check_sum(header: bytes) -> None:
    stated = header[148:156].split(b"\0")[0].strip()
    actual = sum(header) - sum(header[148:156]) + 8 * 32
    if not stated.isdigit() or int(stated, 8) != actual:
        raise _bad("a header's checksum is wrong")


def _bad(why: str) -> InvalidModel:
    return InvalidModel(f"the archive cannot be read: {why}", code="BAD_ARCHIVE")


class _Inflated:
    """The inflated bytes of one gzip member, bounded by the ratio."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(wbits=31)
        self._buffer = bytearray()
        self._read = 0
        self._inflated = 0

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def copy(self, size: int, out: BinaryIO) -> None:
        while size:
            step = min(size, CHUNK)
            out.write(self.read(step))
            size -= step

    def skip(self, size: int) -> None:
        while size:
            step = min(size, CHUNK)
            self.read(step)
            size -= step

    def finish(self) -> None:
        """Read what pads the end, and see that nothing else follows.

        Raises:
            InvalidModel: something does, or the checksum is wrong.
        """
        while not self._inflater.eof:
            self._fill()
            if any(self._buffer):
                raise _bad("data follows after its end")
            self._buffer.clear()
        if any(self._buffer) or self._inflater.unused_data or self._file.read(1):
            raise _bad("data follows after its end")

    def _fill(self) -> None:
        source = self._inflater.unconsumed_tail
        if not source:
            source = self._file.read(CHUNK)
            self._read += len(source)
        if self._inflater.eof or not source:
            raise _bad("it ends too early; upload it again")
        try:
            out = self._inflater.decompress(source, CHUNK)
        except zlib.error as error:
            raise _bad("it is not gzip, or damaged") from error
        self._buffer += out
        self._inflated += len(out)
        if self._inflated > FREE_BYTES + RATIO * self._read:
            raise _bad(f"it inflates to more than {RATIO} times its size")
