"""Counters of each version under one traffic object, for canaries and shadows."""

from functions.core.registry.table import Table
from functions.core.usage.counters import Counters, counters_from
from functions.core.usage.items import arm_sk, usage_pk


def read_arms(table: Table, model: str, traffic: str) -> dict[int, Counters]:
    """Read the counters of each version under a traffic object.

    The keys are version numbers; the counters lag by the interval of the environments' writes.
    `requests`, `errors` and `latency` are those of served requests; `shadowed`, `compared`,
    `agreed`, `failed` and `shadow_latency` those of shadow copies.
    """
    items = table.query(usage_pk(model), arm_sk(traffic))
    return {int(item["sk"].rpartition("#")[2]): counters_from(item) for item in items}
