"""Retries of registry writes that lost a race against another writer."""

import random
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from functions.core.errors import Unavailable
from functions.core.registry.table import Conflict

ATTEMPTS = 50  # tries of one write; a random pause follows each lost race


class Writer(Protocol):
    """Object whose writes are retried after a pause."""

    @property
    def _pause(self) -> Callable[[float], None]: ...


P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W", bound=Writer)


def retried(
    write: Callable[Concatenate[W, str, P], T],
) -> Callable[Concatenate[W, str, P], T]:
    """Decorate a registry write to retry after conflicts with other writers.

    The method is repeated as a whole, reads included. Its first argument names the contended item
    in the error message.
    """

    @wraps(write)
    def retry(self: W, name: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(ATTEMPTS):
            if attempt:
                limit_s = min(0.5, 0.01 * 2**attempt)
                self._pause(random.uniform(0, limit_s))  # noqa: S311 (jitter, no secret)
            try:
                return write(self, name, *args, **kwargs)
            except Conflict:
                continue
        raise Unavailable(f"'{name}' is being changed by too many writers at once; try again")

    return retry
