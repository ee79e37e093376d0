"""The system over HTTP: the local stack, or any running one.

STACK_URL (with the stage) and ARTIFACTS_BUCKET name a stack that is up already and lets the tests in without
signatures: another local stack, or a deployed one behind a signing proxy on loopback. AWS_ENDPOINT_URL says where its
S3 is.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.client import RunningStack, start_stack
from tests.models import scale_model

WITHIN_S = 60
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Api:
    """The public surface: an HTTP base URL and a bucket to upload to."""

    url: str
    root_url: str | None
    bucket: str
    s3: Any

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, dict(headers or {}), method=method)
        try:
            with _direct.open(request, timeout=60) as reply:
                return Reply(
                    reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()
                )
        except urllib.error.HTTPError as error:
            return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def get(self, path: str) -> Reply:
        return self.call("GET", path)

    def infer(self, model: str, values: list[float], reference: str | int | None = None) -> Reply:
        """Three values through a `scale_model`."""
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
        """Until the version (by default any) answers ready."""
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/ready"
        self.wait(lambda: self.get(path).status == 200, f"{path} to be 200")

    def wait_ended(self, model: str, versions: int) -> list[dict[str, str]]:
        """Until so many versions have been registered or rejected. Returns the index's rows, oldest first."""

        def ended() -> list[dict[str, str]]:
            rows = self.index(model)
            done = len(rows) == versions and all(row["state"] != "LOADING" for row in rows)
            return sorted(rows, key=lambda row: int(row["version"])) if done else []

        return self.wait(ended, f"{versions} versions of {model}")

    def wait(self, found: Any, what: str) -> Any:
        end = time.monotonic() + WITHIN_S
        while time.monotonic() < end:
            if answer := found():
                return answer
            time.sleep(0.1)
        raise AssertionError(f"waited {WITHIN_S} s for {what}")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The local stack, with a queue that gives a lost message back within seconds and a reconciler without patience."""
    if "STACK_URL" in os.environ:
        pytest.skip("needs the local stack: STACK_URL names another one")
    parameters = {
        "RegistrationVisibilityTimeout": 8,
        "AliasCacheSeconds": 1,
        "UploadGraceSeconds": 0,
        "PendingGraceSeconds": 0,
    }
    with start_stack(parameters=parameters, state_dir=tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def api(request: pytest.FixtureRequest) -> Api:
    if url := os.environ.get("STACK_URL"):
        return Api(url.rstrip("/"), None, os.environ["ARTIFACTS_BUCKET"], boto3.client("s3"))
    running: RunningStack = request.getfixturevalue("stack")
    bucket = running.outputs["ArtifactsBucketName"]
    return Api(running.api_url, running.root_url, bucket, running.client("s3"))


@pytest.fixture(scope="session")
def scaled(api: Api) -> str:
    """A READY model: y = 2x, with labels a, b, c."""
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
    """A name that no other test and no earlier run uses."""
    stem = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:60].strip("-")
    return f"{stem}-{time.time_ns():x}"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.onnx"
    path.write_bytes(scale_model())
    return path
