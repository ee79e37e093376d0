"""Tiny models of random weights as GGUF files and as folders of safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import language_models
from training.language.checkpoint import DecoderSizes, Rotary, decoder_shapes

gguf = pytest.importorskip("gguf", reason="needs the group import: make .venv/.demo installs it")
torch = pytest.importorskip("torch", reason="training needs torch")

TEMPLATE = language_models.CHATML
TOKENIZER = json.loads(language_models.decoder_tokenizer())
VOCABULARY = len(TOKENIZER["model"]["vocab"])


def sizes(**changes: Any) -> DecoderSizes:
    """Return sizes of a decoder of two layers."""
    values: dict[str, Any] = {
        "layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "head_size": 16, "inner": 96,
        "vocabulary": VOCABULARY, "context": 128, "epsilon": 1e-5, "rotary": Rotary(10000.0),
        "tied": True, "biased": False,
    }  # fmt: skip
    return DecoderSizes(**{**values, **changes})


def decoder_weights(sizes: DecoderSizes, seed: int = 0) -> dict[str, Any]:
    """Return random weights of a decoder by Hugging Face's names."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in decoder_shapes(sizes).items():
        values = random.standard_normal(shape) * (1 if len(shape) == 1 else shape[1] ** -0.5)
        norm = len(shape) == 1 and name.endswith("weight")
        weights[name] = (values * 0.1 + 1 if norm else values * 1.5).astype(np.float32)
    return weights


def interleave(matrix: Any, heads: int) -> Any:
    """Reorder rows of queries or keys as GGUF files of the architecture llama have them."""
    size = len(matrix) // heads
    rows = matrix.reshape(heads, 2, size // 2, *matrix.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(matrix.shape)


GGUF_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
    "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(
    path: Path,
    sizes: DecoderSizes,
    weights: Mapping[str, Any],
    *,
    architecture: str = "llama",
    kind: Any = gguf.GGMLQuantizationType.F32,
    pre: str | None = "gpt-2",
    bos: int | None = None,
) -> Path:
    """Write a GGUF file; matrices are of `kind`, and in llama's order for that architecture."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(sizes.layers)
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.width)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_layer_norm_rms_eps(sizes.epsilon)
    writer.add_rope_freq_base(sizes.rotary.base)
    vocabulary = sorted(TOKENIZER["model"]["vocab"], key=TOKENIZER["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if bos is not None:
        writer.add_bos_token_id(bos)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(language_models.SPECIAL) + [1] * (len(vocabulary) - 3))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in _merges()]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(language_models.EOS)
    writer.add_chat_template(TEMPLATE)
    for name, values in weights.items():
        part, end = name.split(".")[-2:]
        if architecture == "llama" and part in ("q_proj", "k_proj"):
            heads = sizes.heads if part == "q_proj" else sizes.kv_heads
            values = interleave(values, heads)
        layer = name.split(".")[2] if ".layers." in name else None
        stem = GGUF_NAMES[part] if layer is None else f"blk.{layer}.{GGUF_NAMES[part]}"
        if values.ndim == 1:
            writer.add_tensor(f"{stem}.{end}", values)
        else:
            packed = gguf.quantize(values, kind)
            writer.add_tensor(f"{stem}.{end}", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges() -> list[Any]:
    merges: list[Any] = TOKENIZER["model"]["merges"]
    return merges


def write_folder(
    path: Path, sizes: DecoderSizes, weights: Mapping[str, Any], **config: Any
) -> Path:
    """Write a decoder's folder as `save_pretrained` does."""
    from safetensors.numpy import save_file

    path.mkdir()
    save_file(dict(weights), path / "model.safetensors")
    document = {
        "model_type": "llama", "hidden_size": sizes.width, "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads, "max_position_embeddings": sizes.context,
        "rms_norm_eps": sizes.epsilon, "rope_theta": sizes.rotary.base, "hidden_act": "silu",
        "tie_word_embeddings": sizes.tied, "vocab_size": sizes.vocabulary,
        "eos_token_id": language_models.EOS, **config,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(document))
    (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


def torch_logits(sizes: DecoderSizes, weights: Mapping[str, Any], tokens: list[int]) -> Any:
    """Return a decoder's logits by torch, with Hugging Face's order of rotations."""
    w = {name: torch.from_numpy(values) for name, values in weights.items()}
    functional = torch.nn.functional
    position = torch.arange(len(tokens))[:, None]
    pairs = torch.arange(0, sizes.head_size, 2)
    divisors = torch.tensor(sizes.rotary.divisors or 1.0)
    angles = position * sizes.rotary.base ** (-pairs / sizes.head_size) / divisors
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))

    def rotate(x: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def project(stem: str, x: Any, heads: int) -> Any:
        y = functional.linear(x, w[f"{stem}.weight"], w.get(f"{stem}.bias"))
        return y.reshape(len(tokens), heads, -1).transpose(0, 1)

    def norm(name: str, x: Any) -> Any:
        return functional.rms_norm(x, (sizes.width,), w[f"{name}.weight"], sizes.epsilon)

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(sizes.layers):
        stem = f"model.layers.{layer}"
        y = norm(f"{stem}.input_layernorm", x)
        q, k, v = (
            project(f"{stem}.self_attn.{part}_proj", y, heads)
            for part, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads))
        )
        y = functional.scaled_dot_product_attention(
            rotate(q)[None], rotate(k)[None], v[None], is_causal=True, enable_gqa=True
        )[0]
        y = y.transpose(0, 1).reshape(len(tokens), -1)
        x = x + functional.linear(y, w[f"{stem}.self_attn.o_proj.weight"])
        y = norm(f"{stem}.post_attention_layernorm", x)
        gate, up = (
            functional.linear(y, w[f"{stem}.mlp.{part}_proj.weight"]) for part in ("gate", "up")
        )
        x = x + functional.linear(functional.silu(gate) * up, w[f"{stem}.mlp.down_proj.weight"])
    x = norm("model.norm", x)
    return (x @ w["model.embed_tokens.weight" if sizes.tied else "lm_head.weight"].T).numpy()
