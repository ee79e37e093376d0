"""Models of the recipes gpt and embedder get a tokenizer whose tokens are bytes."""

import json
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from tokenizers import Tokenizer

from tests import language_models
from training.__main__ import main
from training.language.byte_models import byte_tokenizer


@pytest.mark.parametrize("text", ["", "The for statement", "Grüße, 東京 🙂\n\t\0", "a  b"])
def test_tokens_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(byte_tokenizer()))

    tokens = tokenizer.encode(text).ids

    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text


def test_every_byte_is_a_token() -> None:
    tokenizer = Tokenizer.from_str(json.dumps(byte_tokenizer()))

    assert tokenizer.get_vocab_size() == 256


def test_package_holds_the_model_and_its_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = language_models.decoder_model(attention="plain", layout="stacked", vocabulary=256)
    (tmp_path / "model.onnx").write_bytes(model)
    out = tmp_path / "model.tar.gz"

    assert main(["import-bytes", str(tmp_path / "model.onnx"), "--out", str(out)]) == 0

    assert "its tokens are bytes" in capsys.readouterr().out
    with tarfile.open(out) as archive:
        assert sorted(archive.getnames()) == [
            "config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
        ]  # fmt: skip
        config = json.load(archive.extractfile("config.json"))  # type: ignore[arg-type]
    assert config == {"vocab_size": 256, "max_position_embeddings": 128}


def test_other_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(language_models.decoder_model())

    assert main(["import-bytes", str(tmp_path / "model.onnx")]) == 1
    assert "a model of bytes takes `tokens` and `past`" in capsys.readouterr().err
    (tmp_path / "model.onnx").write_bytes(b"\x08")
    assert main(["import-bytes", str(tmp_path / "model.onnx")]) == 1
    assert "no readable ONNX file" in capsys.readouterr().err
