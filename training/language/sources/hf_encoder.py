"""Read BERT-family encoders: sizes, pooling, and weights by BERT's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InvalidModelFile
from training.language.checkpoint import Array, EncoderSizes, check_layers
from training.language.reference import ACTIVATIONS, classifier_names
from training.language.sources.safetensors_folder import (
    Tensors,
    check_tensors,
    integer,
    number,
    read_json,
)

ARCHITECTURES = ("bert", "distilbert", "roberta", "xlm-roberta")
# Tensors of other tasks than embedding and reranking, which are left out.
IGNORED = (
    "position_ids", "pooler.dense.weight", "pooler.dense.bias", "predictions.bias",
    "predictions.decoder.weight", "predictions.decoder.bias", "predictions.transform.dense.weight",
    "predictions.transform.dense.bias", "predictions.transform.LayerNorm.weight",
    "predictions.transform.LayerNorm.bias", "seq_relationship.weight", "seq_relationship.bias",
    "lm_head.bias", "lm_head.dense.weight", "lm_head.dense.bias", "lm_head.layer_norm.weight",
    "lm_head.layer_norm.bias", "lm_head.decoder.weight", "lm_head.decoder.bias",
    "vocab_transform.weight", "vocab_transform.bias", "vocab_layer_norm.weight",
    "vocab_layer_norm.bias", "vocab_projector.weight", "vocab_projector.bias",
)  # fmt: skip
WORDS, POSITIONS, TYPES = (
    f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")
)
_POOLINGS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "mean": "mean",
    "cls": "cls",
}  # fmt: skip
# BERT's part of a name → DistilBERT's; the first that fits.
_DISTILBERT = {
    "encoder.layer": "transformer.layer",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """Weights of a folder by BERT's names.

    With a single token type, its row is part of the positions' rows.
    """

    tensors: Tensors
    names: Mapping[str, str]  # BERT's name → the folder's
    single_type: str  # name of the row of the single token type, or ""

    def __call__(self, name: str) -> Array:
        values = self.tensors(self.names[name])
        if name == POSITIONS and self.single_type:
            values = values + self.tensors(self.single_type)
        return values


def read_encoder(
    folder: Path, config: Mapping[str, Any], tensors: Tensors, context: int
) -> tuple[EncoderSizes, EncoderWeights]:
    """Return sizes and weights of an encoder.

    Raises:
        InvalidModelFile: config.json is incomplete, does not fit the tensors, or asks for a pooling
            or a head that cannot be imported.
    """
    config = _with_berts_names(config)
    sizes = _sizes(folder, config, tensors, context)
    shapes = _shapes(config, sizes)
    names = _folder_names(config["model_type"], tensors, shapes)
    types = names.get(TYPES, "")
    expected = {names[name]: shape for name, shape in shapes.items()}
    check_tensors(tensors, expected, IGNORED)
    return sizes, EncoderWeights(tensors, names, "" if sizes.types else types)


def _with_berts_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give DistilBERT's settings the names that the others have."""
    own = {
        "num_hidden_layers": "n_layers", "hidden_size": "dim", "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim", "hidden_act": "activation",
    }  # fmt: skip
    renamed = {name: config[alias] for name, alias in own.items() if alias in config}
    return {**config, **renamed}


def _sizes(folder: Path, config: Mapping[str, Any], tensors: Tensors, context: int) -> EncoderSizes:
    first = 0
    if "roberta" in config["model_type"]:
        first = integer(config, "pad_token_id", 1) + 1
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        kinds = ", ".join(ACTIVATIONS)
        raise InvalidModelFile(f"hidden_act is {activation!r}; it can be {kinds}")
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise InvalidModelFile(f"position_embedding_type is {positions!r}, and has to be absolute")
    width, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    if heads < 1 or width % heads:
        raise InvalidModelFile(f"a hidden_size of {width} is no multiple of {heads} heads")
    pooling, normalised, longest = _pooling(folder, config)
    layers = integer(config, "num_hidden_layers")
    check_layers(layers, len(tensors.places))
    limits = (context, integer(config, "max_position_embeddings") - first, longest or context)
    if min(*limits, layers) < 1:
        raise InvalidModelFile(f"{layers} layers and {min(limits)} tokens: it takes one at least")
    return EncoderSizes(
        layers=layers,
        width=width,
        heads=heads,
        context=min(limits),
        epsilon=number(config, "layer_norm_eps", 1e-12),
        activation=activation,
        first_position=first,
        types=config["model_type"] != "distilbert" and integer(config, "type_vocab_size", 2) > 1,
        pooling=pooling,
        normalised=normalised,
        classifier="roberta" if "roberta" in config["model_type"] else "bert",
    )


def _pooling(folder: Path, config: Mapping[str, Any]) -> tuple[str, bool, int | None]:
    """Return pooling, normalisation and the longest text of an encoder.

    A reranker has one label. A folder of sentence-transformers says how it pools; others give the
    mean, normalised.
    """
    names = config.get("architectures") or []
    if "SequenceClassification" in str(names):
        named = config.get("id2label")
        own = len(named) if isinstance(named, dict) else 0
        labels = own or integer(config, "num_labels", 2)
        if labels != 1 or config["model_type"] == "distilbert":
            raise InvalidModelFile(
                f"the model has {labels} labels: only BERT and RoBERTa rerankers can be imported, "
                "which have one"
            )
        return "score", False, None
    if not (folder / "modules.json").is_file():
        return "mean", True, None
    modules = {
        str(module.get("type")).rpartition(".")[2]: str(module.get("path", ""))
        for module in _modules(folder / "modules.json")
    }
    unknown = set(modules) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise InvalidModelFile(f"modules.json: {min(unknown)} cannot be imported")
    longest = folder / "sentence_bert_config.json"
    sentences = read_json(longest) if longest.is_file() else {}
    length = sentences.get("max_seq_length") and integer(sentences, "max_seq_length")
    return _pooling_mode(folder / modules.get("Pooling", "")), "Normalize" in modules, length


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{path} is not readable: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InvalidModelFile(f"{path} holds no list of objects")
    return modules


def _pooling_mode(folder: Path) -> str:
    """Return how an encoder pools.

    It is the field that is true, or `pooling_mode`, which newer versions write.
    """
    config = read_json(folder / "config.json")
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    if "pooling_mode" in config:
        stated = config["pooling_mode"]
        modes = [str(mode) for mode in (stated if isinstance(stated, list) else [stated])]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        enabled = ", ".join(modes) or "none"
        raise InvalidModelFile(f"pooling {enabled} cannot be imported, only {', '.join(_POOLINGS)}")
    return _POOLINGS[modes[0]]


def _shapes(config: Mapping[str, Any], sizes: EncoderSizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by BERT's name."""
    width, inner = sizes.width, integer(config, "intermediate_size")
    linears = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
    linears["attention.output.dense"] = (width, width)
    linears |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    norms = ["embeddings.LayerNorm"]
    shapes: dict[str, tuple[int, ...]] = {
        WORDS: (integer(config, "vocab_size"), width),
        POSITIONS: (integer(config, "max_position_embeddings"), width),
    }
    if config["model_type"] != "distilbert":
        shapes[TYPES] = (integer(config, "type_vocab_size", 2), width)
    every = {
        f"encoder.layer.{layer}.{part}": shape
        for layer in range(sizes.layers)
        for part, shape in linears.items()
    }
    if sizes.pooling == "score":
        first, last = classifier_names(sizes)
        every |= {first: (width, width), last: (1, width)}
    for layer in range(sizes.layers):
        norms += [f"encoder.layer.{layer}.{part}output.LayerNorm" for part in ("attention.", "")]
    for name, shape in every.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def _folder_names(
    model_type: str, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Map BERT's name of each weight to the folder's.

    In a model with a head, the encoder's names have a prefix.
    """
    ends = [name for name in tensors.places if name.endswith(WORDS)]
    prefix = ends[0].removesuffix(WORDS) if ends else ""
    names = {}
    for name in shapes:
        own = name
        if model_type == "distilbert":
            for part, replacement in _DISTILBERT.items():
                own = own.replace(part, replacement, 1)
        names[name] = own if name.startswith("classifier") else prefix + own
    return names
