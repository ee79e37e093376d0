"""Faults planted in the code under test, to prove that the invariants find them."""

import copy
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
from functions.core.registry.releases import Releases
from functions.core.registry.table import Conflict, Put
from functions.core.registry.transactions import Transactions
from functions.core.registry.version import Blob, Version
from functions.core.uploads import Upload
from tests.stateful.machine import Watched

Edit = tuple[type, str, str, str]  # class, method, text that its source has once, replacement


@contextmanager
def edited(*edits: Edit) -> Iterator[None]:
    """Replace source text of methods within the block."""
    sources: dict[tuple[type, str], str] = {}
    for owner, name, old, new in edits:
        method = owner, name
        source = sources.get(method) or textwrap.dedent(inspect.getsource(getattr(*method)))
        assert source.count(old) == 1, (
            f"{owner.__name__}.{name} has {source.count(old)} times {old!r}: adapt the fault"
        )
        sources[method] = source.replace(old, new)
    with ExitStack() as stack:
        for (owner, name), source in sources.items():
            namespace: dict[str, Any] = {}
            exec(source, vars(sys.modules[owner.__module__]), namespace)  # noqa: S102 (our source)
            stack.enter_context(mock.patch.object(owner, name, namespace[name]))
        yield


@contextmanager
def ready_before_the_blob() -> Iterator[None]:
    """Store blobs only after the version is READY."""
    late: list[tuple[S3Blobs, Blob, Path]] = []
    store, register = S3Blobs.store, Registration.register

    def postpone(self: S3Blobs, blob: Blob, path: Path) -> None:
        kept = Path(path.parent.parent.parent, f"kept-{blob.sha256}")
        kept.write_bytes(path.read_bytes())
        late.append((self, blob, kept))

    def register_then_store(self: Registration, upload: Upload) -> Version | None:
        late.clear()
        version = register(self, upload)
        for blobs, blob, kept in late:
            store(blobs, blob, kept)
        return version

    with (
        mock.patch.object(S3Blobs, "store", postpone),
        mock.patch.object(Registration, "register", register_then_store),
    ):
        yield


@contextmanager
def failures_acknowledged() -> Iterator[None]:
    """Delete a message from the queue although its registration failed."""

    def register(self: Watched, upload: Upload) -> Version | None:
        try:
            return self.registration.register(upload)
        except Unavailable:
            return None

    with mock.patch.object(Watched, "register", register):
        yield


@contextmanager
def lost_races_ignored() -> Iterator[None]:
    """Treat a cancelled transaction as written."""
    transact = DynamoTable.transact

    def careless(self: DynamoTable, puts: Sequence[Put]) -> None:
        with suppress(Conflict):
            transact(self, puts)

    with mock.patch.object(DynamoTable, "transact", careless):
        yield


@contextmanager
def aliases_read_before_meta() -> Iterator[None]:
    """Read the aliases before META, once for all attempts to archive."""
    archive = Releases.archive

    def archive_early(self: Releases, model: str, number: int, *, actor: str) -> Version:
        aliases = self.all_aliases(model)
        releases = copy.copy(self)
        releases.all_aliases = lambda _: aliases  # type: ignore[method-assign]
        return archive(releases, model, number, actor=actor)

    with mock.patch.object(Releases, "archive", archive_early):
        yield


PLANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no dedupe on the object version": lambda: edited(
        (Registry, "claim", "if claim is None:", "if True:"),
        (
            Registry,
            "_claim_new",
            "source_put(model, source, number)",
            "replace(source_put(model, source, number), condition={})",
        ),
    ),
    "the idempotency key is not written": lambda: edited(
        (Registry, "_claim_new", "source_put(model, source, number), ", ""),
    ),
    "no condition on the revision": lambda: edited(
        (
            Transactions,
            "_commit",
            'Put(item, {"revision": revision} if meta else None)',
            "Put(item, {})",
        ),
        (Transactions, "_transact", "*puts, audit]", "*puts, replace(audit, condition={})]"),
    ),
    "a lost race counts as won": lost_races_ignored,
    "finish without a state condition": lambda: edited(
        (Registry, "_finish", 'if stored["state"] != State.PENDING:', "if False:"),
        (Registry, "_finish", '{"state": State.PENDING.value, **claims})', "{})"),
    ),
    "READY before the blob": ready_before_the_blob,
    "the latest bytes instead of the event's version": lambda: edited(
        (S3Uploads, "_read_request", 'request["VersionId"] = pinned.version_id', "pass"),
    ),
    "an alias without the READY check": lambda: edited(
        (Releases, "_move", "if alias is None or alias.version != number:", "if False:"),
    ),
    "latest moves back": lambda: edited(
        (
            Registry,
            "_moves_at_ready",
            "if newest is None or version.is_written_after(newest, is_newer):",
            "if True:",
        ),
    ),
    "latest follows the order of processing": lambda: edited(
        (
            Registry,
            "_moves_at_ready",
            "version.is_written_after(newest, is_newer)",
            "version.number > newest.number",
        ),
    ),
    "latest follows the events within a second": lambda: edited(
        (
            Version,
            "is_written_after",
            "newer = is_newer(self.source, rival.source)",
            "newer = None",
        ),
    ),
    "prod follows latest": lambda: edited(
        (Registry, "_moves_at_ready", 'if prod is None and not meta.get("ready", 0):', "if True:"),
    ),
    "archive ignores aliases": lambda: edited(
        (Releases, "archive", "check_unused(version, self.all_aliases(model))", "pass"),
    ),
    "archive reads the aliases before META": aliases_read_before_meta,
    "traffic without the READY check": lambda: edited(
        (Releases, "_set_traffic", "check_releasable(version_from_item(target))", "pass"),
    ),
    "archive ignores traffic": lambda: edited(
        (
            Releases,
            "archive",
            "self.all_aliases(model)",
            "[replace(alias, traffic=None) for alias in self.all_aliases(model)]",
        ),
    ),
    "a move keeps the split": lambda: edited(
        (
            Releases,
            "_move",
            'put = alias_put(model, name, number, item, meta.get("retired", {}).get(name, 0))',
            "put = alias_put(model, name, number, item)\n"
            '    put = replace(put, item={**put.item, "traffic": (item or {}).get("traffic")})',
        ),
    ),
    "a rollback does not end a split first": lambda: edited(
        (
            Releases,
            "rollback",
            "alias.version if alias.traffic else alias.previous",
            "alias.previous",
        ),
    ),
    "a split has no audit of its own": lambda: edited(
        (Releases, "_set_traffic", "alias, arranged, facts)", "alias, alias.traffic, facts)"),
    ),
    "the audit record is dropped": lambda: edited(
        (Transactions, "_transact", "[guard, *puts, audit]", "[guard, *puts]")
    ),
    "the record of a blob is not written": lambda: edited(
        (Registry, "_commit_ready", "[blob_put(blob) for blob in version.blobs]", "[]"),
    ),
    "a referenced blob is collected": lambda: edited(
        (Reconciler, "_collect_blobs", "if digest not in recorded:", "if True:")
    ),
    "a blob is collected without grace": lambda: edited(
        (Reconciler, "_collect_blobs", " if stored.stored_at < before", ""),
    ),
    "an old blob is reused that may be collected": lambda: edited(
        (S3Blobs, "_is_fresh", " and age < FRESH", "")
    ),
    "the current version of a blob is removed, whichever it is": lambda: edited(
        (S3BlobListing, "remove", ", VersionId=stored.object_version", ""),
    ),
    "a failure is acknowledged": failures_acknowledged,
    "PENDING versions are not resumed": lambda: edited(
        (Reconciler, "_resume_pending", "self.send(events)", "pass"),
    ),
    "lost uploads are not found": lambda: edited(
        (Reconciler, "_resend_lost_uploads", "elif version is None:", "elif False:")
    ),
}
FOUND_SOON = (  # within seconds: these are part of `make test`, and all of `make stress`
    "the idempotency key is not written",
    "READY before the blob",
    "the latest bytes instead of the event's version",
    "latest moves back",
    "latest follows the order of processing",
    "latest follows the events within a second",
    "prod follows latest",
    "traffic without the READY check",
)
