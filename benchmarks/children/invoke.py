"""Import a Lambda handler and invoke it once with an event file.

    invoke.py MODULE EVENT

The runtime client's own import and the HTTP of the Runtime API are left out for every handler.
"""

import importlib
import json
import sys

ACCOUNT, REGION = "123456789012", "us-east-1"


class Context:
    """Stand-in for the context object that Lambda passes to a handler."""

    aws_request_id = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
    function_name = "InferFunction"
    function_version = "$LATEST"
    invoked_function_arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function_name}"
    memory_limit_in_mb = "3008"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 29_000


if __name__ == "__main__":
    module, path = sys.argv[1:]
    handler = importlib.import_module(module).lambda_handler  # INIT: the event has not been read
    with open(path, "rb") as file:  # noqa: PTH123  # importing pathlib takes time
        event = json.load(file)
    print("ANSWER " + json.dumps(handler(event, Context())), flush=True)
