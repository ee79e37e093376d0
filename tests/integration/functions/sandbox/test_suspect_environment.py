"""Tests that the register Lambda replies and exits after a hostile upload."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).parents[4]
# Runs the handler as Lambda does, after an upload that left the sandbox as `argv[1]` says.
INVOCATION = """
import sys
from types import SimpleNamespace
from functions.register import main
main.sandbox.suspect = sys.argv[1] == "suspect"
context = SimpleNamespace(aws_request_id="id-1", get_remaining_time_in_millis=lambda: 100_000)
print(main.lambda_handler({"Records": [{"eventSource": "aws:s3"}]}, context))
main.sandbox.close()
"""
ENVIRONMENT = {
    "ARTIFACTS_BUCKET": "uploads",
    "BUCKET_OWNER": "123456789012",
    "CANARY_STATE_MACHINE": "arn:aws:states:eu-central-1:123456789012:stateMachine:canary",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
    "GENERATE_MEMORY_MB": "1024",
    "INFER_MEMORY_MB": "1024",
    "REGISTRATION_QUEUE_URL": "http://127.0.0.1/queue",
    "REGISTRY_TABLE": "table",
    "SERVING_BUCKET": "bucket",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "POWERTOOLS_METRICS_NAMESPACE": "Mayfly",
    "POWERTOOLS_SERVICE_NAME": "register",
}


class RuntimeApi(BaseHTTPRequestHandler):
    """Fake Lambda Runtime API server that records replies."""

    replies: ClassVar[list[tuple[str, object]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.replies.append((self.path, json.loads(body)))
        self.send_response(202)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Suppress the HTTP server's request log."""


@pytest.fixture
def runtime_api() -> Iterator[str]:
    RuntimeApi.replies.clear()
    with HTTPServer(("127.0.0.1", 0), RuntimeApi) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def invoke(runtime_api: str, state: str) -> str:
    variables = {**os.environ, **ENVIRONMENT, "AWS_LAMBDA_RUNTIME_API": runtime_api}
    command = [sys.executable, "-c", INVOCATION, state]
    process = subprocess.run(
        command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return process.stdout


def test_a_suspect_environment_answers_and_ends(runtime_api: str) -> None:
    output = invoke(runtime_api, "suspect")

    path = "/2018-06-01/runtime/invocation/id-1/response"
    assert RuntimeApi.replies == [(path, {"versions": []})]
    assert "this environment ends" in output
    assert "'versions'" not in output  # the handler does not return


def test_any_other_environment_goes_on(runtime_api: str) -> None:
    assert "{'versions': []}" in invoke(runtime_api, "trusted")
    assert RuntimeApi.replies == []
