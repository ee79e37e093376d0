"""Counters of a canary's two versions, from the metering of the environments."""

from functions.core.canary.judge import Arm
from functions.core.registry.table import Table
from functions.core.usage.arms import read_arms
from functions.core.usage.counters import Counters


def read_canary_arms(
    table: Table, model: str, traffic: str, stable: int, candidate: int
) -> tuple[Arm, Arm]:
    """Read the counters of two versions under a traffic object: stable, candidate.

    They lag by the interval of the environments' writes.
    """
    counters = read_arms(table, model, traffic)
    versions = (stable, candidate)
    first, second = (_arm(counters[v]) if v in counters else Arm() for v in versions)
    return first, second


def _arm(counters: Counters) -> Arm:
    return Arm(
        requests=counters.requests,
        errors=counters.errors + counters.refused,
        latency=counters.latency,
        drawn=counters.drawn,
        cold=counters.cold_starts,
        compared=counters.compared + counters.failed,
        disagreed=counters.compared - counters.agreed + counters.failed,
    )
