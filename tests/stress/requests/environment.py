"""Registration and infer environments of the hostile request test, on loopback.

The environments are processes of the local stack: Lambda's runtime client, its memory limit and its
time limit. Registry and serving bucket are moto's.
"""

import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import psutil
from moto import mock_aws
from moto.server import ThreadedMotoServer

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs
from functions.adapters.child_process import Limits
from functions.adapters.clock import utc_now
from functions.adapters.lambda_size import idle_bytes
from functions.adapters.sandbox import ProcessSandbox
from functions.core.registration.registration import Registration
from functions.core.registry.registry import Registry
from functions.core.registry.version import State, Version
from functions.core.serving.model_cache import footprint_bytes
from functions.core.uploads import Upload
from functions.register.manifest import read_manifest
from local.aws.provision import Deployed, provision
from local.cloudformation import REGION
from local.execution.environment import Environment, Place
from local.execution.logs import FunctionLog
from local.execution.processes import Janitor
from local.execution.runtime_api import Invocation
from local.template import Function, Template
from tests.data_plane import reply_body
from tests.fakes import MemoryUploads

LIMITS = Limits(memory_mb=1500, cpu_s=20)
START_S = 120.0  # generous: the machine may be busy


@dataclass
class Stage:
    """Registry, registered versions and settings of infer environments."""

    registration: Registration
    uploads: MemoryUploads
    sandbox: ProcessSandbox
    function: Function
    place: Place
    log: FunctionLog
    versions: dict[str, Version] = field(default_factory=dict)  # READY ones by model

    def register(self, model: str, content: bytes) -> Version:
        """Register an upload as the register function does; return its version."""
        key = f"models/{model}/model.onnx"
        pinned = self.uploads.put("up", key, content)
        version = self.registration.register(Upload("up", key, pinned))
        self.sandbox.refill()
        assert version is not None
        if version.state is State.READY:
            self.versions[model] = version
        return version


@contextmanager
def stage(memory_mb: int) -> Iterator[Stage]:
    """Provision the template's resources in moto; yield the stage."""
    with tempfile.TemporaryDirectory(prefix="stage-") as name, mock_aws(), ExitStack() as closing:
        directory = Path(name)
        template = Template.load("template.yaml", {"Auth": "none"})
        deployed = provision(template, boto3.Session(region_name=REGION))
        janitor, log = Janitor(), FunctionLog(directory, "InferFunction")
        closing.callback(log.close)
        closing.callback(janitor.close)
        sandbox = ProcessSandbox(LIMITS, library_path=os.environ.get("LD_LIBRARY_PATH", ""))
        closing.callback(sandbox.close)
        (directory / "work").mkdir()
        place = Place(closing.enter_context(endpoint()), directory / "work", janitor)
        function = replace(deployed.template.functions["InferFunction"], memory_mb=memory_mb)
        uploads = MemoryUploads()
        registration = register_with(deployed, uploads, sandbox)
        yield Stage(registration, uploads, sandbox, function, place, log)


@contextmanager
def endpoint() -> Iterator[str]:
    """Serve this process's moto on loopback; yield the URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def register_with(
    deployed: Deployed, uploads: MemoryUploads, sandbox: ProcessSandbox
) -> Registration:
    variables = deployed.environment["InferFunction"]
    session = boto3.Session(region_name=REGION)
    table = DynamoTable(session.client("dynamodb"), variables["REGISTRY_TABLE"])
    blobs = S3Blobs(session.client("s3"), variables["SERVING_BUCKET"])
    return Registration(Registry(table, utc_now), uploads, blobs, sandbox, read_manifest)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """HTTP reply and the state of the environment afterwards.

    `exit_status` is None while the process goes on.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    exit_status: int | None


class Served:
    """Infer environment that is restarted after it ends."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._environment: Environment | None = None
        self._called: set[str] = set()  # models that the environment may hold
        self.started = 0

    async def send(self, event: Mapping[str, Any], model: str) -> HttpReply:
        """Send an event that may load `model`; return the reply.

        Raises:
            AssertionError: there is none, because the process ended or ran out of time.
        """
        environment = self._environment or await self._start()
        assert environment.is_alive(), "the environment ended between two requests"
        self._called.add(model)
        limit_s = self._stage.function.timeout_s
        request_id = str(uuid.uuid4())
        answer = await environment.invoke(
            Invocation(request_id, json.dumps(event).encode(), time.time() + limit_s, ""), limit_s
        )
        exit_status = None
        if environment.state == "ended":
            self._environment, exit_status = None, environment._exit.result()
        assert not answer.error, f"the environment ended: {answer.payload.decode()}"
        document = json.loads(answer.payload)
        body = reply_body(document)
        return HttpReply(document["statusCode"], document["headers"], body, exit_status)

    async def _start(self) -> Environment:
        self.started += 1
        self._called.clear()
        stage = self._stage
        environment = Environment(stage.function, self.started, stage.place, stage.log)
        await environment.start(START_S, "start")
        self._environment = environment
        return environment

    def memory(self) -> tuple[int, int]:
        """Return an environment's private memory and its idle level, in bytes."""
        assert self._environment is not None
        versions = self._stage.versions
        held_bytes = sum(footprint_bytes(versions[name]) for name in self._called & versions.keys())
        used_bytes = psutil.Process(self._environment.pid).memory_info().data
        return used_bytes, idle_bytes(self._stage.function.memory_mb, held_bytes)

    async def stop(self) -> None:
        if self._environment is not None:
            await self._environment.stop()
