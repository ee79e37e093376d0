"""Control plane with many models: DynamoDB requests and processor time.

    python -m benchmarks.control_plane [--models 10,1000,10000] [--rounds N] [--no-save]

Question: does a request of the control plane cost more where more models are registered? For each
number of models, a registry in memory is filled through the core, two versions a model. In each
round every registry answers a page of 10 models from a random place, one model, and the move of an
alias, through the manage function's router: validation, the registry's rules and the reply's JSON
included. A time is processor time, since nothing waits: the median of a round's requests of one
kind, over the same of the smallest registry in the same round.

The table in memory costs the same however much it holds, and counts calls; each is one request to
DynamoDB, whose own time does not depend on the number of items either.

Not measured: DynamoDB, the network, keys, the cold start.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from benchmarks.harness import measure, options
from benchmarks.harness.measure import Spread, progress
from benchmarks.harness.registry.sorted_table import SortedTable
from functions.core.catalog.catalog import Catalog
from functions.core.catalog.decisions import Decisions
from functions.core.catalog.trail import Trail
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.registry.table import Table
from functions.core.registry.version import Blob, Source, State
from functions.core.serving.http import HttpRequest
from functions.manage.caller import Caller, CurrentCaller
from functions.manage.cursors import encode_cursor
from functions.manage.route import ROOT
from functions.manage.router import Router
from functions.manage.routes.aliases import AliasRoutes
from functions.manage.routes.models import ModelRoutes

NOW = "2026-11-22T08:00:00.000Z"
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),))
CARD = {"task": "classification", "metrics": {"accuracy": 0.97, "f1": 0.96}}
OPERATIONS = ("list", "read", "move")
REPEATS = 20  # requests of each kind in a round
PAGE = 10  # models of a page, which the smallest registry has, too
SEED = 20261130


@dataclass(frozen=True, slots=True)
class Plane:
    """Control plane over a registry of `models` models."""

    models: int
    table: SortedTable
    router: Router
    choice: random.Random
    versions: dict[str, int] = field(default_factory=dict)  # targets of moved aliases

    def name(self) -> str:
        """Return the name of a random model."""
        return f"model-{self.choice.randrange(self.models):05}"

    def send(self, method: str, path: str, body: bytes = b"", **query: str) -> None:
        """Answer a request.

        Raises:
            RuntimeError: it was refused.
        """
        match = self.router.match(method, ROOT + path)
        request = HttpRequest(method, ROOT + path, {}, query, body)
        reply = self.router.answer(match, request, Caller("benchmark"))
        if reply.status != 200:
            raise RuntimeError(f"{method} {path}: {reply.status} {reply.body.decode()}")

    def list(self) -> None:
        """Answer a page of models from a random place."""
        first = self.choice.randrange(self.models - PAGE + 1)
        cursor = encode_cursor(f"model-{first - 1:05}" if first else "") or ""
        self.send("GET", "/models", limit=str(PAGE), cursor=cursor)

    def read(self) -> None:
        """Answer one model."""
        self.send("GET", f"/models/{self.name()}")

    def move(self) -> None:
        """Point an alias of a model at its other version."""
        name = self.name()
        version = 3 - self.versions.get(name, 1)
        self.versions[name] = version
        self.send("PUT", f"/models/{name}/aliases/prod", b'{"version": %d}' % version)

    def round(self) -> dict[str, tuple[float, float]]:
        """Return the median µs and mean calls of each operation."""
        return {name: self._measure(getattr(self, name)) for name in OPERATIONS}

    def _measure(self, operation: Callable[[], None]) -> tuple[float, float]:
        calls, times = self.table.calls, []
        for _ in range(REPEATS):
            begin = time.process_time()
            operation()
            times.append((time.process_time() - begin) * 1e6)
        return statistics.median(times), (self.table.calls - calls) / REPEATS


def plane_of(models: int) -> Plane:
    """Return a control plane whose registry holds `models` models."""
    sorted_table = SortedTable()
    table = cast(Table, sorted_table)  # it lacks what no measured operation calls
    registry = Registry(table, lambda: NOW)
    for number in range(models):
        for version in (1, 2):
            _register(registry, f"model-{number:05}", version)
    current, catalog = CurrentCaller(), Catalog(table)
    decisions = Decisions(table, lambda: NOW)
    releases = Releases(table, lambda: NOW)
    groups = (
        ModelRoutes(catalog, decisions, current),
        AliasRoutes(catalog, Trail(table), releases, decisions, current),
    )
    choice = random.Random(SEED)  # noqa: S311 (the same requests in each run)
    return Plane(models, sorted_table, Router(groups, current), choice)


def _register(registry: Registry, model: str, version: int) -> None:
    claimed = registry.claim(model, Source("uploads", f"models/{model}/{version}.onnx", "v1"))
    digest = f"{version:02}" * 32
    finished = replace(
        claimed,
        state=State.READY,
        files=(Blob("model.onnx", digest, 100_000),),
        signature=SIGNATURE,
        card=CARD,
    )
    registry.finish(finished)


def entries(
    rounds: Mapping[str, Sequence[Mapping[str, tuple[float, float]]]],
) -> list[dict[str, Any]]:
    """Return a result entry for each number of models and operation."""
    baseline = next(iter(rounds))
    rows = []
    for models, results in rounds.items():
        for name in OPERATIONS:
            times = [result[name][0] for result in results]
            base = [result[name][0] for result in rounds[baseline]]
            calls = {result[name][1] for result in results}
            entry = measure.row(Spread.from_values(times, 1), what=name, models=int(models))
            entry |= {"calls_min": min(calls), "calls_max": max(calls)}
            rows.append(entry | {"over_smallest": measure.ratios(times, base).to_record()})
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the results as a text table."""
    heading = ("operation", "models", "median µs", "p90", "calls", "over smallest")
    cells = [
        (
            str(row["what"]),
            str(row["models"]),
            f"{row['median']:.0f}",
            f"{row['p90']:.0f}",
            f"{row['calls_min']:g} to {row['calls_max']:g}",
            f"{row['over_smallest']['median']:.2f}",
        )
        for row in sorted(rows, key=lambda row: OPERATIONS.index(row["what"]))
    ]
    return measure.table([heading, *cells])


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the control plane's benchmark."""
    parser = options.make_parser("control_plane", __doc__, 30)
    parser.add_argument(
        "--models",
        type=options.positive_numbers,
        default=[10, 1000, 10_000],
        help="default: 10,1000,10000",
    )
    return parser.parse_args(words)


def main() -> None:
    chosen = arguments()
    planes = []
    for count in chosen.models:
        progress(f"registering {count} models")
        planes.append(plane_of(count))
    contenders = {str(plane.models): partial(Plane.round, plane) for plane in planes}
    rows = entries(measure.interleave(contenders, chosen.rounds, label="control plane"))
    print(table_of(rows))
    measure.finish(measure.result_line("control_plane", "µs", chosen.rounds, rows), chosen.save)


if __name__ == "__main__":
    main()
