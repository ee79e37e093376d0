"""House style that a program can check: docstrings, comments, names, folders.

Run one folder with `pytest tests/architecture/test_style.py -k functions/core/registry`.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PRODUCT = ("functions", "training", "local", "mayfly", "benchmarks", "scripts")
FILES = [path for package in PRODUCT for path in sorted(Path(package).rglob("*.py"))]
TESTS = sorted(Path("tests").rglob("*.py"))
WORDS_MAX = 12  # in the first line of a docstring
FILES_MAX = 12  # side by side in a folder, without __init__.py


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A docstring's first line is a verb or a noun phrase, not half a sentence about its name.
NOT_FIRST_IN_DOCSTRING = words(
    "what whether how where when which who whose why of that those one as"
)
# A comment reads on its own, without the name at its left.
NOT_FIRST_IN_COMMENT = words("of what whose which who whom where whether that else but and so than")
# Names are nouns of the domain.
NOT_A_NAME = words(
    "found told taken wanted known given said asked what where here elsewhere who "
    "which those these it one other others"
)
PRAGMAS = ("noqa", "type:", "fmt:", "pragma:", "!")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and first line of each docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text.split("\n")[0]


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and text of each comment that starts a sentence."""
    before = (0, -1)
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("#").strip()
        continued = token.start == (before[0] + 1, before[1])
        before = token.start
        if text and not continued and not text.startswith(PRAGMAS):
            yield token.start[0], text


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and identifier of each argument and assigned name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def first_word(text: str) -> str:
    return re.split(r"[\s,:;.(]", text.lower(), maxsplit=1)[0]


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=str)
def test_docstrings_begin_with_a_verb_or_a_noun(path: Path) -> None:
    bad = [row for row in docstrings(path) if first_word(row[1]) in NOT_FIRST_IN_DOCSTRING]

    assert not bad


@pytest.mark.parametrize("path", FILES, ids=str)
def test_docstrings_begin_with_a_short_line(path: Path) -> None:
    bad = [row for row in docstrings(path) if len(row[1].split()) > WORDS_MAX]

    assert not bad


@pytest.mark.parametrize("path", FILES, ids=str)
def test_comments_read_on_their_own(path: Path) -> None:
    bad = [row for row in comments(path) if first_word(row[1]) in NOT_FIRST_IN_COMMENT]

    assert not bad


@pytest.mark.parametrize("path", FILES, ids=str)
def test_names_are_nouns_of_the_domain(path: Path) -> None:
    bad = [row for row in names(path) if row[1].strip("_") in NOT_A_NAME]

    assert not bad


def test_at_most_a_dozen_files_lie_side_by_side() -> None:
    folders = {path.parent for path in [*FILES, *TESTS]} - {Path("training/recipes")}
    sizes = {
        str(folder): len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        for folder in folders
    }

    assert {folder: size for folder, size in sizes.items() if size > FILES_MAX} == {}
