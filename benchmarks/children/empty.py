"""Lambda handler that does nothing, to measure the runtime client alone.

Its reply is as large as a prediction.
"""

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


def lambda_handler(event: dict[str, Any], context: object) -> dict[str, Any]:  # noqa: ARG001
    """Return the same HTTP reply to every Lambda event."""
    return REPLY
