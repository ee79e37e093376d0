"""Model manifest: schema of the JSON metadata that training stores in model.onnx.

The manifest is the contract between training and the registry, which validates the same fields
(schema 1) on its side. It must not contain secrets or file paths.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, TypedDict

KEY = "mayfly.manifest"  # key in the ONNX file's metadata_props
LIBRARIES = ("torch", "keras", "onnx", "onnxruntime", "onnxscript", "numpy", "scikit-learn")


class Input(TypedDict):
    """Name, datatype, shape and preprocessing of a model input.

    -1 in `shape` is a dimension whose size each request chooses.
    """

    name: str
    datatype: str
    shape: list[int]
    preprocessing: str
    columns: NotRequired[list[str]]  # column names of a table, in the caller's order


class Output(TypedDict):
    """Name, datatype, shape and kind of a model output.

    `labels` name the entries of the last dimension.
    """

    name: str
    datatype: str
    shape: list[int]
    # "probabilities", "logits", "label", "value", "ids", "scores", "embedding" or "tensor"
    kind: str
    labels: NotRequired[list[str]]


class Data(TypedDict):
    """Source, SHA-256 digest and train/validation/test split of the training data."""

    source: str
    sha256: str
    split: dict[str, Any]  # seed; by: "row" or the group column; rows of each part


class Primary(TypedDict):
    """Metric by which trained models are compared, and its better direction."""

    metric: str
    higher_is_better: bool


class Lead(TypedDict):
    """Lead of a model's primary metric over the best baseline, with interval.

    A positive lead is better.
    """

    over: str
    by: float
    interval: list[float]


class Evaluation(TypedDict):
    """Detailed evaluation of a model: confidence intervals, groups, classes, calibration.

    Computed in training/evaluation/.
    """

    primary: Primary
    rows: int  # number of rows in the test part
    intervals: dict[str, list[float]]  # [low, high] by metric
    bootstrap: dict[str, Any]  # level, draws, seed; by: "row" or the group column
    lead: NotRequired[Lead]
    groups: NotRequired[dict[str, Any]]  # by, count, mean, worst, best
    # Each class: label, rows, precision, recall, f1; the worst first.
    classes: NotRequired[list[dict[str, Any]]]
    # expected_error, bins, temperature; error and loss before the temperature.
    calibration: NotRequired[dict[str, Any]]
    # learning, confusion, residuals: numbers behind the report's pictures, as figures.py has them
    figures: NotRequired[dict[str, Any]]


class Training(TypedDict):
    """Origin of a model: training job, machine, code commit, library versions.

    Unknown values are None.
    """

    job: str | None
    image: str | None
    instance_type: str | None
    code_revision: str | None
    libraries: dict[str, str]
    device: str
    duration_s: float
    created: str


class Tolerance(TypedDict):
    """Relative and absolute difference allowed between outputs of two runtimes.

    Equal are a and b if |a - b| <= atol + rtol * |b|.
    """

    rtol: float
    atol: float


class Sample(TypedDict):
    """Sample request in the Open Inference Protocol, with its expected response."""

    request: dict[str, Any]
    response: dict[str, Any]


class Feature(TypedDict, total=False):
    """Histogram of an input or output, or of one of its columns.

    `of` says what is counted: "value" or, over a row of many values, its "mean"; "category";
    "length" of a text; "largest" score of a row; predicted "label". Numbers have `edges` and
    len(edges) + 1 `counts`, others `values` and as many counts.
    """

    name: Required[str]  # name of the input or output
    feature: str  # column name, or its number
    of: Required[str]
    edges: list[float]
    values: list[str]
    counts: Required[list[int]]
    missing: Required[int]  # rows without a value


class Features(TypedDict):
    """Histograms of the rows of a part: "train", "test", "data"."""

    part: str
    rows: int
    features: list[Feature]
    left_out: NotRequired[int]  # histograms beyond the limit of size


class Distributions(TypedDict):
    """Distributions of inputs and outputs at training time, the reference for drift."""

    inputs: Features
    outputs: Features
    priors: NotRequired[dict[str, float]]  # share of training rows by class


class Manifest(TypedDict):
    """Complete model manifest of schema 1: signature, metrics, data, origin, samples."""

    schema: Literal[1]
    task: Literal[
        "classification", "multilabel", "segmentation", "regression", "ranking", "generation",
        "embedding",
    ]  # fmt: skip
    description: str
    inputs: list[Input]
    outputs: list[Output]
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    evaluation: NotRequired[Evaluation]
    compression: NotRequired[list[dict[str, Any]]]  # candidates, with the reason for each verdict
    data: Data
    distributions: NotRequired[Distributions]
    hyperparameters: dict[str, Any]
    training: Training
    tolerance: Tolerance
    samples: list[Sample]


def dumps(manifest: Mapping[str, Any]) -> str:
    """Serialize a model manifest as compact JSON text.

    Raises:
        ValueError: it contains NaN or an infinity.
    """
    return json.dumps(manifest, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def libraries() -> dict[str, str]:
    """Return the installed versions of torch, onnx and other training libraries."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # optional in some environments, e.g. onnxscript
            continue
    return versions


def code_revision(
    environ: Mapping[str, str] = os.environ, folder: Path = Path(__file__).parent
) -> str | None:
    """Return the Git commit of the training code, or None if unknown.

    From MAYFLY_CODE_REVISION, which job submission sets, or else from git; "-dirty" if changed.
    """
    revision = environ.get("MAYFLY_CODE_REVISION", "")
    if re.fullmatch(r"[0-9a-f]{40}(-dirty)?", revision):
        return revision
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
