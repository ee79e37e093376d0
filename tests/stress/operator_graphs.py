"""Single-operator ONNX graphs with valid inputs, for fuzzing.

They are the node tests of the onnx package, with every opset and other types, and a catalog of what
these lack. All dimensions are dynamic: requests choose the sizes.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

MICROSOFT, ML = "com.microsoft", "ai.onnx.ml"
ELEMENTS = 20_000  # larger tensors would only be slow
Feeds = Mapping[str, Any]

# Letter of a type in the catalog -> numpy's type
TYPES = {
    "f": np.float32, "h": np.float16, "u": np.uint8, "c": np.int8, "s": np.int16, "i": np.int32,
    "l": np.int64, "b": np.bool_, "t": np.object_,
}  # fmt: skip
# Types to which the node tests of floats are changed: integers have kernels of their own.
OTHER_TYPES = (
    TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8, TensorProto.DOUBLE,
    TensorProto.FLOAT16,
)  # fmt: skip

# Inputs are a letter and dimensions, "-" if absent: "f2,3 l" is a matrix of floats and an integer,
# "l1=5" a list of the integer 5. A capital letter is a constant. `outputs` counts the outputs.
_HEADS, _QKV = {"num_heads": 2}, "f2,4,8 f2,4,8 f2,4,8"
_POOL, _KERNEL = {"kernel_shape": [2, 2]}, {"kernel_shape": [3, 3]}
_GQA = {"num_heads": 4, "kv_num_heads": 2, "outputs": 3}
_BITS = {"K": 32, "N": 6, "block_size": 16}
_LSTM = {"hidden_size": 4}
_TREE: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [2, 0, 0],
    "nodes_values": [0.5, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
}  # fmt: skip
_SVM: dict[str, Any] = {
    "coefficients": [0.5, -0.5], "kernel_params": [0.1, 0.2, 3.0], "kernel_type": "RBF",
    "rho": [0.1], "support_vectors": [0.1] * 6,
}  # fmt: skip
_MICROSOFT: list[tuple[str, str, dict[str, Any]]] = [
    ("Attention", "f2,4,8 f8,24 f24", _HEADS),
    ("Attention", "f2,4,8 f8,24 f24 i2", _HEADS),
    ("Attention", "f2,4,8 f8,24 f24 i2,4", _HEADS),
    ("Attention", "f2,4,8 f8,24 f24 - f2,2,2,3,4", _HEADS | {"unidirectional": 1, "outputs": 2}),
    ("BiasGelu", "f3,8 f8", {}),
    ("CDist", "f3,4 f5,4", {"metric": "euclidean"}),
    ("CDist", "f3,4 f5,4", {"metric": "sqeuclidean"}),
    ("DequantizeLinear", "u2,3 f u", {}),
    ("DequantizeLinear", "c2,3 f3 c3", {"axis": 1}),
    ("DynamicQuantizeLSTM", "f5,2,3 c1,3,16 c1,4,16 f1,32 i2 f1,2,4 f1,2,4 - f1 c1 f1 c1", _LSTM),
    ("DynamicQuantizeMatMul", "f3,4 u4,5 f1 u1 f5", {}),
    ("EmbedLayerNormalization", "i2,4 i2,4 F10,8 F6,8 F3,8 F8 F8 i2,4", {"outputs": 2}),
    ("EmbedLayerNormalization", "i2,4 - F10,8 F6,8 - F8 F8 - i2,4", {"outputs": 2}),
    ("ExpandDims", "f2,3 i", {}),
    ("FastGelu", "f3,8 f8", {}),
    ("FusedConv", "f1,2,5,5 f3,2,3,3 f3", {"activation": "Relu"}),
    ("FusedConv", "f1,2,5 f2,1,3", {"activation": "Tanh", "group": 2, "strides": [2]}),
    ("FusedGemm", "f3,4 f4,5 f5", {"activation": "Relu"}),
    ("FusedMatMul", "f2,3,4 f2,4,5", {}),
    ("FusedMatMul", "f3,2,4 f2,4,5", {"transBatchA": 1}),
    ("GatherBlockQuantized", "U8,16 l2,3 F8,2 U8,1",
     {"bits": 4, "block_size": 16, "quantize_axis": 1, "gather_axis": 0}),
    ("GatherND", "f2,3 i2,1", {}),
    ("Gelu", "f3,8", {}),
    ("GroupQueryAttention", "f2,1,64 f2,1,32 f2,1,32 f2,2,8,16 f2,2,8,16 i2=8 i=9", _GQA),
    ("GroupQueryAttention", "f2,1,64 f2,1,32 f2,1,32 f2,2,8,16 f2,2,8,16 i2=8 i=9 f20,8 f20,8",
     _GQA | {"do_rotary": 1}),
    ("GroupQueryAttention", "f1,4,128 - - f1,2,8,16 f1,2,8,16 i1=11 i=12",
     _GQA | {"local_window_size": 3}),
    ("GroupQueryAttention", "f2,4,64 f2,4,32 f2,4,32 - - i2=3 i=4", _GQA),
    ("MatMulBnb4", "f3,32 u96 f12", _BITS | {"quant_type": 1}),
    ("MatMulInteger16", "s3,4 s4,5", {}),
    ("MatMulIntegerToFloat", "u3,4 u4,5 f f u u f5", {}),
    ("MatMulNBits", "f3,32 u6,2,8 f12 u6", _BITS | {"bits": 4, "accuracy_level": 4}),
    ("MatMulNBits", "f3,32 U6,2,16 F12 - - F6", _BITS | {"bits": 8}),
    ("MultiHeadAttention", _QKV, _HEADS),
    ("MultiHeadAttention", "f2,4,8 f2,6,8 f2,6,8 f24 i2,6", _HEADS),
    ("MultiHeadAttention", "f2,4,8 f2,2,6,4 f2,2,6,4", _HEADS),
    ("MultiHeadAttention", f"{_QKV} - - - f2,2,3,4 f2,2,3,4", _HEADS),
    ("MurmurHash3", "i3", {}),
    ("MurmurHash3", "t2", {}),
    ("NhwcMaxPool", "u1,7,7,2", _KERNEL | {"ceil_mode": 1, "strides": [2, 2]}),
    ("Pad", "f3,4 l4 f", {}),
    ("Pad", "f3,4 l4", {"mode": "reflect"}),
    ("QAttention", "u2,4,8 c8,24 f24 f f i2,4 u c", _HEADS),
    ("QAttention", "u2,4,8 c8,24 f24 f f24 - u c24 f2,2,2,3,4",
     _HEADS | {"unidirectional": 1, "outputs": 2}),
    ("QEmbedLayerNormalization", "i2,4 i2,4 U10,8 U6,8 U3,8 U8 U8 i2,4 f f f f f u u u u u",
     {"outputs": 2}),
    ("QGemm", "u3,4 f u u4,5 f u i5 f u", {}),
    ("QLinearAdd", "u2,3 f u u1,3 f u f u", {}),
    ("QLinearAveragePool", "u1,4,6,6 f u f u", _POOL | {"channels_last": 1}),
    ("QLinearConcat", "f u u2,3 f u u4,3 f u", {"axis": 0}),
    ("QLinearConv", "u1,4,4,4 f u u3,4,3,3 f u f u i3", {}),
    ("QLinearGlobalAveragePool", "u1,4,6,6 f u f u", {"channels_last": 0}),
    ("QLinearLeakyRelu", "u2,3 f u f u", {"alpha": 0.1}),
    ("QLinearMul", "c2,3 f c c2,3 f c f c", {}),
    ("QLinearSigmoid", "u2,3 f u f u", {}),
    ("QLinearSoftmax", "u2,3,4 f u f u", {"axis": -1, "opset": 13}),
    ("QLinearWhere", "b1,3 u2,3 f u u2,3 f u f u", {}),
    ("QuantizeLinear", "f2,3 f u", {}),
    ("QuantizeLinear", "f2,3 f3 c3", {"axis": 1}),
    ("QuickGelu", "f3,8", {}),
    ("Range", "i i i", {}),
    ("Range", "f f f", {}),
    ("RotaryEmbedding", "f2,4,8 l2,4 f10,2 f10,2", {}),
    ("RotaryEmbedding", "f2,2,4,4 l1 f10,2 f10,2", {"interleaved": 1}),
    ("SkipLayerNormalization", "f2,4,8 f2,4,8 f8 f8 f8", {}),
    ("SkipLayerNormalization", "f2,4,8 f4,8 f8 f8", {}),
    ("SkipSimplifiedLayerNormalization", "f2,4,8 f2,4,8 f8 f8", {}),
    ("Tokenizer", "t2,2", {"mark": 1, "mincharnum": 1, "pad_value": "#", "separators": [" "]}),
    ("Tokenizer", "t2", {"mark": 0, "mincharnum": 1, "pad_value": "#", "tokenexp": "[a-z]+"}),
    ("TransposeMatMul", "f2,3,4 f2,4,5", {}),
    ("Trilu", "f2,3,3 l", {"upper": 1}),
    ("Unique", "f5", {"outputs": 3}),
]  # fmt: skip
_STANDARD: list[tuple[str, str, int, dict[str, Any]]] = [  # with the opset
    ("Affine", "f2,3", 8, {"alpha": 1.0, "beta": 1.0}),
    ("Crop", "f1,1,5,5", 8, {"border": [1, 1, 1, 1]}),
    ("ImageScaler", "f1,2,3,3", 8, {"scale": 1.0, "bias": [0.1, 0.2]}),
    ("ParametricSoftplus", "f2,3", 8, {"alpha": 1.0, "beta": 1.0}),
    ("Scale", "f2", 8, {"scale": 2.0}),
    ("ScaledTanh", "f2", 8, {"alpha": 1.0, "beta": 1.0}),
    ("DynamicSlice", "f3,4 l1=0 l1=2 l1=1", 8, {}),
    ("MaxRoiPool", "f1,2,6,6 f1,5", 18, {"pooled_shape": [2, 2]}),
    ("Multinomial", "f2,3", 21, {"sample_size": 5}),
    ("RandomNormalLike", "f2,3", 21, {}),
    ("RandomUniformLike", "f2,3", 21, {}),
    ("Scatter", "f3,4 l1,2 f1,2", 9, {"axis": 1}),
    ("Upsample", "f1,1,3,3 f4=2", 9, {}),
    ("Upsample", "f3,3 f2=2", 9, {"mode": "linear"}),
    ("GlobalLpPool", "f1,2,3,3", 21, {}),
    ("LpPool", "f1,2,4,4", 21, _POOL),
    ("SimplifiedLayerNormalization", "f2,3,4 f4", 21, {"axis": -1}),
    ("STFT", "f1,32,1 l=4 - l=8", 17, {}),
    ("STFT", "f1,32,1 l=4 f8 l=8", 17, {}),
    ("InstanceNormalization", "h1,2,3,3 h2 h2", 21, {}),
    ("ConvTranspose", "f1,2,5,5,5 f2,2,3,3,3 f2", 11, {}),
    ("Conv", "f1,2,5,5 f2,2,3,3 f2", 11, {}),
    ("ConvInteger", "u1,2,5,5 u2,2,3,3 u u", 10, {}),
    ("Div", "l3 l3", 14, {}),
    ("Mod", "i3 i3", 14, {}),
    ("Unique", "f3,4", 11, {"axis": 0}),
    ("QuantizeLinear", "f4,6 f4,3 u4,3", 21, {"axis": 1, "block_size": 2}),
    ("Attention", "f2,3,4,8 f2,3,6,8 f2,3,6,8", 23, {}),
    *((operator, f"f5,2,3 f1,{4 * gates},3 f1,{4 * gates},4", 14, _LSTM)
      for operator, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4))),
]  # fmt: skip
_CLASSIC: list[tuple[str, str, dict[str, Any]]] = [
    ("ArrayFeatureExtractor", "f2,3 l2", {}),
    ("Binarizer", "f2,3", {"threshold": 0.1}),
    ("CategoryMapper", "t2", {"cats_int64s": [1, 2], "cats_strings": ["a", "b"]}),
    ("CategoryMapper", "l2", {"cats_int64s": [1, 2], "cats_strings": ["a", "b"]}),
    ("FeatureVectorizer", "f2,3 f2,2", {"inputdimensions": [3, 2]}),
    ("FeatureVectorizer", "l2,3 l2,2", {"inputdimensions": [3, 2]}),
    ("Imputer", "f2,3", {"imputed_value_floats": [0.1] * 3, "replaced_value_float": 0.0}),
    ("LinearClassifier", "f2,3",
     {"coefficients": [0.1] * 9, "intercepts": [0.1] * 3, "classlabels_ints": [0, 1, 2],
      "outputs": 2}),
    ("LinearRegressor", "f2,3", {"coefficients": [0.1] * 6, "intercepts": [0.1] * 2, "targets": 2}),
    ("Normalizer", "f2,3", {"norm": "L2"}),
    ("OneHotEncoder", "l3", {"cats_int64s": [0, 1, 2]}),
    ("OneHotEncoder", "t3", {"cats_strings": ["a", "b"]}),
    ("Scaler", "f2,3", {"offset": [1.0] * 3, "scale": [1.0] * 3}),
    ("SVMClassifier", "f2,3", _SVM | {
        "classlabels_ints": [0, 1], "vectors_per_class": [1, 1], "outputs": 2}),
    ("SVMRegressor", "f2,3", _SVM | {"n_supports": 2}),
    ("TreeEnsembleClassifier", "f2,3", _TREE | {
        "class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 1],
        "class_weights": [1.0, 2.0], "classlabels_int64s": [0, 1], "outputs": 2}),
    ("TreeEnsembleRegressor", "f2,3", _TREE | {
        "n_targets": 1, "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0],
        "target_weights": [1.0, 2.0]}),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class OperatorGraph:
    """Single-operator ONNX model as bytes, with valid inputs by name."""

    name: str
    content: bytes
    feeds: Feeds


def catalog() -> Iterator[OperatorGraph]:
    """Yield the hand-written catalog's graphs, which ONNX's node tests lack."""
    for operator, inputs, attributes in _MICROSOFT:
        yield _graph(operator, inputs, MICROSOFT, 21, attributes)
    for operator, inputs, opset, attributes in _STANDARD:
        yield _graph(operator, inputs, "", opset, attributes)
    for operator, inputs, attributes in _CLASSIC:
        yield _graph(operator, inputs, ML, 21, attributes)


def _graph(
    operator: str, inputs: str, domain: str, opset: int, attributes: Mapping[str, Any]
) -> OperatorGraph:
    texts = inputs.split()
    values = [_value(at, text) for at, text in enumerate(texts)]
    names = [f"i{at}" if value is not None else "" for at, value in enumerate(values)]
    feeds, constants = {}, []
    for name, value, text in zip(names, values, texts, strict=True):
        if text[0].isupper():
            constants.append(numpy_helper.from_array(value, name))
        elif name:
            feeds[name] = value
    outputs = [f"o{at}" for at in range(attributes.get("outputs", 1))]
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, domain=domain)],
        operator,
        [_open_value(name, value) for name, value in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        constants,
    )
    graph.node[0].attribute.extend(  # `opset` cannot be an argument of make_node
        helper.make_attribute(name, value)
        for name, value in attributes.items()
        if name != "outputs"
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 3 if domain == ML else 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return OperatorGraph(f"{domain}:{operator} {inputs}", model.SerializeToString(), feeds)


def _value(position: int, text: str) -> Any:
    """Parse a catalog entry, e.g. "f2,3", to an array; "-" to None."""
    if text == "-":
        return None
    sizes, _, content = text[1:].partition("=")
    shape = [int(size) for size in sizes.split(",") if size]
    letter = text[0].lower()
    if letter == "t":
        return np.full(shape, "a b", object)
    if content or letter not in "fh":
        return np.full(shape, int(content or 1), TYPES[letter])
    drawn = np.random.default_rng(position).random(shape) + 0.1
    return np.asarray(drawn).astype(TYPES[letter])


def _open_value(name: str, value: Any) -> Any:
    """Declare a model input with an array's type, rank and dynamic sizes."""
    kind = TensorProto.STRING
    if value.dtype != object:
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, [f"{name}_{at}" for at in range(value.ndim)])


# --- node tests


def node_tests() -> Iterator[OperatorGraph]:
    """Yield ONNX node tests, also with other types and older opsets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases  # takes 10 s

        cases = collect_testcases(None)
    for case in cases:
        if "_expanded" in case.name:
            continue
        model, feeds = _opened(case.model), _feeds(case)
        yield OperatorGraph(case.name, model.SerializeToString(), feeds)
        yield from _retyped(case.name, model, feeds)
        yield from _older(case.name, model, feeds)


def _opened(source: Any) -> Any:
    model = onnx.ModelProto.FromString(source.SerializeToString())
    for given in model.graph.input:
        for at, dimension in enumerate(given.type.tensor_type.shape.dim):
            dimension.dim_param = f"{given.name}_{at}"
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.ClearField("type")
    return model


def _feeds(case: Any) -> Feeds:
    feeds = {}
    for given, content in zip(case.model.graph.input, case.data_sets[0][0], strict=False):
        value = content
        if isinstance(content, onnx.TensorProto):
            value = numpy_helper.to_array(content)
        if isinstance(value, np.ndarray | np.generic):
            value = np.asarray(value)
            feeds[given.name] = value.astype(object) if value.dtype.kind in "US" else value
    return {
        name: value
        for name, value in feeds.items()
        if value.dtype == object or value.size < ELEMENTS
    }


def _retyped(name: str, source: Any, feeds: Feeds) -> Iterator[OperatorGraph]:
    for kind in OTHER_TYPES:
        model = onnx.ModelProto.FromString(source.SerializeToString())
        changed = dict(feeds)
        for given in model.graph.input:
            if given.type.tensor_type.elem_type == TensorProto.FLOAT and given.name in feeds:
                given.type.tensor_type.elem_type = kind
                with np.errstate(all="ignore"):
                    changed[given.name] = feeds[given.name].astype(
                        helper.tensor_dtype_to_np_dtype(kind)
                    )
        if any(changed[key] is not feeds[key] for key in feeds):
            suffix = TensorProto.DataType.Name(kind)
            yield OperatorGraph(f"{name} {suffix}", model.SerializeToString(), changed)


def _older(name: str, source: Any, feeds: Feeds) -> Iterator[OperatorGraph]:
    operators = {(node.domain, node.op_type) for node in source.graph.node}
    if len(operators) > 1:
        return
    [(domain, operator)] = operators
    current = max(entry.version for entry in source.opset_import if entry.domain == domain)
    versions = {
        schema.since_version
        for schema in defs.get_all_schemas_with_history()
        if (schema.domain, schema.name) == (domain, operator) and schema.since_version < current
    }
    for version in sorted(versions):
        model = onnx.ModelProto.FromString(source.SerializeToString())
        for entry in model.opset_import:
            if entry.domain == domain:
                entry.version = max(version, 1 if domain else 7)
        model.ir_version = min(model.ir_version, 8)
        yield OperatorGraph(f"{name} opset {version}", model.SerializeToString(), feeds)
