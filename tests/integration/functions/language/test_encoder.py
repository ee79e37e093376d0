"""Encoders give the vectors that a plain forward pass gives, in batches of any sizes."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from functions.adapters.language import encoder as encoders
from functions.adapters.language.encoder import Encoder
from functions.adapters.language.tokenizer import HfTokenizer, load_tokenizer
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.errors import InvalidModel, InvalidRequest, TimedOut
from functions.core.language.spec import Kind, LanguageSpec, Pooling
from functions.core.records import replace
from tests.language_models import (
    ENCODER_CONTEXT,
    ENCODER_WIDTH,
    decoder_model,
    encoder_model,
    encoder_tokenizer,
)

SEPARATOR = 3
SPEC = LanguageSpec(
    kind=Kind.ENCODER,
    vocabulary=159,
    context=ENCODER_CONTEXT,
    eos=(SEPARATOR,),
    dimensions=ENCODER_WIDTH,
)
RUNTIME = OnnxRuntime()
SENTENCES = [
    "the cat sat",
    "a",
    "the capital of france is paris " * 3,
    "and looked at the dog",
    "rome",
    "for i in range of ten",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(encoder_tokenizer())
    return load_tokenizer(path)


def load(folder: Path, data: bytes, spec: LanguageSpec) -> Encoder:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return Encoder(RUNTIME, RUNTIME.load(path), spec)


def forward(data: bytes, tokens: list[int], types: list[int] | None = None) -> Any:
    """Return an output of one text, computed without padding."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    ids = np.array([tokens])
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.array([types or [0] * len(tokens)]),
    }
    return session.run(None, feeds)[0][0]


def soon() -> float:
    return time.monotonic() + 300


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS, Pooling.LAST])
def test_vectors_are_those_of_each_text_alone(
    tmp_path: Path, tokenizer: HfTokenizer, pooling: Pooling, normalised: bool
) -> None:
    data = encoder_model()
    encoder = load(tmp_path, data, replace(SPEC, pooling=pooling, normalised=normalised))
    texts = [tokenizer.encode(text) for text in SENTENCES]

    vectors = encoder.embed(texts, deadline=soon())

    for text, vector in zip(texts, vectors, strict=True):
        hidden = forward(data, text)
        expected = {
            Pooling.MEAN: hidden.mean(0),
            Pooling.CLS: hidden[0],
            Pooling.LAST: hidden[-1],
        }[pooling]
        if normalised:
            expected = expected / np.linalg.norm(expected)
        assert np.allclose(vector, expected, atol=1e-5)


def test_a_graphs_own_vectors_are_taken(tmp_path: Path, tokenizer: HfTokenizer) -> None:
    model = onnx.load_from_string(encoder_model())
    node = onnx.helper.make_node(
        "ReduceMax", ["last_hidden_state", "axes"], ["sentence_embedding"], keepdims=0
    )
    model.graph.node.append(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    shape = ["batch", ENCODER_WIDTH]
    output = onnx.helper.make_tensor_value_info("sentence_embedding", 1, shape)
    model.graph.output.append(output)
    spec = replace(SPEC, pooling=Pooling.GRAPH, normalised=False)
    encoder = load(tmp_path, model.SerializeToString(), spec)
    text = tokenizer.encode(SENTENCES[0])

    [vector] = encoder.embed([text], deadline=soon())

    assert np.allclose(vector, forward(encoder_model(), text).max(0), atol=1e-5)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_reranker_scores_pairs(tmp_path: Path, tokenizer: HfTokenizer, labels: int) -> None:
    data = encoder_model(scores=True)
    if labels == 2:
        model = onnx.load_from_string(data)
        model.graph.node[-1].output[0] = "score"
        zero = onnx.helper.make_node("Sub", ["score", "score"], ["zero"])
        both = onnx.helper.make_node("Concat", ["zero", "score"], ["logits"], axis=1)
        model.graph.node.extend([zero, both])
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
        data = model.SerializeToString()
    encoder = load(tmp_path, data, replace(SPEC, reranker=True))
    pairs = [tokenizer.encode_pair("the cat", text) for text in SENTENCES]

    scores = encoder.embed(pairs, deadline=soon())

    for pair, score in zip(pairs, scores, strict=True):
        first = pair.index(SEPARATOR) + 1
        types = [0] * first + [1] * (len(pair) - first)
        assert score == pytest.approx(forward(data, pair, types)[-1:], abs=1e-5)


def test_a_batch_that_takes_too_much_memory_is_halved(
    tmp_path: Path, tokenizer: HfTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(tmp_path, encoder_model(), SPEC)
    texts = [tokenizer.encode("the cat")] * 7
    whole = encoder.embed(texts, deadline=soon())
    sizes: list[int] = []
    run = encoder._run

    def short_run(texts: Any, timeout_s: float) -> Any:
        sizes.append(len(texts))
        if len(texts) > 2:
            raise MemoryError
        return run(texts, timeout_s)

    monkeypatch.setattr(encoder, "_run", short_run)

    assert np.allclose(encoder.embed(texts, deadline=soon()), whole, atol=1e-6)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


def test_the_deadline_is_looked_at_between_batches(
    tmp_path: Path, tokenizer: HfTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "BATCH_TOKENS", 1)
    path = tmp_path / "model.onnx"
    path.write_bytes(encoder_model())
    times = iter(range(10))
    encoder = Encoder(RUNTIME, RUNTIME.load(path), SPEC, clock=lambda: float(next(times)))
    texts = [tokenizer.encode("a")] * 9

    with pytest.raises(TimedOut, match="send fewer at once"):
        encoder.embed(texts, deadline=3.0)
    assert next(times) == 4


def test_texts_that_do_not_fit_are_refused_by_their_place(tmp_path: Path) -> None:
    encoder = load(tmp_path, encoder_model(), SPEC)

    for texts, message in (
        ([[2], [5] * 129], "text 1 has 129 tokens, and .* context length is 128 tokens"),
        ([[2], []], "text 1 has no tokens"),
        ([[2, 159]], "token 159 is not in .* vocabulary of 159"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            encoder.embed(texts, deadline=soon())


def test_no_texts_have_no_vectors(tmp_path: Path) -> None:
    assert load(tmp_path, encoder_model(), SPEC).embed([], deadline=soon()) == []


def test_a_decoder_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="past_key_values"):
        load(tmp_path, decoder_model(), SPEC)
