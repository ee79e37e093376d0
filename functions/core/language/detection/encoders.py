"""Facts of encoders: output, pooling, dimensions, context."""

from collections.abc import Mapping

from functions.core.errors import InvalidModel, shown
from functions.core.language import assets
from functions.core.language.assets import Configs
from functions.core.language.detection.incomplete import incomplete
from functions.core.language.spec import Kind, LanguageSpec, Pooling
from functions.core.protocol.signature import Signature, TensorSpec

_TOKENS = {"input_ids", "tokens", "text"}
_FEEDS = {*_TOKENS, "attention_mask", "token_type_ids", "position_ids"}
_FLOATS = ("FP32", "FP16")
# Model types, beside all with "roberta" in their name, whose positions begin behind padding.
_OFFSET_POSITIONS = ("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "xmod")
# Pooling in sentence-transformers' 1_Pooling/config.json: fields that are true, and values of the
# field `pooling_mode`, which newer versions write.
_MODES = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_lasttoken": Pooling.LAST,
    "mean": Pooling.MEAN,
    "cls": Pooling.CLS,
    "lasttoken": Pooling.LAST,
}


def is_encoder(signature: Signature) -> bool:
    """Tell whether a model makes vectors or one score of token ids."""
    names = {spec.name for spec in signature.inputs}
    return len(names & _TOKENS) == 1 and names <= _FEEDS and _output(signature) is not None


def encoder(signature: Signature, configs: Configs, pooling: str | None) -> LanguageSpec:
    """Return the facts of an encoder; `pooling` is the manifest's choice.

    Raises:
        InvalidModel: `LANGUAGE_INCOMPLETE` or `BAD_CONFIG`.
    """
    output = _output(signature)
    if output is None:
        raise LookupError("is_encoder() tells that it has one")
    reranker = output.name == "logits"
    is_vector = len(output.shape) == 2
    if not is_vector:
        _check_modules(configs)
    size = output.shape[-1]
    if size < 1:
        size = configs.number(assets.CONFIG, "hidden_size", "d_model") or 0
    if size < 1:
        raise incomplete("the size of its vectors is unknown: add config.json with hidden_size")
    return LanguageSpec(
        kind=Kind.ENCODER,
        vocabulary=configs.number(assets.CONFIG, "vocab_size") or 0,
        context=_context(configs) or 0,
        pooling=Pooling.GRAPH if is_vector else _pooling(configs, pooling),
        normalised=not reranker and _normalised(configs),
        dimensions=size,
        reranker=reranker,
        output=output.name,
    )


def _output(signature: Signature) -> TensorSpec | None:
    """Return the output to use, the best first."""
    outputs = {
        spec.name: spec
        for spec in signature.outputs
        if spec.datatype in _FLOATS and len(spec.shape) in (2, 3)
    }
    scores = outputs.get("logits")
    if scores is not None and len(scores.shape) == 2 and scores.shape[-1] == 1:
        return scores
    ranks = {"sentence_embedding": 2, "token_embeddings": 3, "last_hidden_state": 3}
    for name, rank in {**ranks, "embedding": 2, "pooler_output": 2}.items():
        if name in outputs and len(outputs[name].shape) == rank:
            return outputs[name]
    return None


def _pooling(configs: Configs, stated: str | None) -> Pooling:
    if stated is not None:
        return Pooling(stated)
    modes = _pooling_modes(configs.documents.get(assets.POOLING, {}))
    if not modes:
        return Pooling.MEAN
    if len(modes) > 1 or modes[0] not in _MODES:
        raise InvalidModel(
            f"1_Pooling/config.json asks for {shown(', '.join(modes))}, and one of "
            f"{', '.join(_MODES)} is supported",
            code="BAD_CONFIG",
        )
    return _MODES[modes[0]]


def _pooling_modes(document: Mapping[str, object]) -> list[str]:
    stated = document.get("pooling_mode")
    if stated is not None:
        return [str(mode) for mode in (stated if isinstance(stated, list) else [stated])]
    return [name for name, on in document.items() if name.startswith("pooling_mode_") and on]


def _modules(configs: Configs) -> list[str]:
    """Return the modules of a sentence-transformers model, e.g. "Pooling"."""
    entries = configs.documents.get(assets.MODULES, {}).get("modules", [])
    types = [entry.get("type") for entry in entries if isinstance(entry, Mapping)]
    return [kind.rpartition(".")[2] for kind in types if isinstance(kind, str)]


def _check_modules(configs: Configs) -> None:
    """Refuse a model with a layer that the graph lacks."""
    if "Dense" in _modules(configs):
        raise incomplete(
            "the layer Dense of modules.json is missing: export the whole model, with the output "
            "`sentence_embedding`"
        )


def _normalised(configs: Configs) -> bool:
    modules = _modules(configs)
    return not modules or "Normalize" in modules


def _context(configs: Configs) -> int | None:
    limits = [
        _positions(configs),
        configs.number(assets.TOKENIZER_CONFIG, "model_max_length", most=10**8),
        configs.number(assets.SENTENCES, "max_seq_length"),
    ]
    return min((limit for limit in limits if limit), default=None)


def _positions(configs: Configs) -> int | None:
    """Return the most tokens that the table of positions has rows for.

    RoBERTa's count from the number behind the padding token's.
    """
    rows = configs.number(assets.CONFIG, "max_position_embeddings", "n_positions")
    kind = configs.text(assets.CONFIG, "model_type") or ""
    if rows is None or not ("roberta" in kind or kind in _OFFSET_POSITIONS):
        return rows
    padding = configs.number(assets.CONFIG, "pad_token_id")
    return max(1, rows - 1 - (1 if padding is None else padding))
