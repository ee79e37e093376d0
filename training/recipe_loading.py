"""Load training recipes: built-in ones by name, or from .py files."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from training.errors import InvalidRecipe, TrainingError
from training.recipe import Recipe

RECIPES = Path(__file__).parent / "recipes"
ROOT = RECIPES.parents[1]  # folder that holds the package `training`
TRAINER = RECIPES.parent / "fitting" / "trainer.py"  # imports everything that decides the weights
REASON_SHOWN = 500  # characters of the message of a user's exception


def built_in() -> list[str]:
    """Return the names of the built-in training recipes."""
    return sorted(path.stem for path in RECIPES.glob("[a-z]*.py"))


def load(reference: str) -> Recipe[Any]:
    """Load a training recipe by built-in name or .py file path.

    Keras, if the recipe imports it, gets its torch backend.

    Raises:
        InvalidRecipe: there is no such recipe, or the file does not run or defines no `recipe`.
    """
    os.environ["KERAS_BACKEND"] = "torch"  # read once, while Keras is imported
    if reference.endswith(".py"):
        path = Path(reference)
        if not path.is_file():
            raise InvalidRecipe(f"there is no recipe file {reference}")
        module = _module(path)
    else:
        path = RECIPES / f"{reference}.py"
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
    return replace(recipe, file=path.resolve())


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidRecipe(f"{path.name} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look up the module of their annotations
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file beside the recipe cannot replace a package
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


# --- a recipe's code


def code_digest(recipe: Recipe[Any]) -> str:
    """Compute a SHA-256 over the code that decides a recipe's trained weights.

    This is the recipe's file, what it imports from beside it, and the parts of this package that
    both import. Comments and line breaks do not count. A recipe without a file has "".
    """
    if recipe.file is None:
        return ""
    paths = source_files([recipe.file, TRAINER], [recipe.file.parent, ROOT])
    # By name, because a job has the same files in another folder.
    texts = sorted(f"{path.name}\0{_canonical(path)}\0" for path in paths)
    return hashlib.sha256("".join(texts).encode("utf-8", "replace")).hexdigest()


def source_files(files: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """List Python files, and those that they import, also indirectly, from `folders`.

    Imports are read from the source: one within a function counts, one by a computed name does not.
    """
    pending, listed = [path.resolve() for path in files], dict[Path, None]()
    while pending:
        path = pending.pop()
        if path not in listed:
            listed[path] = None
            pending += _imported_files(path, folders)
    return sorted(listed)


def _imported_files(path: Path, folders: Sequence[Path]) -> Iterator[Path]:
    for names, level in _imports(path):
        for folder in folders if level == 0 else [path.parents[level - 1]]:
            for name in names:
                yield from _files_of_module(folder, name.split("."))


def _imports(path: Path) -> Iterator[tuple[list[str], int]]:
    """Yield module names and leading dots of each import statement."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # such a file fails where it is imported
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            stem = f"{node.module}." if node.module else ""
            yield [f"{stem}{alias.name}" for alias in node.names], node.level


def _files_of_module(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the existing files of a dotted module and its packages."""
    for length in range(1, len(parts) + 1):
        stem = folder.joinpath(*parts[:length])
        for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
            if candidate.is_file():
                yield candidate.resolve()


def _canonical(path: Path) -> str:
    """Return a Python file's syntax tree as text, without comments."""
    content = path.read_bytes()
    try:
        return ast.dump(ast.parse(content))
    except (SyntaxError, ValueError):
        return content.decode(errors="replace")
