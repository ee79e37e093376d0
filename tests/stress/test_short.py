"""The short, seeded form of what `make stress` runs at length."""

import pytest

from tests.stress import many_models, mutants


def test_every_seed_is_a_good_model() -> None:
    line = mutants.Line()
    try:
        assert {mutants.outcome(line, content) for content in mutants.seeds()} == {"READY, right"}
    finally:
        line.close()


def test_150_mutants_are_ready_and_right_or_rejected_with_a_reason() -> None:
    found = mutants.run(150, seed=1)

    assert sum(times for what, times in found.items() if not what.startswith("(")) == 150
    assert found["READY, right"]


def test_15_models_in_an_environment_that_holds_a_few() -> None:
    found = many_models.run(models=15, memory_mb=320, threads=4, requests=80)

    answers = len(found["hits_ms"]) + len(found["misses_ms"])
    assert answers + sum(found["refused"].values()) == len(found["peaks_mb"]) == 80
    assert len(found["misses_ms"]) > 10
    assert found["files_mb"] > 1


GOOD = {
    "peaks_mb": [100.0, 200.0], "bare_mb": 100.0, "bound_mb": 100.0, "held_mb": 100.0, "files_mb": 5.0,
    "storage_mb": 10.0, "refused": {"MODELS_BUSY": 3},
}  # fmt: skip
BAD = [
    ({"peaks_mb": [100.0, 249.0, 250.0]}, "took 250 MB and may take 248, first after request 1"),
    ({"held_mb": 100.5}, "counted 100.5 MB, above its bound of 100.0"),
    ({"files_mb": 11.0}, "counted 11.0 MB"),
    ({"refused": {"MODEL_TOO_LARGE": 1}}, "MODEL_TOO_LARGE"),
]


@pytest.mark.parametrize(("change", "told"), BAD, ids=[*map(str, range(len(BAD)))])
def test_the_check_of_the_long_run_sees_what_it_looks_for(
    change: dict[str, object], told: str
) -> None:
    assert many_models.check(GOOD) == []
    assert told in "".join(many_models.check(GOOD | change))
