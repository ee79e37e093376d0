"""ONNX Runtime's telemetry is off.

Linux wheels send it unless ORT_DISABLE_TELEMETRY is set before the library is loaded.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import scale_model

PROBE = """
import json, os, sys
from pathlib import Path
import numpy as np
from functions.adapters.onnx.sessions import OnnxRuntime
OnnxRuntime().load(Path(sys.argv[1]))
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones((1, 3), np.float32)})
files = [str(path) for path in Path(os.environ["HOME"]).rglob("*")]
links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
opened = [os.readlink(link) for link in links if link.exists()]
print(json.dumps({"threads": len(os.listdir("/proc/self/task")), "files": files, "opened": opened}))
"""


@pytest.mark.parametrize(
    "variables", [{}, {"ORT_DISABLE_TELEMETRY": "1"}], ids=["by the adapter", "by the template"]
)
def test_no_telemetry_thread_or_file_appears(tmp_path: Path, variables: dict[str, str]) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(scale_model())
    home = tmp_path / "home"
    home.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = (
        clean
        | variables
        | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "OPENBLAS_NUM_THREADS": "1"}
    )

    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(model)],
        env=environment | {"PYTHONPATH": "."}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)

    assert report["threads"] == 1
    assert report["files"] == []
    assert not [path for path in report["opened"] if "onnxruntime.db" in path]
