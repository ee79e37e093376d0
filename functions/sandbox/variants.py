"""Smaller forms of a model that a manifest may ask for: approximations, so samples decide whether they are served.

They are made by onnxruntime's own tools, which need the package `onnx`. Where it is not installed, nothing is made.
"""

import importlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from functions.core.errors import shown

LARGE_BYTES = (
    1024 * 1024 * 1024
)  # protobuf ends at 2 GB; larger models keep their weights in a file of their own
WEIGHTS_SUFFIX = ".data"  # onnxruntime.quantization calls it so
# Of integer convolutions the runtime has slow and inexact ones only; everything else here gains on every processor.
QUANTISED = ("MatMul", "Gemm", "Attention", "LSTM")


class NotMade(Exception):
    """When a variant does not come to be; the text says why."""


def make(kind: str, model: Path, size_bytes: int, folder: Path) -> tuple[str, ...]:
    """Write the variant `kind` ("int8", "fp16") of `model` into `folder`. Returns the names of its files.

    Raises:
        NotMade: it is unknown, its tools are missing, or they fail on this model.
    """
    if kind not in _MAKERS:
        raise NotMade(f"there is no variant {shown(kind)}, only {' and '.join(_MAKERS)}")
    try:
        onnx = importlib.import_module("onnx")
        tool = importlib.import_module(_MAKERS[kind])
    except ImportError as error:
        raise NotMade("the package onnx is not installed here, which makes it") from error
    folder.mkdir()
    target = folder / "model.onnx"
    tempfile.tempdir = str(folder)  # the tools have temporary files
    logging.disable(logging.WARNING)  # and advice
    try:
        if kind == "int8":
            _int8(tool, model, target, size_bytes)
        else:
            _fp16(tool, onnx, model, target, size_bytes)
    except MemoryError as error:
        raise NotMade("there was no memory to make it") from error
    except (
        Exception
    ) as error:  # the tools raise anything; the model itself is none the worse for it
        raise NotMade(f"its tool failed on this model ({type(error).__name__})") from error
    finally:
        logging.disable(logging.NOTSET)
        tempfile.tempdir = None
    return tuple(
        name for name in (target.name, target.name + WEIGHTS_SUFFIX) if (folder / name).exists()
    )


_MAKERS = {"int8": "onnxruntime.quantization", "fp16": "onnxruntime.transformers.float16"}


def _int8(tool: Any, model: Path, target: Path, size_bytes: int) -> None:
    """Weights of 8 bits, or rather of 7: without VNNI, sums of 8 saturate on x86. Activations: at run time."""
    tool.quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(QUANTISED),
        reduce_range=True,
        weight_type=tool.QuantType.QInt8,
        use_external_data_format=size_bytes > LARGE_BYTES,
        extra_options={"MatMulConstBOnly": True},
    )


def _fp16(tool: Any, onnx: Any, model: Path, target: Path, size_bytes: int) -> None:
    """Half the file; callers go on sending and reading what they did."""
    converted = tool.convert_float_to_float16(onnx.load(model), keep_io_types=True)
    onnx.save(
        converted,
        target,
        save_as_external_data=size_bytes > LARGE_BYTES,
        location=target.name + WEIGHTS_SUFFIX,
    )
