"""What a process takes at the most. `peak.py idle`, `peak.py reference MODEL VALUES ROWS,SHAPE`, `peak.py ours EVENT`

Prints {"peak_mb", "prediction"}: the peak of the resident memory of this process (VmHWM), mapped files included.
"""

import json
import sys
from pathlib import Path
from typing import Any


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise LookupError("VmHWM")


def idle() -> Any:
    from functions.infer.main import prefetching

    prefetching.wait()
    return []


def reference(model: str, values: str, shape: str) -> Any:
    import numpy as np
    import onnxruntime as ort

    array = np.fromfile(values, np.float32).reshape([int(size) for size in shape.split(",")])
    [output] = ort.InferenceSession(model).run(None, {"x": array})
    return output.tolist()


def ours(path: str) -> Any:
    import base64

    from benchmarks.children.invoke import Context
    from functions.infer.main import lambda_handler

    reply = lambda_handler(json.loads(Path(path).read_text(encoding="utf-8")), Context())
    [output] = json.loads(base64.b64decode(reply["body"]))["outputs"]
    return output["data"]


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    prediction = (
        idle() if what == "idle" else (reference if what == "reference" else ours)(*arguments)
    )
    print("ANSWER " + json.dumps({"peak_mb": peak_mb(), "prediction": prediction}), flush=True)
