"""The package that `pip install .` installs: its version, its requirements, its imports."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import mayfly

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
# Import names of the distributions that have another name.
IMPORTED_AS = {"pillow": "PIL", "boto3": "boto3"}
IN_BOTO3 = {"botocore"}


def imports() -> Iterator[tuple[Path, str, bool]]:
    """Yield file, package and if the import stands at the top of the file, for each import."""
    for path in Path("mayfly").rglob("*.py"):
        tree = ast.parse(path.read_text())
        top = set(tree.body)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, alias.name.split(".")[0], node in top
            elif isinstance(node, ast.ImportFrom):
                yield path, str(node.module).split(".")[0], node in top


def names(requirements: list[str]) -> set[str]:
    """Return the import names of requirements."""
    stems = {text.split(">")[0].split("=")[0].split("[")[0] for text in requirements}
    return {IMPORTED_AS.get(stem, stem) for stem in stems}


def test_the_version_is_the_projects() -> None:
    assert mayfly.__version__ == PROJECT["version"]


def test_every_import_is_required_or_optional() -> None:
    required = names(PROJECT["dependencies"])
    optional = {
        name for group in PROJECT["optional-dependencies"].values() for name in names(group)
    }
    foreign = {name for _, name, _ in imports()} - sys.stdlib_module_names - {"mayfly"}

    assert foreign == required | optional | IN_BOTO3


def test_what_is_optional_is_imported_when_it_is_used() -> None:
    optional = {
        name for group in PROJECT["optional-dependencies"].values() for name in names(group)
    }
    early = {(str(path), name) for path, name, is_top in imports() if is_top and name in optional}

    assert early == {("mayfly/client/tensors/numpy_codec.py", "numpy")}  # imported by codec.py


def test_the_command_is_an_entry_point() -> None:
    assert PROJECT["scripts"] == {"mayfly": "mayfly.cli.main:main"}
