"""How much memory does a loaded model take at the most, from the start of the process to its first answer?

    python -m benchmarks.memory [--rounds N] [--models tiny,conv100,encoder400] [--no-save]

Each measurement is a fresh process, and the peak of its resident memory (VmHWM), mapped files included:
  idle       functions.infer.main with the template's environment, of which nothing was asked yet.
  reference  import onnxruntime, InferenceSession(the file as it was uploaded), one run.
  ours       functions.infer.main with the template's environment: the record from the registry, the model fetched from
             storage, one API Gateway event with a JSON body.
What ours takes over the idle process is compared with the goal, 1.2 x weights + 60 MB; weights are the size of the
uploaded file. It includes the request and its values. A prediction that is not the reference's (within 1e-5) ends the
benchmark with an error.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cold_start import spawn
from benchmarks.harness import cloud, measure, requests
from benchmarks.harness.measure import ROOT, TOLERANCE, Spread
from benchmarks.harness.models import Workload, all_workloads

CHILD = ROOT / "benchmarks" / "children" / "peak.py"
MB = 1024 * 1024
IDLE, REFERENCE, OURS = "idle", "reference", "ours"
FACTOR, CONSTANT_MB = 1.2, 60.0


class Case:
    """One workload, and the processes that answer for it."""

    def __init__(self, where: cloud.Cloud, workload: Workload) -> None:
        self._cloud = where
        self._folder = where.folder / workload.name
        self._folder.mkdir()
        self._values = self._folder / "values"
        workload.values().astype(np.float32).tofile(self._values)
        self._event = self._folder / "infer.json"
        self._event.write_text(json.dumps(requests.infer_event(workload)), encoding="utf-8")
        self._shape = ",".join(map(str, (1, *workload.shape)))
        self._model = where.model_path(workload)
        self._expected: np.ndarray | None = None
        self.weights_mb = self._model.stat().st_size / MB

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Name to what measures it once, in MB. The reference comes before ours: it says what is right."""
        return {
            IDLE: lambda: self._spawn([IDLE], partial(_ours_environment, self._cloud))[0],
            REFERENCE: self._reference,
            OURS: self._ours,
        }

    def _reference(self) -> float:
        peak, answer = self._spawn(
            [REFERENCE, self._model, self._values, self._shape], cloud.plain_environment
        )
        self._expected = np.array(answer)
        return peak

    def _ours(self) -> float:
        peak, answer = self._spawn([OURS, self._event], partial(_ours_environment, self._cloud))
        if self._expected is None:  # ours may come first in a warm-up round
            self._reference()
        wanted = self._expected
        got = np.array(answer).reshape(wanted.shape if wanted is not None else -1)
        off = (
            np.max(np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted)))
            if wanted is not None
            else np.inf
        )
        if not off <= TOLERANCE:
            raise RuntimeError(f"the answer is {off:.1e} from the reference's")
        return peak

    def _spawn(
        self, words: Sequence[str | Path], environment: Callable[[Path], Mapping[str, str]]
    ) -> tuple[float, Any]:
        _, answer = spawn([CHILD, *words], environment, self._folder)
        return answer["peak_mb"], answer["prediction"]


def _ours_environment(where: cloud.Cloud, tmp: Path) -> dict[str, str]:
    return where.lambda_environment("unthrottled", tmp, where.variables)


def results(
    model: str, weights_mb: float, taken: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """One entry a contender; `over_idle` is of the same round, `goal` what it may be at the most."""
    found = []
    for contender, values in taken.items():
        entry = measure.row(Spread.of(values, 1), model=model, contender=contender)
        if contender != IDLE:
            over = [value - base for value, base in zip(values, taken[IDLE], strict=True)]
            entry["over_idle"] = Spread.of(over, 1).to_record()
            entry["weights_mb"] = round(weights_mb, 1)
            entry["goal"] = round(FACTOR * weights_mb + CONSTANT_MB, 1)
        found.append(entry)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [("model", "contender", "n", "peak MB", "over idle", "weights", "goal")]
    for one in found:
        over = one.get("over_idle", {}).get("median", "")
        numbers = (one["median"], over, one.get("weights_mb", ""), one.get("goal", ""))
        texts = [f"{number:.0f}" if number != "" else "" for number in numbers]
        rows.append(
            (one["model"], one["contender"], str(one["n"]), texts[0], texts[1], texts[2], texts[3])
        )
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0]
    )
    measure.add_arguments(parser, rounds=5)
    parser.add_argument(
        "--models", type=measure.one_of(all_workloads()), default=list(all_workloads())
    )
    return parser.parse_args(words)


def main() -> None:
    wanted = arguments()
    chosen = [all_workloads()[name] for name in wanted.models]
    found: list[dict[str, Any]] = []
    with cloud.start(chosen, ["unthrottled"]) as where:
        for workload in chosen:
            case = Case(where, workload)
            taken = measure.interleave(case.contenders(), wanted.rounds, what=workload.name)
            found += results(workload.name, case.weights_mb, taken)
    print(table(found))
    measure.finish(measure.result_line("memory", "MB", wanted.rounds, found), wanted.save)


if __name__ == "__main__":
    main()
