"""Versions over HTTP: pages, cards, differences, decisions of people."""

import base64
from typing import Any

import pytest

from functions.core.errors import NotServable, StateConflict
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry.version import Blob
from tests.unit.functions.manage.client import Admin

CARD = {
    "task": "classification",
    "metrics": {"f1": 0.9, "loss": float("nan")},
    "baselines": {"majority": {"f1": 0.4}},
    "evaluation": {"intervals": {"f1": [0.88, 0.92]}},
    "hyperparameters": {"epochs": 3},
    "training": {"job": "job-1"},
}


def numbers(rows: list[Any]) -> list[int]:
    return [row["version"] for row in rows]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_versions_are_listed_newest_first(admin: Admin, limit: int) -> None:
    for _ in range(5):
        admin.plane.register("m")
    admin.plane.register("m-2")  # its neighbour in the index

    assert numbers(admin.pages("/models/m/versions", "versions", limit=limit)) == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_versions_are_listed_by_state(admin: Admin, limit: int) -> None:
    for _ in range(5):
        admin.plane.register("m")
    for number in (2, 4):
        admin.change("POST", f"/models/m/versions/{number}/archive")

    def listed(state: str) -> list[int]:
        return numbers(admin.pages("/models/m/versions", "versions", limit=limit, state=state))

    assert listed("READY") == [5, 3, 1]
    assert listed("ARCHIVED") == [4, 2]
    assert listed("REJECTED") == []


def test_the_card_of_a_version_is_whole_and_valid_json(admin: Admin) -> None:
    admin.plane.register("m", card=CARD, measured={"latency_ms_batch_1": 1.5}, notes=("why",))

    card = admin.get("/models/m/versions/1")
    assert card["metrics"] == {"f1": 0.9, "loss": "NaN"}
    assert card["baselines"] == CARD["baselines"]
    assert card["training"] == {"job": "job-1"}
    assert card["measured"] == {"latency_ms_batch_1": 1.5}
    assert card["notes"] == ["why"]
    assert card["aliases"] == ["latest", "prod"]
    assert card["signature"]["inputs"][0]["name"] == "x"
    assert card["files"][0]["size_bytes"] == card["size_bytes"] == 10


@pytest.mark.parametrize(
    ("rises", "baseline"), [(True, 0.5), (False, 0.4)], ids=["higher is better", "lower"]
)
def test_a_row_has_the_primary_metric_beside_the_best_baseline(
    admin: Admin, rises: bool, baseline: float
) -> None:
    card = {
        "metrics": {"loss": 0.1, "f1": 0.9},
        "baselines": {"a": {"f1": 0.4}, "b": {"f1": 0.5}, "c": {"loss": 1.0, "f1": float("nan")}},
        "evaluation": {
            "primary": {"metric": "f1", "higher_is_better": rises},
            "intervals": {"f1": [0.88, 0.92]},
        },
    }
    admin.plane.register("m", card=card, measured={"latency_ms_batch_1": 1.5})
    [row] = admin.pages("/models/m/versions", "versions")

    assert row["latency_ms"] == 1.5
    assert row["primary"] == {
        "metric": "f1",
        "value": 0.9,
        "higher_is_better": rises,
        "low": 0.88,
        "high": 0.92,
        "baseline": baseline,
    }


@pytest.mark.parametrize("card", [{}, CARD, {"evaluation": {"primary": {"metric": "auc"}}}])
def test_a_row_without_primary_metric_has_none(admin: Admin, card: dict[str, Any]) -> None:
    admin.plane.register("m", card=card)

    [row] = admin.pages("/models/m/versions", "versions")
    assert row["primary"] is None


def test_inputs_have_the_columns_of_the_package(admin: Admin) -> None:
    inputs = [{"name": "x", "columns": ["age", "fee", "calls"], "preprocessing": "in years"}]
    admin.plane.register("m", card={"inputs": inputs})

    [spec] = admin.get("/models/m/versions/1")["signature"]["inputs"]
    assert spec["columns"] == ["age", "fee", "calls"]
    assert (spec["preprocessing"], spec["shape"]) == ("in years", [-1, 3])


def test_a_diff_holds_differences_alone(admin: Admin) -> None:
    narrow = Signature(
        (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2), ("no", "yes")),)
    )
    admin.plane.register("m", card=CARD)
    better = {**CARD, "metrics": {"f1": 0.95}, "hyperparameters": {"epochs": 5}}
    admin.plane.register("m", card=better, signature=narrow)

    differences = admin.get("/models/m/diff", from_=1, to=2)["differences"]
    assert set(differences) == {"signature", "metrics", "hyperparameters"}
    assert differences["signature"]["breaks_callers"] is True
    assert differences["signature"]["breaks"] == ["input x has shape [-1, 4] instead of [-1, 3]"]
    f1 = differences["metrics"]["f1"]
    assert (f1["from"], f1["to"], f1["from_interval"]) == (0.9, 0.95, [0.88, 0.92])
    assert f1["change"] == pytest.approx(0.05)
    assert differences["metrics"]["loss"] == {
        "from": "NaN", "to": None, "from_interval": None, "to_interval": None, "change": None,
    }  # fmt: skip
    assert admin.get("/models/m/diff", from_=1, to=1)["differences"].keys() <= {"metrics"}


def test_a_rejected_version_has_no_alias_and_is_not_served(admin: Admin) -> None:
    for _ in range(3):
        admin.plane.register("m")

    rejected = admin.change("POST", "/models/m/versions/3/reject", {"note": "wrong labels"})
    assert (rejected["state"], rejected["approval"]["decision"]) == ("REJECTED", "reject")
    assert rejected["reason"] == {"code": "REJECTED_BY_PERSON", "message": "wrong labels"}
    assert admin.get("/models/m")["aliases"] == {"latest": 2, "prod": 1}
    with pytest.raises(NotServable, match="wrong labels"):
        admin.plane.registry.resolve("m", 3)
    for path in ("prod", "stage"):
        status, text = admin.refusal("PUT", f"/models/m/aliases/{path}", {"version": 3})
        assert (status, text) == (409, "version 3 of 'm' is REJECTED, not READY: wrong labels")
    split = {"weights": [{"version": 1, "weight": 50}, {"version": 3, "weight": 50}]}
    assert admin.refusal("PUT", "/models/m/aliases/prod/traffic", split)[0] == 409
    with pytest.raises(StateConflict):
        admin.plane.releases.move_alias("m", "prod", 3, actor="policy")


def test_a_rejection_is_taken_back_by_an_approval(admin: Admin) -> None:
    for _ in range(2):
        admin.plane.register("m")
    admin.change("POST", "/models/m/versions/2/reject")

    approved = admin.change("POST", "/models/m/versions/2/approve", {"note": "checked"})
    assert (approved["state"], approved["reason"]) == ("READY", None)
    assert approved["approval"]["note"] == "checked"
    assert admin.get("/models/m")["aliases"] == {"latest": 2, "prod": 1}


def test_a_version_in_use_cannot_be_rejected_or_archived(admin: Admin) -> None:
    for _ in range(3):
        admin.plane.register("m")
    split = {"weights": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]}
    admin.change("PUT", "/models/m/aliases/prod/traffic", split)

    for verb in ("reject", "archive"):
        assert "has the aliases prod" in admin.refusal("POST", f"/models/m/versions/1/{verb}")[1]
        assert "in the traffic of prod" in admin.refusal("POST", f"/models/m/versions/2/{verb}")[1]
    assert "reject this one first" in admin.refusal("POST", "/models/m/versions/3/archive")[1]


def test_registrations_rejections_are_final(admin: Admin) -> None:
    admin.plane.register("m")
    admin.plane.refuse("m")

    status, text = admin.refusal("POST", "/models/m/versions/2/approve")
    assert status == 409
    assert text.startswith("version 2 of 'm' is REJECTED: ")


def test_notes_are_replaced_and_audited(admin: Admin) -> None:
    admin.plane.register("m")
    assert admin.change("PATCH", "/models/m/versions/1", {"note": "first"})["note"] == "first"
    admin.change("PATCH", "/models/m/versions/1", {"note": "first"})

    records = admin.get("/models/m/audit", action="note")["records"]
    assert [(r["before"], r["after"]) for r in records] == [({"note": ""}, {"note": "first"})]


@pytest.mark.parametrize(
    ("method", "path", "query", "status", "text"),
    [
        ("GET", "/models/m/versions/x", {}, 400, "number: "),
        ("GET", "/models/m/versions/0", {}, 400, "number: "),
        ("GET", "/models/m/versions/9", {}, 404, "Request for unknown model: 'm' version 9"),
        ("GET", "/models/m/versions", {"state": "ready"}, 400, "state: "),
        ("GET", "/models/m/versions", {"cursor": "eA=="}, 400, "cursor: "),
        ("GET", "/models/m/diff", {"from": "1"}, 400, "to: "),
        ("GET", "/models/m/diff", {"from": "1", "to": "7"}, 404, "Request for unknown model"),
        ("GET", "/models/n/versions", {}, 404, "Request for unknown model: 'n'"),
    ],
)
def test_wrong_requests_name_the_field(
    admin: Admin, method: str, path: str, query: dict[str, str], status: int, text: str
) -> None:
    admin.plane.register("m")
    refusal = admin.refusal(method, path, **query)

    assert refusal[0] == status
    assert refusal[1].startswith(text)


def test_a_versions_sample_is_read_from_its_blob(admin: Admin) -> None:
    blob = Blob("sample.json", "5a" * 32, 12)
    admin.plane.register("m", sample=blob)
    admin.plane.samples.stored[blob.sha256] = {"request": {}, "response": {}, "synthetic": True}

    sample = admin.get("/models/m/versions/1/sample")

    assert sample == {"model": "m", "version": 1, "request": {}, "response": {}, "synthetic": True}


def test_a_version_without_sample_says_why(admin: Admin) -> None:
    admin.plane.register("m", sample=None)

    status, text = admin.refusal("GET", "/models/m/versions/1/sample")

    assert status == 404
    assert "has no sample: the package has none" in text


def test_an_archived_version_stays_archived_whatever_a_person_decided_before(admin: Admin) -> None:
    for _ in range(2):
        admin.plane.register("m")
    admin.change("POST", "/models/m/versions/2/reject")
    admin.change("POST", "/models/m/versions/2/archive")

    for verb in ("approve", "reject"):
        status, text = admin.refusal("POST", f"/models/m/versions/2/{verb}")
        assert (status, "is ARCHIVED" in text) == (409, True)
    assert admin.get("/models/m/versions/2")["state"] == "ARCHIVED"


def test_a_long_cursor_is_no_page(admin: Admin) -> None:
    admin.plane.register("m")
    cursor = base64.urlsafe_b64encode(b"x" * 1400).decode()

    for path in ("/models", "/keys", "/uploads", "/audit"):
        status, text = admin.refusal("GET", path, cursor=cursor)
        assert (status, "cursor: no such page" in text) == (400, True)
    assert admin.refusal("GET", f"/uploads/{'f' * 3000}")[0] == 404
