"""Lambda handler that does nothing, to measure the runtime client alone.

Its reply is as large as a prediction.
"""

import json
from typing import Any

REPLY = {
    "statusCode": 200,
    "headers": {
        "content-type": "application/json",
        "x-model-version": "1",
        "x-request-id": "0" * 36,
    },
    "body": "A" * 400,
    "isBase64Encoded": True,
}


TEXT = json.dumps(REPLY).encode()


class EmptyHandler:
    """Handler that returns the same HTTP reply to every Lambda event.

    As the infer function, it gets bytes and returns bytes under our runtime client.
    """

    takes_bytes = True

    def __call__(self, event: dict[str, Any] | bytes, context: object) -> dict[str, Any] | bytes:
        del context
        return TEXT if isinstance(event, bytes) else REPLY


lambda_handler = EmptyHandler()
