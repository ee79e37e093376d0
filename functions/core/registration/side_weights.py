"""Matching of ONNX models to weight files in the same S3 folder.

`torch.onnx.export` writes `model.onnx` and `model.onnx.data`. Copied to S3, the small model arrives
before its weights. Why both have to be uploaded once: docs/decisions/0029-weights-beside-a-model.md
"""

from collections.abc import Sequence
from typing import TypeVar

from functions.core.errors import InvalidModel, shown
from functions.core.names import is_onnx_file

# Receives of a model's event until it is rejected for missing weights: twice the queue's
# visibility timeout of 18 minutes later. Weights of torch and Optimum announce themselves earlier.
RECEIVES = 3
ENDINGS = (".data", "_data")  # torch: model.onnx.data; Hugging Face Optimum: model.onnx_data
CURE = "or export one file: torch.onnx.export(..., external_data=False)"

T = TypeVar("T")


class WeightsMissing(InvalidModel):
    """Error: a model's weight file is not in its S3 folder."""

    code = "WEIGHTS_MISSING"

    def __init__(self, path: str) -> None:
        super().__init__(
            f"the model's weights {shown(path)} are not beside it: upload that file to the same "
            f"folder, or model.tar.gz with both, {CURE}"
        )


def model_key(key: str) -> str | None:
    """Return the S3 key of the model for a weight file's key.

    >>> model_key("models/a/model.onnx.data"), model_key("models/a/notes.data")
    ('models/a/model.onnx', None)
    """
    for ending in ENDINGS:
        if key.endswith(ending) and is_onnx_file(key.removesuffix(ending)):
            return key.removesuffix(ending)
    return None


def only_version(path: str, model: Sequence[T | None], weights: Sequence[T | None]) -> T | None:
    """Return the weights file's single S3 version, or None if absent.

    `model` and `weights` list the versions of both objects; None stands for a deletion.

    Raises:
        InvalidModel: one of them was uploaded more than once; the code is `WEIGHTS_AMBIGUOUS`.
    """
    if len(model) > 1 or len(weights) > 1:
        raise InvalidModel(
            f"the model or its weights {shown(path)} were uploaded to this folder more than once, "
            f"so which of them belong together is unknown: upload both to a new folder, {CURE}",
            code="WEIGHTS_AMBIGUOUS",
        )
    return weights[0] if weights else None


def replaced(path: str) -> InvalidModel:
    """Return the WEIGHTS_AMBIGUOUS error for a weights file uploaded again."""
    return InvalidModel(
        f"the weights {shown(path)} were uploaded again, and the version made of this folder keeps "
        f"the first ones: upload model and weights to a new folder, {CURE}",
        code="WEIGHTS_AMBIGUOUS",
    )
