"""Tables of CSV and Parquet files: typed columns, or one sentence about the mistake."""

import hashlib
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.training.data.user_files import HEADER, ROWS, changed, csv_file
from training.data import files
from training.data.tables import read_table
from training.errors import (
    InvalidData,
    InvalidValue,
    MissingColumn,
    NoRows,
    UnknownLabel,
    WrongShape,
)

pytestmark = pytest.mark.train

KILOGRAMS = {"kg": 1.0, "g": 0.001}


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
        (
            ROWS,
            HEADER,
            {"groups": "client"},
            MissingColumn,
            "churn.csv has no column 'client'; it has 'age', ",
        ),
        (
            ROWS,
            HEADER,
            {"numbers": ["aeg"]},
            MissingColumn,
            "churn.csv has no column 'aeg'; did you mean 'age'?",
        ),
        (
            ROWS,
            HEADER.replace("churn", "left"),
            {},
            MissingColumn,
            "churn.csv has no column 'churn'",
        ),
        (
            changed(3, "23,", ","),
            HEADER,
            {},
            InvalidValue,
            "churn.csv, row 5: column 'age' is empty; fill it",
        ),
        (
            changed(3, "23,", "NaN,"),
            HEADER,
            {},
            InvalidValue,
            "churn.csv, row 5: column 'age' is empty",
        ),
        (
            changed(3, "23,", "old,"),
            HEADER,
            {},
            InvalidValue,
            "churn.csv, row 5, column 'age': 'old' is no number",
        ),
        (
            changed(3, "23,", "inf,"),
            HEADER,
            {},
            InvalidValue,
            "row 5, column 'age': 'inf' is no finite number",
        ),
        (
            changed(3, "23,", "2_3,"),
            HEADER,
            {},
            InvalidValue,
            "row 5, column 'age': '2_3' is no number",
        ),
        (
            changed(6, "full", " "),
            HEADER,
            {},
            InvalidValue,
            "churn.csv, row 8: column 'plan' is empty",
        ),
        (
            changed(3, "stays", ""),
            HEADER,
            {"optional": ["churn"]},
            InvalidValue,
            "row 5: column 'churn' is empty",
        ),
        (
            changed(3, "c0", ""),
            HEADER,
            {"groups": "customer"},
            InvalidValue,
            "row 5: column 'customer' is empty",
        ),
        (
            changed(3, "yes", "maybe"),
            HEADER,
            {},
            InvalidValue,
            "row 5, column 'active': 'maybe' is neither yes nor no",
        ),
        (
            changed(3, "3 kg", "3 lb"),
            HEADER,
            {},
            InvalidValue,
            "'3 lb' has the unit lb; known are kg, g",
        ),
        (
            changed(3, "3 kg", "3"),
            HEADER,
            {},
            InvalidValue,
            "row 5, column 'weight': '3' has the unit none",
        ),
        (changed(3, "3 kg", "some kg"), HEADER, {}, InvalidValue, "'some kg' is no quantity"),
        (
            changed(3, "stays", "stay"),
            HEADER,
            {"labels": ["stays", "leaves"]},
            UnknownLabel,
            "churn.csv, row 5, column 'churn': 'stay' is none of the labels 'stays', 'leaves'",
        ),
        (
            ROWS,
            HEADER.replace("fee", "age"),
            {},
            InvalidData,
            "churn.csv: the header names 'age' twice",
        ),
        (
            changed(3, "23,", ""),
            HEADER,
            {},
            WrongShape,
            "churn.csv, row 5 has 6 values; there are 7 columns",
        ),
        (
            changed(3, "23,", '"23,'),
            HEADER,
            {},
            InvalidData,
            "churn.csv, after row 4: unexpected end of data",
        ),
        (["", *ROWS], HEADER, {}, WrongShape, "churn.csv, row 2 is blank"),
        ([], HEADER, {}, NoRows, "churn.csv has a header and no rows"),
        ([], "", {}, NoRows, "churn.csv has no header"),
        (
            [row.replace(",", ";") for row in ROWS],
            HEADER.replace(",", ";"),
            {},
            InvalidData,
            "give delimiter=';'",
        ),
        (
            [row.replace("leaves", "stays") for row in ROWS],
            HEADER,
            {},
            InvalidData,
            "file:churn.csv: every row is of the class 'stays'; it takes two",
        ),
        (ROWS[:2], HEADER, {}, InvalidData, "file:churn.csv: 2 rows are too few for 3 parts"),
        (
            ROWS,
            HEADER,
            {"numbers": [], "booleans": [], "units": {}},
            MissingColumn,
            "churn.csv has no column beside",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
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


def test_the_latest_dates_of_a_table_are_the_test_part(tmp_path: Path) -> None:
    days = np.random.default_rng(0).permutation(40)
    rows = [
        f"2026-0{1 + day // 20}-{1 + day % 20:02},{row}"
        for day, row in zip(days, ROWS, strict=True)
    ]
    folder = csv_file(tmp_path, rows, f"day,{HEADER}")

    dataset = read(folder, time="day")

    assert dataset.split["by"] == "time"
    assert dataset.split["test_from"] == "2026-02-13T00:00:00.000000"
    assert dataset.train.times.max() < dataset.validation.times.min()
    assert dataset.validation.times.max() < dataset.test.times.min()
    assert "day" not in dataset.columns["categories"]


def test_a_wrong_date_names_file_row_and_column(tmp_path: Path) -> None:
    rows = [f"2026-01-{1 + row % 20:02},{text}" for row, text in enumerate(ROWS)]
    rows[4] = rows[4].replace("2026-01-05", "5 January")
    folder = csv_file(tmp_path, rows, f"day,{HEADER}")

    with pytest.raises(
        InvalidValue, match="churn.csv, row 6, column 'day': '5 January' is no date"
    ):
        read(folder, time="day")


def test_a_table_is_not_split_by_groups_and_time_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="split by groups or by time"):
        read(csv_file(tmp_path), groups="customer", time="age")


@pytest.mark.parametrize("end", ["\n", "\r\n\r\n", "  \n", ",,,,,,\n"])
def test_blank_lines_at_the_end_of_a_file_are_no_rows(tmp_path: Path, end: str) -> None:
    path = csv_file(tmp_path) / "churn.csv"
    path.write_text(path.read_text() + end)

    assert len(read_table([path]).columns["age"]) == len(ROWS)


def test_dates_become_days_weekday_and_month(tmp_path: Path) -> None:
    days = [date(2024, 1, 1) + timedelta(number) for number in range(60)]
    lines = [f"{day}T12:00,{'' if day.day == 2 else day},{day.month}" for day in days]
    (tmp_path / "rows.csv").write_text("\n".join(["at,paid,y", *lines]))

    data = files.table(tmp_path / "rows.csv", target="y", optional=["paid"])

    names = ["at days since 1970", "at weekday", "at month"]
    assert data.columns["numbers"] == (*names, *(name.replace("at", "paid", 1) for name in names))
    assert "categories" not in data.columns
    for row in data.train.inputs["numbers"]:
        day = date(1970, 1, 1) + timedelta(int(row[0]))
        assert (row[0] % 1, row[1], row[2]) == (0.5, day.weekday(), day.month)
        if day.day == 2:
            assert np.isnan(row[3:]).all()
        else:
            assert row[3:].tolist() == [int(row[0]), day.weekday(), day.month]


def test_a_wrong_date_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("at,y\n2024-01-01,a\n31.1.2024,b\n" * 3)

    with pytest.raises(InvalidData, match=r"row 3, column 'at': '31.1.2024' is no date like"):
        files.table(tmp_path / "rows.csv", target="y", dates=["at"])
