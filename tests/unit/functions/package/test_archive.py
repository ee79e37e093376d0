"""Reader of model.tar.gz: valid archives, and those that an attacker packs."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from functions.core.errors import InvalidModel
from functions.core.package.archive import extract


def pack(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, mtime: float = 1.5) -> bytes:
    """Pack a tar.gz as Python does; a fractional mtime adds a PAX header to each member."""
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


def read(tmp_path: Path, content: bytes, chosen: set[str] | None = None) -> dict[str, bytes]:
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    into = tmp_path / "out"
    into.mkdir()
    names: dict[str, Path] = {}

    def target(member):
        if chosen is not None and member.name not in chosen:
            return None
        names[member.name] = into / str(len(names))
        return names[member.name]

    extract(archive, target)
    return {name: path.read_bytes() for name, path in names.items()}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_read_unchanged(tmp_path: Path, form: int) -> None:
    members = {
        "model.onnx": b"m" * 1_000_000,
        "weights.bin": b"",
        "code/inference.py": b"print()",
        "a" * 90: b"x",
    }

    assert read(tmp_path, pack(members, form)) == members


def test_only_the_chosen_members_are_written(tmp_path: Path) -> None:
    packed = pack({"./model.onnx": b"m", "evil.pkl": b"p"})

    assert read(tmp_path, packed, {"model.onnx"}) == {"model.onnx": b"m"}


def test_a_name_outside_the_folder_writes_nothing_there(tmp_path: Path) -> None:
    assert read(tmp_path, pack({"../../etc/passwd": b"root"})) == {"../../etc/passwd": b"root"}
    assert not (tmp_path.parent / "etc").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "ends too early", id="empty"),
        pytest.param(b"plain text", "not gzip", id="text"),
        pytest.param(pack({"m.onnx": b"m" * 9999})[:-100], "ends too early", id="truncated"),
        pytest.param(pack({"m.onnx": b"m"}) + b"x", "data follows", id="trailing byte"),
        pytest.param(
            pack({"m.onnx": b"m"}) + gzip.compress(b"second"),
            "data follows",
            id="second gzip member",
        ),
        pytest.param(
            gzip.compress(gzip.decompress(pack({"m.onnx": b"m"})) + b"hidden" * 100),
            "data follows",
            id="data after the end",
        ),
        pytest.param(special(tarfile.SYMTYPE, "/etc/passwd"), "link or a device", id="symlink"),
        pytest.param(special(tarfile.LNKTYPE, "/etc/passwd"), "link or a device", id="hard link"),
        pytest.param(special(tarfile.CHRTYPE), "link or a device", id="device"),
        pytest.param(special(tarfile.FIFOTYPE), "link or a device", id="fifo"),
        pytest.param(pack({"b" * 300: b"m"}), "PAX header renames", id="pax long name"),
        pytest.param(
            pack({"b" * 300: b"m"}, tarfile.GNU_FORMAT), "link or a device", id="gnu long name"
        ),
        pytest.param(pack({"m" + str(n): b"" for n in range(65)}), "more than 64", id="too many"),
        pytest.param(gzip.compress(b"\xff" * 2048), "checksum", id="no tar"),
        pytest.param(
            pack({"m.onnx": bytes(128 * 1024 * 1024)}), "inflates to more than", id="bomb"
        ),
    ],
)
def test_a_malformed_archive_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
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
def test_a_size_that_is_not_octal_is_refused(tmp_path: Path, size: bytes) -> None:
    header = bytearray(gzip.decompress(pack({"m.onnx": b"m"}, tarfile.USTAR_FORMAT))[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)

    with pytest.raises(InvalidModel, match="not octal"):
        read(tmp_path, gzip.compress(bytes(header) + bytes(1024)))
