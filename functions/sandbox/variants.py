"""Make smaller variants of a model, int8 and fp16, and judge them.

A manifest asks for them. They are approximations, so samples decide whether they are served.
onnxruntime's own tools make them and need the package `onnx`; without it there are no variants.
"""

import importlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from functions.core.errors import shown

LARGE_BYTES = 1024**3  # protobuf ends at 2 GB; larger models get a separate file of weights
WEIGHTS_SUFFIX = ".data"  # the suffix that onnxruntime.quantization uses
# Convolutions are left out: the runtime's integer ones are slow and inexact.
QUANTIZED = ("MatMul", "Gemm", "Attention", "LSTM")

# Variant / model: a variant is used if it is smaller and hardly slower, or faster and no larger.
# training/compression has the same four numbers, because it never imports functions.
SMALLER, FASTER, AS_LARGE, AS_SLOW = 0.9, 0.9, 1.0, 1.25

_TOOLS = {"int8": "onnxruntime.quantization", "fp16": "onnxruntime.transformers.float16"}


class NotMade(Exception):
    """Error: a variant could not be made; the message says why."""


def make(kind: str, model: Path, size_bytes: int, folder: Path) -> tuple[str, ...]:
    """Write the int8 or fp16 variant of a model; return file names.

    Raises:
        NotMade: the kind is unknown, its tools are missing, or they fail on this model.
    """
    if kind not in _TOOLS:
        raise NotMade(f"there is no variant {shown(kind)}, only {' and '.join(_TOOLS)}")
    try:
        onnx = importlib.import_module("onnx")
        tool = importlib.import_module(_TOOLS[kind])
    except ImportError as error:
        raise NotMade("the package onnx is not installed here, which makes it") from error
    folder.mkdir()
    target = folder / "model.onnx"
    with _quiet_tools(folder):
        try:
            if kind == "int8":
                _int8(tool, model, target, size_bytes)
            else:
                _fp16(tool, onnx, model, target, size_bytes)
        except MemoryError as error:
            raise NotMade("there was no memory to make it") from error
        except Exception as error:  # the tools raise anything; the model itself may be fine
            raise NotMade(f"its tool failed on this model ({type(error).__name__})") from error
    names = (target.name, target.name + WEIGHTS_SUFFIX)
    return tuple(name for name in names if (folder / name).exists())


def improves(sizes: tuple[int, int], latencies: tuple[float, float]) -> bool:
    """Return True if a variant is enough smaller or faster to serve.

    Sizes and latencies are (model, variant).

    >>> improves((100, 50), (1.0, 1.2)), improves((100, 101), (1.0, 0.5))
    (True, False)
    """
    size = sizes[1] / sizes[0]
    latency = latencies[1] / latencies[0] if latencies[0] else 1.0
    return (size <= SMALLER and latency <= AS_SLOW) or (latency <= FASTER and size <= AS_LARGE)


@contextmanager
def _quiet_tools(folder: Path) -> Iterator[None]:
    """Keep conversion tools' temporary files in `folder` and suppress their warnings."""
    tempfile.tempdir = str(folder)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        tempfile.tempdir = None


def _int8(tool: Any, model: Path, target: Path, size_bytes: int) -> None:
    """Quantize a model's weights to 7 bits, activations at run time.

    7 and not 8 bits: on x86 without VNNI, sums of products of 8 bits saturate.
    """
    tool.quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(QUANTIZED),
        reduce_range=True,
        weight_type=tool.QuantType.QInt8,
        use_external_data_format=size_bytes > LARGE_BYTES,
        extra_options={"MatMulConstBOnly": True},
    )


def _fp16(tool: Any, onnx: Any, model: Path, target: Path, size_bytes: int) -> None:
    """Convert a model to float16; its inputs and outputs keep their types."""
    converted = tool.convert_float_to_float16(onnx.load(model), keep_io_types=True)
    onnx.save(
        converted,
        target,
        save_as_external_data=size_bytes > LARGE_BYTES,
        location=target.name + WEIGHTS_SUFFIX,
    )
