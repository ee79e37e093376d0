"""Final reply of a Lambda execution environment, before its process exits.

For a process that must not serve another invocation, e.g. after hostile code ran in it. The reply
goes to the Runtime API as the runtime client would send it; Lambda then starts a new process.
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import http.client
import json
import os
from typing import Any, NoReturn

TIMEOUT_S = 10


def answer_and_exit(runtime_api: str, reply: dict[str, Any] | bytes, request_id: str) -> NoReturn:
    """Post an invocation's reply to the Lambda Runtime API, then exit.

    `runtime_api` is the host and port of Lambda's variable AWS_LAMBDA_RUNTIME_API.
    """
    connection = http.client.HTTPConnection(runtime_api, timeout=TIMEOUT_S)
    path = f"/2018-06-01/runtime/invocation/{request_id}/response"
    body = reply if isinstance(reply, bytes) else json.dumps(reply)
    connection.request("POST", path, body)
    connection.getresponse().read()
    os._exit(0)
