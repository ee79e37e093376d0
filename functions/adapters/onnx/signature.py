"""Model signature (input and output types and shapes) from ONNX Runtime."""

from collections.abc import Collection
from pathlib import Path

from functions.adapters.onnx.capi import ELEMENT_DATATYPES, Library
from functions.adapters.onnx.nodes import Node, read_nodes
from functions.core.errors import InvalidModel, shown
from functions.core.package.onnx_reader import read_onnx
from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec


def read_signature(library: Library, session: int, path: Path) -> Signature:
    """Return a loaded model's declared inputs and outputs as a signature.

    `session` is the runtime's handle, `path` the model file.

    Raises:
        InvalidModel: `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
    """
    inputs, outputs = read_nodes(library, session, "Input"), read_nodes(library, session, "Output")
    # The runtime reports no dimensions both for a scalar and for a tensor of unknown rank; the
    # file tells them apart.
    ambiguous = any(not node.shape for node in (*inputs, *outputs))
    unranked = read_onnx(path).unranked if ambiguous else frozenset()
    return Signature(
        tuple(_spec("input", node, unranked) for node in inputs),
        tuple(_spec("output", node, unranked) for node in outputs),
    )


def _spec(kind: str, node: Node, unranked: Collection[str]) -> TensorSpec:
    """Convert a model input or output to an Open Inference Protocol declaration.

    Outputs without a declared rank are reported as `[-1]`.
    """
    datatype = None if node.element is None else ELEMENT_DATATYPES.get(node.element)
    if datatype is None:
        supported = "tensors of booleans, integers, floats or strings"
        raise InvalidModel(
            f"{kind} {shown(node.name)} is a {node.type}, only {supported} are served; "
            f"{_next_step(node.type)}",
            code="UNSUPPORTED_TYPE",
        )
    if node.shape or node.name not in unranked:
        shape = tuple(size if size >= 0 else DYNAMIC for size in node.shape)
        return TensorSpec(node.name, datatype, shape)
    if kind == "output":
        return TensorSpec(node.name, datatype, (DYNAMIC,))
    raise InvalidModel(
        f"input {shown(node.name)} does not say how many dimensions it has; export it with a shape",
        code="UNKNOWN_RANK",
    )


def _next_step(container: str) -> str:
    """Return advice for exporting a model input or output as a tensor."""
    if container.startswith("seq(map("):
        return "export the classifier with options={'zipmap': False}"
    if container.startswith("seq("):
        return "join it to a tensor (ConcatFromSequence), or export a model for each element"
    return "export the model with such tensors in its place"
