"""Recipes are found by name or path; a mistake in a user's file is one sentence."""

import signal
import sys
from pathlib import Path

import pytest

from training.errors import InvalidCheckpoint, InvalidRecipe
from training.recipe_loading import load, mistake, source_files


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


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a recipe that takes its network from a module beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the process is pytest's
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_layers", raising=False)
    text = OWN.replace("    return torch.nn.", "    import own_layers\n    return own_layers.")
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "own_layers.py").write_text("from torch.nn import Linear\n")
    return tmp_path


def train_quick(*more: str) -> int:
    train = pytest.importorskip("training.train", reason="training needs torch")
    sys.modules.pop("own_layers", None)
    options = ["--set", "epochs=1", "--device", "cpu", "--checkpoint-dir", "state"]
    status: int = train.main(["own.py", *options, "--model-dir", "out", *more], {})
    return status


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by the exporters
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("own.py", "model=model", "model=model, augment=lambda x: x + 1"),
        ("own_layers.py", "Linear", "Linear, Bilinear"),
    ],
)
def test_a_checkpoint_does_not_stand_in_for_changed_code(
    quick: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str
) -> None:
    assert train_quick() == 0
    path = quick / file
    path.write_text(path.read_text().replace(old, new, 1))

    assert train_quick() == 1
    assert capsys.readouterr().err == (
        "error: checkpoint.pt belongs to a run with other code (the recipe, or what it imports); "
        "remove it to train anew, or use another --checkpoint-dir\n"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by the exporters
def test_a_checkpoint_outlives_a_comment_and_a_move(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_quick() == 0
    moved = quick / "moved"
    moved.mkdir()
    for path in quick.glob("*.py"):
        (moved / path.name).write_text(f"# A comment.\n{path.read_text()}")
    (quick / "state").rename(moved / "state")
    monkeypatch.chdir(moved)

    assert train_quick() == 0
    assert "checkpoint.pt holds this run after its end" in capsys.readouterr().out


def test_a_search_is_not_resumed_with_changed_code(quick: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from training.tuning.space import Search
    from training.tuning.study import Study

    space = {"lr": optuna.distributions.FloatDistribution(0.1, 1.0)}

    def open_study() -> Study:
        recipe = load("own.py")
        return Study(Search(recipe, recipe.hyperparameters(), space, "random", 2), quick / "search")

    open_study()
    open_study()
    (quick / "own_layers.py").write_text("from torch.nn import Linear, Bilinear\n")
    with pytest.raises(InvalidCheckpoint, match="or to the recipe before its code changed"):
        open_study()


def test_imports_of_a_recipe_are_followed_within_its_folder(tmp_path: Path) -> None:
    package = tmp_path / "own_package"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "first": "from . import second\n",
        "second": "import json, torch\n",
        "unused": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    recipe = tmp_path / "own.py"
    recipe.write_text("def model():\n    from own_package.first import Net\n")

    paths = source_files([recipe], [tmp_path])

    names = [str(path.relative_to(tmp_path.resolve())) for path in paths]
    assert names == [
        "own.py", "own_package/__init__.py", "own_package/first.py", "own_package/second.py",
    ]  # fmt: skip


def test_an_error_outside_the_recipe_is_not_blamed_on_it(tmp_path: Path) -> None:
    assert mistake(str(tmp_path / "own.py"), ValueError("ours")) is None
