"""Hyperparameters keep their type and their text on the way from a user to the training script."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import Dataset, Examples
from training.errors import InvalidHyperparameter, InvalidRecipe
from training.hyperparameters import NetworkHyperparameters, encode, override, pairs
from training.recipe import Recipe
from training.recipe_loading import load, mistake


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
def test_both_spellings_of_a_boolean_count(value: object) -> None:
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


def test_choices_lists_and_nothing_are_read_from_text() -> None:
    read = override(Knobs(limit=1.0), {"cell": "gru", "hidden": "[64, 32]", "limit": "null"})

    assert (read.cell, read.hidden, read.limit) == ("gru", (64, 32), None)
    assert override(Knobs(), {"limit": "0.5"}).limit == 0.5


def test_a_setting_needs_an_equals_sign() -> None:
    with pytest.raises(InvalidHyperparameter, match="--set lr: write NAME=VALUE"):
        pairs(["lr"])


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidRecipe, match="there is no recipe 'digit'; built in: .*digits"):
        load("digit")


def test_a_file_without_a_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")

    with pytest.raises(InvalidRecipe, match="defines no `recipe"):
        load(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\nimport no_such_package\n",
            "mine.py, line 2: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("x = (\n", "mine.py, line 1: SyntaxError: '(' was never closed (mine.py, line 1)"),
        (
            "def f():\n    return 1 / 0\n\nf()\n",
            "mine.py, line 2: ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_file_that_cannot_be_run_is_named_with_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(text)

    with pytest.raises(InvalidRecipe) as caught:
        load(str(tmp_path / "mine.py"))

    assert str(caught.value) == message


OWN = """
import numpy as np
import torch
from training.data import Examples, split
from training.recipe import NetworkHyperparameters, Recipe

x = np.random.default_rng(0).standard_normal((160, 5))
y = (x[:, 0] > x[:, 1]).astype(int)

def data(channels, knobs):
    return split(Examples({"x": x}, y), source="made", sha256="0")

def model(knobs):
    return torch.nn.Linear(5, 2)

recipe = Recipe(name="own", description="", task="classification", labels=("no", "yes"),
                hyperparameters=NetworkHyperparameters, data=data, model=model)
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "return split",
            "x[3, 2] = np.nan; return split",
            "made, row 4, column 3: 'x' holds nan; fill it, or",
        ),
        ('"x": x}', '"x": x[1:]}', "made: 'x' has 159 rows, and the target has 160"),
        (", y)", ", np.array(list('ab'))[y])", "made: the target is no number; give class numbers"),
        (", y)", ", y + 1)", "made: class 2 has no name; labels are no, yes"),
        (
            "return split",
            "channels = {}; return channels['train'] or split",
            "own.py, line 11: KeyError: 'train'",
        ),
        ("Linear(5, 2)", "Linear(5, '2')", "own.py, line 14: TypeError: "),
        (
            "Linear(5, 2)",
            "Linear(6, 2)",
            "the data do not go through the model (x [2, 5], target [2] int64): mat1",
        ),
        (
            "model=model",
            "model=model, augment=lambda x: x.view(-1)[1:].view(5, -1)",
            "own.py, line 17: RuntimeError: ",
        ),
        (
            "model=model",
            "model=model, loss=lambda model, inputs, target: model.nothing",
            "own.py, line 17: Attribute",
        ),
    ],
    ids=["nan", "lengths", "text", "label", "data()", "model()", "shape", "augment", "loss"],
)
def test_a_mistake_in_a_file_of_ones_own_is_one_sentence(
    old: str,
    new: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = pytest.importorskip("training.train", reason="training needs torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the process is pytest's
    (tmp_path / "own.py").write_text(OWN.replace(old, new))

    assert train.main(["own.py", "--set", "epochs=1", "--device", "cpu"], {}) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {message}")


def test_a_mistake_elsewhere_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    assert mistake(str(tmp_path / "own.py"), ValueError("ours")) is None


def make_data() -> Dataset:
    part = Examples({"x": np.zeros((2, 1), np.float32)}, np.array([0, 1]))
    return Dataset(part, part, part, source="made", sha256="0", split={})


def make_recipe(**changes: Any) -> Recipe[Any]:
    fields = {"name": "mine", "description": "", "task": "classification", "hyperparameters": Knobs,
              "data": make_data, "model": lambda: None, "labels": ("a", "b")}  # fmt: skip
    return Recipe(**fields | changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "Mine!"}, "recipe name 'Mine!' is no model name"),
    ({"task": "classify"}, "recipe mine: task 'classify' is none of classification, regression"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecipe, match=message):
        make_recipe(**changes)


def test_functions_of_a_recipe_take_as_many_arguments_as_they_need() -> None:
    def data(channels: Any, knobs: Knobs) -> Dataset:
        assert (channels["train"], knobs.note) == (Path("rows"), "hi")
        return make_data()

    recipe = make_recipe(data=data, model=lambda knobs, found: (knobs.note, len(found.train)))
    found = recipe.load_data({"train": Path("rows")}, Knobs(note="hi"))

    assert recipe.make_model(Knobs(note="hi"), found) == ("hi", 2)
    assert len(make_recipe().load_data({}, Knobs()).train) == 2


def test_a_channel_that_was_not_given_is_asked_for() -> None:
    recipe = make_recipe(data=lambda channels: channels["train"])

    with pytest.raises(
        InvalidRecipe, match="recipe mine reads the channel 'train': add --data train=FOLDER"
    ):
        recipe.load_data({}, Knobs())


@pytest.mark.parametrize(
    ("labels", "message"), [((), "needs labels"), (("a",), "class 1 has no name; labels are a")]
)
def test_every_class_has_a_name(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidRecipe, match=message):
        make_recipe(labels=labels).label_names(make_data())
