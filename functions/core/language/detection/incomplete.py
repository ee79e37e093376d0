"""Error of a package that lacks a piece of its language model."""

from functions.core.errors import InvalidModel


def incomplete(piece: str) -> InvalidModel:
    """Return the LANGUAGE_INCOMPLETE error, which names the missing piece."""
    return InvalidModel(
        f"the package has a tokenizer.json, and of its language model {piece}; without "
        "tokenizer.json it would be served as an ordinary model",
        code="LANGUAGE_INCOMPLETE",
    )
