"""Hooks of schemathesis: requests to language models name those of the stack."""

from typing import Any

import schemathesis

MODELS = {"/v1/embeddings": "minilm", "/v1/rerank": "minilm"}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Name a model that exists where the body names another one, as most would be 404."""
    path = context.operation.path
    if path.startswith("/v1/") and isinstance(body, dict) and isinstance(body.get("model"), str):
        return {**body, "model": MODELS.get(path, "smollm")}
    return body
