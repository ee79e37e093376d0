"""Script that exports tiny language models with optimum and sentence-transformers.

    python tests/stress/exporters/export_language.py FOLDER NAME…

Runs in an environment of its own (`make stress`, group `optimum`) and imports nothing of this
project. Each model gets a folder with `package`, what the tool wrote and untouched, and
`expected.json`, transformers' own answers. For onnxruntime-genai, whose builder needs a newer
transformers, it has the model's folder `source` instead (see `build_genai.py`).
"""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.simplefilter("ignore")

import torch
import transformers
from tiny_tokenizers import CORPUS, byte_level, save_with_template, sentencepiece, texts, word_piece

LENGTHS = (1, 2, 17, 70)  # tokens of a prompt
REPLY = 12  # tokens
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_WORDS = QWEN_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}


def initialise(model: Any) -> Any:
    """Give a model weights whose answers are far from each other."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.5 * weight.shape[-1] ** -0.5)
            elif "norm" in name.lower() or "ln_" in name:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                weight.normal_(0, 0.1)
    return model.eval()


def save(folder: Path, config: Any, tokenizer: Any, kind: str, *, inline: bool = False) -> Any:
    """Save a model of random weights with its tokenizer; return the model."""
    config.vocab_size = len(tokenizer)
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    model = initialise(getattr(transformers, kind).from_config(config))
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = config.eos_token_id
        model.generation_config.bos_token_id = config.bos_token_id
        model.generation_config.pad_token_id = config.pad_token_id
    model.save_pretrained(folder)
    save_with_template(tokenizer, folder, inline=inline)
    return model


# --- the tools


def optimum(source: Path, target: Path, *options: str) -> None:
    """Run `optimum-cli export onnx`."""
    from optimum.commands.optimum_cli import main as cli

    arguments = ["optimum-cli", "export", "onnx", "--model", str(source), *options, str(target)]
    sys.argv = arguments
    cli()


# --- the tools' own answers


def decoder_answers(
    tokenizer: Any, reply: Callable[[Sequence[int]], Mapping[str, Any]], *, chat: bool = True
) -> dict[str, Any]:
    """Return tokens of texts, greedy replies to prompts and the prompt of a chat."""
    samples = list(texts())
    ids = tokenizer("\n".join(CORPUS))["input_ids"]
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy? <ü>"},
    ]
    return {
        "kind": "decoder",
        "texts": samples,
        "tokens": [tokenizer(text)["input_ids"] for text in samples],
        "prompts": [ids[:length] for length in LENGTHS],
        "replies": [reply(ids[:length]) for length in LENGTHS],
        "eos": tokenizer.eos_token_id,
        "messages": messages,
        "chat": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if chat
        else None,
    }


def torch_reply(model: Any) -> Callable[[Sequence[int]], Mapping[str, Any]]:
    """Return a function that continues a prompt greedily, without a cache."""

    def reply(prompt: Sequence[int]) -> Mapping[str, Any]:
        tokens, scores = list(prompt), []
        for _ in range(REPLY):
            with torch.no_grad():
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
            scores.append(float(logits.log_softmax(-1).max()))
            tokens.append(int(logits.argmax()))
        return {"tokens": tokens[len(prompt) :], "logprobs": scores}

    return reply


def encoder_answers(vectors: Callable[[str], Any], tokenizer: Any) -> dict[str, Any]:
    """Return tokens and vectors of texts of several lengths."""
    samples = [*texts(), " ".join(CORPUS[:3])]
    return {
        "kind": "encoder",
        "texts": samples,
        "tokens": [tokenizer(text)["input_ids"] for text in samples],
        "vectors": [[float(value) for value in vectors(text)] for text in samples],
    }


def mean_vector(model: Any, tokenizer: Any, pooling: str = "mean") -> Callable[[str], Any]:
    """Return a function from a text to its normalised vector."""

    def vector(text: str) -> Any:
        inputs = tokenizer(text, return_tensors="pt")
        if model.config.model_type == "modernbert":
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        return torch.nn.functional.normalize(pooled, dim=-1)

    return vector


def reranker_answers(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the logits of pairs of texts."""
    pairs = [[CORPUS[0], text] for text in texts()]
    scores = []
    for first, second in pairs:
        with torch.no_grad():
            logits = model(**tokenizer(first, second, return_tensors="pt")).logits
        scores.append(float(logits[0, 0]))
    tokens = [tokenizer(first, second)["input_ids"] for first, second in pairs]
    return {"kind": "reranker", "pairs": pairs, "tokens": tokens, "scores": scores}


# --- models


def decoders() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return configurations and tokenizers of decoders by name."""
    t = transformers
    end = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    fast = "PreTrainedTokenizerFast"

    def llama3() -> Any:
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
        return byte_level(fast, split=LLAMA_WORDS, begin=True, **names)

    def qwen() -> Any:
        return byte_level("Qwen2TokenizerFast", split=None, **end)

    def gpt2() -> Any:
        names = ("bos_token", "eos_token", "unk_token")
        return byte_level("GPT2TokenizerFast", **dict.fromkeys(names, "<|endoftext|>"))

    def llama2() -> Any:
        return sentencepiece("LlamaTokenizerFast")

    def gemma() -> Any:
        pieces = {"bos_piece": "<bos>", "eos_piece": "<eos>", "pad_piece": "<pad>", "pad_id": 0}
        numbers = {"eos_id": 1, "bos_id": 2, "unk_id": 3, "user_defined_symbols": ["<mask>"]}
        return sentencepiece("GemmaTokenizerFast", **pieces, **numbers)

    llama3_rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    gemma_sizes = {**GROUPED, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"}
    windows = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    return {
        "llama2": lambda: (t.LlamaConfig(**GROUPED), llama2()),
        "llama3": lambda: (
            t.LlamaConfig(**GROUPED, rope_scaling=llama3_rope, tie_word_embeddings=True),
            llama3(),
        ),
        "smollm": lambda: (t.LlamaConfig(**GROUPED, tie_word_embeddings=True), gpt2()),
        "mistral": lambda: (t.MistralConfig(**GROUPED, sliding_window=16), llama2()),
        "qwen2": lambda: (t.Qwen2Config(**GROUPED, tie_word_embeddings=True), qwen()),
        "qwen3": lambda: (t.Qwen3Config(**GROUPED, head_dim=32), qwen()),
        "gpt2": lambda: (
            t.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128),
            gpt2(),
        ),
        "gemma": lambda: (t.GemmaConfig(**gemma_sizes), gemma()),
        "gemma2": lambda: (t.Gemma2Config(**gemma_sizes, sliding_window=16), gemma()),
        "gemma3": lambda: (t.Gemma3TextConfig(**gemma_sizes, **windows), gemma()),
        "phi3": lambda: (
            t.Phi3Config(**GROUPED, original_max_position_embeddings=128),
            llama2(),
        ),
        "phi3_longrope": lambda: (
            t.Phi3Config(
                **{**GROUPED, "max_position_embeddings": 8192},
                original_max_position_embeddings=4096,
                rope_scaling={
                    "type": "longrope", "short_factor": [1.1] * 8, "long_factor": [3.0] * 8,
                },
            ),
            llama2(),
        ),
        "phi": lambda: (t.PhiConfig(**{**SIZES, "hidden_size": 128}), gpt2()),
        "smollm3": lambda: (t.SmolLM3Config(**GROUPED, no_rope_layer_interval=2), llama3()),
        "granite": lambda: (
            t.GraniteConfig(**GROUPED, logits_scaling=2.0, residual_multiplier=0.5),
            gpt2(),
        ),
        "olmo2": lambda: (t.Olmo2Config(**GROUPED), gpt2()),
        "stablelm": lambda: (t.StableLmConfig(**GROUPED, use_qkv_bias=True), gpt2()),
        "gpt_neox": lambda: (t.GPTNeoXConfig(**SIZES), gpt2()),
        "opt": lambda: (
            t.OPTConfig(
                hidden_size=64, word_embed_proj_dim=64, ffn_dim=96, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=128,
            ),
            gpt2(),
        ),
        "bloom": lambda: (t.BloomConfig(hidden_size=64, n_layer=2, n_head=4), gpt2()),
        "falcon": lambda: (
            t.FalconConfig(
                hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=128,
            ),
            gpt2(),
        ),
        "gptj": lambda: (
            t.GPTJConfig(n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=128),
            gpt2(),
        ),
    }  # fmt: skip


# Families that onnxruntime-genai's builder knows.
GENAI = (
    "llama2", "llama3", "smollm", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3",
    "phi3_longrope", "smollm3", "granite",
)  # fmt: skip


def encoders() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return configurations and tokenizers of encoders by name."""
    t = transformers
    roberta_sizes = {**SIZES, "max_position_embeddings": 130, "type_vocab_size": 1}
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

    def roberta() -> Any:
        return byte_level("RobertaTokenizerFast", **special, mask_token="<mask>")

    def unigram(cls: str) -> Any:
        return sentencepiece(cls, "unigram")

    return {
        "bert": lambda: (t.BertConfig(**SIZES), word_piece()),
        "bert_cased": lambda: (t.BertConfig(**SIZES), word_piece(do_lower_case=False)),
        "distilbert": lambda: (
            t.DistilBertConfig(
                dim=64, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=128
            ),
            word_piece("DistilBertTokenizerFast"),
        ),
        "mpnet": lambda: (
            t.MPNetConfig(**{**SIZES, "max_position_embeddings": 130}),
            word_piece("MPNetTokenizerFast"),
        ),
        "roberta": lambda: (t.RobertaConfig(**roberta_sizes), roberta()),
        "xlm_roberta": lambda: (
            t.XLMRobertaConfig(**roberta_sizes),
            unigram("XLMRobertaTokenizerFast"),
        ),
        "camembert": lambda: (
            t.CamembertConfig(**roberta_sizes),
            unigram("CamembertTokenizerFast"),
        ),
        "electra": lambda: (
            t.ElectraConfig(**SIZES, embedding_size=64),
            word_piece("ElectraTokenizerFast"),
        ),
        "albert": lambda: (
            t.AlbertConfig(**SIZES, embedding_size=32),
            unigram("AlbertTokenizerFast"),
        ),
        "deberta_v2": lambda: (
            t.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
            unigram("DebertaV2TokenizerFast"),
        ),
        "modernbert": lambda: (
            t.ModernBertConfig(**SIZES, local_attention=16, global_attn_every_n_layers=2),
            byte_level(
                "PreTrainedTokenizerFast", cls_token="[CLS]", sep_token="[SEP]",
                pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
            ),
        ),
    }  # fmt: skip


# --- exports


def export_decoder(name: str, folder: Path, *options: str, inline: bool = False) -> None:
    """Export a decoder by optimum with its cache."""
    config, tokenizer = decoders()[name]()
    source = folder / "source"
    model = save(source, config, tokenizer, "AutoModelForCausalLM", inline=inline)
    optimum(source, folder / "package", "--task", "text-generation-with-past", *options)
    write(folder, decoder_answers(tokenizer, torch_reply(model)))


def make_genai(name: str, folder: Path, *options: str) -> None:
    """Save a decoder from which `build_genai.py` makes a package, with the builder's options."""
    config, tokenizer = decoders()[name]()
    model = save(folder / "source", config, tokenizer, "AutoModelForCausalLM")
    (folder / "builder.json").write_text(json.dumps(options))
    write(folder, decoder_answers(tokenizer, torch_reply(model)))


def export_encoder(name: str, folder: Path) -> None:
    """Export an encoder by optimum as a model of hidden states."""
    config, tokenizer = encoders()[name]()
    model = save(folder / "source", config, tokenizer, "AutoModel")
    optimum(folder / "source", folder / "package", "--task", "feature-extraction")
    write(folder, encoder_answers(mean_vector(model, tokenizer), tokenizer))


def export_reranker(name: str, folder: Path) -> None:
    """Export a cross-encoder with one label by optimum."""
    config, tokenizer = encoders()[name]()
    config.num_labels = 1
    model = save(folder / "source", config, tokenizer, "AutoModelForSequenceClassification")
    optimum(folder / "source", folder / "package", "--task", "text-classification")
    write(folder, reranker_answers(model, tokenizer))


def export_sentences(name: str, folder: Path, pooling: str, *, normalised: bool = True) -> None:
    """Export a sentence-transformers model by optimum with its pooling."""
    model = _sentence_model(name, folder, pooling, normalised=normalised)
    optimum(folder / "source", folder / "package", "--task", "sentence-similarity")
    write(folder, sentence_answers(model))


def export_sentence_backend(name: str, folder: Path, pooling: str) -> None:
    """Export a model by sentence-transformers' own backend `onnx`."""
    from sentence_transformers import SentenceTransformer

    model = _sentence_model(name, folder, pooling, normalised=True)
    exported = SentenceTransformer(str(folder / "source"), backend="onnx", device="cpu")
    exported.save_pretrained(str(folder / "package"))
    write(folder, sentence_answers(model))


def sentence_answers(model: Any) -> dict[str, Any]:
    """Return vectors of length 1: what is served, unless a manifest says otherwise."""

    def vector(text: str) -> Any:
        return model.encode([text], normalize_embeddings=True, show_progress_bar=False)[0]

    return encoder_answers(vector, model.tokenizer)


def _sentence_model(name: str, folder: Path, pooling: str, *, normalised: bool) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules

    config, tokenizer = encoders()[name]()
    save(folder / "encoder", config, tokenizer, "AutoModel")
    transformer = modules.Transformer(str(folder / "encoder"), max_seq_length=128)
    parts = [transformer, modules.Pooling(transformer.get_word_embedding_dimension(), pooling)]
    model = SentenceTransformer(
        modules=[*parts, *([modules.Normalize()] if normalised else [])], device="cpu"
    )
    model.save_pretrained(str(folder / "source"))
    return model


def write(folder: Path, answers: Mapping[str, Any], context: int = 128) -> None:
    """Save the answers as expected.json; remove what the package was made of."""
    (folder / "expected.json").write_text(json.dumps({**answers, "context": context}))
    if (folder / "package").exists():
        for name in ("source", "encoder"):
            shutil.rmtree(folder / name, ignore_errors=True)


def exports() -> dict[str, Callable[[Path], None]]:
    """Return the export functions by name of the package."""
    table: dict[str, Callable[[Path], None]] = {}
    for name in decoders():
        table[f"optimum_{name}"] = lambda folder, n=name: export_decoder(n, folder)
    table["optimum_llama3_inline_template"] = lambda folder: export_decoder(
        "llama3", folder, inline=True
    )
    table["optimum_smollm_optimised"] = lambda folder: export_decoder(
        "smollm", folder, "--optimize", "O2"
    )
    for name in GENAI:
        for kind in ("fp32", "int4"):
            table[f"genai_{name}_{kind}"] = lambda folder, n=name, k=kind: make_genai(
                n, folder, "-p", k
            )
    # 4-bit Mistral fails in onnxruntime-genai itself on prompts beyond the window.
    table["genai_mistral_fp32"] = lambda folder: make_genai("mistral", folder, "-p", "fp32")
    shared = ("--extra_options", "shared_embeddings=true", "int4_accuracy_level=4")
    table["genai_qwen2_shared"] = lambda folder: make_genai("qwen2", folder, "-p", "int4", *shared)
    for name in encoders():
        table[f"optimum_{name}"] = lambda folder, n=name: export_encoder(n, folder)
        table[f"optimum_{name}_rerank"] = lambda folder, n=name: export_reranker(n, folder)
    for name, pooling in (("bert", "mean"), ("mpnet", "mean"), ("xlm_roberta", "cls")):
        table[f"sentences_{name}_{pooling}"] = lambda folder, n=name, p=pooling: export_sentences(
            n, folder, p
        )
        table[f"backend_{name}_{pooling}"] = lambda folder, n=name, p=pooling: (
            export_sentence_backend(n, folder, p)
        )
    table["sentences_bert_unnormalised"] = lambda folder: export_sentences(
        "bert", folder, "mean", normalised=False
    )
    return table


def main(target: Path, names: Sequence[str]) -> None:
    """Export models into subfolders of `target`: those named, or named by a beginning."""
    table = exports()
    for name in [each for each in table if each.startswith(tuple(names))]:
        folder = target / name
        folder.mkdir(parents=True)
        try:
            table[name](folder)
        except (Exception, SystemExit) as error:  # the others still run; the caller reports it
            (folder / "failed.txt").write_text(f"{type(error).__name__}: {error}")
        print(name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
