"""Rules of the registry, on a table in memory."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from functions.core.errors import (
    ModelNotFound,
    NotReady,
    NotServable,
    Unavailable,
)
from functions.core.registry.items import version_to_item
from functions.core.registry.registry import Registry
from functions.core.registry.table import Conflict, Item, Put
from functions.core.registry.version import Blob, Failure, Reason, Source, State
from tests.fakes import MemoryTable
from tests.unit.functions.registry.versions import SIGNATURE, make_registry, ready, rejected, source


def test_an_upload_becomes_one_version_however_often_it_is_claimed() -> None:
    registry = make_registry(MemoryTable())

    numbers = [registry.claim("m", source("a")).number for _ in range(5)]

    assert numbers == [1] * 5
    assert [version.number for version in registry.versions("m")] == [1]


def test_numbers_follow_the_claims_and_are_never_reused() -> None:
    registry = make_registry(MemoryTable())
    registry.finish(rejected(registry.claim("m", source("a"))))

    assert registry.claim("m", source("b")).number == 2
    overwritten = source("a", "v2")  # a new object version is another upload
    assert registry.claim("m", overwritten).number == 3
    assert registry.claim("other", source("a")).number == 1


def test_a_ready_version_comes_back_as_it_was_written() -> None:
    registry = make_registry(MemoryTable())
    done = registry.finish(ready(registry.claim("m", source("a"))))

    assert registry.version("m", 1) == done
    assert done.signature == SIGNATURE
    assert done.card == {"task": "regression", "metrics": {"r2": 0.5}}


def test_the_first_ready_version_is_prod_and_latest_follows() -> None:
    registry = make_registry(MemoryTable())
    first, second, third = (registry.claim("m", source(key)) for key in "abc")
    registry.finish(rejected(first))
    registry.finish(ready(second))
    registry.finish(ready(third))

    assert registry.aliases("m") == {"latest": 3, "prod": 2}


def test_latest_never_moves_back_when_an_older_upload_is_ready_later() -> None:
    registry = make_registry(MemoryTable())
    first, second = registry.claim("m", source("a")), registry.claim("m", source("b"))
    registry.finish(ready(second))
    registry.finish(ready(first))

    assert registry.aliases("m") == {"latest": 2, "prod": 2}


def test_a_registration_ends_once() -> None:
    registry = make_registry(MemoryTable())
    version = registry.claim("m", source("a"))
    registry.finish(ready(version))

    standing = registry.finish(rejected(version))

    assert standing.state is State.READY
    assert registry.version("m", 1).state is State.READY


def test_every_change_has_one_audit_record_without_gaps() -> None:
    registry = make_registry(MemoryTable())
    for key in "abc":
        registry.finish(ready(registry.claim("m", source(key))))

    audit = registry.audit("m")

    assert [record["sk"] for record in audit] == [f"AUDIT#{n:012d}" for n in range(1, 7)]
    assert [record["action"] for record in audit] == ["claim", "finish"] * 3
    assert audit[1] == {
        "pk": "MODEL#m",
        "sk": "AUDIT#000000000002",
        "revision": 2,
        "action": "finish",
        "actor": "register",
        "at": "2026-11-22T08:00:00.000Z",
        "version": 1,
        "before": {"state": "PENDING", "aliases": {"latest": None, "prod": None}},
        "after": {"state": "READY", "aliases": {"latest": 1, "prod": 1}},
        "kind": "AUDIT",
        "listed": "2026-11-22T08:00:00.000Z#MODEL#m#000000000002",
    }


@pytest.mark.parametrize(
    ("reference", "alias"), [(None, "prod"), ("prod", "prod"), ("latest", "latest"), (1, None)]
)
def test_a_reference_resolves_to_the_concrete_version(
    reference: int | str | None, alias: str | None
) -> None:
    registry = make_registry(MemoryTable())
    registry.finish(ready(registry.claim("m", source("a"))))

    resolved = registry.resolve("m", reference)

    assert (resolved.version.number, resolved.alias) == (1, alias)


def test_unknown_models_versions_and_aliases_are_not_found() -> None:
    registry = make_registry(MemoryTable())
    registry.finish(ready(registry.claim("m", source("a"))))

    for model, reference in [("nobody", None), ("m", 2), ("m", "staging")]:
        with pytest.raises(ModelNotFound, match="^Request for unknown model: "):
            registry.resolve(model, reference)


def test_a_version_that_is_not_ready_says_why() -> None:
    registry = make_registry(MemoryTable())
    first = registry.claim("m", source("a"))
    for reference in (1, None):
        with pytest.raises(NotReady, match="version 1 of 'm' is PENDING"):
            registry.resolve("m", reference)

    registry.finish(rejected(first))

    for reference in (1, None):
        with pytest.raises(
            NotServable, match="version 1 of 'm' is REJECTED: the file is no ONNX model"
        ):
            registry.resolve("m", reference)


def test_an_unloaded_model_is_not_served_until_it_is_loaded() -> None:
    registry = make_registry(MemoryTable())
    registry.finish(ready(registry.claim("m", source("a"))))

    registry.serve("m", False)
    registry.serve("m", False)
    with pytest.raises(Unavailable, match="'m' is unloaded"):
        registry.resolve("m", 1)

    registry.serve("m", True)
    assert registry.resolve("m", 1).version.number == 1


def test_the_listing_names_every_version_with_its_reason() -> None:
    registry = make_registry(MemoryTable())
    registry.finish(ready(registry.claim("b", source("b"))))
    registry.finish(rejected(registry.claim("a", source("a"))))

    assert list(registry.listing()) == [
        ("a", 1, State.REJECTED, "the file is no ONNX model"),
        ("b", 1, State.READY, ""),
    ]


class RacingTable(MemoryTable):
    """Table on which another writer is faster in the first `races` transactions."""

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


def test_a_write_that_loses_every_race_is_unavailable() -> None:
    class Hopeless(MemoryTable):
        def transact(self, puts: Sequence[Put]) -> None:
            raise Conflict("always")

    with pytest.raises(Unavailable, match="too many writers"):
        make_registry(Hopeless()).claim("m", source("a"))


# --- repeated claims, damage, notes


def test_a_version_that_is_claimed_again_counts_its_attempts() -> None:
    registry = make_registry(MemoryTable())

    attempts = [registry.claim("m", source("a")).attempts for _ in range(3)]

    assert attempts == [1, 2, 3]
    assert [record["action"] for record in registry.audit("m")] == ["claim", "resume", "resume"]


def test_two_workers_finish_a_version_once_and_count_both_attempts() -> None:
    registry = make_registry(MemoryTable())
    slow, quick = registry.claim("m", source("a")), registry.claim("m", source("a"))
    registry.finish(ready(slow))

    assert registry.finish(rejected(quick)).state is State.READY
    assert registry.version("m", 1).attempts == 2
    assert [record["action"] for record in registry.audit("m")] == ["claim", "resume", "finish"]


def test_a_note_that_is_written_during_registration_stays() -> None:
    table = MemoryTable()
    registry = make_registry(table)
    claimed = registry.claim("m", source("a"))
    noted = version_to_item(replace(claimed, note="from ann"))
    table.transact([Put(noted, {})])

    assert registry.finish(ready(claimed)).note == "from ann"
    assert registry.version("m", 1).note == "from ann"


def test_a_ready_version_records_each_of_its_blobs_once() -> None:
    registry = make_registry(MemoryTable())
    blob = Blob("model.onnx", "ab" * 32, 10)
    version = replace(
        ready(registry.claim("m", source("a"))),
        files=(blob, replace(blob, name="twin")),
        manifest=blob,
    )
    registry.finish(version)

    assert registry.recorded_blobs(["ab" * 32, "cd" * 32]) == {"ab" * 32}


def test_the_digests_of_ranges_are_recorded_beside_the_files() -> None:
    table = MemoryTable()
    registry = make_registry(table)
    ranged = Blob("weights.bin", "cd" * 32, 100, range_bytes=60, range_digests=bytes(range(64)))
    claimed = registry.claim("m", source("a"))
    version = replace(ready(claimed), files=(*ready(claimed).files, ranged))
    registry.finish(version)

    [model, weights] = registry.resolve("m", 1).version.files
    item = table.items["MODEL#m", "VERSION#0000000001"]

    assert (model.range_bytes, model.range_digests) == (0, b"")
    assert (weights.range_bytes, weights.range_digests) == (60, bytes(range(64)))
    assert weights.range_digest(0) + weights.range_digest(60) == bytes(range(64))
    # Earlier releases read these records, which may have no other fields, and ignore `ranges`.
    assert [set(file) for file in item["files"]] == [{"name", "sha256", "size_bytes"}] * 2
    assert "range" not in json.dumps(registry.audit("m"))


def test_a_version_of_an_earlier_release_has_no_ranges() -> None:
    table = MemoryTable()
    registry = make_registry(table)
    registry.finish(ready(registry.claim("m", source("a"))))
    del table.items["MODEL#m", "VERSION#0000000001"]["ranges"]

    [blob] = registry.resolve("m", 1).version.files

    assert (blob.range_bytes, blob.range_digests) == (0, b"")


def test_the_digests_of_ranges_do_not_tell_blobs_apart() -> None:
    blob = Blob("weights.bin", "cd" * 32, 100)
    ranged = replace(blob, range_bytes=60, range_digests=bytes(64))

    assert {blob, ranged} == {blob}


def test_a_note_about_a_failure_changes_no_model_and_expires() -> None:
    table = MemoryTable()
    registry = make_registry(table)
    for message in ("one", "two"):
        registry.note_failure("m", source("a"), Reason("UNAVAILABLE", message))

    [(version, failure)] = registry.lookup_uploads([("m", source("a"))])

    assert version is None
    assert failure == Failure(
        source("a"), Reason("UNAVAILABLE", "two"), 2, "2026-11-22T08:00:00.000Z"
    )
    assert registry.audit("m") == []
    items = {pk.partition("#")[0]: item for (pk, _), item in table.items.items()}
    assert set(items) == {"MODEL", "UPLOAD"}
    for item in items.values():
        assert item["expires_at"] == 1797926400 == 1795334400 + 30 * 86400


def test_a_note_about_an_ignored_upload_is_one_per_key_and_expires() -> None:
    table, times = MemoryTable(), iter(f"2026-11-22T08:00:0{n}.000Z" for n in range(9))
    registry = Registry(table, lambda: next(times), pause=lambda _: None)
    for key in ("models/a/x.pkl", "models/b/x.pkl", "models/a/x.pkl"):
        registry.note_ignored(key, Reason("FOREIGN_FORMAT", f"reason of {key}"))

    assert registry.ignored() == [
        ("models/a/x.pkl", "reason of models/a/x.pkl"),
        ("models/b/x.pkl", "reason of models/b/x.pkl"),
    ]
    assert table.items["IGNORED", "models/b/x.pkl"]["expires_at"] == 1795334401 + 7 * 86400


def test_a_flood_of_ignored_uploads_leaves_a_bounded_list_of_the_newest() -> None:
    table, times = MemoryTable(), iter(f"2026-11-22T08:00:00.{n:03}Z" for n in range(1000))
    registry = Registry(table, lambda: next(times), pause=lambda _: None)
    for number in range(250):
        registry.note_ignored(f"models/m/{number}.pkl", Reason("FOREIGN_FORMAT", "text"))
    reads = table.reads

    newest = [f"models/m/{number}.pkl" for number in range(249, 149, -1)]
    assert [key for key, _ in registry.ignored()] == newest
    assert table.reads == reads + 1


def test_an_ignored_upload_that_becomes_a_version_is_listed_no_more() -> None:
    table = MemoryTable()
    registry = make_registry(table)
    registry.note_ignored("models/m/a", Reason("FOREIGN_FORMAT", "an earlier release took none"))
    registry.note_ignored("models/m/b", Reason("FOREIGN_FORMAT", "text"))

    registry.claim("m", Source("up", "models/m/a", "v1"))

    assert [key for key, _ in registry.ignored()] == ["models/m/b"]
    assert table.items["IGNORED", "models/m/a"].keys() == {"pk", "sk", "expires_at"}
    registry.note_ignored("models/m/a", Reason("FOREIGN_FORMAT", "text"))
    assert len(registry.ignored()) == 2


@pytest.mark.parametrize("key", ["models/m/" + "é" * 2000, "models/m/\ud800.pkl"])
def test_a_key_that_no_object_can_have_is_noted_as_well_as_can_be(key: str) -> None:
    registry = make_registry(MemoryTable())

    registry.note_ignored(key, Reason("FOREIGN_FORMAT", "text"))

    [(noted, _)] = registry.ignored()
    assert noted.startswith("models/m/")
    assert len(noted.encode()) <= 1024


KEYS = ("pk", "sk", "kind", "listed")  # where an item is stored, and listed


def test_audit_records_are_logged_after_their_transaction() -> None:
    table, logged = MemoryTable(), list[Item]()
    registry = Registry(
        table, lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None, audit_log=logged.append
    )
    registry.finish(ready(registry.claim("m", source("a"))))
    registry.serve("m", False)

    stored = [*registry.audit("m"), table.items["SERVING#m", "AUDIT#000000000001"]]
    assert logged == [
        {"model": "m", **{k: v for k, v in record.items() if k not in KEYS}} for record in stored
    ]
