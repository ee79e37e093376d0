"""MLServer model server: custom runtime, because MLServer has none for ONNX.

Run with `mlserver start .`.
"""

import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import decode_args


class OnnxModel(MLModel):
    """MLServer runtime of one ONNX model."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_PATH"], options)
        return True

    @decode_args
    async def predict(self, x: np.ndarray) -> np.ndarray:
        [output] = self.session.run(None, {"x": x})
        return output
