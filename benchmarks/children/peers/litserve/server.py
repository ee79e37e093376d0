"""LitServe model server from its quick start: `python server.py PORT`."""

import os
import sys

import litserve as ls
import numpy as np
import onnxruntime as ort


class Predictor(ls.LitAPI):
    """LitServe API of one ONNX model."""

    def setup(self, device):  # noqa: ARG002  # LitAPI's interface
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL_PATH"], options)

    def decode_request(self, request):
        return np.array(request["data"], dtype=np.float32)

    def predict(self, x):
        [output] = self.session.run(None, {"x": x})
        return output

    def encode_response(self, output):
        return {"prediction": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Predictor(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
