"""Build API Gateway events for benchmarks; read predictions from the replies."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measure import ROOT
from benchmarks.harness.models import Workload

TEMPLATE = ROOT / "events" / "apigw_infer.json"
HEADER = "Inference-Header-Content-Length"
TOLERANCE = 1e-5  # largest relative error of a prediction, absolute for values below 1


class WrongPrediction(Exception):
    """Error for a prediction that differs from the reference prediction."""


def infer_event(
    workload: Workload,
    rows: int = 1,
    *,
    binary: bool = False,
    key: str = "",
    source: Path = TEMPLATE,
) -> dict[str, Any]:
    """Return the event of POST /v2/models/<name>/infer, with JSON or binary tensors.

    `key` is the access key that it carries, if any. The body is base64, because the deployed API
    treats every media type as binary.
    """
    body, headers = _infer_body(workload, rows, binary)
    if key:
        headers = {**headers, "Authorization": f"Bearer {key}"}
    path = f"/v2/models/{workload.name}/infer"
    return _post(path, base64.b64encode(body).decode(), headers, True, source)


def _infer_body(workload: Workload, rows: int, binary: bool) -> tuple[bytes, dict[str, str]]:
    values = workload.values(rows)
    tensor: dict[str, Any] = {
        "name": workload.input,
        "datatype": "FP32",
        "shape": list(values.shape),
    }
    if not binary:
        tensor["data"] = values.ravel().tolist()
        return json.dumps({"inputs": [tensor]}).encode(), {}
    raw = values.astype(np.float32).tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    output = {"name": workload.output, "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
    return head + raw, headers


def predict_event(workload: Workload, rows: int = 1, *, source: Path = TEMPLATE) -> dict[str, Any]:
    """Return the API Gateway event of POST /predict, with JSON rows.

    The usual handler serves it. Its API passes text on without base64.
    """
    body = json.dumps({"data": workload.values(rows).tolist()})
    return _post("/predict", body, {}, False, source)


def _post(
    path: str, body: str, headers: Mapping[str, str], is_base64: bool, source: Path
) -> dict[str, Any]:
    """Return the recorded event in `source` with another path and body.

    Its placeholder for a key is left out.
    """
    event: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    for name in ("headers", "multiValueHeaders"):
        event[name].pop("x-api-key", None)
    event["headers"] |= headers
    event["multiValueHeaders"] |= {name: [value] for name, value in headers.items()}
    event["requestContext"] |= {"path": f"/live{path}"}
    return event | {"path": path, "resource": path, "body": body, "isBase64Encoded": is_base64}


def reply_body(reply: Mapping[str, Any]) -> bytes:
    """Return the body of a Lambda function's reply, decoded."""
    text: str = reply["body"]
    return base64.b64decode(text) if reply["isBase64Encoded"] else text.encode()


def infer_prediction(reply: Mapping[str, Any]) -> np.ndarray:
    """Return the only output tensor of an infer function's reply.

    Raises:
        RuntimeError: the status is not 200.
    """
    body = reply_body(reply)
    if reply["statusCode"] != 200:
        raise RuntimeError(f"infer answered {reply['statusCode']}: {body[:300]!r}")
    length = int(reply["headers"].get(HEADER.lower(), len(body)))
    [output] = json.loads(body[:length])["outputs"]
    if length < len(body):
        flat = np.frombuffer(body[length:], np.float32)
    else:
        flat = np.array(output["data"], np.float32)
    return flat.reshape(output["shape"])


def usual_prediction(reply: Mapping[str, Any]) -> np.ndarray:
    """Parse the prediction from a reply of the usual Lambda handler.

    Raises:
        RuntimeError: the status is not 200.
    """
    if reply["statusCode"] != 200:
        raise RuntimeError(f"predict answered {reply['statusCode']}: {reply['body'][:300]}")
    return np.array(json.loads(reply["body"])["prediction"], np.float32)


def check_prediction(
    label: str, prediction: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE
) -> None:
    """Raise WrongPrediction if a prediction differs from the reference prediction.

    Raises:
        WrongPrediction: shape or values differ; the message begins with `label`.
    """
    if prediction.shape != expected.shape:
        raise WrongPrediction(
            f"{label} wrongly: shape {prediction.shape} instead of {expected.shape}"
        )
    error = float(np.max(np.abs(prediction - expected) / np.maximum(1.0, np.abs(expected))))
    if not error <= tolerance:  # also true of NaN
        raise WrongPrediction(f"{label} wrongly: {error:.1e} from the reference")
