"""Kinds of authorisation that a stack's callers need."""

from enum import StrEnum


class Auth(StrEnum):
    """Authorisation of HTTP requests: the template's parameter `Auth`."""

    KEYS = "keys"  # checked here
    IAM = "iam"  # signatures, checked by API Gateway
    NONE = "none"


def parse_auth(text: str) -> Auth:
    """Parse a kind of authorisation.

    Raises:
        LookupError: there is no such kind.
    """
    try:
        return Auth(text)
    except ValueError:
        raise LookupError(f"AUTH is {text!r}; choose from {', '.join(Auth)}") from None
