"""Registry and table adapter on moto's DynamoDB, with the table that template.yaml declares."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import boto3
import pytest

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.clock import utc_now
from functions.adapters.dynamodb_table import OperationFailed
from functions.core.errors import Unavailable
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry.registry import Registry
from functions.core.registry.table import Add, Conflict, Put
from functions.core.registry.version import Blob, Reason, Source, State
from functions.core.usage.fold import fold
from functions.core.usage.meter import Meter
from functions.core.usage.reader import UsageReader
from local.aws.provision import Deployed

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2), ("no", "ja")),)
)


@pytest.fixture
def client(deployed: Deployed) -> Any:
    return boto3.client("dynamodb")


@pytest.fixture
def table(client: Any, deployed: Deployed) -> DynamoTable:
    return DynamoTable(client, deployed.outputs["RegistryTableName"])


@pytest.fixture
def registry(table: DynamoTable) -> Registry:
    return Registry(table, utc_now, pause=lambda _: None)


def test_values_come_back_as_they_were_written(table: DynamoTable) -> None:
    item = {
        "pk": "P",
        "sk": "S",
        "a": None,
        "b": True,
        "c": -7,
        "d": 1.5e-9,
        "e": ["x", {"f": 2**40}],
        "g": "",
    }

    table.transact([Put(item, None)])

    assert table.get([("P", "S"), ("P", "missing")]) == [item, None]


def test_numbers_are_increased_beside_values_that_are_set(table: DynamoTable) -> None:
    for amount in (2, 3):
        adds = [
            Add("P", sk, {"requests": amount, f"l{amount}": 1}, {"kind": "USAGE", "at": amount})
            for sk in ("S", "T")
        ]
        table.add([*adds, Add("P", "U", {"n": amount}, {})], token=f"token-{amount}")

    counted = {"pk": "P", "requests": 5, "l2": 1, "l3": 1, "kind": "USAGE", "at": 3}
    assert table.get([("P", "S"), ("P", "T"), ("P", "U")]) == [
        counted | {"sk": "S"},
        counted | {"sk": "T"},
        {"pk": "P", "sk": "U", "n": 5},
    ]


def test_usage_is_read_by_range_and_by_hour(table: DynamoTable) -> None:
    noon_s = 1_795_348_800.0
    meter = Meter(table, now=lambda: noon_s)
    for model in ("b", "a"):
        meter.count(model, 1, "prod", "", "", 200, 1000)
    meter.flush()

    first, second = table.usage_hours("", 5)
    assert (first["pk"], second["pk"]) == ("USAGE#a", "USAGE#b")
    assert [entry["pk"] for entry in table.usage_hours(first["listed"], 5)] == ["USAGE#b"]
    assert len(list(table.usage_hours("", 1))) == 1
    assert list(table.usage_hours("2026-11-22T12~", 5)) == []
    [item] = table.between("USAGE#a", "H#2026-11-22T12", "H#2026-11-22T12~")
    assert item["requests"] == 1
    assert list(table.between("USAGE#a", "H#2026-11-22T13", "H#2026-11-22T14")) == []

    assert fold(table, noon_s + 10 * 3600) == 1
    totals = UsageReader(table).totals()
    assert {version: sums.requests for version, sums in totals.items()} == {
        ("a", 1): 1,
        ("b", 1): 1,
    }


def test_increases_are_all_refused_with_one_of_them(table: DynamoTable) -> None:
    table.add([Add("P", "S", {"n": 1}, {})], token="1")
    table.transact([Put({"pk": "P", "sk": "text", "n": "x"}, None)])

    with pytest.raises(OperationFailed):
        table.add([Add("P", "S", {"n": 1}, {}), Add("P", "text", {"n": 1}, {})], token="2")

    assert table.get([("P", "S")]) == [{"pk": "P", "sk": "S", "n": 1}]


def test_a_card_may_hold_values_that_dynamodb_cannot_store(registry: Registry) -> None:
    deep: list[object] = []
    for _ in range(50):
        deep = [deep]
    card = {
        "metrics": {"loss": math.inf, "best": 1e-200, "": 1},
        "hyperparameters": {"seed": 10**60},
        "data": {"d": deep},
    }
    claimed = registry.claim("m", Source("up", "k", "v1"))

    registry.finish(
        replace(
            claimed,
            state=State.READY,
            card=card,
            signature=SIGNATURE,
            files=(Blob("m", "0" * 64, 1),),
        )
    )

    assert registry.resolve("m", None).version.card == card
    assert [number for _, number, _, _ in registry.listing()] == [1]


def test_a_condition_that_does_not_hold_writes_nothing(table: DynamoTable) -> None:
    table.transact([Put({"pk": "P", "sk": "A", "n": 1}, None)])

    for condition in (None, {"n": 2}):
        with pytest.raises(Conflict):
            table.transact(
                [Put({"pk": "P", "sk": "B"}, None), Put({"pk": "P", "sk": "A", "n": 3}, condition)]
            )

    assert table.get([("P", "A"), ("P", "B")]) == [{"pk": "P", "sk": "A", "n": 1}, None]


def test_a_partition_is_read_to_its_end(table: DynamoTable) -> None:
    blob = "x" * 200_000  # a page of DynamoDB ends at 1 MB
    for number in range(12):
        table.transact([Put({"pk": "P", "sk": f"V#{number:02d}", "blob": blob}, None)])
    table.transact([Put({"pk": "P", "sk": "W#01"}, None)])

    assert [item["sk"] for item in table.query("P", "V#")] == [
        f"V#{number:02d}" for number in range(12)
    ]


def test_ignored_uploads_are_listed_newest_first_apart_from_versions(
    table: DynamoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(f"2026-11-22T08:00:{n:02}.000Z" for n in range(60))
    registry = Registry(table, lambda: next(times), pause=lambda _: None)
    monkeypatch.setattr("functions.core.registry.registry.IGNORED_LISTED", 2)
    longest = "models/" + "k" * 1017  # 1,024 bytes, the longest key of S3 and of DynamoDB
    for key in ("models/a/x.h5", "models/b/ä.pt", longest, "models/b/ä.pt"):
        registry.note_ignored(key, Reason("FOREIGN_FORMAT", "text"))
    registry.claim("a", Source("up", "models/a/x.onnx", "v1"))

    assert registry.ignored() == [("models/b/ä.pt", "text"), (longest, "text")]
    assert [model for model, *_ in registry.listing()] == ["a"]

    registry.claim("b", Source("up", "models/b/ä.pt", "v1"))
    assert [key for key, _ in registry.ignored()] == [longest, "models/a/x.h5"]


def test_the_whole_life_of_a_model(registry: Registry) -> None:
    for key in "ab":
        claimed = registry.claim("m", Source("up", key, "v1"))
        assert registry.claim("m", Source("up", key, "v1")).number == claimed.number
        done = replace(
            claimed,
            state=State.READY,
            files=(Blob("model.onnx", key * 64, 2**40),),
            signature=SIGNATURE,
            card={"metrics": {"accuracy": 0.98765}},
        )
        assert registry.finish(done) == registry.version("m", claimed.number)

    assert registry.aliases("m") == {"latest": 2, "prod": 1}
    assert registry.resolve("m", None).version.card == {"metrics": {"accuracy": 0.98765}}
    assert registry.resolve("m", "latest").version.number == 2
    assert [(name, number, state) for name, number, state, _ in registry.listing()] == [
        ("m", 1, State.READY),
        ("m", 2, State.READY),
    ]
    registry.serve("m", False)
    with pytest.raises(Unavailable, match="unloaded"):
        registry.resolve("m", None)


@pytest.mark.parametrize(
    "code", ["ThrottlingException", "InternalServerError", "ProvisionedThroughputExceededException"]
)
def test_errors_that_a_retry_can_mend_are_unavailable(
    table: DynamoTable, failing: Callable[[str], None], code: str
) -> None:
    failing(code)

    with pytest.raises(Unavailable, match="the registry"):
        table.get([("P", "S")])


@pytest.fixture
def failing(client: Any) -> Callable[[str], None]:
    """Make DynamoDB answer every call with an error of this code."""

    def answer(code: str) -> None:
        def reply(**_: Any) -> Any:
            from botocore.awsrequest import AWSResponse

            class Raw:
                def stream(self, **_: object) -> list[bytes]:
                    return [
                        b'{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"no"}'
                        % code.encode()
                    ]

            return AWSResponse(
                "http://127.0.0.1", 500 if code == "InternalServerError" else 400, {}, Raw()
            )

        client.meta.config.retries = None
        client.meta.events.register_first("before-send.dynamodb", reply)
        client.meta.events.register("needs-retry.dynamodb", lambda **_: None)

    return answer
