"""Write layers/*/requirements.txt from the dependency groups in pyproject.toml."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYERS = Path("layers")


def layer_requirements(name: str) -> str:
    """Return the text of a Lambda layer's requirements.txt."""
    groups = tomllib.loads(Path("pyproject.toml").read_text())["dependency-groups"]
    head = f"# Generated from the group `{name}` of pyproject.toml by `make layer`.\n"
    return head + "".join(f"{requirement}\n" for requirement in sorted(_flat(groups, name)))


def _flat(groups: dict[str, list[Any]], name: str) -> Iterator[str]:
    for entry in groups[name]:
        if isinstance(entry, dict):
            yield from _flat(groups, entry["include-group"])
        else:
            yield entry


if __name__ == "__main__":
    for folder in LAYERS.iterdir():
        (folder / "requirements.txt").write_text(layer_requirements(folder.name))
