"""Emulation of SageMaker's training container: a folder and process, no Docker.

It provides what the user's code can see: configuration files, channels, checkpoints, SIGTERM with
120 s of grace, the failure file, and the upload of the output.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from local.execution.processes import Janitor

ROOT = "/opt/ml"
POLL_S = 0.2
SYNC_S = 2.0  # s between uploads of changed checkpoints
FAKE = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
Request = Mapping[str, Any]


class JobFailed(Exception):
    """Failure of a training job; the message becomes its FailureReason."""


class Bucket:
    """S3 client of a training job on the local stack."""

    def __init__(self, endpoint_url: str, region: str) -> None:
        import boto3
        from botocore.config import Config

        self._client = boto3.session.Session(**FAKE, region_name=region).client(
            "s3", endpoint_url=endpoint_url, config=Config(retries={"total_max_attempts": 2})
        )

    def download(self, uri: str, folder: Path) -> int:
        """Download all S3 objects under a URI; return their number.

        Raises:
            JobFailed: the bucket does not exist, or a key leads out of the folder.
        """
        bucket, prefix = split(uri)
        count = 0
        for page in self._client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix
        ):
            for item in page.get("Contents", []):
                name = relative(item["Key"], prefix)
                target = (folder / name).resolve()
                if not target.is_relative_to(folder.resolve()):
                    raise JobFailed(f"ClientError: key {item['Key']!r} leads out of its channel")
                if name.endswith("/") or not name:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                self._client.download_file(bucket, item["Key"], str(target))
                count += 1
        return count

    def put(self, path: Path, uri: str) -> None:
        """Upload a file to S3 with one PutObject, hence one event."""
        bucket, key = split(uri)
        with path.open("rb") as body:
            self._client.put_object(Bucket=bucket, Key=key, Body=body)


def split(uri: str) -> tuple[str, str]:
    """Split an S3 URI into bucket and key.

    >>> split("s3://bucket/a/b/")
    ('bucket', 'a/b/')
    """
    match = re.fullmatch(r"s3://([^/]+)/?(.*)", uri)
    if match is None:
        raise JobFailed(f"ClientError: {uri[:80]!r} is no S3 URI")
    return match[1], match[2]


def relative(key: str, prefix: str) -> str:
    """Return an S3 object's path within its training-data channel.

    >>> relative("data/train/a.csv", "data/train"), relative("data/a.csv", "data/a.csv")
    ('a.csv', 'a.csv')
    >>> relative("data/ab", "data/a")
    'ab'
    """
    folder = prefix if prefix.endswith("/") else prefix + "/"
    if prefix and key.startswith(folder):
        return key.removeprefix(folder)
    return key.removeprefix(prefix.rpartition("/")[0]).removeprefix("/")


class Container:
    """Training job's container for one attempt: prepare, run, upload, remove."""

    def __init__(
        self, request: Request, arn: str, bucket: Bucket, environment: Mapping[str, str]
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix=f"job-{request['TrainingJobName']}-"))
        self._request = request
        self._arn = arn
        self._bucket = bucket
        self._environment = environment
        self._checkpoints = self.base / "checkpoints"
        self._synced: dict[Path, tuple[int, int]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Create the container's folders, configuration files, input data and checkpoints.

        Raises:
            JobFailed: a channel cannot be read.
        """
        for name in ("input/config", "input/data", "model", "output/data", "checkpoints", "tmp"):
            (self.base / name).mkdir(parents=True)
        channels = self._request.get("InputDataConfig") or []
        configuration: dict[str, Any] = {
            "hyperparameters": self._request.get("HyperParameters") or {},
            "inputdataconfig": {
                channel["ChannelName"]: {
                    "TrainingInputMode": "File",
                    "S3DistributionType": "FullyReplicated",
                    "RecordWrapperType": "None",
                }
                for channel in channels
            },
            "resourceconfig": {
                "current_host": "algo-1",
                "hosts": ["algo-1"],
                "current_group_name": "homogeneousCluster",
                "current_instance_type": "local",  # recorded in the model's manifest
                "network_interface_name": "lo",
            },
        }
        if "CheckpointConfig" in self._request:
            configuration["checkpointconfig"] = self._request["CheckpointConfig"]
            self._bucket.download(self._request["CheckpointConfig"]["S3Uri"], self._checkpoints)
            self._synced = {path: _stamp(path) for path in _files(self._checkpoints)}
        for name, content in configuration.items():
            text = json.dumps(content, ensure_ascii=False)
            (self.base / "input" / "config" / f"{name}.json").write_text(text, encoding="utf-8")
        for channel in channels:
            source = channel.get("DataSource", {}).get("S3DataSource", {})
            if source.get("S3DataType") != "S3Prefix":
                name = repr(channel["ChannelName"])
                raise JobFailed(f"ClientError: channel {name}: only S3Prefix works locally")
            uri = source["S3Uri"]
            if not self._bucket.download(uri, self.base / "input/data" / channel["ChannelName"]):
                raise JobFailed(f"ClientError: Data download failed: no objects under {uri}")

    def run(
        self,
        janitor: Janitor,
        on_line: Callable[[str], None],
        stop_requested: Callable[[], bool],
        max_runtime_s: float,
        grace_s: float,
    ) -> tuple[int, bool]:
        """Run the training process; return (exit status, whether time ran out)."""
        self._process = process = subprocess.Popen(
            self._command(),
            cwd=self.base,
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        janitor.tell("add", process.pid)
        reader = threading.Thread(target=_read, args=(process, on_line), daemon=True)
        reader.start()
        deadline = time.monotonic() + max_runtime_s
        next_sync, kill_at, out_of_time = time.monotonic() + SYNC_S, float("inf"), False
        try:
            while True:
                try:
                    status = process.wait(timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                if kill_at == float("inf") and (stop_requested() or now > deadline):
                    out_of_time = now > deadline
                    kill_at = now + grace_s
                    self.terminate()
                if now > kill_at:
                    _kill(process)
                if now > next_sync:
                    self._save_checkpoints()
                    next_sync = time.monotonic() + SYNC_S
        finally:
            _kill(process)  # with its descendants
            janitor.tell("remove", process.pid)
        reader.join(timeout=5)
        self._save_checkpoints()
        return (128 - status if status < 0 else status), out_of_time

    def terminate(self) -> None:
        """Send SIGTERM to the container's first process only, as Docker does."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def failure(self) -> str:
        """Return the text of the training job's failure file, or ""."""
        path = self.base / "output" / "failure"
        return path.read_text(encoding="utf-8", errors="replace")[:1024] if path.is_file() else ""

    def upload(self) -> str:
        """Upload a training job's output, then its model; return the model's URI.

        The model is last, because its upload event starts the registration.
        """
        output = self._request["OutputDataConfig"]
        target = f"{output['S3OutputPath'].rstrip('/')}/{self._request['TrainingJobName']}/output/"
        for folder, prefix, archive in (
            (self.base / "output" / "data", "data/", "output.tar.gz"),
            (self.base / "model", "model/", "model.tar.gz"),
        ):
            files = _files(folder)
            if output.get("CompressionType") == "NONE":
                for path in files:
                    self._bucket.put(path, f"{target}{prefix}{path.relative_to(folder).as_posix()}")
            elif files:
                packed = self.base / "tmp" / archive
                with tarfile.open(packed, "w:gz") as tar:
                    for path in files:
                        tar.add(path, path.relative_to(folder).as_posix())
                self._bucket.put(packed, target + archive)
        return target + ("model/" if output.get("CompressionType") == "NONE" else "model.tar.gz")

    def remove(self) -> None:
        """Remove the container's folder."""
        shutil.rmtree(self.base, ignore_errors=True)

    def _command(self) -> list[str]:
        algorithm = self._request["AlgorithmSpecification"]
        entry = algorithm.get("ContainerEntrypoint")
        if not entry:
            raise JobFailed("ClientError: the local stack runs no images: set ContainerEntrypoint")
        command = [
            part.replace(ROOT, str(self.base))
            for part in [*entry, *algorithm.get("ContainerArguments", [])]
        ]
        return [sys.executable, *command[1:]] if command[0] in ("python", "python3") else command

    def _variables(self) -> dict[str, str]:
        """Return a training container's environment variables, none inherited from the host."""
        region = self._arn.split(":")[3]
        variables = {
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
            ),
            "HOME": str(self.base / "tmp"),
            "TMPDIR": str(self.base / "tmp"),
            "LANG": "C.UTF-8",
            "SAGEMAKER_BASE_DIR": str(self.base),
            "CUDA_VISIBLE_DEVICES": "",  # runs are then equal on every machine
            "TRAINING_JOB_NAME": self._request["TrainingJobName"],
            "TRAINING_JOB_ARN": self._arn,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            **{name.upper(): value for name, value in FAKE.items()},
            **self._environment,
            **(self._request.get("Environment") or {}),
        }
        variables.pop("MAYFLY_TRAINING_IMAGE", None)  # no image runs here
        return variables

    def _save_checkpoints(self) -> None:
        if "CheckpointConfig" not in self._request:
            return
        target = self._request["CheckpointConfig"]["S3Uri"].rstrip("/")
        for path in _files(self._checkpoints):
            try:
                stamp = _stamp(path)
                if self._synced.get(path) != stamp:
                    self._bucket.put(
                        path, f"{target}/{path.relative_to(self._checkpoints).as_posix()}"
                    )
                    self._synced[path] = stamp
            except FileNotFoundError:  # replaced meanwhile; uploaded in the next round
                continue


def _read(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
    for line in process.stdout or ():
        on_line(line.decode("utf-8", "replace").rstrip("\n"))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size
