"""BentoML model server from its hello-world example, with array input and output.

Run with `bentoml serve server:Predictor`.
"""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Predictor:
    """BentoML service of one ONNX model."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_PATH"], options)

    @bentoml.api
    def predict(self, data: np.ndarray) -> np.ndarray:
        """Answer POST /predict with the model's output for an array."""
        [output] = self.session.run(None, {"x": data.astype(np.float32)})
        return output
