"""Recipe: checked when it is made; its functions take as many arguments as they need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions.core.names import is_model_name
from training.data import Dataset, Examples, files
from training.errors import InvalidRecipe
from training.recipe import NAME, Hyperparameters, Recipe


@dataclass(frozen=True)
class Knobs(Hyperparameters):
    note: str = ""


@dataclass(frozen=True)
class Plain:
    epochs: int = 5


def make_data() -> Dataset:
    part = Examples({"x": np.zeros((2, 1), np.float32)}, np.array([0, 1]))
    return Dataset(part, part, part, source="made", sha256="0", split={})


def make_recipe(**changes: Any) -> Recipe[Any]:
    fields = {
        "name": "mine",
        "description": "",
        "task": "classification",
        "hyperparameters": Knobs,
        "data": make_data,
        "model": lambda: None,
        "labels": ("a", "b"),
    }
    return Recipe(**fields | changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "Mine!"}, "recipe name 'Mine!' is no model name"),
    ({"task": "classify"}, "recipe mine: task 'classify' is none of classification, multilabel"),
    ({"hyperparameters": Plain}, "recipe mine: hyperparameters is Plain, not a class that extends"),
    ({"hyperparameters": Knobs()}, r"recipe mine: hyperparameters is Knobs\(.*\), not a class"),
    ({"hyperparameters": {"lr": 1}}, "recipe mine: hyperparameters is {'lr': 1}, not a class"),
])  # fmt: skip
def test_a_recipe_with_a_wrong_name_task_or_hyperparameters_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRecipe, match=message):
        make_recipe(**changes)


@pytest.mark.parametrize(
    "name", ["ResNet50", "a", "A.b_c-9", "-a", "a-", "ä", "a b", "", "x" * 129]
)
def test_recipes_and_registry_take_the_same_names(name: str) -> None:
    assert (NAME.fullmatch(name) is not None) == is_model_name(name)


def test_functions_of_a_recipe_take_as_many_arguments_as_they_need() -> None:
    def data(channels: Any, knobs: Knobs) -> Dataset:
        assert (channels["train"], knobs.note) == (Path("rows"), "hi")
        return make_data()

    recipe = make_recipe(data=data, model=lambda knobs, data: (knobs.note, len(data.train)))
    loaded = recipe.load_data({"train": Path("rows")}, Knobs(note="hi"))

    assert recipe.make_model(Knobs(note="hi"), loaded) == ("hi", 2)
    assert len(make_recipe().load_data({}, Knobs()).train) == 2


def test_a_missing_channel_is_named() -> None:
    recipe = make_recipe(data=lambda channels: channels["train"])

    with pytest.raises(
        InvalidRecipe, match="recipe mine reads the channel 'train': add --data train=FOLDER"
    ):
        recipe.load_data({}, Knobs())


@pytest.mark.parametrize(
    ("data", "unread"),
    [
        (make_data, "test"),
        (lambda channels: (channels["train"], make_data())[1], "test"),
        (lambda channels: (channels.get("test"), make_data())[1], "train"),
    ],
)
def test_a_channel_that_the_recipe_does_not_read_is_refused(data: Any, unread: str) -> None:
    channels = {name: Path(name) for name in ("code", "test", "train", "weights")}

    with pytest.raises(
        InvalidRecipe, match=f"recipe mine does not read the channel '{unread}': leave out"
    ):
        make_recipe(data=data).load_data(channels, Knobs())


def test_a_reader_takes_all_channels_at_once(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        (tmp_path / part).mkdir()
        rows = "".join(f"{number},{'ab'[number % 2]}\n" for number in range(8))
        (tmp_path / part / "rows.csv").write_text("x,y\n" + rows)
    recipe = make_recipe(data=lambda channels: files.table(channels, target="y"))
    channels = {path.name: path for path in tmp_path.iterdir()}

    loaded = recipe.load_data(channels, Knobs())

    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [8, 8, 8]


@pytest.mark.parametrize(
    ("labels", "message"), [((), "needs labels"), (("a",), "class 1 has no name; labels are a")]
)
def test_every_class_has_a_name(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidRecipe, match=message):
        make_recipe(labels=labels).label_names(make_data())
