"""OpenAI's client for Node.js over the local stack, unmodified."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Api

NODE = Path(".venv-node/bin/node")
SCRIPT = Path("tests/e2e/language/node/openai_client.js")
LIMIT_S = 600


@pytest.fixture(scope="module")
def seen(api: Api, tiny: str, vectors: str) -> Any:
    """Results of the client's calls."""
    if not NODE.exists():
        pytest.skip("no client of OpenAI for Node.js here: make .venv-node/.done")
    environment = os.environ | {"NODE_PATH": ".venv-node/node_modules"}
    process = subprocess.run(
        [NODE, SCRIPT, f"{api.url}/v1", api.key or "none", tiny, vectors],
        env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


def test_models_are_listed_and_read(seen: Any, tiny: str, vectors: str) -> None:
    assert {tiny, vectors} <= set(seen["models"])
    assert seen["model"] == f"{tiny}:1"


def test_a_stream_has_the_text_of_the_whole_reply(seen: Any) -> None:
    *chunks, last = seen["chunks"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]

    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == seen["chat"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [seen["finish"]]
    assert {chunk["system_fingerprint"] for chunk in chunks} == {last["system_fingerprint"]}
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], seen["usage"]["total_tokens"])


def test_several_replies_have_log_probabilities(seen: Any) -> None:
    choices = seen["several"]["choices"]

    assert [choice["index"] for choice in choices] == [0, 1]
    assert choices[0]["message"]["content"] == seen["chat"]
    entries = [entry for choice in choices for entry in choice["logprobs"]["content"]]
    assert len(entries) == seen["several"]["usage"]["completion_tokens"]
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}


def test_json_and_calls_of_tools_follow_their_schemas(seen: Any) -> None:
    assert seen["json"] in ({"yes": True}, {"yes": False})
    [part] = seen["tool_parts"]
    assert (part["index"], part["type"], seen["tool_finish"]) == (0, "function", "tool_calls")
    assert part["id"].startswith("call_")
    for call in (part["function"], seen["tool"]):
        assert call["name"] == "weather"
        assert json.loads(call["arguments"])["city"] in ("Rome", "Paris")


def test_completions_of_two_prompts_are_numbered(seen: Any) -> None:
    texts = [choice["text"] for choice in seen["completion"]["choices"]]
    streamed = ["", ""]
    for chunk in seen["completion_chunks"]:
        [choice] = chunk["choices"]
        streamed[choice["index"]] += choice["text"]

    assert streamed == texts
    assert all(texts)


def test_vectors_are_equal_in_both_forms(seen: Any) -> None:
    for vector, floats in zip(seen["vectors"]["data"], seen["floats"]["data"], strict=True):
        assert vector["embedding"] == pytest.approx(floats["embedding"], abs=1e-6)
    assert [len(row["embedding"]) for row in seen["tokens"]["data"]] == [8, 8]
    assert seen["tokens"]["usage"]["total_tokens"] == 3


def test_errors_have_their_class_code_and_field(seen: Any, api: Api) -> None:
    if not api.key:  # a stack without keys
        del seen["errors"]["key"]
    expected = {
        "key": ["AuthenticationError", 401, "invalid_api_key", None],
        "model": ["NotFoundError", 404, "model_not_found", "model"],
        "value": ["BadRequestError", 400, "invalid_value", "temperature"],
        "unsupported": ["BadRequestError", 400, "unsupported_parameter", "reasoning_effort"],
        "context": ["BadRequestError", 400, "context_length_exceeded", "messages"],
        "streamed": ["BadRequestError", 400, "context_length_exceeded", "messages"],
    }
    assert seen["errors"] == {name: expected[name] for name in seen["errors"]}


def test_a_stream_that_the_client_ends_raises_nothing(seen: Any, api: Api) -> None:
    assert seen["abort"]["aborted"]
    assert seen["abort"]["events"] < 900
    assert seen["abort"]["last"] is None
    assert api.get("/v1/models").status == 200
