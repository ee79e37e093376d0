"""Rows that are read when they are used stand for the array of all rows."""

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from training.data import Examples, duplicates, files, lazy
from training.data.arrays.mapping import MappedRows, read_npz
from training.data.spill import Collected
from training.errors import InvalidData, InvalidValue

pytestmark = pytest.mark.train

WHOLE = np.random.default_rng(1).normal(size=(50, 3, 2)).astype(np.float32)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 7 * WHOLE[0].nbytes)  # seven rows a chunk
    return lazy.array(MappedRows([WHOLE[:20], WHOLE[20:]]), in_memory_mb=0)


@pytest.mark.parametrize(
    "key",
    [
        3, -1, slice(None), slice(5, 40, 3), [4, 1, 1], np.array([30, 2]), np.arange(50) % 2 == 0,
        (slice(None), -1), (2, 1), (slice(3, 30), slice(1, 3), 0), WHOLE > 0, None, ...,
        [], slice(9, 2, -3), [True, False] * 25, (slice(0), 0), (slice(None), [2, 0]),
        ([4, 30], [1, 2]), (np.arange(50) % 17 == 0, [0, 1, 2]), ([1, 49], 0, [1, 1]),
        (3, slice(None), [1, 0]), (slice(None), 0, [1, 1]), ([8, 1], slice(None), [1, 0]),
    ],
    ids=str,
)  # fmt: skip
def test_an_index_gives_the_rows_of_the_array(rows: Any, key: Any) -> None:
    assert lazy.is_lazy(rows)

    assert np.array_equal(rows[key], WHOLE[key])


def test_selected_rows_are_read_later(rows: Any) -> None:
    chosen = lazy.select(lazy.select(rows, slice(10, 30)), [3, 0])

    assert lazy.is_lazy(chosen)
    assert np.array_equal(chosen, WHOLE[[13, 10]])
    assert lazy.is_lazy(Examples({"x": rows}, np.zeros(50)).take([1]).inputs["x"])


def test_it_computes_as_the_array_does(rows: Any) -> None:
    assert (rows.shape, rows.dtype, rows.ndim, rows.size) == ((50, 3, 2), np.float32, 3, 300)
    assert np.array_equal(rows * 2 > 0, WHOLE * 2 > 0)
    assert (rows.min(), rows.max()) == (WHOLE.min(), WHOLE.max())
    assert np.array_equal(rows.max(axis=1), WHOLE.max(axis=1))
    for axis in (None, 0, (0, 2)):
        assert np.allclose(rows.mean(axis), WHOLE.mean(axis), atol=1e-6)
        assert np.allclose(rows.std(axis), WHOLE.std(axis), atol=1e-6)
    assert np.allclose(rows.mean(axis=1), WHOLE.mean(axis=1))
    assert np.array_equal(rows.reshape(50, 6), WHOLE.reshape(50, 6))
    assert np.array_equal(np.concatenate([rows, WHOLE]), np.concatenate([WHOLE, WHOLE]))
    assert np.array_equal(list(rows), WHOLE)
    assert np.array_equal(pickle.loads(pickle.dumps(rows)), WHOLE)
    with pytest.raises(IndexError):
        rows[50]


def test_gaps_and_limits_count_as_in_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 7 * WHOLE[0].nbytes)
    gaps = WHOLE.copy()
    gaps[30, 1, 1] = np.nan
    rows = lazy.array(MappedRows([gaps]), in_memory_mb=0)

    for name in ("mean", "std", "min", "max"):
        for axis in (None, 0, (0, 2), -1):
            own, expected = (getattr(values, name)(axis=axis) for values in (rows, gaps))
            assert np.allclose(own, expected, atol=1e-6, equal_nan=True)
    assert np.isnan(rows.min())
    assert np.isnan(rows.max())


def test_a_file_that_is_written_to_while_it_is_mapped_ends_the_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=WHOLE, y=np.arange(50) % 2)
    first, second = (
        files.arrays(tmp_path / f"{name}.npz", target="y", in_memory_mb=0).train.inputs["x"]
        for name in ("a", "b")
    )
    expected = np.asarray(second)

    np.savez(tmp_path / "a.npz", x=WHOLE[:4], y=np.arange(4) % 2)  # shorter: a bus error
    np.savez(tmp_path / "c.npz", x=WHOLE[:4], y=np.arange(4) % 2)
    (tmp_path / "c.npz").replace(tmp_path / "b.npz")  # the mapping keeps the old file

    with pytest.raises(InvalidData, match=r"^a.npz was changed while it was read: leave it"):
        first[:3]
    assert np.array_equal(second, expected)


def test_moments_leave_out_gaps(rows: Any) -> None:
    gaps = np.array([[np.nan, 1.0], [np.nan, 3.0], [np.nan, np.nan]], np.float32)

    mean, deviation = lazy.moments(gaps)

    assert (mean.tolist(), deviation.tolist()) == ([0, 2], [0, 1])


def test_copies_are_the_same_in_chunks(rows: Any) -> None:
    whole = duplicates.row_keys({"x": WHOLE})

    in_chunks = duplicates.row_keys({"x": rows})

    assert np.array_equal(whole.exact, in_chunks.exact)
    assert np.array_equal(whole.near, in_chunks.near)


def test_a_gap_in_a_later_chunk_is_named_by_its_row(tmp_path: Path, rows: Any) -> None:
    x = WHOLE.copy()
    x[44, 1, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(50) % 2)

    with pytest.raises(InvalidValue, match=r"^a.npz, row 45: 'x' holds a NaN"):
        files.arrays(tmp_path, target="y", in_memory_mb=0)


def test_uncompressed_arrays_are_mapped_and_compressed_ones_named(tmp_path: Path) -> None:
    x, y = WHOLE, np.arange(50) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "b.npz", x=x, y=y)

    (mapped, _), (read, _) = read_npz(tmp_path / "a.npz"), read_npz(tmp_path / "b.npz")
    data = files.arrays(tmp_path / "b.npz", target="y", in_memory_mb=0)

    assert isinstance(mapped["x"], np.memmap)
    assert not isinstance(read["x"], np.memmap)
    assert np.array_equal(mapped["x"], x)
    (note, *_) = [line for line in data.notes if "'x'" in line]
    assert note == (
        "b.npz: 'x' is compressed, so 0 MB are read whole; write it with np.savez (not "
        "savez_compressed), and it stays on disk"
    )
    assert files.arrays(tmp_path / "a.npz", target="y", in_memory_mb=0).notes == ()


def test_arrays_are_mapped_at_the_place_that_the_local_header_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        info = zipfile.ZipInfo("x.npy")
        info.extra = b"\x99\x99\x06\x00filled"  # an extra field, as zip tools write them
        np.save(tmp_path / "x.npy", WHOLE)
        archive.writestr(info, (tmp_path / "x.npy").read_bytes())

    assert np.array_equal(read_npz(tmp_path / "a.npz")[0]["x"], WHOLE)


def test_archives_with_folders_descriptors_and_foreign_layouts_are_mapped(tmp_path: Path) -> None:
    layouts = {"big": WHOLE.astype(">f8"), "folder/columns": np.asfortranarray(WHOLE)}
    stream = io.BytesIO()
    pipe: Any = SimpleNamespace(write=stream.write, flush=stream.flush)  # it cannot seek
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr("folder/", b"")
        for name, values in layouts.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values)
        assert all(info.flag_bits & 8 for info in archive.infolist()[1:])  # lengths follow
    (tmp_path / "a.npz").write_bytes(stream.getvalue())

    arrays, _ = read_npz(tmp_path / "a.npz")

    assert list(arrays) == list(layouts)
    for values in arrays.values():
        assert isinstance(values, np.memmap)
        rows = MappedRows([values]).read(np.array([49, 0, 7]))
        assert rows.dtype == np.float32
        assert np.array_equal(rows, WHOLE[[49, 0, 7]])


def test_what_is_no_array_and_what_no_int64_holds_is_refused_by_name(tmp_path: Path) -> None:
    y = np.arange(50) % 2
    np.savez(tmp_path / "a.npz", x=WHOLE, y=y)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README.txt", "rows")
    large = np.ones(50, np.uint64)
    large[7] = 2**63
    np.savez(tmp_path / "b.npz", x=large, y=y)

    with pytest.raises(InvalidData, match=r"^a.npz holds 'README.txt', which is no .npy"):
        files.arrays(tmp_path / "a.npz", target="y")
    with pytest.raises(InvalidValue, match=r"^b.npz, row 8: 'x' is above 9223372036854775807"):
        files.arrays(tmp_path / "b.npz", target="y")


@pytest.mark.parametrize("harm", ["value", "local header", "cut", "shape"])
def test_damaged_archives_are_refused(tmp_path: Path, harm: str) -> None:
    np.savez(tmp_path / "a.npz", x=WHOLE, y=np.arange(50) % 2)
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    if harm == "value":
        raw[raw.index(WHOLE[3].tobytes())] ^= 1
    elif harm == "local header":
        raw[8] = 8  # deflated, which the directory denies
    elif harm == "cut":
        del raw[500:700]
    else:
        at = raw.index(b"(50, 3, 2)")
        raw[at : at + 10] = b"(90, 3, 2)"
    (tmp_path / "a.npz").write_bytes(bytes(raw))

    with pytest.raises(InvalidData, match=r"^a.npz is no .npz file, or is damaged$"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_a_mistake_in_a_folder_of_npy_files_is_one_sentence(tmp_path: Path) -> None:
    def folder(name: str, **arrays: Any) -> Path:
        (tmp_path / name).mkdir()
        for stem, values in arrays.items():
            np.save(tmp_path / name / f"{stem}.npy", values)
        return tmp_path / name

    y = np.arange(50) % 2
    mixed, cut = folder("mixed", x=WHOLE, y=y), folder("cut", x=WHOLE, y=y)
    np.savez(mixed / "z.npz", x=WHOLE)
    raw = (cut / "x.npy").read_bytes()
    (cut / "x.npy").write_bytes(raw[:-1])
    records = np.zeros(50, [("名", "f4")])  # its name needs version 3 of the format
    for location, message in [
        (folder("lengths", x=WHOLE[:49], y=y), "lengths: 'x' has 49 rows and 'y' has 50"),
        (folder("missing", x=WHOLE), "missing has no array 'y'; it has 'x'"),
        (mixed, "mixed holds .npz and .npy files: keep one kind in a folder"),
        (cut, "x.npy is no .npy file, or is cut off"),
        (folder("objects", x=np.array([{}] * 50), y=y), "x.npy holds pickled objects"),
        (folder("records", x=records, y=y), "holds records; numbers or texts are known"),
    ]:
        with pytest.raises(InvalidData) as caught:
            files.arrays(location, target="y")
        assert message in str(caught.value)


def test_large_outputs_are_collected_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.spill.IN_MEMORY_BYTES", WHOLE.nbytes - 1)
    whole, half = Collected(50), Collected(20)
    for part in (slice(0, 20), slice(20, 40), slice(40, 60)):
        whole.put(part, [WHOLE[part], WHOLE[part, 0]])
    half.put(slice(0, 20), [WHOLE[:20]])

    assert all(isinstance(values, np.memmap) for values in whole.arrays)
    assert np.array_equal(whole.arrays[0], WHOLE)
    assert np.array_equal(whole.arrays[1], WHOLE[:, 0])
    assert not isinstance(half.arrays[0], np.memmap)


def test_a_full_disk_is_an_error_and_no_end_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_file: int, _offset: int, size: int) -> None:
        assert size == WHOLE.nbytes
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.data.spill.IN_MEMORY_BYTES", WHOLE.nbytes - 1)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)

    with pytest.raises(OSError, match="No space left"):
        Collected(50).put(slice(0, 20), [WHOLE[:20]])
