"""Retries, errors of replies, addresses, compression and settings."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mayfly.client import config, errors
from mayfly.client.errors import MayflyError
from mayfly.client.http1 import address, compression, requests
from mayfly.client.http1.messages import Reply, error_of
from mayfly.client.http1.retries import RetryPolicy
from scripts import sync_client

POLICY = RetryPolicy(draw=lambda: 1.0)


@pytest.mark.parametrize(
    ("error", "safe", "expected"),
    [
        (errors.QuotaExceeded("", retry_after=2), False, 2.5),
        (errors.QuotaExceeded("", retry_after=50), True, None),  # longer than the time left
        (errors.Unavailable("", retry_after=1), True, 1.25),
        (errors.Unavailable(""), True, 0.1),
        (errors.Unavailable(""), False, None),
        (errors.Disconnected("", sent=True), True, 0.1),
        (errors.Disconnected("", sent=True), False, None),
        (errors.Disconnected("", sent=False), False, 0.1),
        (errors.TimedOut(""), True, None),
        (errors.ServerError(""), True, None),
        (errors.InvalidInput(""), True, None),
        (errors.Conflict(""), True, None),
    ],
)
def test_repeated_is_what_is_safe_and_helps(
    error: MayflyError, safe: bool, expected: float | None
) -> None:
    assert POLICY.wait(error, 0, 30.0, safe=safe) == expected


def test_waits_grow_and_end() -> None:
    waits = [POLICY.wait(errors.Unavailable(""), n, 30.0, safe=True) for n in range(5)]

    assert waits == [0.1, 0.2, 0.4, 0.8, None]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "INVALID_REQUEST", errors.InvalidInput),
        (401, "KEY_INVALID", errors.Unauthorized),
        (403, "SCOPE_MISSING", errors.Forbidden),
        (404, "MODEL_NOT_FOUND", errors.ModelNotFound),
        (404, "PATH_NOT_FOUND", errors.NotFound),
        (409, "STATE_CONFLICT", errors.Conflict),
        (413, "PAYLOAD_TOO_LARGE", errors.TooLarge),
        (415, "UNSUPPORTED_ENCODING", errors.InvalidInput),
        (429, "", errors.QuotaExceeded),
        (500, "INTERNAL_ERROR", errors.ServerError),
        (502, "", errors.Unavailable),
        (503, "MODEL_LOADING", errors.Unavailable),
        (504, "TIMED_OUT", errors.TimedOut),
    ],
)
def test_a_reply_is_an_error_of_its_class(status: int, code: str, kind: type[MayflyError]) -> None:
    body = b'{"error": "why", "code": "%s", "request_id": "r", "revision": 12}' % code.encode()
    error = error_of(Reply(status, {"retry-after": "3"}, body))

    assert type(error) is kind
    assert (str(error), error.code, error.request_id, error.status) == ("why", code, "r", status)
    if isinstance(error, errors.Conflict):
        assert error.revision == 12
    if isinstance(error, errors.Unavailable | errors.QuotaExceeded):
        assert error.retry_after == 3.0


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"message": null}'])
def test_a_reply_without_a_document_has_a_text(body: bytes) -> None:
    assert str(error_of(Reply(502, {}, body))) == "the service answered 502 without a text"
    assert "MAYFLY_KEY" in str(error_of(Reply(401, {}, body)))


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a", "https://", "https://a:b", "https://u:p@a", "https://a?b=c"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(errors.NotConfigured):
        address.parse(url)


def test_a_header_cannot_be_smuggled_in_by_a_key() -> None:
    with pytest.raises(errors.NotConfigured, match="line break"):
        requests.lines({"x-api-key": "a\r\nx-evil: 1"})
    with pytest.raises(errors.NotConfigured):
        requests.lines({"x-api-key": "€"})


def test_the_proxy_of_the_environment_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "http://u:p%40@proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    outside = requests.find_proxy(address.parse("https://outside.example"))

    assert outside == requests.Proxy("proxy", 3128, "proxy-authorization: Basic dTpwQA==\r\n")
    assert requests.find_proxy(address.parse("https://inside.example")) is None
    assert requests.find_proxy(address.parse("http://outside.example")) is None


def test_only_what_shrinks_is_compressed() -> None:
    assert compression.worthwhile(b"\x00" * 20_000)
    assert not compression.worthwhile(b"\x00" * 2_000)
    assert not compression.worthwhile(os.urandom(20_000))
    body = b"abc" * 10_000
    assert compression.inflate(compression.deflate(body), "gzip") == body


def test_settings_of_the_environment_come_before_the_file(tmp_path: Path) -> None:
    environment = {"MAYFLY_CONFIG": str(tmp_path / "folder/config.json")}
    with pytest.raises(errors.NotConfigured, match="mayfly login"):
        config.load(environment)
    path = config.save(config.Config("https://a/live", "mfy_id_secret"), environment)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert config.load(environment).key == "mfy_id_secret"
    assert config.load({**environment, "MAYFLY_KEY": "k"}).key == "k"
    # the key of the file is not sent to another URL
    assert config.load({**environment, "MAYFLY_URL": "https://b"}) == config.Config("https://b")
    assert "secret" not in repr(config.load(environment))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"url": 1}x'])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(errors.NotConfigured, match="run mayfly login again"):
        config.load({"MAYFLY_CONFIG": str(path)})


def test_the_synchronous_client_is_the_asynchronous_one_translated() -> None:
    outdated = sync_client.outdated(write=False)

    assert outdated == [], "run python -m scripts.sync_client"


def test_public_names_can_be_imported() -> None:
    import mayfly

    names: list[Any] = [getattr(mayfly, name) for name in mayfly._MODULES]
    assert all(isinstance(name, type) for name in names)
    with pytest.raises(AttributeError):
        _ = mayfly.nothing
