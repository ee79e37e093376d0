# Written by scripts/sync_client.py from mayfly/client/aio: change that.
"""Synchronous client of a stack."""

import os
from collections.abc import Mapping
from typing import Any, Self

from mayfly.client import config
from mayfly.client.http1.retries import RETRIES, RetryPolicy
from mayfly.client.sync.administration import Administration
from mayfly.client.sync.caller import TIMEOUT_S, Caller
from mayfly.client.sync.model import Model


class Mayfly(Administration):
    """Client of one stack, by URL (output ApiUrl) and access key.

    It keeps connections open and may be used by many threads at once; end it with `with`, or
    with `close()`. `timeout` is in seconds, for a call with its `retries`.
    """

    def __init__(
        self, url: str, key: str = "", *, timeout: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        self._caller = Caller(url, key, timeout, RetryPolicy(retries))
        self._key = key

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ, **options: Any) -> Self:
        """Return the client of MAYFLY_URL and MAYFLY_KEY, or of `mayfly login`.

        Raises:
            NotConfigured: there is neither.
        """
        stored = config.load(environment)
        return cls(stored.url, stored.key, **options)

    def __repr__(self) -> str:
        key = config.public_part(self._key)
        return f"<{type(self).__name__} {self._caller.transport.address} key {key}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._caller.transport.close()

    def model(self, name: str, version: str | int | None = None) -> Model:
        """Return a model, or its version or alias, without a request.

        `model("digits:8")` is `model("digits", 8)`.
        """
        if version is None and ":" in name:
            name, _, version = name.partition(":")
        return Model(self._caller, name, version)
