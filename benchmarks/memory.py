"""Memory: peak resident size of a process up to its first prediction.

    python -m benchmarks.memory [--rounds N] [--models tiny,conv100,encoder400] [--no-save]

Each measurement is a fresh process, of which the peak of resident memory (VmHWM) is read, mapped
files included. A prediction that differs from the reference's by more than 1e-5 ends the benchmark
with an error. Contenders:

idle       functions.infer.main with the template's environment, before any request.
reference  Imports onnxruntime, opens a session of the uploaded file and runs it once.
ours       functions.infer.main with the template's environment. It reads the version from the
           registry, fetches the model from storage and answers an API Gateway event with a JSON
           body.

The goal is that ours needs at most 1.2 x weights + 60 MB more than the idle process, its request
and values included. The weights count as the size of the uploaded file.

Not measured: the runtime client (`benchmarks.peers` includes it), memory after more requests
(`benchmarks.many_models`).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import cloud, measure, options, requests
from benchmarks.harness.child import CHILDREN, spawn, write_json
from benchmarks.harness.measure import Spread
from benchmarks.harness.models import Workload, all_workloads

STORAGE = "unthrottled"
MB = 1024 * 1024
IDLE, REFERENCE, OURS = "idle", "reference", "ours"
FACTOR, CONSTANT_MB = 1.2, 60.0  # the goal: FACTOR x weights + CONSTANT_MB


class PeakMemory:
    """Peak memory measurements of each contender for one model, predictions checked."""

    def __init__(self, aws: cloud.Cloud, workload: Workload) -> None:
        self._aws = aws
        self._workload = workload
        self._folder = aws.folder / workload.name
        self._folder.mkdir()
        self._values = workload.write_values(self._folder / "values")
        self._event = write_json(
            self._folder / "infer.json", requests.infer_event(workload, key=aws.key)
        )
        self._shape = ",".join(map(str, (1, *workload.shape)))
        self._model = aws.model_path(workload)
        self._expected: np.ndarray | None = None
        self.weights_mb = self._model.stat().st_size / MB

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Return a function per contender that measures peak memory in MB.

        The reference comes before ours: its prediction is the expected one.
        """
        return {IDLE: self._idle, REFERENCE: self._reference, OURS: self._ours}

    def _idle(self) -> float:
        return self._spawn([IDLE], self._function_environment)[0]

    def _reference(self) -> float:
        words: list[str | Path] = [REFERENCE, self._model, self._values, self._shape]
        peak_mb, prediction = self._spawn(words, cloud.plain_environment)
        self._expected = prediction
        return peak_mb

    def _ours(self) -> float:
        peak_mb, prediction = self._spawn([OURS, self._event], self._function_environment)
        if self._expected is None:
            raise RuntimeError("the reference has to run first")
        label = f"{OURS} answered {self._workload.name}"
        requests.check_prediction(label, prediction.reshape(self._expected.shape), self._expected)
        return peak_mb

    def _function_environment(self, tmp: Path) -> dict[str, str]:
        return self._aws.lambda_environment(STORAGE, tmp, self._aws.variables)

    def _spawn(
        self, words: Sequence[str | Path], environment: Callable[[Path], Mapping[str, str]]
    ) -> tuple[float, np.ndarray]:
        _, answer = spawn([CHILDREN / "peak.py", *words], environment, self._folder)
        return answer["peak_mb"], np.array(answer["prediction"])


def results(
    model: str, weights_mb: float, peaks_mb: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Return one result entry per contender: peak memory and its goal.

    `over_idle` is the difference to the idle process of the same round, `goal` its allowed maximum.
    """
    entries = []
    for contender, values in peaks_mb.items():
        entry = measure.row(Spread.from_values(values, 1), model=model, contender=contender)
        if contender != IDLE:
            entry["over_idle"] = measure.differences(values, peaks_mb[IDLE], 1).to_record()
            entry["weights_mb"] = round(weights_mb, 1)
            entry["goal"] = round(FACTOR * weights_mb + CONSTANT_MB, 1)
        entries.append(entry)
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format peak memory results as a text table."""
    rows: list[Sequence[str]] = [
        ("model", "contender", "n", "peak MB", "over idle", "weights", "goal")
    ]
    for entry in entries:
        over = entry.get("over_idle", {}).get("median", "")
        numbers = (entry["median"], over, entry.get("weights_mb", ""), entry.get("goal", ""))
        cells = [f"{number:.0f}" if number != "" else "" for number in numbers]
        rows.append((entry["model"], entry["contender"], str(entry["n"]), *cells))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the memory benchmark."""
    parser = options.make_parser("memory", __doc__, rounds=5)
    options.add_models(parser)
    return parser.parse_args(words)


def main() -> None:
    chosen = arguments()
    workloads = [all_workloads()[name] for name in chosen.models]
    entries: list[dict[str, Any]] = []
    with cloud.start(workloads, [STORAGE]) as aws:
        for workload in workloads:
            processes = PeakMemory(aws, workload)
            peaks_mb = measure.interleave(
                processes.contenders(), chosen.rounds, label=workload.name
            )
            entries += results(workload.name, processes.weights_mb, peaks_mb)
    print(table(entries))
    measure.finish(measure.result_line("memory", "MB", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
