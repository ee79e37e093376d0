"""Subprocess that runs requests which may crash ONNX Runtime: `python probe.py FOLDER`.

The folder has model.onnx and requests 0.npz to 9.npz. Each answer is written to 0.answer.npz; there
is none if the runtime refuses the request. Imports nothing of this repository, so it starts quickly
from any folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read while onnxruntime is imported

import numpy as np
import onnxruntime


def main(folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    for request in sorted(folder.glob("?.npz")):
        _answer(session, request)


def _answer(session: onnxruntime.InferenceSession, request: Path) -> None:
    names = [output.name for output in session.get_outputs()]
    texts = {node.name for node in session.get_inputs() if node.type == "tensor(string)"}
    feeds = {}
    with np.load(request) as arrays:
        for name, array in arrays.items():
            feeds[name] = array.astype(object) if name in texts else array
    try:
        answers = session.run(names, feeds)
    except Exception:  # a refusal of any kind: no answer
        return
    plain = (answer.astype(str) if answer.dtype == object else answer for answer in answers)
    np.savez(request.with_suffix(".answer.npz"), **dict(zip(names, plain, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
