"""Files of language models with wrong contents are refused in one sentence."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("gguf", reason="needs the group import: make .venv/.demo installs it")
pytest.importorskip("safetensors", reason="needs the group import: make .venv/.demo installs it")

from tests.unit.training.language import tiny_checkpoints as tiny
from training.__main__ import main
from training.errors import InvalidModelFile
from training.language import proof
from training.language.importing import read_source
from training.language.sources import gguf_tokenizer
from training.language.sources.gguf_file import Metadata

pytestmark = pytest.mark.train
LLAMA3 = {
    "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 1,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def refusal(kind: str, source: Path) -> str:
    with pytest.raises(InvalidModelFile) as refused:
        read_source(kind, source, 8192)
    return str(refused.value)


# --- folders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": True}, "'hidden_size' is True, and has to be a whole number"),
        ({"head_dim": "x"}, "'head_dim' is 'x', and has to be a whole number"),
        ({"head_dim": 1e999}, "'head_dim' is inf"),
        ({"rms_norm_eps": "x"}, "'rms_norm_eps' is 'x', and has to be a positive number"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
        ({"rope_theta": -1.0}, "'rope_theta' is -1.0, and has to be a positive number"),
        ({"rope_scaling": "linear"}, "the rope scaling is 'linear', and no object"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "'factor' of the rope scaling"),
        ({"rope_scaling": {"type": "linear", "factor": 1e999}}, "'factor' of the rope scaling"),
        ({"rope_scaling": LLAMA3}, "low_freq_factor is 1.0, and has to be below"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id is {'a': 1}, and has to be a token"),
        ({"num_hidden_layers": 10**12}, "has 20 tensors, too few for 1000000000000 layers"),
    ],
)
def test_decoders_with_wrong_settings_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    sizes = tiny.sizes()
    folder = tiny.write_folder(tmp_path / "model", sizes, tiny.decoder_weights(sizes), **change)

    assert message in refusal("hf", folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_documents_that_are_too_deep_are_refused(name: str, tmp_path: Path) -> None:
    sizes = tiny.sizes()
    folder = tiny.write_folder(tmp_path / "model", sizes, tiny.decoder_weights(sizes))
    (folder / name).write_text('{"a":' * 100_000)

    assert f"{name} is not readable" in refusal("hf", folder)


@pytest.mark.parametrize("added", [5, ["x"], [{"special": True}], [{"special": True, "id": "x"}]])
def test_broken_added_tokens_are_refused(
    added: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes()
    folder = tiny.write_folder(tmp_path / "model", sizes, tiny.decoder_weights(sizes))
    (folder / "tokenizer.json").write_text(json.dumps({**tiny.TOKENIZER, "added_tokens": added}))

    assert main(["import-hf", str(folder), "--out", str(tmp_path / "model.tar.gz")]) == 1
    assert "error: tokenizer.json cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_not_finite_are_refused(
    value: float, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny.sizes(tied=False)
    weights = tiny.decoder_weights(sizes)
    weights[name][-1, 0] = value
    folder = tiny.write_folder(tmp_path / "model", sizes, weights)

    assert main(["import-hf", str(folder), "--out", str(tmp_path / "model.tar.gz")]) == 1
    assert f"error: tensor {name} has values that are not finite" in capsys.readouterr().err


# --- GGUF files

PIECES = {
    "model": "llama", "tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab"],
    "token_type": [2, 3, 3, 1, 1, 1], "scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WORDS = {**PIECES, "model": "gpt2", "pre": "gpt-2", "merges": ["a b"], "token_type": [3] * 6}


def read_tokenizer(fields: dict[str, Any]) -> dict[str, str]:
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    metadata = Metadata({name: lambda value=value: value for name, value in named.items()})
    files = gguf_tokenizer.assets(metadata, 128)
    proof.tokenizer(files)
    return files


@pytest.mark.parametrize("name", ["bos", "eos", "eot", "unknown"])
@pytest.mark.parametrize("value", [6, -1, 2**40, "x", 1.5, [1]])
def test_special_tokens_beyond_the_vocabulary_are_refused(name: str, value: Any) -> None:
    for fields in (PIECES, WORDS):
        if fields is PIECES or name != "unknown":  # byte-level vocabularies have none
            with pytest.raises(InvalidModelFile, match=rf"{name}_token_id' is .* has 6 tokens"):
                read_tokenizer({**fields, f"{name}_token_id": value})


@pytest.mark.parametrize("value", [6, -1, 2**32 - 1, "x", [1]])
def test_padding_tokens_beyond_the_vocabulary_are_left_out(value: Any) -> None:
    files = read_tokenizer({**PIECES, "padding_token_id": value})

    assert "pad_token" not in json.loads(files["tokenizer_config.json"])


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [0.0] * 5 + [float("nan")]}, {"scores": [0.0] * 5 + [float("inf")]},
        {"scores": ["x"] * 6}, {"scores": [[]] * 6}, {"token_type": 7}, {"tokens": [1] * 6},
        {"tokens": [None] * 6}, {"tokens": [], "token_type": [], "scores": []},
        {"model": "gpt2", "pre": ["x"]},
        {"model": "gpt2", "pre": "gpt-2", "merges": [1]},
        {"model": "gpt2", "pre": "gpt-2", "merges": [None]},
    ],
)  # fmt: skip
def test_vocabularies_of_other_types_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidModelFile):
        read_tokenizer({**PIECES, **change})


def test_a_token_of_a_million_letters_has_its_merge() -> None:
    """Trying each place of such a token would take minutes."""
    half = "ab" * 250_000
    tokens = [*PIECES["tokens"], half, half + half]
    fields = {"tokens": tokens, "token_type": [2, 3, 3] + [1] * 5}

    files = read_tokenizer({**PIECES, **fields, "scores": [0.0, 0.0, 0.0, -1, -2, -3, -4, -5]})

    assert json.loads(files["tokenizer.json"])["model"]["merges"][1:] == [[half, half]]


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (text(b"a") + struct.pack("<IIQ", 9, 4, 2**40) + bytes(400), "it ends before all"),
        (struct.pack("<Q", 2**62) + b"abc", "it ends before all"),
        (text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, "recursion"),
        (
            text(b"general.architecture") + struct.pack("<I", 8) + text(b"\xff\xfe"),
            "'general.architecture' is not readable",
        ),
    ],
    ids=["long list", "long name", "lists of lists", "no UTF-8"],
)
def test_gguf_files_that_lie_are_refused(fields: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + fields)

    assert message in refusal("gguf", path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999999])
def test_cut_gguf_files_are_refused(share: float, tmp_path: Path) -> None:
    sizes = tiny.sizes()
    path = tiny.write_gguf(tmp_path / "model.gguf", sizes, tiny.decoder_weights(sizes))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    assert "it ends before all that it says that it has" in refusal("gguf", path)
