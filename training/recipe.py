"""What a recipe is: one short file that names the data, the network and its hyperparameters."""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_type_hints

from training.data import Dataset
from training.errors import InvalidHyperparameter, InvalidRecipe

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?")  # what the registry accepts as a model's name
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Hyperparameters:
    """The knobs that every recipe has. A recipe changes defaults and adds fields of its own."""

    epochs: int = 10
    lr: float = 1e-3  # highest learning rate: a tenth of the steps warm up, then a cosine falls to zero
    batch_size: int = 64
    weight_decay: float = 0.01
    seed: int = 0


H = TypeVar("H", bound=Hyperparameters)


@dataclass(frozen=True)
class Recipe(Generic[H]):
    """How one model is made.

    `model` maps (batch, *input shape) float32 to (batch, number of labels) logits; the exported graph adds the softmax.
    """

    name: str
    description: str
    task: Literal["classification"]
    labels: tuple[str, ...]
    input_name: str
    preprocessing: str  # what a caller has to do to make a tensor of raw data, in one sentence
    hyperparameters: type[H]
    data: Callable[[Mapping[str, Path]], Dataset]  # input channels by name → data; built-in sets need none
    model: Callable[[H], nn.Module]
    augment: Callable[[Tensor], Tensor] | None = None  # training batches only; draws from torch's global generator


def load(reference: str) -> Recipe[Any]:
    """The recipe called `reference`, or the one in the file at that path.

    Raises:
        InvalidRecipe: no such recipe, or the file defines no usable `recipe`.
    """
    if reference.endswith(".py"):
        path = Path(reference)
        if not path.is_file():
            raise InvalidRecipe(f"there is no recipe file {reference}")
        module = _module(path)
    else:
        known = sorted(path.stem for path in RECIPES.glob("[a-z]*.py"))
        if reference not in known:
            raise InvalidRecipe(f"there is no recipe {reference!r}; built in: {', '.join(known)}, or give a .py file")
        module = importlib.import_module(f"training.recipes.{reference}")
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise InvalidRecipe(f"{reference} defines no `recipe = Recipe(...)`")
    if not NAME.fullmatch(recipe.name):
        raise InvalidRecipe(f"recipe name {recipe.name!r} is no model name: use a-z, 0-9, '.', '_', '-'")
    return recipe


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidRecipe(f"{path.name} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def override(defaults: H, values: Mapping[str, object]) -> H:
    """`defaults` with `values` in place, each converted to its field's type.

    Values are JSON, or text as SageMaker and the command line deliver it.

    >>> override(Hyperparameters(), {"epochs": "3", "lr": 0.01}).epochs
    3

    Raises:
        InvalidHyperparameter: the name is unknown or the value has another type.
    """
    types = get_type_hints(type(defaults))
    names = [field.name for field in fields(defaults)]
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise InvalidHyperparameter(f"unknown hyperparameter {name!r}: {hint}")
        changes[name] = _convert(name, value, types[name])
    return replace(defaults, **changes)


def _convert(name: str, value: object, kind: type) -> object:
    parsed = _parse(value)
    if kind is str:
        return parsed if isinstance(parsed, str) else str(value)
    if kind is bool and isinstance(parsed, bool):
        return parsed
    number = isinstance(parsed, int | float) and not isinstance(parsed, bool) and math.isfinite(parsed)
    if kind is float and number:
        return float(parsed)  # type: ignore[arg-type]
    if kind is int and number and int(parsed) == parsed:  # type: ignore[call-overload]
        return int(parsed)  # type: ignore[call-overload]
    if kind in (list, dict) and isinstance(parsed, kind):
        return parsed
    expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, f"a JSON {kind.__name__}")
    raise InvalidHyperparameter(f"{name}: {str(value)[:80]!r} is not {expected}")


def _parse(value: object) -> object:
    """Text read as JSON where it is JSON; Python's spelling of booleans counts too (the older toolkit writes it)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads({"True": "true", "False": "false"}.get(value, value))
    except ValueError:
        return value


def encode(value: object) -> str:
    """A hyperparameter as the text that SageMaker carries and `override` reads back to the same value.

    >>> encode(True), encode("o'brien"), encode('"quoted"')
    ('true', "o'brien", '"\\\\"quoted\\\\""')
    """
    if isinstance(value, str):
        parsed = _parse(value)
        if not isinstance(parsed, str) or parsed == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def pairs(settings: Sequence[str], option: str = "--set") -> dict[str, str]:
    """`NAME=VALUE` of the command line, by name.

    Raises:
        InvalidHyperparameter: there is no `=` in one of them.
    """
    for setting in settings:
        if "=" not in setting:
            raise InvalidHyperparameter(f"{option} {setting}: write NAME=VALUE")
    return dict(setting.split("=", 1) for setting in settings)
