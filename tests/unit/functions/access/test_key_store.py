"""Access keys in the registry: creation, rotation, revocation, listing, audit."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from functions.core.access.access_key import KeyState
from functions.core.access.grant_items import read_grant
from functions.core.access.grants import Grant, Scope
from functions.core.access.key_store import SECRETS_MAX, KeyStore
from functions.core.access.keys import key_digest, parse_key
from functions.core.errors import InvalidRequest, KeyNotFound, StateConflict, Unavailable
from functions.core.registry.table import Conflict, Put
from tests.fakes import MemoryTable

NOW_S = 1_795_335_330  # 2026-11-22T08:15:30Z
ADMIN = {"scopes": [Scope.ADMIN], "models": ["*"], "actor": "anna"}


class Keys:
    """Key store with a clock that a test sets."""

    def __init__(self, table: MemoryTable | None = None) -> None:
        self.table = table or MemoryTable()
        self.now_s = NOW_S
        self.audit: list[Any] = []
        self.store = KeyStore(self.table, self._now, lambda _: None, self.audit.append)

    def _now(self) -> str:
        from datetime import UTC, datetime

        text = datetime.fromtimestamp(self.now_s, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")

    def create(self, **fields: Any) -> tuple[str, str]:
        key, text = self.store.create(fields.pop("name", "ci"), **{**ADMIN, **fields})
        return key.id, text

    def grant(self, text: str) -> Grant | None:
        """Return the permissions of a key if it is valid now, as the gate does."""
        return read_grant(self.table, str(parse_key(text)), key_digest(text), self.now_s)


@pytest.fixture
def keys() -> Keys:
    return Keys()


def test_a_created_key_has_its_permissions(keys: Keys) -> None:
    key, text = keys.store.create(
        "ci", scopes=[Scope.INFER, Scope.READ], models=["digits", "fraud-*"], actor="anna"
    )

    grant = keys.grant(text)
    assert grant == Grant(key.id, frozenset({Scope.INFER, Scope.READ}), ("digits", "fraud-*"))
    assert (key.name, key.created_by, key.created_at) == ("ci", "anna", "2026-11-22T08:15:30.000Z")
    assert keys.store.read(key.id) == key


def test_the_table_holds_no_text_of_a_key(keys: Keys) -> None:
    key_id, text = keys.create()
    _, rotated = keys.store.rotate(key_id, 60, actor="anna")

    stored = json.dumps([*keys.table.items.values(), *keys.table.items.keys()])
    for secret in (text, rotated):
        assert secret.rpartition("_")[2][:43] not in stored
        assert key_digest(secret) in stored


def test_a_wrong_secret_and_an_unknown_id_have_no_permissions(keys: Keys) -> None:
    key_id, text = keys.create()
    _, other = keys.create()

    assert read_grant(keys.table, key_id, key_digest(other), NOW_S) is None
    assert read_grant(keys.table, "0" * 12, key_digest(text), NOW_S) is None


def test_a_key_expires_at_its_time(keys: Keys) -> None:
    key_id, text = keys.create(valid_until=NOW_S + 60)

    keys.now_s += 59
    assert keys.grant(text) is not None
    assert keys.store.read(key_id).state(keys.now_s) is KeyState.ACTIVE
    keys.now_s += 1
    assert keys.grant(text) is None
    assert keys.store.read(key_id).state(keys.now_s) is KeyState.EXPIRED


def test_a_replaced_secret_is_valid_until_the_overlap_ends(keys: Keys) -> None:
    key_id, first = keys.create()
    key, second = keys.store.rotate(key_id, 60, actor="bob")

    assert (parse_key(second), key.rotated_at) == (key_id, "2026-11-22T08:15:30.000Z")
    keys.now_s += 59
    assert keys.grant(first) is not None
    assert keys.grant(second) is not None
    keys.now_s += 1
    assert keys.grant(first) is None
    assert keys.grant(second) is not None


def test_a_rotation_without_overlap_ends_the_secret_at_once(keys: Keys) -> None:
    key_id, first = keys.create()
    _, second = keys.store.rotate(key_id, 0, actor="anna")

    assert keys.grant(first) is None
    assert keys.grant(second) is not None
    assert len(keys.store.read(key_id).secrets) == 1


def test_a_rotation_lengthens_no_earlier_secret(keys: Keys) -> None:
    key_id, first = keys.create()
    keys.store.rotate(key_id, 60, actor="anna")
    keys.store.rotate(key_id, 600, actor="anna")

    keys.now_s += 60
    assert keys.grant(first) is None


def test_a_rotation_prolongs_no_key(keys: Keys) -> None:
    key_id, first = keys.create(valid_until=NOW_S + 60)
    _, second = keys.store.rotate(key_id, 600, actor="anna")

    keys.now_s += 60
    assert keys.grant(first) is None
    assert keys.grant(second) is None
    with pytest.raises(StateConflict, match="expired"):
        keys.store.rotate(key_id, 60, actor="anna")


def test_too_many_valid_secrets_are_refused_until_one_ends(keys: Keys) -> None:
    key_id, first = keys.create()
    for _ in range(SECRETS_MAX - 1):
        keys.store.rotate(key_id, 60, actor="anna")
    with pytest.raises(StateConflict, match="overlap_seconds 0"):
        keys.store.rotate(key_id, 60, actor="anna")

    keys.store.rotate(key_id, 0, actor="anna")
    assert keys.grant(first) is None
    assert len(keys.store.read(key_id).secrets) == 1


def test_a_revoked_key_and_all_its_secrets_end(keys: Keys) -> None:
    key_id, first = keys.create()
    _, second = keys.store.rotate(key_id, 600, actor="anna")
    revoked = keys.store.revoke(key_id, actor="bob")

    assert keys.grant(first) is None
    assert keys.grant(second) is None
    assert revoked.state(keys.now_s) is KeyState.REVOKED
    with pytest.raises(StateConflict, match="revoked"):
        keys.store.rotate(key_id, 60, actor="anna")


def test_a_second_revocation_changes_nothing(keys: Keys) -> None:
    key_id, _ = keys.create()
    first = keys.store.revoke(key_id, actor="bob")
    transactions = keys.table.transactions
    keys.now_s += 5

    assert keys.store.revoke(key_id, actor="anna") == first
    assert keys.table.transactions == transactions


def test_ended_secrets_leave_the_table_by_themselves(keys: Keys) -> None:
    key_id, text = keys.create()
    keys.store.rotate(key_id, 60, actor="anna")

    old = keys.table.items[f"KEY#{key_id}", f"SECRET#{key_digest(text)}"]
    assert old["expires_at"] == NOW_S + 60 + 86_400
    assert "expires_at" not in keys.table.items[f"KEY#{key_id}", "RECORD"]


@pytest.mark.parametrize(
    ("key_id", "text"),
    [("0" * 12, "'000000000000'"), ("nobody", "with this id"), ("x" * 5000, "with this id")],
)
def test_an_unknown_id_is_not_found(keys: Keys, key_id: str, text: str) -> None:
    for change in (
        lambda: keys.store.read(key_id),
        lambda: keys.store.rotate(key_id, 0, actor="anna"),
        lambda: keys.store.revoke(key_id, actor="anna"),
    ):
        with pytest.raises(KeyNotFound, match=text):
            change()
    assert not keys.table.items


def test_keys_are_listed_oldest_first_page_by_page(keys: Keys) -> None:
    ids = []
    for n in range(5):
        ids.append(keys.create(name=f"key {n}")[0])
        keys.now_s += 1

    first, cursor = keys.store.page("", 3)
    rest, end = keys.store.page(cursor, 3)
    assert [key.id for key in first + rest] == ids
    assert end == ""
    assert keys.store.page("9", 3) == ([], "")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": ""}, "name: ''"),
        ({"name": "x" * 101}, "name: 'xxx"),
        ({"name": "a\nb"}, "name: 'a b'"),
        ({"name": " a"}, "name: ' a'"),
        ({"scopes": []}, "scopes: empty"),
        ({"models": []}, "models: 0 patterns"),
        ({"valid_until": NOW_S}, "expires_at: it is past; send a time after 2026-11-22T08:15:30"),
    ],
)
def test_a_wrong_field_creates_nothing(keys: Keys, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(text) if text[-1] != "'" else text[:6]):
        keys.create(**fields)

    assert not keys.table.items


def test_each_change_leaves_one_audit_record_without_secrets(keys: Keys) -> None:
    key_id, text = keys.create(valid_until=NOW_S + 9000)
    _, second = keys.store.rotate(key_id, 60, actor="bob")
    keys.store.revoke(key_id, actor="carla")

    records = list(keys.table.query(f"KEY#{key_id}", "AUDIT#"))
    assert [(r["revision"], r["action"], r["actor"]) for r in records] == [
        (1, "create", "anna"),
        (2, "rotate", "bob"),
        (3, "revoke", "carla"),
    ]
    assert [record["key"] for record in keys.audit] == [key_id] * 3
    written = json.dumps([records, keys.audit])
    assert not [t for t in (text, second) if key_digest(t) in written or t[20:40] in written]


class RacingTable(MemoryTable):
    """Table in which another writer changes an item before the next transaction."""

    race: Any = None

    def transact(self, puts: Sequence[Put]) -> None:
        race, self.race = self.race, None
        if race:
            race()
        super().transact(puts)


def test_a_rotation_that_lost_a_race_is_decided_again() -> None:
    table = RacingTable()
    keys = Keys(table)
    key_id, _ = keys.create()
    table.race = lambda: keys.store.revoke(key_id, actor="bob")

    with pytest.raises(StateConflict, match="revoked"):
        keys.store.rotate(key_id, 60, actor="anna")
    assert len(list(table.query(f"KEY#{key_id}", "SECRET#"))) == 1


def test_endless_races_end_as_unavailable() -> None:
    class Hopeless(MemoryTable):
        def transact(self, puts: Sequence[Put]) -> None:
            raise Conflict

    with pytest.raises(Unavailable, match="too many writers"):
        Keys(Hopeless()).create()
