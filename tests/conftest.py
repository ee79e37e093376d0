"""Fixtures of all tests: no test reaches AWS, whatever the machine's settings are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_socket import disable_socket, enable_socket, socket_allow_hosts

ROOT = Path(__file__).parent.parent

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
# Before anything imports torch: waiting threads that spin would starve all others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The end-to-end tests of a deployed stack need the caller's AWS account.
DEPLOYED = "STACK_URL" in os.environ
for name in [name for name in os.environ if name.startswith("AWS_") and not DEPLOYED]:
    del os.environ[name]
defaults = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
if not DEPLOYED or "AWS_ENDPOINT_URL" in os.environ:
    os.environ |= {name: value for name, value in defaults.items() if name not in os.environ}


@pytest.fixture(autouse=True)
def _network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Allow no sockets in unit tests, and loopback only in all but deployed-stack tests."""
    kinds = request.path.relative_to(ROOT).parts
    if "unit" in kinds:
        disable_socket(allow_unix_socket=True)
    elif not (DEPLOYED and "e2e" in kinds):
        socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
    yield
    enable_socket()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: gzip's time stamp would differ between workers."""
    return argname if isinstance(val, bytes) else None
