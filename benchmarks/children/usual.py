"""Typical Lambda handler for comparison: Powertools, boto3 download, ONNX Runtime defaults.

The other handlers are compared with it.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import onnxruntime as ort
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

logger = Logger()
tracer = Tracer()
metrics = Metrics()
app = APIGatewayRestResolver()

path = Path(tempfile.gettempdir()) / "model.onnx"
boto3.client("s3").download_file(os.environ["MODEL_BUCKET"], os.environ["MODEL_KEY"], str(path))
session = ort.InferenceSession(str(path))
input_name = session.get_inputs()[0].name


@app.post("/predict")
@tracer.capture_method
def predict() -> dict[str, Any]:
    """Answer POST /predict with the prediction of the rows in `data`."""
    array = np.array(app.current_event.json_body["data"], dtype=np.float32)
    [output] = session.run(None, {input_name: array})
    metrics.add_metric("Predictions", MetricUnit.Count, 1)
    logger.info("predicted", extra={"rows": len(array)})
    return {"prediction": output.tolist()}


@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_REST)
@tracer.capture_lambda_handler
@metrics.log_metrics(capture_cold_start_metric=True)
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Route an API Gateway event; return the HTTP reply."""
    return app.resolve(event, context)
