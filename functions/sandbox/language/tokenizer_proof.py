"""Proof of an uploaded tokenizer: round trips, bounds, processor time."""

import time

from functions.adapters.language.tokenizer import HfTokenizer
from functions.core.errors import InvalidModel, InvalidRequest, shown
from functions.core.language.spec import Kind, LanguageSpec

TEXTS = (
    "The capital of France is Paris.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "日本語の文章です。这是一个句子。한국어 문장.",
    "👩‍🚀 emoji 😀🎉, math ∑√π ≠ ∞",
    "def f(x: int) -> int:\n\treturn x * 2  # twice\n",
    '{"name": "Ada", "list": [1, 2.5, null], "nested": {"a": true}}',
)
TEXT_CHARACTERS = 100_000  # length of each long text
# Processor time for the longest text. Real tokenizers take 0.05 to 0.3 s.
TEXT_S = 2.0
# Characters tried before, so that one whose time grows with the square or the cube ends early.
STEPS = (500, 2_000, 20_000)
LAST = "b~"  # behind each long text: a pattern that nearly matched tries all ways
# Texts on which patterns and algorithms without limits take long.
_LONG = {
    "of words": "The quick brown fox jumps over the lazy dog. ",
    "of one word": "a",
    "of spaces": " ",
    "of line breaks": "\n",
    "of digits": "1",
    "of punctuation": "!?",
    "of one character of three bytes": "語",
}


def prove(tokenizer: HfTokenizer) -> None:
    """Check that a tokenizer reads texts in bounded time.

    Raises:
        InvalidModel: `TOKENIZER_FAILED` or `TOKENIZER_SLOW`.
    """
    for text in TEXTS:
        tokens = _encode(tokenizer, text)
        _decode(tokenizer, tokens)
    for label, piece in _LONG.items():
        for length in (*STEPS, TEXT_CHARACTERS):
            _check_time(tokenizer, label, (piece * length)[:length] + LAST)


def check_tokens(tokenizer: HfTokenizer, spec: LanguageSpec) -> str | None:
    """Check that a tokenizer and its model belong together.

    Returns a note about texts that a decoder's tokens do not spell.

    Raises:
        InvalidModel: `VOCABULARY_MISMATCH` or `TOKENIZER_UNFAITHFUL`.
    """
    unfaithful = []
    for text in TEXTS:
        tokens = _encode(tokenizer, text)
        if not tokens:
            raise InvalidModel(
                f"tokenizer.json makes no token of the text {shown(text)}",
                code="TOKENIZER_UNFAITHFUL",
            )
        if max(tokens) >= spec.vocabulary:
            raise InvalidModel(
                f"tokenizer.json makes token {max(tokens)} of a text, and the model knows "
                f"{spec.vocabulary} tokens",
                code="VOCABULARY_MISMATCH",
            )
        if spec.kind is Kind.DECODER and not _spells(tokenizer, text):
            unfaithful.append(text)
    if len(unfaithful) == len(TEXTS):
        raise InvalidModel(
            f"the tokens of {shown(TEXTS[0])} spell {shown(_spelled(tokenizer, TEXTS[0]))}: "
            "tokenizer.json lacks the decoder that belongs to its model",
            code="TOKENIZER_UNFAITHFUL",
        )
    if unfaithful:
        return f"The tokenizer does not keep {len(unfaithful)} of {len(TEXTS)} fixed texts whole."
    return None


def _spells(tokenizer: HfTokenizer, text: str) -> bool:
    """Tell whether tokens spell a text, whole and byte by byte.

    Normalisation of spaces and of letters' cases is a tokenizer's choice.
    """
    joined = _spelled(tokenizer, text)
    whole = _decode(tokenizer, _encode(tokenizer, text, special=False))
    return _plain(text) == _plain(whole) == _plain(joined)


def _spelled(tokenizer: HfTokenizer, text: str) -> str:
    tokens = _encode(tokenizer, text, special=False)
    return b"".join(tokenizer.token_bytes(token) for token in tokens).decode("utf-8", "replace")


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def _check_time(tokenizer: HfTokenizer, label: str, text: str) -> None:
    began = time.process_time()
    _encode(tokenizer, text)
    seconds = time.process_time() - began
    allowed = TEXT_S * max(len(text) / TEXT_CHARACTERS, 0.1)
    if seconds > allowed:
        raise InvalidModel(
            f"tokenizer.json takes {seconds:.1f} s of processor time for {len(text)} characters "
            f"{label}, and {allowed:.1f} s are allowed: simplify its patterns, or limit the "
            "length of a word",
            code="TOKENIZER_SLOW",
        )


def _encode(tokenizer: HfTokenizer, text: str, *, special: bool = True) -> list[int]:
    try:
        return tokenizer.encode(text, special=special)
    except InvalidRequest as error:
        raise _failed(text, error) from None


def _decode(tokenizer: HfTokenizer, tokens: list[int]) -> str:
    try:
        return tokenizer.decode(tokens)
    except InvalidRequest as error:
        raise _failed("", error) from None


def _failed(text: str, error: InvalidRequest) -> InvalidModel:
    place = f"the text {shown(text[:40])}" if text else "the tokens of a fixed text"
    return InvalidModel(f"tokenizer.json fails on {place}: {error}", code="TOKENIZER_FAILED")
