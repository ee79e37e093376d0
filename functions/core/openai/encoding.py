"""Limits on texts before a tokenizer sees them.

A tokenizer's library ends the process where memory is missing, so both are checked before.
"""

from functions.core.language.spec import LanguageSpec
from functions.core.openai.errors import InvalidParameter
from functions.core.protocol.effort import check_room

TOKEN_CHARACTERS = 64  # no text has more for each of its tokens, apart from rows of spaces
ENCODING_BYTES = 350  # memory that a tokenizer takes for each byte of UTF-8 (measured: 65 to 340)


def check_text(text: str, spec: LanguageSpec, param: str) -> None:
    """Check a text's length against context and free memory.

    Raises:
        InvalidParameter: it is too long, before counting tokens.
        MemoryError: there is not enough to encode it.
    """
    most = spec.context * TOKEN_CHARACTERS
    if len(text) > most:
        raise InvalidParameter(
            param,
            f"this model's maximum context length is {spec.context} tokens, for which at most "
            f"{most} characters are read, and you sent {len(text)}; send a shorter text",
            code="CONTEXT_LENGTH_EXCEEDED",
        )
    check_room(ENCODING_BYTES * len(text.encode("utf-8", "surrogatepass")))
