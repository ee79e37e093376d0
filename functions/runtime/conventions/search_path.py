"""Module search path of a function whose interpreter started isolated."""

import sys
from collections.abc import Mapping
from os.path import isdir  # pathlib takes time to import


def extend(path: list[str], environ: Mapping[str, str], prefix: str) -> None:
    """Add to `path` the folders in which Lambda's Python runtime finds modules.

    The function's code and layers and the folders of PYTHONPATH come before the standard library,
    the runtime's own packages (boto3) after it. A folder that does not exist is left out.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    layers = f"/opt/python/lib/{version}/site-packages"
    folders = [environ.get("LAMBDA_TASK_ROOT", ""), layers, "/opt/python"]
    folders += environ.get("PYTHONPATH", "").split(":")
    first = [folder for folder in dict.fromkeys(folders) if folder and isdir(folder)]  # noqa: PTH112
    rest = [folder for folder in path if folder not in first]
    packages = f"{prefix}/lib/{version}/site-packages"
    if packages not in first + rest and isdir(packages):  # noqa: PTH112
        rest.append(packages)
    path[:] = first + rest
