"""JSON documents about versions: rows, whole cards, differences."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from functions.core.catalog.summaries import ModelSummary
from functions.core.registry.version import Blob, State, Version
from functions.manage.documents.base import NextCursor, ReplyDocument, RequestDocument
from functions.manage.documents.fields import Note

JsonObject = dict[str, Any]


class Remark(RequestDocument):
    """Request with a person's remark."""

    note: Note = ""


class SetNote(RequestDocument):
    """Request to replace the note of a version."""

    note: Note


class ReasonDocument(ReplyDocument):
    """Reason why a version is rejected or waits."""

    code: str
    message: str


class ApprovalDocument(ReplyDocument):
    """Decision of a person about a version."""

    decision: str = Field(description="approve or reject.")
    by: str
    at: str
    note: str


class BlobDocument(ReplyDocument):
    """Stored file of a version."""

    name: str
    sha256: str
    size_bytes: int


class SourceDocument(ReplyDocument):
    """Uploaded object that a version is made from."""

    bucket: str
    key: str
    object_version: str


class PrimaryDocument(ReplyDocument):
    """Metric by which versions are compared, beside the best baseline."""

    metric: str
    value: float
    higher_is_better: bool
    low: float | None = Field(description="Low end of the confidence interval.")
    high: float | None
    baseline: float | None = Field(description="Same metric of the best model without training.")


class VersionRow(ReplyDocument):
    """Version as lists show it."""

    version: int
    state: State
    reason: ReasonDocument | None
    created_at: str
    finished_at: str | None
    size_bytes: int
    memory_mb: int = Field(description="Memory that serving it needs, 0 if unknown.")
    task: str | None
    metrics: JsonObject
    primary: PrimaryDocument | None = Field(description="Null if the package names none.")
    latency_ms: float | None = Field(description="One row's time, measured at registration.")
    damaged: str | None
    approval: ApprovalDocument | None
    note: str


class VersionPage(ReplyDocument):
    """Page of versions, newest first."""

    versions: list[VersionRow]
    next_cursor: NextCursor


class VersionDocument(VersionRow):
    """Whole card of a version."""

    model: str
    aliases: list[str] | None = Field(description="Aliases that point at it.")
    description: str | None
    signature: JsonObject | None = Field(
        description="Inputs and outputs; columns and preprocessing as the package says."
    )
    language: JsonObject | None = Field(
        description="Of a language model: kind (decoder or encoder), context and vocabulary in "
        "tokens, prefill_rate in tokens a second; of a decoder also chat (it has a template), "
        "defaults, decode_rate; of an encoder dimensions, pooling, normalised, reranker."
    )
    baselines: JsonObject = Field(description="Metrics of models that need no training.")
    evaluation: JsonObject = Field(description="Intervals, groups and calibration of the metrics.")
    data: JsonObject
    hyperparameters: JsonObject
    training: JsonObject = Field(description="Training job, machine, code and libraries.")
    compression: list[Any]
    graph: JsonObject = Field(description="Opset and producer of the ONNX file.")
    plan: JsonObject = Field(description="How infer loads the model.")
    measured: JsonObject = Field(description="Load time and latency, measured at registration.")
    notes: list[str] = Field(description="Choices of the registration, each with its reason.")
    ignored: list[str] = Field(description="Members of the package that were not read.")
    files: list[BlobDocument]
    assets: list[BlobDocument] = Field(description="Tokenizer and other files beside the model.")
    manifest: BlobDocument | None
    sample: BlobDocument | None = Field(description="Example request with its reply.")
    source: SourceDocument
    attempts: int
    uploaded_at: str | None


class DiffDocument(ReplyDocument):
    """Differences of two versions; equal parts are left out."""

    model: str
    from_version: int
    to_version: int
    differences: JsonObject = Field(
        description="Parts that differ, with `from` and `to`: signature (with breaks_callers), "
        "metrics with their intervals, sizes, measured, plan, hyperparameters, notes, …"
    )


def describe_row(version: Version) -> dict[str, Any]:
    """Return the fields of a `VersionRow`."""
    reason = version.reason
    return {
        "version": version.number,
        "state": version.state,
        "reason": {"code": reason.code, "message": reason.message} if reason else None,
        "created_at": version.created_at,
        "finished_at": version.finished_at,
        "size_bytes": version.size_bytes,
        "memory_mb": version.memory_mb,
        "task": version.card.get("task"),
        "metrics": spelled(version.card.get("metrics") or {}),
        "primary": _primary(version.card),
        "latency_ms": version.measured.get("latency_ms_batch_1"),
        "damaged": version.damaged,
        "approval": version.approval,
        "note": version.note,
    }


def _signature(version: Version) -> JsonObject | None:
    """Return the signature, with the package's words on each input."""
    if version.signature is None:
        return None
    declared = {tensor.get("name"): tensor for tensor in version.card.get("inputs") or []}
    record = version.signature.to_record()
    words = ("columns", "preprocessing")
    inputs = [
        spec | {word: text for word in words if (text := declared.get(spec["name"], {}).get(word))}
        for spec in record["inputs"]
    ]
    return {**record, "inputs": inputs}


def _primary(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields of a `PrimaryDocument`, None without a finite value."""
    evaluation = card.get("evaluation") or {}
    primary = evaluation.get("primary") or {}
    metric, rises = primary.get("metric"), bool(primary.get("higher_is_better"))
    value = _finite((card.get("metrics") or {}).get(metric))
    if value is None:
        return None
    low, high = (evaluation.get("intervals") or {}).get(metric) or (None, None)
    rivals = [_finite((row or {}).get(metric)) for row in (card.get("baselines") or {}).values()]
    scores = [score for score in rivals if score is not None]
    return {
        "metric": metric,
        "value": value,
        "higher_is_better": rises,
        "low": _finite(low),
        "high": _finite(high),
        "baseline": (max if rises else min)(scores, default=None),
    }


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def describe_version(version: Version, model: ModelSummary) -> dict[str, Any]:
    """Return the fields of a `VersionDocument`."""
    source, card = version.source, spelled(dict(version.card))
    aliases = None
    if model.aliases is not None:
        aliases = [name for name, number in model.aliases.items() if number == version.number]
    parts = ("baselines", "evaluation", "data", "hyperparameters", "training")
    return {
        **describe_row(version),
        **{name: card.get(name) or {} for name in parts},
        "model": version.model,
        "aliases": aliases,
        "description": card.get("description"),
        "signature": _signature(version),
        "language": _language(version.language),
        "compression": card.get("compression") or [],
        "graph": dict(version.graph),
        "plan": dict(version.plan),
        "measured": dict(version.measured),
        "notes": version.notes,
        "ignored": version.ignored,
        "files": [_blob(file) for file in version.files],
        "assets": [_blob(file) for file in version.assets],
        "manifest": _blob(version.manifest),
        "sample": _blob(version.sample),
        "source": {
            "bucket": source.bucket,
            "key": source.key,
            "object_version": source.object_version,
        },
        "attempts": version.attempts,
        "uploaded_at": version.written_at or None,
    }


# Facts of a language model that a caller can use; the record has more, for the function.
_FACTS = ("kind", "context", "vocabulary", "prefill_rate")
_OF_KIND = {
    "decoder": ("chat", "defaults", "decode_rate"),
    "encoder": ("dimensions", "pooling", "normalised", "reranker"),
}


def _language(language: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if language is None:
        return None
    names = (*_FACTS, *_OF_KIND.get(language["kind"], ()))
    return {name: language.get(name) for name in names}


def _blob(blob: Blob | None) -> dict[str, Any] | None:
    if blob is None:
        return None
    return {"name": blob.name, "sha256": blob.sha256, "size_bytes": blob.size_bytes}


def spelled(value: Any) -> Any:
    """Return a value with NaN and infinities as JSON texts.

    >>> spelled({"loss": float("nan"), "rows": [1, float("-inf")]})
    {'loss': 'NaN', 'rows': [1, '-Infinity']}
    """
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case Mapping():
            return {name: spelled(item) for name, item in value.items()}
        case list() | tuple():
            return [spelled(item) for item in value]
    return value
