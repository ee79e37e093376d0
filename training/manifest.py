"""What a model says about itself: the contract between training and the registry, carried inside model.onnx.

The registry validates the same fields on its side (schema 1). No secrets and no file paths belong in here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

KEY = "mayfly.manifest"  # in the model's metadata_props
LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "scikit-learn")


class Input(TypedDict):
    """`shape` has -1 where each request chooses the size."""

    name: str
    datatype: str
    shape: list[int]
    preprocessing: str
    columns: NotRequired[list[str]]  # of a table, in the order in which a caller sends them


class Output(TypedDict):
    """`labels` name the last dimension."""

    name: str
    datatype: str
    shape: list[int]
    kind: str  # "probabilities", "value", "ids", "scores", "logits", "embedding", "tensor"
    labels: NotRequired[list[str]]


class Data(TypedDict):
    source: str
    sha256: str
    split: dict[str, Any]  # seed, by ("row" or what a group is), rows of train, validation, test


class Primary(TypedDict):
    """The metric that decides."""

    metric: str
    higher_is_better: bool


class Lead(TypedDict):
    """The primary metric's distance to the best baseline: above zero is better, whatever its direction."""

    over: str
    by: float
    interval: list[float]


class Evaluation(TypedDict):
    """What training/evaluation/metrics.py knows beside the metrics: how sure they are, for whom they hold."""

    primary: Primary
    rows: int  # of the test part
    intervals: dict[str, list[float]]  # [low, high] by metric
    bootstrap: dict[str, Any]  # level, draws, seed, by ("row" or what a group is)
    lead: NotRequired[Lead]
    groups: NotRequired[dict[str, Any]]  # by, count, mean, worst, best
    classes: NotRequired[
        list[dict[str, Any]]
    ]  # label, rows, precision, recall, f1; the worst first
    calibration: NotRequired[
        dict[str, Any]
    ]  # expected_error, bins; temperature, and the error and loss before it


class Training(TypedDict):
    """Where and how the model was made; None where that is not known."""

    job: str | None
    image: str | None
    instance_type: str | None
    code_revision: str | None
    libraries: dict[str, str]
    device: str
    duration_s: float
    created: str


class Tolerance(TypedDict):
    """Runtimes agree when |a - b| <= atol + rtol * |b|."""

    rtol: float
    atol: float


class Sample(TypedDict):
    """An Open Inference Protocol request and the answer ONNX Runtime gave in training."""

    request: dict[str, Any]
    response: dict[str, Any]


class Manifest(TypedDict):
    schema: Literal[1]
    task: Literal["classification", "regression", "ranking", "generation", "embedding"]
    description: str
    inputs: list[Input]
    outputs: list[Output]
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    evaluation: NotRequired[Evaluation]
    compression: NotRequired[
        list[dict[str, Any]]
    ]  # the forms that were tried, and why each was taken or not
    data: Data
    hyperparameters: dict[str, Any]
    training: Training
    tolerance: Tolerance
    samples: list[Sample]


def dumps(manifest: Mapping[str, Any]) -> str:
    """As compact JSON; refuses NaN and infinities, which JSON cannot spell."""
    return json.dumps(manifest, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def libraries() -> dict[str, str]:
    """Installed versions of what shaped the model."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # optional in some environments, e.g. onnxscript
            continue
    return found


def code_revision(
    environ: Mapping[str, str] = os.environ, folder: Path = Path(__file__).parent
) -> str | None:
    """The commit this code is at: told by the submit step in MAYFLY_CODE_REVISION, or asked from git."""
    told = environ.get("MAYFLY_CODE_REVISION", "")
    if re.fullmatch(r"[0-9a-f]{40}(-dirty)?", told):
        return told
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("-dirty" if _git(folder, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here, e.g. in a container
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
