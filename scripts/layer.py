"""Prints the requirements of the Lambda layer: the group `runtime` of pyproject.toml."""

import tomllib
from pathlib import Path


def layer_requirements() -> str:
    groups = tomllib.loads(Path("pyproject.toml").read_text())["dependency-groups"]
    head = "# Generated from the group `runtime` of pyproject.toml by `make layer`; a test compares them.\n"
    return head + "".join(f"{requirement}\n" for requirement in sorted(groups["runtime"]))


if __name__ == "__main__":
    print(layer_requirements(), end="")  # noqa: T201
