"""Recipes are found by name or path; a mistake in a user's file is one sentence."""

import signal
from pathlib import Path

import pytest

from training.errors import InvalidRecipe
from training.recipe_loading import load, mistake


def test_an_unknown_recipe_is_refused_with_the_built_in_ones() -> None:
    with pytest.raises(InvalidRecipe, match="there is no recipe 'digit'; built in: .*digits"):
        load("digit")


def test_a_file_without_a_recipe_is_refused(tmp_path: Path) -> None:
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
def test_a_mistake_in_a_users_recipe_is_one_sentence(
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
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_an_error_outside_the_recipe_is_not_blamed_on_it(tmp_path: Path) -> None:
    assert mistake(str(tmp_path / "own.py"), ValueError("ours")) is None
