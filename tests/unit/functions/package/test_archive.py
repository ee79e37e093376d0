"""Tests of the .tar.gz reader with archives of common tools and attackers."""

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from functions.core.errors import InvalidModel
from functions.core.package import gzip_stream
from functions.core.package.archive import read_archive
from tests.hostile.cases import block, packed

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
LONG = "a" * 60 + "/" + "b" * 200 + "/modèle.bin"  # no ustar header holds it


def pack(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, mtime: float = 1.5) -> bytes:
    """Pack a tar.gz as Python does; a fractional mtime adds a PAX header to each member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    """Make a tar with an extended header of `content` and one member."""
    size = b"%011o\0" % len(content)
    return packed(block(b"h", size, kind), content, block(b"m", b"00000000001\0"), b"m")


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    digits = next(n for n in range(1, 9) if len(b"%d" % (length + n)) == n)
    return b"%d %b=%b\n" % (length + digits, key, value)


def read(tmp_path: Path, content: bytes, chosen: set[str] | None = None) -> dict[str, bytes]:
    """Read an archive; return the contents of all or chosen regular members."""
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    contents: dict[str, bytes] = {}
    for member in read_archive(archive):
        if not member.problem and (chosen is None or member.name in chosen):
            path = tmp_path / f"out-{len(contents)}"
            member.write(path)
            contents[member.name] = path.read_bytes()
            path.unlink()
    return contents


def problems(tmp_path: Path, content: bytes) -> dict[str, str]:
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    return {member.name: member.problem for member in read_archive(archive)}


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_read_unchanged(tmp_path: Path, form: str) -> None:
    members = {
        "model.onnx": b"m" * 1_000_000,
        "weights.bin": b"",
        "code/inference.py": b"print()",
        "a" * 90: b"x",
        "notes-modèle.txt": b"y",
        "日本語/" + "é" * 40: b"z",
    }

    assert read(tmp_path, pack(members, FORMATS[form])) == members


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_names_are_read_whole(tmp_path: Path, form: str) -> None:
    members = {LONG: b"long", "model.onnx": b"m", LONG + "2": b"longer"}

    assert read(tmp_path, pack(members, FORMATS[form])) == members


def test_only_the_chosen_members_are_written(tmp_path: Path) -> None:
    content = pack({"./model.onnx": b"m", "evil.pkl": b"p"})

    assert read(tmp_path, content, {"model.onnx"}) == {"model.onnx": b"m"}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("./a//b/./model.onnx", "a/b/model.onnx"),
        ("/opt/ml/model/model.onnx", "opt/ml/model/model.onnx"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("package/model.onnx", "package/model.onnx"),
    ],
)
def test_a_name_is_made_plain_and_names_no_file(tmp_path: Path, name: str, plain: str) -> None:
    assert read(tmp_path, packed(block(name.encode(), b"00000000001\0"), b"m")) == {plain: b"m"}
    assert not (tmp_path.parent / "etc").exists()


# --- what tools write


def folder(tmp_path: Path) -> Path:
    """Make a folder with links, long and non-ASCII names, and hidden files."""
    root = tmp_path / "in"
    (root / "code" / LONG).parent.mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"m" * 5000)
    (root / "._model.onnx").write_bytes(b"\0\5\26\7Mac OS X")
    (root / "code" / LONG).write_bytes(b"long")
    (root / "notes-modèle.txt").write_bytes(b"notes")
    (root / "code" / "link.py").symlink_to("/etc/passwd")
    os.link(root / "model.onnx", root / "same.bin")
    os.mkfifo(root / "code" / "pipe")
    return root


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse"],
        ["--format=posix", "--pax-option=globexthdr.comment=made by make,SCHILY.dev:=1"],
        ["--format=oldgnu", "--label=volume", "--absolute-names"],
        ["--blocking-factor=2048"],
        ["--numeric-owner", "--sort=name", "--dereference", "--hard-dereference"],
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_archives_of_gnu_tar_are_read(tmp_path: Path, options: list[str]) -> None:
    root = folder(tmp_path)
    with (root / "holes.bin").open("wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["tar", "czf", tmp_path / "made", *options, "-C", root, "."], check=True)

    contents = read(tmp_path, (tmp_path / "made").read_bytes())

    assert contents[f"code/{LONG}"] == b"long"
    assert contents["notes-modèle.txt"] == b"notes"
    assert contents["._model.onnx"] == b"\0\5\26\7Mac OS X"
    # The second name of a file is a hard link; which is the second depends on the file system.
    assert b"m" * 5000 in (contents.get("model.onnx"), contents.get("same.bin"))
    assert ("holes.bin" in contents) is ("--sparse" not in options)
    assert "code/pipe" not in contents


def test_archives_of_git_are_read(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "model.onnx").write_bytes(b"m" * 5000)
    (root / "link.onnx").symlink_to("model.onnx")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    made = subprocess.run(
        [*git, "archive", "--format=tar.gz", "--prefix=m-1/", "HEAD"],
        check=True,
        capture_output=True,
    )

    assert read(tmp_path, made.stdout) == {"m-1/model.onnx": b"m" * 5000}


def test_archives_of_bsdtar_are_read(tmp_path: Path) -> None:
    # As bsdtar of macOS writes it: attributes of a file in a PAX header and in a file beside it.
    attributes = [
        record(b"LIBARCHIVE.creationtime", b"1700000000.123456789"),
        record(b"LIBARCHIVE.xattr.com.apple.quarantine", b"MDA4Mzs1"),
        record(b"SCHILY.xattr.com.apple.provenance", b"\1\2\0\xff\n=\n" * 9000),
        record(b"SCHILY.fflags", b"nodump"),
        record(b"mtime", b"1700000000.1"),
    ]
    header = b"".join(attributes)
    size = b"%011o\0" % len(header)
    archive = packed(
        block(b"./PaxHeader/._model.onnx", size, b"x"),
        header,
        block(b"./._model.onnx", b"00000000003\0"),
        b"mac",
        block(b"./PaxHeader/model.onnx", size, b"x"),
        header,
        block(b"./model.onnx", b"00000000005\0"),
        b"model",
    )

    assert read(tmp_path, archive) == {"._model.onnx": b"mac", "model.onnx": b"model"}


def test_sizes_come_from_pax_and_in_base_256(tmp_path: Path) -> None:
    large = record(b"size", b"5") + record(b"path", "modèle".encode())
    archive = packed(
        block(b"x", b"%011o\0" % len(large), b"x"),
        large,
        block(b"m", b"00000000000\0"),
        b"large",
        block(b"base256", b"\x80" + bytes(10) + b"\3"),
        b"256",
    )

    assert read(tmp_path, archive) == {"modèle": b"large", "base256": b"256"}


def test_checksums_of_signed_bytes_are_accepted(tmp_path: Path) -> None:
    header = bytearray(block("modèle".encode(), b"00000000001\0"))
    signed = sum(header) - sum(header[148:156]) + 8 * 32 - 256 * 2
    header[148:156] = b"%06o\0 " % signed

    assert read(tmp_path, packed(bytes(header), b"m")) == {"modèle": b"m"}


@pytest.mark.parametrize("size", [b"00000000001\0", b"        \0   ", b"not a size!\0"])
@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"V"])
def test_links_and_devices_have_no_content(tmp_path: Path, kind: bytes, size: bytes) -> None:
    archive = packed(block(b"bystander", size, kind), block(b"m", b"00000000001\0"), b"m")

    assert read(tmp_path, archive) == {"m": b"m"}
    assert bool(problems(tmp_path, archive).get("bystander")) is (kind != b"5")


def test_a_folder_before_posix_is_one_by_its_name(tmp_path: Path) -> None:
    archive = packed(block(b"model.onnx/", kind=b"\0"), block(b"m", b"00000000001\0"), b"m")

    assert problems(tmp_path, archive) == {"m": ""}


def test_members_of_other_kinds_are_skipped_by_their_size(tmp_path: Path) -> None:
    sparse = bytearray(block(b"sparse", b"00000000005\0", b"S"))
    sparse[482] = 1
    sparse[148:156] = b"%06o\0 " % (sum(sparse) - sum(sparse[148:156]) + 8 * 32)
    more = bytearray(512)
    more[504] = 1
    archive = packed(
        block(b"listing", b"00000000004\0", b"D"),
        b"list",
        bytes(sparse) + bytes(more) + bytes(511) + b"\0",
        b"holes",
        block(b"m", b"00000000001\0"),
        b"m",
    )

    assert read(tmp_path, archive) == {"m": b"m"}
    assert all(problems(tmp_path, archive)[name] for name in ("listing", "sparse"))


@pytest.mark.parametrize(
    "header",
    [
        record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.name", b"holes.bin"),
        record(b"GNU.sparse.map", b"0,1") + record(b"path", b"holes.bin"),
        record(b"GNU.sparse.name", b"holes.bin")
        + record(b"GNU.sparse.map", b"0,1")
        + record(b"path", b"GNUSparseFile.0/holes.bin"),
    ],
)
def test_a_sparse_file_is_skipped_under_its_own_name(tmp_path: Path, header: bytes) -> None:
    assert "sparse" in problems(tmp_path, extended(header))["holes.bin"]


# --- compression


def test_gzip_members_are_joined(tmp_path: Path) -> None:
    tar = gzip.decompress(pack({"model.onnx": b"m" * 100_000, "w.bin": b"w" * 50}))
    pieces = [gzip.compress(tar[at : at + 9_000]) for at in range(0, len(tar), 9_000)]

    contents = read(tmp_path, b"".join(pieces))

    assert contents == {"model.onnx": b"m" * 100_000, "w.bin": b"w" * 50}


@pytest.mark.parametrize("padding", [1, 511, 512, 10_240, 3_000_000])
def test_zeros_after_the_end_are_padding(tmp_path: Path, padding: int) -> None:
    archive = pack({"m": b"m"})

    assert read(tmp_path, archive + bytes(padding)) == {"m": b"m"}
    assert read(tmp_path, archive + gzip.compress(bytes(padding))) == {"m": b"m"}
    assert read(tmp_path, archive + bytes(padding) + pack({"n": b"n"})) == {"m": b"m", "n": b"n"}


def test_two_archives_in_a_row_are_both_read(tmp_path: Path) -> None:
    assert read(tmp_path, pack({"m": b"m"}) + pack({"n": b"n"})) == {"m": b"m", "n": b"n"}


def test_a_large_compressible_bystander_is_skipped(tmp_path: Path) -> None:
    zeros = gzip.compress(bytes(64 << 20), 9)
    size = b"%011o\0" % (5 * (64 << 20))
    archive = gzip.compress(block(b"optimizer.pt", size)) + zeros * 5 + pack({"m": b"m"})

    assert len(archive) < 400_000
    assert read(tmp_path, archive, {"m"}) == {"m": b"m"}


def test_thousands_of_members_are_read(tmp_path: Path) -> None:
    members = {f"code/file-{number}": b"" for number in range(5_000)}

    assert len(read(tmp_path, pack(members), set())) == 0
    assert len(problems(tmp_path, pack(members))) == 5_000


# --- damage and attacks


def test_a_bomb_is_refused_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzip_stream, "FREE_BYTES", 1 << 20)
    bomb = gzip.compress(block(b"m", b"00400000000\0")) + gzip.compress(bytes(64 << 20), 9)

    with pytest.raises(InvalidModel, match="inflates to more than 1 MB and 200 times its size"):
        read(tmp_path, bomb, chosen=set())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "ends too early", id="empty"),
        pytest.param(gzip.compress(b""), "ends too early", id="gzip of nothing"),
        pytest.param(b"plain text", "not gzip, or damaged; pack it with tar czf", id="text"),
        pytest.param(pack({"m.onnx": b"m"})[:-100], "ends too early", id="truncated"),
        pytest.param(pack({"m.onnx": b"m"})[:-8] + bytes(8), "damaged", id="checksum of gzip"),
        pytest.param(pack({"m.onnx": b"m"}) + b"x", "data follows", id="trailing byte"),
        pytest.param(
            pack({"m.onnx": b"m"}) + gzip.compress(b"second"), "too early", id="second is no tar"
        ),
        pytest.param(
            gzip.compress(gzip.decompress(pack({"m.onnx": b"m"})) + b"hidden" * 100),
            "checksum",
            id="data after the end",
        ),
        pytest.param(gzip.compress(b"\xff" * 2048), "checksum", id="no tar"),
        pytest.param(
            gzip.compress(block(b"m")[:148] + b"0000999\0" + block(b"m")[156:]),
            "checksum",
            id="checksum that is not octal",
        ),
        pytest.param(
            gzip.compress(block(b"m", b"00000000001\0")) + gzip.compress(b"") * 100_000,
            "100000 gzip members",
            id="gzip members without end",
        ),
        pytest.param(
            lambda: gzip.compress(block(b"m", kind=b"1") * 200_001, 1),
            "200000 members",
            id="members without end",
        ),
        pytest.param(pack({"n" * 5000: b""}), "name has over 4096 bytes", id="long pax name"),
        pytest.param(
            pack({"n" * 5000: b""}, tarfile.GNU_FORMAT),
            "name has over 4096 bytes",
            id="long gnu name",
        ),
        pytest.param(extended(b"9" * 100_000), "malformed", id="pax length of 100,000 digits"),
        pytest.param(extended(b"99 path=short\n"), "malformed", id="pax record beyond its header"),
        pytest.param(extended(b"5 path=m\n"), "malformed", id="pax record shorter than its key"),
        pytest.param(extended(b"path=m\n"), "malformed", id="pax record without a length"),
        pytest.param(extended(record(b"size", b"-512")), "no number", id="negative pax size"),
        pytest.param(extended(record(b"size", b"9999")), "too early", id="pax size beyond the end"),
        pytest.param(extended(record(b"path", b"m"), b"g"), "global", id="one pax name for all"),
        pytest.param(
            packed(block(b"x", b"%011o\0" % (1 << 21), b"x"), bytes(1 << 21)),
            "extended header has over",
            id="pax header of 2 MB",
        ),
        pytest.param(
            packed(block(b"x", b"%011o\0" % (1 << 21), b"L"), bytes(1 << 21)),
            "extended header has over",
            id="gnu name of 2 MB",
        ),
    ],
)
def test_a_malformed_archive_is_refused(
    tmp_path: Path, content: bytes | Callable[[], bytes], why: str
) -> None:
    archive = content() if callable(content) else content

    with pytest.raises(InvalidModel, match=why) as caught:
        read(tmp_path, archive, chosen=set())
    assert caught.value.instance_code == "BAD_ARCHIVE"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("cut", range(1, 1025, 93))
def test_a_tar_that_ends_early_is_refused(tmp_path: Path, cut: int) -> None:
    # 512 bytes each: header, content, and the zeros that end the archive.
    tar = gzip.decompress(pack({"m": b"m"}, tarfile.USTAR_FORMAT))

    assert read(tmp_path, gzip.compress(tar[:1536])) == {"m": b"m"}
    with pytest.raises(InvalidModel, match="too early"):
        read(tmp_path, gzip.compress(tar[:cut]))


@pytest.mark.parametrize(
    "size", [b"-0000000512\0", b"99999999999\0", b"\xff" * 12, b"           \0"]
)
def test_a_size_that_is_not_octal_is_refused(tmp_path: Path, size: bytes) -> None:
    with pytest.raises(InvalidModel, match="not octal"):
        read(tmp_path, packed(block(b"m.onnx", size), b"m"))
