"""Which version a name stands for, remembered for seconds.

A moved alias is seen at the latest when the memory of it ends. Lifetimes are cut short at random, so that the
environments of a busy function do not ask the registry in step. While the registry fails, the last answer stands.
Threads that want to know the same ask once.
"""

import copy
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from functions.core.errors import ModelNotFound, NotReady, Unavailable
from functions.core.registry.registry import Registry
from functions.core.registry.version import Resolved

JITTER = 0.2  # of a lifetime, only ever shortening it
STALE_SECONDS = 300.0  # how old an answer may be while the registry fails
RETRY_SECONDS = 1.0  # between two tries while it fails
REFUSAL_SECONDS = 1.0  # how long "not found" and "not ready" are believed
ANSWERS, REFUSALS = (
    2048,
    1024,
)  # names remembered; the outside chooses the refused ones, so they cannot push out others
LABELS = 64  # of its outputs make a version count as one name more
QUEUES = 64  # for threads that ask the registry; names that share one wait for each other

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
        """`clock` should count the time, too, for which this environment is frozen: `adapters.clock.Elapsed`."""
        self._registry = registry
        self._seconds = seconds
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._queues = [threading.Lock() for _ in range(QUEUES)]
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()
        self._weight = 0  # of the answers
        self._refusals: OrderedDict[_Key, tuple[ModelNotFound | NotReady, float]] = OrderedDict()
        self._forgotten = 0  # how often

    def resolve(self, model: str, reference: int | str | None) -> Resolved:
        """The READY version that `reference` stands for, or stood for at most `seconds` ago.

        Raises:
            ModelNotFound: no such model, version or alias.
            NotReady: it is known and not served.
            Unavailable: the registry fails, and nothing recent enough is known.
        """
        key = (model, reference)
        if (known := self._known(key)) is not None:
            return known
        with self._queues[hash(key) % QUEUES]:
            return self._known(key) or self._ask(key)

    def forget(self, model: str | None = None) -> None:
        """Ask the registry again for every name of `model`, or of every model."""
        with self._lock:
            self._forgotten += 1
            for key in [key for key in self._answers if model in (None, key[0])]:
                self._drop(key)
            for key in [key for key in self._refusals if model in (None, key[0])]:
                del self._refusals[key]

    def _known(self, key: _Key) -> Resolved | None:
        now = self._clock()
        answer = self._answers.get(key)
        if answer is not None and now < answer.fresh_until:
            return answer.resolved
        refusal = self._refusals.get(key)
        if refusal is not None and now < refusal[1]:
            raise copy.copy(refusal[0])
        return None

    def _ask(self, key: _Key) -> Resolved:
        now, forgotten = self._clock(), self._forgotten
        try:
            resolved = self._registry.resolve(*key)
        except (ModelNotFound, NotReady) as error:
            self._refuse(key, error, now, forgotten)
            raise
        except Unavailable:
            answer = self._answers.get(key)
            if answer is None or now > answer.read_at + STALE_SECONDS:
                raise
            answer.fresh_until = now + RETRY_SECONDS
            return answer.resolved
        self._remember(key, resolved, now, forgotten)
        return resolved

    def _remember(self, key: _Key, resolved: Resolved, now: float, forgotten: int) -> None:
        lifetime = self._seconds * (1 - JITTER * self._chance())
        with self._lock:
            self._refusals.pop(key, None)
            self._drop(key)
            if (
                forgotten != self._forgotten
            ):  # it may have been read before what made somebody forget
                return
            self._answers[key] = _Answer(resolved, now, now + lifetime)
            self._weight += _weight(resolved)
            while self._weight > ANSWERS and len(self._answers) > 1:
                self._drop(next(iter(self._answers)))

    def _drop(self, key: _Key) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._weight -= _weight(answer.resolved)

    def _refuse(
        self, key: _Key, error: ModelNotFound | NotReady, now: float, forgotten: int
    ) -> None:
        with self._lock:
            self._drop(key)
            if forgotten != self._forgotten:
                return
            # A copy: the traceback of what is raised holds on to the request and its body.
            self._refusals[key] = copy.copy(error), now + min(REFUSAL_SECONDS, self._seconds)
            self._refusals.move_to_end(key)
            if len(self._refusals) > REFUSALS:
                self._refusals.popitem(last=False)


def _weight(resolved: Resolved) -> int:
    signature = resolved.version.signature
    return 1 + sum(len(spec.labels) for spec in signature.outputs) // LABELS if signature else 1
