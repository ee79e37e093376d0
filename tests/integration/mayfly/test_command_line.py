"""The command line over HTTP: exit codes, JSON, silence, settings, uploads."""

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fault_server import FaultServer, ReceivedRequest, ServerConnection, fault_server
from tests.integration.mayfly.conftest import Run

MODEL = {"name": "digits", "state": "active", "aliases": {"prod": 7}, "versions": 7,
         "newest": {"version": 7, "state": "READY", "size_bytes": 217_441}}  # fmt: skip
ALIAS = {"model": "digits", "alias": "prod", "version": 8, "previous": 7, "revision": 12}
CARD = {"version": 7, "state": "READY", "reason": None, "created_at": "2026-11-30T10:00:00Z",
        "metrics": {"accuracy": 0.99436}, "size_bytes": 217_441}  # fmt: skip
COUNTS = {"requests": 12_431, "errors": 12, "refused": 3, "latency_ms": {"p50": 2.1, "p99": 121.4},
          "cost_usd": 0.31}  # fmt: skip
USAGE = {
    "from_day": "2026-11-24", "to_day": "2026-11-30", "by": "model", "total": COUNTS,
    "rows": [{**COUNTS, "model": "digits"}], "prices": {"idle_month_usd": 1.81},
}  # fmt: skip


class Binary(NamedTuple):
    """Prediction in binary: its body, of which `head` bytes are JSON."""

    head: int
    body: bytes


class Stack:
    """Control plane whose replies a test sets by method and path, without the query."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {
            "GET /v2": {"name": "mayfly", "version": "0.1.0"},
            "GET /v2/models": {"models": ["digits", "churn"]},
            "GET /api/v1/models": {"models": [MODEL], "next_cursor": None},
            "GET /api/v1/models/digits/versions": {"versions": [CARD], "next_cursor": None},
            "GET /api/v1/models/digits/aliases": {"aliases": [ALIAS]},
            "PUT /api/v1/models/digits/aliases/prod": ALIAS,
            "POST /api/v1/models/digits/aliases/prod/rollback": ALIAS,
        }

    def __call__(self, seen: ReceivedRequest, line: ServerConnection) -> None:
        reply = self.replies.get(f"{seen.method} {seen.path.partition('?')[0]}")
        if callable(reply):
            reply = reply(seen)
        if reply is None:
            reply = 404, {"error": "nothing is there", "code": "PATH_NOT_FOUND"}
        status, document = reply if isinstance(reply, tuple) else (200, reply)
        if isinstance(document, Binary):
            fields = {"inference_header_content_length": str(document.head), "x_model_version": "3"}
            line.answer(status, document.body, **fields)
        else:
            line.answer(status, json.dumps(document).encode(), retry_after="3600")


@pytest.fixture
def stack() -> Stack:
    return Stack()


@pytest.fixture
def server(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    with fault_server(stack) as server:
        server.signed = False
        monkeypatch.setenv("MAYFLY_URL", server.url)
        monkeypatch.setenv("MAYFLY_KEY", "mfy_id_secret")
        yield server


def bodies(server: FaultServer, method: str) -> list[Any]:
    return [json.loads(seen.body) for seen in server.seen if seen.method == method]


@pytest.mark.usefixtures("server")
def test_a_list_is_a_table_or_one_document(run: Run, stack: Stack) -> None:
    code, text, _ = run("models")
    assert (code, text.splitlines()[0].split()[:3]) == (0, ["MODEL", "PROD", "LATEST"])
    assert text.splitlines()[1].split() == ["digits", "7", "READY"]  # usage cannot be read
    stack.replies["GET /api/v1/usage"] = USAGE
    row = "digits 7 READY 12,431 0.1% 2.1 ms $0.31"
    assert run("models")[1].splitlines()[1].split() == row.split()

    code, text, error = run("models", "--json")
    assert (code, json.loads(text), error) == (0, [MODEL], "")


@pytest.mark.usefixtures("server")
def test_versions_have_their_metric_and_aliases(run: Run) -> None:
    _, text, _ = run("versions", "digits")

    assert "accuracy 0.9944" in text
    assert "\x1b[" not in text  # no colours outside a terminal


def test_a_promotion_says_what_it_did(run: Run, server: FaultServer) -> None:
    code, text, _ = run("promote", "digits", "8")

    assert code == 0
    assert text == "digits prod: 7 → 8 (revision 12). Callers see it within 5 s.\n"
    assert bodies(server, "PUT") == [{"version": 8}]
    assert run("promote", "digits", "8", "--quiet") == (0, "", "")


def test_pages_of_a_list_are_read_to_the_end(run: Run, server: FaultServer, stack: Stack) -> None:
    def page(seen: ReceivedRequest) -> Any:
        last = "cursor=a%2Fb" in seen.path
        return {
            "models": [{**MODEL, "name": "b" if last else "a"}],
            "next_cursor": None if last else "a/b",
        }

    stack.replies["GET /api/v1/models"] = page
    _, text, _ = run("models", "--search", "x y", "--json")

    assert [row["name"] for row in json.loads(text)] == ["a", "b"]
    assert all("search=x+y" in seen.path for seen in server.seen)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "INVALID_REQUEST", 2),
        (404, "MODEL_NOT_FOUND", 3),
        (401, "KEY_INVALID", 5),
        (403, "SCOPE_MISSING", 5),
        (409, "STATE_CONFLICT", 6),
        (429, "", 7),
        (503, "UNAVAILABLE", 7),
        (504, "TIMED_OUT", 7),
        (500, "INTERNAL_ERROR", 1),
    ],
)
def test_the_exit_code_tells_the_kind_of_failure(
    run: Run, stack: Stack, status: int, code: str, expected: int
) -> None:
    failure = status, {"error": "the reason", "code": code}
    stack.replies["POST /api/v1/models/digits/aliases/prod/rollback"] = failure

    advice = ". Set MAYFLY_KEY, or keep a key by mayfly login." if status == 401 else ""
    assert run("rollback", "digits") == (expected, "", f"mayfly: the reason{advice}\n")


@pytest.mark.usefixtures("server")
def test_an_unknown_model_is_answered_by_the_one_that_was_meant(run: Run, stack: Stack) -> None:
    unknown = 404, {"error": "no such model", "code": "MODEL_NOT_FOUND"}
    for path in ("digit", "zebra/versions/3"):
        stack.replies[f"GET /v2/models/{path}"] = unknown

    assert run("show", "digit") == (3, "", 'mayfly: no model "digit". Did you mean "digits"?\n')
    assert run("show", "zebra:3") == (3, "", 'mayfly: no model "zebra". See mayfly models.\n')


def test_without_settings_the_next_step_is_named(run: Run) -> None:
    code, _, error = run("models")

    assert code == 2
    assert "set MAYFLY_URL and MAYFLY_KEY, or run mayfly login URL" in error


def test_login_checks_and_stores_the_key(
    run: Run, server: FaultServer, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAYFLY_URL")
    monkeypatch.delenv("MAYFLY_KEY")
    code, text, _ = run("login", f"{server.url}/", "--key", "mfy_id_secret")
    path = Path(os.environ["MAYFLY_CONFIG"])

    assert code == 0
    assert "secret" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run("models")[0] == 0
    assert server.seen[-1].headers["x-api-key"] == "mfy_id_secret"
    assert run("models", "--url", server.url)[0] == 0
    assert server.seen[-1].headers["x-api-key"] == "mfy_id_secret"

    stack.replies["GET /v2"] = 401, {"error": "the key is unknown", "code": "KEY_INVALID"}
    assert run("login", server.url, "--key", "mfy_no_secret")[0] == 5
    assert "mfy_id_secret" in path.read_text()


def test_a_stored_key_is_not_sent_to_another_stack(
    run: Run, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAYFLY_URL")
    monkeypatch.delenv("MAYFLY_KEY")
    run("login", server.url, "--key", "mfy_id_secret")
    other = server.url.replace("127.0.0.1", "localhost")
    run("models", "--url", other)

    assert "x-api-key" not in server.seen[-1].headers


class Intake:
    """Uploads of a stack: the signed URL, the object, the states of the registration."""

    def __init__(self, stack: Stack, url: str, end: dict[str, Any]) -> None:
        self.objects: list[bytes] = []
        states = [{"state": "received"}, {"state": "registering"}, {"done": True, **end}]
        self.states = [{"id": "u1", "model": "digits", "done": False, **row} for row in states]
        headers = {"x-amz-checksum-sha256": "c", "content-length": "4"}
        stack.replies |= {
            "POST /api/v1/uploads": (
                201,
                {"id": "u1", "url": f"{url}/put?x=1", "headers": headers},
            ),
            "PUT /put": self.put,
            "GET /api/v1/uploads/u1": lambda _: self.states.pop(0),
        }

    def put(self, seen: ReceivedRequest) -> Any:
        assert seen.headers["x-amz-checksum-sha256"] == "c"
        self.objects.append(seen.body)
        return {}


def test_an_upload_is_followed_until_it_is_ready(
    run: Run, server: FaultServer, stack: Stack, tmp_path: Path
) -> None:
    intake = Intake(stack, server.url, {"state": "READY", "version": 8})
    path = tmp_path / "best.onnx"
    path.write_bytes(b"onnx")
    code, text, _ = run("upload", str(path), "--model", "digits")

    assert code == 0
    assert text.startswith("digits 8   ready ✓")
    assert intake.objects == [b"onnx"]
    [announced] = bodies(server, "POST")
    digest = hashlib.sha256(b"onnx").hexdigest()
    assert announced == {"model": "digits", "file": "best.onnx", "size_bytes": 4, "sha256": digest}


def test_a_rejected_upload_says_why(
    run: Run, server: FaultServer, stack: Stack, tmp_path: Path
) -> None:
    reason = {"code": "TRUNCATED", "message": "the file is truncated"}
    end = {"state": "REJECTED", "version": 9, "reason": reason, "next_step": "upload it again"}
    Intake(stack, server.url, end)
    path = tmp_path / "model.tar.gz"
    path.write_bytes(b"onnx")
    code, text, error = run("upload", str(path), "--model", "digits", "--json")

    assert (code, text) == (4, "")
    assert error == "mayfly: the file is truncated (upload it again)\n"


@pytest.mark.parametrize(
    ("name", "text"), [("none.onnx", "there is no file"), ("notes.txt", "is no model")]
)
def test_a_file_that_is_no_model_is_not_sent(
    run: Run, server: FaultServer, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    code, _, error = run("upload", str(tmp_path / name), "--model", "digits")

    assert (code, server.seen) == (2, [])
    assert text in error


def test_traffic_and_shadow_are_set_whole(run: Run, server: FaultServer, stack: Stack) -> None:
    split = {
        "weights": [{"version": 7, "weight": 90}, {"version": 8, "weight": 10}],
        "shadow": None, "sticky": "auto", "canary": None, "revision": 3,
    }  # fmt: skip
    path = "/api/v1/models/digits/aliases/prod/traffic"
    stack.replies |= {f"GET {path}": split, f"PUT {path}": split}
    code, text, _ = run("traffic", "digits", "7=90", "8=10%")
    assert (code, text.splitlines()[0]) == (0, "digits prod: 90 % 7, 10 % 8")
    run("shadow", "digits", "9", "--percent", "5")

    weights = [{"version": 7, "weight": 90.0}, {"version": 8, "weight": 10.0}]
    first, second = bodies(server, "PUT")
    assert first == {"weights": weights, "sticky": "auto"}
    assert second["shadow"] == {"version": 9, "percent": 5.0}
    assert run("traffic", "digits", "8")[0] == run("shadow", "digits")[0] == 2


def test_a_canary_has_the_options_of_the_command(
    run: Run, server: FaultServer, stack: Stack
) -> None:
    split = {"weights": [{"version": 7, "weight": 90}, {"version": 8, "weight": 10}]}
    stack.replies |= {
        "POST /api/v1/models/digits/aliases/prod/canary": {"version": 8},
        "GET /api/v1/models/digits/aliases/prod/traffic": split,
    }
    code, text, _ = run("canary", "digits", "8", "--steps", "10,50", "--bake", "10m")

    assert code == 0
    assert text == "digits prod: 90 % 7, 10 % 8 · watching errors and latency\n"
    assert bodies(server, "POST") == [{"version": 8, "steps": [10, 50], "bake_seconds": 600}]
    assert run("canary", "digits", "8", "--steps", "a")[0] == 2


def test_keys_are_managed_by_a_key_where_a_stack_is_named(
    run: Run, server: FaultServer, stack: Stack
) -> None:
    key = {"id": "abc", "name": "ci", "state": "active", "scopes": ["infer"], "models": ["*"],
           "created_at": "2026-11-30T10:00:00Z", "expires_at": None}  # fmt: skip
    stack.replies |= {
        "POST /api/v1/keys": (201, {**key, "key": "mfy_abc_new"}),
        "GET /api/v1/keys": {"keys": [key], "next_cursor": None},
        "POST /api/v1/keys/abc/revoke": {**key, "state": "revoked"},
        "PATCH /api/v1/keys/abc": {**key, "monthly_requests": None},
    }
    options = ("--name", "ci", "--model", "a-*", "--monthly-requests", "5")
    code, text, _ = run("keys", "create", *options)
    assert (code, text) == (0, "mfy_abc_new\n")
    fields = {"name": "ci", "scopes": ["infer"], "models": ["a-*"], "monthly_requests": 5}
    assert bodies(server, "POST") == [fields]
    assert json.loads(run("keys", "limit", "abc", "--monthly-requests=none")[1]) == {
        **key,
        "monthly_requests": None,
    }
    assert run("keys", "limit", "abc", "--max-tokens=5", "--monthly-requests=none")[0] == 0
    none = {"monthly_requests": None}
    assert bodies(server, "PATCH") == [none, {**none, "max_tokens": 5}]
    assert json.loads(run("keys", "list")[1]) == key
    assert json.loads(run("keys", "revoke", "abc")[1])["state"] == "revoked"


@pytest.mark.usefixtures("server")
def test_usage_is_a_row_a_group(run: Run, stack: Stack) -> None:
    stack.replies["GET /api/v1/usage"] = USAGE
    heads, row = run("usage")[1].splitlines()

    assert heads.split() == ["MODEL", "REQUESTS", "ERRORS", "REFUSED", "P50", "P99", "COST"]
    assert row.split() == ["digits", "12,431", "0.1%", "0.0%", "2.1", "ms", "121", "ms", "$0.31"]


@pytest.mark.usefixtures("server")
def test_a_running_canary_shows_both_sides(run: Run, stack: Stack) -> None:
    arm = {"requests": 900, "errors": 9, "error_rate": {"value": 0.01, "low": 0.0, "high": 0.1},
           "p95_ms": {"value": 2.5, "low": 2.1, "high": 3.0}}  # fmt: skip
    stack.replies["GET /api/v1/models/digits/aliases/prod/canary"] = {
        "model": "digits", "alias": "prod", "state": "running", "version": 8, "step": 1,
        "steps": [10, 50], "step_seconds_left": 90, "verdict": "no difference found",
        "stable": {**arm, "version": 7}, "candidate": {**arm, "version": 8},
    }  # fmt: skip
    lines = run("canary", "digits")[1].splitlines()

    assert lines[0] == "digits prod canary 8 running step 1 of 2: no difference found"
    assert lines[1].split()[:6] == ["●", "10", "%", "○", "50", "%"]
    assert "1 min 30 s of this step left" in lines[1]
    assert lines[3].split()[:4] == ["stable", "7", "900", "1.0%"]


@pytest.mark.usefixtures("server")
def test_a_wrong_answer_of_another_server_is_an_error(run: Run, stack: Stack) -> None:
    stack.replies["GET /api/v1/models"] = {"rows": []}
    code, text, error = run("models")

    assert (code, text) == (1, "")
    assert "models" in error


def doubler(seen: ReceivedRequest) -> Any:
    """Return the reply of y = 2x to a request with one row."""
    x, y = struct.unpack("<2f", seen.body[int(seen.headers["inference-header-content-length"]) :])
    output = {"name": "y", "datatype": "FP32", "shape": [1, 2],
              "parameters": {"binary_data_size": 8}}  # fmt: skip
    document = json.dumps({"model_name": "doubler", "outputs": [output]}).encode()
    return 200, Binary(len(document), document + struct.pack("<2f", 2 * x, 2 * y))


@pytest.fixture
def sampled(stack: Stack) -> Stack:
    """Stack with a model and the sample of its version 3."""
    spec = {"datatype": "FP32", "shape": [-1, 2]}
    rows = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]
    stack.replies |= {
        "GET /v2/models/doubler": {
            "name": "doubler", "versions": ["3"], "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}],
        },
        "POST /v2/models/doubler/infer": doubler,
        "GET /api/v1/models/doubler/versions/3/sample": {
            "model": "doubler", "version": 3, "synthetic": False,
            "request": {"inputs": rows}, "response": {},
        },
    }  # fmt: skip
    return stack


@pytest.mark.usefixtures("server", "sampled")
def test_a_call_sends_the_sample_of_the_version_that_answers(run: Run) -> None:
    code, text, error = run("call", "doubler", "--sample", "--json")

    assert (code, error) == (0, "")
    assert json.loads(text)["outputs"] == {"y": [[6, 8]]}


@pytest.mark.usefixtures("server")
def test_a_version_without_a_sample_is_called_with_zeros(run: Run, sampled: Stack) -> None:
    del sampled.replies["GET /api/v1/models/doubler/versions/3/sample"]

    assert json.loads(run("call", "doubler", "--sample", "--json")[1])["outputs"] == {"y": [[0, 0]]}


@pytest.mark.usefixtures("server")
def test_a_sample_that_cannot_be_read_is_an_error(run: Run, sampled: Stack) -> None:
    sample = sampled.replies["GET /api/v1/models/doubler/versions/3/sample"]
    sample["request"] = {"inputs": [{"name": "x"}]}
    code, text, error = run("call", "doubler", "--sample")

    assert (code, text) == (1, "")
    assert error == "mayfly: the sample of doubler:3 is broken\n"
