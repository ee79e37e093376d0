"""Cache that resolves a model's alias or version number to a version.

A moved alias is seen at the latest when the cached answer expires. Lifetimes are shortened at
random, so that the environments of a busy function do not all read the registry at once. While
the registry fails, the last answer is served. Concurrent requests for one reference share a read.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from functions.core.errors import ModelNotFound, NotReady, NotServable, Unavailable, copy_error
from functions.core.records import mutable_record
from functions.core.registry.registry import Registry
from functions.core.registry.version import Resolved, Version

JITTER = 0.2  # largest fraction by which a lifetime is shortened
STALE_SECONDS = 300.0  # maximum age of an answer that is served while the registry fails
RETRY_SECONDS = 1.0  # pause between two reads of a failing registry
REFUSAL_SECONDS = 1.0  # lifetime of a cached "not found" or "not ready"
ANSWERS = 2048  # cache entries for resolved references
REFUSALS = 1024  # apart from the answers: callers choose these names and must not evict answers
LABELS = 64  # output labels that weigh as much as one more cache entry
LOCKS = 64  # locks for reads of the registry; references with the same lock wait for each other

_Key = tuple[str, int | str | None]
# Answers of the registry, and not its failures
_Refusal = ModelNotFound | NotReady | NotServable
_REFUSALS = (ModelNotFound, NotReady, NotServable)


@mutable_record
class _Answer:
    resolved: Resolved
    read_at: float
    fresh_until: float


class Resolver:
    """Cache of aliases and version numbers resolved to READY model versions.

    Answers are fresh for `seconds`; with 0 they only serve while the registry fails.
    """

    def __init__(
        self,
        registry: Registry,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Cache answers of `registry` for `seconds`, as measured by `clock`.

        `clock` should include time in which Lambda froze this environment: `adapters.clock.Elapsed`
        does. `chance` returns a number from 0 to 1.
        """
        self._registry = registry
        self._seconds = seconds
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._read_locks = [threading.Lock() for _ in range(LOCKS)]
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()
        self._weight = 0  # sum of the answers' weights
        self._refusals: OrderedDict[_Key, tuple[_Refusal, float]] = OrderedDict()
        self._invalidations = 0

    def resolve(self, model: str, reference: int | str | None) -> Resolved:
        """Return a model's READY version for an alias or number, preferably cached.

        The answer is at most `seconds` old, or STALE_SECONDS while the registry fails.

        Raises:
            ModelNotFound: no such model, version or alias.
            NotReady: the version is not served yet, or not now.
            NotServable: the version is rejected or archived.
            Unavailable: the registry fails, and no answer is recent enough.
        """
        key = (model, reference)
        answer = self._answers.get(key)
        if answer is not None and self._clock() < answer.fresh_until:
            return answer.resolved
        with self._read_locks[hash(key) % LOCKS]:
            return self._cached(key) or self._read(key)

    def invalidate(self, model: str | None = None) -> None:
        """Drop the cached versions of one model, or of all models."""
        with self._lock:
            self._invalidations += 1
            for key in [key for key in self._answers if model in (None, key[0])]:
                self._drop(key)
            for key in [key for key in self._refusals if model in (None, key[0])]:
                del self._refusals[key]

    def _cached(self, key: _Key) -> Resolved | None:
        now = self._clock()
        answer = self._answers.get(key)
        if answer is not None and now < answer.fresh_until:
            return answer.resolved
        refusal = self._refusals.get(key)
        if refusal is not None and now < refusal[1]:
            raise copy_error(refusal[0])
        return None

    def _read(self, key: _Key) -> Resolved:
        now, invalidations = self._clock(), self._invalidations
        try:
            resolved = self._registry.resolve(*key)
        except _REFUSALS as error:
            self._cache_refusal(key, error, now, invalidations)
            raise
        except Unavailable:
            answer = self._answers.get(key)
            if answer is None or now > answer.read_at + STALE_SECONDS:
                raise
            answer.fresh_until = now + RETRY_SECONDS
            return answer.resolved
        self._cache(key, resolved, now, invalidations)
        return resolved

    def _cache(self, key: _Key, resolved: Resolved, now: float, invalidations: int) -> None:
        lifetime = self._seconds * (1 - JITTER * self._chance())
        with self._lock:
            self._refusals.pop(key, None)
            previous = self._answers.get(key)
            if previous is not None and previous.resolved == resolved:
                resolved = previous.resolved  # a request compares files by identity first
            self._drop(key)
            if invalidations != self._invalidations:
                return  # the read may have been older than the change that invalidated it
            self._answers[key] = _Answer(resolved, now, now + lifetime)
            self._weight += _weight(resolved)
            while self._weight > ANSWERS and len(self._answers) > 1:
                self._drop(next(iter(self._answers)))

    def _cache_refusal(self, key: _Key, error: _Refusal, now: float, invalidations: int) -> None:
        with self._lock:
            self._drop(key)
            if invalidations != self._invalidations:
                return
            # A copy: the traceback of the raised error keeps the request and its body alive.
            self._refusals[key] = copy_error(error), now + min(REFUSAL_SECONDS, self._seconds)
            self._refusals.move_to_end(key)
            if len(self._refusals) > REFUSALS:
                self._refusals.popitem(last=False)

    def _drop(self, key: _Key) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._weight -= _weight(answer.resolved)


def _weight(resolved: Resolved) -> int:
    if resolved.traffic is not None:
        weights = [_version_weight(side.version) for side in resolved.sides.values()]
        shadow = [_version_weight(resolved.shadow)] if resolved.shadow else []
        return _version_weight(resolved.version) + sum(weights) + sum(shadow)
    return _version_weight(resolved.version)


def _version_weight(version: Version) -> int:
    signature = version.signature
    return 1 + sum(len(spec.labels) for spec in signature.outputs) // LABELS if signature else 1
