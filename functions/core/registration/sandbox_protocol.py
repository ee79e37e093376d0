"""What a registration asks of the workbench, where uploads are read and run, and what it believes of the answer.

The workbench is a throw-away process (`adapters/sandbox.py` starts it, `functions/sandbox/` is what runs in it). It
works in one directory:

    upload/    what was fetched, as it came
    package/   the model and its weights under flat names, and manifest.json where there is one      written by `unpack`
    serving/   what will be stored and served                                                       written by `build`

An answer is data from a process that has read hostile bytes: every field is checked for type, size and range here, and
what can be computed (digests, sizes) is computed by the parent.
"""

import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from functions.core.errors import InvalidModel, one_line, shown
from functions.core.names import is_file_name
from functions.core.protocol.signature import DATATYPES, DYNAMIC, Signature, TensorSpec
from functions.core.registry.load_plan import Plan
from functions.core.uploads import Form

MANIFEST_BYTES = 8 * 1024 * 1024
REPORT_BYTES = 8 * 1024 * 1024  # one line; the largest thing in it is the sample
ROOM = 16 * 1024 * 1024  # left free in the working directory
FILES = 65  # a model and its weights
TENSORS = 256
RANK = 16
TEXT = 512

Written = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What lies in package/. `model` is the .onnx, `weights` the files that it names out."""

    model: str
    weights: tuple[str, ...]
    manifest: bool  # package/manifest.json was written: from beside the model or from inside it
    graph: Mapping[str, Any]  # opset, ir_version, producer, nodes; refuses_empty where it does
    ignored: tuple[str, ...] = ()  # members that were never opened


@dataclass(frozen=True, slots=True)
class Brief:
    """What `build` needs to know. Everything in it is JSON."""

    model: str
    weights: tuple[str, ...] = ()
    samples: tuple[
        Mapping[str, Any], ...
    ] = ()  # {"request": …, "response": …}, Open Inference Protocol JSON
    rtol: float = 1e-3
    atol: float = 1e-5
    variants: tuple[
        str, ...
    ] = ()  # "int8", "fp16": tried, kept if the samples stay within the tolerance
    threads: int = 1  # those of the function that will serve the model
    memory_mb: int = 3008  # its memory


@dataclass(frozen=True, slots=True)
class Built:
    """A model that was proven. `files` lie in serving/, the model first."""

    files: tuple[str, ...]
    signature: Signature
    plan: Plan = field(default_factory=Plan)
    measured: Mapping[str, float] = field(
        default_factory=dict
    )  # flat: load_ms, raw_load_ms, latency_ms_batch_1, …
    memory_mb: int = 0  # what the process that serves it needs, from measurement
    sample: Mapping[str, Any] | None = None  # {"request", "response", "synthetic"}
    notes: tuple[str, ...] = ()  # what was chosen and why, a sentence each


class Sandbox(Protocol):
    """Reads and runs uploaded files where they can do no harm."""

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        """From upload/ to package/.

        Raises:
            InvalidModel: why this upload can never be served.
            Unavailable: the process could not be started.
        """

    def build(self, brief: Brief, directory: Path, written: Written = lambda _: None) -> Built:
        """From package/ to serving/: load, compile, compare with the samples, measure.

        `written` may be called once before the end, with the names of files that are said to be complete by then.

        Raises:
            InvalidModel: why this model can never be served.
            Unavailable: the process could not be started.
        """


# --- between the processes: one line of JSON each way ---------------------------------------------------------------


def unpack_task(form: Form, directory: Path) -> dict[str, Any]:
    return {"step": "unpack", "form": form.name, "directory": str(directory)}


def build_task(brief: Brief, directory: Path) -> dict[str, Any]:
    return {"step": "build", "brief": asdict(brief), "directory": str(directory)}


def brief_of(task: Mapping[str, Any]) -> Brief:
    """The brief in a task of `build_task`."""
    found = dict(task["brief"])
    return Brief(
        **found | {name: tuple(found[name]) for name in ("weights", "samples", "variants")}
    )


def report(done: Unpacked | Built) -> dict[str, Any]:
    """What the workbench answers."""
    return asdict(done)


def written_report(files: Sequence[str]) -> dict[str, Any]:
    """What `build` may tell before it answers."""
    return {"written": list(files)}


def rejection(error: InvalidModel) -> dict[str, Any]:
    return {"rejected": {"code": error.instance_code, "message": str(error)}}


def read_unpacked(told: object) -> Unpacked:
    """An answer to `unpack_task`, believed only as far as it is checked.

    Raises:
        InvalidModel: what it says: the reason why the upload was refused, or `SANDBOX_BAD_ANSWER`.
    """
    fields = _fields(told, {"model", "weights", "manifest", "graph", "ignored"})
    model, weights = _file(fields["model"]), tuple(_list(fields["weights"], FILES, _file))
    if len({model, "manifest.json", *weights}) != len(weights) + 2:
        raise bad_answer("it named one file twice")
    graph = fields["graph"]
    if not isinstance(graph, dict) or not graph.keys() <= _GRAPH.keys():
        raise bad_answer("`graph` is malformed")
    checked = {name: _GRAPH[name](value) for name, value in graph.items()}
    return Unpacked(
        model,
        weights,
        _truth(fields["manifest"]),
        checked,
        tuple(_list(fields["ignored"], 64, lambda i: _text(i, TEXT))),
    )


def is_written(told: object) -> bool:
    """Whether it is no answer yet."""
    return isinstance(told, dict) and told.keys() == {"written"}


def read_written(told: Any) -> list[str]:
    """The names in a `written_report`.

    Raises:
        InvalidModel: `SANDBOX_BAD_ANSWER`.
    """
    return _list(told["written"], FILES, _file)


def read_built(told: object) -> Built:
    """An answer to `build_task`, believed only as far as it is checked.

    Raises:
        InvalidModel: what it says: the reason why the model was refused, or `SANDBOX_BAD_ANSWER`.
    """
    fields = _fields(
        told, {"files", "signature", "plan", "measured", "memory_mb", "sample", "notes"}
    )
    files = tuple(_list(fields["files"], FILES, _file))
    if not files or len(set(files)) != len(files):
        raise bad_answer("`files` is empty or names one twice")
    measured = fields["measured"]
    if not isinstance(measured, dict) or len(measured) > 64:
        raise bad_answer("`measured` is malformed")
    sample = fields["sample"]
    if sample is not None and (
        not isinstance(sample, dict) or not sample.keys() <= {"request", "response", "synthetic"}
    ):
        raise bad_answer("`sample` is malformed")
    return Built(
        files=files,
        signature=_signature(fields["signature"]),
        plan=_plan(fields["plan"]),
        measured={_text(name, 64): _finite(value) for name, value in measured.items()},
        memory_mb=_whole(fields["memory_mb"], 1024 * 1024),
        sample=sample,
        notes=tuple(_list(fields["notes"], 64, lambda note: _text(note, TEXT))),
    )


def check_room(size_bytes: int, directory: Path) -> None:
    """Raises:
    InvalidModel: `size_bytes` more do not fit into the temporary storage; the code is `TOO_LARGE`.
    """
    free = shutil.disk_usage(directory).free - ROOM
    if size_bytes > free:
        raise InvalidModel(
            f"the package needs {size_bytes} bytes of temporary storage and {max(free, 0)} are free: "
            "raise the parameter EphemeralStorage",
            code="TOO_LARGE",
        )


def bad_answer(what: str) -> InvalidModel:
    """The answer of a process that is not believed any more."""
    return InvalidModel(
        f"the process that checks the model was taken over by it: {what}", code="SANDBOX_BAD_ANSWER"
    )


T = TypeVar("T")


def _fields(told: object, names: set[str]) -> dict[str, Any]:
    if not isinstance(told, dict):
        raise bad_answer("its answer is no object")
    if told.keys() == {"rejected"}:
        reason = told["rejected"]
        if not isinstance(reason, dict) or reason.keys() != {"code", "message"}:
            raise bad_answer("`rejected` is malformed")
        code, message = reason["code"], reason["message"]
        if not isinstance(code, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{2,39}", code, re.ASCII):
            raise bad_answer("`rejected.code` is malformed")
        if not isinstance(message, str):
            raise bad_answer("`rejected.message` is malformed")
        raise InvalidModel(message, code=code)
    if told.keys() != names:
        raise bad_answer(f"its answer has {shown(', '.join(sorted(map(str, told))))}")
    return told


def _plan(told: object) -> Plan:
    if not isinstance(told, dict) or told.keys() != {
        "optimised",
        "prepacking",
        "threads",
        "warmup",
        "layout",
    }:
        raise bad_answer("`plan` is malformed")
    if told["optimised"] not in ("none", "extended"):
        raise bad_answer("`plan.optimised` is unknown")
    flags = {name: _truth(told[name]) for name in ("prepacking", "warmup", "layout")}
    return Plan(optimised=told["optimised"], threads=_whole(told["threads"], 64), **flags)


def _signature(told: object) -> Signature:
    if not isinstance(told, dict) or told.keys() != {"inputs", "outputs"}:
        raise bad_answer("`signature` is malformed")
    inputs, outputs = (_list(told[side], TENSORS, _spec) for side in ("inputs", "outputs"))
    for specs in (inputs, outputs):
        if len({spec.name for spec in specs}) != len(specs):
            raise bad_answer("`signature` names a tensor twice")
    return Signature(tuple(inputs), tuple(outputs))


def _spec(told: object) -> TensorSpec:
    if not isinstance(told, dict) or not told.keys() <= {"name", "datatype", "shape", "labels"}:
        raise bad_answer("`signature` is malformed")
    if told.get("datatype") not in DATATYPES:
        raise bad_answer("`signature` has an unknown datatype")
    shape = _list(
        told.get("shape"),
        RANK,
        lambda size: DYNAMIC if size == DYNAMIC else _whole(size, 2**63 - 1),
    )
    return TensorSpec(_text(told.get("name"), TEXT), told["datatype"], tuple(shape))


def _list(told: object, most: int, read: Callable[[Any], T]) -> list[T]:
    if not isinstance(told, list | tuple) or len(told) > most:
        raise bad_answer("a list in its answer is malformed or too long")
    return [read(item) for item in told]


def _file(told: object) -> str:
    if not isinstance(told, str) or not is_file_name(told):
        raise bad_answer("a file name in its answer is malformed")
    return told


def _text(told: object, most: int) -> str:
    if not isinstance(told, str) or len(told) > most:
        raise bad_answer("a text in its answer is malformed or too long")
    return one_line(told, most)


def _whole(told: object, most: int) -> int:
    if isinstance(told, bool) or not isinstance(told, int) or not 0 <= told <= most:
        raise bad_answer("a number in its answer is malformed")
    return told


def _finite(told: object) -> float:
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told):
        raise bad_answer("a number in its answer is malformed")
    return told


def _truth(told: object) -> bool:
    if not isinstance(told, bool):
        raise bad_answer("a truth value in its answer is malformed")
    return told


_GRAPH: Mapping[str, Callable[[object], Any]] = {
    "opset": lambda told: _whole(told, 2**63),
    "ir_version": lambda told: _whole(told, 2**63),
    "producer": lambda told: _text(told, TEXT),
    "nodes": lambda told: _whole(told, 2**63),
    "refuses_empty": lambda told: _truth(told),
}
