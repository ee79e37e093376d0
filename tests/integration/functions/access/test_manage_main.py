"""Manage function as Lambda starts it, with the table that template.yaml declares."""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data_plane import Client, Context

CREATE = json.loads(Path("events/invoke_create_key.json").read_text())
LIST = json.loads(Path("events/apigw_list_keys.json").read_text())


@pytest.fixture
def start(
    function_environment: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Any]]:
    """Return a function that imports functions.manage.main anew and returns its handler."""

    def begin(auth: str) -> Any:
        sys.modules.pop("functions.manage.main", None)
        for name, value in {**function_environment["ManageFunction"], "AUTH": auth}.items():
            monkeypatch.setenv(name, value)
        return importlib.import_module("functions.manage.main").lambda_handler

    yield begin
    sys.modules.pop("functions.manage.main", None)
    # Powertools' logger keeps the stream of its first test otherwise.
    logging.Logger.manager.loggerDict.pop("manage", None)


def with_key(event: dict[str, Any], key: str) -> dict[str, Any]:
    return {**event, "headers": {**event["headers"], "x-api-key": key}}


def test_a_key_is_created_by_invocation_and_used_over_http(
    start: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    handler = start("keys")
    created = handler(CREATE, Context())
    admin = handler({**CREATE, "scopes": ["admin"], "models": ["*"]}, Context())["key"]
    client = Client(handler)

    page = client.deliver(with_key(LIST, admin)).json
    assert created["id"] in {key["id"] for key in page["keys"]}
    refused = client.deliver(with_key(LIST, created["key"]))
    assert (refused.status, refused.json["code"]) == (403, "SCOPE_MISSING")
    rotated = client.post(
        f"/live/api/v1/keys/{created['id']}/rotate",
        {"overlap_seconds": 0},
        headers={"authorization": f"Bearer {admin}"},
    )
    assert rotated.status == 200
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["audit"]["action"] for line in lines if line["message"] == "audit"] == [
        *("create", "create", "rotate")
    ]
    assert {line["service"] for line in lines} == {"manage"}
    assert not [key for key in (admin, created["key"], rotated.json["key"]) if key in str(lines)]


def test_with_iam_no_key_is_needed(start: Callable[[str], Any]) -> None:
    assert Client(start("iam")).deliver(LIST).json == {"keys": [], "next_cursor": None}


def test_an_unknown_kind_of_authorisation_does_not_start(start: Callable[[str], Any]) -> None:
    with pytest.raises(LookupError, match="AUTH is 'key'; choose from keys, iam, none"):
        start("key")
