"""Protocol with the sandbox process: unpack and build tasks, and their answers.

The sandbox is a process for one upload: `adapters/sandbox.py` starts it, `functions/sandbox/` runs
in it. It works in one directory:

    upload/    the uploaded files, unopened
    package/   written by `unpack`: model, weights and manifest.json under flat names
    assets/    written by `unpack` and `build`: tokenizer.json and others of a language model
    serving/   written by `build`: the files to store and serve

The parent checks its answers (`sandbox_answers.py`).
"""

import shutil
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from functions.core.errors import InvalidModel
from functions.core.protocol.signature import Signature
from functions.core.registry.load_plan import Plan
from functions.core.uploads import Form

MANIFEST_BYTES = 8 * 1024 * 1024
RESERVED_BYTES = 16 * 1024 * 1024  # kept free in the working directory
WEIGHT_FILES = 4096  # in an upload; some exporters write a file for each tensor
SIDE_FILES = 64  # beside a model in S3
SERVED_FILES = 65  # in a version; one DynamoDB transaction of 100 items records them
IGNORED = 64  # names of unopened files in a version's record


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Result of the sandbox's unpack step: model, weight files, graph facts.

    The .onnx file and its weight files are in package/.
    """

    model: str
    weights: tuple[str, ...]
    manifest: bool  # package/manifest.json exists: from the package or from the model's metadata
    graph: Mapping[str, Any]  # opset, ir_version, producer, nodes
    ignored: tuple[str, ...] = ()  # archive members that were not opened
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # class labels by output
    notes: tuple[str, ...] = ()  # one sentence for each part of the model that was rewritten
    assets: tuple[str, ...] = ()  # files in assets/; with a tokenizer, or none
    # Weight files that are missing beside a single .onnx file. The other fields say nothing then.
    outside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Brief:
    """Input of the sandbox's build step: files, samples, tolerances, variants, resources.

    Every field can be written as JSON.
    """

    model: str
    _: KW_ONLY
    weights: tuple[str, ...] = ()
    # {"request", "response"} in the JSON of the Open Inference Protocol
    samples: tuple[Mapping[str, Any], ...] = ()
    rtol: float = 1e-3
    atol: float = 1e-5
    # "int8", "fp16": a variant is used if its answers to the samples stay within the tolerance
    variants: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()  # files of a language model
    language: Mapping[str, Any] = field(default_factory=dict)  # facts that its manifest states
    threads: int = 1  # processors of the function that will serve the model
    memory_mb: int = 3008  # memory of the function that will serve the model
    language_memory_mb: int = 3008  # the same, if it is a language model


@dataclass(frozen=True, slots=True)
class Built:
    """Result of the sandbox's build step: files, signature, load plan, measurements."""

    files: tuple[str, ...]  # in serving/, the model first
    signature: Signature
    plan: Plan = field(default_factory=Plan)
    measured: Mapping[str, float] = field(default_factory=dict)  # load_ms, latency_ms_batch_1, …
    memory_mb: int = 0  # measured need of a process that serves the model
    sample: Mapping[str, Any] | None = None  # {"request", "response", "synthetic"}
    notes: tuple[str, ...] = ()  # one sentence for each choice of the build, with the reason
    language: Mapping[str, Any] | None = None  # fields of `LanguageSpec`
    assets: tuple[str, ...] = ()  # files to store in assets/


class Sandbox(Protocol):
    """Interface to an isolated process that reads and runs uploaded files.

    The process has no access to anything else. After a crash, a bad answer or a timeout it is
    `suspect`: the process that uses the sandbox should end itself.
    """

    suspect: bool

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        """Unpack the uploaded files in upload/ into package/, in the sandbox.

        Raises:
            InvalidModel: this upload can never be served.
            Unavailable: the process could not be started.
        """

    def build(self, brief: Brief, directory: Path) -> Built:
        """Compile, check and measure an unpacked model; write its serving files.

        The model is loaded from package/; the files go to serving/.

        Raises:
            InvalidModel: this model can never be served.
            Unavailable: the process could not be started.
        """


# --- messages: one line of JSON in each direction


def unpack_task(form: Form, directory: Path) -> dict[str, Any]:
    """Return the JSON message that asks the sandbox to unpack an upload."""
    return {"step": "unpack", "form": form.name, "directory": str(directory)}


def build_task(brief: Brief, directory: Path) -> dict[str, Any]:
    """Return the JSON message that asks the sandbox to build a model."""
    return {"step": "build", "brief": asdict(brief), "directory": str(directory)}


def read_brief(task: Mapping[str, Any]) -> Brief:
    """Parse the build step's input from a task message to the sandbox."""
    fields = dict(task["brief"])
    for name in ("weights", "samples", "variants", "assets"):
        fields[name] = tuple(fields[name])
    return Brief(**fields)


def report(result: Unpacked | Built) -> dict[str, Any]:
    """Convert the result of a sandbox step to its JSON answer."""
    return asdict(result)


def rejection(error: InvalidModel) -> dict[str, Any]:
    """Return the sandbox's JSON answer that rejects an upload for good."""
    return {"rejected": {"code": error.instance_code, "message": str(error)}}


def check_room(size_bytes: int, directory: Path) -> None:
    """Raise InvalidModel unless temporary storage has room for `size_bytes` more.

    Raises:
        InvalidModel: they do not; the code is `TOO_LARGE`.
    """
    free = shutil.disk_usage(directory).free - RESERVED_BYTES
    if size_bytes > free:
        raise InvalidModel(
            f"the package needs {size_bytes} bytes of temporary storage and {max(free, 0)} are "
            "free: raise the parameter EphemeralStorage",
            code="TOO_LARGE",
        )
