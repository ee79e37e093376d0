"""Links and paths in the documentation lead to files that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path("README.md")
PAGES = [README, Path("CONTRIBUTING.md"), *sorted(Path("docs").rglob("*.md"))]
README_BYTES_MAX = 8192

ROOTS = "benchmarks|docs|events|functions|layers|local|mayfly|scripts|tests|training"
# Pages leave out functions/.
IN_FUNCTIONS = "adapters|core|infer|manage|reconcile|register|runtime|sandbox"
PATH = re.compile(rf"(?P<root>{ROOTS}|{IN_FUNCTIONS})/[\w./*-]*")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def links(page: Path) -> Iterator[str]:
    """Yield the relative links of a page, without their anchors."""
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            yield target


def paths(page: Path) -> Iterator[str]:
    """Yield the repository paths that a page has in backticks."""
    for code in CODE.findall(FENCED.sub("", page.read_text())):
        for word in code.split():
            match = PATH.fullmatch(word)
            if match:
                yield f"functions/{word}" if match["root"] in IN_FUNCTIONS.split("|") else word


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_point_to_files(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_in_backticks_exist(page: Path) -> None:
    assert [path for path in paths(page) if not any(Path().glob(path))] == []


def test_the_index_of_decisions_lists_every_page() -> None:
    folder = Path("docs/decisions")
    pages = {page.name for page in folder.glob("[0-9]*.md")}

    assert set(links(folder / "README.md")) == pages | {"../performance.md"}


def test_the_readme_stays_short() -> None:
    assert README.stat().st_size <= README_BYTES_MAX
