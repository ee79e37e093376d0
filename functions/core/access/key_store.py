"""Access keys in the registry's table: create, read, list, rotate, revoke.

One table with the models. `pk` is `KEY#<id>`; `sk` is one of

    RECORD              name, permissions, validity, digests of the secrets
    SECRET#<sha256>     permissions of a request with this secret
    AUDIT#<12 digits>   change made by the revision of this number

As for models, every write is one transaction that moves RECORD.revision from r to r + 1 and leaves
one audit record, which holds no digest.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from functions.core.access.access_key import (
    AccessKey,
    KeyState,
    Secret,
    key_from_item,
    key_to_item,
    secret_puts,
)
from functions.core.access.grant_items import key_pk
from functions.core.access.grants import Scope, check_grant
from functions.core.access.keys import is_key_id, key_digest, new_id, new_key
from functions.core.errors import InvalidRequest, KeyNotFound, StateConflict, shown
from functions.core.registry.contention import retried
from functions.core.registry.items import audit_put, audit_to_log
from functions.core.registry.table import Item, Put, Table
from functions.core.registry.version import Change
from functions.core.usage.quota import month_put

NAME_LENGTH = 100
SECRETS_MAX = 5  # secrets of a key that are valid at a time, by rotations with overlap
PAGE_MAX = 100  # keys of one page; limit of DynamoDB's BatchGetItem


class KeyStore:
    """Access keys in the registry's table, with an audit trail.

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
        """Use `table`, and pass each committed audit record to `audit_log`.

        `now` returns the time in ISO 8601.
        """
        self._table = table
        self._now = now
        self._pause = pause
        self._audit_log = audit_log

    def read(self, key_id: str) -> AccessKey:
        """Return an access key by its id.

        Raises:
            KeyNotFound: there is no key with this id.
        """
        if not is_key_id(key_id):  # a key, perhaps: it is not repeated
            raise KeyNotFound(
                "there is no key with this id: an id has 12 of 0-9 a-z; list the keys"
            )
        [item] = self._table.get([(key_pk(key_id), "RECORD")])
        if item is None:
            raise KeyNotFound(f"there is no key with the id {shown(key_id)}; list the keys")
        return key_from_item(item)

    def page(self, after: str, limit: int) -> tuple[list[AccessKey], str]:
        """Return a page of access keys, oldest first, and the next position.

        It begins after a position: "" for the first page, then the one that the call before
        returned. The position returned is "" at the end. A key is listed a moment after it was
        created.
        """
        rows = list(self._table.access_keys(after, limit))
        items = self._table.get([(row["pk"], "RECORD") for row in rows]) if rows else []
        keys = [key_from_item(item) for item in items if item]
        return keys, rows[-1]["listed"] if len(rows) == limit else ""

    @retried
    def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope],
        models: Sequence[str],
        actor: str,
        valid_until: int | None = None,
        monthly_requests: int | None = None,
        max_tokens: int | None = None,
    ) -> tuple[AccessKey, str]:
        """Create an access key; return it and its text.

        The text is stored nowhere.

        `valid_until` is Unix seconds.

        Raises:
            InvalidRequest: naming the field at fault.
        """
        now = self._now()
        _check_name(name)
        check_grant(frozenset(scopes), tuple(models))
        if valid_until is not None and valid_until <= _unix_s(now):
            raise InvalidRequest(f"expires_at: it is past; send a time after {now}")
        key_id = new_id()
        text = new_key(key_id)
        secret = Secret(key_digest(text), valid_until)
        key = AccessKey(
            id=key_id,
            name=name,
            scopes=tuple(dict.fromkeys(scopes)),
            models=tuple(dict.fromkeys(models)),
            secrets=(secret,),
            created_at=now,
            created_by=actor,
            valid_until=valid_until,
            monthly_requests=monthly_requests,
            max_tokens=max_tokens,
        )
        self._commit(None, key, [secret], Change("create", actor, None, {}, _permissions(key)))
        return key, text

    @retried
    def rotate(self, key_id: str, overlap_s: int, *, actor: str) -> tuple[AccessKey, str]:
        """Give a key a new secret.

        Returns the key and its new text. The secrets before stay valid for `overlap_s` seconds.
        Neither permissions nor validity of the key change.

        Raises:
            KeyNotFound: there is no key with this id.
            StateConflict: the key is revoked or expired, or has too many valid secrets.
        """
        key, now = self.read(key_id), self._now()
        now_s = _unix_s(now)
        if (state := key.state(now_s)) is not KeyState.ACTIVE:
            raise StateConflict(f"key {key_id} is {state}: create another one")
        before = _shortened(_valid_secrets(key, now_s), now_s + overlap_s)
        if overlap_s and len(before) >= SECRETS_MAX:
            raise StateConflict(
                f"key {key_id} has {len(before)} valid secrets: rotate with overlap_seconds 0"
            )
        text = new_key(key_id)
        secret = Secret(key_digest(text), key.valid_until)
        rotated = replace(
            key,
            secrets=(*before, secret) if overlap_s else (secret,),
            rotated_at=now,
            revision=key.revision + 1,
        )
        after = {"previous_valid_until": now_s + overlap_s}
        change = Change("rotate", actor, None, {}, after)
        self._commit(key, rotated, [*before, secret], change)
        return rotated, text

    @retried
    def change_limits(
        self, key_id: str, limits: Mapping[str, Any], used: int, *, actor: str
    ) -> AccessKey:
        """Change some of a key's limits.

        `limits` has `monthly_requests`, `max_tokens` or both; None is no limit. `used` is the
        number of requests that it has made this month: while it had no quota, they were not
        counted by month.

        Raises:
            KeyNotFound: there is no key with this id.
            StateConflict: the key is revoked or expired.
        """
        key, now_s = self.read(key_id), _unix_s(self._now())
        if (state := key.state(now_s)) is not KeyState.ACTIVE:
            raise StateConflict(f"key {key_id} is {state}: create another one")
        changed = replace(key, **limits, revision=key.revision + 1)
        before = {name: getattr(key, name) for name in limits}
        change = Change("change", actor, None, before, dict(limits))
        begins = key.monthly_requests is None and changed.monthly_requests is not None
        month = [month_put(key_id, used, now_s)] if begins else []
        self._commit(key, changed, _valid_secrets(key, now_s), change, month)
        return changed

    @retried
    def revoke(self, key_id: str, *, actor: str) -> AccessKey:
        """End a key for good. Nothing changes if it is revoked already.

        Raises:
            KeyNotFound: there is no key with this id.
        """
        key, now = self.read(key_id), self._now()
        if key.revoked_at is not None:
            return key
        ended = _shortened(key.secrets, _unix_s(now))
        revoked = replace(key, secrets=ended, revoked_at=now, revision=key.revision + 1)
        change = Change("revoke", actor, None, {"revoked_at": None}, {"revoked_at": now})
        self._commit(key, revoked, ended, change)
        return revoked

    def _commit(
        self,
        before: AccessKey | None,
        after: AccessKey,
        secrets: Sequence[Secret],
        change: Change,
        more: Sequence[Put] = (),
    ) -> None:
        """Commit a key, changed secrets and the audit record in one transaction."""
        condition = {"revision": before.revision} if before else None
        guard = Put(key_to_item(after), condition)
        audit = audit_put(key_pk(after.id), after.revision, change, self._now())
        self._table.transact([guard, *secret_puts(after, secrets), audit, *more])
        self._audit_log(audit_to_log(audit.item, key=after.id))


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise InvalidRequest(
            f"name: {shown(name)} is no name; send 1 to {NAME_LENGTH} printable characters "
            "without spaces at the ends"
        )


def _permissions(key: AccessKey) -> Item:
    """Return the fields of a key that an audit record keeps."""
    scopes, models = [scope.value for scope in key.scopes], list(key.models)
    fields: dict[str, Any] = {"name": key.name, "scopes": scopes, "models": models}
    if key.monthly_requests is not None:
        fields["monthly_requests"] = key.monthly_requests
    if key.max_tokens is not None:
        fields["max_tokens"] = key.max_tokens
    return {**fields, "valid_until": key.valid_until}


def _valid_secrets(key: AccessKey, now_s: int) -> list[Secret]:
    return [
        secret for secret in key.secrets if secret.valid_until is None or secret.valid_until > now_s
    ]


def _shortened(secrets: Sequence[Secret], until_s: int) -> tuple[Secret, ...]:
    """Return secrets that end at a Unix time, or earlier."""
    ends = [until_s if secret.valid_until is None else secret.valid_until for secret in secrets]
    return tuple(
        replace(secret, valid_until=min(end, until_s))
        for secret, end in zip(secrets, ends, strict=True)
    )


def _unix_s(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp())
