"""Permissions of an access key: scopes and patterns of model names."""

import re
from enum import StrEnum

from functions.core.errors import InvalidRequest, shown
from functions.core.records import record
from functions.core.usage.quota import Quota

PATTERNS_MAX = 50  # patterns of model names in one key
EVERY_MODEL = "*"
_PATTERN = re.compile(r"[A-Za-z0-9._*-]{1,128}", re.ASCII)


class Scope(StrEnum):
    """Scope of an access key: a kind of request that it permits.

    Every scope includes `read`, and `admin` includes every scope.
    """

    INFER = "infer"  # predictions
    READ = "read"  # metadata, the repository index, statistics; reads of the control plane
    DEPLOY = "deploy"  # load and unload; uploads and changes of models
    ADMIN = "admin"  # keys, all audit records, dead letters


@record
class Grant:
    """Permissions of a request: those of its access key.

    `models` are patterns of model names: "*" stands for any characters, also none.
    """

    key_id: str
    scopes: frozenset[Scope]
    models: tuple[str, ...]
    valid_until: int | None = None  # Unix seconds; None for ever
    quota: Quota | None = None
    max_tokens: int | None = None  # longest reply; None for no limit

    def allows(self, scope: Scope) -> bool:
        """Return True if a request that needs `scope` is permitted."""
        return scope is Scope.READ or scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees_all(self) -> bool:
        """True if every model exists for the caller."""
        return EVERY_MODEL in self.models

    def sees(self, model: str) -> bool:
        """Return True if a model of this name exists for the caller."""
        return self.sees_all or any(matches(pattern, model) for pattern in self.models)


# For requests that need no key, or were authorised before they came to the function.
UNLIMITED = Grant("", frozenset(Scope), (EVERY_MODEL,))


def matches(pattern: str, name: str) -> bool:
    """Return True if a model name matches a pattern.

    "*" stands for any characters, also none.

    >>> [matches("fraud-*-eu", name) for name in ("fraud-v2-eu", "fraud-eu", "fraud--eu")]
    [True, False, True]
    """
    if pattern == EVERY_MODEL:
        return True
    head, *middle = pattern.split("*")
    if not middle:
        return name == pattern
    tail = middle.pop()
    if not name.startswith(head):
        return False
    at = len(head)
    for part in middle:  # the leftmost match of each part leaves the most room for the next
        at = name.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return len(name) - len(tail) >= at and name.endswith(tail)


def check_grant(scopes: frozenset[Scope], models: tuple[str, ...]) -> None:
    """Validate the scopes and model-name patterns of a new access key.

    Raises:
        InvalidRequest: naming `scopes` or `models`.
    """
    if not scopes:
        raise InvalidRequest(f"scopes: empty; choose from {', '.join(Scope)}")
    if not 1 <= len(models) <= PATTERNS_MAX:
        raise InvalidRequest(f"models: {len(models)} patterns; send 1 to {PATTERNS_MAX}")
    for pattern in models:
        if not _PATTERN.fullmatch(pattern):
            raise InvalidRequest(
                f"models: {shown(pattern)} can match no model name; "
                "a pattern has 1 to 128 of A-Z a-z 0-9 . _ - and * for any characters"
            )
    if Scope.ADMIN in scopes and EVERY_MODEL not in models:
        raise InvalidRequest(
            "models: a key with the scope admin can create keys for every model; "
            f"send {EVERY_MODEL!r} or another scope"
        )
