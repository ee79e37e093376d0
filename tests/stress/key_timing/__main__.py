"""Timing of refused access keys: can a caller tell why a key is refused?

    python -m tests.stress.key_timing [--each 4000] [--difference-us 20]

Keys of each kind are checked by gates that have cached none of them, in random order, and the time
of each refusal is measured, with the client that is deployed. DynamoDB is a server on loopback that
repeats moto's replies: moto itself takes 0.1 ms longer to filter an item than to find none, in
Python, which says nothing about DynamoDB. So the times are those of what we send, read and decide.
Wrong secrets of existing keys, and revoked, replaced and expired keys, are compared with unknown
keys by the Mann-Whitney test: the run fails below p = 0.001 if the medians are 1 us apart; where a
key's bytes lie in memory is worth 0.3 us. As a control, a group of unknown keys is counted
`--difference-us` longer, and the run also fails if that is not seen: the test would be too weak.
"""

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.harness import cloud
from benchmarks.harness.models import all_workloads
from functions.adapters.aws_http.client import Client
from functions.adapters.aws_http.dynamodb import DynamoCalls
from functions.adapters.aws_http.settings import Settings
from functions.adapters.clock import Elapsed, utc_now
from functions.adapters.dynamodb_table import ItemTable
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.access.grants import Scope
from functions.core.access.key_store import KeyStore
from functions.core.access.keys import new_id, new_key, parse_key
from functions.core.errors import Unauthenticated
from tests.stress.key_timing.ranks import p_value
from tests.stress.key_timing.replay import replaying

chance = random.Random(0)  # noqa: S311 (no secret)
UNKNOWN, WRONG, LATER = "unknown", "wrong secret", "unknown, answered later"
P_MIN = 0.001
APART_US = 1.0  # medians nearer than this count as equal
OF_EACH = 30  # keys of each kind; moto copies all items for each change


def keys_of_each_kind(table: ItemTable) -> dict[str, list[str]]:
    """Return refused keys of each kind."""
    store = KeyStore(table, utc_now)

    def create(**fields: Any) -> str:
        request = {"scopes": [Scope.INFER], "models": ["*"], "actor": "test", **fields}
        return store.create("test", **request)[1]

    def unknown() -> list[str]:
        return [new_key(new_id()) for _ in range(OF_EACH)]

    good = [str(parse_key(create())) for _ in range(OF_EACH)]
    revoked, replaced = ([create() for _ in range(OF_EACH)] for _ in range(2))
    for key in revoked:
        store.revoke(str(parse_key(key)), actor="test")
    for key in replaced:
        store.rotate(str(parse_key(key)), 0, actor="test")
    expired = [create(valid_until=int(time.time()) + 1) for _ in range(OF_EACH)]
    time.sleep(2)  # until they have expired
    return {
        UNKNOWN: unknown(),
        WRONG: [new_key(key_id) for key_id in good],
        LATER: unknown(),
        "revoked": revoked,
        "replaced": replaced,
        "expired": expired,
    }


def refusal_us(table: ItemTable, key: str) -> float:
    """Return the microseconds in which a gate that has cached nothing refuses a key."""
    gate = Gate(partial(read_grant, table), 60.0, Elapsed())
    headers = {"x-api-key": key}
    began_ns = time.perf_counter_ns()
    try:
        gate.authorize(headers, Scope.INFER)
    except Unauthenticated:
        return (time.perf_counter_ns() - began_ns) / 1000
    raise AssertionError("the key was not refused")


def measure(
    table: ItemTable, keys: Mapping[str, Sequence[str]], each: int, later_us: float
) -> dict[str, np.ndarray]:
    """Return the microseconds of `each` refusals of every kind, in random order."""
    for key in chain.from_iterable(keys.values()):  # so that the server has each reply
        refusal_us(table, key)
    order = [kind for kind in keys for _ in range(each)]
    chance.shuffle(order)
    times_us: dict[str, list[float]] = {kind: [] for kind in keys}
    for number, kind in enumerate(order):
        us = refusal_us(table, chance.choice(keys[kind]))
        times_us[kind].append(us + (later_us if kind == LATER else 0))
        if number % 1000 == 0:
            print(f"\r{number} of {len(order)}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    return {kind: np.array(values) for kind, values in times_us.items()}


def report(times_us: Mapping[str, np.ndarray]) -> list[str]:
    """Print a line per kind; return the kinds that differ from unknown keys."""
    unknown = times_us[UNKNOWN]
    apart = []
    for kind, values in times_us.items():
        p = p_value(values, unknown)
        difference = np.median(values) - np.median(unknown)
        print(
            f"{kind:<24} n {len(values)}  median {np.median(values):7.1f} us  "
            f"difference {difference:+6.1f} us  p {p:.3g}"
        )
        if p < P_MIN and abs(difference) >= APART_US:
            apart.append(kind)
    return apart


def make_table(variables: Mapping[str, str], name: str) -> ItemTable:
    """Return the registry's table, read by the client that is deployed."""
    client = Client(Settings.from_environment(variables), "dynamodb")
    return ItemTable(DynamoCalls(client), name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the times of refused access keys.")
    parser.add_argument("--each", type=int, default=4000, help="keys of each kind [%(default)s]")
    parser.add_argument(
        "--difference-us", type=float, default=20.0, help="delay of the control [%(default)s]"
    )
    options = parser.parse_args()
    with cloud.start([all_workloads()["tiny"]], ["unthrottled"]) as aws:
        variables = aws.lambda_environment("unthrottled", aws.folder, aws.variables)
        keys = keys_of_each_kind(make_table(variables, aws.variables["REGISTRY_TABLE"]))
        with replaying(variables["AWS_ENDPOINT_URL_DYNAMODB"]) as url:
            replayed = {**variables, "AWS_ENDPOINT_URL_DYNAMODB": url}
            table = make_table(replayed, aws.variables["REGISTRY_TABLE"])
            times_us = measure(table, keys, options.each, options.difference_us)
    apart = report(times_us)
    if LATER not in apart:
        print(f"{options.difference_us} us were not seen: send more keys, or on a quieter machine")
        return 1
    apart.remove(LATER)
    if apart:
        print(f"keys of these kinds can be told from unknown ones: {', '.join(apart)}")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
