"""Compatibility test of ONNX models exported from other ML frameworks.

`export_frameworks.py` exports them in the environment `.venv-exporters`. Each must become READY
without a change by hand, and its answers must equal the framework's own within `TOLERANCE`;
labels must be equal. `python -m training publish` must take it, and its copy become READY, too.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.platform import Platform
from tests.stress.binary_requests import RequestFailed, infer
from training import publish

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-exporters/bin/python"
TOLERANCE = 1e-5
EXPORT_S = 3600  # on a busy machine
ANSWERS = "expected.npz"

Array = np.ndarray[Any, Any]


def export(names: Sequence[str], folder: Path, python: Path = PYTHON) -> None:
    """Run the export script for the named models, or all."""
    script = Path(__file__).with_name("export_frameworks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, "-P", script, folder, *names]
    subprocess.run(command, check=True, timeout=EXPORT_S, env=environment)


def check(folder: Path, sandbox: ProcessSandbox, directory: Path) -> str:
    """Register and call an exported model; describe the problem, if any."""
    if (folder / "failed.txt").exists():
        return f"its exporter failed: {(folder / 'failed.txt').read_text()}"
    inputs, expected = read_answers(folder)
    platform = Platform(directory, sandbox)
    for file in sorted(folder.iterdir()):
        if file.name not in ("model.onnx", ANSWERS):
            platform.uploads.put("up", f"models/demo/{file.name}", file.read_bytes())
    version = platform.upload((folder / "model.onnx").read_bytes())
    if version.state is not State.READY:
        assert version.reason is not None
        return f"{version.reason.code}: {version.reason.message}"
    try:
        outputs = infer(platform, version, inputs)
    except RequestFailed as error:
        return str(error)
    return "; ".join([*differences(outputs, expected), *publishing_problems(folder, platform)])


def publishing_problems(folder: Path, platform: Platform) -> Iterator[str]:
    """Describe why a READY model cannot be published, or its published copy is rejected."""
    copy = folder / "published" / "model.onnx"
    arguments = [str(folder / "model.onnx"), "--model", "demo", "--output", str(copy)]
    if publish.main([*arguments, "--task", "classification"], {}):
        yield "publish refuses it"
        return
    version = platform.upload(copy.read_bytes())
    if version.state is not State.READY:
        yield f"its published copy is rejected: {version.reason}"


def read_answers(folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Load an exported model's inputs and the framework's expected outputs."""
    arrays = np.load(folder / ANSWERS)
    inputs, outputs = (
        {name.removeprefix(kind): arrays[name] for name in arrays.files if name.startswith(kind)}
        for kind in ("in:", "out:")
    )
    return inputs, outputs


def differences(outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> Iterator[str]:
    """Describe each output that differs from the framework's own output.

    The framework's outputs are matched by name, or else by position.
    """
    if len(outputs) != len(expected):
        yield f"outputs {list(outputs)} instead of {list(expected)}"
        return
    pairs = zip(outputs.items(), expected.items(), strict=True)
    for (name, output), (own_name, own) in pairs:
        answer = expected.get(name, own)
        if output.shape != answer.shape:
            yield f"{name}: shape {output.shape} instead of {answer.shape} of {own_name}"
        elif answer.dtype.kind not in "f":
            if (output.astype(str) != answer.astype(str)).any():
                yield f"{name}: {output.ravel()[:5]} instead of {answer.ravel()[:5]}"
        elif not np.allclose(output, answer, TOLERANCE, TOLERANCE):
            yield f"{name}: differs by {np.abs(output - answer).max():.2g}"


def run(arguments: Sequence[str]) -> int:
    """Test the named models, or all, and print each result; return the number of problems."""
    problems = 0
    sandbox = ProcessSandbox()
    with tempfile.TemporaryDirectory() as name:
        exported = Path(name) / "exported"
        export(arguments, exported)
        for folder in sorted(exported.iterdir()):
            with tempfile.TemporaryDirectory() as directory:
                problem = check(folder, sandbox, Path(directory))
            print(f"{folder.name}: {problem or 'READY, equal'}", flush=True)
            problems += bool(problem)
    return problems
