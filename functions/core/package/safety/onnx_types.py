"""Type inference for ONNX nodes: output element types from input types.

Types are numbers of TensorProto.DataType, and 0 is unknown. A sequence or an optional value
counts as its element type. A test compares the table with the schemas of ONNX Runtime.
"""

from collections.abc import Mapping, Sequence

from functions.core.package.onnx_graph import INT32, INT64, Node

FLOAT, UINT8, STRING, BOOL = 1, 2, 8, 9

# A rule for each output, the last for all further ones: the position of the input that has its
# type, or a type below 0. Most operators pass the type of their first input on.
_AS_FIRST = (0,)
_RULES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual",
            "OptionalHasElement", "Or", "RegexFullMatch", "Xor",
        ),
        (-BOOL,),
    ),
    **dict.fromkeys(
        ("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "SequenceLength", "Shape", "Size"),
        (-INT64,),
    ),
    **dict.fromkeys(
        (
            "BlackmanWindow", "FeatureVectorizer", "HammingWindow", "HannWindow", "LinearRegressor",
            "MelWeightMatrix", "Normalizer", "OneHotEncoder", "RandomNormal", "RandomUniform",
            "SVMRegressor", "Scaler", "SequenceEmpty", "TfIdfVectorizer", "TreeEnsembleRegressor",
        ),
        (-FLOAT,),
    ),
    **dict.fromkeys(
        (
            "ConvInteger", "DynamicTimeWarping", "MatMulInteger", "MatMulInteger16", "Multinomial",
            "MurmurHash3",
        ),
        (-INT32,),
    ),
    **dict.fromkeys(
        ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"),
        (-INT64, -FLOAT),  # the label may also be a string, with which nothing is computed
    ),
    **dict.fromkeys(
        (
            "CastLike", "DequantizeLinear", "NGramRepeatBlock", "QLinearConcat", "QLinearWhere",
            "Where",
        ),
        (1,),
    ),
    **dict.fromkeys(
        (
            "GatherBlockQuantized", "MatMulIntegerToFloat", "OneHot", "QAttention",
            "QuantizeLinear",
        ),
        (2,),
    ),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (7,)),
    **dict.fromkeys(("MaxPool", "TopK", "Unique"), (0, -INT64)),
    "Attention": (0, 0, 2, 0),
    "Dropout": (0, -BOOL),
    "DynamicQuantizeLinear": (-UINT8, -FLOAT, -UINT8),
    "EmbedLayerNormalization": (2, -INT32, 2),
    "GroupQueryAttention": (0, 3, 3, 0),
    "QEmbedLayerNormalization": (8, -INT32),
    "QLinearReduceMean": (0,),
    "StringSplit": (-STRING, -INT64),
}  # fmt: skip
# Operators of which the attribute, if it is there, names the type of the output.
_BY_ATTRIBUTE = {
    **dict.fromkeys(("BitCast", "Cast"), "to"),
    **dict.fromkeys(
        (
            "Bernoulli", "EyeLike", "Multinomial", "RandomNormal", "RandomNormalLike",
            "RandomUniform", "RandomUniformLike", "SequenceEmpty",
        ),
        "dtype",
    ),
    **dict.fromkeys(
        ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), "output_datatype"
    ),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), "output_dtype"),
}  # fmt: skip
# Operators whose output's type depends on more than that.
_UNKNOWN = {
    "CastMap", "CategoryMapper", "DictVectorizer", "ImageDecoder", "LabelEncoder", "QGemm",
    "ZipMap",
}  # fmt: skip
# Operators with subgraphs -> position of the subgraph's output that is their own first output.
_FIRST_OF_BODY = {"If": 0, "Loop": 1, "Scan": 0, "SequenceMap": 0}


def output_types(
    node: Node, types: Mapping[str, int], bodies: Sequence[Sequence[int]]
) -> list[int]:
    """Infer the element type of each node output, 0 if unknown.

    `types` has the types of values by name; `bodies` those of the outputs of each subgraph.
    """
    return [_output_type(node, at, types, bodies) for at in range(len(node.outputs))]


def body_inputs(node: Node, inputs: int) -> list[str]:
    """Return the names of outer values passed to an ONNX subgraph's inputs.

    "" stands for an input without an outer value. `inputs` is the subgraph's number of inputs.
    """
    match node.op:
        case "Loop":  # iteration, condition, then the carried values
            return ["", *node.inputs[1:]]
        case "Scan" if inputs == len(node.inputs) - 1:  # opset 8: the first is the lengths
            return node.inputs[1:]
        case "Scan" | "SequenceMap":
            return node.inputs
        case _:
            return []


def _output_type(
    node: Node, at: int, types: Mapping[str, int], bodies: Sequence[Sequence[int]]
) -> int:
    if node.op in _FIRST_OF_BODY:
        at += _FIRST_OF_BODY[node.op]
        return next((body[at] for body in bodies if at < len(body) and body[at]), 0)
    if node.op in _UNKNOWN:
        return 0
    if node.op == "Constant":
        return _constant_type(node)
    if node.op == "ConstantOfShape":
        return node.value.datatype if node.value else FLOAT
    named = node.attributes.get(_BY_ATTRIBUTE.get(node.op, ""), 0)
    if named:
        return int(named)
    rules = _RULES.get(node.op, _AS_FIRST)
    rule = rules[min(at, len(rules) - 1)]
    if rule < 0:
        return -rule
    return types.get(node.inputs[rule], 0) if rule < len(node.inputs) else 0


def _constant_type(node: Node) -> int:
    if node.value:
        return node.value.datatype
    names = node.attributes.keys()
    if names & {"value_float", "value_floats"}:
        return FLOAT
    return STRING if names & {"value_string", "value_strings"} else 0
