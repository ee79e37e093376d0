"""`mayfly doctor` names what is wrong with each of a dozen set-ups, and what mends it."""

import json
import os
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from mayfly.client.config import Config, save
from tests.fault_server import FaultServer, ReceivedRequest, ServerConnection, fault_server
from tests.integration.authority import Authority
from tests.integration.mayfly.conftest import Run


class Healthy:
    """Stack that has nothing wrong, but what a test changes."""

    def __init__(self) -> None:
        self.date = formatdate(usegmt=True)
        self.replies: dict[str, tuple[int, Any]] = {
            "/v2/health/live": (200, {"live": True}),
            "/v2": (200, {"name": "mayfly", "version": "0.1.7"}),
            "/api/v1/models": (200, {"models": [], "next_cursor": None}),
        }

    def __call__(self, seen: ReceivedRequest, line: ServerConnection) -> None:
        missing = 404, {"error": "nothing is there", "code": "PATH_NOT_FOUND"}
        status, document = self.replies.get(seen.path.partition("?")[0], missing)
        line.answer(status, json.dumps(document).encode(), date=self.date)


@pytest.fixture
def stack() -> Healthy:
    return Healthy()


@pytest.fixture
def server(stack: Healthy) -> Iterator[FaultServer]:
    with fault_server(stack) as server:
        server.signed = False
        save(Config(server.url, "mfy_id_secret"))
        yield server


Break = Callable[[Healthy, FaultServer, pytest.MonkeyPatch], None]


def reply(path: str, status: int, document: Any) -> Break:
    def change(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
        stack.replies[path] = status, document

    return change


def url(text: str) -> Break:
    def change(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAYFLY_URL", text)

    return change


def no_settings(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ["MAYFLY_CONFIG"]).unlink()


def damaged_file(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ["MAYFLY_CONFIG"]).write_text("{")


def open_file(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ["MAYFLY_CONFIG"]).chmod(0o644)


def wrong_proxy(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")


def stopped(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.close()


def late_clock(stack: Healthy, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.date = formatdate(time.time() + 600, usegmt=True)


@pytest.mark.parametrize(
    ("fault", "check", "text", "mend"),
    [
        (no_settings, "settings", "no stack is named", "mayfly login URL"),
        (damaged_file, "settings", "cannot be read", "mayfly login URL"),
        (url("mayfly.example"), "settings", "is no URL of a stack", "mayfly login URL"),
        (open_file, "file", "others can read the key", "chmod 600"),
        (wrong_proxy, "proxy", "is not supported", "unset HTTPS_PROXY"),
        (url("http://nothing.invalid/live"), "name", "nothing.invalid", "mayfly login URL"),
        (stopped, "connection", "no connection to 127.0.0.1", "curl -i"),
        (reply("/v2/health/live", 404, {}), "address", "is no Mayfly", "with the stage"),
        (
            reply("/v2/health/live", 403, {"message": "Missing Authentication Token"}),
            "address",
            "Missing Authentication Token",
            "with the stage",
        ),
        (late_clock, "clock", "behind the service's", "timedatectl"),
        (
            reply("/v2", 401, {"error": "the key is unknown", "code": "KEY_INVALID"}),
            "key",
            "the key is unknown",
            "mayfly keys create",
        ),
        (reply("/v2", 200, {"name": "triton"}), "address", "another server", "mayfly login"),
        (
            reply("/v2", 200, {"name": "mayfly", "version": "9.0.0"}),
            "versions",
            "service 9.0.0",
            "pip install",
        ),
        (
            reply("/api/v1/models", 403, {"error": "lacks read", "code": "SCOPE_MISSING"}),
            "scopes",
            "lacks read",
            "mayfly keys create",
        ),
        (
            reply("/api/v1/models", 404, {"error": "nothing", "code": "PATH_NOT_FOUND"}),
            "control plane",
            "nothing",
            "make deploy",
        ),
    ],
)
def test_each_fault_is_named_with_what_mends_it(
    stack: Healthy, server: FaultServer, run: Run, monkeypatch: pytest.MonkeyPatch,
    fault: Break, check: str, text: str, mend: str,
) -> None:  # fmt: skip
    fault(stack, server, monkeypatch)
    code, output, _ = run("doctor", "--json")
    [wrong] = [row for row in json.loads(output) if not row["ok"]]

    assert (code, wrong["check"]) == (1, check)
    assert text in wrong["detail"]
    assert mend in wrong["mend"]


def test_an_untrusted_certificate_is_named(
    authority: Authority, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_server(Healthy(), context=authority.server_context("127.0.0.1")) as server:
        server.signed = False
        monkeypatch.setenv("MAYFLY_URL", server.url)
        _, output, _ = run("doctor", "--json")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        code, _, _ = run("doctor")

    [wrong] = [row for row in json.loads(output) if not row["ok"]]
    assert (wrong["check"], wrong["mend"]) == ("certificate", "export SSL_CERT_FILE=ca.pem")
    assert code == 0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.usefixtures("server")
def test_a_healthy_set_up_passes_every_check(run: Run) -> None:
    code, output, _ = run("doctor")

    assert code == 0
    assert "✗" not in output
    assert output.count("✓") == 7
    assert "secret" not in output
