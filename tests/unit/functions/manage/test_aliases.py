"""Aliases, their traffic and the audit records over HTTP."""

from typing import Any

import pytest

from functions.core.canary.judge import Arm
from tests.control_plane import error
from tests.unit.functions.manage.client import Admin

PROD = "/models/m/aliases/prod"


@pytest.fixture
def three(admin: Admin) -> Admin:
    """Administrator of a model with three versions."""
    for _ in range(3):
        admin.plane.register("m")
    return admin


def test_an_alias_moves_and_rolls_back(three: Admin) -> None:
    moved = three.change("PUT", PROD, {"version": 2, "expected_revision": 1})
    assert (moved["version"], moved["previous"], moved["revision"]) == (2, 1, 2)
    assert three.get(PROD) == moved
    assert three.get("/models/m")["aliases"]["prod"] == 2

    back = three.change("POST", f"{PROD}/rollback", {"expected_revision": 2})
    assert (back["version"], back["revision"]) == (1, 3)
    history = three.get(f"{PROD}/history")["history"]
    assert [(h["action"], h["from_version"], h["to_version"]) for h in history] == [
        ("rollback", 2, 1), ("move_alias", 1, 2), ("finish", None, 1),
    ]  # fmt: skip
    assert {h["actor"] for h in history[:2]} == {f"key:{three.key_id}"}


def test_a_lost_race_is_answered_with_the_current_revision(three: Admin) -> None:
    three.change("PUT", PROD, {"version": 2})
    bodies: list[tuple[str, str, Any]] = [
        ("PUT", PROD, {"version": 3, "expected_revision": 1}),
        ("POST", f"{PROD}/rollback", {"expected_revision": 1}),
        ("PUT", "/models/m/aliases/new", {"version": 3, "expected_revision": 4}),
        (
            "PUT",
            f"{PROD}/traffic",
            {"weights": [{"version": 2, "weight": 100}], "expected_revision": 1},
        ),
    ]
    for method, path, body in bodies:
        reply = three.send(method, path, body)
        assert error(reply)[:2] == (409, "STATE_CONFLICT")
        assert reply.json["revision"] == (0 if path.endswith("new") else 2)
    reply = three.send("DELETE", f"{PROD}/traffic", expected_revision=1)
    assert (reply.status, reply.json["revision"]) == (409, 2)


def test_a_deleted_alias_leaves_its_history_and_its_revision(three: Admin) -> None:
    path = "/models/m/aliases/stage"
    three.change("PUT", path, {"version": 1, "expected_revision": 0})
    assert three.send("DELETE", path, expected_revision=7).json["revision"] == 1
    assert three.change("DELETE", path, expected_revision=1)["deleted"] is True

    assert three.refusal("GET", path)[0] == 404
    assert set(three.get("/models/m")["aliases"]) == {"latest", "prod"}
    again = three.change("PUT", path, {"version": 2, "expected_revision": 0})
    assert again["revision"] == 2
    actions = [h["action"] for h in three.get(f"{path}/history")["history"]]
    assert actions == ["move_alias", "delete_alias", "move_alias"]


def test_prod_and_latest_cannot_be_deleted_nor_latest_moved(three: Admin) -> None:
    for name in ("prod", "latest"):
        assert three.refusal("DELETE", f"/models/m/aliases/{name}")[0] == 409
    assert three.refusal("PUT", "/models/m/aliases/latest", {"version": 1})[0] == 400


def test_a_model_has_a_hundred_aliases_at_most(three: Admin) -> None:
    for n in range(98):
        three.change("PUT", f"/models/m/aliases/a{n}", {"version": 1})

    status, text = three.refusal("PUT", "/models/m/aliases/more", {"version": 1})
    assert (status, "delete one first" in text) == (409, True)
    assert len(three.get("/models/m/aliases")["aliases"]) == 100


def test_traffic_is_replaced_as_a_whole_and_ended(three: Admin) -> None:
    path = f"{PROD}/traffic"
    plain = three.get(path)
    assert (plain["weights"], plain["id"]) == ([{"version": 1, "weight": 100.0}], None)
    split = {
        "weights": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}],
        "shadow": {"version": 3, "percent": 5},
    }

    traffic = three.change("PUT", path, split)
    assert traffic["weights"] == split["weights"]
    assert (traffic["shadow"], traffic["sticky"]) == (split["shadow"], "auto")
    assert traffic["revision"] == 2
    assert three.get(path) == traffic | {"agreement": {"compared": 0, "differing": 0}}
    assert three.get(PROD)["traffic"]["id"] == traffic["id"]
    without_shadow = three.change("PUT", path, {"weights": split["weights"]})
    assert without_shadow["shadow"] is None
    ended = three.change("DELETE", path)
    assert (ended["weights"], ended["id"]) == ([{"version": 1, "weight": 100.0}], None)
    history = three.get(f"{PROD}/history")["history"]
    assert [h["to_traffic"] is None for h in history] == [True, False, False, True]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "weights: Field required"),
        ({"weights": []}, "weights: "),
        ({"weights": [{"version": 1, "weight": 90}]}, "weights: their sum is 90"),
        ({"weights": [{"version": 2, "weight": 100}]}, "weights: version 1"),
        ({"weights": [{"version": 1, "weight": 101}]}, "weights[0].weight: "),
        ({"weights": [{"version": 1, "weight": 100}], "sticky": "no"}, "sticky: "),
        ({"weights": [{"version": 1, "weight": 100}], "shadow": {"version": 1, "percent": 5}},
         "shadow.version: "),
    ],
)  # fmt: skip
def test_wrong_traffic_names_the_field(three: Admin, body: Any, text: str) -> None:
    status, message = three.refusal("PUT", f"{PROD}/traffic", body)

    assert status == 400
    assert message.startswith(text)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_audit_records_are_listed_newest_first(three: Admin, limit: int) -> None:
    three.change("PUT", PROD, {"version": 2})
    three.plane.clock.now += 1
    three.plane.registry.serve("m", False, actor="key:x")
    three.plane.clock.now += 1
    three.change("PUT", PROD, {"version": 3})
    three.plane.register("n")

    of_model = three.pages("/models/m/audit", "records", limit=limit)
    actions = [record["action"] for record in of_model]
    assert actions[:3] == ["move_alias", "unload", "move_alias"]
    assert actions[3:] == ["finish", "claim"] * 3
    everything = three.pages("/audit", "records", limit=limit)
    assert [r for r in everything if r["model"] == "m"] == of_model
    assert [r["key"] for r in everything if r["model"] is None] == [three.key_id]
    assert three.pages("/audit", "records", limit=limit, model="m") == of_model


def test_audit_records_are_filtered(three: Admin) -> None:
    three.change("PUT", PROD, {"version": 2})
    actor = f"key:{three.key_id}"

    for path in ("/audit", "/models/m/audit"):
        assert [r["action"] for r in three.get(path, actor=actor)["records"]] == ["move_alias"]
        assert three.get(path, action="move_alias", actor="key:none")["records"] == []
        assert len(three.get(path, action="claim")["records"]) == 3
    status, text = three.refusal("GET", "/models/m/audit", cursor="eA==")
    assert (status, text.partition(":")[0]) == (400, "cursor")
    assert three.refusal("GET", "/models/none/audit")[0] == 404


def test_the_agreement_of_a_shadow_is_shown_with_the_traffic(three: Admin) -> None:
    path = "/models/m/aliases/prod/traffic"
    shadow = {"version": 3, "percent": 5}
    three.change("PUT", path, {"weights": [{"version": 1, "weight": 100}], "shadow": shadow})
    three.plane.arms = Arm(), Arm(compared=200, disagreed=3)

    assert three.get(path)["agreement"] == {"compared": 200, "differing": 3}


def test_traffic_without_shadow_has_no_agreement(three: Admin) -> None:
    assert three.get("/models/m/aliases/prod/traffic")["agreement"] is None


def test_an_archived_model_releases_nothing_and_ends_its_split(three: Admin) -> None:
    path = f"{PROD}/traffic"
    split = {"weights": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]}
    three.change("PUT", path, split)
    three.change("POST", "/models/m/archive")

    for target, body in ((PROD, {"version": 2}), (path, split)):
        status, text = three.refusal("PUT", target, body)
        assert (status, "is archived: restore it first" in text) == (409, True)
    assert len(three.change("DELETE", path)["weights"]) == 1
