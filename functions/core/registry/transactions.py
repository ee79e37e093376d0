"""Table of the model registry: its layout, and changes as transactions.

One table. `pk` is `MODEL#<model>`; `sk` is one of

    META                    next version, revision, number of versions that were ever READY, and
                            what lists of models show; `kind` MODEL or ARCHIVED
    SOURCE#<id>             version number of this upload; written once, never changed
    VERSION#<10 digits>     PENDING -> READY or REJECTED -> ARCHIVED
    ALIAS#<alias>           version that this alias points at, and its traffic object
    AUDIT#<12 digits>       change made by the revision of this number
    FAILURE#<id>            why this upload last failed; a note outside the revisions, for 30 days

and, outside the models' partitions,

    pk = BLOB#<sha256>, sk = RECORD        some version refers to this blob; never removed
    pk = SERVING#<model>, sk = SWITCH      served or not; the data plane may write it
    pk = RECONCILE, sk = <walk>            position of the reconciler in its walk
    pk = IGNORED, sk = <S3 key>            why this upload became no version, for 7 days
    pk = UPLOAD#<id>, sk = RECORD          origin of an upload (`core/upload_record.py`), 30 days

Every write to a model is one transaction that moves META.revision from r to r + 1, on the
condition that it is still r. Writes to one model are therefore serial, each has exactly one audit
record, and a writer that loses a race reads again and decides again. Items read after META are no
older than META, so either the decision made from both is still right or its transaction fails.
Nothing here depends on a clock, except the order of uploads, which is by S3's.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from functions.core.errors import ModelNotFound, shown
from functions.core.records import replace
from functions.core.registry.contention import retried
from functions.core.registry.items import (
    alias_from_item,
    alias_sk,
    audit_put,
    audit_to_log,
    model_facts,
    model_pk,
    version_from_item,
    version_sk,
    version_to_item,
)
from functions.core.registry.table import Item, Put, Table, Write
from functions.core.registry.version import Alias, Change, Version

DEFAULT_ALIAS = "prod"
NEWEST_ALIAS = "latest"
KEYS_AT_ONCE = 100  # limit of DynamoDB's BatchGetItem


class Transactions:
    """Base of the registry's classes: reads, and transactions with audit records.

    Every method raises `Unavailable` if the table fails, and every write also if other writers
    interfere too often.
    """

    def __init__(
        self,
        table: Table,
        now: Callable[[], str],
        pause: Callable[[float], None] = time.sleep,
        audit_log: Callable[[Item], None] = lambda _: None,
    ) -> None:
        """Use `table`, and pass each committed audit record to `audit_log`."""
        self._table = table
        self._now = now
        self._pause = pause
        self._audit_log = audit_log

    def version(self, model: str, number: int) -> Version | None:
        """Return a model's version by number, or None if missing."""
        [item] = self._table.get([(model_pk(model), version_sk(number))])
        return version_from_item(item) if item else None

    def versions(self, model: str) -> list[Version]:
        """Return all versions of a model, oldest first, or an empty list."""
        return [version_from_item(item) for item in self._table.query(model_pk(model), "VERSION#")]

    def alias(self, model: str, name: str) -> Alias | None:
        """Return a model's alias by name, or None if missing."""
        [item] = self._table.get([(model_pk(model), alias_sk(name))])
        return alias_from_item(item) if item else None

    def aliases(self, model: str) -> dict[str, int]:
        """Return a model's aliases as a dict of name to version number."""
        return {alias.name: alias.version for alias in self.all_aliases(model)}

    def all_aliases(self, model: str) -> list[Alias]:
        """Return a model's aliases by name, with their traffic objects."""
        return [alias_from_item(item) for item in self._table.query(model_pk(model), "ALIAS#")]

    def audit(self, model: str) -> list[Item]:
        """Return the audit records of a model, oldest first."""
        return list(self._table.query(model_pk(model), "AUDIT#"))

    def _stored(self, model: str, number: int) -> Version:
        """Return a version that must exist because another item refers to it."""
        version = self.version(model, number)
        if version is None:
            raise LookupError(f"the registry refers to version {number} of {model}: it is missing")
        return version

    def _read_after_meta(self, model: str, *sks: str) -> tuple[Item, list[Item | None]]:
        """Read a model's META item, then the items with these sort keys.

        If one of them changes in between, the transaction fails on META's revision.

        Raises:
            ModelNotFound: there is no such model.
        """
        pk = model_pk(model)
        [meta] = self._table.get([(pk, "META")])
        if meta is None:
            raise unknown_model(model)
        return meta, self._table.get([(pk, sk) for sk in sks])

    def _read_all(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        starts = range(0, len(keys), KEYS_AT_ONCE)
        batches = [self._table.get(keys[start : start + KEYS_AT_ONCE]) for start in starts]
        return [item for batch in batches for item in batch]

    def _update(
        self, meta: Item | None, version: Version, action: str, actor: str, **changes: Any
    ) -> Version:
        """Commit changed fields of a version, unless its state has changed meanwhile."""
        changed = replace(version, **changes)
        old, new = version_to_item(version), version_to_item(changed)
        before, after = ({name: item[name] for name in changes} for item in (old, new))
        change = Change(action, actor, version.number, before, after)
        self._commit(version.model, meta, [Put(new, {"state": old["state"]})], change)
        return changed

    def _commit(
        self,
        model: str,
        meta: Item | None,
        puts: Sequence[Write],
        change: Change,
        **fields: Any,
    ) -> None:
        """Commit writes as a model's next revision, with META fields."""
        at = self._now()
        key = {"pk": model_pk(model), "sk": "META", "model": model}
        revision = meta["revision"] if meta else 0
        stored = meta or {"created_at": at, "aliases": {}}
        item = {**key, **stored, **fields, "revision": revision + 1, "changed_at": at}
        item |= model_facts(item, puts)
        guard = Put(item, {"revision": revision} if meta else None)
        self._transact(model, guard, puts, change, at)

    def _transact(
        self, model: str, guard: Put, puts: Sequence[Write], change: Change, at: str
    ) -> None:
        """Commit a model's writes with their audit record in one transaction.

        `guard` sets the revision that numbers the audit record.
        """
        audit = audit_put(guard.item["pk"], guard.item["revision"], change, at)
        self._table.transact([guard, *puts, audit])
        self._audit_log(audit_to_log(audit.item, model=model))

    @retried
    def _overwrite(self, _name: str, *items: Item) -> None:
        """Write items unconditionally, without model revision or audit record.

        It is retried because another transaction may hold an item for a moment.
        """
        self._table.transact([Put(item, {}) for item in items])


def unknown_model(model: str) -> ModelNotFound:
    """Return the error for a model that the caller may not know."""
    return ModelNotFound(f"Request for unknown model: {shown(model)} is not found")


def unknown_version(model: str, number: int) -> ModelNotFound:
    """Return the error for a version that a model does not have."""
    return ModelNotFound(f"Request for unknown model: '{model}' version {number} is not found")


def because(version: Version) -> str:
    """Return a version's reason as the end of a sentence, or nothing."""
    return f": {version.reason.message}" if version.reason else ""
