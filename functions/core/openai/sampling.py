"""Sampling parameters of a request, OpenAI's and some of vLLM's."""

from collections.abc import Mapping
from typing import Any

from functions.core.errors import shown
from functions.core.language.ports import Options
from functions.core.language.spec import LanguageSpec
from functions.core.openai.errors import InvalidParameter, context_exceeded
from functions.core.openai.fields import Fields

N_MAX = 8  # replies to a prompt
# Prompts times n: replies are made one after the other, each as long as the key permits.
REPLIES_MAX = 64
STOPS_MAX = 16
STOP_CHARACTERS_MAX = 1024
BIASES_MAX = 1024
DIGITS_MAX = 10  # a token's number has no more
TOP_LOGPROBS_MAX = 20
TOKENS_MAX = 1 << 20  # more than any context
# Tokens of a chat's reply unless the request has a number: memory is reserved for all of them.
TOKENS_DEFAULT = 2048
SEEDS = 1 << 63
# vLLM's fields that would change a reply
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
}


def parse_options(
    fields: Fields, spec: LanguageSpec, requested: int | None, logprobs: int | None
) -> Options:
    """Parse the sampling parameters of a request; the model's defaults apply.

    `requested` is the number of tokens asked for. `Options.max_tokens` is that or 0.

    Raises:
        InvalidParameter: a parameter has a wrong value, or is known and unsupported.
    """
    fields.refuse(UNSUPPORTED)
    default = spec.defaults.get
    top_k = fields.integer("top_k", int(default("top_k", 0)), -1, TOKENS_MAX)
    return Options(
        max_tokens=requested or 0,
        temperature=fields.number("temperature", default("temperature", 1.0), 0, 2),
        top_p=fields.number("top_p", default("top_p", 1.0), 0, 1),
        top_k=max(0, top_k),
        min_p=fields.number("min_p", default("min_p", 0.0), 0, 1),
        seed=fields.optional_integer("seed", -SEEDS, SEEDS - 1),
        stop=_stops(fields),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=_biases(fields, spec.vocabulary),
        logprobs=logprobs,
        ignore_eos=fields.flag("ignore_eos"),
    )


def tokens_of_reply(
    requested: int | None,
    usual: int,
    prompt: int,
    context: int,
    limit: int | None,
    *,
    param: str,
    source: str,
) -> int:
    """Return the number of tokens that a reply may have.

    All numbers are tokens: `requested` by the caller (None: not said), of the `prompt`, of the
    model's `context`, and the `limit` of the caller's access key (None: none). If the caller does
    not say, it is the smallest of the `usual` number, the key's limit and what the prompt leaves of
    the context. `param` and `source` name the fields of length and prompt, for errors.

    >>> tokens_of_reply(None, 2048, 100, 8192, 500, param="max_tokens", source="prompt")
    500

    Raises:
        InvalidParameter: the context does not hold prompt and reply, or the key's limit is less.
    """
    if prompt >= context:
        raise context_exceeded(context, prompt, requested or 0, source)
    if requested is None:
        return min(context - prompt, usual, limit or context)
    if limit is not None and requested > limit:
        raise InvalidParameter(
            param,
            f"too large: {requested}; your access key permits {limit} tokens a reply",
            code="MAX_TOKENS_EXCEEDED",
        )
    if prompt + requested > context:
        raise context_exceeded(context, prompt, requested, source)
    return requested


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    stops = [value] if type(value) is str else value
    if type(stops) is not list or any(type(stop) is not str for stop in stops):
        raise fields.wrong("stop", "a string or an array of strings")
    if len(stops) > STOPS_MAX:
        raise fields.wrong("stop", f"at most {STOPS_MAX} strings")
    longest = max(map(len, stops), default=1)
    if longest > STOP_CHARACTERS_MAX or not all(stops):
        raise InvalidParameter(
            fields.param("stop"),
            f"a stop string has 1 to {STOP_CHARACTERS_MAX} characters, not "
            f"{longest if all(stops) else 0}",
        )
    return tuple(stops)


def _biases(fields: Fields, vocabulary: int) -> dict[int, float]:
    biases = fields.object("logit_bias")
    values = fields.get("logit_bias") or {}
    if biases is None:
        return {}
    if len(values) > BIASES_MAX:
        raise InvalidParameter(fields.param("logit_bias"), f"has more than {BIASES_MAX} tokens")
    parsed = {}
    for name in values:
        if len(name) > DIGITS_MAX:
            raise InvalidParameter(
                fields.param("logit_bias"),
                f"{shown(name)} is no token of this model: they are 0 to {vocabulary - 1}",
            )
        if not (name.isascii() and name.isdigit() and int(name) < vocabulary):
            raise InvalidParameter(
                biases.param(name), f"is no token of this model: they are 0 to {vocabulary - 1}"
            )
        parsed[int(name)] = biases.number(name, 0.0, -100, 100)
    return parsed
