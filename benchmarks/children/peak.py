"""Peak resident memory of a process that answers one request, or none.

    peak.py idle
    peak.py reference MODEL VALUES ROWS,SHAPE
    peak.py ours EVENT

Prints {"peak_mb", "prediction"}; peak_mb is VmHWM, mapped files included.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.children.memory_status import memory_mb


def idle() -> Any:
    """Import the infer function and finish Lambda's INIT phase; predict nothing."""
    from functions.infer.main import prefetching

    prefetching.wait()
    return []


def reference(model: str, values: str, shape: str) -> Any:
    """Run a local ONNX file once in ONNX Runtime; return predictions."""
    import numpy as np
    import onnxruntime as ort

    array = np.fromfile(values, np.float32).reshape([int(size) for size in shape.split(",")])
    [output] = ort.InferenceSession(model).run(None, {"x": array})
    return output.tolist()


def ours(path: str) -> Any:
    """Send an event to the infer function's handler; return its prediction."""
    from benchmarks.children.context import Context
    from functions.infer.main import lambda_handler

    reply: Any = lambda_handler(json.loads(Path(path).read_text(encoding="utf-8")), Context())
    [output] = json.loads(reply["body"])["outputs"]
    return output["data"]


# Each contender imports its own packages, so that no process holds those of another.
CONTENDERS: dict[str, Callable[..., Any]] = {"idle": idle, "reference": reference, "ours": ours}

if __name__ == "__main__":
    contender, *arguments = sys.argv[1:]
    prediction = CONTENDERS[contender](*arguments)
    answer = {"peak_mb": memory_mb("VmHWM"), "prediction": prediction}
    print("ANSWER " + json.dumps(answer), flush=True)
