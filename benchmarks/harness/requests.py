"""What a client sends, as API Gateway hands it to a function, and what of the reply is the prediction."""

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


def infer_event(
    workload: Workload, rows: int = 1, *, binary: bool = False, source: Path = TEMPLATE
) -> dict[str, Any]:
    """POST /v2/models/<name>/infer. The body is base64, because every media type of our API is binary."""
    values = workload.values(rows)
    tensor: dict[str, Any] = {
        "name": workload.input,
        "datatype": "FP32",
        "shape": list(values.shape),
    }
    headers: dict[str, str] = {}
    if binary:
        raw = values.astype(np.float32).tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        wanted = {"name": workload.output, "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
        body = head + raw
    else:
        body = json.dumps({"inputs": [tensor | {"data": values.ravel().tolist()}]}).encode()
    return _post(
        f"/v2/models/{workload.name}/infer", base64.b64encode(body).decode(), headers, True, source
    )


def predict_event(workload: Workload, rows: int = 1, *, source: Path = TEMPLATE) -> dict[str, Any]:
    """POST /predict, the JSON route of the usual handler, in an API that passes text on as it is."""
    return _post(
        "/predict", json.dumps({"data": workload.values(rows).tolist()}), {}, False, source
    )


def infer_prediction(reply: Mapping[str, Any]) -> np.ndarray:
    """The only output of an inference.

    Raises:
        RuntimeError: the reply is no 200.
    """
    body = base64.b64decode(reply["body"])
    if reply["statusCode"] != 200:
        raise RuntimeError(f"infer answered {reply['statusCode']}: {body[:300]!r}")
    length = int(reply["headers"].get(HEADER.lower(), len(body)))
    [output] = json.loads(body[:length])["outputs"]
    flat = (
        np.frombuffer(body[length:], np.float32)
        if length < len(body)
        else np.array(output["data"], np.float32)
    )
    return flat.reshape(output["shape"])


def usual_prediction(reply: Mapping[str, Any]) -> np.ndarray:
    """Raises:
    RuntimeError: the reply is no 200.
    """
    if reply["statusCode"] != 200:
        raise RuntimeError(f"predict answered {reply['statusCode']}: {reply['body'][:300]}")
    return np.array(json.loads(reply["body"])["prediction"], np.float32)


def _post(
    path: str, body: str, headers: Mapping[str, str], is_base64: bool, source: Path
) -> dict[str, Any]:
    """The real event in `source` with another path and body."""
    event: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    event["headers"] |= headers
    event["multiValueHeaders"] |= {name: [value] for name, value in headers.items()}
    event["requestContext"] |= {"path": f"/live{path}"}
    return event | {"path": path, "resource": path, "body": body, "isBase64Encoded": is_base64}
