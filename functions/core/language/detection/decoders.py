"""Facts of decoders: layout and sizes of the key-value cache, vocabulary, context."""

import math
import re
from collections.abc import Mapping, Sequence

from functions.core.errors import shown
from functions.core.language import assets
from functions.core.language.assets import Configs
from functions.core.language.detection.incomplete import incomplete
from functions.core.language.spec import Kind, LanguageSpec, Layout
from functions.core.protocol.signature import Signature, TensorSpec

_PAST = re.compile(r"past_key_values\.([0-9]{1,4})\.(key|value)")
_TOKENS = {"input_ids", "tokens"}
_FEEDS = {
    *_TOKENS,
    "attention_mask",
    "position_ids",
    "use_cache_branch",  # optimum's merged decoders
    "num_logits_to_keep",
    "logits_to_keep",
}
_ROPE = ("rope_scaling", "rope_parameters")
_FLOATS = ("FP32", "FP16", "BF16")
PHI_CONTEXT = 4096  # tokens; of Phi-3 and Phi-4, whose genai_config.json does not tell it
_EXPORT = "export it with optimum's --task text-generation-with-past"
# Sampling defaults that generation_config.json and genai_config.json may state, with their bounds.
_DEFAULTS = {"temperature": 2.0, "top_p": 1.0, "top_k": 1e6, "min_p": 1.0}


def is_decoder(signature: Signature, architecture: str, vocabulary: int) -> bool:
    """Tell whether a model with a tokenizer was meant to generate text.

    Logits of all tokens at each place are a decoder's, unless config.json names another task.
    """
    if any(spec.name.startswith("past") for spec in signature.inputs):
        return True
    if any(spec.name.startswith("present") for spec in signature.outputs):
        return True
    if architecture and not re.search("CausalLM|LMHead", architecture):
        return False
    return any(
        spec.name == "logits" and len(spec.shape) == 3 and spec.shape[-1] >= vocabulary > 1
        for spec in signature.outputs
    )


def decoder(signature: Signature, configs: Configs) -> LanguageSpec:
    """Return the facts of a decoder.

    Raises:
        InvalidModel: `LANGUAGE_INCOMPLETE`, with the missing piece.
    """
    outputs = {spec.name: spec for spec in signature.outputs}
    logits = outputs.get("logits")
    if logits is None or len(logits.shape) not in (2, 3) or logits.datatype not in _FLOATS:
        raise incomplete("the output `logits` (batch, tokens, vocabulary) is missing")
    pasts = [spec for spec in signature.inputs if spec.name.startswith("past")]
    if not pasts:
        raise incomplete(f"the key-value cache past_key_values.N.key/value is missing: {_EXPORT}")
    layout = Layout.STACKED if [spec.name for spec in pasts] == ["past"] else Layout.NAMED
    _check_feeds(signature.inputs, pasts)
    read = _stacked if layout is Layout.STACKED else _named
    layers, kv_heads, head_size = read(pasts, outputs, configs)
    width = logits.shape[-1]
    return LanguageSpec(
        kind=Kind.DECODER,
        vocabulary=width if width > 0 else _config(configs, "vocab_size") or 0,
        context=_context(configs) or 0,
        layout=layout,
        layers=layers,
        kv_heads=kv_heads,
        head_size=head_size,
        cache_datatype=pasts[0].datatype,
        defaults=_defaults(configs),
    )


def _check_feeds(inputs: Sequence[TensorSpec], pasts: Sequence[TensorSpec]) -> None:
    """Check that the loop knows a value for each input."""
    names = {spec.name for spec in inputs} - {spec.name for spec in pasts}
    if not names & _TOKENS:
        raise incomplete("the input `input_ids` (batch, tokens) is missing")
    unknown = sorted(names - _FEEDS)
    if unknown:
        feeds = ", ".join(sorted(_FEEDS))
        raise incomplete(f"the input {shown(unknown[0])} has no known value (known are {feeds})")


def _named(
    pasts: Sequence[TensorSpec], outputs: Mapping[str, TensorSpec], configs: Configs
) -> tuple[int, int, int]:
    """Return layers, heads and head size of a NAMED cache."""
    places = set()
    for spec in pasts:
        match = _PAST.fullmatch(spec.name)
        if match is None:
            raise incomplete(f"the input {shown(spec.name)} is none of past_key_values.N.key/value")
        places.add((int(match[1]), match[2]))
        present = f"present.{match[1]}.{match[2]}"
        if present not in outputs:
            raise incomplete(f"the output `{present}` is missing: {_EXPORT}")
        _check_tensor(spec, outputs[present], 4)
    layers = len(places) // 2
    whole = {(layer, kind) for layer in range(layers) for kind in ("key", "value")}
    if places != whole:
        layer, kind = min(places ^ whole)
        raise incomplete(f"the input `past_key_values.{layer}.{kind}` is missing")
    first = pasts[0]
    if any((spec.shape[1], spec.shape[3]) != (first.shape[1], first.shape[3]) for spec in pasts):
        raise incomplete("its layers have caches of different sizes, which are not supported")
    return layers, *_sizes(first.shape[1], first.shape[3], configs)


def _stacked(
    pasts: Sequence[TensorSpec], outputs: Mapping[str, TensorSpec], configs: Configs
) -> tuple[int, int, int]:
    """Return layers, heads and head size of a STACKED cache."""
    [past] = pasts
    if "present" not in outputs:
        raise incomplete(f"the output `present` is missing: {_EXPORT}")
    _check_tensor(past, outputs["present"], 5)
    stacks = past.shape[0]
    if stacks < 2 or stacks % 2:
        raise incomplete("the first size of `past`, twice the layers, is not fixed")
    return stacks // 2, *_sizes(past.shape[2], past.shape[4], configs)


def _check_tensor(past: TensorSpec, present: TensorSpec, rank: int) -> None:
    for spec in (past, present):
        if len(spec.shape) != rank or spec.datatype != past.datatype:
            raise incomplete(
                f"`{spec.name}` is {spec.datatype} {list(spec.shape)}, and {past.datatype} in "
                f"{rank} dimensions are needed"
            )
    if past.datatype not in _FLOATS:
        raise incomplete(f"`{past.name}` is {past.datatype}, and floats are needed")


def _sizes(heads: int, size: int, configs: Configs) -> tuple[int, int]:
    """Return (heads, head size) of the graph, else of the configuration.

    onnxruntime-genai's builder leaves the head size free, and writes no config.json.
    """
    all_heads = _size(configs, "num_attention_heads", "n_head")
    if heads < 1:
        heads = _size(configs, "num_key_value_heads") or all_heads or 0
    if size < 1:
        width = _size(configs, "hidden_size", "n_embd")
        size = _size(configs, "head_size", "head_dim") or (
            width // all_heads if width and all_heads else 0
        )
    if heads < 1 or size < 1:
        raise incomplete(
            "the heads of its key-value cache are unknown: add config.json with "
            "num_key_value_heads and head_dim"
        )
    return heads, size


def _size(configs: Configs, *names: str) -> int | None:
    """Return a decoder's size from genai_config.json or config.json."""
    own = (f"model.decoder.{name}" for name in names)
    return configs.number(assets.GENAI, *own) or _config(configs, *names)


def _context(configs: Configs) -> int | None:
    """Return the most tokens that the graph computes as the model does."""
    contexts = [
        configs.number(assets.GENAI, "model.context_length"),
        _config(configs, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
        configs.number(assets.TOKENIZER_CONFIG, "model_max_length", most=10**8),
    ]
    context = next((context for context in contexts if context), None)
    short = _short_context(configs)
    return min(short, context) if short and context else context


def _short_context(configs: Configs) -> int | None:
    """Return the context beyond which a graph differs from its model.

    Phi-3's rotations (longrope) change all keys once a text is longer than its first context:
    optimum's graph has those of short texts alone, and onnxruntime-genai's a cache of either.
    Where onnxruntime-genai names a window and no layer that has it, the graph attends to all.
    """
    if _rope(configs) == "longrope":
        original = "original_max_position_embeddings"
        return _config(configs, original, *(f"{each}.{original}" for each in _ROPE))
    if configs.text(assets.GENAI, "model.type") in ("phi3", "phi3v", "phimoe"):
        return PHI_CONTEXT
    if [] in configs.values(assets.GENAI, "model.decoder.sliding_window.layers"):
        return configs.number(assets.GENAI, "model.decoder.sliding_window.window_size")
    return None


def _rope(configs: Configs) -> str | None:
    """Return the kind of rotary positions that config.json names."""
    kinds = (f"{each}.{name}" for each in _ROPE for name in ("rope_type", "type"))
    return configs.text(assets.CONFIG, *kinds)


def _config(configs: Configs, *names: str) -> int | None:
    """Return a size of config.json, at the top or in text_config."""
    return configs.number(assets.CONFIG, *names, *(f"text_config.{name}" for name in names))


def _defaults(configs: Configs) -> dict[str, float]:
    """Return the sampling defaults that the configuration states, within bounds."""
    files = ((assets.GENERATION, ""), (assets.GENAI, "search."))
    defaults: dict[str, float] = {}
    for name, most in _DEFAULTS.items():
        for file, folder in files:
            for value in configs.values(file, f"{folder}{name}"):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if number and math.isfinite(value) and 0 <= value <= most:
                    defaults.setdefault(name, float(value))
    if any(value is False for value in configs.values(assets.GENERATION, "do_sample")):
        defaults["temperature"] = 0.0
    return defaults
