"""FastAPI model server from its tutorial, with pydantic request and response.

Run with `uvicorn server:app`. The route is `async def`, because a call this short costs less in the
event loop than in FastAPI's threads.
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
    """Request body: rows of numbers to predict for."""

    data: list[list[float]]


class Prediction(BaseModel):
    """Response body: the model's outputs, a list per row."""

    prediction: list[list[float]]


@app.post("/predict")
async def predict(rows: Rows) -> Prediction:
    """Answer POST /predict with the model's outputs for the rows."""
    [output] = session.run(None, {"x": np.array(rows.data, dtype=np.float32)})
    return Prediction(prediction=output.tolist())
