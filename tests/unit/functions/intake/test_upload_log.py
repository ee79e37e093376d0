"""Log of uploads: every way to an end, pages, visibility."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from functions.core.errors import StateConflict, UploadNotFound
from functions.core.intake.announcement import Announcement
from functions.core.intake.status import RECEIVES_MAX, UploadState, UploadStatus
from functions.core.intake.upload_log import ROWS_READ, UploadLog
from functions.core.records import replace as with_fields
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Reason, Source, State, Version
from tests.fakes import MemoryTable

PACKAGE = "up-0123456789abcdef0123"
UNAVAILABLE = Reason("UNAVAILABLE", "storage does not answer; try again")


@dataclass
class Desk:
    """Upload log over a table in memory, with a clock that ticks at each look."""

    table: MemoryTable = field(default_factory=MemoryTable)
    stored: set[str] = field(default_factory=set)
    second: int = 0

    def __post_init__(self) -> None:
        self.registry = Registry(self.table, self.now, pause=lambda _: None)
        self.log = UploadLog(
            self.table, self.registry, "uploads", self.now, self.stored.__contains__
        )

    def now(self) -> str:
        self.second += 1
        minutes, seconds = divmod(self.second, 60)
        hours, minutes = divmod(minutes, 60)
        return f"2026-11-22T{hours:02}:{minutes:02}:{seconds:02}.000Z"

    def announce(self, file: str = "model.onnx", model: str = "digits") -> str:
        entry = Announcement(model, file, 10, "ab" * 32, PACKAGE)
        return self.log.announce(entry, "key:k", "2026-11-22T01:00:00.000Z").id

    def read(self, upload: str) -> UploadStatus:
        return self.log.read(upload, everything)

    def page(
        self, before: str = "", limit: int = 100, sees: Callable[[str], bool] | None = None
    ) -> tuple[list[UploadStatus], str]:
        return self.log.page(before, limit, sees or everything)


def everything(_: str) -> bool:
    return True


def source(file: str = "model.onnx", version: str = "v1", model: str = "digits") -> Source:
    return Source("uploads", f"models/{model}/{PACKAGE}/{file}", version)


def ready(version: Version) -> Version:
    blob = Blob("model.onnx", "ab" * 32, 10)
    return with_fields(version, state=State.READY, files=(blob,))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_an_announced_upload_goes_its_way_to_ready(desk: Desk) -> None:
    upload = desk.announce()
    assert desk.read(upload).state is UploadState.WAITING
    desk.stored.add(source().key)
    received = desk.read(upload)
    assert (received.state, received.done) == (UploadState.RECEIVED, False)

    version = desk.registry.claim("digits", source())
    registering = desk.read(upload)
    assert (registering.state, registering.version, registering.attempts) == (
        *(UploadState.REGISTERING, 1, 1),
    )
    desk.registry.finish(ready(version))
    end = desk.read(upload)
    assert (end.state, end.version, end.done) == (UploadState.READY, 1, True)
    assert (end.record.created_by, end.record.size_bytes) == ("key:k", 10)
    assert end.record.object_version == "v1"


def test_a_rejected_upload_has_its_reason_and_next_step(desk: Desk) -> None:
    upload = desk.announce()
    version = desk.registry.claim("digits", source())
    reason = Reason("NOT_ONNX", "this is no ONNX")
    desk.registry.finish(with_fields(version, state=State.REJECTED, reason=reason))

    end = desk.read(upload)
    assert (end.state, end.reason, end.done) == (UploadState.REJECTED, reason, True)
    assert "upload it again" in end.next_step


def test_an_upload_that_never_came_expires(desk: Desk) -> None:
    upload = desk.announce()
    desk.second = 3601

    end = desk.read(upload)
    assert (end.state, end.done) == (UploadState.EXPIRED, True)
    assert [status.state for status in desk.page()[0]] == [UploadState.EXPIRED]


def test_an_ignored_upload_has_its_reason(desk: Desk) -> None:
    key, reason = "models/digits/x.pt", Reason("FOREIGN_FORMAT", "PyTorch")
    desk.registry.note_ignored(key, reason, Source("uploads", key, "v1"))

    [status] = desk.page()[0]
    assert (status.state, status.reason) == (UploadState.IGNORED, reason)
    assert desk.read(status.record.id) == status


def test_a_failing_upload_is_retried_then_a_dead_letter_then_retried(desk: Desk) -> None:
    upload = desk.announce()
    for attempt in range(1, RECEIVES_MAX + 1):
        desk.registry.claim("digits", source())
        desk.registry.note_failure("digits", source(), UNAVAILABLE)
        status = desk.read(upload)
        assert (status.attempts, status.reason) == (attempt, UNAVAILABLE)
        expected = UploadState.FAILED if attempt == RECEIVES_MAX else UploadState.REGISTERING
        assert status.state is expected
    assert (status.done, "redrive" in status.next_step) == (True, True)

    version = desk.registry.claim("digits", source())
    assert desk.read(upload).state is UploadState.REGISTERING
    desk.registry.finish(ready(version))
    assert desk.read(upload).state is UploadState.READY


def test_an_upload_that_fails_before_it_is_claimed_is_listed(desk: Desk) -> None:
    direct = Source("uploads", "models/digits/model.onnx", "v7")
    for _ in range(RECEIVES_MAX):
        desk.registry.note_failure("digits", direct, UNAVAILABLE)

    [status] = desk.page()[0]
    assert (status.state, status.version, status.attempts) == (UploadState.FAILED, None, 5)
    desk.registry.claim("digits", direct)
    assert len(desk.page()[0]) == 1


def test_an_event_without_a_version_keeps_the_version_of_the_record(desk: Desk) -> None:
    """Moto sends such events; the registry learns the version from S3."""
    upload = desk.announce()
    desk.registry.claim("digits", source())
    desk.registry.note_failure("digits", source(version=""), UNAVAILABLE)

    assert desk.read(upload).record.object_version == "v1"
    assert desk.read(upload).version == 1


def test_a_part_ends_when_it_is_received(desk: Desk) -> None:
    upload = desk.announce("parts/w.bin")
    desk.registry.note_part(source("parts/w.bin"))

    status = desk.read(upload)
    assert (status.state, status.done) == (UploadState.RECEIVED, True)
    assert "manifest.json last" in status.next_step
    assert desk.page()[0] == [status]
    desk.registry.note_part(source("parts/unannounced.bin"))
    assert len(desk.page()[0]) == 1


def test_a_file_is_announced_again_until_it_has_come(desk: Desk) -> None:
    upload = desk.announce()
    assert desk.announce() == upload
    assert len(desk.page()[0]) == 1
    desk.stored.add(source().key)

    with pytest.raises(StateConflict, match=r"^file: the package has 'model.onnx' already"):
        desk.announce()


def test_every_upload_is_listed_newest_first_over_pages(desk: Desk) -> None:
    for n in range(5):
        desk.registry.claim("digits", Source("uploads", "models/digits/model.onnx", f"v{n}"))
        desk.announce(f"{n}.onnx", "faces")
    seen, position = [], ""
    for _ in range(10):
        page, position = desk.page(position, 3)
        seen += [status.record for status in page]
        if not position:
            break

    assert [record.model for record in seen] == ["faces", "digits"] * 5
    times = [record.created_at for record in seen]
    assert times == sorted(times, reverse=True)
    assert [record.object_version for record in seen][1::2] == ["v4", "v3", "v2", "v1", "v0"]


def test_a_page_holds_visible_models_alone_at_constant_cost(desk: Desk) -> None:
    own = desk.announce()
    for n in range(30):
        desk.announce(f"{n}.onnx", "faces")

    def reads() -> int:
        before = desk.table.reads
        page, position = desk.page(sees=lambda model: model == "digits")
        assert ([status.record.id for status in page], position) == ([own], "")
        return desk.table.reads - before

    few = reads()
    for n in range(300):
        desk.announce(f"{n}.onnx", "faces")
    assert reads() == few
    with pytest.raises(UploadNotFound):
        desk.log.read(own, lambda model: model == "faces")
    with pytest.raises(UploadNotFound):
        desk.read("nothing")


def test_a_page_reads_a_bounded_part_of_the_index(desk: Desk) -> None:
    own = desk.announce()
    for n in range(ROWS_READ + 5):
        desk.announce(f"{n}.onnx", "faces")

    def mine(model: str) -> bool:
        return model == "digits"

    page, position = desk.page(sees=mine)
    assert (page, bool(position)) == ([], True)
    page, position = desk.page(position, sees=mine)
    assert ([status.record.id for status in page], position) == ([own], "")


def test_an_archived_version_leaves_its_upload_as_it_ended(desk: Desk) -> None:
    upload = desk.announce()
    version = desk.registry.claim("digits", source())
    reason = Reason("NOT_ONNX", "this is no ONNX")
    desk.registry.finish(with_fields(version, state=State.REJECTED, reason=reason))
    item = dict(desk.table.items["MODEL#digits", "VERSION#0000000001"])
    desk.table.items["MODEL#digits", "VERSION#0000000001"] = {**item, "state": "ARCHIVED"}

    assert desk.read(upload).state is UploadState.REJECTED
