"""Loaders of users' files: tensors, or one sentence that names file, row and column."""

import gzip
import hashlib
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data import files, media
from training.data.tables import read_table
from training.errors import (
    InvalidData,
    InvalidValue,
    MissingColumn,
    NoRows,
    TrainingError,
    UnknownLabel,
    WrongShape,
)

pytestmark = pytest.mark.train

ROWS = [
    f"{20 + row},{'basic' if row % 3 else 'full'},{row}.5,{'yes' if row % 2 else 'no'},"
    f"{f'{row} kg' if row % 2 else f'{row * 1000}g'},{'stays' if row % 2 else 'leaves'},c{row // 4}"
    for row in range(40)
]
HEADER = "age,plan,fee,active,weight,churn,customer"
KILOGRAMS = {"kg": 1.0, "g": 0.001}


def csv_file(
    folder: Path, rows: list[str] = ROWS, header: str = HEADER, name: str = "churn.csv"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def changed(row: int, old: str, new: str) -> list[str]:
    return [text.replace(old, new) if number == row else text for number, text in enumerate(ROWS)]


def read(folder: Path, **options: Any) -> Any:
    return files.table(
        folder, target="churn", **{"booleans": ["active"], "units": {"weight": KILOGRAMS}} | options
    )


def in_order(dataset: Any, name: str) -> Any:
    """Return the rows of all parts, sorted by age."""
    parts = [dataset.train, dataset.validation, dataset.test]
    age = np.concatenate([part.inputs["numbers"][:, 0] for part in parts])
    return np.concatenate([part.inputs[name] for part in parts])[np.argsort(age)]


def test_a_table_becomes_numbers_categories_and_classes(tmp_path: Path) -> None:
    data = read(csv_file(tmp_path), groups="customer")

    assert data.columns == {"numbers": ("age", "fee", "active", "weight"), "categories": ("plan",)}
    numbers = in_order(data, "numbers")
    assert numbers.dtype == np.float32
    assert np.allclose(numbers, [[20 + row, row + 0.5, row % 2, row] for row in range(40)])
    assert in_order(data, "categories")[:3].tolist() == [["full"], ["basic"], ["basic"]]
    assert data.labels == ("leaves", "stays")
    assert (data.source, data.split["by"]) == ("file:churn.csv", "customer")
    assert data.sha256 == hashlib.sha256((tmp_path / "churn.csv").read_bytes()).hexdigest()
    assert not set(data.train.groups) & set(data.test.groups)


def test_gaps_are_kept_in_optional_columns(tmp_path: Path) -> None:
    rows = changed(3, "23,", ",")
    rows = [row.replace("basic", "") if number == 5 else row for number, row in enumerate(rows)]

    data = read(csv_file(tmp_path, rows), optional=["age", "plan"])

    numbers, categories = in_order(data, "numbers"), in_order(data, "categories")
    assert np.isnan(numbers).sum() == 1
    assert (categories == "").sum() == 1


def test_texts_stay_texts_and_values_stay_values(tmp_path: Path) -> None:
    data = files.table(
        csv_file(tmp_path), target="fee", task="regression", texts=["plan"], numbers=["age"]
    )

    assert data.train.target.dtype == np.float32
    assert data.train.inputs["plan"].shape == (len(data.train),)
    assert set(data.train.inputs["plan"]) == {"basic", "full"}


def test_several_files_make_one_table_with_a_separate_test_part(tmp_path: Path) -> None:
    csv_file(tmp_path / "train", ROWS[:20], name="a.csv")
    csv_file(tmp_path / "train", ROWS[20:36], name="b.csv")
    csv_file(tmp_path / "test", ROWS[36:])

    data = read({"train": tmp_path / "train", "test": tmp_path / "test"})

    assert (len(data.train) + len(data.validation), len(data.test)) == (36, 4)
    assert data.source == "file:a.csv and 1 more"
    assert data.test.inputs["numbers"][:, 0].tolist() == [56, 57, 58, 59]


def test_a_byte_order_mark_tabs_and_quotes_are_understood(tmp_path: Path) -> None:
    rows = ["\t".join([f'"{row}, or\nso"', str(row), "ab"[row % 2]]) for row in range(20)]
    (tmp_path / "x.tsv").write_text("\ufefftext\tage\ty\n" + "\n".join(rows), encoding="utf-8")

    data = files.table(tmp_path / "x.tsv", target="y", texts=["text"], numbers=["age"])

    assert "0, or\nso" in {
        *data.train.inputs["text"],
        *data.validation.inputs["text"],
        *data.test.inputs["text"],
    }


def test_a_cell_may_hold_a_document(tmp_path: Path) -> None:
    rows = [f"{'word ' * 40_000},{row},{'ab'[row % 2]}" for row in range(20)]

    data = files.table(csv_file(tmp_path, rows, "text,age,y"), target="y", texts=["text"])

    assert len(data.train.inputs["text"][0]) == 200_000


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_parquet_reads_as_csv_does(tmp_path: Path, ending: str) -> None:
    csv_file(tmp_path)
    if ending == "parquet":
        arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        import pyarrow.parquet

        table = read_table([tmp_path / "churn.csv"])
        columns = table.columns | {"age": [None, *map(int, table.columns["age"][1:])]}
        pyarrow.parquet.write_table(arrow.table(columns), tmp_path / "churn.parquet")
        (tmp_path / "churn.csv").unlink()
        with pytest.raises(InvalidValue, match="^churn.parquet, row 1: column 'age' is empty"):
            read(tmp_path)

    data = read(tmp_path, optional=["age"])

    assert sorted(in_order(data, "numbers")[:, 1]) == [row + 0.5 for row in range(40)]
    assert data.labels == ("leaves", "stays")


def test_parquet_without_pyarrow_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")

    with pytest.raises(
        InvalidData, match="^x.parquet needs pyarrow: pip install pyarrow, or save it as CSV$"
    ):
        files.table(tmp_path, target="y")


@pytest.mark.parametrize(
    ("rows", "header", "options", "error", "message"),
    [
        (ROWS, HEADER, {"groups": "client"}, MissingColumn, "churn.csv has no column 'client'; it has 'age', "),
        (ROWS, HEADER, {"numbers": ["aeg"]}, MissingColumn, "churn.csv has no column 'aeg'; did you mean 'age'?"),
        (ROWS, HEADER.replace("churn", "left"), {}, MissingColumn, "churn.csv has no column 'churn'"),
        (changed(3, "23,", ","), HEADER, {}, InvalidValue, "churn.csv, row 5: column 'age' is empty; fill it"),
        (changed(3, "23,", "NaN,"), HEADER, {}, InvalidValue, "churn.csv, row 5: column 'age' is empty"),
        (changed(3, "23,", "old,"), HEADER, {}, InvalidValue, "churn.csv, row 5, column 'age': 'old' is no number"),
        (changed(3, "23,", "inf,"), HEADER, {}, InvalidValue, "row 5, column 'age': 'inf' is no finite number"),
        (changed(3, "23,", "2_3,"), HEADER, {}, InvalidValue, "row 5, column 'age': '2_3' is no number"),
        (changed(6, "full", " "), HEADER, {}, InvalidValue, "churn.csv, row 8: column 'plan' is empty"),
        (changed(3, "stays", ""), HEADER, {"optional": ["churn"]}, InvalidValue, "row 5: column 'churn' is empty"),
        (changed(3, "c0", ""), HEADER, {"groups": "customer"}, InvalidValue, "row 5: column 'customer' is empty"),
        (changed(3, "yes", "maybe"), HEADER, {}, InvalidValue, "row 5, column 'active': 'maybe' is neither yes nor no"),
        (changed(3, "3 kg", "3 lb"), HEADER, {}, InvalidValue, "'3 lb' has the unit lb; known are kg, g"),
        (changed(3, "3 kg", "3"), HEADER, {}, InvalidValue, "row 5, column 'weight': '3' has the unit none"),
        (changed(3, "3 kg", "some kg"), HEADER, {}, InvalidValue, "'some kg' is no quantity"),
        (
            changed(3, "stays", "stay"), HEADER, {"labels": ["stays", "leaves"]}, UnknownLabel,
            "churn.csv, row 5, column 'churn': 'stay' is none of the labels 'stays', 'leaves'",
        ),
        (ROWS, HEADER.replace("fee", "age"), {}, InvalidData, "churn.csv: the header names 'age' twice"),
        (changed(3, "23,", ""), HEADER, {}, WrongShape, "churn.csv, row 5 has 6 values; there are 7 columns"),
        (changed(3, "23,", '"23,'), HEADER, {}, InvalidData, "churn.csv, after row 4: unexpected end of data"),
        ([""], HEADER, {}, WrongShape, "churn.csv, row 2 is blank"),
        ([], HEADER, {}, NoRows, "churn.csv has a header and no rows"),
        ([], "", {}, NoRows, "churn.csv has no header"),
        ([row.replace(",", ";") for row in ROWS], HEADER.replace(",", ";"), {}, InvalidData, "give delimiter=';'"),
        (
            [row.replace("leaves", "stays") for row in ROWS], HEADER, {}, InvalidData,
            "file:churn.csv: every row is of the class 'stays'; it takes two",
        ),
        (ROWS[:2], HEADER, {}, InvalidData, "file:churn.csv: 2 rows are too few for 3 parts"),
        (ROWS, HEADER, {"numbers": [], "booleans": [], "units": {}}, MissingColumn, "churn.csv has no column beside"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)  # fmt: skip
def test_a_mistake_in_a_table_is_one_sentence(
    tmp_path: Path, rows: list[str], header: str, options: Any, error: type, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        read(csv_file(tmp_path, rows, header), **options)

    assert message in str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_label_only_in_the_test_part_is_an_error(tmp_path: Path) -> None:
    csv_file(tmp_path / "train")
    csv_file(tmp_path / "test", changed(3, "stays", "returns")[:8], name="new.csv")

    with pytest.raises(
        UnknownLabel,
        match="^new.csv, row 5, column 'churn': 'returns' is none of the labels 'leaves'",
    ):
        read({"train": tmp_path / "train", "test": tmp_path / "test"})


def test_files_and_folders_without_rows_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("x")
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "a.csv").touch()

    for location, message in [
        (
            tmp_path / "empty",
            "the folder empty holds no .csv or .tsv or .txt or .parquet file; it holds notes.md",
        ),
        (tmp_path / "zero", "a.csv is empty"),
        (tmp_path / "zero" / "a.csv", "a.csv is empty"),
        (tmp_path / "none", "there is no file or folder none"),
    ]:
        with pytest.raises(NoRows) as caught:
            files.table(location, target="y")
        assert str(caught.value) == message
    with pytest.raises(MissingColumn, match="there is no channel train; there are test"):
        files.table({"test": tmp_path}, target="y")


def test_a_file_of_another_encoding_format_or_header_is_an_error(tmp_path: Path) -> None:
    csv_file(tmp_path / "a")
    path = tmp_path / "a" / "churn.csv"
    path.write_bytes(path.read_bytes() + b"1,\xff,2,3,4,5,6\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.parquet").write_bytes(b"no parquet")
    csv_file(tmp_path / "c", name="1.csv")
    csv_file(tmp_path / "c", header=HEADER.replace("plan", "tariff"), name="2.csv")

    for folder, message in [
        ("a", "; save it as UTF-8"),
        ("b", "x.parquet is no Parquet file"),
        ("c", "2.csv has no column 'plan', 1.csv has one"),
    ]:
        with pytest.raises(InvalidData) as caught:
            read(tmp_path / folder)
        assert message in str(caught.value)


# --- NPZ


def npz(folder: Path, name: str = "a.npz", **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    y = np.arange(60) % 3
    np.savez(folder / name, **{"image": np.random.default_rng(0).random((60, 4, 4)), "y": y} | more)
    return folder


def test_arrays_are_inputs_by_their_name(tmp_path: Path) -> None:
    data = files.arrays(
        npz(tmp_path, speaker=np.arange(60) // 5, tokens=np.ones((60, 2), np.int16)),
        target="y",
        groups="speaker",
    )

    assert {
        name: (values.shape[1:], values.dtype) for name, values in data.train.inputs.items()
    } == {
        "image": ((4, 4), np.float32),
        "tokens": ((2,), np.int64),
    }
    assert data.labels == ("0", "1", "2")
    assert not set(data.train.groups) & set(data.test.groups)


def test_array_targets_are_class_names_or_values(tmp_path: Path) -> None:
    named = files.arrays(
        npz(tmp_path / "a", y=np.array(list("cab"))[np.arange(60) % 3]), target="y"
    )
    valued = files.arrays(npz(tmp_path / "b", y=np.linspace(0, 1, 60)), target="y")

    assert named.labels == ("a", "b", "c")
    assert (valued.train.target.dtype, valued.labels) == (np.float32, ())


@pytest.mark.parametrize(
    ("more", "options", "error", "message"),
    [
        ({}, {"target": "label"}, MissingColumn, "a.npz has no array 'label'; it has 'image', 'y'"),
        ({}, {"inputs": ["sound"]}, MissingColumn, "a.npz has no array 'sound'"),
        ({"y": np.arange(59)}, {}, WrongShape, "a.npz: 'image' has 60 rows and 'y' has 59"),
        (
            {"image": np.where(np.arange(60) == 7, np.nan, 1.0)},
            {},
            InvalidValue,
            "a.npz, row 8: 'image' holds a NaN",
        ),
        (
            {"y": np.arange(60) % 3 - 1},
            {},
            UnknownLabel,
            "a.npz, row 1, 'y': '-1' is none of the labels '0', '1'",
        ),
        (
            {},
            {"labels": ["a", "b"]},
            UnknownLabel,
            "a.npz, row 3, 'y': '2' is none of the labels '0', '1'",
        ),
        ({"image": np.zeros((0, 4)), "y": np.zeros(0)}, {}, NoRows, "a.npz: 'y' has no rows"),
        ({"image": np.zeros(60, complex)}, {}, InvalidValue, "a.npz: 'image' holds complex128"),
        (
            {"image": np.array([{}] * 60)},
            {},
            InvalidData,
            "a.npz holds pickled objects, which are refused",
        ),
    ],
    ids=[
        "no target",
        "no input",
        "rows",
        "nan",
        "negative class",
        "unknown class",
        "no rows",
        "complex",
        "pickle",
    ],
)
def test_a_mistake_in_arrays_is_one_sentence(
    tmp_path: Path, more: Any, options: Any, error: type, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        files.arrays(npz(tmp_path, **more), **{"target": "y"} | options)

    assert message in str(caught.value)
    assert type(caught.value) is error


def test_arrays_of_other_shapes_and_other_formats_are_errors(tmp_path: Path) -> None:
    npz(tmp_path / "a", "1.npz")
    npz(tmp_path / "a", "2.npz", image=np.zeros((60, 5, 4)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.npz").write_bytes(b"PK\x03\x04 torn")
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(tmp_path / "y.npz")

    with pytest.raises(
        WrongShape,
        match=r"^2.npz: a row of 'image' has shape \[5, 4\], those before have \[4, 4\]$",
    ):
        files.arrays(tmp_path / "a", target="y")
    for where, name in [(tmp_path / "b", "x"), (tmp_path / "y.npz", "y")]:
        with pytest.raises(InvalidData, match=f"^{name}.npz is no .npz file$"):
            files.arrays(where, target="y")


# --- IDX


def idx_file(path: Path, values: Any, kind: int = 0x08) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def mnist(folder: Path, ending: str = "") -> Path:
    generator = np.random.default_rng(0)
    for name, rows in (("train", 100), ("t10k", 20)):
        images = generator.integers(0, 256, (rows, 28, 28)).astype(np.uint8)
        images[0, 0, :2] = 0, 255
        idx_file(folder / f"{name}-images-idx3-ubyte{ending}", images)
        idx_file(
            folder / f"{name}-labels-idx1-ubyte{ending}", (np.arange(rows) % 10).astype(np.uint8)
        )
    return folder


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnists_files_are_read_with_their_own_test_part(tmp_path: Path, ending: str) -> None:
    data = files.idx(mnist(tmp_path, ending))

    assert [len(part) for part in (data.train, data.validation, data.test)] == [90, 10, 20]
    assert data.test.inputs["image"].shape == (20, 1, 28, 28)
    assert data.test.inputs["image"][0, 0, 0, :2].tolist() == [0, 1]
    assert data.test.target.tolist() == [number % 10 for number in range(20)]
    assert data.labels == tuple("0123456789")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), MissingColumn, "has no file of labels beside it"),
        (
            lambda folder: idx_file(folder / "train-labels-idx1-ubyte", np.zeros(99, np.uint8)),
            WrongShape, "train-images-idx3-ubyte has 100 images and train-labels-idx1-ubyte 99 labels",
        ),
        (
            lambda folder: idx_file(folder / "t10k-images-idx3-ubyte", np.zeros((20, 8, 8), np.uint8)),
            WrongShape, "have shapes [20, 8, 8] and [20], not [n, 28, 28] and [n]",
        ),
        (
            lambda folder: idx_file(folder / "t10k-labels-idx1-ubyte", np.full(20, 11, np.uint8)),
            UnknownLabel, "t10k-labels-idx1-ubyte, row 1: '11' is none of the labels '0', '1'",
        ),
        (lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"PNG..."), InvalidData, "no IDX file: it"),
        (lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"\0"), InvalidData, "no IDX file, or is cut"),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2**31)),
            WrongShape, "has fewer bytes than its shape [2147483648] takes",
        ),
    ],
    ids=["no labels", "counts", "sizes", "class", "magic", "cut", "claims"],
)  # fmt: skip
def test_a_mistake_in_mnists_files_is_one_sentence(
    tmp_path: Path, change: Callable[[Path], None], error: type, message: str
) -> None:
    change(mnist(tmp_path))

    with pytest.raises(InvalidData) as caught:
        files.idx(tmp_path)

    assert message in str(caught.value)
    assert type(caught.value) is error


# --- images


def pictures(folder: Path, rows: int = 12) -> Path:
    from PIL import Image

    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (folder / label).mkdir(parents=True)
        for row in range(rows):
            Image.new("RGB", (8, 6), colour).save(
                folder
                / label
                / f"{'png' if row % 2 else 'jpeg'}{row // 2}_{row}.{'png' if row % 2 else 'jpg'}"
            )
    return folder


def test_images_have_the_label_of_their_folder(tmp_path: Path) -> None:
    data = files.images(
        pictures(tmp_path), groups=lambda path: path.stem.split("_")[0], by="camera"
    )

    assert data.labels == ("cat", "dog")
    assert data.train.inputs["image"].shape[1:] == (3, 6, 8)
    for part in (data.train, data.validation, data.test):
        for image, target in zip(part.inputs["image"], part.target, strict=True):
            assert image.mean(axis=(1, 2)) == pytest.approx([1 - target, 0, target], abs=0.02)
    assert data.split["by"] == "camera"
    assert not set(data.train.groups) & set(data.test.groups)


def test_images_are_scaled_turned_upright_and_made_grey(tmp_path: Path) -> None:
    from PIL import Image

    pictures(tmp_path)
    half = Image.new("RGB", (40, 20), "white")
    half.paste("black", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    half.save(tmp_path / "cat" / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (3, 3), (0, 0, 0, 0)).save(tmp_path / "cat" / "clear.png")
    Image.fromarray(np.full((4, 4), 65535 // 4, np.uint16)).save(tmp_path / "cat" / "deep.png")

    data = files.images(tmp_path, size=(10, 5), colour="grey")

    whole = np.concatenate(
        [part.inputs["image"] for part in (data.train, data.validation, data.test)]
    )
    assert whole.shape[1:] == (1, 10, 5)
    means = {round(float(image.mean()), 2) for image in whole}
    assert {1.0, 0.25} <= means
    turned = [image for image in whole if image.std() > 0.2]
    assert len(turned) == 1
    assert turned[0][0, 0].mean() < 0.1 < 0.9 < turned[0][0, -1].mean()


def test_a_mistake_in_images_is_one_sentence(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 7)).save(pictures(tmp_path / "size") / "dog" / "x.png")
    (pictures(tmp_path / "torn") / "dog" / "x.png").write_bytes(
        (tmp_path / "torn/dog/png0_1.png").read_bytes()[:50]
    )
    (pictures(tmp_path / "text") / "dog" / "x.png").write_text("no image")
    Image.new("RGB", (8, 6)).save(pictures(tmp_path / "loose") / "x.png")
    pictures(tmp_path / "label")

    for name, options, error, message in [
        (
            "size",
            {},
            WrongShape,
            "dog/x.png has 7x8 pixels, those before 6x8; give size=(height, width)",
        ),
        ("torn", {}, InvalidData, "dog/x.png is no PNG or JPEG image, or is cut off"),
        ("text", {}, InvalidData, "dog/x.png is no PNG or JPEG image, or is cut off"),
        ("loose", {}, InvalidData, "x.png lies in no class's folder: put it into <label>/x.png"),
        (
            "label",
            {"labels": ["cat", "cow"]},
            UnknownLabel,
            "dog/jpeg0_0.jpg: 'dog' is none of the labels 'cat', 'cow'",
        ),
    ]:
        with pytest.raises(InvalidData) as caught:
            files.images(tmp_path / name, **options)  # type: ignore[arg-type]
        assert message in str(caught.value), name
        assert type(caught.value) is error, name


# --- sounds


def wav(path: Path, samples: Any, *, rate: int = 8000, width: int = 2, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.rint(np.asarray(samples) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    raw = (whole + 128).astype(np.uint8).tobytes() if width == 1 else b"".join(
        int(value).to_bytes(width, "little", signed=True) for value in whole.ravel()
    )  # fmt: skip
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw)


def tone(rate: int, seconds: float = 0.5, hertz: float = 200) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def words(folder: Path) -> Path:
    for label in ("no", "yes"):
        for row in range(12):
            wav(folder / label / f"s{row // 2}_{row}.wav", tone(8000))
    return folder


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_samples_is_the_same_sound(tmp_path: Path, width: int) -> None:
    wav(tmp_path / "x.wav", tone(8000), width=width)

    sound, rate = media._read_wav(tmp_path / "x.wav")

    assert rate == 8000
    assert np.allclose(sound, tone(8000), atol=0.01 if width == 1 else 1e-4)


def test_sounds_are_brought_to_one_rate_length_and_channel(tmp_path: Path) -> None:
    words(tmp_path)
    wav(tmp_path / "no" / "s9_fast.wav", tone(44_100), rate=44_100)
    wav(tmp_path / "no" / "s9_long.wav", tone(8000, seconds=3))
    wav(
        tmp_path / "no" / "s9_two.wav",
        np.stack([2 * tone(8000), 0 * tone(8000)], axis=1),
        channels=2,
    )

    data = files.sounds(
        tmp_path, rate=16_000, seconds=0.75, groups=lambda path: path.stem.split("_")[0]
    )

    assert data.split["by"] == "speaker"
    whole = np.concatenate(
        [part.inputs["audio"] for part in (data.train, data.validation, data.test)]
    )
    assert (whole.shape, whole.dtype) == ((27, 12_000), np.float32)
    middle = slice(1000, 7000)
    for sound in whole:
        assert np.allclose(sound[middle], tone(16_000)[middle], atol=0.02)
    assert (whole[:, 8500:] == 0).all(
        axis=1
    ).sum() == 26  # half a second, then silence; but the long one


def test_a_sound_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    """Such files come from ffmpeg when it writes into a pipe."""
    wav(tmp_path / "x.wav", tone(8000))
    raw = bytearray((tmp_path / "x.wav").read_bytes())
    raw[4:8] = raw[40:44] = b"\xff" * 4
    (tmp_path / "x.wav").write_bytes(bytes(raw))

    assert len(media._read_wav(tmp_path / "x.wav")[0]) == 4000


def test_a_mistake_in_sounds_is_one_sentence(tmp_path: Path) -> None:
    (words(tmp_path / "text") / "yes" / "x.wav").write_text("no sound")
    (words(tmp_path / "torn") / "yes" / "x.wav").write_bytes(
        (tmp_path / "torn/yes/s0_0.wav").read_bytes()[:30]
    )
    whole = (words(tmp_path / "cut") / "yes" / "s0_0.wav").read_bytes()
    (tmp_path / "cut" / "yes" / "x.wav").write_bytes(whole[:1044])
    wav(words(tmp_path / "none") / "yes" / "x.wav", [])
    float_header = bytearray((tmp_path / "none/yes/s0_0.wav").read_bytes())
    float_header[20:22] = (3).to_bytes(2, "little")  # IEEE float
    (words(tmp_path / "float") / "yes" / "x.wav").write_bytes(bytes(float_header))

    for name, error, message in [
        ("text", InvalidData, "yes/x.wav is no WAV file of PCM"),
        ("cut", InvalidData, "yes/x.wav is cut off: 500 of 4000 samples are there"),
        ("torn", InvalidData, "x.wav is no WAV file of PCM"),
        ("none", NoRows, "x.wav has no sound"),
        ("float", InvalidData, "x.wav is no WAV file of PCM: unknown format: 3"),
    ]:
        with pytest.raises(InvalidData) as caught:
            files.sounds(tmp_path / name)
        assert message in str(caught.value), name
        assert type(caught.value) is error, name


# --- by the command line

OWN = """
import torch
from training.data import files
from training.recipe import NetworkHyperparameters, Recipe

recipe = Recipe(name="own", description="", task="classification", hyperparameters=NetworkHyperparameters,
                data=lambda channels: files.{loader}, model=lambda h, data: torch.nn.Linear(1, len(data.labels)))
"""
TABLE = "table(channels, target='churn', numbers=['age'])"
ARRAYS = "arrays(channels, target='y', inputs=['image'])"


def test_local_training_reads_folders_and_expands_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pytest.importorskip("training.pipeline", reason="training needs torch")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert pipeline._command_line_channels(["train=~/rows", "test=/data"]) == {
        "train": tmp_path / "rows",
        "test": Path("/data"),
    }
    with pytest.raises(
        TrainingError,
        match="^--data train=s3://b/rows/: training here reads folders; --on sagemaker",
    ):
        pipeline._command_line_channels(["train=s3://b/rows/"])


@pytest.mark.parametrize(
    ("loader", "train", "test", "message"),
    [
        (
            TABLE,
            {"header": HEADER.replace("age", "years")},
            {},
            "train.csv has no column 'age'; it has 'years', ",
        ),
        (
            TABLE,
            {"rows": changed(3, "23,", ",")},
            {},
            "train.csv, row 5: column 'age' is empty; fill it, or ",
        ),
        (
            TABLE,
            {},
            {"rows": changed(3, "stays", "x")},
            "test.csv, row 5, column 'churn': 'x' is none of the labels ",
        ),
        (TABLE, {}, {"rows": [], "header": ""}, "test.csv has no header"),
        (
            TABLE,
            {"rows": changed(3, "23,", "")},
            {},
            "train.csv, row 5 has 6 values; there are 7 columns",
        ),
        (
            ARRAYS,
            {"image": np.zeros((60, 1))},
            {"image": np.zeros((60, 2))},
            "test.npz: a row of 'image' has shape [2], ",
        ),
        (
            ARRAYS,
            {"image": np.full((60, 1), np.nan)},
            {},
            "train.npz, row 1: 'image' holds a NaN or an infinity",
        ),
    ],
    ids=[
        "missing column",
        "nan",
        "label never seen",
        "empty",
        "ragged",
        "wrong shape",
        "nan in an array",
    ],
)
def test_wrong_data_end_the_command_in_one_sentence(
    loader: str, train: Any, test: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script = pytest.importorskip("training.train", reason="training needs torch")
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the process is pytest's
    (tmp_path / "own.py").write_text(OWN.format(loader=loader))
    for name, changes in (("train", train), ("test", test)):
        if loader == TABLE:
            csv_file(tmp_path / name, name=f"{name}.csv", **changes)
        else:
            npz(tmp_path / name, name=f"{name}.npz", **changes)
    data = [part for name in ("train", "test") for part in ("--data", f"{name}={tmp_path / name}")]

    assert script.main([str(tmp_path / "own.py"), *data, "--device", "cpu"], {}) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert str(tmp_path) not in line
