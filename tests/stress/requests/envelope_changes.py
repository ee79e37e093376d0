"""Changes to a request's method, path, headers and Lambda event."""

import json
from random import Random
from typing import Any

from functions.core.protocol.infer_request import HEADER
from tests.stress.requests.drafts import LENGTHS, ODD, WORDS, Draft

METHODS = (
    "GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "", "A B", "M" * 900,
)  # fmt: skip
VERSIONS = (
    "0", "1", "-1", "01", "9" * 30, "prod", "latest", "nosuch", "..", "%2e%2e", "ü", "a" * 999,
)  # fmt: skip
TAILS = (
    "", "/", "/ready", "/config", "/stats", "/infer", "/generate", "/generate_stream",
    "/trace/setting", "/nosuch", "//infer", "/infer/..", "/infer%00", "/infer?a=b",
)  # fmt: skip
ROOTS = (
    "/v2", "/v2/", "/v2/models", "/v2/models/stats", "/v2/health/live", "/v2/health/ready", "/",
    "", "/v1/models/scale", "/v3", "/v2/repository", "/v2/systemsharedmemory/status", "/live/v2",
    "/v2/logging", "/v2/models//infer", "/v2/models/%2e%2e/infer", "/v2/v2/v2", "/" * 3000,
)  # fmt: skip


def headers(rng: Random, draft: Draft) -> None:
    names = {
        HEADER: LENGTHS,
        "Content-Type": ("text/plain", "", "application/json; charset=utf-16", "\0"),
        "Accept-Encoding": ("gzip", "deflate;q=0.1", "*;q=x", "gzip;q=0", ";" * 5000, "br"),
        "X-Model-Version": VERSIONS,
        "x-request-id": ("a\r\nb: c", "x" * 9999),
        "X" * 9000: ("1",),
        "content-length": ("-1", "99999999999"),
        "Expect": ("100-continue",),
    }
    for name in rng.sample(sorted(names), rng.choice((1, 2, 3))):
        draft.headers[name] = rng.choice(names[name])


def paths(rng: Random, draft: Draft) -> None:
    name = rng.choice((draft.model, draft.model, draft.model.upper(), "nosuch", "stats", *WORDS))
    version = f"/versions/{rng.choice(VERSIONS)}" if rng.random() < 0.5 else ""
    path = f"/v2/models/{name}{version}{rng.choice(TAILS)}"
    draft.path = rng.choice((path, path, path, rng.choice(ROOTS)))
    if rng.random() < 0.2:
        draft.path = "".join(f"%{ord(c):02x}" if c.isascii() else c for c in draft.path)
    draft.method = rng.choice(("GET", "POST", "HEAD"))
    if rng.random() < 0.3:
        draft.query = {rng.choice(("version", "", "\0")): rng.choice(VERSIONS)}


def methods(rng: Random, draft: Draft) -> None:
    draft.method = rng.choice(METHODS)


def repository(rng: Random, draft: Draft) -> None:
    """Call the model repository API with odd bodies."""
    name = rng.choice(("switched", "switched", "nosuch", "..", "A" * 999, "%00"))
    action = rng.choice(("load", "unload"))
    draft.method = "POST"
    draft.path = rng.choice(
        ("/v2/repository/index", *[f"/v2/repository/models/{name}/{action}"] * 3)
    )
    bodies: tuple[Any, ...] = (
        {}, {"ready": True}, {"ready": rng.choice(ODD)}, {"parameters": rng.choice(ODD)},
        {"parameters": {"unload_dependents": rng.choice(ODD)}}, {"parameters": {"config": "{}"}},
        {"parameters": {"file:1/model.onnx": "AAAA"}}, {"a" * 5000: 1}, draft.document, [],
    )  # fmt: skip
    draft.document = rng.choice(bodies)
    draft.binary.clear()


def events(rng: Random, draft: Draft) -> None:
    """Change the Lambda event's form: no body, no headers, text."""
    draft.event = rng.choice(
        (
            {"body": None}, {"headers": None}, {"body": "", "isBase64Encoded": False},
            {"body": "not base64!"}, {"body": "AA=A"}, {"headers": {}},
            {"body": "\ud800", "isBase64Encoded": False},
            {"body": json.dumps(draft.document), "isBase64Encoded": False},
            {"rawPath": f"/live/v2/models/{draft.model}/infer", "version": "2.0"},
            {"queryStringParameters": {"version": ""}},
        )
    )  # fmt: skip
