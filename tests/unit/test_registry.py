"""The rules of the registry, on a table in memory."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from functions.adapters.memory import MemoryTable
from functions.core.errors import ModelNotFound, Unavailable
from functions.core.registry import Blob, Conflict, Put, Reason, Registry, Source, State, Version
from functions.core.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2), ("no", "yes")),))


def make_registry(table: MemoryTable | None = None) -> Registry:
    return Registry(table or MemoryTable(), lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None)


def source(key: str, version: str = "v1") -> Source:
    return Source("uploads", key, version)


def ready(version: Version) -> Version:
    files = (Blob("model.onnx", "ab" * 32, 10),)
    return replace(
        version,
        state=State.READY,
        files=files,
        signature=SIGNATURE,
        card={"task": "regression", "metrics": {"r2": 0.5}},
        graph={"opset": 20},
    )


def rejected(version: Version) -> Version:
    return replace(version, state=State.REJECTED, reason=Reason("NOT_ONNX", "the file is no ONNX model"))


def test_an_upload_becomes_one_version_however_often_it_is_claimed() -> None:
    registry = make_registry()

    numbers = [registry.claim("m", source("a")).number for _ in range(5)]

    assert numbers == [1] * 5
    assert [version.number for version in registry.versions("m")] == [1]


def test_numbers_follow_the_claims_and_are_never_reused() -> None:
    registry = make_registry()
    registry.finish(rejected(registry.claim("m", source("a"))))

    assert registry.claim("m", source("b")).number == 2
    assert registry.claim("m", source("a", "v2")).number == 3  # an overwritten object is another upload
    assert registry.claim("other", source("a")).number == 1


def test_a_ready_version_comes_back_as_it_was_written() -> None:
    registry = make_registry()
    done = registry.finish(ready(registry.claim("m", source("a"))))

    assert registry.version("m", 1) == done
    assert done.signature == SIGNATURE
    assert done.card == {"task": "regression", "metrics": {"r2": 0.5}}


def test_the_first_ready_version_is_prod_and_latest_follows() -> None:
    registry = make_registry()
    first, second, third = (registry.claim("m", source(key)) for key in "abc")
    registry.finish(rejected(first))
    registry.finish(ready(second))
    registry.finish(ready(third))

    assert registry.aliases("m") == {"latest": 3, "prod": 2}


def test_latest_never_moves_back_when_an_older_upload_is_ready_later() -> None:
    registry = make_registry()
    first, second = registry.claim("m", source("a")), registry.claim("m", source("b"))
    registry.finish(ready(second))
    registry.finish(ready(first))

    assert registry.aliases("m") == {"latest": 2, "prod": 2}


def test_a_registration_ends_once() -> None:
    registry = make_registry()
    version = registry.claim("m", source("a"))
    registry.finish(ready(version))

    standing = registry.finish(rejected(version))

    assert standing.state is State.READY
    assert registry.version("m", 1).state is State.READY


def test_every_change_has_one_audit_record_without_gaps() -> None:
    registry = make_registry()
    for key in "abc":
        registry.finish(ready(registry.claim("m", source(key))))

    audit = registry.audit("m")

    assert [record["sk"] for record in audit] == [f"AUDIT#{n:012d}" for n in range(1, 7)]
    assert [record["action"] for record in audit] == ["claim", "finish"] * 3
    assert audit[1]["details"] == {"version": 1, "state": "READY", "aliases": ["latest", "prod"]}


@pytest.mark.parametrize(("reference", "alias"), [(None, "prod"), ("prod", "prod"), ("latest", "latest"), (1, None)])
def test_a_reference_resolves_to_the_concrete_version(reference: int | str | None, alias: str | None) -> None:
    registry = make_registry()
    registry.finish(ready(registry.claim("m", source("a"))))

    found = registry.resolve("m", reference)

    assert (found.version.number, found.alias) == (1, alias)


def test_what_does_not_exist_is_not_found() -> None:
    registry = make_registry()
    registry.finish(ready(registry.claim("m", source("a"))))

    for model, reference in [("nobody", None), ("m", 2), ("m", "staging")]:
        with pytest.raises(ModelNotFound, match="^Request for unknown model: "):
            registry.resolve(model, reference)


def test_what_exists_and_cannot_be_served_says_why() -> None:
    registry = make_registry()
    first = registry.claim("m", source("a"))
    for reference in (1, None):
        with pytest.raises(Unavailable, match="version 1 of 'm' is PENDING"):
            registry.resolve("m", reference)

    registry.finish(rejected(first))

    for reference in (1, None):
        with pytest.raises(Unavailable, match="version 1 of 'm' is REJECTED: the file is no ONNX model"):
            registry.resolve("m", reference)


def test_an_unloaded_model_is_not_served_until_it_is_loaded() -> None:
    registry = make_registry()
    registry.finish(ready(registry.claim("m", source("a"))))

    registry.serve("m", False)
    registry.serve("m", False)
    with pytest.raises(Unavailable, match="'m' is unloaded"):
        registry.resolve("m", 1)

    registry.serve("m", True)
    assert registry.resolve("m", 1).version.number == 1


def test_the_listing_names_every_version_with_its_reason() -> None:
    registry = make_registry()
    registry.finish(ready(registry.claim("b", source("b"))))
    registry.finish(rejected(registry.claim("a", source("a"))))

    assert list(registry.listing()) == [
        ("a", 1, State.REJECTED, "the file is no ONNX model"),
        ("b", 1, State.READY, ""),
    ]


class RacingTable(MemoryTable):
    """Lets another writer in before each of the first `races` transactions."""

    def __init__(self, races: int) -> None:
        super().__init__()
        self._races = races
        self._inside = False

    def transact(self, puts: Sequence[Put]) -> None:
        if self._races and not self._inside:
            self._races -= 1
            self._inside = True
            make_registry(self).claim("m", source(f"rival-{self._races}"))
            self._inside = False
        super().transact(puts)


def test_a_lost_race_is_decided_again() -> None:
    table = RacingTable(races=3)
    registry = make_registry(table)

    version = registry.claim("m", source("mine"))

    assert version.number == 4
    assert [v.number for v in registry.versions("m")] == [1, 2, 3, 4]


def test_a_race_that_is_never_won_ends() -> None:
    class Hopeless(MemoryTable):
        def transact(self, puts: Sequence[Put]) -> None:
            raise Conflict("always")

    with pytest.raises(Unavailable, match="too many writers"):
        make_registry(Hopeless()).claim("m", source("a"))
