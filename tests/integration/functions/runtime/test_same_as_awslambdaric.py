"""Situations that AWS's runtime client and ours handle alike, seen from the Runtime API.

Each is played twice: paths, payloads, headers, order, log lines and exit status have to agree.
"""

import ast
import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.functions.runtime.handlers import LARGE_BYTES
from tests.runtime_api import AWS, MAYFLY, Event, Post, play

MODULE = "tests.integration.functions.runtime.handlers"
COMPARED = (
    "content-type",
    "lambda-runtime-function-error-type",
    "lambda-runtime-invocation-id",
)
NAMELESS = {"Lambda-Runtime-Trace-Id": None}


def both(handler: str, *script: Event, **variables: str) -> dict[str, Any]:
    """Play a script under both clients; return what both did, after comparing it."""
    ours = played(MAYFLY, handler, script, **variables)
    assert ours == played(AWS, handler, script, **variables)
    return ours


def played(client: str, handler: str, script: Sequence[Event], **more: Any) -> dict[str, Any]:
    name = handler if "." in handler or "/" in handler else f"{MODULE}.{handler}"
    api, ended = play(client, name, script, **more)
    return {
        "posts": [seen(post) for post in api.posts],
        "asked": api.asked,
        "status": ended.status,
        "log": lines(ended.output),
    }


def seen(post: Post) -> dict[str, Any]:
    """Return what the comparison covers of a request to the Runtime API."""
    record: dict[str, Any] = {name: post.headers.get(name) for name in COMPARED}
    record |= {"path": post.path, "complete": post.complete, "payload": readable(post.body)}
    if cause := post.headers.get("lambda-runtime-function-xray-error-cause"):
        record["cause"] = json.loads(cause)
        record["cause"]["paths"].sort()
    return record


def readable(body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        return body
    return repr(value)  # NaN equals NaN


def lines(output: str) -> list[str]:
    """Return log lines without times, advice of AWS's client, and its own traceback."""
    output = re.sub(r"\[WARNING\]\t\S+\t\tLAMBDA_WARNING: .*\n", "", output)
    output = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", "<time>", output)
    output = re.sub(r"\[ERROR\] (\[\d+\]|Runtime.LambdaRuntimeClientError:) ", "[ERROR] ", output)
    output = re.sub(r"Traceback \(most recent call last\):\n  File [\s\S]*", "", output)
    return [line for line in output.splitlines() if line]


def test_events_and_results_are_json() -> None:
    events = [b'{"a": [1, 2.5, "\xc3\xa4", null, true]}', b"1", b'"text"', b"[]"]

    result = both("echo", *map(Event, events))

    assert [post["payload"] for post in result["posts"]][1:4] == ["1", "'text'", "[]"]
    assert result["asked"] == 5


def test_the_context_has_the_invocation() -> None:
    event = b'{"limit_ms": 30000}'
    contexts: list[dict[str, Any]] = [
        {},
        {"Lambda-Runtime-Aws-Tenant-Id": "tenant"},
        NAMELESS,
        {"Lambda-Runtime-Trace-Id": "Root=1-2-3"},
        {
            "Lambda-Runtime-Client-Context": json.dumps(
                {
                    "custom": {"k": "ä"},
                    "env": {"locale": "de"},
                    "client": {"app_title": "App", "installation_id": "7"},
                    "w3c": {"traceparent": "00-1-2-01", "tracestate": 3, "other": "x"},
                },
                ensure_ascii=False,
            )
        },
        {"Lambda-Runtime-Client-Context": '{"custom": {}, "w3c": "none"}'},
        {"Lambda-Runtime-Client-Context": "null"},
        {
            "Lambda-Runtime-Cognito-Identity": json.dumps(
                {"cognitoIdentityId": "id", "cognitoIdentityPoolId": "pool"}
            )
        },
        {"Lambda-Runtime-Invocation-Id": "invocation-1"},
    ]

    result = both("describe", *(Event(event, headers) for headers in contexts))

    payloads = [ast.literal_eval(post["payload"]) for post in result["posts"]]
    assert payloads[1]["tenant_id"] == "tenant"
    assert [each["trace_id"] for each in payloads][:4] == [
        "Root=1-0-1;Sampled=0", "Root=1-0-2;Sampled=0", None, "Root=1-2-3",
    ]  # fmt: skip
    assert payloads[4]["w3c"] == {"traceparent": "00-1-2-01"}
    assert payloads[7]["identity"] == ["id", "pool"]
    assert result["posts"][8]["lambda-runtime-invocation-id"] == "invocation-1"
    assert all(each["remaining is below the limit"] for each in payloads)


def test_the_context_may_be_printed() -> None:
    [post] = both("represent", Event())["posts"]

    assert "LambdaContext([aws_request_id=request-1," in post["payload"]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_handler_may_start_processes(method: str) -> None:
    result = both("start_a_process", *[Event(json.dumps(method).encode())] * 2)

    assert [post["payload"] for post in result["posts"]] == ["0", "0"]
    assert result["log"] == ["from the child"] * 2


@pytest.mark.parametrize("header", ["Client-Context", "Cognito-Identity"])
def test_a_malformed_context_fails_the_invocation(header: str) -> None:
    result = both("echo", Event(headers={f"Lambda-Runtime-{header}": "no JSON"}), Event())

    assert "Runtime.LambdaContextUnmarshalError" in result["posts"][0]["payload"]
    assert result["posts"][1]["path"].endswith("/response")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ValueError", "plain"),
        ("KeyError", "a key"),
        ("Own", 'with ä, "quotes" and\ntwo lines'),
        ("Own", ""),
    ],
)
def test_an_exception_is_posted_and_logged(kind: str, message: str) -> None:
    event = Event(json.dumps({"type": kind, "message": message}).encode())

    result = both("fail", event, event)

    assert [post["path"][-15:] for post in result["posts"]] == [
        "request-1/error",
        "request-2/error",
    ]
    assert result["log"][0].startswith("[ERROR] ")
    assert any(line.startswith("\u00a0\u00a0File") for line in result["log"])


def test_the_stack_trace_begins_with_the_handler() -> None:
    [post] = both("fail_deeply", Event())["posts"]

    assert "in fail_deeply" in post["payload"]


@pytest.mark.parametrize("message", ["m" * 2**20, "ä" * 2**19])
def test_a_cause_too_long_for_a_header_is_left_out(message: str) -> None:
    event = json.dumps({"type": "Own", "message": message}).encode()

    assert "cause" not in both("fail", Event(event))["posts"][0]


@pytest.mark.parametrize(
    "value",
    [
        "null", "text", "numbers", "decimals", "bytes", "keys", "tuple", "named tuple", "fields",
    ],
)  # fmt: skip
def test_results_of_many_types_are_serialized(value: str) -> None:
    result = both("values", Event(json.dumps(value).encode()))

    assert result["posts"][0]["path"].endswith("/response")


@pytest.mark.parametrize(
    "value", ["set", "object", "circular", "no key", "no text", "failing type"]
)
def test_a_result_that_is_no_json_is_an_error(value: str) -> None:
    result = both("values", Event(json.dumps(value).encode()), Event(b'"null"'))

    assert "Runtime.MarshalError" in result["posts"][0]["payload"]


@pytest.mark.parametrize("body", [b"", b"[1", b'{"a": 01}', b"NaN", b"\xff", b"[" * 100_000])
def test_an_event_that_is_no_json_is_an_error(body: bytes) -> None:
    results = [played(client, "echo", [Event(body), Event(b"1")]) for client in (AWS, MAYFLY)]

    for result in results:  # the parsers' own words differ
        result["log"] = result["log"][0].partition("input:")[0]
        result["posts"][0] = result["posts"][0]["payload"].partition("input:")[0]
    assert results[0] == results[1]
    assert "Runtime.UnmarshalError" in result["log"]


def test_an_event_may_begin_with_a_byte_order_mark() -> None:
    assert both("echo", Event(b"\xef\xbb\xbf1"))["posts"][0]["payload"] == "1"


def test_an_event_of_another_type_stays_bytes() -> None:
    event = Event(b"text", {"Content-Type": "text/plain"})

    assert both("kind", event)["posts"][0]["payload"] == "'bytes'"


def test_bytes_are_sent_as_they_are() -> None:
    result = both("raw", Event())

    assert result["posts"][0]["content-type"] == "application/unknown"


def test_a_handler_may_be_an_object() -> None:
    assert both("an_object", Event())["posts"][0]["payload"] == "'called'"


@pytest.mark.parametrize("chunk_bytes", [0, 4096, 8_000_000])
def test_a_large_event_arrives_whole(chunk_bytes: int) -> None:
    event = Event(json.dumps("x" * LARGE_BYTES).encode(), chunk_bytes=chunk_bytes)

    assert both("size", event)["posts"][0]["payload"] == str(LARGE_BYTES)


def test_a_large_reply_arrives_whole() -> None:
    result = both("large", Event(), Event())

    assert result["posts"][1]["payload"] == repr("x" * LARGE_BYTES)


@pytest.mark.parametrize("chunk_bytes", [0, 1])
def test_an_event_may_arrive_in_pieces(chunk_bytes: int) -> None:
    event = Event(b'{"a": "some text"}', chunk_bytes=chunk_bytes, pieces=9)

    assert both("echo", event, event)["posts"][1]["payload"] == "{'a': 'some text'}"


def test_log_records_have_lambdas_format() -> None:
    result = both("log", Event(b"7"))

    assert "[WARNING]\t<time>\trequest-1\twarning: 7" in result["log"]
    assert "by the descriptor" in result["log"]


@pytest.mark.parametrize("level", ["INFO", "TRACE"])
def test_the_log_level_is_lambdas(level: str) -> None:
    result = both("log", Event(b"7"), AWS_LAMBDA_LOG_LEVEL=level)

    assert "[INFO]\t<time>\trequest-1\tinfo: 7" in result["log"]


@pytest.mark.parametrize("handler", ["log", "log_failures", "fail"])
def test_log_lines_are_json_under_that_format(handler: str) -> None:
    event = Event(b'{"type": "Own", "message": "with \\u00e4 and \\"quotes\\""}')

    result = both(handler, event, AWS_LAMBDA_LOG_FORMAT="JSON", AWS_LAMBDA_LOG_LEVEL="DEBUG")

    records = [json.loads(line) for line in result["log"] if line.startswith("{")]
    assert {"timestamp", "level", "requestId"} <= set(records[-1])


@pytest.mark.parametrize("status", [0, 3])
def test_a_handler_may_end_the_process(status: int) -> None:
    result = both("leave", Event(str(status).encode()))

    assert (result["status"], result["posts"]) == (status, [])


def test_an_interrupt_ends_the_process() -> None:
    results = [played(client, "interrupt", [Event()]) for client in (AWS, MAYFLY)]

    assert results[0]["status"] == results[1]["status"] != 0
    assert results[0]["posts"] == results[1]["posts"] == []


def test_sigterm_ends_the_process() -> None:
    assert both("stop_itself", Event())["status"] == -signal.SIGTERM


def test_a_reply_that_is_refused_ends_the_process() -> None:
    result = both("echo", Event(reply_status=413), Event())

    assert (result["status"], result["asked"]) == (1, 1)
    assert "Failed to post handler success response. Http response code: 413" in result["log"][0]


def test_an_error_instead_of_an_event_ends_the_process() -> None:
    result = both("echo", Event(status=500), Event())

    assert result["status"] == 1
    assert "Failed to get next invocation. Http Response code: 500" in result["log"][0]


def test_a_connection_that_the_api_closes_is_opened_again() -> None:
    result = both("echo", Event(b"1", closing=True), Event(b"2"))

    assert [post["payload"] for post in result["posts"]] == ["1", "2"]


MODULES = {
    "broken": "def broken(:\n    pass\n",
    "missing": "import no_such_module\n",
    "incomplete": "from json import no_such_name\n",
    "raising": "def setting():\n    raise LookupError('a variable is missing')\n\nsetting()\n",
    "leaving": "import sys\nsys.exit(7)\n",
    "fine": "def handler(event, context):\n    return 'fine'\n",
    "talking": "import logging\nlogging.warning('on import')\nprint('printed')\nhandler = 1 / 0\n",
}


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        ("broken.handler", "Runtime.UserCodeSyntaxError"),
        ("missing.handler", "Runtime.ImportModuleError"),
        ("incomplete.handler", "Runtime.ImportModuleError"),
        ("fine.other", "Runtime.HandlerNotFound"),
        ("no_such.handler", "Runtime.ImportModuleError"),
        ("no/such.handler", "Runtime.ImportModuleError"),
        ("sys.exit", "Runtime.BuiltInModuleConflict"),
        ("raising.handler", "LookupError"),
        ("talking.handler", "ZeroDivisionError"),
    ],
)
def test_a_handler_that_cannot_be_loaded_fails_init(
    handler: str, error: str, tmp_path: Path
) -> None:
    results = [failed_init(client, handler, tmp_path) for client in (AWS, MAYFLY)]

    assert results[0] == results[1]
    assert results[0]["posts"][0]["lambda-runtime-function-error-type"] == error
    assert results[0]["posts"][0]["path"] == "/2018-06-01/runtime/init/error"
    assert (results[0]["status"], results[0]["asked"]) == (1, 0)


def failed_init(client: str, handler: str, folder: Path) -> dict[str, Any]:
    """Play a failing import; frames of the import system are left out."""
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source)
    result = played(client, handler, [], root=folder)
    trace = re.compile(r"'  File \"[^\"]*importlib[^\"]*\"[^']*', ")
    result["posts"][0]["payload"] = trace.sub("", result["posts"][0]["payload"])
    frames = re.compile(r"\u00a0+(File \".*importlib|return _bootstrap)")
    result["log"] = [line for line in result["log"] if not frames.match(line)]
    return result


def test_a_handler_without_a_module_is_named() -> None:
    results = [play(client, "nodot") for client in (AWS, MAYFLY)]

    bodies = [api.posts[0].json for api, _ in results]
    assert bodies[0] == bodies[1]
    assert [ended.status for _, ended in results] == [1, 1]


def test_a_module_may_end_the_process(tmp_path: Path) -> None:
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)

    result = both("leaving.handler", root=tmp_path)

    assert (result["status"], result["posts"]) == (7, [])
