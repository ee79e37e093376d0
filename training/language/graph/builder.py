"""ONNX graph under construction: nodes, weights, quantised matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.export.graphs import IR, OPSET
from training.language.checkpoint import BLOCK
from training.language.graph.quantization import QuantisedMatrix, block_sums

MICROSOFT = "com.microsoft"
INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


class GraphBuilder:
    """Builder of an ONNX graph with nodes, weights and quantised matrices."""

    def __init__(self, accuracy_level: int = 0) -> None:
        """Start an empty graph.

        `accuracy_level` is MatMulNBits': 0 computes in float32, 4 rounds inputs to 8 bits.
        """
        self._accuracy_level = accuracy_level
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._extended: set[str] = set()  # values that have the sums of their blocks behind them

    def weight(self, name: str, values: Any) -> str:
        """Add a weight, once under each name; return its name."""
        if name not in self._weights:
            array = np.asarray(values, order="C")
            self._weights[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """Add a list of integers; return its name."""
        name = "ints_" + "_".join(map(str, values)).replace("-", "minus")
        return self.weight(name, np.array(values, np.int64))

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        *more: str,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; return the name of its first output."""
        outputs = [output, *more]
        node = helper.make_node(op, inputs, outputs, output, domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def add_microsoft(
        self, op: str, inputs: Sequence[str], output: str, *more: str, **attributes: Any
    ) -> str:
        """Add a node of ONNX Runtime's own operator."""
        return self.add(op, inputs, output, *more, domain=MICROSOFT, **attributes)

    def quantised(self, name: str, matrix: QuantisedMatrix) -> list[str]:
        """Add a quantised matrix; return names of numbers, scales and zeros."""
        names = [self.weight(f"{name}.packed", matrix.packed)]
        names.append(self.weight(f"{name}.scales", matrix.scales))
        if matrix.zeros is not None:
            names.append(self.weight(f"{name}.zeros", matrix.zeros))
        return names

    def multiply(
        self,
        x: str,
        name: str,
        matrix: QuantisedMatrix,
        bias: Any = None,
        output: str = "",
        exact: bool = False,
    ) -> str:
        """Multiply `x` (…, columns) by a quantised matrix; add a bias (rows,).

        `exact` computes in float32 whatever the accuracy level.
        """
        output = output or f"{name}.product"
        product = f"{name}.unbiased" if bias is not None else output
        if matrix.offset:
            x = self._with_sums(x, matrix.columns, exact)
        self.add_microsoft(
            "MatMulNBits",
            [x, *self.quantised(name, matrix)],
            product,
            K=matrix.inputs,
            N=matrix.rows,
            bits=matrix.bits,
            block_size=BLOCK,
            accuracy_level=0 if exact else self._accuracy_level,
        )
        if bias is None:
            return output
        return self.add("Add", [product, self.weight(f"{name}.bias", bias)], output)

    def _with_sums(self, x: str, columns: int, exact: bool) -> str:
        """Append the sums of x's blocks to x, once for each x.

        A matrix of ones is faster than Reshape and ReduceSum, and rounds x as the others do.
        """
        output = f"{x}.with_sums"
        if output not in self._extended:
            self._extended.add(output)
            ones = block_sums(columns)
            sums = self.multiply(x, f"sums_{columns}", ones, output=f"{x}.sums", exact=exact)
            self.add("Concat", [x, sums], output, axis=-1)
        return output

    def rows_of(self, name: str, matrix: QuantisedMatrix, numbers: str, output: str) -> str:
        """Look up rows of an 8-bit matrix, which `multiply` may use, too.

        The operator takes the blocks as a dimension of their own, as MatMulNBits does, so both
        share one copy of the numbers.
        """
        packed, scales = self.quantised(name, matrix)
        scales = self.add("Unsqueeze", [scales, self.ints(2)], f"{output}.scales")
        blocks = self.add_microsoft(
            "GatherBlockQuantized",
            [packed, numbers, scales],
            f"{output}.blocks",
            bits=matrix.bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=2,
        )
        return self.add("Reshape", [blocks, self.ints(0, 0, matrix.columns)], output)

    def build(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[Any]
    ) -> onnx.ModelProto:
        """Return the graph as a model."""
        weights = list(self._weights.values())
        graph = helper.make_graph(self._nodes, name, inputs, outputs, weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="mayfly")


def tensor(name: str, element: int, *shape: int | str) -> onnx.ValueInfoProto:
    """Declare a graph's input or output."""
    return helper.make_tensor_value_info(name, element, shape)
