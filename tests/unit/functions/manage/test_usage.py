"""Usage over HTTP: groups, ranges, costs, and who may see what."""

from typing import Any

import pytest

from functions.core.usage.fold import fold
from functions.core.usage.meter import Meter
from tests.control_plane import NOW_S, ControlPlane, error
from tests.data_plane import Reply
from tests.unit.functions.manage.client import Admin

MS = 1_000_000  # ns
DAY_S = 86_400


class Usage:
    """Control plane whose models were called."""

    def __init__(self) -> None:
        self.plane = ControlPlane()
        self.admin = self.plane.create()["key"]
        for model in ("fraud-a", "fraud-b", "spam"):
            self.plane.table.items[f"MODEL#{model}", "META"] = {
                "pk": f"MODEL#{model}",
                "sk": "META",
            }
        self.call("fraud-a", times=3, key="0123456789ab")
        self.call("fraud-a", 2, alias="next", times=1, status=500)
        self.call("fraud-b", times=2, at_s=NOW_S - DAY_S)
        self.call("spam", times=4, at_s=NOW_S - 8 * DAY_S)

    def call(self, model: str, version: int = 1, *, alias: str = "prod", times: int = 1,
             status: int = 200, key: str = "", at_s: float = NOW_S) -> None:  # fmt: skip
        meter = Meter(self.plane.table, now=lambda: at_s)
        for _ in range(times):
            meter.count(model, version, alias, key, "", status, 100 * MS, inferences=status < 300)
        meter.flush()

    def get(self, path: str, query: dict[str, str] | None = None, key: str = "") -> Reply:
        headers = {"x-api-key": key or self.admin}
        return self.plane.client.get(f"/api/v1{path}", query=query, headers=headers)

    def rows(self, path: str, **query: str) -> dict[Any, int]:
        """Return the requests of each group."""
        reply = self.get(path, {name.strip("_"): text for name, text in query.items()})
        assert reply.status == 200, reply.json
        document = reply.json
        assert document["total"]["requests"] == sum(row["requests"] for row in document["rows"])
        return {row[document["by"]]: row["requests"] for row in document["rows"]}


@pytest.fixture(scope="module")
def usage() -> Usage:
    return Usage()


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("version", {1: 3, 2: 1}),
        ("alias", {"prod": 3, "next": 1}),
        ("key", {"0123456789ab": 3, "": 1}),
        ("hour", {"2026-11-22T08": 4}),
        ("day", {"2026-11-22": 4}),
    ],
)
def test_a_models_usage_is_grouped(usage: Usage, by: str, groups: dict[Any, int]) -> None:
    assert usage.rows("/models/fraud-a/usage", by=by) == groups


def test_a_models_usage_is_that_of_one_version(usage: Usage) -> None:
    assert usage.rows("/models/fraud-a/usage", by="alias", version="2") == {"next": 1}
    assert usage.rows("/models/fraud-a/usage", by="hour", version="9") == {}
    assert usage.get("/models/fraud-a/usage", {"version": "0"}).status == 400


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("model", {"fraud-a": 4, "fraud-b": 2}),
        ("key", {"0123456789ab": 3, "": 3}),
        ("day", {"2026-11-22": 4, "2026-11-21": 2}),
    ],
)
@pytest.mark.parametrize("summed", [False, True])
def test_all_models_usage_is_grouped(summed: bool, by: str, groups: dict[Any, int]) -> None:
    usage = Usage()
    if summed:
        fold(usage.plane.table, NOW_S + DAY_S)

    assert usage.rows("/usage", by=by) == groups
    assert usage.rows("/usage", from_="2026-11-14", to="2026-11-14") == {"spam": 4}


def test_requests_have_latency_and_costs(usage: Usage) -> None:
    document = usage.get("/models/fraud-a/usage").json

    row = document["rows"][0]
    prices = document["prices"]
    assert (row["ms"], row["errors"], row["inferences"]) == (300, 0, 3)
    assert all(row["latency_ms"][name] == pytest.approx(100, rel=0.25) for name in ("p50", "p99"))
    cost = 3 * prices["request_usd"] + 0.3 * prices["second_usd"]
    assert row["cost_usd"] == pytest.approx(cost, abs=1e-9)
    assert row["cost_usd_per_1000"] == pytest.approx(cost / 3 * 1000, abs=1e-6)
    assert prices["second_usd"] == 1.66667e-5  # 1 GB of x86_64
    assert prices["region"] == "us-east-1"  # there are no prices of eu-nowhere-1
    assert prices["idle_month_usd"] > 0
    assert document["delay_seconds"] == 10


def test_a_model_without_requests_has_no_rows(usage: Usage) -> None:
    document = usage.get("/models/spam/usage").json

    assert document["rows"] == []
    assert document["total"]["requests"] == 0
    assert document["total"]["latency_ms"] == {"p50": None, "p90": None, "p99": None}
    assert document["total"]["cost_usd_per_1000"] is None


def test_callers_see_the_usage_of_their_models(usage: Usage) -> None:
    key = usage.plane.create("read", models=["fraud-*"])["key"]
    usage.call("spam")

    rows = usage.get("/usage", key=key).json["rows"]
    assert [row["model"] for row in rows] == ["fraud-a", "fraud-b"]
    assert usage.get("/models/fraud-a/usage", key=key).status == 200
    hidden, missing = (
        error(usage.get(f"/models/{model}/usage", key=key)) for model in ("spam", "nobody")
    )
    assert hidden[:2] == missing[:2] == (404, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("path", ["/usage", "/models/fraud-a/usage"])
def test_usage_by_key_needs_admin(usage: Usage, path: str) -> None:
    key = usage.plane.create("read", "deploy", "infer")["key"]

    status, code, text = error(usage.get(path, {"by": "key"}, key))
    assert (status, code) == (403, "SCOPE_MISSING")
    assert "admin" in text


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/usage", {"by": "version"}, "by"),
        ("/models/fraud-a/usage", {"by": "model"}, "by"),
        ("/usage", {"from": "yesterday"}, "from"),
        ("/usage", {"from": "2026-11-23"}, "from"),
        ("/usage", {"from": "2026-11-20", "to": "2026-11-19"}, "from"),
        ("/models/fraud-a/usage", {"from": "2026-10-01"}, "from"),
        ("/usage", {"from": "2024-11-22"}, "from"),
        ("/usage", {"until": "2026-11-22"}, "until"),
    ],
)
def test_wrong_parameters_are_refused(
    usage: Usage, path: str, query: dict[str, str], field: str
) -> None:
    status, code, text = error(usage.get(path, query))

    assert (status, code) == (400, "INVALID_REQUEST")
    assert text.startswith(field)


def test_usage_costs_the_same_calls_for_every_number_of_models() -> None:
    usage = Usage()
    usage.get("/usage")  # reads the key
    reads = []
    for n in range(60):
        usage.call(f"m{n}")
        before = usage.plane.table.reads
        usage.get("/usage")
        usage.get("/models/fraud-a/usage")
        reads.append(usage.plane.table.reads - before)

    assert set(reads) == {reads[0]}


@pytest.mark.parametrize("day", ["9999-12-31", "2026-11-24", "0001-01-03", "2019-12-31"])
@pytest.mark.parametrize("path", ["/usage", "/models/m/usage"])
@pytest.mark.parametrize("end", ["to", "from_"])
def test_a_day_without_service_is_refused_before_anything_is_read(
    admin: Admin, path: str, day: str, end: str
) -> None:
    admin.plane.register("m")

    status, text = admin.refusal("GET", path, **{end: day})

    assert status == 400
    assert "is not between 2020-01-01 and today" in text
