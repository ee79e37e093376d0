"""`model.tar.gz` as Python, SageMaker and an attacker pack it."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from functions.core.errors import InvalidModel
from functions.core.package.archive import extract


def pack(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, mtime: float = 1.5) -> bytes:
    """A tar.gz as Python writes it; the fractional time brings a PAX header with every member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def special(kind: bytes, linkname: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("model.onnx")
        info.type, info.linkname = kind, linkname
        tar.addfile(info)
    return out.getvalue()


def read(tmp_path: Path, content: bytes, wanted: set[str] | None = None) -> dict[str, bytes]:
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    into = tmp_path / "out"
    into.mkdir()
    names: dict[str, Path] = {}

    def target(member):
        if wanted is not None and member.name not in wanted:
            return None
        names[member.name] = into / str(len(names))
        return names[member.name]

    extract(archive, target)
    return {name: path.read_bytes() for name, path in names.items()}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_members_come_out_as_they_went_in(tmp_path: Path, form: int) -> None:
    members = {
        "model.onnx": b"m" * 1_000_000,
        "weights.bin": b"",
        "code/inference.py": b"print()",
        "a" * 90: b"x",
    }

    assert read(tmp_path, pack(members, form)) == members


def test_only_what_is_wanted_is_written(tmp_path: Path) -> None:
    packed = pack({"./model.onnx": b"m", "evil.pkl": b"p"})

    assert read(tmp_path, packed, {"model.onnx"}) == {"model.onnx": b"m"}


def test_names_that_leave_the_folder_are_only_names(tmp_path: Path) -> None:
    assert read(tmp_path, pack({"../../etc/passwd": b"root"})) == {"../../etc/passwd": b"root"}
    assert not (tmp_path.parent / "etc").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "ends too early"),
        (b"plain text", "not gzip"),
        (pack({"m.onnx": b"m" * 9999})[:-100], "ends too early"),
        (pack({"m.onnx": b"m"}) + b"x", "data follows"),
        (pack({"m.onnx": b"m"}) + gzip.compress(b"second"), "data follows"),
        (gzip.compress(gzip.decompress(pack({"m.onnx": b"m"})) + b"hidden" * 100), "data follows"),
        (special(tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (special(tarfile.LNKTYPE, "/etc/passwd"), "link or a device"),
        (special(tarfile.CHRTYPE), "link or a device"),
        (special(tarfile.FIFOTYPE), "link or a device"),
        (pack({"b" * 300: b"m"}), "PAX header renames"),
        (pack({"b" * 300: b"m"}, tarfile.GNU_FORMAT), "link or a device"),
        (pack({"m" + str(n): b"" for n in range(65)}), "more than 64"),
        (gzip.compress(b"\xff" * 2048), "checksum"),
        (pack({"m.onnx": bytes(128 * 1024 * 1024)}), "inflates to more than"),
    ],
    ids=[
        "empty", "text", "truncated", "trailing byte", "second gzip member", "data after the end", "symlink",
        "hard link", "device", "fifo", "pax long name", "gnu long name", "too many", "no tar", "bomb",
    ],
)  # fmt: skip
def test_what_is_no_plain_archive_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(InvalidModel, match=why) as caught:
        read(tmp_path, content)
    assert caught.value.instance_code == "BAD_ARCHIVE"


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("model.onnx"))

    with pytest.raises(InvalidModel, match="twice"):
        read(tmp_path, out.getvalue())


@pytest.mark.parametrize(
    "size", [b"-0000000512\0", b"99999999999\0", b"\x80" + bytes(11), b"           \0"]
)
def test_a_size_that_is_no_octal_number_is_refused(tmp_path: Path, size: bytes) -> None:
    header = bytearray(gzip.decompress(pack({"m.onnx": b"m"}, tarfile.USTAR_FORMAT))[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)

    with pytest.raises(InvalidModel, match="not octal"):
        read(tmp_path, gzip.compress(bytes(header) + bytes(1024)))
