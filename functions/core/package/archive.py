"""Reader of untrusted .tar.gz archives in v7, ustar, GNU and PAX formats.

No file is created under a name from the archive, and links are never followed: the caller says
where the content of a member goes. Members that it does not write are skipped by their size, so
that an archive may hold anything beside the model.
Why tarfile does not do this: docs/decisions/0018-the-archive-reader.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from functions.core.errors import shown
from functions.core.package.gzip_stream import GzipStream, bad_archive

HEADERS = 200_000  # macOS writes four for a file; a folder with torch in it has 30,000 files
EXTENDED_BYTES = 1024 * 1024  # one extended header, with a file's attributes (64 KB each on Linux)
NAME_BYTES = 4096  # PATH_MAX of Linux
BLOCK = 512

_PAX = {b"x", b"X"}  # records about the next member; X is Solaris
_PAX_GLOBAL = b"g"  # records about all members that follow
_LONG_NAME, _LONG_LINK = b"L", b"K"  # GNU: name and link target of the next member
_DIRECTORY, _SPARSE = b"5", b"S"
_REGULAR = {b"0", b"\0", b"7"}
# Kinds without content, whatever their size field says.
_EMPTY = {
    b"1": "a hard link; pack the file itself (tar --hard-dereference)",
    b"2": "a symbolic link; pack the file itself (tar --dereference)",
    b"3": "a device; pack a regular file",
    b"4": "a device; pack a regular file",
    b"6": "a named pipe; pack a regular file",
    b"V": "a volume's label; pack a regular file",
}
_SPARSE_PROBLEM = "a sparse file; pack it without --sparse (bsdtar: with --no-read-sparse)"
_UNKNOWN_PROBLEM = "no regular file; pack it as one"
_RECORD = re.compile(rb"([0-9]{1,9}) ([^=]{1,512})=")  # length and key in a PAX header


@dataclass(frozen=True, slots=True)
class Member:
    """Member of a tar archive: a file, link or device.

    `name` has no `.` or empty segments and no leading slash; `..` remains. `problem` says why the
    member cannot be written, e.g. "a symbolic link; …"; it is empty for a regular file.
    """

    name: str
    size_bytes: int
    problem: str
    stream: GzipStream

    def write(self, path: Path) -> None:
        """Write the archive member to a new file.

        To be called before the next member is read.

        Raises:
            InvalidModel: `BAD_ARCHIVE`.
        """
        with path.open("xb") as file:
            self.stream.copy(self.size_bytes, file.write)


@dataclass(slots=True)
class _Extension:
    """Name and size of a tar member, read from its extended headers."""

    name: bytes | None = None
    size_bytes: int | None = None
    is_sparse: bool = False


def read_archive(path: Path) -> Iterator[Member]:
    """Yield the members of a .tar.gz archive in order, without directories.

    The archive is read to its end, so that damage anywhere in it is reported.

    Raises:
        InvalidModel: `BAD_ARCHIVE`.
    """
    with path.open("rb") as file:
        stream = GzipStream(file)
        extension = _Extension()
        for header in _headers(stream):
            kind = header[156:157]
            if kind in _PAX or kind == _PAX_GLOBAL:
                _extend(extension, _extended(stream, header), is_global=kind == _PAX_GLOBAL)
            elif kind == _LONG_NAME:
                extension.name = _extended(stream, header).split(b"\0")[0]
            elif kind == _LONG_LINK:
                _extended(stream, header)
            else:
                yield from _member(stream, header, extension)
                extension = _Extension()


def _headers(stream: GzipStream) -> Iterator[bytes]:
    """Yield a tar stream's header blocks; the caller skips each member's content.

    Zeros end an archive, and another may follow them: `cat a.tar.gz b.tar.gz`.
    """
    for _ in range(HEADERS):
        header = stream.read(BLOCK)
        if not any(header):
            if not stream.skip_zeros(BLOCK):
                return
            header = stream.read(BLOCK)
        _check_sum(header)
        yield header
    raise bad_archive(f"it has more than {HEADERS} members")


def _member(stream: GzipStream, header: bytes, extension: _Extension) -> Iterator[Member]:
    """Yield a tar member, except a directory, then skip its content."""
    kind = header[156:157]
    name = _name(header) if extension.name is None else extension.name
    if kind == b"\0" and name.endswith(b"/"):  # as tars before POSIX wrote directories
        kind = _DIRECTORY
    size = 0
    if kind != _DIRECTORY and kind not in _EMPTY:
        size = _size(header) if extension.size_bytes is None else extension.size_bytes
    if kind == _SPARSE:
        _skip_sparse_maps(stream, header)
    end = stream.position + size
    if kind != _DIRECTORY:
        problem = _EMPTY.get(kind, "" if kind in _REGULAR else _UNKNOWN_PROBLEM)
        if extension.is_sparse or kind == _SPARSE:
            problem = _SPARSE_PROBLEM
        yield Member(_normal(name), size, problem, stream)
    stream.skip(end - stream.position)
    stream.skip(-size % BLOCK)


def _skip_sparse_maps(stream: GzipStream, header: bytes) -> None:
    """Skip the sparse map extension blocks of a GNU tar member."""
    continues = header[482]
    while continues:
        continues = stream.read(BLOCK)[504]


def _extended(stream: GzipStream, header: bytes) -> bytes:
    """Read and return the content of a tar extended header."""
    size = _size(header)
    if size > EXTENDED_BYTES:
        raise bad_archive(f"an extended header has over {EXTENDED_BYTES} bytes")
    content = stream.read(size)
    stream.skip(-size % BLOCK)
    return content


def _extend(extension: _Extension, content: bytes, *, is_global: bool) -> None:
    """Set a tar member's name and size from a PAX header's records."""
    records = dict(_records(content))
    if is_global:  # git archive's, for one, has a comment
        if {b"path", b"size"} & records.keys():
            raise bad_archive("a global PAX header gives all members one name or size")
        return
    name = records.get(b"GNU.sparse.name") or records.get(b"path")
    if name:
        extension.name = name
    if b"size" in records:
        extension.size_bytes = _number(records[b"size"], base=10)
        if extension.size_bytes is None:
            raise bad_archive("the size in a PAX header is no number")
    extension.is_sparse |= any(key.startswith(b"GNU.sparse.") for key in records)


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key and value of each record in a PAX header.

    Raises:
        InvalidModel: `BAD_ARCHIVE`.
    """
    at = 0
    while at < len(content):
        record = _RECORD.match(content, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(content):
            raise bad_archive("a PAX header is malformed")
        yield record[2], content[record.end() : end - 1]  # without its newline
        at = end


def _name(header: bytes) -> bytes:
    prefix = header[345:500] if header[257:263] == b"ustar\0" else b""  # GNU has times there
    return b"/".join(filter(None, (part.split(b"\0")[0] for part in (prefix, header[:100]))))


def _normal(name: bytes) -> str:
    if len(name) > NAME_BYTES:
        raise bad_archive(f"a member's name has over {NAME_BYTES} bytes")
    segments = name.decode("utf-8", "replace").split("/")
    return "/".join(segment for segment in segments if segment not in ("", "."))


def _size(header: bytes) -> int:
    """Parse a tar header's size: octal, or base-256 from 8 GB on."""
    field = header[124:136]
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _number(field, base=8)
    if size is None:
        raise bad_archive(f"the size of {shown(_normal(_name(header)))} is not octal")
    return size


def _number(field: bytes, base: int) -> int | None:
    digits = field.split(b"\0")[0].strip()
    try:
        return int(digits, base) if digits.isdigit() and len(digits) <= 20 else None
    except ValueError:  # 8 or 9 in an octal number
        return None


def _check_sum(header: bytes) -> None:
    """Verify a tar header's checksum, summed over unsigned or signed bytes."""
    rest = header[:148] + b" " * 8 + header[156:]
    stated, unsigned = _number(header[148:156], base=8), sum(rest)
    if stated != unsigned and stated != unsigned - 256 * sum(byte > 127 for byte in rest):
        raise bad_archive("a header's checksum is wrong; upload it again")
