"""Check of requests' access keys, with caches of verified and refused ones.

A verified key is read again after `seconds`, so a revoked or replaced one works that long at most.
While the registry fails, the last answer counts. Unknown, wrong, revoked and expired keys cost one
read each and have the same reply; malformed ones cost none, because anybody can tell them apart.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from functions.core.access.grants import Grant, Scope
from functions.core.access.keys import key_digest, parse_key
from functions.core.errors import (
    Forbidden,
    InvalidRequest,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from functions.core.records import mutable_record
from functions.core.registry.resolver import JITTER, RETRY_SECONDS, STALE_SECONDS

GRANTS = 1024  # verified keys in the cache
REFUSALS = 4096  # refused keys in the cache, apart: callers choose them and must not evict others
LOCKS = 64  # locks for reads of keys; keys with the same lock wait for each other
# Reads of keys that turn out to be refused: so many at once, then so many a second. Others wait.
BURST = 100
PER_SECOND = 10.0

MISSING = "no access key came: send it in the header authorization, as Bearer, or in x-api-key"
INVALID = "the access key is mistyped, unknown, revoked or expired: ask for another one"

# Arguments: a key's id, its SHA-256, and the time in Unix seconds
ReadGrant = Callable[[str, str, float], Grant | None]


@mutable_record
class _Verified:
    grant: Grant
    read_at: float
    fresh_until: float


class Gate:
    """Cache of access keys that authorises requests by their headers."""

    def __init__(
        self,
        read: ReadGrant,
        seconds: float,
        clock: Callable[[], float],
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Cache answers of `read` for `seconds`, as measured by `clock`.

        `clock` should include time in which Lambda froze this environment: `adapters.clock.Elapsed`
        does. `now` returns Unix time, `chance` a number from 0 to 1.
        """
        self._read_grant = read
        self._seconds = seconds
        self._clock = clock
        self._now = now
        self._chance = chance
        self._lock = threading.Lock()
        self._read_locks = [threading.Lock() for _ in range(LOCKS)]
        self._verified: OrderedDict[str, _Verified] = OrderedDict()  # by SHA-256
        self._refused: OrderedDict[str, float] = OrderedDict()  # until when, by SHA-256
        self._allowance = _Allowance(clock)

    def authorize(self, headers: Mapping[str, str], scope: Scope) -> Grant:
        """Return the permissions of the key in a request's headers.

        `headers` have lower-case names.

        Raises:
            InvalidRequest: the headers hold two different keys.
            Unauthenticated: there is no key, or it is not valid.
            Forbidden: it lacks the scope.
            TooManyRequests: too many keys turned out to be invalid a moment ago, or the key's
                quota is used up.
            Unavailable: the registry fails, and no answer is recent enough.
        """
        grant = self.verify(presented_key(headers))
        if not grant.allows(scope):
            scopes = ", ".join(sorted(grant.scopes))
            raise Forbidden(f"this request needs a key with the scope {scope}; yours has {scopes}")
        if grant.quota is not None and scope is Scope.INFER:
            grant.quota.check(self._now())
        return grant

    def verify(self, key: str) -> Grant:
        """Return the permissions of an access key, preferably cached.

        Raises:
            Unauthenticated, TooManyRequests, Unavailable: as for `authorize`.
        """
        digest = key_digest(key)
        grant = self._cached(digest)
        if grant is None:
            key_id = parse_key(key)
            if key_id is None:
                raise Unauthenticated(INVALID)
            with self._read_locks[hash(digest) % LOCKS]:
                grant = self._cached(digest) or self._read(key_id, digest)
        if grant.valid_until is not None and grant.valid_until <= self._now():
            raise Unauthenticated(INVALID)
        return grant

    def invalidate(self) -> None:
        """Drop all cached keys."""
        with self._lock:
            self._verified.clear()
            self._refused.clear()

    def _cached(self, digest: str) -> Grant | None:
        now = self._clock()
        verified = self._verified.get(digest)
        if verified is not None and now < verified.fresh_until:
            return verified.grant
        if now < self._refused.get(digest, 0.0):
            raise Unauthenticated(INVALID)
        return None

    def _read(self, key_id: str, digest: str) -> Grant:
        """Read a key's permissions from the registry and cache the answer."""
        verified = self._verified.get(digest)
        if verified is None:
            self._allowance.take()
        now = self._clock()
        try:
            grant = self._read_grant(key_id, digest, self._now())
        except Unavailable:
            if verified is None:
                self._allowance.give_back()
                raise
            if now > verified.read_at + STALE_SECONDS:
                raise
            verified.fresh_until = now + RETRY_SECONDS
            return verified.grant
        if grant is None or (grant.valid_until is not None and grant.valid_until <= self._now()):
            self._cache_refusal(digest, now)
            raise Unauthenticated(INVALID)
        if verified is None:
            self._allowance.give_back()
        self._cache(digest, grant, now)
        return grant

    def _cache(self, digest: str, grant: Grant, now: float) -> None:
        lifetime = self._seconds * (1 - JITTER * self._chance())
        with self._lock:
            self._verified[digest] = _Verified(grant, now, now + lifetime)
            self._verified.move_to_end(digest)
            if len(self._verified) > GRANTS:
                self._verified.popitem(last=False)

    def _cache_refusal(self, digest: str, now: float) -> None:
        with self._lock:
            self._verified.pop(digest, None)
            self._refused[digest] = now + self._seconds
            self._refused.move_to_end(digest)
            if len(self._refused) > REFUSALS:
                self._refused.popitem(last=False)


class _Allowance:
    """Token bucket of the reads that may end in a refusal."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left = float(BURST)
        self._counted_at = clock()

    def take(self) -> None:
        """Take one read, or raise TooManyRequests if none is left."""
        with self._lock:
            now = self._clock()
            self._left = min(BURST, self._left + (now - self._counted_at) * PER_SECOND)
            self._counted_at = now
            if self._left < 1:
                raise TooManyRequests(
                    "too many invalid access keys came; a valid key that is new here has to wait: "
                    "try again after the seconds in retry-after"
                )
            self._left -= 1

    def give_back(self) -> None:
        """Give back a read that did not end in a refusal."""
        with self._lock:
            self._left += 1


def presented_key(headers: Mapping[str, str]) -> str:
    """Return the access key in a request's headers (lower-case names).

    >>> presented_key({"authorization": "Bearer mfy_a_b"}), presented_key({"x-api-key": "mfy_a_b"})
    ('mfy_a_b', 'mfy_a_b')

    Raises:
        Unauthenticated: there is none.
        InvalidRequest: there are two different ones.
    """
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    bearer = credentials.strip() if scheme.lower() == "bearer" else ""
    plain = headers.get("x-api-key", "").strip()
    if bearer and plain and bearer != plain:
        raise InvalidRequest("authorization and x-api-key hold two different keys: send one")
    if not (key := bearer or plain):
        raise Unauthenticated(MISSING, code="KEY_MISSING")
    return key
