"""Generate handler: names of models, keys, limits, streams that end early, log, counts."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from functions.adapters.language import grammar as grammars
from functions.core.access.cors import parse_origins
from functions.core.access.grants import Scope
from functions.core.openai import service
from functions.core.serving.request_log import LANGUAGE_UNITS, NAMESPACE
from tests.data_plane import KEY_SECONDS, SIGNATURE, Context, LaterContext
from tests.unit.functions.openai.plane import ENCODER, LanguagePlane, Reply

CHAT = "/v1/chat/completions"


@pytest.fixture
def plane(tmp_path: Path) -> LanguagePlane:
    plane = LanguagePlane(tmp_path)
    plane.add("tiny")
    return plane


def locked(tmp_path: Path, **handler: Any) -> LanguagePlane:
    """Return an environment that checks keys."""
    plane = LanguagePlane(tmp_path, **handler)
    plane.generate._gate = plane.gate
    plane.add("tiny")
    return plane


def ask(plane: LanguagePlane, key: str, **fields: Any) -> Reply:
    messages = [{"role": "user", "content": "Hi"}]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": "tiny", "messages": messages, **fields}
    return plane.send("POST", CHAT, body, headers)


# --- models


def test_models_take_versions_and_aliases(plane: LanguagePlane) -> None:
    plane.add("tiny")
    for name, version in (("tiny", 1), ("tiny:prod", 1), ("tiny:2", 2), ("tiny:latest", 2)):
        reply = plane.chat(model=name)
        assert (reply.json["model"], reply.headers["x-model-version"]) == (
            f"tiny:{version}",
            str(version),
        )


@pytest.mark.parametrize("name", ["none", "tiny:9", "tiny:none", "tiny:", "tiny:A b", "a/b", ""])
def test_unknown_models_are_not_found(plane: LanguagePlane, name: str) -> None:
    reply = plane.chat(model=name)

    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert reply.error["param"] == "model"
    assert reply.error["type"] == "invalid_request_error"


def test_models_of_tensors_write_no_text(plane: LanguagePlane) -> None:
    plane.register("numbers", signature=SIGNATURE)
    reply = plane.chat(model="numbers")

    assert (reply.status, reply.error["param"]) == (400, "model")
    assert "/v2/models/numbers/infer" in reply.error["message"]


def test_language_models_are_listed_by_name(plane: LanguagePlane) -> None:
    plane.register("numbers")
    plane.add("vectors", ENCODER)
    plane.add("off")
    plane.registry.serve("off", False)
    document = plane.send("GET", "/v1/models").json

    assert document["object"] == "list"
    assert [model["id"] for model in document["data"]] == ["tiny", "vectors"]
    assert document["data"][1] == {
        "id": "vectors",
        "object": "model",
        "created": 1795334400,
        "owned_by": service.OWNER,
        "version": "1",
        "kind": "encoder",
        "max_model_len": 64,
    }


def test_a_model_is_read_by_its_name_and_version(plane: LanguagePlane) -> None:
    for name in ("tiny", "tiny:prod", "tiny%3A1"):
        document = plane.send("GET", f"/stage/v1/models/{name}").json
        assert document["id"] == name.replace("%3A", ":")
        assert (document["object"], document["version"]) == ("model", "1")
    assert plane.send("GET", "/v1/models/none").error["code"] == "model_not_found"


def test_versions_with_other_tokenizers_share_nothing(plane: LanguagePlane) -> None:
    before = len(plane.loaded)
    plane.add("tiny", tokenizer='{"other": 1}')
    plane.chat(model="tiny:2")
    plane.chat(model="tiny:1")

    assert len(plane.loaded) == before + 1


# --- requests


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": NaN}', b'{"a": "\xff"}'])
def test_a_body_that_is_no_json_is_refused(plane: LanguagePlane, body: bytes) -> None:
    reply = plane.send("POST", CHAT, body)

    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v2/models/tiny/generate", 405),
    ],
)
def test_other_methods_and_paths_are_refused(
    plane: LanguagePlane, method: str, path: str, status: int
) -> None:
    assert plane.send(method, path).status == status


def test_events_of_nobody_get_an_answer(plane: LanguagePlane) -> None:
    for event in (b"{}", b"[]", b"null", b"no json"):
        reply = plane.generate(event, Context())
        assert reply.status in (400, 404)
        assert json.loads(b"".join(reply.chunks))["error"]["message"]


def test_head_has_no_body(plane: LanguagePlane) -> None:
    reply = plane.send("HEAD", "/v1/models")

    assert (reply.status, reply.body) == (200, b"")


def test_pages_of_other_origins_may_call_if_permitted(tmp_path: Path) -> None:
    plane = LanguagePlane(tmp_path, cors=parse_origins("https://a.example"))
    origin = {"origin": "https://a.example"}
    preflight = {**origin, "access-control-request-method": "POST"}

    reply = plane.send("OPTIONS", CHAT, headers=preflight)
    assert (reply.status, reply.body) == (204, b"")
    allowed = reply.headers["access-control-allow-headers"].split(", ")
    assert {"*", "authorization"} <= set(allowed)  # for OpenAI's client: x-stainless-lang and more
    reply = plane.send("GET", "/v1/models", headers=origin)
    assert reply.headers["access-control-allow-origin"] == "https://a.example"


# --- keys


def test_keys_are_checked_in_openais_form(tmp_path: Path) -> None:
    plane = locked(tmp_path)
    assert ask(plane, "").status == 401
    assert ask(plane, "sk-wrong").error["code"] == "invalid_api_key"

    reader = plane.create_key(Scope.READ)
    assert ask(plane, reader).status == 403
    assert ask(plane, reader).error["code"] == "missing_scope"
    headers = {"Authorization": f"Bearer {reader}"}
    assert plane.send("GET", "/v1/models", headers=headers).status == 200

    assert ask(plane, plane.create_key(Scope.INFER)).status == 200


def test_a_key_is_not_told_what_another_one_sent(tmp_path: Path) -> None:
    plane = locked(tmp_path)
    first, second = plane.create_key(Scope.INFER), plane.create_key(Scope.INFER)
    plane.model.cached = 7

    cached = [
        ask(plane, key).json["usage"]["prompt_tokens_details"]["cached_tokens"]
        for key in (first, first, second)
    ]
    assert cached == [0, 7, 0]
    owners = plane.model.owners
    assert owners[0] == owners[1] != owners[2]
    assert all(owners)


def test_a_schema_is_compiled_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = locked(tmp_path)
    first, second = plane.create_key(Scope.INFER), plane.create_key(Scope.INFER)
    compiled: list[str] = []
    compile_grammar = grammars._compiled

    def count(trie: Any, grammar: str) -> tuple[Any, str]:
        compiled.append(grammar)
        return compile_grammar(trie, grammar)

    monkeypatch.setattr(grammars, "_compiled", count)
    for key in (first, second, first):
        assert ask(plane, key, response_format={"type": "json_object"}).status == 200
    assert len(compiled) == 2


def test_models_that_a_key_does_not_see_do_not_exist(tmp_path: Path) -> None:
    plane = locked(tmp_path)
    plane.add("other")
    key = plane.create_key(Scope.INFER, models=["oth*"])

    assert ask(plane, key).error == ask(
        plane, plane.create_key(Scope.INFER), model="tini"
    ).error | {"message": ask(plane, key).error["message"]}
    listed = plane.send("GET", "/v1/models", headers={"x-api-key": key}).json["data"]
    assert [model["id"] for model in listed] == ["other"]


def test_a_key_limits_the_tokens_of_a_reply(tmp_path: Path) -> None:
    plane = locked(tmp_path)
    key = plane.create_key(Scope.INFER, max_tokens=4)

    choice = ask(plane, key).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hell", "length")
    assert ask(plane, key, max_tokens=4).status == 200
    reply = ask(plane, key, max_tokens=5)
    assert (reply.status, reply.error["param"]) == (400, "max_tokens")
    assert reply.error["code"] == "max_tokens_exceeded"
    assert "4 tokens" in reply.error["message"]


def test_a_changed_limit_of_tokens_holds_after_the_time_of_cached_keys(tmp_path: Path) -> None:
    plane = locked(tmp_path)
    key = plane.create_key(Scope.INFER, max_tokens=4)
    assert ask(plane, key, max_tokens=4).status == 200
    plane.keys.change_limits(key.split("_")[1], {"max_tokens": 2}, 0, actor="anna")

    plane.clock.now += KEY_SECONDS - 1
    assert ask(plane, key, max_tokens=4).status == 200
    plane.clock.now += 1
    assert ask(plane, key, max_tokens=4).error["code"] == "max_tokens_exceeded"
    assert ask(plane, key, max_tokens=2).status == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "Hi"}),
        ("/v2/models/tiny/generate", {"text_input": "Hi"}),
    ],
)
def test_a_key_limits_replies_of_usual_length(tmp_path: Path, path: str, fields: Any) -> None:
    plane = locked(tmp_path)
    headers = {"x-api-key": plane.create_key(Scope.INFER, max_tokens=8)}

    assert plane.send("POST", path, fields, headers).status == 200
    assert plane.model.options[0].max_tokens == 8


def test_a_quota_counts_in_openais_form(tmp_path: Path) -> None:
    plane = locked(tmp_path)
    key = plane.create_key(Scope.INFER, monthly_requests=0)
    reply = ask(plane, key)

    assert (reply.status, reply.error["code"]) == (429, "insufficient_quota")
    assert reply.error["type"] == "insufficient_quota"
    assert int(reply.headers["retry-after"]) > 0


# --- streams


def test_the_first_event_comes_before_the_fifth_token(plane: LanguagePlane) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "tiny", "messages": messages, "stream": True}
    reply = plane.open("POST", CHAT, body)
    next(reply.chunks)

    assert plane.model.made < 5


def test_a_caller_that_hangs_up_stops_the_model(plane: LanguagePlane) -> None:
    context = LaterContext()
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "tiny", "messages": messages, "stream": True}
    reply = plane.open("POST", CHAT, body, context=context)
    for _ in range(4):
        next(reply.chunks)
    made = plane.model.made
    reply.chunks.close()  # type: ignore[attr-defined]

    assert plane.model.made == made
    assert plane.model.closed == 1
    assert not plane.lines
    context.post()
    line = plane.lines[-1]
    assert (line["code"], line["status"], line["CompletionTokens"]) == ("CALLER_GONE", 200, made)
    assert plane.chat().status == 200


def test_a_model_is_used_by_one_request_at_a_time(plane: LanguagePlane) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "tiny", "messages": messages, "stream": True}
    reply = plane.open("POST", CHAT, body)
    slot = next(iter(plane.text_models._slots.values()))
    assert slot.users == 1
    list(reply.chunks)
    assert slot.users == 0


def test_the_deadline_leaves_time_to_end_the_reply(plane: LanguagePlane) -> None:
    plane.chat()
    remaining = plane.model.deadlines[-1] - time.monotonic()
    assert remaining < 28.1


# --- log and counts


def test_the_log_line_has_tokens_and_rates(plane: LanguagePlane) -> None:
    plane.chat(stream=True)
    line = plane.lines[-1]

    assert (line["action"], line["status"], line["model"], line["version"]) == (
        "chat",
        200,
        "tiny",
        1,
    )
    assert (line["PromptTokens"], line["CompletionTokens"], line["finish"]) == (20, 12, "stop")
    assert 0 < line["FirstTokenMs"] <= line["latency_ms"]
    assert line["TokensPerSecond"] > 0
    assert declared(line) == LANGUAGE_UNITS
    assert {"receive", "resolve", "load", "encode", "compute"} <= set(line["stages_ms"])
    assert line["bytes_out"] > 1000


def declared(line: dict[str, Any]) -> dict[str, str]:
    """Return the units of the metrics that a log line declares to CloudWatch."""
    assert line["_aws"]["Timestamp"] > 1.7e12  # ms since 1970
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == (NAMESPACE, [[]])
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert all(type(line[name]) in (int, float) for name in units)
    return units


def test_vectors_have_a_metric_of_their_tokens_alone(plane: LanguagePlane) -> None:
    plane.add("vectors", ENCODER)
    plane.send("POST", "/v1/embeddings", {"model": "vectors", "input": "four"})

    assert declared(plane.lines[-1]) == {"PromptTokens": "Count"}


def test_a_request_without_tokens_has_no_metrics(plane: LanguagePlane) -> None:
    plane.chat(temperature=9)
    plane.send("GET", "/v1/models")

    assert all("_aws" not in line for line in plane.lines[-2:])


def test_the_log_holds_no_text_of_callers(plane: LanguagePlane) -> None:
    plane.chat("a secret", user="person")
    plane.model.failure = ZeroDivisionError("secret")
    reply = plane.chat("a secret")

    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert plane.lines[-2]["message"] == "bug"
    written = json.dumps(plane.lines)
    assert "secret" not in written
    assert "person" not in written
    assert "secret" not in reply.body.decode()


def test_tokens_are_counted_by_version_alias_and_key(tmp_path: Path) -> None:
    plane = locked(tmp_path)
    key = plane.create_key(Scope.INFER)
    for _ in range(2):
        ask(plane, key)
    ask(plane, key, temperature=9)
    plane.meter.flush()
    rows = [item for (pk, _), item in plane.table.items.items() if pk == "USAGE#tiny"]

    total = {name: sum(row.get(name, 0) for row in rows) for name in ("requests", "tokens_in")}
    assert total == {"requests": 3, "tokens_in": 40}
    assert sum(row.get("tokens_out", 0) for row in rows) == 24
    assert sum(row.get("refused", 0) for row in rows) == 1


def test_an_error_that_may_leave_no_memory_is_reported(tmp_path: Path) -> None:
    codes: list[str] = []
    plane = LanguagePlane(tmp_path, after_shortage=codes.append)
    plane.add("tiny")
    plane.model.failure = MemoryError()
    reply = plane.chat(stream=True)

    assert (reply.status, reply.error["code"]) == (413, "out_of_memory")
    assert codes == ["OUT_OF_MEMORY"]
    plane.model.fails_after = 2
    assert plane.chat(stream=True).events[-1]["error"]["code"] == "out_of_memory"


def test_a_reply_that_cannot_be_written_is_a_bug_with_an_answer(
    plane: LanguagePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "models_document", lambda _: {"data": object()})
    reply = plane.send("GET", "/v1/models")

    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert plane.lines[-2]["message"] == "bug"
    assert plane.lines[-1]["status"] == 500


def test_a_stream_that_is_cut_off_is_logged_and_counted_once(plane: LanguagePlane) -> None:
    plane.meter._due = 1e9  # nothing is written before the end
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "tiny", "messages": messages, "stream": True}
    reply = plane.open("POST", CHAT, body, context=LaterContext())
    for _ in range(4):
        next(reply.chunks)

    plane.generate.last_work()  # as the watchdog does, in another thread
    plane.generate.last_work()

    [line] = [line for line in plane.lines if "status" in line]
    assert (line["status"], line["code"], line["model"]) == (504, "TIMED_OUT", "tiny")
    assert line["CompletionTokens"] == plane.model.made
    rows = [item for (pk, _), item in plane.table.items.items() if pk == "USAGE#tiny"]
    assert sum(row.get("requests", 0) for row in rows) == 1
    assert sum(row.get("tokens_out", 0) for row in rows) == plane.model.made


def test_a_reply_that_was_sent_keeps_its_status_at_the_end(plane: LanguagePlane) -> None:
    context = LaterContext()
    list(plane.open("GET", "/v1/models", context=context).chunks)
    plane.generate.last_work()

    assert plane.lines[-1]["status"] == 200
    assert "code" not in plane.lines[-1]


def test_a_request_that_hangs_is_answered_and_counted(plane: LanguagePlane) -> None:
    reply = json.loads(plane.generate.late_reply(Context()))
    assert reply["statusCode"] == 504
    assert json.loads(reply["body"])["error"]["code"] == "timed_out"
    plane.generate.last_work()
    reply = json.loads(plane.generate.refuse_large(Context(), 10**9))
    assert reply["statusCode"] == 413
