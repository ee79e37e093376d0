"""Reference prediction for benchmarks: one ONNX Runtime run of a local file.

reference.py MODEL VALUES ROWS,SHAPE
"""

import json
import sys

import numpy as np
import onnxruntime as ort

model, values, shape = sys.argv[1:]
array = np.fromfile(values, np.float32).reshape([int(size) for size in shape.split(",")])
session = ort.InferenceSession(model)
[output] = session.run(None, {session.get_inputs()[0].name: array})
print("ANSWER " + json.dumps(output.tolist()), flush=True)
