"""Fixtures for end-to-end tests over HTTP, against the local stack or a running one.

STACK_URL (with the stage) and ARTIFACTS_BUCKET name a running stack: another local stack, or a
deployed one. MAYFLY_KEY is an access key with the scope admin, unless its parameter Auth is none.
AWS_ENDPOINT_URL is the address of its S3. STACK_NAME adds the tests of an operator's work, which
need the parameters of `stack` below.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.client import RunningStack, start_stack
from tests.models import scale_model

KEY = re.compile("mfy_[0-9a-z]{12}_[0-9A-Za-z]{43}")
PATIENCE_S = 120.0  # for a condition; only a broken test waits so long
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Reply:
    """HTTP reply; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Api:
    """Public interface of a stack: an HTTP base URL and a bucket for uploads."""

    url: str
    root_url: str | None
    bucket: str
    s3: Any
    key: str = ""  # access key that every call sends

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {**({"x-api-key": self.key} if self.key else {}), **(headers or {})}
        request = urllib.request.Request(self.url + path, data, sent, method=method)
        try:
            reply = _direct.open(request, timeout=PATIENCE_S)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            lower = {name.lower(): value for name, value in reply.headers.items()}
            body = reply.read()
        assert not self.key or self.key not in f"{lower}{body!r}", "a reply repeats the key"
        return Reply(reply.status, lower, body)

    def get(self, path: str) -> Reply:
        return self.call("GET", path)

    def infer(self, model: str, values: list[float], reference: str | int | None = None) -> Reply:
        """Run a `scale_model` on rows of three values."""
        version = f"/versions/{reference}" if reference is not None else ""
        tensor = {"name": "x", "shape": [len(values) // 3, 3], "datatype": "FP32", "data": values}
        return self.call("POST", f"/v2/models/{model}{version}/infer", {"inputs": [tensor]})

    def upload(self, key: str, content: bytes) -> str | None:
        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=content).get("VersionId")

    def index(self, model: str) -> list[dict[str, str]]:
        return [
            row for row in self.call("POST", "/v2/repository/index").json if row["name"] == model
        ]

    def wait_ready(self, model: str, version: int | None = None) -> None:
        """Wait until the version, by default the model's default one, is ready."""
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/ready"
        self.wait(lambda: self.get(path).status == 200, f"{path} to be 200")

    def wait_ended(self, model: str, versions: int) -> list[dict[str, str]]:
        """Wait until so many versions are registered or rejected; return their index rows.

        The oldest version comes first.
        """

        def ended() -> list[dict[str, str]]:
            rows = self.index(model)
            done = len(rows) == versions and all(row["state"] != "LOADING" for row in rows)
            return sorted(rows, key=lambda row: int(row["version"])) if done else []

        return self.wait(ended, f"{versions} versions of {model}")

    def wait(self, condition: Callable[[], Any], description: str) -> Any:
        """Wait until `condition` returns something true, and return that."""
        return wait(condition, description)


def wait(condition: Callable[[], Any], description: str) -> Any:
    """Call `condition` until it returns something true, and return that.

    Raises:
        AssertionError: it did not within PATIENCE_S.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {description}")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Start the local stack, with short delays for redelivery and reconciliation."""
    if "STACK_URL" in os.environ:
        pytest.skip("needs the local stack: STACK_URL names another one")
    parameters = {
        "RegistrationVisibilityTimeout": 20,  # longer than any registration, under load, too
        "AliasCacheSeconds": 1,
        "UsageFlushSeconds": 1,
        "KeyCacheSeconds": 1,
        "UploadGraceSeconds": 0,
        "PendingGraceSeconds": 0,
    }
    with start_stack(parameters=parameters, state_dir=tmp_path_factory.mktemp("stack")) as running:
        yield running
        digests = key_digests(running)
        written = "".join(path.read_text() for path in running.log_dir.iterdir())
        assert not KEY.search(written), "a log holds an access key"
        assert not [digest for digest in digests if digest in written], "a log holds a digest"


def key_digests(running: RunningStack) -> list[str]:
    """Return the SHA-256 of every access key in a stack's registry."""
    table = (
        running.client("dynamodb")
        .get_paginator("scan")
        .paginate(
            TableName=running.outputs["RegistryTableName"],
            FilterExpression="begins_with(pk, :key) AND begins_with(sk, :secret)",
            ExpressionAttributeValues={":key": {"S": "KEY#"}, ":secret": {"S": "SECRET#"}},
        )
    )
    return [item["sk"]["S"].partition("#")[2] for page in table for item in page["Items"]]


@pytest.fixture(scope="session")
def api(request: pytest.FixtureRequest) -> Api:
    if url := os.environ.get("STACK_URL"):
        bucket, key = os.environ["ARTIFACTS_BUCKET"], os.environ.get("MAYFLY_KEY", "")
        return Api(url.rstrip("/"), None, bucket, boto3.client("s3"), key)
    return connect(request.getfixturevalue("stack"))


def connect(running: RunningStack) -> Api:
    """Return the interface of a local stack, with a key for everything."""
    bucket, key = running.outputs["ArtifactsBucketName"], running.create_key("admin")
    return Api(running.api_url, running.root_url, bucket, running.client("s3"), key)


@dataclass(frozen=True)
class Operator:
    """AWS access of a stack's operator: the stack's outputs, and boto3 clients."""

    outputs: Mapping[str, str]
    client: Callable[[str], Any]

    def reconcile(self, **event: Any) -> dict[str, Any]:
        """Invoke the reconcile function; return its answer."""
        reply = self.client("lambda").invoke(
            FunctionName=self.outputs["ReconcileFunctionName"], Payload=json.dumps(event).encode()
        )
        answer = json.loads(reply["Payload"].read())
        assert "FunctionError" not in reply, answer
        return dict(answer)


@pytest.fixture(scope="session")
def operator(request: pytest.FixtureRequest) -> Operator:
    if name := os.environ.get("STACK_NAME"):
        [stack] = boto3.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        return Operator(outputs, boto3.client)
    running: RunningStack = request.getfixturevalue("stack")
    return Operator(running.outputs, running.client)


@pytest.fixture(scope="session")
def scaled(api: Api) -> str:
    """Upload a model of y = 2x with labels a, b, c; return its name."""
    manifest = {
        "schema": 1,
        "task": "regression",
        "outputs": [{"name": "y", "labels": ["a", "b", "c"]}],
    }
    name = f"scaled-{time.time_ns():x}"
    api.upload(f"models/{name}/model.onnx", scale_model(2.0, manifest))
    api.wait_ready(name)
    return name


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """Return a model name that no other test and no earlier run uses."""
    stem = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:60].strip("-")
    return f"{stem}-{time.time_ns():x}"


@pytest.fixture
def upload_silently(api: Api) -> Callable[[str, bytes], str | None]:
    """Return a function that uploads while the bucket sends no notifications."""

    def upload(key: str, content: bytes) -> str | None:
        notifications = api.s3.get_bucket_notification_configuration(Bucket=api.bucket)
        notifications.pop("ResponseMetadata")
        api.s3.put_bucket_notification_configuration(
            Bucket=api.bucket, NotificationConfiguration={}
        )
        version_id = api.upload(key, content)
        api.s3.put_bucket_notification_configuration(
            Bucket=api.bucket, NotificationConfiguration=notifications
        )
        return version_id

    return upload


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.onnx"
    path.write_bytes(scale_model())
    return path
