"""How long does a model take from its upload's event to READY, and what does that buy when it is loaded?

    python -m benchmarks.register [--rounds N] [--models tiny,conv100,encoder400] [--no-save]

Registering, over what anyone has to do who wants to run an uploaded model once:
  reference  boto3's download_file, InferenceSession(file), one run; in a process that has imported all of it.
  ours       the register function's own code: claim in the registry (moto's DynamoDB), fetch, the sandbox's processes
             (started ahead, as in a function that is warm), unpack, compile, prove, measure, store the blobs, commit.
Loading, over the uploaded file (page cache warm, one thread, both in this process, each followed by one run):
  upload     InferenceSession(file) with default options.
  served     the files and the load plan that registration left.

Everything runs once a round, in a rotating order; the first round does not count, and ratios are of the same round.
Storage sends as benchmarks/harness/storage.py says ("s3-like": 15 ms to the first byte, 90 MB/s a connection). Puts are
modelled request by request, as `S3Blobs` makes them and at the same pace, on connections that all blobs share: a small
blob is one; a large one is a question whether it is there, a beginning, parts with their checksums, and an end.
(Results up to commit 20e0f73 took every put for one request at 900 MB/s, and hashed the file once more.)
A warm function starts its next processes while nobody waits; so does this one, between the measurements.
"""

import argparse
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from botocore.config import Config

from benchmarks.harness import cloud, measure
from benchmarks.harness.measure import Spread
from benchmarks.harness.models import Workload, all_workloads
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
FIRST_BYTE_S, BYTES_PER_S = 0.015, 90e6  # of one request that puts
SPARE_S = 1.0  # for the next processes to start
REFERENCE, OURS, UPLOAD, SERVED = "reference", "ours", "load upload", "load served"


class Case:
    """One workload, and everything that is measured with it."""

    def __init__(self, where: cloud.Cloud, workload: Workload, sandbox: ProcessSandbox) -> None:
        config = Config(
            proxies={}, retries={"total_max_attempts": 2}, max_pool_connections=CONNECTIONS
        )
        session = local_session()
        self.workload = workload
        self._sandbox = sandbox
        self._uploads = where.folder / "objects" / cloud.UPLOADS
        self._folder = where.folder / f"{workload.name}-case"
        self._folder.mkdir()
        self._s3 = session.client("s3", endpoint_url=where.storage_urls[STORAGE], config=config)
        table = DynamoTable(
            session.client("dynamodb", endpoint_url=where.registry_url, config=config),
            where.variables["REGISTRY_TABLE"],
        )
        self._blobs = PacedBlobs(self._folder / "blobs")
        self._registration = Registration(
            Registry(table, utc_now),
            S3Uploads(self._s3),
            self._blobs,
            sandbox,
            read_manifest,
        )
        self._original = where.model_path(workload)
        self._feeds = {workload.input: workload.values().astype(np.float32)}
        self._expected: np.ndarray | None = None
        self._number = 0
        self.version: Version | None = None

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Name to what measures it once, in ms. Ours comes first: it makes what is loaded."""
        return {
            OURS: self._ours,
            REFERENCE: self._reference,
            UPLOAD: self._load_upload,
            SERVED: self._load_served,
        }

    def _ours(self) -> float:
        self._number += 1
        key = f"models/{self.workload.name}/{self._number}.onnx"
        os.link(self._original, self._uploads / key)
        time.sleep(SPARE_S)
        began = time.perf_counter()
        version = self._registration.register(Upload(cloud.UPLOADS, key))
        taken = time.perf_counter() - began
        if version is None or version.state is not State.READY:
            raise RuntimeError(
                f"{self.workload.name} was not registered: {version and version.reason}"
            )
        self.version = version
        self._sandbox.refill()  # as the function's handler does then
        time.sleep(SPARE_S)
        return taken * 1000

    def _reference(self) -> float:
        path = self._folder / "downloaded.onnx"
        path.unlink(missing_ok=True)
        began = time.perf_counter()
        key = str(self._original.relative_to(self._uploads))
        self._s3.download_file(cloud.UPLOADS, key, str(path))
        self._run(ort.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"]))
        return (time.perf_counter() - began) * 1000

    def _load_upload(self) -> float:
        _give_back()
        began = time.perf_counter()
        session = ort.InferenceSession(
            str(self._original), _options(), providers=["CPUExecutionProvider"]
        )
        taken = (time.perf_counter() - began) * 1000
        self._run(session)
        return taken

    def _load_served(self) -> float:
        if self.version is None:
            raise RuntimeError("nothing was registered yet")
        served = self._folder / "served"
        if not served.exists():
            served.mkdir()
            for blob in self.version.files:
                os.link(self._blobs.folder / blob.sha256, served / blob.name)
        _give_back()
        began = time.perf_counter()
        session = OnnxRuntime().load(
            served / self.version.files[0].name, Plan.from_record(self.version.plan)
        )
        taken = (time.perf_counter() - began) * 1000
        tensors = {
            name: Tensor("FP32", values.shape, values.tobytes())
            for name, values in self._feeds.items()
        }
        answer = session.run(tensors, [self.workload.output], 60)[self.workload.output]
        self._check(np.frombuffer(answer.data, np.float32).reshape(answer.shape))
        shutil.rmtree(served)
        return taken

    def _run(self, session: Any) -> None:
        """One run of a session of ONNX Runtime's Python package."""
        [answer] = session.run([self.workload.output], self._feeds)
        self._check(answer)

    def _check(self, answer: np.ndarray) -> None:
        """It has to be the answer of the first that ran."""
        if self._expected is None:
            self._expected = answer
        off = float(
            np.max(np.abs(answer - self._expected) / np.maximum(1.0, np.abs(self._expected)))
        )
        if not off <= 1e-4:
            raise RuntimeError(f"{self.workload.name}: one answer is {off:.1e} from another")


@dataclass(frozen=True, slots=True)
class PacedBlobs:
    """`core.registration.BlobStore` in a folder, as fast as S3 is taken to be. `free_at`: when each connection is."""

    folder: Path
    free_at: list[float] = field(default_factory=lambda: [0.0] * CONNECTIONS)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def store(self, blob: Blob, path: Path) -> None:
        began = time.perf_counter()
        self.folder.mkdir(exist_ok=True)
        parts = [blob.size_bytes]
        if blob.size_bytes > PART:
            size = part_bytes(blob.size_bytes)
            parts = [min(size, blob.size_bytes - at) for at in range(0, blob.size_bytes, size)]
            began = self._sent([0], self._sent([0], began))
        ends = self._sent(parts, began)
        with path.open("rb") as source, (self.folder / blob.sha256).open("wb") as target:
            for part in parts:
                content = source.read(part)
                zlib.crc32(content)
                target.write(content)
        if len(parts) > 1:
            ends = self._sent([0], ends)
        time.sleep(max(0.0, ends - time.perf_counter()))

    def _sent(self, sizes: Sequence[int], earliest: float) -> float:
        """When the last of these requests is answered, if none begins before `earliest`."""
        ends = earliest
        with self.lock:
            for size in sizes:
                at = min(range(CONNECTIONS), key=self.free_at.__getitem__)
                self.free_at[at] = (
                    max(earliest, self.free_at[at]) + FIRST_BYTE_S + size / BYTES_PER_S
                )
                ends = max(ends, self.free_at[at])
        return ends


def _give_back() -> None:
    """What the other contenders have left on the heap: a load of ours gives it back, and an environment has none."""
    with mmap_large_allocations():
        pass


def _options() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


def results(
    model: str, taken: Mapping[str, Sequence[float]], version: Version | None
) -> list[dict[str, Any]]:
    """One entry for what was measured; ratios are of the same round."""
    found = [
        measure.row(Spread.of(values, 1), model=model, what=name) for name, values in taken.items()
    ]
    ratios = {OURS: REFERENCE, SERVED: UPLOAD}
    for entry in found:
        if entry["what"] in ratios:
            baseline = ratios[entry["what"]]
            entry["over"] = baseline
            entry["ratio"] = measure.ratios(taken[entry["what"]], taken[baseline]).to_record()
        if entry["what"] == SERVED and version is not None:
            entry["plan"] = dict(version.plan)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [("model", "what", "n", "ms", "p90", "ratio", "p90")]
    for entry in found:
        ratio = (
            [f"{entry['ratio'][part]:.2f}" for part in ("median", "p90")]
            if "ratio" in entry
            else ["", ""]
        )
        times = (f"{entry['median']:.1f}", f"{entry['p90']:.1f}")
        rows.append((entry["model"], entry["what"], str(entry["n"]), *times, *ratio))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.register", description=(__doc__ or "").splitlines()[0]
    )
    measure.add_arguments(parser, rounds=7)
    parser.add_argument(
        "--models", type=measure.one_of(all_workloads()), default=list(all_workloads())
    )
    return parser.parse_args(words)


def main() -> None:
    wanted = arguments()
    chosen = [all_workloads()[name] for name in wanted.models]
    found: list[dict[str, Any]] = []
    sandbox = ProcessSandbox(spare=True)
    try:
        with cloud.start(chosen, [STORAGE]) as where:
            for workload in chosen:
                case = Case(where, workload, sandbox)
                taken = measure.interleave(case.contenders(), wanted.rounds, what=workload.name)
                found += results(workload.name, taken, case.version)
    finally:
        sandbox.close()
    print(table(found))
    measure.finish(measure.result_line("register", "ms", wanted.rounds, found), wanted.save)


if __name__ == "__main__":
    main()
