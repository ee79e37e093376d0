"""Commands of the documentation: blocks parse, and versions are those that are tested."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

PAGES = sorted([*Path("docs").glob("*.md"), Path("README.md"), Path("CONTRIBUTING.md")])
GROUPS = tomllib.loads(Path("pyproject.toml").read_text())["dependency-groups"]


def blocks(page: Path) -> list[str]:
    """Return the shell blocks of a page."""
    return re.findall(r"^```bash(?: run)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_shell_blocks_parse(page: Path) -> None:
    for block in blocks(page):
        done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize(("tool", "group"), [("optimum-onnx", "optimum"), ("genai", "exporters")])
def test_exporters_are_installed_in_the_versions_that_are_tested(tool: str, group: str) -> None:
    [install] = [
        line
        for block in blocks(Path("docs/language-models.md"))
        for line in block.splitlines()
        if line.startswith("pip install") and tool in line
    ]
    pins = {name for name in GROUPS[group] if isinstance(name, str)}
    pins |= set(Path(f"constraints/{group}.txt").read_text().split())
    assert set(install.split()[2:]) <= pins
