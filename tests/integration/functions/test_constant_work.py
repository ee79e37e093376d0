"""Cost of registry operations in AWS calls and bytes: it must not grow with the registry."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import boto3
import pytest

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs, S3Uploads
from functions.adapters.dynamodb_table import marshal
from functions.core.registration.registration import Registration
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.registry.table import Put
from functions.core.registry.version import Source, State
from functions.core.uploads import Upload
from functions.register.manifest import read_manifest
from local.aws.provision import Deployed
from tests.models import scale_model
from tests.sandbox import MemorySandbox

MANY = 1000
NOW = "2026-11-22T08:00:00.000Z"


class Counted:
    """Registration with counters of its AWS calls and of the bytes in DynamoDB's replies."""

    def __init__(self, deployed: Deployed) -> None:
        self.calls: Counter[str] = Counter()
        self.answered = 0
        s3, dynamodb = boto3.client("s3"), boto3.client("dynamodb")
        self.s3, self.bucket = s3, deployed.outputs["ArtifactsBucketName"]
        self.dynamodb, self.table_name = dynamodb, deployed.outputs["RegistryTableName"]
        self.table = DynamoTable(dynamodb, self.table_name)
        self.registry = Registry(self.table, lambda: NOW, pause=lambda _: None)
        self.releases = Releases(self.table, lambda: NOW, pause=lambda _: None)
        serving = deployed.outputs["ServingBucketName"]
        self.registration = Registration(
            self.registry, S3Uploads(s3), S3Blobs(s3, serving), MemorySandbox(), read_manifest
        )
        for client in (s3, dynamodb):
            client.meta.events.register("before-send", self._count)
        dynamodb.meta.events.register("after-call", self._measure)

    def _count(self, event_name: str, **_: object) -> None:
        self.calls[event_name.removeprefix("before-send.")] += 1

    def _measure(self, parsed: object, **_: object) -> None:
        self.answered += len(json.dumps(parsed, default=str))

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        self.calls.clear()
        self.answered = 0
        yield self.calls

    def register(self, model: str, factor: float) -> Counter[str]:
        """Register one upload; return its AWS calls."""
        key = f"models/{model}/{factor}.onnx"
        version_id = self.s3.put_object(Bucket=self.bucket, Key=key, Body=scale_model(factor))[
            "VersionId"
        ]
        with self.counting() as calls:
            version = self.registration.register(Upload(self.bucket, key, version_id))
        assert version is not None
        assert version.state is State.READY, version.reason
        return Counter(calls)

    def seed(self, models: int, versions: int) -> None:
        """Copy m's first version: as more versions of m, and as other models."""
        [meta, first] = self.table.get([("MODEL#m", "META"), ("MODEL#m", "VERSION#0000000001")])
        puts = []
        for number in range(2, versions + 1):
            place = {
                "sk": f"VERSION#{number:010d}",
                "listed": f"m#{number:010d}",
                "version": number,
            }
            puts.append(Put({**first, **place}, None))
        for number in range(models):
            name = f"seed-{number}"
            pk = f"MODEL#{name}"
            puts.append(Put({**meta, "pk": pk, "model": name}, None))
            puts.append(
                Put({**first, "pk": pk, "model": name, "listed": f"{name}#0000000001"}, None)
            )
        counter = {"next_version": versions + 1, "ready": versions, "revision": 2 * versions}
        puts.append(Put({**meta, **counter}, {}))
        self.write(puts)

    def write(self, puts: list[Put]) -> None:
        """Write items directly, without the registry and without counting."""
        items = [{"PutRequest": {"Item": marshal(put.item)}} for put in puts]
        for start in range(0, len(items), 25):
            self.dynamodb.batch_write_item(
                RequestItems={self.table_name: items[start : start + 25]}
            )


@pytest.fixture
def counted(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Counted:
    # Moto copies its table before a transaction, for a rollback. None fails in these tests, and
    # the copies would take minutes.
    monkeypatch.setattr("moto.dynamodb.models.copy", SimpleNamespace(deepcopy=lambda thing: thing))
    return Counted(deployed)


def test_the_thousandth_model_and_version_cost_as_much_as_the_first(
    counted: Counted,
) -> None:
    first = counted.register("m", 1.0)
    second = counted.register("second", 2.0)
    second_version = counted.register("second", 5.0)
    counted.seed(models=MANY - 3, versions=MANY - 1)

    thousandth_model = counted.register("last", 3.0)
    thousandth_version = counted.register("m", 4.0)

    assert len({model for model, *_ in counted.registry.listing()}) == MANY
    assert len(counted.registry.versions("m")) == MANY
    assert first == second == thousandth_model
    assert second_version == thousandth_version
    assert first["dynamodb.BatchGetItem"] <= 2
    # A further version is compared with the one that `latest` points at.
    assert second_version - first == {"dynamodb.BatchGetItem": 1}
    assert first["dynamodb.TransactWriteItems"] == 2
    assert not [call for call in first if "List" in call or "Scan" in call or "Query" in call]


@pytest.mark.parametrize(
    "act",
    [
        lambda counted: counted.releases.move_alias("m", "prod", 2, actor="ann"),
        lambda counted: counted.releases.rollback("m", "canary", actor="ann"),
        lambda counted: counted.releases.archive("m", 3, actor="ann"),
        lambda counted: counted.registry.resolve("m", "latest"),
        lambda counted: counted.registry.claim("m", Source("up", "waiting", "v1")),
        lambda counted: counted.registry.pending("2030-01-01T00:00:00.000Z", 10),
        lambda counted: counted.registry.ready_after("m#0000000001", 2),
        lambda counted: counted.registry.recorded_blobs(["ab" * 32]),
    ],
    ids=["move", "rollback", "archive", "resolve", "take over", "pending", "listing", "blobs"],
)
def test_other_operations_cost_the_same_in_a_large_registry(
    counted: Counted, act: Callable[[Counted], object]
) -> None:
    costs = []
    for seeded in (3, MANY // 5):
        if seeded == 3:
            counted.register("m", 1.0)
            counted.seed(models=1, versions=3)
            registry = counted.registry
            for version in (1, 2):
                counted.releases.move_alias("m", "canary", version, actor="ann")
            registry.claim("m", Source("up", "waiting", "v1"))
            keep = {
                key: counted.table.get([key])[0]
                for key in [("MODEL#m", f"ALIAS#{a}") for a in ("prod", "canary")]
            }
            keep[("MODEL#m", "VERSION#0000000003")] = counted.table.get(
                [("MODEL#m", "VERSION#0000000003")]
            )[0]
        else:
            counted.table.transact([Put(item, {}) for item in keep.values() if item])
            fill(counted, seeded)
        with counted.counting() as calls:
            act(counted)
        costs.append((Counter(calls), counted.answered))

    (few, few_bytes), (many, many_bytes) = costs
    assert few == many
    assert many_bytes < few_bytes + 2_000  # nothing reads more than it needs


def fill(counted: Counted, many: int) -> None:
    """Add versions of m and models, without changing existing items."""
    [first] = counted.table.get([("MODEL#m", "VERSION#0000000001")])
    puts = []
    for number in range(10, many):
        puts.append(
            Put(
                {
                    **first,
                    "sk": f"VERSION#{number:010d}",
                    "listed": f"m#{number:010d}",
                    "version": number,
                },
                None,
            )
        )
        name = f"more-{number}"
        puts.append(
            Put(
                {**first, "pk": f"MODEL#{name}", "model": name, "listed": f"{name}#0000000001"},
                None,
            )
        )
    counted.write(puts)
