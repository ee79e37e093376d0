"""Hyperparameters keep their type and their text on the way from a user to the training script."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import InvalidHyperparameter, InvalidRecipe
from training.recipe import Hyperparameters, encode, load, override, pairs


@dataclass(frozen=True)
class Knobs(Hyperparameters):
    flag: bool = False
    note: str = ""


@pytest.mark.parametrize("value", ["true", "True", True])
def test_both_spellings_of_a_boolean_count(value: object) -> None:
    assert override(Knobs(), {"flag": value}).flag is True


@pytest.mark.parametrize(
    "text", ["o'brien", 'say "hi"', '"quoted"', "grün 数", "true", "3", "007", "1e5", "null", "", "a\\b\n$(c)", "{}"]
)
def test_text_survives_the_way_through_a_request(text: str) -> None:
    sent = json.loads(json.dumps({"note": encode(text)}, ensure_ascii=False))

    assert override(Knobs(), sent).note == text


@given(st.text(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False))
def test_every_value_survives(note: str, flag: bool, epochs: int, lr: float) -> None:
    values = {"note": note, "flag": flag, "epochs": epochs, "lr": lr}

    assert override(Knobs(), {name: encode(value) for name, value in values.items()}) == Knobs(**values)


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
        ("epoch", "3", "unknown hyperparameter 'epoch': did you mean 'epochs'?"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(name: str, value: str, message: str) -> None:
    with pytest.raises(InvalidHyperparameter) as caught:
        override(Knobs(), {name: value})

    assert str(caught.value) == message


def test_a_setting_needs_an_equals_sign() -> None:
    with pytest.raises(InvalidHyperparameter, match="--set lr: write NAME=VALUE"):
        pairs(["lr"])


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidRecipe, match="there is no recipe 'digit'; built in: digits"):
        load("digit")


def test_a_file_without_a_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")

    with pytest.raises(InvalidRecipe, match="defines no `recipe"):
        load(str(tmp_path / "empty.py"))
