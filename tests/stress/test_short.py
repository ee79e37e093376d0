"""Short, seeded runs of the stress tests of `make stress`."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from functions.core.package.onnx_limits import MICROSOFT
from tests.stress import (
    conformance,
    hostile_requests,
    many_models,
    mutants,
    operator_graphs,
)
from tests.stress.exporters import frameworks


def test_every_seed_is_a_good_model() -> None:
    processes = mutants.Processes()
    try:
        assert {mutants.outcome(processes, content) for content in mutants.seeds()} == {
            "READY, right"
        }
    finally:
        processes.close()


def test_150_mutants_are_ready_and_right_or_rejected_with_a_reason() -> None:
    outcomes = mutants.run(150, seed=1)

    assert sum(times for name, times in outcomes.items() if not name.startswith("(")) == 150
    assert outcomes["READY, right"]


def test_15_models_in_an_environment_that_holds_a_few() -> None:
    measured = many_models.run(models=15, memory_mb=320, threads=4, requests=80)

    answers = len(measured["hits_ms"]) + len(measured["misses_ms"])
    assert answers + sum(measured["refused"].values()) == len(measured["peaks_mb"]) == 80
    assert len(measured["misses_ms"]) > 10
    assert measured["files_mb"] > 1


def test_60_hostile_requests_end_no_environment_and_are_answered_in_one_line() -> None:
    report = hostile_requests.run(requests=60, seed=5, models=6)

    assert report.faults == []
    assert sum(report.outcomes.values()) == 60
    assert report.outcomes["200"]
    assert len({kind for kind, _ in report.kinds}) > 15


GOOD = {
    "peaks_mb": [100.0, 200.0],
    "bare_mb": 100.0,
    "bound_mb": 100.0,
    "held_mb": 100.0,
    "files_mb": 5.0,
    "storage_mb": 10.0,
    "refused": {"MODELS_BUSY": 3},
}
BAD = [
    ({"peaks_mb": [100.0, 249.0, 250.0]}, "took 250 MB and may take 248, first after request 1"),
    ({"held_mb": 100.5}, "counted 100.5 MB, above its bound of 100.0"),
    ({"files_mb": 11.0}, "counted 11.0 MB"),
    ({"refused": {"MODEL_TOO_LARGE": 1}}, "MODEL_TOO_LARGE"),
]


@pytest.mark.parametrize(("change", "problem"), BAD, ids=[*map(str, range(len(BAD)))])
def test_the_check_of_the_long_run_detects_each_violation(
    change: dict[str, object], problem: str
) -> None:
    assert many_models.check(GOOD) == []
    assert problem in "".join(many_models.check(GOOD | change))


def test_node_tests_are_ready_and_right_or_refused_for_a_stated_reason() -> None:
    modules = random.Random(0).sample(conformance.modules(), 12)  # noqa: S311 (seeded)
    cases = conformance.collect(modules)

    outcomes = list(conformance.run(cases[:: max(1, len(cases) // 40)]))

    failures = [outcome for outcome in outcomes if outcome.kind in conformance.FAILURES]
    assert not failures
    assert sum(outcome.kind == conformance.RIGHT for outcome in outcomes) > 10


def test_a_worker_that_dies_is_a_crash_and_the_rest_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def judge(case: conformance.Case, *_: object) -> conformance.Outcome:
        if case.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return conformance.Outcome(case.name, conformance.RIGHT)

    monkeypatch.setattr(conformance, "judge", judge)
    names = ["a", "deadly", "b", "c", "deadly", "d"]
    cases = [conformance.Case(name, b"", {}, [], 0.0, 0.0, random=False) for name in names]

    outcomes = list(conformance.run(cases))

    kinds = Counter((outcome.name, outcome.kind) for outcome in outcomes)
    assert kinds == {("deadly", conformance.CRASH): 2} | {
        (name, conformance.RIGHT): 1 for name in "abcd"
    }


def test_answers_that_differ_from_the_frameworks_are_reported() -> None:
    probabilities = np.array([[0.25, 0.75]], np.float32)
    right = {"label": np.array([1]), "p": probabilities}

    assert list(frameworks.differences(right, right)) == []
    [problem] = frameworks.differences(right | {"p": probabilities + np.float32(1e-4)}, right)
    assert problem == "p: differs by 0.0001"
    [problem] = frameworks.differences(right | {"label": np.array([0])}, right)
    assert problem == "label: [0] instead of [1]"


def test_no_request_to_a_graph_of_the_catalog_ends_the_process() -> None:
    """Check that fuzzing the operator catalog crashes no process.

    It runs as a program of its own, because it forks and pytest has threads.
    """
    command = [sys.executable, "-m", "tests.stress.hostile_values", "--catalog", "--randoms", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    graphs = len([*operator_graphs.catalog()])
    assert (counts["deaths"], counts["graphs"]) == (0, graphs)
    assert counts["answered"] + counts["refused"] == graphs
    assert counts["refused"] == 2  # Div and Mod of integers


def test_the_fuzzer_detects_a_death() -> None:
    command = [sys.executable, "-m", "tests.stress.hostile_values", "--catalog", "--unguarded"]
    only = ["--match", "QAttention u2,4,8 c8,24 f24 f f i2,4"]
    done = subprocess.run([*command, *only], capture_output=True, text=True, check=True)

    assert "SIGFPE" in done.stdout


def test_the_catalog_has_every_allowed_operator_of_microsoft() -> None:
    names = {graph.name.split()[0] for graph in operator_graphs.catalog()}

    assert {f"com.microsoft:{operator}" for operator in MICROSOFT} <= names
