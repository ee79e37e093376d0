"""Short, seeded runs of the stress tests of `make stress`."""

import pytest

from tests.stress import many_models, mutants


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
