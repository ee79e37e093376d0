"""Benchmark of text generation: one round on tiny models, without onnxruntime-genai."""

from pathlib import Path
from typing import Any

from benchmarks.generate.__main__ import Measurement, arguments, table
from benchmarks.generate.packages import unpack_bytes
from functions.core.language.spec import Kind
from tests.language_models import (
    HEAD_SIZE,
    KV_HEADS,
    LAYERS,
    WIDTH,
    decoder_package,
    encoder_package,
)


def test_a_decoder_is_measured(tmp_path: Path) -> None:
    package = unpack_bytes("tiny", decoder_package(), tmp_path)
    chosen = arguments(["--rounds", "1", "--genai", str(tmp_path / "none")])

    entries: list[dict[str, Any]] = Measurement(package, chosen).decoder()

    labels = {entry["what"] for entry in entries}
    assert {"decode, CPU ms a token", "second turn over no prefix cache"} <= labels
    assert all(entry["median"] > 0 for entry in entries)
    assert "second turn" in table(entries)


def test_an_encoder_is_measured(tmp_path: Path) -> None:
    package = unpack_bytes("tiny", encoder_package(), tmp_path)

    [entry] = Measurement(package, arguments(["--rounds", "1"])).encoder()

    assert package.spec.kind is Kind.ENCODER
    assert entry["over_single"]["median"] > 0


def test_a_token_reads_all_weights_but_a_row_of_the_embeddings(tmp_path: Path) -> None:
    package = unpack_bytes("tiny", decoder_package(), tmp_path)

    assert package.weights_bytes - package.bytes_a_token == 4 * 300 * WIDTH
    assert package.spec.layers == LAYERS
    assert package.spec.cache_bytes_per_token == 2 * 4 * LAYERS * KV_HEADS * HEAD_SIZE
