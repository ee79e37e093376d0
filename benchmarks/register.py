"""Registration: time from upload event to READY model, and load time afterwards.

    python -m benchmarks.register [--rounds N] [--models tiny,conv100,encoder400] [--no-save]

Everything runs once per round, in a rotating order. The first round is discarded, and ratios
compare times of the same round.

Registration, compared with the least that anyone needs to run an uploaded model once:
reference    boto3's download_file, InferenceSession(file), one run, in a process that has imported
             all of it.
ours         The register function's own code: claim in the registry (moto's DynamoDB), download,
             the sandbox's processes (already started, as in a warm function) that unpack, compile,
             check and measure, upload of the blobs, commit.

Loading, in this process with one thread and a warm page cache, followed by one run:
load upload  InferenceSession(uploaded file) with default options.
load served  The files and the load plan that the registration wrote.

The storage is "s3-like" (benchmarks/harness/storage.py): 15 ms to the first byte, 90 MB/s per
connection. Uploads of blobs are simulated at the same pace, request by request as `S3Blobs` sends
them, on connections that all blobs share. A small blob is one request; a large one is an existence
check, the start of a multipart upload, its parts with checksums, and its end. (Results up to commit
20e0f73 counted each blob as one request at 900 MB/s, and hashed the uploaded file once more.) A
warm function starts its next sandbox processes between invocations; the benchmark does so between
measurements.

Not measured: TLS, the network, the SQS queue, cold starts of the register function.
"""

import argparse
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from botocore.config import Config

from benchmarks.harness import cloud, measure, options
from benchmarks.harness.measure import Spread
from benchmarks.harness.models import Workload, all_workloads
from benchmarks.harness.requests import check_prediction
from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import CONNECTIONS, PART, S3Uploads, part_bytes
from functions.adapters.clock import utc_now
from functions.adapters.memory import mmap_large_allocations
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.adapters.sandbox import ProcessSandbox
from functions.core.protocol.tensors import Tensor
from functions.core.registration.registration import Registration
from functions.core.registry.load_plan import Plan
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, State, Version
from functions.core.uploads import Upload
from functions.register.manifest import read_manifest
from local.aws.provision import local_session

STORAGE = "s3-like"
FIRST_BYTE_S, BYTES_PER_S = 0.015, 90e6  # pace of a simulated upload request
SPARE_S = 1.0  # seconds in which the next sandbox processes start
RUN_LIMIT_S = 60
TOLERANCE = 1e-4  # relative difference between any two predictions of a model
REFERENCE, OURS, UPLOAD, SERVED = "reference", "ours", "load upload", "load served"


class RegistrationTimes:
    """Timed registrations and loads of one model."""

    def __init__(self, aws: cloud.Cloud, workload: Workload, sandbox: ProcessSandbox) -> None:
        self.workload = workload
        self._sandbox = sandbox
        self._uploads = aws.folder / "objects" / cloud.UPLOADS
        self._folder = aws.folder / f"{workload.name}-case"
        self._folder.mkdir()
        config = Config(
            proxies={}, retries={"total_max_attempts": 2}, max_pool_connections=CONNECTIONS
        )
        session = local_session()
        self._s3 = session.client("s3", endpoint_url=aws.storage_urls[STORAGE], config=config)
        dynamodb = session.client("dynamodb", endpoint_url=aws.registry_url, config=config)
        table = DynamoTable(dynamodb, aws.variables["REGISTRY_TABLE"])
        self._blobs = PacedBlobs(self._folder / "blobs")
        self._registration = Registration(
            registry=Registry(table, utc_now),
            uploads=S3Uploads(self._s3),
            blobs=self._blobs,
            sandbox=sandbox,
            read_manifest=read_manifest,
            run_all=ThreadPoolExecutor(4).map,  # as in functions/register/main.py
        )
        self._original = aws.model_path(workload)
        self._feeds = {workload.input: workload.values().astype(np.float32)}
        self._expected: np.ndarray | None = None
        self._count = 0
        self.version: Version | None = None

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Return a function per contender that measures one duration in ms.

        The registration comes first: it writes the files that are loaded.
        """
        return {
            OURS: self._register,
            REFERENCE: self._reference,
            UPLOAD: self._load_upload,
            SERVED: self._load_served,
        }

    def _register(self) -> float:
        self._count += 1
        key = f"models/{self.workload.name}/{self._count}.onnx"
        os.link(self._original, self._uploads / key)
        time.sleep(SPARE_S)
        started = time.perf_counter()
        version = self._registration.register(Upload(cloud.UPLOADS, key))
        duration_ms = (time.perf_counter() - started) * 1000
        if version is None or version.state is not State.READY:
            reason = version and version.reason
            raise RuntimeError(f"{self.workload.name} was not registered: {reason}")
        self.version = version
        self._sandbox.refill()  # the function's handler does the same after a registration
        time.sleep(SPARE_S)
        return duration_ms

    def _reference(self) -> float:
        path = self._folder / "downloaded.onnx"
        path.unlink(missing_ok=True)
        started = time.perf_counter()
        key = str(self._original.relative_to(self._uploads))
        self._s3.download_file(cloud.UPLOADS, key, str(path))
        self._run(_bare_session(path))
        return (time.perf_counter() - started) * 1000

    def _load_upload(self) -> float:
        _release_heap()
        started = time.perf_counter()
        session = _bare_session(self._original)
        duration_ms = (time.perf_counter() - started) * 1000
        self._run(session)
        return duration_ms

    def _load_served(self) -> float:
        if self.version is None:
            raise RuntimeError("nothing was registered yet")
        folder = self._folder / "served"
        if not folder.exists():
            folder.mkdir()
            for blob in self.version.files:
                os.link(self._blobs.folder / blob.sha256, folder / blob.name)
        _release_heap()
        started = time.perf_counter()
        session = OnnxRuntime().load(
            folder / self.version.files[0].name, Plan.from_record(self.version.plan)
        )
        duration_ms = (time.perf_counter() - started) * 1000
        tensors = {
            name: Tensor("FP32", values.shape, values.tobytes())
            for name, values in self._feeds.items()
        }
        output = session.run(tensors, [self.workload.output], RUN_LIMIT_S)[self.workload.output]
        self._check(np.frombuffer(output.data, np.float32).reshape(output.shape))
        shutil.rmtree(folder)
        return duration_ms

    def _run(self, session: Any) -> None:
        """Run an ONNX Runtime session once and check its prediction."""
        [output] = session.run([self.workload.output], self._feeds)
        self._check(output)

    def _check(self, prediction: np.ndarray) -> None:
        """Compare a prediction with the model's first prediction."""
        if self._expected is None:
            self._expected = prediction
        label = f"a session of {self.workload.name} answered"
        check_prediction(label, prediction, self._expected, TOLERANCE)


@dataclass(frozen=True, slots=True)
class PacedBlobs:
    """Blob store in a folder that imitates S3's upload speed.

    `free_at` is the time at which each connection is free again.
    """

    folder: Path
    free_at: list[float] = field(default_factory=lambda: [0.0] * CONNECTIONS)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def store(self, blob: Blob, path: Path) -> None:
        """Copy a blob's file, then sleep as long as S3 would take."""
        started = time.perf_counter()
        self.folder.mkdir(exist_ok=True)
        parts = [blob.size_bytes]
        if blob.size_bytes > PART:
            size = part_bytes(blob.size_bytes)
            parts = [min(size, blob.size_bytes - at) for at in range(0, blob.size_bytes, size)]
            exists = self._send([0], started)
            started = self._send([0], exists)  # the start of the multipart upload
        ended = self._send(parts, started)
        with path.open("rb") as source, (self.folder / blob.sha256).open("wb") as target:
            for part in parts:
                content = source.read(part)
                zlib.crc32(content)
                target.write(content)
        if len(parts) > 1:
            ended = self._send([0], ended)  # the end of the multipart upload
        time.sleep(max(0.0, ended - time.perf_counter()))

    def _send(self, sizes: Sequence[int], earliest: float) -> float:
        """Return the simulated time at which S3 answers the last request.

        `sizes` are the requests' bodies; none is sent before `earliest`.
        """
        ended = earliest
        with self.lock:
            for size in sizes:
                index = min(range(CONNECTIONS), key=self.free_at.__getitem__)
                started = max(earliest, self.free_at[index])
                self.free_at[index] = started + FIRST_BYTE_S + size / BYTES_PER_S
                ended = max(ended, self.free_at[index])
        return ended


def _release_heap() -> None:
    """Return free heap memory to the kernel.

    It was freed by other contenders; a fresh environment has none.
    """
    with mmap_large_allocations():
        pass


def _bare_session(path: Path) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4  # fatal errors alone
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def results(
    model: str, durations_ms: Mapping[str, Sequence[float]], version: Version | None
) -> list[dict[str, Any]]:
    """Return one result entry per contender: times and ratios by round."""
    baselines = {OURS: REFERENCE, SERVED: UPLOAD}
    entries = []
    for name, values in durations_ms.items():
        entry = measure.row(Spread.from_values(values, 1), model=model, what=name)
        if baseline := baselines.get(name):
            entry["over"] = baseline
            entry["ratio"] = measure.ratios(values, durations_ms[baseline]).to_record()
        if name == SERVED and version is not None:
            entry["plan"] = dict(version.plan)
        entries.append(entry)
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format registration results as a text table."""
    rows = [("model", "what", "n", "ms", "p90", "ratio", "p90")]
    for entry in entries:
        ratio = ["", ""]
        if "ratio" in entry:
            ratio = [f"{entry['ratio'][part]:.2f}" for part in ("median", "p90")]
        times = (f"{entry['median']:.1f}", f"{entry['p90']:.1f}")
        rows.append((entry["model"], entry["what"], str(entry["n"]), *times, *ratio))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the registration benchmark."""
    parser = options.make_parser("register", __doc__, rounds=7)
    options.add_models(parser)
    return parser.parse_args(words)


def main() -> None:
    chosen = arguments()
    workloads = [all_workloads()[name] for name in chosen.models]
    entries: list[dict[str, Any]] = []
    sandbox = ProcessSandbox(spare=True)
    try:
        with cloud.start(workloads, [STORAGE]) as aws:
            for workload in workloads:
                times = RegistrationTimes(aws, workload, sandbox)
                durations_ms = measure.interleave(
                    times.contenders(), chosen.rounds, label=workload.name
                )
                entries += results(workload.name, durations_ms, times.version)
    finally:
        sandbox.close()
    print(table(entries))
    measure.finish(measure.result_line("register", "ms", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
