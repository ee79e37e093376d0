"""Validation of the untrusted answers that a sandbox process sends.

The process has read hostile bytes, so its answer may be hostile, too: the type, size and range of
each field are checked here, and the parent computes digests and file sizes itself.
"""

import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from functions.core.errors import InvalidModel, one_line, shown
from functions.core.language.assets import NAMES as ASSETS
from functions.core.language.spec import Kind, Layout, Pooling
from functions.core.names import is_file_name, is_onnx_file, is_plain_path, overlapping
from functions.core.protocol.signature import DATATYPES, DYNAMIC, Signature, TensorSpec
from functions.core.registration.sandbox_protocol import (
    IGNORED,
    SERVED_FILES,
    SIDE_FILES,
    WEIGHT_FILES,
    Built,
    Unpacked,
)
from functions.core.registry.load_plan import Plan

TENSORS = 1024
LABELS = 100_000
GOLDEN_TOKENS = 4096  # the longest list in a language model's facts
RANK = 16
TEXT = 512  # characters of a name or sentence

BAD_ANSWER = "SANDBOX_BAD_ANSWER"  # the code of an upload that took over its sandbox process

T = TypeVar("T")


def read_unpacked(answer: object) -> Unpacked:
    """Parse and check the sandbox's answer to an unpack task.

    Raises:
        InvalidModel: the sandbox rejected the upload, or `SANDBOX_BAD_ANSWER`.
    """
    names = {"model", "weights", "manifest", "graph", "ignored", "labels", "notes"}
    names |= {"assets", "outside"}
    fields = _fields(answer, names)
    model = _file_name(fields["model"])
    weights = tuple(_list(fields["weights"], WEIGHT_FILES, _file_name))
    if len({model, "manifest.json", *weights}) != len(weights) + 2:
        raise bad_answer("it named one file twice")
    outside = tuple(_list(fields["outside"], SIDE_FILES, _plain_path))
    if overlapping(outside) is not None:
        raise bad_answer("it asked for one file twice")
    return Unpacked(
        model=model,
        weights=weights,
        manifest=_boolean(fields["manifest"]),
        graph=_graph(fields["graph"]),
        ignored=tuple(_list(fields["ignored"], IGNORED, lambda name: _text(name, TEXT))),
        labels=_labels(fields["labels"]),
        notes=tuple(_list(fields["notes"], 64, lambda note: _text(note, TEXT))),
        assets=_assets(fields["assets"]),
        outside=outside,
    )


def read_built(answer: object) -> Built:
    """Parse and check the sandbox's answer to a build task.

    Raises:
        InvalidModel: the sandbox rejected the model, or `SANDBOX_BAD_ANSWER`.
    """
    names = {"files", "signature", "plan", "measured", "memory_mb", "sample", "notes"}
    fields = _fields(answer, names | {"language", "assets"})
    files = tuple(_list(fields["files"], SERVED_FILES, _file_name))
    if not files or len(set(files)) != len(files):
        raise bad_answer("`files` is empty or names one twice")
    return Built(
        files=files,
        signature=_signature(fields["signature"]),
        plan=_plan(fields["plan"]),
        measured=_measured(fields["measured"]),
        memory_mb=_integer(fields["memory_mb"], 1024 * 1024),
        sample=_sample(fields["sample"]),
        notes=tuple(_list(fields["notes"], 64, lambda note: _text(note, TEXT))),
        language=_language(fields["language"]),
        assets=_assets(fields["assets"]),
    )


def bad_answer(detail: str) -> InvalidModel:
    """Return the SANDBOX_BAD_ANSWER error for a malformed answer of the sandbox.

    A malformed answer means that the upload controls the process.
    """
    return InvalidModel(
        f"the process that checks the model was taken over by it: {detail}",
        code=BAD_ANSWER,
    )


def _fields(answer: object, names: set[str]) -> dict[str, Any]:
    """Return a sandbox answer's fields; refuse any set other than `names`.

    Raises:
        InvalidModel: the answer is a rejection, or `SANDBOX_BAD_ANSWER`.
    """
    if not isinstance(answer, dict):
        raise bad_answer("its answer is no object")
    if answer.keys() == {"rejected"}:
        raise _rejection_error(answer["rejected"])
    if answer.keys() != names:
        raise bad_answer(f"its answer has {shown(', '.join(sorted(map(str, answer))))}")
    return answer


def _rejection_error(reason: object) -> InvalidModel:
    if not isinstance(reason, dict) or reason.keys() != {"code", "message"}:
        return bad_answer("`rejected` is malformed")
    code, message = reason["code"], reason["message"]
    if not isinstance(code, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{2,39}", code, re.ASCII):
        return bad_answer("`rejected.code` is malformed")
    if not isinstance(message, str):
        return bad_answer("`rejected.message` is malformed")
    return InvalidModel(message, code=code)


def _graph(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not value.keys() <= _GRAPH_FIELDS.keys():
        raise bad_answer("`graph` is malformed")
    return {name: _GRAPH_FIELDS[name](item) for name, item in value.items()}


def _labels(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or len(value) > TENSORS:
        raise bad_answer("`labels` is malformed")
    return {
        _text(name, TEXT): tuple(_list(labels, LABELS, lambda label: _text(label, TEXT)))
        for name, labels in value.items()
    }


def _measured(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > 64:
        raise bad_answer("`measured` is malformed")
    return {_text(name, 64): _finite_number(number) for name, number in value.items()}


def _sample(value: object) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value.keys() <= {"request", "response", "synthetic"}:
        raise bad_answer("`sample` is malformed")
    return value


def _assets(value: object) -> tuple[str, ...]:
    names = tuple(_list(value, len(ASSETS), _file_name))
    if len(set(names)) != len(names) or not ASSETS.issuperset(names):
        raise bad_answer("`assets` names an unknown file, or one twice")
    return names


def _language(value: object) -> dict[str, Any] | None:
    """Check the facts of a language model: fields, types, sizes."""
    if value is None:
        return None
    fields = _LANGUAGE_FIELDS
    if not isinstance(value, dict) or value.keys() != fields.keys():
        raise bad_answer("`language` is malformed")
    return {name: fields[name](item) for name, item in value.items()}


def _optional(read: Callable[[object], T]) -> Callable[[object], T | None]:
    return lambda value: None if value is None else read(value)


def _choice(kind: type[StrEnum]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in [*kind]:
            raise bad_answer(f"`language` has an unknown {kind.__name__.lower()}")
        return str(value)

    return read


def _mapping(read: Callable[[object], T], most: int) -> Callable[[object], dict[str, T]]:
    def read_all(value: object) -> dict[str, T]:
        if not isinstance(value, dict) or len(value) > most:
            raise bad_answer("`language` is malformed")
        return {_text(name, 64): read(item) for name, item in value.items()}

    return read_all


def _tokens(value: object) -> list[int]:
    return _list(value, GOLDEN_TOKENS, lambda token: _integer(token, 2**31))


def _plan(value: object) -> Plan:
    names = {"optimised", "prepacking", "threads", "warmup", "layout"}
    if not isinstance(value, dict) or value.keys() != names:
        raise bad_answer("`plan` is malformed")
    if value["optimised"] not in ("none", "extended"):
        raise bad_answer("`plan.optimised` is unknown")
    flags = {name: _boolean(value[name]) for name in ("prepacking", "warmup", "layout")}
    return Plan(optimised=value["optimised"], threads=_integer(value["threads"], 64), **flags)


def _signature(value: object) -> Signature:
    if not isinstance(value, dict) or value.keys() != {"inputs", "outputs"}:
        raise bad_answer("`signature` is malformed")
    inputs, outputs = (_list(value[side], TENSORS, _tensor_spec) for side in ("inputs", "outputs"))
    for specs in (inputs, outputs):
        if len({spec.name for spec in specs}) != len(specs):
            raise bad_answer("`signature` names a tensor twice")
    return Signature(tuple(inputs), tuple(outputs))


def _tensor_spec(value: object) -> TensorSpec:
    names = {"name", "datatype", "shape", "labels"}
    if not isinstance(value, dict) or not value.keys() <= names:
        raise bad_answer("`signature` is malformed")
    if value.get("datatype") not in DATATYPES:
        raise bad_answer("`signature` has an unknown datatype")
    shape = tuple(_list(value.get("shape"), RANK, _dimension))
    return TensorSpec(_text(value.get("name"), TEXT), value["datatype"], shape)


def _dimension(value: object) -> int:
    return DYNAMIC if value == DYNAMIC else _integer(value, 2**63 - 1)


def _list(value: object, limit: int, read: Callable[[Any], T]) -> list[T]:
    if not isinstance(value, list | tuple) or len(value) > limit:
        raise bad_answer("a list in its answer is malformed or too long")
    return [read(item) for item in value]


def _file_name(value: object) -> str:
    if not isinstance(value, str) or not is_file_name(value):
        raise bad_answer("a file name in its answer is malformed")
    return value


def _plain_path(value: object) -> str:
    if not isinstance(value, str) or not is_plain_path(value) or is_onnx_file(value):
        raise bad_answer("a path in its answer is malformed")
    return value


def _text(value: object, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise bad_answer("a text in its answer is malformed or too long")
    return one_line(value, limit)


def _exact_text(value: object, limit: int) -> str:
    """Return a text unchanged: a special token may hold line breaks."""
    if not isinstance(value, str) or len(value) > limit:
        raise bad_answer("a text in its answer is malformed or too long")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise bad_answer("a text in its answer is no Unicode")
    return value


def _integer(value: object, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise bad_answer("a number in its answer is malformed")
    return value


def _finite_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise bad_answer("a number in its answer is malformed")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise bad_answer("a truth value in its answer is malformed")
    return value


_GRAPH_FIELDS: Mapping[str, Callable[[object], Any]] = {
    "opset": lambda value: _integer(value, 2**63),
    "ir_version": lambda value: _integer(value, 2**63),
    "producer": lambda value: _text(value, TEXT),
    "nodes": lambda value: _integer(value, 2**63),
}

_LANGUAGE_FIELDS: Mapping[str, Callable[[object], Any]] = {
    "kind": _choice(Kind),
    "vocabulary": lambda value: _integer(value, 2**31),
    "context": lambda value: _integer(value, 2**31),
    "eos": _tokens,
    "bos": _optional(lambda value: _integer(value, 2**31)),
    "special_tokens": _mapping(lambda value: _exact_text(value, 256), 16),
    "layout": _choice(Layout),
    "layers": lambda value: _integer(value, 10_000),
    "kv_heads": lambda value: _integer(value, 2**20),
    "head_size": lambda value: _integer(value, 2**20),
    "cache_datatype": lambda value: _text(value, 8),
    "shared_cache": _optional(_boolean),
    "chat": _boolean,
    "defaults": _mapping(_finite_number, 16),
    "pooling": _choice(Pooling),
    "normalised": _boolean,
    "dimensions": lambda value: _integer(value, 2**31),
    "reranker": _boolean,
    "output": lambda value: _text(value, TEXT),
    "prefill_rate": _finite_number,
    "decode_rate": _finite_number,
    "golden": _mapping(_tokens, 4),
}
