"""Script that writes GGUF files with tokenizers of SentencePiece, which no package carries.

    python tests/stress/exporters/save_sentencepiece.py FOLDER

Runs in the environment of the group `optimum` and imports nothing of this project. Each tokenizer
gets a folder with `model.gguf`, a decoder of one layer, and `expected.json`: texts, the tokens
that SentencePiece itself makes of them, and what it makes of these.
"""

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece as spm
from tiny_tokenizers import CORPUS, train_sentencepiece

TEXTS = 500
WIDTH, CONTEXT = 32, 128
PIECES = (
    " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "e\u0301", "ﬁ", "½", "🎉", "👩‍🚀", "\u200b",
    "\u00a0", "\u3000", "ß", "Ω", "\x00", "\x7f", "▁", "▁▁", "<0x0A>", "<s", "</", "s>",
    "\U0001d518", "123", "4567",
)  # fmt: skip
MODELS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "no_prefix": {"add_dummy_prefix": False},
    "small": {"vocab_size": 420},
    "spaces": {"allow_whitespace_only_pieces": True},
    "user_defined": {"user_defined_symbols": ["<|im_start|>", "<|im_end|>"]},
}


def texts() -> list[str]:
    """Return random texts of words, spaces and signs; none has a special token."""
    source = random.Random(7)  # noqa: S311 (no secret)
    pieces = [*" ".join(CORPUS).split(" "), *PIECES]
    made = ["", " ", "  ", "\n", " a", "a ", "▁a", "a▁", "🎉"]
    while len(made) < TEXTS:
        count = source.randrange(1, 14)
        text = "".join(source.choice(pieces) + source.choice(("", " ")) for _ in range(count))
        made += [] if "<s>" in text or "</s>" in text else [text]
    return made


def kind(model: Any, token: int) -> Any:
    """Return GGUF's type of a token."""
    kinds = gguf.TokenType
    if model.is_unknown(token):
        return kinds.UNKNOWN
    if model.is_control(token):
        return kinds.CONTROL
    if model.is_byte(token):
        return kinds.BYTE
    return kinds.UNUSED if model.is_unused(token) else kinds.NORMAL


def write_gguf(path: Path, model: Any, *, prefix: bool) -> None:
    """Write a decoder of random weights with a SentencePiece model's vocabulary."""
    writer, tokens = gguf.GGUFWriter(path, "llama"), range(model.vocab_size())
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(token).encode() for token in tokens])
    writer.add_token_scores([model.get_score(token) for token in tokens])
    writer.add_token_types([kind(model, token) for token in tokens])
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_space_prefix(prefix)
    source = np.random.default_rng(0)
    for name in ("token_embd", "output"):
        values = source.normal(size=(len(tokens), WIDTH)) * WIDTH**-0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        values = source.normal(size=(WIDTH, WIDTH)) * WIDTH**-0.5
        writer.add_tensor(f"blk.0.{name}.weight", values.astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(target: Path) -> None:
    """Write all files into subfolders of `target`."""
    for name, options in MODELS.items():
        folder = target / name
        folder.mkdir(parents=True)
        trained = train_sentencepiece(folder, **options)
        model = spm.SentencePieceProcessor(model_file=str(trained))
        write_gguf(folder / "model.gguf", model, prefix=options.get("add_dummy_prefix", True))
        tokens = [model.encode(text) for text in texts()]
        decoded = [model.decode(each) for each in tokens]
        answers = {"texts": texts(), "tokens": tokens, "decoded": decoded}
        (folder / "expected.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
