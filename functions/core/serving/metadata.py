"""The JSON documents of the Open Inference Protocol: metadata, configuration, repository index, statistics."""

from collections.abc import Iterable, Mapping
from typing import Any

from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import State, Version

Document = dict[str, Any]

VERSION = "0.1.0"  # of Mayfly; a test compares it with pyproject.toml

PLATFORM = "onnxruntime_onnx"  # as Triton says it; clients have seen no other
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",  # of it, `timeout`
    "statistics",
)
MAX_BATCH = (
    2**20
)  # Triton's clients refuse larger batches than this; our own bound is the size of a request
CONFIG_DATATYPES = {"BYTES": "TYPE_STRING"}

# The repository extension's words for the states of a version.
INDEX_STATES = {
    State.PENDING: "LOADING",
    State.READY: "READY",
    State.REJECTED: "UNAVAILABLE",
    State.ARCHIVED: "UNAVAILABLE",
}


def server_metadata() -> Document:
    return {"name": "mayfly", "version": VERSION, "extensions": list(EXTENSIONS)}


def model_metadata(
    version: Version, versions: Iterable[Version], aliases: Mapping[str, int]
) -> Document:
    """What `version` takes and gives. `versions` and `aliases` are all those of its model."""
    signature = signature_of(version)
    return {
        "name": version.model,
        "versions": [str(v.number) for v in versions if v.state is State.READY],
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
        "properties": _properties(version, aliases),
    }


def model_config(version: Version) -> Document:
    """Triton's ModelConfig, as far as it means anything here.

    `max_batch_size` says that the first dimension is the batch, which `dims` then leave out; a model with a tensor
    that has no other dimension stays at 0, because readers refuse empty `dims`.
    """
    signature = signature_of(version)
    tensors = (*signature.inputs, *signature.outputs)
    batched = signature.batches and all(len(spec.shape) > 1 for spec in tensors)
    return {
        "name": version.model,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [version.number]}},
        "max_batch_size": MAX_BATCH if batched else 0,
        "input": [_configured(spec, batched) for spec in signature.inputs],
        "output": [_configured(spec, batched) for spec in signature.outputs],
        "default_model_filename": version.files[0].name,
        "model_transaction_policy": {"decoupled": False},
    }


def index_row(model: str, number: int, state: State, reason: str, unloaded: bool) -> Document:
    """One version in the repository index."""
    if unloaded and state is State.READY:
        return {"name": model, "version": str(number), "state": "UNAVAILABLE", "reason": "unloaded"}
    why = reason or ("" if state is State.READY else state.value.lower())
    return {"name": model, "version": str(number), "state": INDEX_STATES[state], "reason": why}


def signature_of(version: Version) -> Signature:
    """The signature, which every READY version has."""
    if version.signature is None:
        raise LookupError(
            f"version {version.number} of {version.model} is ready and has no signature"
        )
    return version.signature


def _tensor(spec: TensorSpec) -> Document:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec, batched: bool) -> Document:
    datatype = CONFIG_DATATYPES.get(spec.datatype, f"TYPE_{spec.datatype}")
    return {
        "name": spec.name,
        "data_type": datatype,
        "dims": list(spec.shape[1:] if batched else spec.shape),
    }


def _properties(version: Version, aliases: Mapping[str, int]) -> dict[str, str]:
    """Facts about a version as the protocol wants them: strings, nothing but strings."""
    card = {
        name: str(value)
        for name, value in version.card.items()
        if isinstance(value, str | int | float)
    }
    here = sorted(alias for alias, number in aliases.items() if number == version.number)
    graph = {
        name: str(value).lower() if value is True else str(value)
        for name, value in version.graph.items()
    }
    return (
        card
        | graph
        | _built(version)
        | {
            "version": str(version.number),
            "aliases": ",".join(here),
            "sha256": version.digest,
            "size_bytes": str(version.size_bytes),
            "created_at": version.created_at,
        }
    )


def _built(version: Version) -> dict[str, str]:
    """What registration found out, if it did: how the model is loaded, what it needs, whether samples prove it."""
    if not version.plan:
        return {}
    plan = Plan.from_record(version.plan)
    words = [f"optimised: {plan.optimised}", f"prepacking: {'yes' if plan.prepacking else 'no'}"]
    words += [f"threads: {plan.threads}", *(["layout: yes"] if plan.layout else [])]
    return {
        "load_plan": ", ".join(words),
        "memory_mb": str(version.memory_mb),
        "samples_checked": f"{version.measured.get('samples_checked', 0):.0f}",
    }
