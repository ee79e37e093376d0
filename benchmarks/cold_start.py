"""Cold start: time from process start to the first prediction.

    python -m benchmarks.cold_start [--rounds N] [--models tiny,conv100,encoder400]
                                    [--storages s3-like,unthrottled] [--clients mayfly,aws]
                                    [--no-save]

Each measurement starts a fresh process and ends when its prediction has arrived: the reference
prints it, a function posts it to a local Runtime API. A round runs every contender once, in a
rotating order. The first round is discarded: it also compiles the byte code. Ratios compare times
of the same round. A prediction that differs from the reference's by more than 1e-5 ends the
benchmark with an error. Contenders:

reference  Imports onnxruntime, opens a session of a local file and runs it once. It fetches no
           model and parses no request.
usual      Powertools' Logger, Metrics, Tracer and REST resolver, boto3's download_file, a session
           with default options, a JSON request. Under AWS's runtime client.
ours       functions.infer.main with the template's environment, under Mayfly's runtime client. It
           reads the version from the registry (moto's DynamoDB, without delay), fetches the model
           from storage and answers an API Gateway event with a JSON body and an access key, which
           it reads as well.
open       The same without access keys (Auth=none).
ours, aws  "ours" under AWS's runtime client (RuntimeClient=aws).

"s3-like" storage waits 15 ms before the first byte and sends 90 MB/s on each connection, without a
limit on their sum. "unthrottled" is the loopback interface.

Not measured: TLS, the network, Lambda's own start, a cold page cache. Telemetry is off in every
process, and so is the Tracer, because there is no X-Ray daemon. All processes have warm byte code.
Results up to commit 5324806 called the handlers without a runtime client.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import cloud, measure, options, requests
from benchmarks.harness.child import CHILDREN, spawn, write_json
from benchmarks.harness.measure import Spread
from benchmarks.harness.models import Workload, all_workloads
from benchmarks.harness.runtime.first_invocation import AWS, CLIENTS, MAYFLY, invoke

REFERENCE, USUAL, OURS, OPEN, OURS_AWS = "reference", "usual", "ours", "open", "ours, aws"
BY_CLIENT = {MAYFLY: (OURS, OPEN), AWS: (OURS_AWS,)}


class ColdStarts:
    """Cold start measurements of each contender for one model, predictions checked."""

    def __init__(self, aws: cloud.Cloud, workload: Workload) -> None:
        self._aws = aws
        self.workload = workload
        self._folder = aws.folder / workload.name
        self._folder.mkdir()
        self._values = workload.write_values(self._folder / "values")
        write_json(self._folder / "infer.json", requests.infer_event(workload, key=aws.key))
        write_json(self._folder / "predict.json", requests.predict_event(workload))
        self._expected: np.ndarray | None = None

    def contenders(
        self, storages: Sequence[str], clients: Sequence[str]
    ) -> dict[str, Callable[[], float]]:
        """Return a function per contender that measures one cold start in ms.

        The reference comes first: its prediction is the expected one.
        """
        contenders: dict[str, Callable[[], float]] = {REFERENCE: self._reference}
        for storage in storages:
            contenders[f"{USUAL}, {storage}"] = partial(self._usual, storage)
            for client in clients:
                for contender in BY_CLIENT[client]:
                    measurement = partial(self._ours, storage, contender, client)
                    contenders[f"{contender}, {storage}"] = measurement
        return contenders

    def _reference(self) -> float:
        shape = ",".join(map(str, (1, *self.workload.shape)))
        command: list[str | Path] = [
            CHILDREN / "reference.py",
            self._aws.model_path(self.workload),
            self._values,
            shape,
        ]
        duration_ms, answer = spawn(command, cloud.plain_environment, self._folder)
        prediction = np.array(answer, np.float32)
        if self._expected is None:
            self._expected = prediction
        self._check(prediction, REFERENCE)
        return duration_ms

    def _usual(self, storage: str) -> float:
        path = self._aws.model_path(self.workload).relative_to(self._aws.folder / "objects")
        variables = {
            "MODEL_BUCKET": path.parts[0],
            "MODEL_KEY": "/".join(path.parts[1:]),
            "POWERTOOLS_METRICS_NAMESPACE": "Usual",
            "POWERTOOLS_SERVICE_NAME": "usual",
            "POWERTOOLS_TRACE_DISABLED": "true",
        }
        duration_ms, reply = self._invoke(
            "benchmarks.children.usual", "predict.json", storage, variables, AWS
        )
        self._check(requests.usual_prediction(reply), USUAL)
        return duration_ms

    def _ours(self, storage: str, contender: str, client: str) -> float:
        variables = {**self._aws.variables, "AUTH": "none" if contender == OPEN else "keys"}
        duration_ms, reply = self._invoke(
            "functions.infer.main", "infer.json", storage, variables, client
        )
        if reply["headers"]["x-cold-start"] != "1":
            raise RuntimeError("the first request was no cold start")
        self._check(requests.infer_prediction(reply), contender)
        return duration_ms

    def _invoke(
        self, module: str, event: str, storage: str, variables: Mapping[str, str], client: str
    ) -> tuple[float, Any]:
        def environment(tmp: Path) -> dict[str, str]:
            return self._aws.lambda_environment(storage, tmp, variables)

        handler = f"{module}.lambda_handler"
        return invoke(handler, self._folder / event, client, environment, self._folder)

    def _check(self, prediction: np.ndarray, contender: str) -> None:
        if self._expected is None:
            raise RuntimeError("the reference has to run first")
        label = f"{contender} answered {self.workload.name}"
        requests.check_prediction(label, prediction, self._expected)


def results(
    model: str, durations_ms: Mapping[str, Sequence[float]], storages: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one result entry per contender: cold start times and ratios.

    Ratios compare times of the same round.
    """
    reference = durations_ms[REFERENCE]
    spread = Spread.from_values(reference, 1)
    entries = [measure.row(spread, model=model, contender=REFERENCE, storage="local file")]
    for storage in storages:
        by_contender = {
            contender: durations_ms[f"{contender}, {storage}"]
            for contender in (USUAL, OURS, OPEN, OURS_AWS)
            if f"{contender}, {storage}" in durations_ms
        }
        for contender, values in by_contender.items():
            spread = Spread.from_values(values, 1)
            entry = measure.row(spread, model=model, contender=contender, storage=storage)
            entry["over_reference"] = measure.ratios(values, reference).to_record()
            if contender in (OURS, OURS_AWS):
                entry["over_usual"] = measure.ratios(values, by_contender[USUAL]).to_record()
            if contender == OURS:
                entry["over_open"] = measure.ratios(values, by_contender[OPEN]).to_record()
            entries.append(entry)
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format cold start results as a text table."""
    rows = [
        (
            "model",
            "contender",
            "storage",
            "n",
            "ms",
            "p90",
            "/reference",
            "p90",
            "/usual",
            "p90",
            "/open",
            "p90",
        )
    ]
    for entry in entries:
        label = (entry["model"], entry["contender"], entry["storage"], str(entry["n"]))
        times = (f"{entry['median']:.0f}", f"{entry['p90']:.0f}")
        ratios = [
            cell
            for ratio in ("over_reference", "over_usual", "over_open")
            for cell in _cells(entry, ratio)
        ]
        rows.append((*label, *times, *ratios))
    return measure.table(rows)


def _cells(entry: Mapping[str, Any], ratio: str) -> list[str]:
    return [f"{entry[ratio][part]:.2f}" if ratio in entry else "" for part in ("median", "p90")]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the cold start benchmark."""
    parser = options.make_parser("cold_start", __doc__, rounds=10)
    options.add_models(parser)
    storages = list(cloud.STORAGES)
    parser.add_argument("--storages", type=options.choice_of(storages), default=storages)
    parser.add_argument("--clients", type=options.choice_of(CLIENTS), default=list(CLIENTS))
    return parser.parse_args(words)


def main() -> None:
    chosen = arguments()
    workloads = [all_workloads()[name] for name in chosen.models]
    entries: list[dict[str, Any]] = []
    with cloud.start(workloads, chosen.storages) as aws:
        for workload in workloads:
            contenders = ColdStarts(aws, workload).contenders(chosen.storages, chosen.clients)
            durations_ms = measure.interleave(contenders, chosen.rounds, label=workload.name)
            entries += results(workload.name, durations_ms, chosen.storages)
    print(table(entries))
    measure.finish(measure.result_line("cold_start", "ms", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
