"""Categories into codes, twice the same: in Python for training, and in core ONNX operators in front of the network.

People type the same category with stray blanks and capitals; here it has one code. A to Z have lower-case forms, as
on every machine's locale.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.errors import ExportFailed
from training.export import graphs
from training.export.graphs import Feeds, first_line

MISSING, UNKNOWN = 0, 1  # codes of no category
SPECIAL = 2
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ODD = (
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
    """What is known in each column: category → code."""

    columns: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, *columns: Sequence[str]) -> Categories:
        """Those of each column, numbered from SPECIAL in the order given.

        >>> Categories.of(["MB", "GB"]).columns
        ({'mb': 2, 'gb': 3},)
        """
        tidied = [dict.fromkeys(filter(None, map(tidy, names))) for names in columns]
        return cls(tuple({name: SPECIAL + at for at, name in enumerate(names)} for names in tidied))

    @classmethod
    def fit(cls, cells: NDArray[Any]) -> Categories:
        """Those that are in each column of `cells` (n, columns) of str."""
        return cls.of(*(sorted({tidy(cell) for cell in column}) for column in cells.T))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each column has, for its embedding."""
        return tuple(SPECIAL + len(names) for names in self.columns)

    def __call__(self, cells: NDArray[Any]) -> NDArray[np.int64]:
        """Codes (n, columns) int64."""
        codes = np.empty(cells.shape, np.int64)
        for at, names in enumerate(self.columns):
            known = {"": MISSING, **names}
            codes[:, at] = [known.get(tidy(cell), UNKNOWN) for cell in cells[:, at]]
        return codes


def tidy(cell: str) -> str:
    """A category in one spelling.

    >>> tidy("  Two  YEARS ")
    'two years'
    """
    return " ".join(word for word in cell.translate(_LOWER).split(" ") if word)


@dataclass(frozen=True, slots=True)
class CategoryPreprocessor:
    """`recipe.Preprocessor` for one input (n, columns) of str, which becomes the network's input `codes`, of int64."""

    categories: Categories
    cells: str = "categories"
    codes: str = "codes"

    def encode(self, inputs: Feeds) -> dict[str, NDArray[Any]]:
        """`inputs` with codes in the place of the categories."""
        return {
            (self.codes if name == self.cells else name): self.categories(values)
            if name == self.cells
            else values
            for name, values in inputs.items()
        }

    def attach(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """`graph` with the codes made in front of it, proven on odd cells.

        Raises:
            ExportFailed: it has no such input, or the codes are not Python's.
        """
        if all(value.name != self.codes for value in graph.graph.input):
            raise ExportFailed(
                f"the network has no input {self.codes!r} for the codes of {self.cells!r}"
            )
        problem = disagreement(self.categories)
        if problem is not None:
            raise ExportFailed(f"the codes of categories in the graph {problem}")
        return attach(self.categories, graph, self.cells, self.codes)


def attach(
    categories: Categories, graph: onnx.ModelProto, cells: str, codes: str
) -> onnx.ModelProto:
    """A graph that takes `cells`, strings (batch, columns), where `graph` takes `codes`."""
    nodes, constants = _nodes(categories, cells, codes)
    shape: list[str | int | None] = ["batch", len(categories.columns)]
    given = helper.make_tensor_value_info(cells, TensorProto.STRING, shape)
    return graphs.put_before(graph, nodes, constants, codes, given)


def _nodes(
    categories: Categories, cells: str, codes: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Cells → lower case → at most so many words and a rest → joined by one blank, with the column's number → codes.

    A text of just so many words goes along, so that there are cells and their width is known.
    """
    longest = 1 + max(
        (len(name.split(" ")) for names in categories.columns for name in names), default=1
    )
    prefix = f"{codes}_"
    texts: dict[str, Any] = {"ruler": [" ".join("a" * (longest + 1))], "blank": [" "],
                             "numbers": [[f"{at}:" for at in range(len(categories.columns))]]}  # fmt: skip
    integers: dict[str, Any] = {"flat": [-1], "one": [1], "end": [2**62], "zero": [0]}
    integers |= {f"column_{at}": at for at in range(longest + 1)}
    constants = [
        numpy_helper.from_array(np.array(value, object), f"{prefix}{name}")
        for name, value in texts.items()
    ]
    constants += [
        numpy_helper.from_array(np.array(value, np.int64), f"{prefix}{name}")
        for name, value in integers.items()
    ]

    def node(
        operator: str, inputs: str, output: str, domain: str = "", **settings: Any
    ) -> onnx.NodeProto:
        names = [cells if name == "CELLS" else prefix + name for name in inputs.split()]
        outputs = [codes if name == "CODES" else prefix + name for name in output.split()]
        return helper.make_node(operator, names, outputs, domain=domain, **settings)

    keys = {
        f"{at}:{name}{' ' * (longest - name.count(' '))}": code
        for at, names in enumerate(categories.columns)
        for name, code in {"": MISSING, **names}.items()
    }
    joined = [
        step
        for at in range(1, longest + 1)
        for step in (
            node("StringConcat", f"joined_{at - 1} blank", f"spaced_{at}"),
            node("Gather", f"rows column_{at}", f"word_{at}", axis=1),
            node("StringConcat", f"spaced_{at} word_{at}", f"joined_{at}"),
        )
    ]
    return [
        node("Reshape", "CELLS flat", "list"),
        node("Concat", "ruler list", "measured", axis=0),
        node("StringNormalizer", "measured", "lower", case_change_action="LOWER", is_case_sensitive=1,
             locale=graphs.LOCALE),
        node("StringSplit", "lower", "words counts", maxsplit=longest),
        node("Slice", "words one end zero", "rows"),
        node("Gather", "rows column_0", "joined_0", axis=1),
        *joined,
        node("Shape", "CELLS", "shape"),
        node("Reshape", f"joined_{longest} shape", "table", allowzero=1),
        node("StringConcat", "numbers table", "keys"),
        node("LabelEncoder", "keys", "CODES", "ai.onnx.ml", keys_strings=list(keys), values_int64s=list(keys.values()),
             default_int64=UNKNOWN),
    ], constants  # fmt: skip


def disagreement(categories: Categories, odd: Sequence[str] = _ODD) -> str | None:
    """What the graph does differently from Python, on odd cells and on each category in several spellings, or None."""
    count = len(categories.columns)
    plain = helper.make_graph(
        [helper.make_node("Identity", ["codes"], ["answer"])],
        "model",
        [helper.make_tensor_value_info("codes", TensorProto.INT64, ["batch", count])],
        [helper.make_tensor_value_info("answer", TensorProto.INT64, ["batch", count])],
    )
    opset = helper.make_opsetid("", graphs.OPSET)
    inner = helper.make_model(plain, opset_imports=[opset], ir_version=graphs.IR)
    model = attach(categories, inner, "cells", "codes")
    problem = graphs.unfit(model)
    if problem is not None:
        return problem
    names = [name for column in categories.columns for name in column]
    spelled = [
        *odd,
        *names,
        *(f"  {name.upper().replace(' ', '   ')} " for name in names),
        *(f"{n} x" for n in names),
    ]
    whole = np.array([[text] * count for text in spelled], object)
    session = graphs.runtime(model)
    for cells in (whole, whole[:1], whole[:0]):
        try:
            got = session.run(None, {"cells": cells})[0]
        except Exception as error:  # native errors of any kind
            return f"fail for {len(cells)} rows: {first_line(error)}"
        expected = categories(cells)
        if got.shape != expected.shape:
            return f"have shape {list(got.shape)}, not {list(expected.shape)}"
        wrong = np.argwhere(got != expected)
        if len(wrong):
            return f"differ from Python's at {cells[tuple(wrong[0])][:40]!r}"
    return None
