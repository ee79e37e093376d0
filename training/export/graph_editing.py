"""Edit ONNX graphs: clean, rename dimensions, guard LSTM inputs, prepend string encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.errors import ExportFailed
from training.export import graphs
from training.export.graphs import IR, LOCALE, OPSET, UNICODE_LOCALE, first_line

_RECURRENT = ("LSTM", "GRU")
_ENCODER_ML_OPSET = 4  # version of ai.onnx.ml with LabelEncoder from strings to int64

Encode = Callable[[NDArray[Any]], NDArray[np.int64]]


# --- small edits


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a deep copy of an ONNX model."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    return clone


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace all nodes of an ONNX graph by `nodes`, in place.

    `nodes` may include nodes of `graph`.
    """
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor in the inputs and outputs of all ONNX nodes."""
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new


def set_attributes(node: onnx.NodeProto, **values: Any) -> None:
    """Set or replace attributes of an ONNX node."""
    kept = [attribute for attribute in node.attribute if attribute.name not in values]
    changed = [helper.make_attribute(name, value) for name, value in values.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *changed])


def constants(prefix: str, dtype: Any, values: Mapping[str, Any]) -> list[onnx.TensorProto]:
    """Convert constants to ONNX initializers, named by `prefix` and key."""
    return [
        numpy_helper.from_array(np.array(value, dtype), prefix + name)
        for name, value in values.items()
    ]


# --- cleaning


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an ONNX model in portable form, without metadata of its origin.

    It has opset OPSET and IR version IR. Local functions are inlined. Inferred shapes are dropped:
    they are a third of a small file, and in the way of quantization. Text operators get a locale
    that every machine has.

    Raises:
        ExportFailed: its operators are of a later opset.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    model = _at_opset(model)
    model.ir_version = IR
    model.doc_string = ""
    del model.metadata_props[:]
    _strip(model.graph)
    model.graph.name = "model"
    return model


def _at_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert an ONNX model to opset OPSET; declare each used domain once."""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions[domain] = max(entry.version, versions.get(domain, 0))
    opset = versions.pop("", OPSET)
    if opset > OPSET:
        raise ExportFailed(f"the graph has operators of opset {opset}; export it for opset {OPSET}")
    if opset < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    used = {node.domain for node in graphs.nodes(model.graph)}
    domains = [("", OPSET), *(item for item in sorted(versions.items()) if item[0] in used)]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*domain) for domain in domains)
    return model


def _strip(graph: onnx.GraphProto) -> None:
    """Remove documentation, metadata and inferred shapes from an ONNX graph, recursively."""
    del graph.value_info[:]
    described: list[Any] = [graph, *graph.input, *graph.output, *graph.initializer, *graph.node]
    for item in described:
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
        if node.op_type == "StringNormalizer":
            _set_locale(node)
        for inner in graphs.subgraphs(node):
            _strip(inner)


def _set_locale(node: onnx.NodeProto) -> None:
    set_attributes(node, locale=LOCALE)


# --- what a registration changes, too


def make_servable(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Remove what cannot be served from an ONNX model; return class labels.

    ZipMap nodes become Casts, unsupported locales of StringNormalizers UNICODE_LOCALE, functions
    are inlined, training information is left out, and missing standard operators are imported.
    Changes `model` in place. The labels are those of the ZipMap nodes, by output. Turkish locales,
    whose upper case differs, stay: `graphs.load_problem` reports them.
    """
    if model.functions:
        model.CopyFrom(onnx.inliner.inline_local_functions(model))
    del model.training_info[:]
    if all(entry.domain not in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", OPSET))  # e.g. of CatBoost
    for node in graphs.nodes(model.graph):
        if node.op_type == "StringNormalizer" and not _is_turkish(_locale(node)):
            set_attributes(node, locale=_locale(node) if _is_plain(node) else UNICODE_LOCALE)
    outputs = {value.name: value for value in model.graph.output}
    cut = [
        node
        for node in model.graph.node
        if node.op_type == "ZipMap" and node.output[0] in outputs and node.attribute
    ]
    return {node.output[0]: _cut_zipmap(node, outputs[node.output[0]]) for node in cut}


def _cut_zipmap(node: onnx.NodeProto, output: onnx.ValueInfoProto) -> list[str]:
    """Replace a ZipMap node with Cast in place; return its class labels."""
    [labels] = [helper.get_attribute_value(attribute) for attribute in node.attribute]
    texts = [label.decode() if isinstance(label, bytes) else str(label) for label in labels]
    matrix = helper.make_tensor_value_info(
        output.name, onnx.TensorProto.FLOAT, ["batch", len(texts)]
    )
    node.CopyFrom(
        helper.make_node("Cast", node.input, node.output, node.name, to=TensorProto.FLOAT)
    )
    output.CopyFrom(matrix)
    return texts


def _locale(node: onnx.NodeProto) -> str:
    for attribute in node.attribute:
        if attribute.name == "locale":
            return str(attribute.s, "utf-8")
    return "en_US"


def _is_plain(node: onnx.NodeProto) -> bool:
    return re.match(r"(C|POSIX)($|\.)", _locale(node)) is not None


def _is_turkish(locale: str) -> bool:
    """Return True for a locale with Turkish casing of the letter i."""
    return re.match(r"(tr|az|crh|ku)(?![a-z])|tt_RU@", locale) is not None


# --- dimensions and guards


def name_dims(model: onnx.ModelProto, dims: Mapping[str, Mapping[int, str]]) -> None:
    """Rename the dynamic dimensions of an ONNX model's inputs and outputs.

    `dims` maps inputs to axes to names; the same dimensions of outputs are renamed as well.
    """
    names = {}
    for value in model.graph.input:
        for axis, name in dims.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if dim.dim_param:
                names[dim.dim_param] = name
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:  # possibly a sum, e.g. "s0 + s1"
                dim.dim_param = re.sub(
                    r"\w+", lambda match: names.get(match[0], match[0]), dim.dim_param
                )


def guard_recurrences(model: onnx.ModelProto) -> None:
    """Make LSTM and GRU nodes reject an empty batch or sequence.

    ONNX Runtime 1.31.1 aborts the process there. Each input is reshaped to its own shape first,
    which is gathered so that an empty dimension is an ordinary error (an index out of range).
    """
    graph = model.graph
    if not any(node.op_type in _RECURRENT for node in graph.node):
        return
    indices = {"good": [0, 1, 2], "bad": [3, 3, 3], "zero": 0}
    graph.initializer.extend(constants("guard_", np.int64, indices))
    guarded: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in _RECURRENT:
            guarded += _guard(node, f"guard_{len(guarded)}")
        guarded.append(node)
    replace_nodes(graph, guarded)


def _guard(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """Return nodes that reject empty input of an LSTM or GRU `node`.

    The node's input is connected to them.
    """
    x = node.input[0]
    node.input[0] = f"{name}_x"
    return [
        helper.make_node("Shape", [x], [f"{name}_shape"]),
        helper.make_node("ReduceMin", [f"{name}_shape"], [f"{name}_smallest"], keepdims=0),
        helper.make_node("Equal", [f"{name}_smallest", "guard_zero"], [f"{name}_empty"]),
        helper.make_node("Where", [f"{name}_empty", "guard_bad", "guard_good"], [f"{name}_axes"]),
        helper.make_node("Gather", [f"{name}_shape", f"{name}_axes"], [f"{name}_same"]),
        helper.make_node("Reshape", [x, f"{name}_same"], [f"{name}_x"]),
    ]


# --- encoders of strings


class StringEncoder:
    """ONNX nodes that encode strings as a network's int64 input.

    Values are added under short names; INPUT stands for the strings, OUTPUT for the numbers.
    """

    def __init__(self, strings: onnx.ValueInfoProto, numbers: onnx.ValueInfoProto) -> None:
        self.strings, self.numbers = strings, numbers
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(
        self, operator: str, inputs: str, outputs: str, domain: str = "", **attributes: Any
    ) -> None:
        """Add an ONNX node; blanks separate the names in `inputs` and `outputs`."""
        sources = [self._name(short) for short in inputs.split()]
        targets = [self._name(short) for short in outputs.split()]
        node = helper.make_node(operator, sources, targets, domain=domain, **attributes)
        self.nodes.append(node)

    def add_constants(self, dtype: Any, values: Mapping[str, Any]) -> None:
        self.constants += constants(self._name(""), dtype, values)

    def _name(self, short: str) -> str:
        names = {"INPUT": self.strings.name, "OUTPUT": self.numbers.name}
        return names.get(short, f"{self.numbers.name}_{short}")

    def prepend_to(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """Return an ONNX graph that takes strings, with the encoder prepended."""
        model = copy(graph)
        inputs = [
            self.strings if value.name == self.numbers.name else value
            for value in graph.graph.input
        ]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        replace_nodes(model.graph, [*self.nodes, *graph.graph.node])
        model.graph.initializer.extend(self.constants)
        if all(entry.domain != "ai.onnx.ml" for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid("ai.onnx.ml", _ENCODER_ML_OPSET))
        return model

    def problem(self, encode: Encode, values: NDArray[Any]) -> str | None:
        """Describe how the ONNX nodes differ from `encode`, or return None.

        They are compared on each of `values` alone, on all together and on none.
        """
        model = self.prepend_to(_identity(self.numbers))
        problem = graphs.load_problem(model)
        if problem is not None:
            return problem
        session = graphs.open_session(model)
        rows = [values[row : row + 1] for row in range(len(values))]
        for batch in [*rows, values, values[:0]]:
            shown = repr(batch.flat[0][:40]) if batch.size else "no rows"
            try:
                (answer,) = session.run(None, {self.strings.name: batch})
            except Exception as error:  # native errors of any kind
                return f"fails at {shown}: {first_line(error)}"
            if not np.array_equal(answer, encode(batch)):
                return f"differs from Python's at {shown}"
        return None

    def attach(
        self, graph: onnx.ModelProto, encode: Encode, values: NDArray[Any]
    ) -> onnx.ModelProto:
        """Prepend the encoder nodes to `graph` after comparing them with `encode`.

        They are compared on `values`.

        Raises:
            ExportFailed: `graph` has no such input, or the nodes differ from `encode`.
        """
        strings, numbers = self.strings.name, self.numbers.name
        if all(value.name != numbers for value in graph.graph.input):
            raise ExportFailed(f"the network has no input {numbers!r} for the encoded {strings!r}")
        problem = self.problem(encode, values)
        if problem is not None:
            raise ExportFailed(f"the encoding of {strings!r} in the graph {problem}")
        return self.prepend_to(graph)


def _identity(value: onnx.ValueInfoProto) -> onnx.ModelProto:
    """Return an ONNX model that outputs its only input unchanged."""
    answer = onnx.ValueInfoProto()
    answer.CopyFrom(value)
    answer.name = "answer"
    node = helper.make_node("Identity", [value.name], ["answer"])
    graph = helper.make_graph([node], "model", [value], [answer])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
