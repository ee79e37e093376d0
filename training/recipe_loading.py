"""Load training recipes: built-in ones by name, or from .py files."""

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
REASON_SHOWN = 500  # characters of the message of a user's exception


def built_in() -> list[str]:
    """Return the names of the built-in training recipes."""
    return sorted(path.stem for path in RECIPES.glob("[a-z]*.py"))


def load(reference: str) -> Recipe[Any]:
    """Load a training recipe by built-in name or .py file path.

    Raises:
        InvalidRecipe: there is no such recipe, or the file does not run or defines no `recipe`.
    """
    if reference.endswith(".py"):
        path = Path(reference)
        if not path.is_file():
            raise InvalidRecipe(f"there is no recipe file {reference}")
        module = _module(path)
    else:
        names = built_in()
        if reference not in names:
            raise InvalidRecipe(
                f"there is no recipe {reference!r}; "
                f"built in: {', '.join(names)}, or give a .py file"
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
    sys.modules[module.__name__] = module  # dataclasses look up the module of their annotations
    try:
        spec.loader.exec_module(module)
    except TrainingError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise mistake(str(path), error) or InvalidRecipe(
            f"{path.name}: {type(error).__name__}: {error}"
        ) from error
    return module


def mistake(reference: str, error: Exception) -> InvalidRecipe | None:
    """Convert an exception to an error naming the recipe file's line.

    Returns None where no line of that file is in the traceback, or the recipe is a built-in one.
    """
    path = Path(reference).resolve()
    lines = [error.lineno] if isinstance(error, SyntaxError) and error.lineno else []
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    if not reference.endswith(".py") or not lines:
        return None
    reason = " ".join(str(error).split())[:REASON_SHOWN]
    return InvalidRecipe(f"{path.name}, line {lines[-1]}: {type(error).__name__}: {reason}")
