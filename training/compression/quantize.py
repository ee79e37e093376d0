"""Converters of ONNX graphs to int8, int4 and float16 weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from training.errors import CompressionFailed
from training.export import graph_editing, graphs
from training.export.graphs import Feeds

Convert = Callable[[onnx.ModelProto, Sequence[Feeds]], onnx.ModelProto]

BLOCK = 32  # int4 weights that share a scale
# Operators to quantize. Convolutions are left out: ONNX Runtime's integer ones are 9 times slower
# than float.
OPERATORS = ("MatMul", "Gemm", "Attention", "LSTM")


def dynamic_int8(graph: onnx.ModelProto, _: Sequence[Feeds] = ()) -> onnx.ModelProto:
    """Quantize a graph to int8, with activation ranges computed at run time.

    Matrix weights get 7 of the 8 bits: on x86 processors without VNNI, sums of 8-bit weights and
    activations would saturate.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _files(graph) as (source, target):
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(OPERATORS),
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return _changed(graph, onnx.load(target))


def static_int8(graph: onnx.ModelProto, calibration: Sequence[Feeds]) -> onnx.ModelProto:
    """Quantize a graph to int8, with activation ranges measured on calibration batches.

    Weights get 7 bits and a scale by channel, activations 8 bits. The range of each activation is
    measured on the `calibration` batches.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([graphs.with_empty_inputs(graph, batch) for batch in calibration])

        def get_next(self) -> Feeds | None:
            return next(self.batches, None)

    with _files(graph) as (source, target):
        prepared = source.with_name("prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _changed(graph, onnx.load(target))


def int4(graph: onnx.ModelProto, _: Sequence[Feeds] = ()) -> onnx.ModelProto:
    """Quantize a graph's matrix weights to 4 bits, 32 weights a scale.

    They are computed in int8 (accuracy level 4); float would be 6 times slower.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    matrices = ONNXModel(model)
    matrices.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        matrices.model, block_size=BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    return _changed(graph, quantizer.model.model)


def fp16(graph: onnx.ModelProto, _: Sequence[Feeds] = ()) -> onnx.ModelProto:
    """Convert an ONNX graph to float16; inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    return _changed(graph, convert_float_to_float16(model, keep_io_types=True))


CONVERTERS: Mapping[str, Convert] = {
    "int8": dynamic_int8,
    "int8-static": static_int8,
    "int4": int4,
    "fp16": fp16,
}


def _changed(before: onnx.ModelProto, after: onnx.ModelProto) -> onnx.ModelProto:
    """Clean a converted graph; raise if the conversion changed no operator.

    Raises:
        CompressionFailed: the operators are the same as before.
    """
    model = graph_editing.clean(after)
    operators = [
        sorted((node.domain, node.op_type) for node in graph.graph.node)
        for graph in (before, model)
    ]
    if operators[0] == operators[1]:
        raise CompressionFailed("the model has no weights of that kind")
    return model


@contextlib.contextmanager
def _files(graph: onnx.ModelProto) -> Iterator[tuple[Path, Path]]:
    """Write a graph to a temporary file; yield input and output path."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.onnx"
        source.write_bytes(graph.SerializeToString())
        yield source, Path(name) / "target.onnx"
