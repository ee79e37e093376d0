"""Tokenizers of uploaded models: tokenizer.json, read by the library `tokenizers`.

A tokenizer.json is untrusted: registration loads and tries each in the sandbox before any other
process loads it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from functions.core.errors import InvalidModel, InvalidRequest, one_line
from functions.core.language.assets import TOKENIZER, check_size

REPLACEMENT_CHARACTERS = 64  # written for a match by a step; real ones have one or two
_PROBLEM = 120  # characters quoted of a message of the library


class HfTokenizer:
    """Tokenizer of the file tokenizer.json; implements `core.language.ports.Tokenizer`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._steps = tuple(_parts(tokenizer.decoder))

    @property
    def vocabulary(self) -> int:
        """Largest token id plus 1. Slow: it lists all tokens."""
        return max(self._tokenizer.get_vocab(True).values(), default=-1) + 1

    def token(self, text: str) -> int | None:
        """Return the id of the token that is spelled `text`, e.g. "</s>"."""
        token: int | None = self._tokenizer.token_to_id(text)
        return token

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text, with added special ones if `special`.

        Raises:
            InvalidRequest: the text is not Unicode, or the tokenizer's patterns fail on it.
        """
        return self._encode(text, special=special)

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Return the tokens of two texts as rerankers take them.

        Raises:
            InvalidRequest: as `encode`.
        """
        return self._encode(first, second)

    def _encode(self, text: str, pair: str | None = None, special: bool = True) -> list[int]:
        try:
            encoding = self._tokenizer.encode(text, pair, add_special_tokens=special)
        except TypeError as error:  # half of a surrogate pair, which JSON can spell
            raise InvalidRequest("the text is not valid Unicode: send whole characters") from error
        except BaseException as error:
            raise InvalidRequest(
                f"the model's tokenizer fails on this text: {_problem(error)}"
            ) from None
        ids: list[int] = encoding.ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without special ones; unknown tokens have none.

        Raises:
            InvalidRequest: a token is not of 32 bits, or the tokenizer's decoder fails.
        """
        try:
            text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        except BaseException as error:
            problem = _problem(error)
            raise InvalidRequest(
                f"the model's tokenizer fails on these tokens: {problem}"
            ) from None
        return text

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token adds to a text.

        A special token adds none. A token may hold part of a character. Where a decoder strips a
        space at the start of a text, the token keeps it.

        >>> from tokenizers import Tokenizer, decoders, models
        >>> tokenizer = Tokenizer(models.BPE({"Ġa": 0, "Ã": 1}, []))
        >>> tokenizer.decoder = decoders.ByteLevel()
        >>> [HfTokenizer(tokenizer).token_bytes(token) for token in range(3)]
        [b' a', b'\\xc3', b'']
        """
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else added.content.encode()
        text = self._tokenizer.id_to_token(token)
        return b"" if text is None else _bytes(text, self._steps)


def load_tokenizer(path: Path) -> HfTokenizer:
    """Load a tokenizer.json, without the padding and truncation that it may set.

    Raises:
        InvalidModel: `TOKENIZER_TOO_LARGE` or `TOKENIZER_INVALID`.
    """
    check_size(TOKENIZER, path.stat().st_size)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except BaseException as error:
        raise InvalidModel(
            "tokenizer.json cannot be loaded: write it with save_pretrained of transformers' fast "
            f"tokenizers ({_problem(error)})",
            code="TOKENIZER_INVALID",
        ) from None
    for step in (*_parts(tokenizer.normalizer), *_parts(tokenizer.decoder)):
        _check_growth(step)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return HfTokenizer(tokenizer)


def _check_growth(step: Mapping[str, Any]) -> None:
    """Refuse a step that makes a long text of each match.

    A prompt could take all memory.
    """
    longest = max(len(str(step.get(name) or "")) for name in ("content", "prepend"))
    if longest > REPLACEMENT_CHARACTERS:
        raise InvalidModel(
            f"tokenizer.json replaces a text by one of {longest} characters, and "
            f"{REPLACEMENT_CHARACTERS} are allowed",
            code="TOKENIZER_INVALID",
        )


def _problem(error: BaseException) -> str:
    """Return the message of an error of the library; raise any other.

    The library raises Exception itself, and a panic of its Rust code derives from BaseException.
    A lack of memory is not the text's fault.
    """
    panicked = type(error).__name__ == "PanicException"
    if panicked or (isinstance(error, Exception) and not isinstance(error, MemoryError)):
        return one_line(str(error), _PROBLEM)
    raise error


# --- bytes of single tokens


def _parts(component: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer or decoder as tokenizer.json describes them."""
    parts = [] if component is None else [json.loads(component.__getstate__())]
    while parts:
        part = parts.pop(0)
        if part["type"] == "Sequence":
            parts = [*part.get("decoders", ()), *part.get("normalizers", ()), *parts]
        else:
            yield part


def _bytes(text: str, steps: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the bytes of a token, spelled `text`, within a text.

    Steps that look at more than one token (Fuse, Strip, clean-up of spaces) change nothing here.
    """
    for step in steps:
        match step["type"]:
            case "ByteLevel":
                return _byte_level(text)
            case "ByteFallback" if _is_byte(text):
                return bytes([int(text[3:5], 16)])
            case "Replace" if "String" in step["pattern"]:
                text = text.replace(step["pattern"]["String"], step["content"])
            case "Metaspace":
                text = text.replace(step["replacement"], " ")
            case "WordPiece":
                prefix = step["prefix"]
                text = text.removeprefix(prefix) if text.startswith(prefix) else " " + text
            case "BPEDecoder":
                text = text.replace(step["suffix"], " ")
    return text.encode()


def _is_byte(text: str) -> bool:
    """Tell whether a token is a byte, spelled <0x0A>."""
    digits = "0123456789ABCDEFabcdef"
    return (
        len(text) == 6
        and text.startswith("<0x")
        and text.endswith(">")
        and all(digit in digits for digit in text[3:5])
    )


def _byte_level(text: str) -> bytes:
    """Return the bytes that a byte-level token spells in printable characters.

    A token with any other character is a text, as the library has it.
    """
    if all(character in _BYTES for character in text):
        return bytes(_BYTES[character] for character in text)
    return text.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of GPT-2's alphabet.

    Printable characters of Latin-1 spell themselves, other bytes U+0100 and the next.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    invisible = [byte for byte in range(256) if byte not in set(printable)]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(invisible)},
    }


_BYTES = _byte_alphabet()
