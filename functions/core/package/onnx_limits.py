"""Limits on an uploaded ONNX model's structure, and its allowed operators.

To allow an operator of com.microsoft, move its name from NOT_SERVED to MICROSOFT below, and add a
model that uses it to ZOO in tests/integration/functions/sandbox/test_sandbox_build.py, which
compiles and runs it. Operators of the standard domains are all allowed. Each limit is tested below,
at and above its value in tests/unit/functions/package/test_onnx_limits.py.

Real models are far below these numbers. Crafted ones above them crash, hang or bloat the libraries
that parse them (onnx 1.23.2 and onnxruntime 1.31.1, docs/decisions/0008-the-sandbox.md).

The size of an upload is not limited here but by free temporary storage, which the template's
parameter EphemeralStorage sets: see `check_room` in core/registration/sandbox_protocol.py. The size
of its constants is limited by the memory of the function that serves it, InferMemory.
"""

NODES = 20_000  # in all graphs together; onnxruntime takes minutes for 200,000
SUBGRAPH_DEPTH = 8
# Inputs, and outputs, of a graph; onnxruntime takes 0.3 s for 1,024, minutes for 20,000 outputs.
TENSORS = 1024
FAN = 4_096  # inputs, and outputs, of one node
ATTRIBUTES = 256  # per node
RANK = 16
DIMENSION = 2**31
NAME = 512  # characters, all printable; of inputs, outputs, operators, metadata
INITIALIZERS = 50_000
CONSTANTS_BYTES = 10_240 * 1024 * 1024  # size of all together: memory of the largest function
METADATA_ENTRIES = 256
METADATA_BYTES = 8 * 1024 * 1024  # size of all entries; a manifest with samples is the largest
FIELDS = 5_000_000  # protobuf fields visited; a run of repeated numbers or texts counts once
DIVISOR_ELEMENTS = 1_000_000  # elements of a constant that divides integers
OPSETS = range(1, 27)  # default domain: the versions of which onnxruntime implements operators
ML_OPSETS = range(6)
IR_VERSIONS = range(1, 14)

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # every operator of these is allowed
# Operators of com.microsoft that quantization tools, transformer optimizers and skl2onnx write, and
# that onnxruntime implements on a CPU.
MICROSOFT = frozenset({
    "Attention", "BiasGelu", "CDist", "DequantizeLinear", "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul", "EmbedLayerNormalization", "ExpandDims", "FastGelu", "FusedConv",
    "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "GatherND", "Gelu", "GroupQueryAttention",
    "MatMulBnb4", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention",
    "MurmurHash3", "NhwcMaxPool", "Pad", "QAttention", "QEmbedLayerNormalization", "QGemm",
    "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool",
    "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere",
    "QuantizeLinear", "QuickGelu", "Range", "RotaryEmbedding", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Tokenizer", "TransposeMatMul", "Trilu", "Unique",
})  # fmt: skip

# The others that onnxruntime implements on a CPU, with the reason why they are not served.
_GENERATION = "it generates text inside one request, for as long as the request's values say"
_GENAI = "only onnxruntime-genai writes it, and its safety with hostile values is not known"
_UNWRITTEN = "no exporter is known to write it, nor is its safety with hostile values"
NOT_SERVED = {
    "ConvTransposeWithDynamicPads": "a request would choose the padding that it trusts",
    "CropAndResize": "it reads outside of its input at an index that a request chooses",
    "GridSample": "since opset 16 it is an operator of ai.onnx",
    "Inverse": "it ends the process on a matrix that is not square",
    "MoE": "it ends the process on an input without columns",
    "NGramRepeatBlock": "it writes outside of its output at a negative token",
    "QMoE": "it ends the process on an input without columns",
    "SparseToDenseMatMul": "its input is a sparse tensor",
    **dict.fromkeys(("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"), _GENERATION),
    **dict.fromkeys(
        (
            "CausalConvWithState", "DecoderMaskedMultiHeadAttention", "LinearAttention",
            "LinearAttentionGate", "MRotaryEmbedding", "SparseAttention",
        ),
        _GENAI,
    ),
    **dict.fromkeys(
        (
            "AttnLSTM", "BifurcationDetector", "BranchwiseRMSNorm", "DynamicTimeWarping",
            "EngramGate", "GatedAdd", "GatedRMSNorm", "HyperConnectionPostMix",
            "HyperConnectionPreMix", "MatMulFpQ4", "MaxpoolWithMask", "NGramHashMapping",
            "SampleOp", "ScaledSiLU", "UnfoldTensor", "VarlenNGramHashMapping",
            "WordConvEmbedding",
        ),
        _UNWRITTEN,
    ),
}  # fmt: skip

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


def refusal(domain: str, operator: str) -> str:
    """Return the reason why an ONNX operator is not allowed."""
    if domain == "com.microsoft" and operator in NOT_SERVED:
        return NOT_SERVED[operator]
    return "it is no standard one"
