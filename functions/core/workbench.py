"""What a registration asks of the workbench, where uploaded files are read and run, and what it believes of the answer.

The workbench is a throw-away process (`adapters/sandbox.py` starts it, `functions/workbench/` is what runs in it). It works
in one directory:

    upload/    what was fetched, as it came
    package/   the model and its weights under flat names, and manifest.json where there is one      written by `unpack`
    serving/   what will be stored and served                                                       written by `build`

An answer is data from a process that has read hostile bytes: every field is checked for type, size and range here, and
what can be computed (digests, sizes) is computed by the parent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from functions.core.signature import Signature
from functions.core.uploads import Form


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What lies in package/. `model` is the .onnx, `weights` the files that it names out."""

    model: str
    weights: tuple[str, ...]
    manifest: bool  # package/manifest.json was written: from beside the model or from inside it
    graph: Mapping[str, Any]  # opset, ir_version, producer, nodes
    ignored: tuple[str, ...] = ()  # members that were never opened


@dataclass(frozen=True, slots=True)
class Brief:
    """What `build` needs to know. Everything in it is JSON."""

    model: str
    weights: tuple[str, ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()  # {"request": …, "response": …}, Open Inference Protocol JSON
    rtol: float = 1e-3
    atol: float = 1e-5
    variants: tuple[str, ...] = ()  # "int8", "fp16": tried, kept if the samples stay within the tolerance
    threads: int = 1  # those of the function that will serve the model
    memory_mb: int = 3008  # its memory


@dataclass(frozen=True, slots=True)
class Plan:
    """How `infer` loads the model: data, never code."""

    optimised: str = "none"  # graph optimisation done at registration: "none" or "extended"
    prepacking: bool = True
    threads: int = 1
    warmup: bool = True  # one run with the sample before the first request


@dataclass(frozen=True, slots=True)
class Built:
    """A model that was proven. `files` lie in serving/, the model first."""

    files: tuple[str, ...]
    signature: Signature
    plan: Plan = field(default_factory=Plan)
    measured: Mapping[str, float] = field(default_factory=dict)  # flat: load_ms, raw_load_ms, latency_ms_batch_1, …
    memory_mb: int = 0  # what the process that serves it needs, from measurement
    sample: Mapping[str, Any] | None = None  # {"request", "response", "synthetic"}
    notes: tuple[str, ...] = ()  # what was chosen and why, a sentence each


class Workbench(Protocol):
    """Reads and runs uploaded files where they can do no harm."""

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        """From upload/ to package/.

        Raises:
            InvalidModel: why this upload can never be served.
            Unavailable: the process could not be started.
        """

    def build(self, brief: Brief, directory: Path) -> Built:
        """From package/ to serving/: load, compile, compare with the samples, measure.

        Raises:
            InvalidModel: why this model can never be served.
            Unavailable: the process could not be started.
        """
