"""Language models loaded from the files of their packages."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from functions.adapters.language.model import LanguageModel
from functions.core.errors import InvalidModel, InvalidRequest
from functions.core.language.ports import Options, TextModel
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.records import replace
from functions.core.registry.load_plan import Plan
from tests.language_models import (
    CONTEXT,
    ENCODER_CONTEXT,
    EOS,
    HEAD_SIZE,
    KV_HEADS,
    LAYERS,
    decoder_files,
    encoder_files,
    reference_greedy,
)

DECODER = LanguageSpec(
    kind=Kind.DECODER,
    vocabulary=300,
    context=CONTEXT,
    eos=(EOS,),
    layers=LAYERS,
    kv_heads=KV_HEADS,
    head_size=HEAD_SIZE,
)
ENCODER = LanguageSpec(kind=Kind.ENCODER, vocabulary=159, context=ENCODER_CONTEXT)
MANY = 64 * 1024 * 1024
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def save(folder: Path, files: Mapping[str, bytes]) -> dict[str, Path]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in files}


def soon() -> float:
    return time.monotonic() + 300


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return decoder_files()


@pytest.fixture
def model(tmp_path: Path, files: dict[str, bytes]) -> TextModel:
    return LanguageModel.load(save(tmp_path, files), DECODER, Plan(), 1, MANY)


def test_a_chat_is_answered(model: TextModel, files: dict[str, bytes]) -> None:
    assert model.template is not None
    prompt = model.tokenizer.encode(model.template.render(MESSAGES), special=False)
    options = Options(60, temperature=0, ignore_eos=True)

    pieces = list(model.generate(prompt, options, deadline=soon()))

    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens == reference_greedy(files["model.onnx"], prompt, 60)
    assert model.cached_tokens([*prompt, *tokens, 1]) == len(prompt) + 59
    assert model.spec.shared_cache is True


@pytest.mark.parametrize("seed", range(5))
def test_a_reply_in_json_follows_its_schema(model: TextModel, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 5}, "large": {"type": "boolean"}},
        "required": ["capital", "large"],
        "additionalProperties": False,
    }
    prompt = model.tokenizer.encode("The capital of France as JSON: ")

    pieces = list(
        model.generate(
            prompt, Options(300, seed=seed), deadline=soon(), grammar=model.json_grammar(schema)
        )
    )

    assert pieces[-1].finish == "stop"
    reply: Any = json.loads("".join(piece.text for piece in pieces))
    assert set(reply) == {"capital", "large"}


def test_the_template_gets_the_models_special_tokens(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    source = "{{ bos_token }}" + files["chat_template.jinja"].decode()
    given = {**files, "chat_template.jinja": source.encode()}
    spec = replace(DECODER, special_tokens={"bos_token": "<s>"})

    model = LanguageModel.load(save(tmp_path, given), spec, Plan(), 1, MANY)

    assert model.template is not None
    assert model.template.render(MESSAGES).startswith("<s><|im_start|>user\n")


def test_an_encoder_embeds_and_generates_nothing(tmp_path: Path) -> None:
    model: TextModel = LanguageModel.load(save(tmp_path, encoder_files()), ENCODER)
    texts = [model.tokenizer.encode(text) for text in ("the cat", "the dog that barked")]

    vectors = model.embed(texts, deadline=soon())

    assert [len(vector) for vector in vectors] == [32, 32]
    assert [sum(each * each for each in vector) for vector in vectors] == pytest.approx([1, 1])
    with pytest.raises(InvalidRequest, match="no text"):
        model.generate(texts[0], Options(1), deadline=soon())


def test_a_decoder_embeds_nothing(model: TextModel) -> None:
    with pytest.raises(InvalidRequest, match="generates text"):
        model.embed([[1]], deadline=soon())


def test_a_load_without_memory_for_a_thread_reads_the_tokenizer_itself(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread, stack_bytes: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("functions.adapters.language.model.start_thread", refuse)
    loaded = LanguageModel.load(save(tmp_path, files), DECODER, Plan(), 1, MANY)

    assert loaded.tokenizer.decode(loaded.tokenizer.encode("A cat")) == "A cat"


@pytest.mark.parametrize("data", [b"{", b'{"model": null}'])
def test_a_tokenizer_that_cannot_be_loaded_ends_the_load(
    tmp_path: Path, files: dict[str, bytes], data: bytes
) -> None:
    paths = save(tmp_path, {**files, "tokenizer.json": data})

    with pytest.raises(InvalidModel) as refusal:
        LanguageModel.load(paths, DECODER, Plan(), 1, MANY)
    assert refusal.value.instance_code == "TOKENIZER_INVALID"


def test_a_language_model_is_loaded_without_slow_modules() -> None:
    script = (
        "import sys; from functions.adapters.language.model import LanguageModel; "
        "print(*{'dataclasses', 'inspect', 'shutil', 'numpy', 'logging'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []
