"""Language packages over the local stack: READY with facts, or refused with a code."""

import json
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import pytest

from tests.e2e.conftest import Api
from tests.language_models import decoder_files, encoder_files, package


def register(api: Api, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Upload a package; return the card of its version when it is registered."""
    model = f"package-{time.time_ns():x}"
    api.upload(f"models/{model}/model.tar.gz", package(files))
    path = f"/api/v1/models/{urllib.parse.quote(model)}/versions/1"
    for _ in range(600):
        reply = api.get(path)
        if reply.status == 200 and reply.json["state"] != "PENDING":
            return dict(reply.json)
        time.sleep(0.2)
    raise AssertionError("it is not registered after two minutes")


def test_a_decoder_shows_what_it_can_do(api: Api) -> None:
    card = register(api, decoder_files())

    assert card["state"] == "READY", card["reason"]
    language = card["language"]
    assert (language["kind"], language["chat"], language["context"]) == ("decoder", True, 1024)
    assert min(language["prefill_rate"], language["decode_rate"]) > 0
    assert {"tokenizer.json", "chat_template.jinja"} <= {file["name"] for file in card["assets"]}
    assert card["measured"]["memory_mb_context_1024"] > 0
    properties = api.get(f"/v2/models/{card['model']}").json["properties"]
    assert (properties["language.kind"], properties["language.chat"]) == ("decoder", "true")


@pytest.mark.parametrize("scores", [False, True])
def test_an_encoder_shows_its_vectors(api: Api, scores: bool) -> None:
    card = register(api, encoder_files(scores=scores))

    assert card["state"] == "READY", card["reason"]
    language = card["language"]
    assert (language["kind"], language["reranker"]) == ("encoder", scores)
    assert language["dimensions"] == (1 if scores else 32)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("tokenizer.json", b"[]", "TOKENIZER_INVALID"),
        ("tokenizer.json", b" " * 200 * 1024 * 1024, "TOKENIZER_TOO_LARGE"),
        ("chat_template.jinja", b"{{ 'x' * 1000000000 }}", "TEMPLATE_LIMIT"),
        ("chat_template.jinja", b"x" * 10 * 1024 * 1024, "TEMPLATE_TOO_LARGE"),
        ("generation_config.json", json.dumps({"eos_token_id": 10**6}).encode(),
         "VOCABULARY_MISMATCH"),
    ],
)  # fmt: skip
def test_a_hostile_package_is_rejected_and_the_stack_lives(
    api: Api, name: str, content: bytes, code: str
) -> None:
    card = register(api, {**decoder_files(), name: content})

    assert (card["state"], card["reason"]["code"]) == ("REJECTED", code)
    assert register(api, encoder_files())["state"] == "READY"
