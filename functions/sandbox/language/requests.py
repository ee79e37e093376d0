"""Requests to language models, in the tensors of their graph."""

import random
from array import array
from collections.abc import Sequence

from functions.core.language.spec import Kind, LanguageSpec
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.sandbox.synthetic import SEED, values

NEW, CACHED = 8, 8  # tokens of a request to a decoder, and of the cache before them
ENCODED = 16  # tokens of a request to an encoder
_CODES = {"INT32": "i", "INT64": "q", "BOOL": "b"}  # type codes of Python's arrays


def request(
    signature: Signature, spec: LanguageSpec, prompt: Sequence[int]
) -> dict[str, Tensor] | None:
    """Return a request with a prompt's first tokens.

    A decoder's has a cache, too. Returns None if an input has a datatype or rank that is not
    known.
    """
    cached, new = (CACHED, NEW) if spec.kind is Kind.DECODER else (0, ENCODED)
    new = min(new, spec.context)
    cached = min(cached, spec.context - new)
    tokens = (list(prompt) * new)[:new] if prompt else [1] * new
    integers = {
        "input_ids": tokens,
        "tokens": tokens,
        "attention_mask": [1] * (cached + new),
        "token_type_ids": [0] * new,
        "position_ids": list(range(cached, cached + new)),
        "use_cache_branch": [1],
    }
    source = random.Random(SEED)  # noqa: S311 (no secret)
    feeds: dict[str, Tensor] = {}
    for tensor in signature.inputs:
        if tensor.name in integers:
            feed = _integers(tensor, integers[tensor.name])
        else:
            feed = values(tensor, _cache_shape(tensor, spec, cached), 1, source)
        if feed is None:
            return None
        feeds[tensor.name] = feed
    return feeds


def _integers(tensor: TensorSpec, row: Sequence[int]) -> Tensor | None:
    if tensor.datatype not in _CODES or len(tensor.shape) not in (1, 2):
        return None
    shape = (len(row),) if len(tensor.shape) == 1 else (1, len(row))
    return Tensor(tensor.datatype, shape, array(_CODES[tensor.datatype], row).tobytes())


def _cache_shape(tensor: TensorSpec, spec: LanguageSpec, cached: int) -> tuple[int, ...]:
    """Return a cache's shape, (…, batch 1, heads, tokens, size)."""
    sizes = (spec.kv_heads, cached, spec.head_size)
    return (*tensor.shape[:-4], 1, *sizes)
