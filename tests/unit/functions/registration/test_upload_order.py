"""Tests that alias `latest` follows write order, not event order."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from functions.core.registration.registration import Registration
from functions.core.registry.registry import Registry
from functions.core.registry.version import State, Version
from functions.core.uploads import Upload, uploads_in
from functions.register.manifest import read_manifest
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.models import scale_model
from tests.sandbox import MemorySandbox

BUCKET, KEY = "up", "models/m/model.onnx"
MODEL = scale_model()


class World:
    """Registration with in-memory fakes, and uploads to register in any order."""

    def __init__(self) -> None:
        self.uploads = MemoryUploads()
        self.registry = Registry(
            MemoryTable(), lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None
        )
        self.registration = Registration(
            self.registry, self.uploads, MemoryBlobs(), MemorySandbox(), read_manifest
        )

    def put(
        self, key: str = KEY, content: bytes = MODEL, sequencer: str = "", pause_s: int = 1
    ) -> Upload:
        version_id = self.uploads.put(BUCKET, key, content, pause_s=pause_s)
        return Upload(BUCKET, key, version_id, sequencer)

    def register(self, uploads: Iterable[Upload]) -> None:
        for upload in uploads:
            self.registration.register(upload)

    def latest(self) -> Version:
        return self.registry.resolve("m", "latest").version

    def is_latest(self, upload: Upload) -> bool:
        source = self.latest().source
        return (source.key, source.object_version) == (upload.key, upload.version_id)


ORDERS = list(itertools.permutations(range(4)))


@pytest.mark.parametrize("pause_s", [0, 1], ids=["in one second", "a second apart"])
@pytest.mark.parametrize(
    "sequencers",
    [("", "", "", ""), ("0A", "0A1", "0a10F", "0B"), ("05", "", "07", "")],
    ids=["without sequencers", "with sequencers", "with some"],
)
def test_latest_is_the_object_written_last_in_every_order_of_events(
    pause_s: int, sequencers: tuple[str, ...]
) -> None:
    for order in ORDERS:
        world = World()
        uploads = [world.put(sequencer=text, pause_s=pause_s) for text in sequencers]

        world.register(uploads[index] for index in order)

        assert world.is_latest(uploads[-1]), order


def test_uploads_of_several_keys_in_one_second_follow_their_names() -> None:
    for order in ORDERS:
        world = World()
        names = ("run-2/model.onnx", "run-1/model.onnx", "run-3/model.onnx", "b/model.onnx")
        uploads = [world.put(f"models/m/{name}", pause_s=0) for name in names]

        world.register(uploads[index] for index in order)

        assert world.is_latest(uploads[2]), order


def test_a_later_second_counts_more_than_a_name_or_a_sequencer() -> None:
    world = World()
    first = world.put("models/m/z.onnx", sequencer="FF")
    second = world.put("models/m/a.onnx", sequencer="01")

    world.register([second, first])

    assert world.is_latest(second)


def test_a_redrive_of_an_old_upload_does_not_move_latest() -> None:
    world = World()
    old, new = world.put(), world.put()
    world.register([new, new, old, old, new])

    assert world.is_latest(new)
    audit = [record["after"].get("aliases") for record in world.registry.audit("m")]
    assert audit == [None, {"latest": 1, "prod": 1}, None, {}]


def test_a_rejected_upload_is_never_latest() -> None:
    world = World()
    good, bad = world.put(), world.put(content=b"")

    world.register([bad, good])

    assert world.registry.version("m", 1).state is State.REJECTED
    assert world.is_latest(good)


def test_prod_stays_at_the_first_ready_version_when_an_older_upload_follows() -> None:
    world = World()
    old, new = world.put(), world.put()

    world.register([new, old])

    assert world.registry.aliases("m") == {"latest": 1, "prod": 1}
    assert world.registry.version("m", 1).source.object_version == new.version_id


def test_a_version_of_an_earlier_release_counts_as_written_when_claimed() -> None:
    """Check that a record without write time is ordered by creation time."""
    world = World()
    redriven, recorded = world.put("models/m/b.onnx"), world.put("models/m/a.onnx")
    world.register([recorded])
    pk, sk = "MODEL#m", "VERSION#0000000001"
    table = world.registry._table
    item = {**table.items[pk, sk], "created_at": world.latest().written_at}
    del item["written_at"], item["sequencer"]
    table.items[pk, sk] = item

    world.register([redriven])
    assert world.is_latest(recorded)

    new = world.put("models/m/a.onnx")
    world.register([new])
    assert world.is_latest(new)


def test_a_version_keeps_when_it_was_written() -> None:
    world = World()
    world.register([world.put(sequencer="0A1B")])

    stored = world.registry.version("m", 1)

    assert (stored.written_at, stored.sequencer) == ("2026-11-22T08:15:31.000Z", "0A1B")


def event(**stored: Any) -> dict[str, Any]:
    record = {
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": BUCKET}, "object": {"key": KEY, **stored}},
    }
    return {"Records": [record]}


@pytest.mark.parametrize(
    ("stored", "version_id", "sequencer"),
    [
        ({"versionId": "v1", "sequencer": "0055AED6DCD90281E5"}, "v1", "0055AED6DCD90281E5"),
        ({"versionId": "v1"}, "v1", ""),
        ({"versionId": "v1", "sequencer": None}, "v1", ""),
        ({"versionId": "v1", "sequencer": "not hexadecimal"}, "v1", ""),
        ({"versionId": "v1", "sequencer": "A" * 65}, "v1", ""),
        ({"sequencer": "0A"}, None, ""),  # the object may have been overwritten since
        ({"versionId": "null", "sequencer": "0A"}, "null", ""),
    ],
)
def test_a_sequencer_counts_beside_an_exact_version_only(
    stored: dict[str, Any], version_id: str | None, sequencer: str
) -> None:
    assert list(uploads_in(event(**stored))) == [Upload(BUCKET, KEY, version_id, sequencer)]


def test_eventbridge_names_the_sequencer_too() -> None:
    stored = {"key": KEY, "version-id": "v1", "sequencer": "0A"}
    detail = {"bucket": {"name": BUCKET}, "object": stored}
    event = {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}

    assert list(uploads_in(event)) == [Upload(BUCKET, KEY, "v1", "0A")]
