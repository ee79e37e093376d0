"""Find, import and check a recipe by name or path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from training.errors import InvalidRecipe, TrainingError
from training.recipe import Recipe

RECIPES = Path(__file__).parent / "recipes"


def built_in() -> list[str]:
    """Names of the recipes that come with this package."""
    return sorted(path.stem for path in RECIPES.glob("[a-z]*.py"))


def load(reference: str) -> Recipe[Any]:
    """The recipe called `reference`, or the one in the file at that path.

    Raises:
        InvalidRecipe: no such recipe, or the file cannot be run or defines no usable `recipe`.
    """
    if reference.endswith(".py"):
        path = Path(reference)
        if not path.is_file():
            raise InvalidRecipe(f"there is no recipe file {reference}")
        module = _module(path)
    else:
        known = built_in()
        if reference not in known:
            raise InvalidRecipe(
                f"there is no recipe {reference!r}; built in: {', '.join(known)}, or give a .py file"
            )
        module = importlib.import_module(f"training.recipes.{reference}")
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise InvalidRecipe(f"{reference} defines no `recipe = Recipe(...)`")
    return recipe


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidRecipe(f"{path.name} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except TrainingError:
        raise
    except Exception as error:  # it is the user's code: whatever it raises is theirs to mend
        raise mistake(str(path), error) or InvalidRecipe(
            f"{path.name}: {type(error).__name__}: {error}"
        ) from error
    return module


def mistake(reference: str, error: Exception) -> InvalidRecipe | None:
    """`error` in one line, if the user's file `reference` raised it or called what did."""
    path = Path(reference).resolve()
    lines = [error.lineno] if isinstance(error, SyntaxError) and error.lineno else []
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    if not reference.endswith(".py") or not lines:
        return None
    said = " ".join(str(error).split())[:500]
    return InvalidRecipe(f"{path.name}, line {lines[-1]}: {type(error).__name__}: {said}")
