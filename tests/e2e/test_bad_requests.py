"""Callers' mistakes: status 400 or 404, with a sentence that says what to change."""

from typing import Any

import pytest

from local.client import RunningStack
from tests.e2e.conftest import Api

GOOD = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


def body(**change: Any) -> dict[str, Any]:
    return {"inputs": [{**GOOD, **change}]}


@pytest.mark.parametrize(
    ("request_body", "says"),
    [
        (body(name="z"), "'z'"),
        (body(datatype="FP64"), "FP32"),
        (body(datatype="INT64"), "FP32"),
        (body(datatype="FLOAT"), "FLOAT"),
        (body(shape=[1, 4], data=[1, 2, 3, 4]), "[-1, 3]"),
        (body(shape=[3]), "[-1, 3]"),
        (body(shape=[1, 1, 3]), "[-1, 3]"),
        (body(data=[1, 2]), "2"),
        (body(data=[1, 2, "3"]), "x"),
        (body(data=[1, 2, True]), "x"),
        (body(shape=[-1, 3]), "shape"),
        (body(shape="1,3"), "shape"),
        ({"inputs": []}, "x"),
        ({"inputs": [GOOD, GOOD]}, "x"),
        ({"inputs": [GOOD], "outputs": [{"name": "nope"}]}, "nope"),
        ({}, "missing input 'x'"),
        (b"{", "JSON"),
        (b"", "JSON"),
        (b"[1]", "object"),
    ],
    ids=str,
)
def test_a_wrong_request_is_400_and_says_what_to_change(
    api: Api, scaled: str, request_body: Any, says: str
) -> None:
    reply = api.call("POST", f"/v2/models/{scaled}/infer", request_body)

    assert reply.status == 400, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert says in reply.json["error"]
    assert len(reply.json["error"]) <= 300
    assert reply.headers["x-request-id"] == reply.json["request_id"]


@pytest.mark.parametrize("length", ["5", "-1", "x", "99999", "1" * 5000])
def test_a_wrong_binary_length_is_400(api: Api, scaled: str, length: str) -> None:
    reply = api.call(
        "POST",
        f"/v2/models/{scaled}/infer",
        b'{"inputs":[]}1234',
        {"Inference-Header-Content-Length": length},
    )

    assert reply.status == 400, reply.body
    assert reply.json["error"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v2/models/nobody/infer", "Request for unknown model: 'nobody'"),
        ("/v2/models/{model}/versions/99/infer", "99"),
        ("/v2/models/{model}/versions/staging/infer", "staging"),
        ("/v2/models/Bad%20Name/infer", "Request for unknown model"),
        ("/v2/nothing/here", "/v2/nothing/here"),
    ],
)
def test_an_unknown_model_version_or_path_is_404(
    api: Api, scaled: str, path: str, says: str
) -> None:
    reply = api.call("POST", path.format(model=scaled), body())

    assert reply.status == 404, reply.body
    assert says in reply.json["error"]


def test_a_path_outside_the_api_is_named_with_where_the_api_is(api: Api) -> None:
    reply = api.call("POST", "/nothing", body())

    assert reply.status == 403  # API Gateway cannot tell it from an unsigned request
    assert "/live/v2 and /live/api/v1" in reply.json["error"]
    assert "signed" not in reply.json["error"]  # this stack takes keys


def test_the_api_without_its_stage_says_where_the_stage_is(stack: RunningStack) -> None:
    """On AWS, API Gateway answers such a request by itself: Forbidden."""
    url = stack.api_url.removesuffix("/live")
    reply = Api(url, None, "", None).call("GET", "/v2/models")

    assert (reply.status, "/live/v2" in reply.json["error"]) == (403, True)


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.5", "Prod", "9" * 11])
def test_a_version_that_is_neither_number_nor_alias_is_refused(
    api: Api, scaled: str, version: str
) -> None:
    reply = api.call("POST", f"/v2/models/{scaled}/versions/{version}/infer", body())

    assert reply.status in (400, 404)
    assert "version" in reply.json["error"]


def test_a_wrong_method_is_405_with_the_allowed_ones(api: Api, scaled: str) -> None:
    reply = api.call("GET", f"/v2/models/{scaled}/infer")

    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert reply.json["error"]


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models/{model}", "/v2/nothing"])
def test_head_has_the_status_of_get_and_no_body(api: Api, scaled: str, path: str) -> None:
    get, head = (api.call(method, path.format(model=scaled)) for method in ("GET", "HEAD"))

    assert (head.status, head.body) == (get.status, b"")


def test_a_decompression_bomb_is_refused(api: Api, scaled: str) -> None:
    import gzip

    bomb = gzip.compress(b" " * 300_000_000)
    reply = api.call("POST", f"/v2/models/{scaled}/infer", bomb, {"Content-Encoding": "gzip"})

    assert reply.status == 413
    assert api.infer(scaled, [1, 2, 3]).status == 200
