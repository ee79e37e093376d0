"""Script that saves tiny models as transformers does, for `import-hf`.

    python tests/stress/exporters/save_checkpoints.py FOLDER [NAME…]

Runs in the environments of the groups `exporters` and `optimum`, which have transformers 5 and 4,
and imports nothing of this project. Each model gets a folder with `model`, what save_pretrained
wrote, and `expected.json`: tokens, logits or vectors, end tokens and a chat's prompt.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from export_language import (
    GROUPED,
    encoder_answers,
    encoders,
    initialise,
    mean_vector,
    reranker_answers,
)
from tiny_tokenizers import CORPUS, byte_level

MESSAGES = [{"role": "user", "content": "What is the capital of France? <ü>"}]
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SIZE_NAMES = {**GROUPED, "vocab_size": 640}


def tokenizer() -> Any:
    """Return a byte-level tokenizer as Qwen's."""
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return byte_level("PreTrainedTokenizerFast", **special)


def save_decoder(
    folder: Path,
    kind: str,
    *,
    dtype: str = "float32",
    eos: Any = None,
    inline: bool = False,
    save: Mapping[str, Any] | None = None,
    **config: Any,
) -> None:
    """Save a decoder; `save` are options of save_pretrained, `config` settings of its class."""
    torch.manual_seed(0)
    words = tokenizer()
    made = getattr(transformers, f"{kind}Config")(**{**SIZE_NAMES, **config})
    made.eos_token_id = made.bos_token_id = words.eos_token_id
    model = initialise(getattr(transformers, f"{kind}ForCausalLM")(made))
    model.generation_config.eos_token_id = eos or words.eos_token_id
    model.to(getattr(torch, dtype)).save_pretrained(folder / "model", **(save or {}))
    words.save_pretrained(folder / "model")
    if inline:
        move_template(folder / "model")
    ids = words("\n".join(CORPUS))["input_ids"][:100]
    loaded = type(model).from_pretrained(folder / "model", torch_dtype=torch.float32).eval()
    with torch.no_grad():
        logits = loaded(torch.tensor([ids])).logits[0]
    ends = eos if isinstance(eos, list) else [words.eos_token_id]
    prompt = words.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    answers = {
        "kind": "decoder", "tokens": ids, "logits": logits.tolist(), "eos": ends,
        "messages": MESSAGES, "chat": prompt,
    }  # fmt: skip
    (folder / "expected.json").write_text(json.dumps(answers))


def move_template(folder: Path) -> None:
    """Move the chat template into tokenizer_config.json, where it was before transformers 4.52."""
    template, path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    document = {**json.loads(path.read_text()), "chat_template": template.read_text()}
    path.write_text(json.dumps(document))
    template.unlink()


def save_encoder(folder: Path, name: str, kind: str = "AutoModel", **config: Any) -> None:
    """Save an encoder or a reranker."""
    made, words = encoders()[name]()
    made.vocab_size = len(words)
    for setting, value in config.items():
        setattr(made, setting, value)
    for token in ("bos", "eos", "pad"):
        setattr(made, f"{token}_token_id", getattr(words, f"{token}_token_id"))
    model = initialise(getattr(transformers, kind).from_config(made))
    model.save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    if "Sequence" in kind:
        answers = reranker_answers(model, words)
    else:
        model = getattr(model, "base_model", model)
        answers = encoder_answers(mean_vector(model, words), words)
    (folder / "expected.json").write_text(json.dumps(answers))


def checkpoints() -> dict[str, Callable[[Path], None]]:
    """Return functions that save a model by name."""
    decoders: dict[str, dict[str, Any]] = {
        "llama": {},
        "llama_tied": {"tie_word_embeddings": True},
        "llama_sharded": {"save": {"max_shard_size": "60KB"}},
        "llama_tied_sharded": {"save": {"max_shard_size": "60KB"}, "tie_word_embeddings": True},
        "llama_bf16": {"dtype": "bfloat16"},
        "llama_fp16": {"dtype": "float16"},
        "llama_inline_template": {"inline": True},
        "llama_ends": {"eos": [1, 0]},
        "llama_all_heads": {"num_key_value_heads": 4},
        "llama_head_dim": {"head_dim": 32},
        "llama_base": {"rope_theta": 500000.0, "rms_norm_eps": 1e-3},
        "llama_rope_llama3": {"rope_scaling": LLAMA3},
        "llama_rope_linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "llama_rope_yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "llama_rope_dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        "llama_attention_bias": {"attention_bias": True},
        "llama_mlp_bias": {"mlp_bias": True},
        "llama_gelu": {"hidden_act": "gelu"},
        "qwen2": {},
        "qwen2_tied": {"tie_word_embeddings": True},
        "qwen2_window": {
            "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0,
        },
        "qwen2_yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    }  # fmt: skip
    kinds = {"llama": "Llama", "qwen2": "Qwen2"}
    table: dict[str, Callable[[Path], None]] = {}
    for name, options in decoders.items():
        kind = kinds[name.split("_")[0]]
        table[name] = lambda folder, k=kind, o=options: save_decoder(folder, k, **o)
    for name in ("bert", "distilbert", "roberta", "xlm_roberta"):
        table[name] = lambda folder, n=name: save_encoder(folder, n)
        # As roberta-base and distilbert-base are saved: with the head that they were trained with.
        table[f"{name}_masked"] = lambda folder, n=name: save_encoder(
            folder, n, "AutoModelForMaskedLM"
        )
        table[f"{name}_rerank"] = lambda folder, n=name: save_encoder(
            folder, n, "AutoModelForSequenceClassification", num_labels=1
        )
    table["bert_two_labels"] = lambda folder: save_encoder(
        folder, "bert", "AutoModelForSequenceClassification", num_labels=2
    )
    table["bert_gelu_new"] = lambda folder: save_encoder(folder, "bert", hidden_act="gelu_new")
    table["mpnet"] = lambda folder: save_encoder(folder, "mpnet")
    return table


def main(target: Path, names: Sequence[str]) -> None:
    """Save models into subfolders of `target`: all, or those named by a beginning."""
    for name, save in checkpoints().items():
        if names and not name.startswith(tuple(names)):
            continue
        folder = target / name
        folder.mkdir(parents=True)
        try:
            save(folder)
        except Exception as error:  # the others are still saved; the caller reports it
            (folder / "failed.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
