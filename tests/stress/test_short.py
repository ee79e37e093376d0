"""The short, seeded form of what `make stress` runs at length."""

from tests.stress import mutants


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
