"""Console: one page and one script, small, under a strict policy."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

from functions.core.errors import MethodNotAllowed, PathNotFound
from functions.core.serving.http import HttpRequest, HttpResponse
from functions.manage.console.site import WEB, Console, script
from tests.control_plane import ControlPlane
from tests.data_plane import Context

BUCKET = "https://uploads.s3.eu-west-1.amazonaws.com"
SIZE_MAX = 50_000  # bytes of page and script, compressed
# SHA-256 of the files as npm distributes them: preact 11.2.0, htm 3.1.1
VENDORED = {
    "preact.mjs": "bdcbd9abdf2c77c5c45326eab42191e949222d479d0d5f69467387a77040cb55",
    "hooks.mjs": "e862ab2973aa6455eaa0f77c5d832d2157d6be59a17c8ba546550a575b58c6b4",
    "htm.mjs": "ab33dd3f38059b9be4d5f5350128eefb2356639c4e0bbe9d9e8b3ba75847e9e4",
}


def answer(path: str, method: str = "GET", **headers: str) -> HttpResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Console(lambda: BUCKET).answer(HttpRequest(method, path, names, {}, b""))


def test_page_and_script_are_small() -> None:
    replies = [answer(f"/console/{name}", accept_encoding="gzip") for name in ("", "console.js")]

    assert all(reply.headers["content-encoding"] == "gzip" for reply in replies)
    assert sum(len(reply.body) for reply in replies) < SIZE_MAX


def test_the_policy_allows_own_files_and_uploads_alone() -> None:
    reply = answer("/console/")
    [style] = re.findall(rb"<style>(.*?)</style>", reply.body, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()

    assert reply.headers["content-security-policy"] == (
        f"default-src 'none'; script-src 'self'; style-src 'sha256-{digest}'; "
        f"img-src 'self' data: blob:; connect-src 'self' {BUCKET}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_nothing_comes_from_elsewhere() -> None:
    # namespaces and words in error messages of the libraries are no addresses to load from
    assert not re.findall(rb"(?:src|href|import|fetch)\W{1,3}https?:", answer("/console/").body)
    assert b"eval(" not in script()
    assert b"new Function" not in script()


def test_an_unchanged_file_is_not_sent_again() -> None:
    tag = answer("/console/console.js").headers["etag"]

    assert answer("/console/console.js", if_none_match=tag).status == 304
    assert answer("/console/console.js", if_none_match='"other"').status == 200


def test_packed_and_plain_replies_are_the_same() -> None:
    packed = answer("/console/console.js", accept_encoding="gzip, br")

    assert packed.binary
    assert gzip.decompress(packed.body) == answer("/console/console.js").body == script()


def test_the_console_is_a_folder_below_any_stage() -> None:
    reply = answer("/console")

    assert (reply.status, reply.headers["location"]) == (308, "console/")


def test_head_has_no_body() -> None:
    assert answer("/console/", "HEAD").body == b""


@pytest.mark.parametrize("path", ["/console/main.js", "/console/../main.py", "/console//"])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(PathNotFound):
        answer(path)


def test_other_methods_are_refused() -> None:
    with pytest.raises(MethodNotAllowed):
        answer("/console/", "POST")


@pytest.mark.parametrize("name", sorted(VENDORED))
def test_vendored_files_are_as_published(name: str) -> None:
    assert hashlib.sha256((WEB / "vendor" / name).read_bytes()).hexdigest() == VENDORED[name]


def test_the_console_needs_no_key() -> None:
    event = json.loads(Path("events/apigw_console.json").read_text())
    reply = ControlPlane().handler(event, Context())

    assert (reply["statusCode"], reply["body"].encode()) == (200, script())
