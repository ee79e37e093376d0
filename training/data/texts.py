"""Text data sets from CPython: library docstrings and language reference topics.

Their licence is the PSF's. They differ between versions of Python, so the source of a data set
names the version.
"""

from __future__ import annotations

import ast
import functools
import inspect
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples, digest, split
from training.errors import InvalidData

# Topic → modules of the standard library, without modules that Linux distributions package
# separately (tkinter, idlelib, distutils) or that exist on other systems only.
TOPICS = {
    "concurrency": (
        "asyncio concurrent contextvars multiprocessing queue sched selectors signal subprocess "
        "threading weakref _threading_local"
    ),
    "files": (
        "bz2 dbm filecmp fileinput fnmatch genericpath glob gzip io _pyio lzma ntpath os "
        "pathlib pickle posixpath shelve shutil stat tarfile tempfile zipapp zipfile zipimport "
        "_compression"
    ),
    "language": (
        "abc ast code codeop compileall copyreg dataclasses dis enum functools importlib "
        "inspect keyword linecache modulefinder opcode operator pickletools pkgutil py_compile "
        "pyclbr runpy site symtable tabnanny token tokenize types typing warnings contextlib"
    ),
    "network": (
        "ftplib http imaplib ipaddress netrc poplib smtplib socket socketserver ssl urllib "
        "webbrowser wsgiref xmlrpc hmac secrets uuid"
    ),
    "numbers": (
        "_pydecimal _strptime bisect calendar collections colorsys datetime _pydatetime decimal "
        "fractions graphlib heapq numbers random sqlite3 statistics zoneinfo"
    ),
    "testing": (
        "bdb cProfile cmd doctest faulthandler logging pdb pprint profile pstats reprlib timeit "
        "trace traceback tracemalloc unittest"
    ),
    "text": (
        "argparse base64 codecs configparser csv difflib email encodings getopt gettext html "
        "json locale mailbox mimetypes optparse plistlib quopri re shlex string stringprep "
        "textwrap tomllib xml"
    ),
}
SHORTEST, LONGEST = 20, 1000  # characters of a docstring, a summary or a body


class Docstring(NamedTuple):
    """Docstring of the standard library, with its module and the module's topic."""

    module: str  # dotted, e.g. "asyncio.queues"
    topic: str
    text: str


def topics_of_docstrings() -> Dataset:
    """Load about 5,000 Python docstrings, labelled by topic and split by module.

    The input is `text` (n,) of str; the classes are the keys of TOPICS.
    """
    long_enough = [docstring for docstring in docstrings() if len(docstring.text) >= SHORTEST]
    labels = sorted(TOPICS)
    text = np.array([docstring.text[:LONGEST] for docstring in long_enough], object)
    examples = Examples(
        {"text": text},
        np.array([labels.index(docstring.topic) for docstring in long_enough]),
        np.array([docstring.module for docstring in long_enough]),
    )
    return split(
        examples,
        source=f"cpython:docstrings@{_version()}",
        sha256=digest(text),
        by="module",
        labels=labels,
    )


def docstring_pairs() -> Dataset:
    """Load pairs of a Python docstring's first paragraph and remaining text.

    The split is by module. The inputs are `summary` and `body` (n,) of str, both without
    duplicates. The target is the number of the pair.
    """
    pairs: dict[str, tuple[str, str]] = {}
    bodies = set()
    for module, _, text in docstrings():
        summary, _, body = text.partition("\n\n")
        summary, body = " ".join(summary.split()), " ".join(body.split())[:LONGEST]
        too_short = len(summary) < SHORTEST or len(body) < 2 * SHORTEST
        if too_short or summary in pairs or body in bodies:
            continue
        pairs[summary] = module, body
        bodies.add(body)
    summaries = np.array(list(pairs), object)
    rest = np.array([body for _, body in pairs.values()], object)
    examples = Examples(
        {"summary": summaries, "body": rest},
        np.arange(len(pairs)),
        np.array([module for module, _ in pairs.values()]),
    )
    source = f"cpython:docstring-pairs@{_version()}"
    return split(
        examples, source=source, sha256=digest(summaries, rest), by="module", stratify=False
    )


def docstring_pairs_as_bytes() -> Dataset:
    """Load pairs of docstring summary and body as UTF-8 byte numbers.

    Each text is a row (n, longest) of int64, padded by 0.
    """
    pairs = docstring_pairs()

    def encoded(part: Examples) -> Examples:
        return replace(part, inputs={name: _bytes(values) for name, values in part.inputs.items()})

    return replace(
        pairs,
        train=encoded(pairs.train),
        validation=encoded(pairs.validation),
        test=encoded(pairs.test),
    )


def _bytes(texts: NDArray[Any]) -> NDArray[np.int64]:
    rows = [text.encode() for text in texts]
    numbers = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, raw in zip(numbers, rows, strict=True):
        row[: len(raw)] = np.frombuffer(raw, np.uint8)
    return numbers


def language(length: int = 128, *, with_docstrings: bool = False) -> Dataset:
    """Load Python's language reference as byte sequences for training language models.

    The input is `tokens` (n, length), the target (n, length) the byte after each token. Windows do
    not overlap; the end of a topic is padded with 0 in `tokens` and -1 in the target. The split is
    by topic. `with_docstrings` adds four times as much text, split by module.
    """
    from pydoc_data.topics import topics

    texts = {f"topic {name}": text for name, text in sorted(topics.items())}
    if with_docstrings:
        for module, _, text in docstrings():
            texts[module] = texts.get(module, "") + text + "\n\n"
    windows, after, groups = [], [], []
    for name, text in texts.items():
        raw = np.frombuffer(text.encode(), np.uint8)
        count = max(1, -(-(len(raw) - 1) // length))
        padded = np.full(count * length + 1, -1, np.int64)
        padded[: len(raw)] = raw
        windows.append(np.maximum(padded[:-1], 0).reshape(count, length))
        after.append(padded[1:].reshape(count, length))
        groups += [name] * count
    examples = Examples(
        {"tokens": np.concatenate(windows)}, np.concatenate(after), np.array(groups)
    )
    extent = "topics-and-docstrings" if with_docstrings else "topics"
    raw_texts = np.array(list(texts.values()), object)
    return split(
        examples,
        source=f"cpython:{extent}@{_version()}?length={length}",
        sha256=digest(raw_texts),
        by="topic",
        stratify=False,
    )


@functools.cache
def docstrings() -> tuple[Docstring, ...]:
    """List the unique docstrings of Python's library with their modules and topics.

    Raises:
        InvalidData: the interpreter came without its sources.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    by_text: dict[str, Docstring] = {}
    for topic in sorted(TOPICS):
        for path in _sources(library, topic):
            parts = path.relative_to(library).with_suffix("").parts
            module = ".".join(parts).removesuffix(".__init__")
            for text in _docstrings_in(path):
                by_text.setdefault(text, Docstring(module, topic, text))
    if not by_text:
        raise InvalidData(
            f"this Python {_version()} came without the sources of its library, "
            "so without docstrings"
        )
    return tuple(by_text.values())


def _sources(library: Path, topic: str) -> Iterator[Path]:
    for name in sorted(TOPICS[topic].split()):
        folder = library / name
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [library / f"{name}.py"]
        yield from (
            path for path in files if path.is_file() and not {"test", "tests"} & set(path.parts)
        )


def _docstrings_in(path: Path) -> Iterator[str]:
    with tokenize.open(path) as source:
        tree = ast.parse(source.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and re.search(r"[a-z]{3}", text):
                yield inspect.cleandoc(text)


def _version() -> str:
    return platform.python_version()
