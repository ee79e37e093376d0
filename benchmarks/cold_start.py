"""How long does the first prediction take, from the start of the process, with the model fetched from S3?

    python -m benchmarks.cold_start [--rounds N] [--models tiny,conv100,encoder400] [--storages s3-like] [--no-save]

Each measurement is a fresh process, timed from before it is spawned until its prediction is read from its output:
  reference  import onnxruntime, InferenceSession(local file), one run. It fetches nothing and parses nothing.
  usual      Powertools' Logger, Metrics, Tracer and REST resolver, boto3's download_file, a default session, JSON.
  ours       functions.infer.main with the template's environment: the record from the registry (moto's DynamoDB,
             without delay), the model from storage, one API Gateway event with a JSON body.
One round runs each once, in a rotating order; the first round does not count (it also compiles the byte code). Ratios
are of the same round. A prediction that is not the reference's (within 1e-5) ends the benchmark with an error.

"s3-like" takes 15 ms to the first byte and sends 90 MB/s a connection, without a limit on the sum; "unthrottled" is
loopback. Not measured: TLS, the network, Lambda's own start and its runtime client, a cold page cache. Telemetry is off
for all; the Tracer is disabled by its own variable, because no X-Ray daemon is here. Children run with the same
interpreter flags (none) and warm byte code.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import cloud, measure, requests
from benchmarks.harness.measure import ROOT, TOLERANCE, Spread
from benchmarks.harness.models import Workload, all_workloads

CHILDREN = ROOT / "benchmarks" / "children"
MARK = b"ANSWER "
LIMIT_S = 120.0
REFERENCE, USUAL, OURS = "reference", "usual", "ours"


class Case:
    """One workload: its files, and the contenders that answer for it."""

    def __init__(self, where: cloud.Cloud, workload: Workload) -> None:
        self._cloud = where
        self.workload = workload
        self._folder = where.folder / workload.name
        self._folder.mkdir()
        workload.values().astype(np.float32).tofile(self._folder / "values")
        for name, event in (("infer", requests.infer_event), ("predict", requests.predict_event)):
            (self._folder / f"{name}.json").write_text(
                json.dumps(event(workload)), encoding="utf-8"
            )
        self._expected: np.ndarray | None = None

    def contenders(self, storages: Sequence[str]) -> dict[str, Callable[[], float]]:
        """Name to what measures it once, in ms. The reference comes first: it says what the others have to answer."""
        found: dict[str, Callable[[], float]] = {REFERENCE: self._reference}
        for storage in storages:
            found[f"{USUAL}, {storage}"] = partial(self._usual, storage)
            found[f"{OURS}, {storage}"] = partial(self._ours, storage)
        return found

    def _reference(self) -> float:
        shape = ",".join(map(str, (1, *self.workload.shape)))
        script, model = CHILDREN / "reference.py", self._cloud.model_path(self.workload)
        taken, answer = spawn(
            [script, model, self._folder / "values", shape], cloud.plain_environment, self._folder
        )
        if self._expected is None:
            self._expected = np.array(answer, np.float32)
        return self._checked(taken, np.array(answer, np.float32), REFERENCE)

    def _usual(self, storage: str) -> float:
        path = self._cloud.model_path(self.workload).relative_to(self._cloud.folder / "objects")
        variables = {
            "MODEL_BUCKET": path.parts[0],
            "MODEL_KEY": "/".join(path.parts[1:]),
            "POWERTOOLS_METRICS_NAMESPACE": "Usual",
            "POWERTOOLS_SERVICE_NAME": "usual",
            "POWERTOOLS_TRACE_DISABLED": "true",
        }
        taken, answer = self._spawn("benchmarks.children.usual", "predict.json", storage, variables)
        return self._checked(taken, requests.usual_prediction(answer), USUAL)

    def _ours(self, storage: str) -> float:
        taken, answer = self._spawn(
            "functions.infer.main", "infer.json", storage, self._cloud.variables
        )
        if answer["headers"]["x-cold-start"] != "1":
            raise RuntimeError("the first request was no cold start")
        return self._checked(taken, requests.infer_prediction(answer), OURS)

    def _spawn(
        self, module: str, event: str, storage: str, variables: Mapping[str, str]
    ) -> tuple[float, Any]:
        def environment(tmp: Path) -> dict[str, str]:
            return self._cloud.lambda_environment(storage, tmp, variables)

        return spawn(
            [CHILDREN / "invoke.py", module, self._folder / event], environment, self._folder
        )

    def _checked(self, taken: float, prediction: np.ndarray, who: str) -> float:
        expected = self._expected
        if expected is None or prediction.shape != expected.shape:
            raise RuntimeError(
                f"{who} answered {self.workload.name} with a wrong shape, {prediction.shape}"
            )
        off = float(np.max(np.abs(prediction - expected) / np.maximum(1.0, np.abs(expected))))
        if not off <= TOLERANCE:
            raise RuntimeError(
                f"{who} answered {self.workload.name} wrongly: {off:.1e} from the reference"
            )
        return taken


def spawn(
    arguments: Sequence[str | Path], environment: Callable[[Path], Mapping[str, str]], folder: Path
) -> tuple[float, Any]:
    """(ms, answer) of a fresh Python with a temporary directory of its own in `folder`, which is removed again.

    Raises:
        RuntimeError: it ended without an answer.
    """
    tmp = Path(tempfile.mkdtemp(dir=folder))
    variables = dict(environment(tmp))
    try:
        with tempfile.TemporaryFile() as errors:
            began = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=tmp, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            ) as process:  # fmt: skip
                answer, ended = _answer(process)
            if answer is None or process.returncode:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip()[-1000:]
                raise RuntimeError(
                    f"{Path(arguments[0]).name} ended with {process.returncode}: {last}"
                )
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return (ended - began) * 1000, json.loads(answer)


def _answer(process: "subprocess.Popen[bytes]") -> tuple[bytes | None, float]:
    """The marked line of its output, and when it came. Reads on to the end, which is not waited for in the time."""
    watchdog = threading.Timer(LIMIT_S, process.kill)
    watchdog.start()
    try:
        found, at = None, 0.0
        for line in process.stdout or ():
            if found is None and line.startswith(MARK):
                found, at = line[len(MARK) :], time.perf_counter()
        process.wait()
        return found, at
    finally:
        watchdog.cancel()


def results(
    model: str, taken: Mapping[str, Sequence[float]], storages: Sequence[str]
) -> list[dict[str, Any]]:
    """One entry a contender; the ratios of ours to the two others, of the same round."""
    reference = taken[REFERENCE]
    found = [
        measure.row(Spread.of(reference, 1), model=model, contender=REFERENCE, storage="local file")
    ]
    for storage in storages:
        usual, ours = taken[f"{USUAL}, {storage}"], taken[f"{OURS}, {storage}"]
        for contender, values in ((USUAL, usual), (OURS, ours)):
            entry = measure.row(
                Spread.of(values, 1), model=model, contender=contender, storage=storage
            )
            entry["over_reference"] = measure.ratios(values, reference).to_record()
            found.append(entry)
        found[-1]["over_usual"] = measure.ratios(ours, usual).to_record()
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    def both(entry: Mapping[str, Any], ratio: str) -> list[str]:
        return [f"{entry[ratio][part]:.2f}" if ratio in entry else "" for part in ("median", "p90")]

    rows = [
        ("model", "contender", "storage", "n", "ms", "p90", "/reference", "p90", "/usual", "p90")
    ]
    for entry in found:
        label = (entry["model"], entry["contender"], entry["storage"], str(entry["n"]))
        times = (f"{entry['median']:.0f}", f"{entry['p90']:.0f}")
        rows.append((*label, *times, *both(entry, "over_reference"), *both(entry, "over_usual")))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cold_start", description=(__doc__ or "").splitlines()[0]
    )
    measure.add_arguments(parser, rounds=10)
    parser.add_argument(
        "--models", type=measure.one_of(all_workloads()), default=list(all_workloads())
    )
    parser.add_argument(
        "--storages", type=measure.one_of(cloud.STORAGES), default=list(cloud.STORAGES)
    )
    return parser.parse_args(words)


def main() -> None:
    wanted = arguments()
    chosen = [all_workloads()[name] for name in wanted.models]
    found: list[dict[str, Any]] = []
    with cloud.start(chosen, wanted.storages) as where:
        for workload in chosen:
            contenders = Case(where, workload).contenders(wanted.storages)
            taken = measure.interleave(contenders, wanted.rounds, what=workload.name)
            found += results(workload.name, taken, wanted.storages)
    print(table(found))
    measure.finish(measure.result_line("cold_start", "ms", wanted.rounds, found), wanted.save)


if __name__ == "__main__":
    main()
