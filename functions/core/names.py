"""Validation of names that callers choose: models, aliases, version numbers, files.

ASCII only, so that no two names look alike.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from functions.core.errors import InvalidRequest, shown

_MODEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?", re.ASCII)
_ALIAS = re.compile(r"[a-z]([a-z0-9._-]{0,126}[a-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
PATH_BYTES = 1024  # longest S3 key

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}", re.ASCII)


def is_model_name(name: str) -> bool:
    r"""Return True if `name` has the syntax of a model name.

    1 to 128 of A-Z a-z 0-9 . _ - with a letter or digit at both ends. Two names that differ
    only in case are two models.

    >>> is_model_name("digits-2"), is_model_name("ResNet50")
    (True, True)
    >>> is_model_name("digits\n"), is_model_name("a/b")
    (False, False)
    """
    return _MODEL.fullmatch(name) is not None


def is_alias(name: str) -> bool:
    """Return True if `name` has the syntax of a version alias.

    1 to 128 of a-z 0-9 . _ - that begin with a letter, so that none looks like a version number,
    and end with a letter or digit.

    >>> is_alias("prod"), is_alias("7"), is_alias("2b"), is_alias("Prod")
    (True, False, False, False)
    """
    return _ALIAS.fullmatch(name) is not None


def is_file_name(name: str) -> bool:
    """Return True for a plain file name: no path, no leading dot.

    >>> is_file_name("model.onnx.data"), is_file_name("../x")
    (True, False)
    >>> is_file_name(".bashrc"), is_file_name("a/b")
    (False, False)
    """
    return _FILE.fullmatch(name) is not None


def is_plain_path(path: str) -> bool:
    """Return True if a path is relative and stays within its folder.

    >>> is_plain_path("data/weights é.bin")
    True
    >>> is_plain_path("../x"), is_plain_path("/x"), is_plain_path("a//b"), is_plain_path("a\\\\b")
    (False, False, False, False)
    """
    if len(path.encode()) > PATH_BYTES or not path.isprintable() or "\\" in path:
        return False
    return all(
        part not in ("", ".", "..") and len(part.encode()) <= 255 for part in path.split("/")
    )


def overlapping(paths: Iterable[str]) -> str | None:
    """Return a duplicate path, or a path that is another's parent folder.

    Return None if there is no such path.

    >>> overlapping(["a", "b/a"]), overlapping(["a/b", "a"])
    (None, 'a')
    """
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        parents = {str(parent) for parent in PurePosixPath(path).parents} - {"."}
        if path in files | folders or parents & files:
            return path
        files.add(path)
        folders |= parents
    return None


def is_onnx_file(path: str) -> bool:
    """Return True if a path names an ONNX file, by its extension.

    On macOS, tar stores a file's extended attributes in another file, whose name begins with `._`.

    >>> is_onnx_file("a/Model.ONNX"), is_onnx_file("a/._model.onnx"), is_onnx_file("a/model.pt")
    (True, False, False)
    """
    name = path.rpartition("/")[2]
    return name.lower().endswith(".onnx") and not name.startswith("._")


def parse_version(text: str) -> int | None:
    """Parse a positive version number from text; return None if malformed.

    >>> parse_version("7"), parse_version("07"), parse_version("+7"), parse_version("prod")
    (7, None, None, None)
    """
    return int(text) if _VERSION.fullmatch(text) else None


def parse_reference(text: str) -> int | str:
    """Parse a version number or alias from a URL, header or query.

    Raises:
        InvalidRequest: `text` is neither.
    """
    number = parse_version(text)
    if number is not None:
        return number
    if is_alias(text):
        return text
    raise InvalidRequest(
        f"version {shown(text)} is neither a number like 7 nor an alias like prod "
        "(lower case, beginning with a letter)"
    )
