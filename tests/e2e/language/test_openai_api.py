"""OpenAI's API over the local stack: streams, unmodified clients, hostile requests."""

import contextlib
import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from local.client import RunningStack
from tests.e2e.conftest import Api, wait
from tests.e2e.language.conftest import upload
from tests.language_models import encoder_package

PYTHON = Path(".venv-language/bin/python")
STREAMS = 20
CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def reranker(api: Api) -> str:
    return upload(api, "reranker", encoder_package(scores=True))


def events(text: str) -> list[Any]:
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in parts]


def written(stream: list[Any]) -> str:
    return "".join(
        event["choices"][0]["delta"].get("content", "") for event in stream[:-1] if event["choices"]
    )


@contextlib.contextmanager
def open_stream(api: Api, body: Any) -> Iterator[http.client.HTTPResponse]:
    """Send a chat; keep its connection for a `with` block."""
    url = urlsplit(api.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=120)
    headers = {"x-api-key": api.key, "content-type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", url.path + CHAT, json.dumps(body), headers)
        with connection.getresponse() as response:
            yield response


def lines(response: http.client.HTTPResponse) -> Iterator[str]:
    while line := response.readline():
        yield line.decode().strip()


def test_a_streamed_chat_arrives_event_by_event(api: Api, tiny: str) -> None:
    body = {"model": tiny, "messages": HI, "stream": True, "max_tokens": 30, "ignore_eos": True}
    with open_stream(api, body) as response:
        parts = [line for line in lines(response) if line]

    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["x-model-version"] == "1"
    assert parts[-1] == "data: [DONE]"
    assert json.loads(parts[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_a_keys_limits_are_changed_while_its_environment_is_warm(api: Api, tiny: str) -> None:
    fields = {"name": "limited", "scopes": ["infer"], "max_tokens": 5}
    created = api.call("POST", "/api/v1/keys", fields).json
    caller = replace(api, key=created["key"])
    body = {"model": tiny, "messages": HI, "max_tokens": 5, "ignore_eos": True}

    def answered() -> tuple[int, str]:
        reply = caller.call("POST", CHAT, body)
        return reply.status, reply.json["error"]["code"] if reply.status != 200 else ""

    def change(limits: Any, expected: tuple[int, str]) -> None:
        reply = api.call("PATCH", f"/api/v1/keys/{created['id']}", limits)
        assert reply.status == 200
        assert limits.items() <= reply.json.items()
        wait(lambda: answered() == expected, f"the limits {limits}")

    assert answered() == (200, "")
    change({"max_tokens": 4}, (400, "max_tokens_exceeded"))
    change({"max_tokens": None}, (200, ""))
    change({"monthly_requests": 0}, (429, "insufficient_quota"))
    change({"monthly_requests": None}, (200, ""))


def test_the_same_seed_gives_the_same_text_also_after_a_reload(
    api: Api, tiny: str, stack: RunningStack
) -> None:
    body = {"model": tiny, "messages": HI, "max_tokens": 40, "seed": 7, "temperature": 1}

    def text() -> str:
        return str(api.call("POST", CHAT, body).json["choices"][0]["message"]["content"])

    first = text()
    assert first
    assert text() == first
    stack.recycle("GenerateFunction")
    assert text() == first
    assert written(events(api.call("POST", CHAT, {**body, "stream": True}).body.decode())) == first
    assert api.call("POST", CHAT, {**body, "seed": 8}).json["choices"][0]["message"] != first


def test_twenty_streams_at_once_give_the_same_text(api: Api, tiny: str) -> None:
    body = {"model": tiny, "messages": HI, "stream": True, "max_tokens": 20, "seed": 1}

    def stream(_: int) -> str:
        def served() -> Any:  # as clients of OpenAI do, again after 429: ten run at once
            reply = api.call("POST", CHAT, body)
            return None if reply.status == 429 else reply

        return written(events(wait(served, "a stream").body.decode()))

    with ThreadPoolExecutor(STREAMS) as pool:
        texts = set(pool.map(stream, range(STREAMS)))

    assert len(texts) == 1


def test_a_client_that_hangs_up_costs_no_more_than_its_limit(
    api: Api, tiny: str, stack: RunningStack
) -> None:
    body = {"model": tiny, "messages": HI, "stream": True, "max_tokens": 900, "ignore_eos": True}
    with open_stream(api, body) as response:
        assert response.readline().startswith(b"data: ")

    def all_idle() -> bool:
        return {each["state"] for each in stack.environments("GenerateFunction")} == {"idle"}

    wait(all_idle, "the environment to be idle again")
    assert api.call("POST", CHAT, {"model": tiny, "messages": HI, "max_tokens": 2}).status == 200


def test_curl_reads_a_stream(api: Api, tiny: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": tiny, "messages": HI, "stream": True, "max_tokens": 5})
    command = [
        curl,
        "-sN",
        "--noproxy",
        "*",
        api.url + CHAT,
        "-H",
        f"Authorization: Bearer {api.key}",
    ]
    command += ["-H", "Content-Type: application/json", "-d", body]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert output.startswith('data: {"id":"chatcmpl-')
    assert output.endswith("data: [DONE]\n\n")


def test_unmodified_clients_are_served(api: Api, tiny: str, vectors: str) -> None:
    if not PYTHON.exists():
        pytest.skip("no client of OpenAI here: make .venv-language/.done")
    script = Path("tests/e2e/language/openai_client.py")
    command = [PYTHON, script, f"{api.url}/v1", api.key, tiny, vectors]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    seen = json.loads(process.stdout)

    assert {tiny, vectors} <= set(seen["models"])
    assert seen["model"] == f"{tiny}:1"
    text, finish = seen["chat"]
    assert finish in ("stop", "length")
    assert {seen["streamed"], *seen["async"], seen["langchain"], seen["langchain_streamed"]} == {
        text
    }
    assert seen["usage"] == [True, seen["streamed_usage"]]
    assert set(seen["json"]) == {"yes"}
    assert seen["tool"][0] == seen["streamed_tool"][0] == "weather"
    assert seen["tool"][1]["city"] in ("Rome", "Paris")
    assert seen["langchain_usage"] == [seen["streamed_usage"]]
    assert seen["langchain_chosen"] in ("stop", "length", "tool_calls")
    [[name, arguments]] = seen["langchain_tool"]
    assert (name, arguments["city"] in ("Rome", "Paris")) == ("weather", True)
    assert [set(each) for each in seen["langchain_structured"]] == [{"yes"}, {"yes"}]
    assert seen["vectors"] == [2, True]
    assert (seen["short"], seen["langchain_vectors"]) == (8, 2)
    assert seen["errors"] == [
        ["BadRequestError", "context_length_exceeded", "messages"],
        ["NotFoundError", "model_not_found", "model"],
        ["BadRequestError", "invalid_value", "temperature"],
        ["AuthenticationError", "invalid_api_key", None],
    ]


def test_documents_are_ranked(api: Api, vectors: str) -> None:
    documents = ["a cat sat on the mat", "the capital of italy", "a cat sat on the mat"]
    body = {"model": vectors, "query": "a cat sat on the mat", "documents": documents, "top_n": 2}
    results = api.call("POST", "/v1/rerank", body).json["results"]

    assert [result["index"] for result in results] == [0, 2]
    assert results[0]["relevance_score"] == pytest.approx(1.0, abs=1e-5)


def test_a_reranker_gives_probabilities(api: Api, reranker: str) -> None:
    body = {"model": reranker, "query": "a cat", "documents": ["the cat", "italy"]}
    results = api.call("POST", "/v1/rerank", body).json["results"]

    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "x" * 1_000_000}]},
        {"messages": HI, "stop": "x" * 10_000},
        {
            "messages": HI,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"$ref": "#"}},
            },
        },
    ],
)
def test_hostile_requests_are_refused_and_the_environment_lives(
    api: Api, tiny: str, stack: RunningStack, fields: Any
) -> None:
    good = {"model": tiny, "messages": HI, "max_tokens": 2}
    assert api.call("POST", CHAT, good).status == 200
    before = {each["pid"] for each in stack.environments("GenerateFunction")}
    reply = api.call("POST", CHAT, {**good, **fields})

    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert api.call("POST", CHAT, good).status == 200
    assert {each["pid"] for each in stack.environments("GenerateFunction")} == before
