"""What an uploaded model may have: the one table, each entry tested at, below and above.

Real models are far below; crafted ones beyond it crash, hang or bloat the libraries that read them (measured on onnx
1.23.2 and onnxruntime 1.31.1; docs/decisions/0008-the-sandbox.md).
"""

NODES = 20_000  # in all graphs together; 200,000 take the runtime minutes
SUBGRAPH_DEPTH = 8
TENSORS = 256  # inputs, and outputs, of the model; 20,000 outputs take the runtime minutes
FAN = 4_096  # inputs, and outputs, of one node
ATTRIBUTES = 256  # of one node
RANK = 16
DIMENSION = 2**31
NAME = 512  # characters, all printable
INITIALIZERS = 50_000
CONSTANT_BYTES = 512 * 1024 * 1024  # one constant
CONSTANTS_BYTES = 8 * 1024 * 1024 * 1024  # all of them
METADATA_ENTRIES = 256
METADATA_BYTES = 8 * 1024 * 1024  # in all; the manifest with its samples is the largest entry
FIELDS = 5_000_000  # protobuf fields that are looked at, runs of numbers counted once
DIVISOR_ELEMENTS = 1_000_000  # of a constant that divides integers
OPSETS = range(7, 27)  # of the default domain: what the runtime implements
ML_OPSETS = range(1, 7)
IR_VERSIONS = range(3, 14)

# With a batch, or a sequence, of no elements these end the process (onnxruntime 1.31.1: SIGABRT).
NEVER_EMPTY = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM"})

# Operators of com.microsoft that quantisation tools, transformer optimisers and skl2onnx (Tokenizer) write into files.
MICROSOFT = frozenset({
    "Attention", "BiasGelu", "BiasSoftmax", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
    "EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "Gelu",
    "GroupQueryAttention", "MatMulBnb4", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits",
    "MultiHeadAttention", "NhwcMaxPool", "Pad", "QAttention", "QEmbedLayerNormalization", "QGemm", "QLinearAdd",
    "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
    "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu",
    "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Tokenizer", "Trilu",
})  # fmt: skip
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # whose operators are all allowed

# TensorProto.DataType -> bits an element; strings have no fixed size
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
STRING = 8
