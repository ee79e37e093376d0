"""Flask model server from its quick start, served by gunicorn.

gunicorn is what Flask's page on deployment names. Run with `gunicorn server:app`.
"""

import os

import numpy as np
import onnxruntime as ort
from flask import Flask, request

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL_PATH"], options)
app = Flask(__name__)


@app.post("/predict")
def predict():
    """Answer POST /predict with the model's outputs for the rows."""
    array = np.array(request.get_json()["data"], dtype=np.float32)
    [output] = session.run(None, {"x": array})
    return {"prediction": output.tolist()}
