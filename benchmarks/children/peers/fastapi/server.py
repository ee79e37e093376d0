"""FastAPI's first steps: a model of the body, a model of the answer, uvicorn with its fast extras. `uvicorn server:app`

`async def`, because a call this short is cheaper in the event loop than in FastAPI's threads.
"""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL_PATH"], options)
app = FastAPI()


class Rows(BaseModel):
    data: list[list[float]]


class Prediction(BaseModel):
    prediction: list[list[float]]


@app.post("/predict")
async def predict(rows: Rows) -> Prediction:
    [output] = session.run(None, {"x": np.array(rows.data, dtype=np.float32)})
    return Prediction(prediction=output.tolist())
