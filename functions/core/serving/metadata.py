"""JSON documents of the Open Inference Protocol: metadata, configuration, repository index."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from functions.core.errors import MESSAGE_LIMIT, one_line
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import State, Version

Document = dict[str, Any]

VERSION = "0.1.0"  # Mayfly's version; a test compares it with pyproject.toml

PLATFORM = "onnxruntime_onnx"  # Triton's platform name: its clients know no other
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "generate",  # Triton's own list lacks it, but documents it as an extension
    "model_configuration",
    "model_repository",
    "schedule_policy",  # only the parameter `timeout`
    "statistics",
)
MAX_BATCH = 2**20  # rows; Triton's clients check it. Mayfly bounds a request's bytes instead.
CONFIG_DATATYPES = {"BYTES": "TYPE_STRING"}

# Registry state -> state in the protocol's repository extension.
INDEX_STATES = {
    State.PENDING: "LOADING",
    State.READY: "READY",
    State.REJECTED: "UNAVAILABLE",
    State.ARCHIVED: "UNAVAILABLE",
}


def server_metadata() -> Document:
    """Return the server metadata: name, version and protocol extensions."""
    return {"name": "mayfly", "version": VERSION, "extensions": list(EXTENSIONS)}


def model_metadata(
    version: Version, versions: Iterable[Version], aliases: Mapping[str, int]
) -> Document:
    """Return a model's metadata: READY versions, inputs, outputs and properties.

    `versions` and `aliases` are all those of its model.
    """
    signature = require_signature(version)
    return {
        "name": version.model,
        "versions": [str(v.number) for v in versions if v.state is State.READY],
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
        "properties": _properties(version, aliases),
    }


def model_config(version: Version) -> Document:
    """Return a model version's configuration in Triton's ModelConfig format.

    It has the fields that apply to Mayfly. A `max_batch_size` above 0 means that the first
    dimension is the batch, and `dims` then omit it. It is 0 for a model with a one-dimensional
    tensor, because clients refuse empty `dims`.
    """
    signature = require_signature(version)
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
    """Return a version's row in the repository index: name, state, reason.

    `unloaded` means that its model was disabled by the unload request.
    """
    if unloaded and state is State.READY:
        return {"name": model, "version": str(number), "state": "UNAVAILABLE", "reason": "unloaded"}
    if not reason and state is not State.READY:
        reason = state.value.lower()
    return {"name": model, "version": str(number), "state": INDEX_STATES[state], "reason": reason}


def ignored_row(key: str, reason: str) -> Document:
    """Return an ignored upload's entry in the model repository index.

    It has no version. Its name is the folder under models/, or the file's name if there is none.
    The reason ends with the key, or the end of a long key.
    """
    room = MESSAGE_LIMIT - len(reason) - len(" (…)")
    place = key if len(key) <= room else "…" + key[-room:] if room > 0 else "…"
    text = one_line(f"{reason} ({place})")
    return {"name": ignored_name(key), "state": "UNAVAILABLE", "reason": text}


def ignored_name(key: str) -> str:
    """Return the name of an ignored upload in the index.

    >>> ignored_name("models/digits/notes.txt"), ignored_name("models/notes.txt")
    ('digits', 'notes.txt')
    """
    return key.split("/")[1]


def require_signature(version: Version) -> Signature:
    """Return a READY version's signature; raise LookupError if it has none."""
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
    """Return a version's card, graph facts, digest and size as strings.

    The protocol allows no other type.
    """
    card = {
        name: str(value)
        for name, value in version.card.items()
        if isinstance(value, str | int | float)
    }
    graph = {
        name: str(value).lower() if value is True else str(value)
        for name, value in version.graph.items()
    }
    names = sorted(alias for alias, number in aliases.items() if number == version.number)
    facts = {
        "version": str(version.number),
        "aliases": ",".join(names),
        "sha256": version.digest,
        "size_bytes": str(version.size_bytes),
        "created_at": version.created_at,
    }
    return card | graph | _names(version) | _measured(version) | _language(version) | facts


def _language(version: Version) -> dict[str, str]:
    """Return a language model's kind, context and chat as strings."""
    language = version.language or {}
    names = ("kind", "context", "chat")
    return {f"language.{name}": str(language[name]).lower() for name in names if name in language}


def _names(version: Version) -> dict[str, str]:
    """Return class and column names as JSON lists, by property.

    The properties are `labels.<output>` and `columns.<input>`.
    """
    columns = {
        f"columns.{tensor['name']}": tensor["columns"]
        for tensor in version.card.get("inputs", [])
        if tensor.get("columns")
    }
    labels = {
        f"labels.{spec.name}": list(spec.labels)
        for spec in require_signature(version).outputs
        if spec.labels
    }
    return {
        name: json.dumps(names, ensure_ascii=False) for name, names in (columns | labels).items()
    }


def _measured(version: Version) -> dict[str, str]:
    """Return a version's load plan, memory and sample count as strings."""
    if not version.plan:
        return {}
    plan = Plan.from_record(version.plan)
    settings = [
        f"optimised: {plan.optimised}",
        f"prepacking: {'yes' if plan.prepacking else 'no'}",
        f"threads: {plan.threads}",
    ]
    if plan.layout:
        settings.append("layout: yes")
    return {
        "load_plan": ", ".join(settings),
        "memory_mb": str(version.memory_mb),
        "samples_checked": f"{version.measured.get('samples_checked', 0):.0f}",
    }
