"""Category encoder: texts to integer codes, identical in Python and ONNX.

Capitals A to Z and extra blanks do not matter. Other letters keep their case: only A to Z have
lower-case forms in every machine's locale.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from training.export import graphs
from training.export.graph_editing import StringEncoder
from training.export.graphs import Feeds

MISSING, UNKNOWN = 0, 1  # codes of an empty cell and of a category that is not listed
SPECIAL = 2  # first code of a category
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ODD = (  # unusual cells on which both encoders are always compared
    "",
    " ",
    "   ",
    "\t",
    "a\n",
    "Ünïcödé ÉTÉ",
    "a b c d e f g h",
    " 0:",
    "x" * 10_000,
    " " * 10_000,
)


@dataclass(frozen=True, slots=True)
class Categories:
    """Mapping from category to integer code for each column of a table."""

    columns: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, *columns: Sequence[str]) -> Categories:
        """Map each column's categories to integer codes in the listed order.

        The first code is SPECIAL.

        >>> Categories.of(["MB", "GB"]).columns
        ({'mb': 2, 'gb': 3},)
        """
        distinct = [dict.fromkeys(filter(None, map(tidy, names))) for names in columns]
        codes = [{name: SPECIAL + at for at, name in enumerate(names)} for names in distinct]
        return cls(tuple(codes))

    @classmethod
    def fit(cls, cells: NDArray[Any]) -> Categories:
        """Learn each column's sorted category → code map from `cells` (n, columns)."""
        return cls.of(*(sorted({tidy(cell) for cell in column}) for column in cells.T))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of category codes in each column, to size embeddings."""
        return tuple(SPECIAL + len(names) for names in self.columns)

    def __call__(self, cells: NDArray[Any]) -> NDArray[np.int64]:
        """Encode category cells (n, columns) of str as int64 codes."""
        encoded = np.empty(cells.shape, np.int64)
        for column, names in enumerate(self.columns):
            codes = {"": MISSING, **names}
            encoded[:, column] = [codes.get(tidy(cell), UNKNOWN) for cell in cells[:, column]]
        return encoded


def tidy(cell: str) -> str:
    """Normalize a category text: lower-case A to Z, remove extra blanks.

    >>> tidy("  Two  YEARS ")
    'two years'
    """
    return " ".join(word for word in cell.translate(_LOWER).split(" ") if word)


@dataclass(frozen=True, slots=True)
class CategoryPreprocessor:
    """Preprocessor that turns a text category input into integer codes.

    Texts (n, columns) of str become the network's input `codes` (n, columns) int64.
    """

    categories: Categories
    cells: str = "categories"
    codes: str = "codes"

    def encode(self, inputs: Feeds) -> dict[str, NDArray[Any]]:
        """Replace the category texts in `inputs` by integer codes."""
        encoded = {}
        for name, values in inputs.items():
            if name == self.cells:
                encoded[self.codes] = self.categories(values)
            else:
                encoded[name] = values
        return encoded

    def attach(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """Prepend category-encoding nodes to `graph`, checked against the Python encoder.

        Raises:
            ExportFailed: `graph` has no input of that name, or the codes differ.
        """
        encoder = _encoder(self.categories, self.cells, self.codes)
        return encoder.attach(graph, self.categories, _proof_cells(self.categories))


def disagreement(categories: Categories) -> str | None:
    """Describe how ONNX and Python category codes differ, or return None."""
    encoder = _encoder(categories, "cells", "codes")
    return encoder.problem(categories, _proof_cells(categories))


def _proof_cells(categories: Categories) -> NDArray[Any]:
    """Return test cells: odd texts, and each category in several spellings.

    Every column has all of them.
    """
    names = [name for column in categories.columns for name in column]
    shouted = [f"  {name.upper().replace(' ', '   ')} " for name in names]
    longer = [f"{name} x" for name in names]
    texts = np.array([*_ODD, *names, *shouted, *longer], object)
    return np.stack([texts] * len(categories.columns), axis=1)


def _encoder(categories: Categories, cells: str, codes: str) -> StringEncoder:
    """Return ONNX nodes that encode category cells as integer codes."""
    shape: list[str | int | None] = ["batch", len(categories.columns)]
    encoder = StringEncoder(
        helper.make_tensor_value_info(cells, TensorProto.STRING, shape),
        helper.make_tensor_value_info(codes, TensorProto.INT64, shape),
    )
    names = [name for column in categories.columns for name in column]
    # Words of the longest category, and one place for the rest of a longer cell.
    longest = 1 + max((len(name.split(" ")) for name in names), default=1)
    _add_split(encoder, longest)
    _add_join(encoder, longest)
    _add_lookup(encoder, categories, longest)
    return encoder


def _add_split(encoder: StringEncoder, longest: int) -> None:
    """Add ONNX nodes that split category cells into lower-case words.

    Each cell becomes `longest` words and a rest. A text of exactly that many words is split along,
    so that the width is fixed and there is always a cell.
    """
    encoder.add_constants(object, {"ruler": [" ".join("a" * (longest + 1))]})
    encoder.add_constants(np.int64, {"flat": [-1], "one": [1], "end": [2**62], "zero": [0]})
    encoder.add("Reshape", "INPUT flat", "list")
    encoder.add("Concat", "ruler list", "measured", axis=0)
    encoder.add("StringNormalizer", "measured", "lower", case_change_action="LOWER",
                is_case_sensitive=1, locale=graphs.LOCALE)  # fmt: skip
    encoder.add("StringSplit", "lower", "words counts", maxsplit=longest)
    encoder.add("Slice", "words one end zero", "rows")


def _add_join(encoder: StringEncoder, longest: int) -> None:
    """Add ONNX nodes that join each cell's words by single blanks."""
    encoder.add_constants(object, {"blank": [" "]})
    encoder.add_constants(np.int64, {f"column_{at}": at for at in range(longest + 1)})
    encoder.add("Gather", "rows column_0", "joined_0", axis=1)
    for at in range(1, longest + 1):
        encoder.add("StringConcat", f"joined_{at - 1} blank", f"spaced_{at}")
        encoder.add("Gather", f"rows column_{at}", f"word_{at}", axis=1)
        encoder.add("StringConcat", f"spaced_{at} word_{at}", f"joined_{at}")


def _add_lookup(encoder: StringEncoder, categories: Categories, longest: int) -> None:
    """Add ONNX nodes that look up each category cell's integer code.

    They look up the joined words of each cell. A key starts with the number of its column. Short
    categories end in blanks, because all cells have `longest` + 1 words by now.
    """
    keys = {
        f"{column}:{name}{' ' * (longest - name.count(' '))}": code
        for column, names in enumerate(categories.columns)
        for name, code in {"": MISSING, **names}.items()
    }
    columns = [f"{column}:" for column in range(len(categories.columns))]
    encoder.add_constants(object, {"numbers": [columns]})
    encoder.add("Shape", "INPUT", "shape")
    encoder.add("Reshape", f"joined_{longest} shape", "table", allowzero=1)
    encoder.add("StringConcat", "numbers table", "keys")
    encoder.add("LabelEncoder", "keys", "OUTPUT", "ai.onnx.ml", keys_strings=list(keys),
                values_int64s=list(keys.values()), default_int64=UNKNOWN)  # fmt: skip
