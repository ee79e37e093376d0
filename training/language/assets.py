"""Text files of a language model's package: configuration, lists of end tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.language.checkpoint import DecoderSizes

ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")
SHOWN = 4  # names in a list of missing ones


def dump(document: Mapping[str, Any]) -> str:
    """Write a JSON document for people."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def listed(names: Sequence[str]) -> str:
    """List names in a sentence, at most four of them.

    >>> listed(["a", "b"]), listed(list("abcdef"))
    ('a, b', 'a, b, c, d and 2 more')
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def end_tokens(tokens: Mapping[str, int], declared: Iterable[int | None]) -> list[int]:
    """Return end-of-reply tokens: declared ones and well-known names.

    `tokens` has the special tokens alone.

    >>> end_tokens({"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}, [2, None])
    [2, 0]
    """
    ends = [token for token in declared if token is not None]
    ends += [tokens[name] for name in ENDS if name in tokens]
    return list(dict.fromkeys(ends))


def decoder_config(architecture: str, sizes: DecoderSizes) -> str:
    """Return a decoder's config.json."""
    return dump(
        {
            "model_type": architecture,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.inner,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_size,
            "max_position_embeddings": sizes.context,
            "rms_norm_eps": sizes.epsilon,
            "rope_theta": sizes.rotary.base,
            "tie_word_embeddings": sizes.tied,
            "vocab_size": sizes.vocabulary,
        }
    )
