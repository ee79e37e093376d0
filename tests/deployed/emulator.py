"""MiniStack, an emulator of AWS, as a process on loopback that checks every IAM policy.

It runs each Lambda function's handler in a Python process of its own, without a container engine.
Its faults that these tests work around:

- It reads the number MaximumConcurrency of an event source as text, and its poller then fails.
- It takes a body without Content-Type for text, and leaves a binary reply to a request without
  Accept in base64. AWS documents for both the first of the types that a header names.
- It ignores Range where a request names a version, so that register cannot read a model of more
  than 8 MB.
- It applies no gateway responses: the API's own errors are not in the protocol's shape. Nor does
  it rename the header WWW-Authenticate, as API Gateway does.
- It wants a permission of its own for SendMessageBatch, which sqs:SendMessage covers on AWS.
- Four clients at once may get 429, Too Many Requests, on a busy machine.
- It has no StartMessageMoveTask, so that dead letters cannot be redriven.
"""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import boto3
from aiohttp import web
from botocore.config import Config
from yarl import URL

HOST = "127.0.0.1"
PYTHON = os.environ.get("MAYFLY_MINISTACK_PYTHON", ".venv-ministack/bin/python")
START_S = 60
REGION = "us-east-1"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}  # of the account's root
# Headers that describe one connection and are not forwarded
RENAMED = {"www-authenticate": "x-amzn-Remapped-WWW-Authenticate"}  # by API Gateway
CONNECTION_HEADERS = {"connection", "content-length", "expect", "host", "transfer-encoding"}


@dataclass(frozen=True)
class Emulator:
    """Running MiniStack: its address, and the certificate that it answers with."""

    port: int
    certificate: Path
    log: Path

    @property
    def url(self) -> str:
        """Address of every AWS service."""
        return f"https://{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which AWS's tools use the emulator instead of AWS."""
        return {
            **KEYS,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_CA_BUNDLE": str(self.certificate),
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str) -> Any:
        """Return a boto3 client of a service, for the account's root."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            verify=str(self.certificate),
            region_name=REGION,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            config=Config(proxies={}, read_timeout=120, retries={"total_max_attempts": 1}),
        )


@contextmanager
def running(folder: Path) -> Iterator[Emulator]:
    """Start MiniStack in `folder`, and stop it in the end."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    emulator = Emulator(port, folder / "certificate.pem", folder / "ministack.log")
    key = folder / "key.pem"
    make_certificate(emulator.certificate, key)
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(port),
        "AUTH": "true",  # evaluates the policies of callers, roles, buckets and queues
        "USE_SSL": "1",  # buckets and queues refuse anything else
        "MINISTACK_SSL_CERT": str(emulator.certificate),
        "MINISTACK_SSL_KEY": str(key),
        "IOT_MTLS_ENABLED": "0",
        **emulator.environment,
    }
    del variables["AWS_ENDPOINT_URL"]  # the functions get it from the template
    with emulator.log.open("wb") as log:
        process = subprocess.Popen(
            [str(Path(PYTHON).absolute()), "-m", "ministack"],
            env=variables, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait_until_up(emulator, process)
        yield emulator
    finally:
        process.kill()  # after SIGTERM it waits for its pollers
        process.wait()


def _wait_until_up(emulator: Emulator, process: subprocess.Popen[bytes]) -> None:
    context = ssl.create_default_context(cafile=emulator.certificate)
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{emulator.url}/_ministack/health", context=context).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"MiniStack did not start: {emulator.log.read_text()[-2000:]}")


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for loopback and for the hosts of APIs."""
    names = f"IP:{HOST},DNS:localhost,DNS:*.execute-api.localhost"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", f"subjectAltName={names}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )


@contextmanager
def http_front(emulator: Emulator, api_id: str) -> Iterator[str]:
    """Serve an API over plain HTTP under its stage; yield the address.

    The clients under test speak HTTP. Adds the headers without which MiniStack takes a body for
    text.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="front", daemon=True)
    thread.start()
    front = _Front(emulator, api_id)
    try:
        yield asyncio.run_coroutine_threadsafe(front.start(), loop).result(START_S)
    finally:
        asyncio.run_coroutine_threadsafe(front.stop(), loop).result(START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Front:
    def __init__(self, emulator: Emulator, api_id: str) -> None:
        self._upstream = f"{emulator.url}/restapis/{api_id}"
        self._tls = ssl.create_default_context(cafile=emulator.certificate)

    async def start(self) -> str:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        app = web.Application(client_max_size=20 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        return f"http://{HOST}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _forward(self, request: web.Request) -> web.Response:
        stage, _, path = request.raw_path.removeprefix("/").partition("/")
        url = URL(f"{self._upstream}/{stage}/_user_request_/{path}", encoded=True)
        headers = _forwarded(request.headers)
        if "Accept" not in request.headers:
            headers.append(("Accept", "*/*"))
        if request.can_read_body and "Content-Type" not in request.headers:
            headers.append(("Content-Type", "application/octet-stream"))
        body = await request.read()
        async with self._session.request(
            request.method, url, data=body, headers=headers, ssl=self._tls, allow_redirects=False
        ) as reply:
            content = await reply.read()
        return web.Response(status=reply.status, body=content, headers=_forwarded(reply.headers))


def _forwarded(headers: Any) -> list[tuple[str, str]]:
    return [
        (RENAMED.get(name.lower(), name), value)
        for name, value in headers.items()
        if name.lower() not in CONNECTION_HEADERS
    ]


def mend_permissions(emulator: Emulator, stack_name: str) -> None:
    """Give each role of a stack what SQS's actions need in the emulator alone."""
    iam, name = emulator.client("iam"), "OfTheEmulator"
    statement = {"Effect": "Allow", "Action": "sqs:SendMessageBatch", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    for role in iam.list_roles()["Roles"]:
        if role["RoleName"].startswith(f"{stack_name}-Re"):  # register, reconcile
            iam.put_role_policy(RoleName=role["RoleName"], PolicyName=name, PolicyDocument=policy)


def mend_event_sources(emulator: Emulator) -> None:
    """Set MaximumConcurrency of every event source once more, as a number."""
    functions = emulator.client("lambda")
    for mapping in functions.list_event_source_mappings()["EventSourceMappings"]:
        most = int(mapping["ScalingConfig"]["MaximumConcurrency"])
        functions.update_event_source_mapping(
            UUID=mapping["UUID"], ScalingConfig={"MaximumConcurrency": most}
        )


def invoke(emulator: Emulator, function: str, event: dict[str, Any]) -> Any:
    """Invoke a deployed function by name; return its answer."""
    reply = emulator.client("lambda").invoke(
        FunctionName=function, Payload=json.dumps(event).encode()
    )
    answer = json.loads(reply["Payload"].read())
    assert "FunctionError" not in reply, answer
    return answer
