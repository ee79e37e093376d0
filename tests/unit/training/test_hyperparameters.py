"""Hyperparameters keep type and value on the way from a user to the training script."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import InvalidHyperparameter
from training.hyperparameters import NetworkHyperparameters, encode, listed, override, pairs


@dataclass(frozen=True)
class Knobs(NetworkHyperparameters):
    flag: bool = False
    note: str = ""
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    hidden: tuple[int, ...] = (128,)
    limit: float | None = None
    count: int = 0
    share: float = 0.0


@pytest.mark.parametrize("value", ["true", "True", True])
def test_json_and_python_spellings_of_a_boolean_are_read(value: object) -> None:
    assert override(Knobs(), {"flag": value}).flag is True


@pytest.mark.parametrize(
    "text",
    [
        "o'brien",
        'say "hi"',
        '"quoted"',
        "grün 数",
        "true",
        "3",
        "007",
        "1e5",
        "null",
        "",
        "a\\b\n$(c)",
        "{}",
    ],
)
def test_text_survives_the_way_through_a_request(text: str) -> None:
    sent = json.loads(json.dumps({"note": encode(text)}, ensure_ascii=False))

    assert override(Knobs(), sent).note == text


@given(
    st.text(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_every_value_survives(note: str, flag: bool, count: int, share: float) -> None:
    values = {"note": note, "flag": flag, "count": count, "share": share}

    assert override(Knobs(), {name: encode(value) for name, value in values.items()}) == Knobs(
        **values
    )


def test_a_number_may_be_written_in_any_way() -> None:
    settings = override(Knobs(), {"epochs": "1e1", "lr": "3e-4"})

    assert (settings.epochs, settings.lr) == (10, 3e-4)
    assert isinstance(settings.epochs, int)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", "many", "epochs: 'many' is not a whole number"),
        ("epochs", "1.5", "epochs: '1.5' is not a whole number"),
        ("epochs", "true", "epochs: 'true' is not a whole number"),
        ("lr", "NaN", "lr: 'NaN' is not a number"),
        ("flag", "1", "flag: '1' is not true or false"),
        ("epochs", "0", "epochs: 0 is below 1"),
        ("lr", "0", "lr: 0.0 is not above 0"),
        ("warm_up", "2", "warm_up: 2.0 is no share of the steps, 0 to 1"),
        ("cell", "LSTM", "cell: 'LSTM' is none of rnn, lstm, gru"),
        ("hidden", "64", "hidden: '64' is not a JSON list"),
        ("hidden", '["a"]', "hidden: 'a' is not a whole number"),
        ("epoch", "3", "unknown hyperparameter 'epoch': did you mean 'epochs'?"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(name: str, value: str, message: str) -> None:
    with pytest.raises(InvalidHyperparameter) as caught:
        override(Knobs(), {name: value})

    assert str(caught.value) == message


def test_choices_lists_and_null_are_read_from_text() -> None:
    read = override(Knobs(limit=1.0), {"cell": "gru", "hidden": "[64, 32]", "limit": "null"})

    assert (read.cell, read.hidden, read.limit) == ("gru", (64, 32), None)
    assert override(Knobs(), {"limit": "0.5"}).limit == 0.5


def test_a_setting_needs_an_equals_sign() -> None:
    with pytest.raises(InvalidHyperparameter, match="--set lr: write NAME=VALUE"):
        pairs(["lr"])


def test_hyperparameters_are_listed_with_their_comments(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n"
        "from training.hyperparameters import NetworkHyperparameters\n"
        "@dataclass(frozen=True)\n"
        "class Knobs(NetworkHyperparameters):\n"
        "    hidden: int = 64  # width of the layer\n"
        "    # share of values\n"
        "    # set to zero\n"
        "    dropout: float = 0.1\n"
        "    plain: str = 'a'\n"
        "    epochs: int = 3\n"
    )
    spec = importlib.util.spec_from_file_location("own", tmp_path / "own.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own"] = module
    try:
        spec.loader.exec_module(module)
        entries = {entry.name: entry for entry in listed(module.Knobs)}
    finally:
        del sys.modules["own"]

    assert next(iter(entries)) == "hidden"
    assert entries["hidden"].meaning == "width of the layer"
    assert entries["dropout"].meaning == "share of values set to zero"
    assert entries["plain"].meaning == ""
    assert (entries["epochs"].default, entries["epochs"].meaning) == (
        "3",
        "passes over the training rows",
    )
    assert entries["optimizer"].kind == "adamw|sgd|rmsprop|adagrad"
