"""Faults to plant in the code under test: an invariant is worth what it finds."""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs, S3Uploads
from functions.adapters.aws.s3_listing import S3BlobListing
from functions.core.errors import Unavailable
from functions.core.registration.registration import Registration
from functions.core.registry.reconciler import Reconciler
from functions.core.registry.registry import Registry
from functions.core.registry.table import Conflict, Put
from functions.core.registry.version import Blob, Version
from functions.core.uploads import Upload
from tests.stateful.machine import Watched

Edit = tuple[
    type, str, str, str
]  # class, method, what has to be in its source exactly once, what takes its place


@contextmanager
def edited(*edits: Edit) -> Iterator[None]:
    """The code with these changes, within the block."""
    with ExitStack() as stack:
        sources: dict[tuple[type, str], str] = {}
        for owner, name, old, new in edits:
            source = sources.get((owner, name)) or textwrap.dedent(
                inspect.getsource(getattr(owner, name))
            )
            assert source.count(old) == 1, (
                f"{owner.__name__}.{name} has {source.count(old)} times {old!r}: plant anew"
            )
            sources[owner, name] = source.replace(old, new)
        for (owner, name), source in sources.items():
            made: dict[str, Any] = {}
            exec(source, vars(sys.modules[owner.__module__]), made)  # noqa: S102 (our own source)
            stack.enter_context(mock.patch.object(owner, name, made[name]))
        yield


@contextmanager
def ready_before_the_blob() -> Iterator[None]:
    """Blobs are stored once the record is READY."""
    late: list[tuple[S3Blobs, Blob, Path]] = []
    store, register = S3Blobs.store, Registration.register

    def put_off(self: S3Blobs, blob: Blob, path: Path) -> None:
        kept = Path(path.parent.parent.parent, f"kept-{blob.sha256}")
        kept.write_bytes(path.read_bytes())
        late.append((self, blob, kept))

    def then_store(self: Registration, upload: Upload) -> Version | None:
        late.clear()
        version = register(self, upload)
        for blobs, blob, kept in late:
            store(blobs, blob, kept)
        return version

    with (
        mock.patch.object(S3Blobs, "store", put_off),
        mock.patch.object(Registration, "register", then_store),
    ):
        yield


@contextmanager
def failures_acknowledged() -> Iterator[None]:
    """A message whose registration failed is deleted from the queue."""

    def register(self: Watched, upload: Upload) -> Version | None:
        try:
            return self.registration.register(upload)
        except Unavailable:
            return None

    with mock.patch.object(Watched, "register", register):
        yield


@contextmanager
def lost_race_taken_for_a_win() -> Iterator[None]:
    """A transaction that was cancelled counts as written."""
    transact = DynamoTable.transact

    def careless(self: DynamoTable, puts: Sequence[Put]) -> None:
        with suppress(Conflict):
            transact(self, puts)

    with mock.patch.object(DynamoTable, "transact", careless):
        yield


FINISHED = 'if standing["state"] != State.PENDING:'
PLANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no dedupe on the object version": lambda: edited(
        (Registry, "claim", "if known is None:", "if True:"),
        (Registry, "claim", '"version": number}, None)', '"version": number}, {})'),
    ),
    "the idempotency key is not written": lambda: edited(
        (
            Registry,
            "claim",
            'Put({"pk": pk, "sk": f"SOURCE#{source.id}", "version": number}, None),',
            "",
        ),
    ),
    "no condition on the revision": lambda: edited(
        (Registry, "_commit", 'Put(new, {"revision": revision} if meta else None)', "Put(new, {})"),
        (Registry, "_audit", "Put(item, None)", "Put(item, {})"),
    ),
    "a lost race is taken for a win": lost_race_taken_for_a_win,
    "finish without a state condition": lambda: edited(
        (Registry, "finish", FINISHED, "if False:"),
        (Registry, "finish", '{"state": State.PENDING.value, **claims})]', "{})]"),
    ),
    "READY before the blob": ready_before_the_blob,
    "the latest bytes instead of the event's version": lambda: edited(
        (
            S3Uploads,
            "_read_request",
            'request["VersionId"] = pinned.version_id',
            "pass",
        ),
    ),
    "an alias without the READY check": lambda: edited(
        (Registry, "_move", "if version.state is not State.READY:", "if False:"),
    ),
    "latest moves back": lambda: edited(
        (
            Registry,
            "finish",
            'if latest is None or latest["version"] < version.number:',
            "if True:",
        ),
    ),
    "archive ignores aliases": lambda: edited((Registry, "archive", "if held_by:", "if False:")),
    "archive reads the aliases before META": lambda: edited(
        (
            Registry,
            "archive",
            "for _ in self._attempts():",
            "aliases = self.aliases(model)\n    for _ in self._attempts():",
        ),
        (Registry, "archive", "in self.aliases(model).items()", "in aliases.items()"),
    ),
    "the audit record is dropped": lambda: edited(
        (Registry, "_commit", "[guard, *puts, audit]", "[guard, *puts]")
    ),
    "the record of a blob is not written": lambda: edited(
        (Registry, "finish", "[_blob_put(blob) for blob in done.blobs]", "[]"),
    ),
    "a referenced blob is collected": lambda: edited(
        (Reconciler, "_collect", "if digest not in recorded:", "if True:")
    ),
    "a blob is collected without grace": lambda: edited(
        (Reconciler, "_collect", "if stored.stored_at < before", "if True"),
    ),
    "an old blob is trusted that may be collected": lambda: edited(
        (S3Blobs, "_is_fresh", " and age < FRESH", "")
    ),
    "whatever is current is collected": lambda: edited(
        (S3BlobListing, "remove", ", VersionId=stored.object_version", ""),
    ),
    "a failure is acknowledged": failures_acknowledged,
    "PENDING versions are not resumed": lambda: edited(
        (Reconciler, "_resume", "self.queue.send(events)", "pass"),
    ),
    "lost uploads are not found": lambda: edited(
        (Reconciler, "_find_uploads", "elif version is None:", "elif False:")
    ),
}
FOUND_SOON = (
    "no dedupe on the object version",
    "the idempotency key is not written",
    "finish without a state condition",
    "READY before the blob",
    "the latest bytes instead of the event's version",
    "latest moves back",
    "a failure is acknowledged",
    "an alias without the READY check",
    "PENDING versions are not resumed",
    "a referenced blob is collected",
)  # within a few examples: these are part of `make test`
