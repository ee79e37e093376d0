"""Triton's generate extension over the local stack: tritonclient and curl.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
tritonclient has no method for it; it reads the server's and the model's metadata.
"""

import json
import shutil
import subprocess
from typing import Any

import pytest
import tritonclient.http as triton

from tests.e2e.conftest import Api
from tests.e2e.language.test_openai_api import events

TEXT = {"text_input": "Hi", "parameters": {"max_tokens": 5, "temperature": 0, "stream": False}}


def curl(api: Api, path: str, body: Any) -> tuple[int, str, str]:
    """Send a request; return status, media type and body of the reply."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    command = [program, "-sN", "--noproxy", "*", "-X", "POST", api.url + path]
    command += ["-H", f"x-api-key: {api.key}", "-d", json.dumps(body)]  # no JSON's media type
    command += ["-w", "\n%{http_code} %{content_type}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text, _, end = output.rpartition("\n")
    status, _, media_type = end.partition(" ")
    return int(status), media_type, text


def test_tritonclient_sees_the_extension_and_the_model(api: Api, tiny: str) -> None:
    headers = {"x-api-key": api.key}
    with triton.InferenceServerClient(api.url.partition("://")[2]) as client:
        assert "generate" in client.get_server_metadata(headers)["extensions"]
        assert client.is_model_ready(tiny, headers=headers)
        metadata = client.get_model_metadata(tiny, headers=headers)
        assert metadata["versions"] == ["1"]
        assert "logits" in {output["name"] for output in metadata["outputs"]}
        assert client.get_model_config(tiny, headers=headers)["name"] == tiny


@pytest.mark.parametrize("version", ["", "/versions/1", "/versions/prod"])
def test_a_stream_has_the_text_of_the_whole_reply(api: Api, tiny: str, version: str) -> None:
    path = f"/v2/models/{tiny}{version}/generate"
    status, media_type, text = curl(api, path, TEXT)
    whole = json.loads(text)
    assert (status, media_type) == (200, "application/json")
    assert set(whole) == {"model_name", "model_version", "text_output"}
    assert (whole["model_name"], whole["model_version"]) == (tiny, "1")

    status, media_type, text = curl(api, f"{path}_stream", TEXT)
    assert (status, media_type) == (200, "text/event-stream; charset=utf-8")
    stream = events(text)
    assert "".join(event["text_output"] for event in stream) == whole["text_output"]
    assert [event["done"] for event in stream] == [False] * (len(stream) - 1) + [True]


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "body", "status", "error"),
    [
        ("none", TEXT, 404, "unknown model: 'none'"),
        ("", {}, 400, "text_input: missing"),
        ("", {"text_input": 5}, 400, "text_input: must be a string"),
        ("", {**TEXT, "parameters": {"max_tokens": 99_999}}, 400, "maximum context length"),
        ("", [], 400, "must be a JSON object"),
    ],
)
def test_a_refused_request_has_a_status_and_an_error(
    api: Api, tiny: str, path: str, model: str, body: Any, status: int, error: str
) -> None:
    seen, media_type, text = curl(api, f"/v2/models/{model or tiny}/{path}", body)

    assert (seen, media_type) == (status, "application/json")
    assert error in json.loads(text)["error"]


def test_vectors_and_other_models_write_no_text(api: Api, vectors: str, scaled: str) -> None:
    for model, error in ((vectors, "is an encoder"), (scaled, "is no language model")):
        status, _, text = curl(api, f"/v2/models/{model}/generate", TEXT)
        assert status == 400
        assert error in json.loads(text)["error"]


def test_neighbours_of_generate_answer_as_before(api: Api, tiny: str) -> None:
    for version in ("", "/versions/1"):
        assert api.get(f"/v2/models/{tiny}{version}").json["name"] == tiny
    assert tiny in api.get("/v2/models").json["models"]
    assert api.call("POST", "/v2/models").status == 405
