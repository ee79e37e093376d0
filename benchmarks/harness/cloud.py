"""Local AWS for measured processes: moto's DynamoDB and S3-like storage.

Models are registered by the code of the register function, so that measured processes fetch the
files that a deployment would. The servers listen on 127.0.0.1. They end with the `start` block, or
with this process, however it ends.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from botocore.config import Config

from benchmarks.harness.measure import ROOT, progress
from benchmarks.harness.models import Workload
from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.clock import utc_now
from functions.adapters.lambda_size import threads_for
from functions.adapters.sandbox import ProcessSandbox
from functions.core.access.grants import Scope
from functions.core.access.key_store import KeyStore
from functions.core.registration.registration import Registration
from functions.core.registration.uploaded_files import PinnedObject
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Source, State
from functions.core.uploads import Upload
from functions.register.manifest import read_manifest
from local.aws.provision import local_session, make_tables
from local.cloudformation import REGION
from local.execution import processes
from local.template import Template

HOST = "127.0.0.1"
FUNCTION = "InferFunction"
UPLOADS = "uploads"  # bucket of the uploaded files
STORAGES: Mapping[str, Sequence[str]] = {
    "s3-like": ("--first-byte-ms", "15", "--mb-per-second", "90"),
    "unthrottled": ("--first-byte-ms", "0", "--mb-per-second", "0"),
}


@dataclass(frozen=True, slots=True)
class Cloud:
    """Running local AWS: addresses of DynamoDB and storage, and data folder.

    `storage_urls` has the keys of STORAGES. `key` is an access key for predictions.
    """

    folder: Path
    registry_url: str
    storage_urls: Mapping[str, str]
    template: Template
    key: str = ""

    def model_path(self, workload: Workload) -> Path:
        """Return the path of a workload's uploaded model file."""
        return self.folder / "objects" / UPLOADS / _key(workload)

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables of the infer function in the template."""
        return self.template.functions[FUNCTION].environment

    def dynamodb(self) -> Any:
        """Return a boto3 DynamoDB client for the model registry."""
        config = Config(proxies={}, retries={"total_max_attempts": 2})
        return local_session().client("dynamodb", endpoint_url=self.registry_url, config=config)

    def lambda_environment(
        self, storage: str, tmp: Path, variables: Mapping[str, str]
    ) -> dict[str, str]:
        """Return environment variables as Lambda sets them, with local addresses.

        These are `variables`, those that Lambda sets, and the addresses of this local AWS.
        """
        function = self.template.functions[FUNCTION]
        lambda_variables = {
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_SESSION_TOKEN": "local",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_DYNAMODB": self.registry_url,
            "AWS_ENDPOINT_URL_S3": self.storage_urls[storage],
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.runtime}",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "LAMBDA_TASK_ROOT": str(ROOT),
            "_HANDLER": function.handler,
        }
        return plain_environment(tmp) | dict(variables) | lambda_variables


def plain_environment(tmp: Path) -> dict[str, str]:
    """Return the environment variables common to every measured process.

    Of the developer's environment only the search paths of programs and libraries are kept.
    """
    inherited = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
    }
    return inherited | {
        "HOME": str(tmp),
        "LANG": "en_US.UTF-8",
        "ORT_DISABLE_TELEMETRY": "1",  # a measured process must not send telemetry
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp),
        "TZ": ":UTC",
    }


@contextmanager
def start(workloads: Sequence[Workload], storages: Sequence[str]) -> Iterator[Cloud]:
    """Start a local AWS in which `workloads` are registered under their names."""
    with ExitStack() as exits:
        folder = Path(tempfile.mkdtemp(prefix="mayfly-bench-"))
        exits.callback(shutil.rmtree, folder, ignore_errors=True)
        janitor = processes.Janitor()
        exits.callback(janitor.close)
        janitor.tell("folder", folder)
        objects = folder / "objects"
        objects.mkdir()
        progress("starting the registry and the storage")
        registry_url = _serve(exits, janitor, folder, "local.aws.server")
        urls = {
            name: _serve(
                exits, janitor, folder, "benchmarks.harness.storage", objects, *STORAGES[name]
            )
            for name in storages
        }
        cloud = Cloud(folder, registry_url, urls, Template.load(ROOT / "template.yaml"))
        registration = _registration(cloud)
        for workload in workloads:
            progress(f"building and registering {workload.name}")
            _register(registration, cloud, workload)
        progress("")
        yield replace(cloud, key=_create_key(cloud))


def _serve(
    exits: ExitStack, janitor: processes.Janitor, folder: Path, module: str, *arguments: str | Path
) -> str:
    """Start a server process that prints its port; return its address."""
    variables = plain_environment(folder) | {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": REGION,
    }
    with (folder / f"{module}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=variables,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    janitor.tell("add", process.pid)
    exits.callback(_end, janitor, process)
    line = process.stdout.readline() if process.stdout else b""
    if not line:
        output = (folder / f"{module}.log").read_text().strip()[-500:]
        raise SystemExit(f"{module} did not start: {output}")
    return f"http://{HOST}:{json.loads(line)['port']}"


def _end(janitor: processes.Janitor, process: "subprocess.Popen[bytes]") -> None:
    processes.end([process.pid])
    process.wait(timeout=10)
    if process.stdout:
        process.stdout.close()
    janitor.tell("remove", process.pid)


def _registration(cloud: Cloud) -> Registration:
    client = cloud.dynamodb()
    make_tables(cloud.template, client)
    variables = cloud.variables
    objects = cloud.folder / "objects"
    return Registration(
        registry=Registry(DynamoTable(client, variables["REGISTRY_TABLE"]), utc_now),
        uploads=FileUploads(objects),
        blobs=FileBlobs(objects / variables["SERVING_BUCKET"]),
        sandbox=ProcessSandbox(),
        read_manifest=read_manifest,
        memory_mb=cloud.template.functions[FUNCTION].memory_mb,
        threads=threads_for(cloud.template.functions[FUNCTION].memory_mb),
    )


def _create_key(cloud: Cloud) -> str:
    table = DynamoTable(cloud.dynamodb(), cloud.variables["REGISTRY_TABLE"])
    store = KeyStore(table, utc_now)
    return store.create("benchmark", scopes=[Scope.INFER], models=["*"], actor="benchmark")[1]


def _register(registration: Registration, cloud: Cloud, workload: Workload) -> None:
    path = cloud.model_path(workload)
    path.parent.mkdir(parents=True)
    workload.write(path)
    version = registration.register(Upload(UPLOADS, _key(workload)))
    if version is None or version.state is not State.READY:
        raise SystemExit(f"{workload.name} was not registered: {version and version.reason}")


def _key(workload: Workload) -> str:
    return f"models/{workload.name}/model.onnx"


@dataclass(frozen=True, slots=True)
class FileUploads:
    """Uploaded model files of a registration, in the storage servers' folder."""

    folder: Path

    def pin(self, bucket: str, key: str, version_id: str | None) -> PinnedObject:
        size_bytes = (self.folder / bucket / key).stat().st_size
        return PinnedObject(Source(bucket, key, version_id or "1"), version_id, size_bytes)

    def fetch(self, pinned: PinnedObject, path: Path) -> None:
        shutil.copyfile(self.folder / pinned.source.bucket / pinned.source.key, path)

    def history(self, bucket: str, key: str) -> list[PinnedObject | None]:
        return [self.pin(bucket, key, None)]

    def is_newer(self, source: Source, rival: Source) -> bool | None:
        return source.object_version > rival.object_version


@dataclass(frozen=True, slots=True)
class FileBlobs:
    """Blob store of a registration, as files in the storage servers' folder."""

    bucket: Path

    def store(self, blob: Blob, path: Path) -> None:
        target = self.bucket / blob.key
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
