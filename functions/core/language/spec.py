"""Facts about a language model: kind, tokens, sizes, defaults."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from functions.core.records import field, record


class Kind(StrEnum):
    """Kind of a language model: decoder (text) or encoder (vectors)."""

    DECODER = "decoder"
    ENCODER = "encoder"


class Layout(StrEnum):
    """Form of a decoder's key-value cache, as the graph's inputs name it."""

    NAMED = "named"  # past_key_values.N.key and .value, present.N.key and .value: optimum, genai
    STACKED = "stacked"  # one tensor `past` (2 x layers, batch, heads, past, size): our recipe gpt


class Pooling(StrEnum):
    """Way from an encoder's outputs to one vector a text."""

    MEAN = "mean"  # mean of the tokens that the attention mask keeps
    CLS = "cls"  # the first token
    LAST = "last"  # the last token that the attention mask keeps
    GRAPH = "graph"  # the graph's output is the vector


@record
class LanguageSpec:
    """Facts with which the generate function serves a language model.

    Plain data, never code. A decoder's `context` counts the tokens of prompt and reply together,
    an encoder's those of one input. `vocabulary` is the number of token ids, `dimensions` that of a
    vector's numbers. Keys and values of one layer have the shape (1, kv_heads, tokens, head_size).
    Rates are tokens per second on the machine that registered it. `golden` has the token ids of a
    prompt and of the greedy reply to it.
    """

    kind: Kind
    vocabulary: int
    context: int
    eos: tuple[int, ...] = ()  # tokens that end a reply; an encoder's: that separate a pair
    bos: int | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, … for the template
    # decoder
    layout: Layout = Layout.NAMED
    layers: int = 0
    kv_heads: int = 0
    head_size: int = 0
    cache_datatype: str = "FP32"
    # The graph writes new keys and values into the buffer of the old ones; None: to be tried.
    shared_cache: bool | None = None
    chat: bool = False  # the package holds a chat template
    defaults: Mapping[str, float] = field(default_factory=dict)  # temperature, top_p, top_k, ...
    # encoder
    pooling: Pooling = Pooling.MEAN
    normalised: bool = True  # vectors of length 1
    dimensions: int = 0
    reranker: bool = False  # one score for a pair of texts
    output: str = ""  # the graph's output that pooling reads
    # measured
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    golden: Mapping[str, Any] = field(default_factory=dict)  # {"prompt": [...], "reply": [...]}

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that one token of context takes in the key-value cache."""
        size = 2 if self.cache_datatype in ("FP16", "BF16") else 4
        return 2 * self.layers * self.kv_heads * self.head_size * size

    def to_record(self) -> dict[str, Any]:
        """Return the plain data that is stored with a version."""
        return {name: getattr(self, name) for name in type(self).__match_args__}

    @classmethod
    def from_record(cls, stored: Mapping[str, Any]) -> "LanguageSpec":
        """Build a spec from the data stored with a version.

        Fields that another release wrote and this one does not have are ignored; missing ones
        get their defaults.
        """
        fields = {name: stored[name] for name in cls.__match_args__ if name in stored}
        return cls(
            **{
                **fields,
                "kind": Kind(stored["kind"]),
                "layout": Layout(stored.get("layout", Layout.NAMED)),
                "pooling": Pooling(stored.get("pooling", Pooling.MEAN)),
                "eos": tuple(stored.get("eos", ())),
            }
        )
