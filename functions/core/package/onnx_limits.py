"""Limits on an uploaded ONNX model's structure, and its allowed operators.

To allow an operator of com.microsoft, add its name to MICROSOFT below, and a model that uses it to
ZOO in tests/integration/functions/sandbox/test_sandbox_build.py, which compiles and runs it.
Operators of the standard domains are all allowed. Each limit is tested below, at and above its
value in tests/unit/functions/package/test_onnx_limits.py.

Real models are far below these numbers. Crafted ones above them crash, hang or bloat the libraries
that parse them (onnx 1.23.2 and onnxruntime 1.31.1, docs/decisions/0008-the-sandbox.md).

The size of an upload is not limited here but by free temporary storage, which the template's
parameter EphemeralStorage sets: see `check_room` in core/registration/sandbox_protocol.py.
"""

NODES = 20_000  # in all graphs together; onnxruntime takes minutes for 200,000
SUBGRAPH_DEPTH = 8
TENSORS = 256  # inputs, and outputs, of a graph; onnxruntime takes minutes for 20,000 outputs
FAN = 4_096  # inputs, and outputs, of one node
ATTRIBUTES = 256  # per node
RANK = 16
DIMENSION = 2**31
NAME = 512  # characters, all printable
INITIALIZERS = 50_000
CONSTANT_BYTES = 512 * 1024 * 1024  # size of one constant
CONSTANTS_BYTES = 8 * 1024 * 1024 * 1024  # size of all constants together
METADATA_ENTRIES = 256
METADATA_BYTES = 8 * 1024 * 1024  # size of all entries; a manifest with samples is the largest
FIELDS = 5_000_000  # protobuf fields visited; a run of repeated numbers counts once
DIVISOR_ELEMENTS = 1_000_000  # elements of a constant that divides integers
OPSETS = range(7, 27)  # default domain: the versions that onnxruntime implements
ML_OPSETS = range(1, 7)
IR_VERSIONS = range(3, 14)

# A batch or a sequence without elements makes these abort the process (onnxruntime 1.31.1).
NEVER_EMPTY = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM"})

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # every operator of these is allowed
# Operators of com.microsoft that quantization tools, transformer optimizers and skl2onnx write.
MICROSOFT = frozenset({
    "Attention", "BiasGelu", "BiasSoftmax", "DequantizeLinear", "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm",
    "FusedMatMul", "GatherBlockQuantized", "Gelu", "GroupQueryAttention", "MatMulBnb4",
    "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "NhwcMaxPool",
    "Pad", "QAttention", "QEmbedLayerNormalization", "QGemm", "QLinearAdd", "QLinearAveragePool",
    "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
    "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear",
    "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "Tokenizer", "Trilu",
})  # fmt: skip

# TensorProto.DataType -> bits per element; strings have no fixed size
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64,
    15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
STRING = 8


def is_allowed(domain: str, operator: str) -> bool:
    """Return True if uploaded models may use ONNX `operator` of `domain`.

    >>> is_allowed("", "Conv"), is_allowed("com.microsoft", "Gelu"), is_allowed("my.domain", "Op")
    (True, True, False)
    """
    return domain in DOMAINS or (domain == "com.microsoft" and operator in MICROSOFT)
