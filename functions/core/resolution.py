"""Which version a name stands for, remembered for seconds.

A moved alias is seen at the latest when the memory of it ends. Lifetimes are cut short at random, so that the
environments of a busy function do not ask the registry in step. While the registry fails, the last answer stands.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from functions.core.errors import ModelNotFound, NotReady, Unavailable
from functions.core.registry import Registry, Resolved

JITTER = 0.2  # of a lifetime, only ever shortening it
STALE_SECONDS = 300.0  # how old an answer may be while the registry fails
RETRY_SECONDS = 1.0  # between two tries while it fails
REFUSAL_SECONDS = 1.0  # how long "not found" and "not ready" are believed
ANSWERS, REFUSALS = 4096, 1024  # names remembered; the outside chooses the refused ones, so they cannot push out others

_Key = tuple[str, int | str | None]


@dataclass(slots=True)
class _Answer:
    resolved: Resolved
    read_at: float
    fresh_until: float


class Resolver:
    """`Registry.resolve` with a memory of `seconds`; 0 remembers only for the time that the registry fails."""

    def __init__(
        self,
        registry: Registry,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._registry = registry
        self._seconds = seconds
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()
        self._refusals: OrderedDict[_Key, tuple[ModelNotFound | NotReady, float]] = OrderedDict()

    def resolve(self, model: str, reference: int | str | None) -> Resolved:
        """The READY version that `reference` stands for, or stood for at most `seconds` ago.

        Raises:
            ModelNotFound: no such model, version or alias.
            NotReady: it is known and not served.
            Unavailable: the registry fails, and nothing recent enough is known.
        """
        key = (model, reference)
        now = self._clock()
        answer = self._answers.get(key)
        if answer is not None and now < answer.fresh_until:
            return answer.resolved
        refusal = self._refusals.get(key)
        if refusal is not None and now < refusal[1]:
            raise refusal[0].with_traceback(None)
        try:
            resolved = self._registry.resolve(model, reference)
        except (ModelNotFound, NotReady) as error:
            self._refuse(key, error, now)
            raise
        except Unavailable:
            if answer is None or now > answer.read_at + STALE_SECONDS:
                raise
            answer.fresh_until = now + RETRY_SECONDS
            return answer.resolved
        self._remember(key, resolved, now)
        return resolved

    def forget(self, model: str) -> None:
        """Ask the registry again for every name of `model`."""
        with self._lock:
            for memory in (self._answers, self._refusals):
                for key in [key for key in memory if key[0] == model]:
                    del memory[key]

    def _remember(self, key: _Key, resolved: Resolved, now: float) -> None:
        lifetime = self._seconds * (1 - JITTER * self._chance())
        with self._lock:
            self._refusals.pop(key, None)
            self._answers[key] = _Answer(resolved, now, now + lifetime)
            self._answers.move_to_end(key)
            if len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)

    def _refuse(self, key: _Key, error: ModelNotFound | NotReady, now: float) -> None:
        with self._lock:
            self._answers.pop(key, None)
            self._refusals[key] = error, now + min(REFUSAL_SECONDS, self._seconds)
            self._refusals.move_to_end(key)
            if len(self._refusals) > REFUSALS:
                self._refusals.popitem(last=False)
