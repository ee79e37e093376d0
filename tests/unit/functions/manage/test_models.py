"""Models over HTTP: pages, search, description, policy, archive."""

from typing import Any

import pytest

from functions.core.errors import NotServable
from tests.control_plane import ControlPlane, error
from tests.unit.functions.manage.client import Admin


def names(rows: list[Any]) -> list[str]:
    return [row["name"] for row in rows]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_models_are_listed_by_name_page_by_page(admin: Admin, limit: int) -> None:
    for name in ("b", "a-2", "a", "C"):
        admin.plane.register(name)

    assert names(admin.pages("/models", "models", limit=limit)) == ["C", "a", "a-2", "b"]


def test_a_row_has_aliases_and_the_newest_version(admin: Admin) -> None:
    for _ in range(2):
        admin.plane.register("m")

    [row] = admin.get("/models")["models"]
    assert row["aliases"] == {"latest": 2, "prod": 1}
    assert (row["newest"]["version"], row["newest"]["state"]) == (2, "READY")
    assert (row["versions"], row["state"]) == (2, "active")
    assert row == {k: v for k, v in admin.get("/models/m").items() if k != "serving"}


@pytest.mark.parametrize("models", [10, 300])
def test_a_page_costs_the_same_reads_however_many_models_there_are(models: int) -> None:
    admin = Admin(ControlPlane())
    for n in range(models):
        admin.plane.register(f"m-{n:04}")
    admin.get("/models", limit=5)
    reads = admin.plane.table.reads

    admin.get("/models", limit=5)
    assert admin.plane.table.reads - reads == 2


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"search": "FRAUD"}, ["eu-fraud", "fraud-1", "fraud-2"]),
        ({"search": "nothing"}, []),
        ({"prefix": "fraud"}, ["fraud-1", "fraud-2"]),
        ({"prefix": "fraud", "search": "2"}, ["fraud-2"]),
        ({"prefix": "y"}, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 50])
def test_models_are_searched(
    admin: Admin, query: dict[str, str], expected: list[str], limit: int
) -> None:
    for name in ("digits", "eu-fraud", "fraud-1", "fraud-2", "zz"):
        admin.plane.register(name)

    assert names(admin.pages("/models", "models", limit=limit, **query)) == expected


def test_an_archived_model_leaves_lists_and_service_until_restored(admin: Admin) -> None:
    for name in ("a", "b"):
        admin.plane.register(name)

    assert admin.change("POST", "/models/a/archive")["state"] == "archived"
    assert names(admin.get("/models")["models"]) == ["b"]
    assert names(admin.get("/models", state="archived")["models"]) == ["a"]
    with pytest.raises(NotServable, match="'a' is archived: restore it"):
        admin.plane.registry.resolve("a", None)
    assert admin.plane.registry.unloaded_models(["a", "b"]) == {"a"}
    revision = admin.get("/models/a")["revision"]
    assert admin.change("POST", "/models/a/archive")["revision"] == revision

    assert admin.change("POST", "/models/a/restore")["state"] == "active"
    assert names(admin.get("/models")["models"]) == ["a", "b"]
    assert admin.plane.registry.resolve("a", None).version.number == 1


def test_description_and_policy_are_changed_with_the_revision_seen(admin: Admin) -> None:
    admin.plane.register("m")
    seen = admin.get("/models/m")["revision"]
    policy = {"kind": "if_better", "metric": "f1", "higher_is_better": True, "min_gain": 0.01}

    changed = admin.change(
        "PATCH", "/models/m", {"description": "d", "policy": policy, "expected_revision": seen}
    )
    assert changed["description"] == "d"
    assert {**changed["policy"], "canary": None} == {**policy, "canary": None}
    reply = admin.send("PATCH", "/models/m", {"description": "e", "expected_revision": seen})
    assert error(reply)[:2] == (409, "STATE_CONFLICT")
    assert reply.json["revision"] == changed["revision"] == seen + 1
    again = admin.change("PATCH", "/models/m", {"description": "d"})
    assert again["revision"] == changed["revision"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "body: nothing to change"),
        ({"name": "x"}, "name: Extra inputs"),
        ({"policy": {"kind": "never"}}, "policy.kind: "),
        ({"policy": {"kind": "manual", "metric": "f1"}}, "policy.metric"),
        ({"policy": {"kind": "if_better", "metric": "f1"}}, "policy.higher_is_better: send"),
        ({"policy": {"kind": "if_better", "higher_is_better": True}}, "policy.metric: "),
        ({"policy": {"kind": "if_better", "min_gain": -1}}, "policy.min_gain: "),
        ({"description": "x" * 2001}, "description: "),
        ({"expected_revision": 1}, "body: nothing to change"),
    ],
)
def test_a_wrong_change_is_answered_400(admin: Admin, body: Any, text: str) -> None:
    admin.plane.register("m")
    status, message = admin.refusal("PATCH", "/models/m", body)

    assert status == 400
    assert message.startswith(text)


def test_a_policy_of_an_earlier_release_is_shown(admin: Admin) -> None:
    admin.plane.register("m")
    meta = admin.plane.table.items["MODEL#m", "META"]
    policy = {"kind": "if_better", "metric": "f1"}
    admin.plane.table.items["MODEL#m", "META"] = {**meta, "policy": policy}

    shown = admin.get("/models/m")["policy"]
    assert (shown["metric"], shown["higher_is_better"]) == ("f1", None)


def test_a_model_of_an_earlier_release_is_listed_after_the_reconciler_saw_it(
    admin: Admin,
) -> None:
    admin.plane.register("m")
    later = ("kind", "listed", "aliases", "newest", "created_at", "changed_at")
    key = ("MODEL#m", "META")
    meta = admin.plane.table.items[key]
    admin.plane.table.items[key] = {k: v for k, v in meta.items() if k not in later}
    assert admin.get("/models")["models"] == []
    assert admin.get("/models/m")["aliases"] is None

    assert admin.plane.registry.unlisted_models("", 50) == (["m"], "")
    admin.plane.registry.list_model("m")
    [row] = admin.get("/models")["models"]
    assert (row["aliases"], row["newest"]["version"]) == ({"latest": 1, "prod": 1}, 1)
    assert row["revision"] == meta["revision"]
    assert admin.plane.registry.unlisted_models("", 50) == ([], "")


def test_a_write_lists_a_model_of_an_earlier_release(admin: Admin) -> None:
    admin.plane.register("m")
    meta = admin.plane.table.items["MODEL#m", "META"]
    older = {k: v for k, v in meta.items() if k not in ("kind", "listed", "aliases", "newest")}
    admin.plane.table.items["MODEL#m", "META"] = older
    admin.plane.register("m")

    [row] = admin.get("/models")["models"]
    assert (row["newest"]["version"], row["aliases"]) == (2, None)


def test_numbers_that_the_table_cannot_store_are_refused(admin: Admin) -> None:
    admin.plane.register("m")
    policy = {"kind": "if_better", "min_gain": 1e200}

    status, text = admin.refusal("PATCH", "/models/m", {"policy": policy})

    assert (status, "min_gain" in text) == (400, True)
