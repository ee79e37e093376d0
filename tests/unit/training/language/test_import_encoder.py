"""Encoders from safetensors become packages whose vectors equal torch's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("safetensors", reason="needs the group import: make .venv/.demo installs it")

from safetensors.numpy import load_file, save_file

from tests import language_models
from training.__main__ import main
from training.export.graphs import open_session
from training.language import proof
from training.language.graph.encoder import encoder_graph
from training.language.sources import hf_folder

pytestmark = pytest.mark.train
TOKENIZER = json.loads(language_models.encoder_tokenizer())
VOCABULARY, WIDTH, HEADS, INNER, LAYERS = len(TOKENIZER["model"]["vocab"]), 32, 4, 64, 2
TEXT = [7, 3, 20, 11, 5]
# BERT's part of a name → DistilBERT's
DISTILBERT = {
    "encoder.layer": "transformer.layer", "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin", "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin", "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1", "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}  # fmt: skip


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return config.json of a tiny encoder."""
    return {
        "model_type": model_type, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
        "max_position_embeddings": 66, "type_vocab_size": 2, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "pad_token_id": 1, **changes,
    }  # fmt: skip


def weights(settings: dict[str, Any], classifier: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """Return random weights of a tiny encoder by BERT's names."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    made = {
        "embeddings.word_embeddings.weight": normal(VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": normal(66, WIDTH),
    }
    if settings["model_type"] != "distilbert":
        types = settings["type_vocab_size"]
        made["embeddings.token_type_embeddings.weight"] = normal(types, WIDTH)
    linears = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
    linears |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (INNER, WIDTH)}
    linears["output.dense"] = (WIDTH, INNER)
    every = {
        f"encoder.layer.{layer}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in linears.items()
    }
    if classifier[0]:
        every |= {classifier[0]: (WIDTH, WIDTH), classifier[1]: (1, WIDTH)}
    for name, shape in every.items():
        made |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    norms = [
        f"encoder.layer.{layer}.{part}LayerNorm"
        for layer in range(LAYERS)
        for part in ("attention.output.", "output.")
    ]
    for name in ("embeddings.LayerNorm", *norms):
        made |= {f"{name}.weight": normal(WIDTH) + 1, f"{name}.bias": normal(WIDTH)}
    return made


def write(path: Path, settings: dict[str, Any], tensors: dict[str, Any], prefix: str = "") -> Path:
    """Write a folder as `save_pretrained` does; layers' names may have a prefix."""
    path.mkdir()
    named = {}
    for name, values in tensors.items():
        own = name if name.startswith("classifier") else prefix + name
        if settings["model_type"] == "distilbert":
            for part, other in DISTILBERT.items():
                own = own.replace(part, other, 1)
        named[own] = values
    save_file(named, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(settings))
    padded = {**TOKENIZER, "padding": {"strategy": {"Fixed": 8}}}
    (path / "tokenizer.json").write_text(json.dumps(padded))
    return path


def add_pooling(folder: Path, mode: str, *, normalise: bool = True, **files: Any) -> None:
    """Add sentence-transformers' files."""
    stem = "sentence_transformers.models"
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    modules = [{"path": f"{at}_{kind}", "type": f"{stem}.{kind}"} for at, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))


def torch_states(tensors: dict[str, Any], first: int = 0) -> Any:
    """Return the last hidden states of TEXT by torch's own encoder layers."""
    w = {name: torch.from_numpy(values) for name, values in tensors.items()}
    x = w["embeddings.word_embeddings.weight"][TEXT]
    x = x + w["embeddings.position_embeddings.weight"][first : first + len(TEXT)]
    if "embeddings.token_type_embeddings.weight" in w:
        x = x + w["embeddings.token_type_embeddings.weight"][0]

    def norm(name: str, x: Any) -> Any:
        names = (w[f"{name}.weight"], w[f"{name}.bias"])
        return torch.nn.functional.layer_norm(x, (WIDTH,), *names, 1e-12)

    x = norm("embeddings.LayerNorm", x)[None]
    for at in range(LAYERS):
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, INNER, 0.0, "gelu", 1e-12, batch_first=True
        ).eval()
        stem = f"encoder.layer.{at}"
        parts = [f"{stem}.attention.self.{part}" for part in ("query", "key", "value")]
        state = {
            f"self_attn.in_proj_{kind}": torch.cat([w[f"{part}.{kind}"] for part in parts])
            for kind in ("weight", "bias")
        }
        own = {
            "self_attn.out_proj": "attention.output.dense", "linear1": "intermediate.dense",
            "linear2": "output.dense", "norm1": "attention.output.LayerNorm",
            "norm2": "output.LayerNorm",
        }  # fmt: skip
        for name, other in own.items():
            for kind in ("weight", "bias"):
                state[f"{name}.{kind}"] = w[f"{stem}.{other}.{kind}"]
        layer.load_state_dict(state)
        with torch.no_grad():
            x = layer(x)
    return x[0]


def answer(folder: Path) -> Any:
    """Import a folder; return the graph's answer to TEXT beside a longer text."""
    checkpoint = hf_folder.read(folder, 8192)
    session = open_session(encoder_graph(checkpoint.sizes, checkpoint.weights))  # type: ignore[arg-type]
    rows = [np.array(TEXT), np.array([*TEXT, 9, 9, 9])]
    return session.run(None, proof._batch(session, rows))[0][0]


def unit(vector: Any) -> Any:
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize(
    ("model_type", "prefix", "first"),
    [("bert", "", 0), ("bert", "bert.", 0), ("distilbert", "distilbert.", 0), ("roberta", "", 2)],
)
def test_mean_of_every_family_equals_torch(
    model_type: str, prefix: str, first: int, tmp_path: Path
) -> None:
    settings = config(model_type, type_vocab_size=1 if model_type == "roberta" else 2)
    tensors = weights(settings)
    folder = write(tmp_path / "model", settings, tensors, prefix)

    expected = unit(torch_states(tensors, first).mean(0))

    np.testing.assert_allclose(answer(folder), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("roberta", ["lm_head.bias", "lm_head.dense.weight", "lm_head.layer_norm.bias"]),
        ("distilbert", ["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias"]),
        ("bert", ["cls.predictions.bias", "cls.predictions.transform.dense.weight"]),
    ],
)
def test_head_that_a_base_model_was_trained_with_is_left_out(
    model_type: str, head: list[str], tmp_path: Path
) -> None:
    settings = config(model_type, type_vocab_size=1 if model_type == "roberta" else 2)
    tensors = weights(settings)
    folder = write(tmp_path / "model", settings, tensors, f"{model_type}.")
    extra = {name: np.zeros(WIDTH, np.float32) for name in head}
    named = load_file(folder / "model.safetensors")
    save_file({**named, **extra}, folder / "model.safetensors")

    expected = unit(torch_states(tensors, 2 if model_type == "roberta" else 0).mean(0))
    np.testing.assert_allclose(answer(folder), expected, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_first_token_is_the_vector_where_the_folder_says_so(
    normalise: bool, tmp_path: Path
) -> None:
    settings = config("bert")
    tensors = weights(settings)
    folder = write(tmp_path / "model", settings, tensors)
    add_pooling(folder, "cls_token", normalise=normalise)

    first = torch_states(tensors)[0]

    expected = unit(first) if normalise else first.numpy()
    np.testing.assert_allclose(answer(folder), expected, atol=1e-5)
    assert hf_folder.read(folder, 8192).sizes.context == 40


def test_pooling_as_newer_sentence_transformers_write_it(tmp_path: Path) -> None:
    settings = config("bert")
    tensors = weights(settings)
    folder = write(tmp_path / "model", settings, tensors)
    stem = "sentence_transformers"
    modules = [
        {"path": "", "type": f"{stem}.base.modules.transformer.Transformer"},
        {"path": "1_Pooling", "type": f"{stem}.sentence_transformer.modules.pooling.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"embedding_dimension": WIDTH, "pooling_mode": "cls", "include_prompt": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))

    np.testing.assert_allclose(answer(folder), torch_states(tensors)[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "prefix", "layers"),
    [
        ("bert", "bert.", ("pooler.dense", "classifier")),
        ("roberta", "roberta.", ("classifier.dense", "classifier.out_proj")),
    ],
)
def test_reranker_gives_one_score(
    model_type: str, prefix: str, layers: tuple[str, str], tmp_path: Path
) -> None:
    names = {"architectures": ["XForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    settings = config(model_type, **names, type_vocab_size=2)
    tensors = weights(settings, layers)
    folder = write(tmp_path / "model", settings, tensors, prefix)

    x = torch_states(tensors, 2 if model_type == "roberta" else 0)[0]
    for name, activation in zip(layers, (torch.tanh, lambda y: y), strict=True):
        weight, bias = (torch.from_numpy(tensors[f"{name}.{kind}"]) for kind in ("weight", "bias"))
        x = activation(weight @ x + bias)

    np.testing.assert_allclose(answer(folder), x.numpy(), atol=1e-5)


def test_import_proves_the_graph_and_frees_the_tokenizer_of_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tarfile

    settings = config("bert", type_vocab_size=2)
    folder = write(tmp_path / "model", settings, weights(settings))
    add_pooling(folder, "mean_tokens")

    assert main(["import-hf", str(folder), "--out", str(tmp_path / "model.tar.gz")]) == 0

    said = capsys.readouterr().out
    assert "graph: equals a plain forward pass at" in said
    assert "embeddings of 32 numbers" in said
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        tokenizer = json.load(archive.extractfile("tokenizer.json"))  # type: ignore[arg-type]
        written = json.load(archive.extractfile("config.json"))  # type: ignore[arg-type]
    assert (tokenizer["padding"], tokenizer["truncation"]) == (None, None)
    assert written["max_position_embeddings"] == 40


@pytest.mark.parametrize(
    ("changes", "mode", "reason"),
    [
        ({"hidden_act": "swish2"}, "mean_tokens", "hidden_act is 'swish2'"),
        ({"position_embedding_type": "relative_key"}, "mean_tokens", "has to be absolute"),
        ({}, "max_tokens", "pooling pooling_mode_max_tokens cannot be imported"),
        (
            {"architectures": ["BertForSequenceClassification"], "num_labels": 3},
            "mean_tokens",
            "has 3 labels",
        ),
        ({"num_attention_heads": 5}, "mean_tokens", "no multiple of 5 heads"),
        ({"hidden_act": ["gelu"]}, "mean_tokens", "hidden_act is ['gelu']"),
        ({"layer_norm_eps": "x"}, "mean_tokens", "'layer_norm_eps' is 'x'"),
        ({"num_hidden_layers": 10**12}, "mean_tokens", "too few for 1000000000000 layers"),
        ({"num_hidden_layers": -1}, "mean_tokens", "-1 layers"),
    ],
)
def test_encoder_that_cannot_be_exported_is_refused(
    changes: dict[str, Any],
    mode: str,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = config("bert", **changes)
    folder = write(tmp_path / "model", settings, weights(settings))
    add_pooling(folder, mode)

    assert main(["import-hf", str(folder)]) == 1

    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("modules.json", "[", "modules.json is not readable"),
        ("modules.json", "[" * 100_000, "modules.json is not readable"),
        ("modules.json", "[5]", "modules.json holds no list of objects"),
        ("sentence_bert_config.json", '{"max_seq_length": "x"}', "'max_seq_length' is 'x'"),
        ("sentence_bert_config.json", '{"max_seq_length": -3}', "-3 tokens"),
        ("1_Pooling/config.json", '{"pooling_mode": {}}', "pooling {} cannot be imported"),
    ],
)
def test_broken_files_about_pooling_are_refused(
    name: str, content: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config("bert")
    folder = write(tmp_path / "model", settings, weights(settings))
    add_pooling(folder, "mean_tokens")
    (folder / name).write_text(content)

    assert main(["import-hf", str(folder)]) == 1

    assert reason in capsys.readouterr().err
