"""A process of its own that asks a graph what might end it: `python probe.py FOLDER`, where model.onnx and 0.npz lie.

For each question it leaves `0.answer.npz` or, where the runtime refuses it, nothing. It imports nothing of ours, so it
starts quickly, from anywhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime


def main(folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    texts = {node.name for node in session.get_inputs() if node.type == "tensor(string)"}
    for question in sorted(folder.glob("?.npz")):
        with np.load(question) as arrays:
            feeds = {
                name: array.astype(object) if name in texts else array
                for name, array in arrays.items()
            }
        try:
            answers = session.run(names, feeds)
        except Exception:  # noqa: S112  # a refusal of any kind: no answer
            continue
        plain = (answer.astype(str) if answer.dtype == object else answer for answer in answers)
        np.savez(question.with_suffix(".answer.npz"), **dict(zip(names, plain, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
