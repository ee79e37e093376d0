"""Invariants of the registry under faults, and planted faults that the machine finds."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.stateful.cloud import Cloud
from tests.stateful.machine import Machine
from tests.stateful.planted import FOUND_SOON, PLANTS

EVERYTHING_S = 3600


def size(examples: int, steps: int, **changes: Any) -> settings:
    defaults = {"derandomize": True, "deadline": None, "database": None, "phases": [Phase.generate]}
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=list(HealthCheck),
        **{**defaults, **changes},
    )


def test_every_invariant_holds(aws: Cloud) -> None:
    run_state_machine_as_test(lambda: Machine(aws), settings=size(15, 30))


@pytest.mark.stress
@pytest.mark.timeout(EVERYTHING_S)
def test_every_invariant_holds_for_long(aws: Cloud) -> None:
    run_state_machine_as_test(
        lambda: Machine(aws), settings=size(500, 50, derandomize=False, print_blob=True)
    )

    print(
        "calls and faults:",
        *(f"{call} {fault} {count}" for (call, fault), count in sorted(aws.tried.items())),
        sep="\n",
    )


def find(aws: Cloud, plant: Callable[[], AbstractContextManager[None]], examples: int) -> int:
    """Return the number of examples until the planted fault is found."""
    tried = 0

    def make() -> Machine:
        nonlocal tried
        tried += 1
        return Machine(aws)

    with plant(), pytest.raises(AssertionError):
        run_state_machine_as_test(make, settings=size(examples, 50))
    return tried


@pytest.mark.parametrize("name", FOUND_SOON)
def test_a_planted_fault_is_found(aws: Cloud, name: str) -> None:
    find(aws, PLANTS[name], 100)


@pytest.mark.stress
@pytest.mark.timeout(EVERYTHING_S)
@pytest.mark.parametrize("name", sorted(PLANTS))
def test_every_planted_fault_is_found(aws: Cloud, name: str) -> None:
    print(f"{name}: found by example {find(aws, PLANTS[name], 500)}")
