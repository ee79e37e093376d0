"""Pages under /docs: Swagger UI, served by the function itself."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from functions.core.access.auth import Auth
from tests.control_plane import ControlPlane, error
from tests.data_plane import Reply

FILES = ["swagger-ui.js", "swagger-ui.css", "start.js", "v1.json", "v2.json"]


@pytest.fixture(scope="module")
def plane() -> ControlPlane:
    return ControlPlane()


def get(plane: ControlPlane, path: str, **headers: str) -> Reply:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return plane.client.get(path, headers=sent)


@pytest.mark.parametrize(
    ("path", "base"),
    [("/docs", "docs/"), ("/docs/", ""), ("/base/docs", "docs/"), ("/base/docs/", "")],
)
def test_the_page_needs_no_key_and_names_its_own_files_alone(
    plane: ControlPlane, path: str, base: str
) -> None:
    reply = get(plane, path)

    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    sources = re.findall(r'(?:src|href)="([^"?][^"]*)"', reply.body.decode())
    assert sources == ["data:,", f"{base}swagger-ui.css", f"{base}swagger-ui.js", f"{base}start.js"]


@pytest.mark.parametrize("name", ["", *FILES])
def test_nothing_may_come_from_elsewhere(plane: ControlPlane, name: str) -> None:
    policy = get(plane, f"/docs/{name}").headers["content-security-policy"]

    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    allowed = {source for rule in rules.values() for source in rule.split()}
    assert allowed == {"'none'", "'self'", "data:"}
    assert not {"'unsafe-inline'", "'unsafe-eval'"} & allowed


@pytest.mark.parametrize("name", FILES)
def test_files_are_packed_and_sent_once(plane: ControlPlane, name: str) -> None:
    plain, packed = get(plane, f"/docs/{name}"), get(plane, f"/docs/{name}", accept_encoding="gzip")

    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers["cache-control"] == "public, max-age=3600"
    tag = packed.headers["etag"]
    again = get(plane, f"/docs/{name}", accept_encoding="gzip", if_none_match=tag)
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)


def test_the_largest_file_fits_a_reply_of_lambda(plane: ControlPlane) -> None:
    for encoding in ("gzip", "identity"):
        event = {"httpMethod": "GET", "path": "/docs/swagger-ui.js",
                 "headers": {"accept-encoding": encoding}}  # fmt: skip
        reply = plane.client.deliver(event)
        assert reply.status == 200
        assert len(reply.body) < 2_000_000


def test_the_script_reads_all_documents(plane: ControlPlane) -> None:
    script = get(plane, "/docs/start.js").body.decode()

    for path in re.findall(r'"((?:\.\./)?[a-z0-9/]+\.json)"', script):
        target = path.removeprefix("../") if path.startswith("..") else f"docs/{path}"
        assert "openapi" in get(plane, f"/{target}").json
    assert script.count(".json") == 3


def test_other_paths_and_methods_are_refused(plane: ControlPlane) -> None:
    assert error(get(plane, "/docs/nothing"))[:2] == (404, "PATH_NOT_FOUND")
    assert error(get(plane, "/docs/../../etc/passwd"))[0] == 404
    refused = plane.client.post("/docs/v2.json")
    assert (error(refused)[0], refused.headers["allow"]) == (405, "GET, HEAD")
    head = plane.client.send("HEAD", "/docs/v2.json")
    assert (head.status, head.body) == (200, b"")


def test_a_route_below_the_root_may_have_docs_in_its_path(plane: ControlPlane) -> None:
    assert error(get(plane, "/api/v1/uploads/docs"))[0] == 401
    assert error(get(plane, "/api/v1/docs"))[:2] == (404, "PATH_NOT_FOUND")


@pytest.mark.parametrize("auth", list(Auth))
def test_documents_are_open_whatever_callers_need(auth: Auth) -> None:
    plane = ControlPlane(auth)

    for name in ("apigw_docs", "apigw_docs_v1", "apigw_docs_v2", "apigw_openapi"):
        event: dict[str, Any] = json.loads(Path(f"events/{name}.json").read_text())
        assert plane.client.deliver(event).status == 200


def test_pages_of_other_origins_may_read_the_documents(plane: ControlPlane) -> None:
    reply = get(plane, "/docs/v2.json", origin="https://app.example.org")

    assert reply.headers["access-control-allow-origin"] == "https://app.example.org"
    assert reply.headers["vary"] == "accept-encoding, origin"
