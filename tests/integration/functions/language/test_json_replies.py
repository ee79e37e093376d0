"""Replies in JSON of a decoder with random weights: valid by a hundred schemas."""

import json
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from functions.adapters.language.model import LanguageModel
from functions.core.language.ports import Options, TextModel
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.registry.load_plan import Plan
from tests.integration.functions.language.test_grammar import schemas
from tests.language_models import CONTEXT, EOS, HEAD_SIZE, KV_HEADS, LAYERS, decoder_files

TOKENS = 200  # of a reply at most
SPEC = LanguageSpec(
    Kind.DECODER,
    300,
    CONTEXT,
    eos=(EOS,),
    layers=LAYERS,
    kv_heads=KV_HEADS,
    head_size=HEAD_SIZE,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder: Path = tmp_path_factory.mktemp("decoder")
    for name, data in decoder_files().items():
        (folder / name).write_bytes(data)
    paths = {path.name: path for path in folder.iterdir()}
    return LanguageModel.load(paths, SPEC, Plan(), 1, 64 << 20)


def test_every_reply_that_ends_is_valid_by_its_schema(model: TextModel) -> None:
    ended = 0
    prompt = model.tokenizer.encode("Answer in JSON: ")
    for seed, schema in enumerate(schemas()):
        options = Options(TOKENS, seed=seed)
        grammar = model.json_grammar(schema)
        pieces = list(
            model.generate(prompt, options, deadline=time.monotonic() + 600, grammar=grammar)
        )
        if pieces[-1].finish == "stop":
            reply = json.loads("".join(piece.text for piece in pieces))
            Draft202012Validator(schema).validate(reply)
            ended += 1

    assert ended > 80
