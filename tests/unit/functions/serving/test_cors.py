"""CORS: which origins see replies, preflight requests, replies with errors."""

from pathlib import Path
from typing import Any

import pytest

from functions.core.access.cors import parse_origins
from functions.core.access.grants import Scope
from tests.data_plane import Client, DataPlane, rows

PAGE = "https://app.example.org"
PREFLIGHT = {"origin": PAGE, "access-control-request-method": "POST"}


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    plane = DataPlane(tmp_path)
    plane.register("demo")
    return plane


def client(plane: DataPlane, origins: str) -> Client:
    cors = parse_origins(origins) if origins else None
    return Client(plane.handler(gate=plane.gate, cors=cors))


def test_a_page_of_an_allowed_origin_sees_replies_and_errors(plane: DataPlane) -> None:
    calls = client(plane, f"http://localhost:8000, {PAGE}/")
    key = plane.create_key(Scope.INFER)

    for sent, status in (({"x-api-key": key}, 200), ({}, 401)):
        reply = calls.get("/v2", headers={"origin": PAGE, **sent})
        assert reply.status == status
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert reply.headers["vary"] == "origin"
        assert "x-request-id" in reply.headers["access-control-expose-headers"]


def test_a_preflight_needs_no_key(plane: DataPlane) -> None:
    reads = plane.table.reads
    reply = client(plane, PAGE).send("OPTIONS", "/v2/models/demo/infer", headers=PREFLIGHT)

    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert {"authorization", "x-api-key"} <= set(
        reply.headers["access-control-allow-headers"].split(", ")
    )
    assert plane.table.reads == reads
    assert plane.lines[0]["action"] == "preflight"


@pytest.mark.parametrize("origins", ["", "https://other.example.org"])
def test_other_origins_get_no_headers_and_no_preflight(plane: DataPlane, origins: str) -> None:
    calls = client(plane, origins)
    key = plane.create_key(Scope.INFER)

    refused = calls.send("OPTIONS", "/v2/models/demo/infer", headers=PREFLIGHT)
    answered = calls.get("/v2", headers={"origin": PAGE, "x-api-key": key})
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert answered.status == 200
    for reply in (refused, answered):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_star_allows_every_origin(plane: DataPlane) -> None:
    reply = client(plane, "*").send("OPTIONS", "/v2", headers=PREFLIGHT)

    assert reply.headers["access-control-allow-origin"] == "*"
    assert "vary" not in reply.headers


def test_a_compressed_reply_varies_by_encoding_and_origin(plane: DataPlane) -> None:
    headers = {
        "origin": PAGE,
        "accept-encoding": "gzip",
        "x-api-key": plane.create_key(Scope.INFER),
    }
    body: Any = rows(*[[1.0, 2.0, 3.0]] * 500)
    reply = client(plane, PAGE).post("/v2/models/demo/infer", body, headers=headers)

    assert reply.headers["content-encoding"] == "gzip"
    assert reply.headers["vary"] == "accept-encoding, origin"


def test_a_request_of_no_page_is_answered_as_ever(plane: DataPlane) -> None:
    headers = {"x-api-key": plane.create_key(Scope.INFER)}
    reply = client(plane, PAGE).get("/v2", headers=headers)

    assert not [name for name in reply.headers if name.startswith("access-control")]
