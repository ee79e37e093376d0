"""Meter of an environment: counts requests, and writes the counts after replies.

A request costs an entry in a list; a few dozen entries are added to the counters at once, while
that code is in the processor's caches. It halves the time of a count.
One write for each interval, of a bounded number of items; what does not fit waits for the next. A
write is repeated with its token, so it counts once. What an environment counted since its last
write is lost when it ends (docs/decisions/0042-metering.md).
"""

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from functions.core.errors import Unavailable
from functions.core.records import mutable_record
from functions.core.registry.table import Add, Conflict, Table
from functions.core.usage.counters import Counters
from functions.core.usage.histogram import bucket_of
from functions.core.usage.items import RowKey, adds_of

SECONDS = 10.0  # interval of writes
KEEP_DAYS = 400  # a month can be compared with the same one a year ago
ROWS_MAX = 1024  # rows in memory; while the table fails, further ones are lost
ROWS_WRITE = 30  # rows of a write; each is at most three of the 100 items of a transaction
PAUSE_S = 30.0  # between attempts while the table fails
JITTER = 0.2  # largest fraction by which an interval is shortened: environments drift apart
TOKEN_S = 300.0  # DynamoDB knows a token for ten minutes; half of it leaves room for clocks
WRITES_LAST = 2 * ROWS_MAX // ROWS_WRITE  # at most so many when the environment ends
RECENT = 64  # requests that are added to the counters at once; about 0.1 ms
NO_STAGES: Mapping[str, int] = MappingProxyType({})

_Key = tuple[str, int, str, str, str]  # model, version, alias, access key, traffic object
_Sizes = tuple[int, int, int, int, int]  # bytes in and out, inferences, tokens in and out
_Flags = tuple[bool, bool, bool]  # cold start, drawn by chance, key with a quota
# Key, status, ns, sizes, flags, stages' ns, Unix time
_Request = tuple[_Key, int, int, _Sizes, _Flags, Mapping[str, int], float]


@mutable_record
class _Batch:
    """Write of counts that may have to be repeated."""

    adds: list[Add]
    requests: int
    token: str
    until: float  # by the clock; later, a repetition might count twice


class Meter:
    """Counters of an environment by model, version, alias, key and traffic object."""

    def __init__(
        self,
        table: Table,
        seconds: float = SECONDS,
        keep_days: int = KEEP_DAYS,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        start_s: Callable[[], float] = lambda: 0.0,
        warn: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Write to `table` every `seconds`.

        `now` returns Unix time, `clock` seconds that include frozen time and never go back,
        `chance` a number from 0 to 1. `start_s` returns the seconds that
        this environment took to start, which count with the first request. `warn` gets a sentence
        about counts that are lost.
        """
        self._table = table
        self.seconds = seconds
        self._keep_days = keep_days
        self._clock = clock
        self._now = now
        self._chance = chance
        self._start_s: Callable[[], float] | None = start_s
        self._warn = warn
        self._lock = threading.Lock()
        self._rows: dict[_Key, Counters] = {}
        self._quota_keys: set[str] = set()
        self._recent: deque[_Request] = deque()
        # In Unix time, which is cheaper to read than the clock:
        self._flushed = 0.0
        self._due = 0.0  # the first reply is followed by a write
        self._resume = 0.0  # no write earlier, because the table failed
        self._batch: _Batch | None = None  # sent, without an answer
        self.lost = 0  # requests whose counts were given up

    def count(
        self,
        model: str,
        version: int,
        alias: str,
        key: str,
        traffic: str,
        status: int,
        latency_ns: int,
        *,
        cold: bool = False,
        bytes_in: int = 0,
        bytes_out: int = 0,
        inferences: int = 0,
        tokens_in: int = 0,
        tokens_out: int = 0,
        drawn: bool = False,
        stages_ns: Mapping[str, int] = NO_STAGES,
        has_quota: bool = False,
    ) -> None:
        """Count a request that was answered by a version.

        `alias` and `key` (an access key's id) are "" if there is none, `traffic` is the id of the
        alias's traffic object or "". `inferences` is the number of rows of a successful run, and
        `drawn` says that chance chose the version, not the caller.
        """
        row = model, version, alias, key, traffic
        sizes = bytes_in, bytes_out, inferences, tokens_in, tokens_out
        flags = cold, drawn, has_quota
        self._recent.append((row, status, latency_ns, sizes, flags, stages_ns, self._now()))
        if len(self._recent) >= RECENT:
            with self._lock:
                self._add_recent()

    def count_shadow(
        self,
        model: str,
        version: int,
        alias: str,
        traffic: str,
        latency_ns: int,
        *,
        agreed: bool | None,
    ) -> None:
        """Count a copy of a request that a shadow version ran.

        `agreed` says if both answers are equal, None if the shadow did not answer. Its time counts
        for the model, its request does not.
        """
        with self._lock:
            key = model, version, alias, "", traffic
            row = self._rows.get(key) or self._row(*key)
            row.shadowed += 1
            row.ms += -(-latency_ns // 1_000_000)
            bucket = bucket_of(latency_ns // 1000)
            row.shadow_latency[bucket] = row.shadow_latency.get(bucket, 0) + 1
            if agreed is None:
                row.failed += 1
            else:
                row.compared += 1
                row.agreed += agreed

    def flush_due(self, *, early: bool = False) -> None:
        """Write counts if the interval since the last write is over.

        `early` does not wait for the interval, only for a table that failed.

        Raises:
            Exception: the table refused the write, which is a bug; the counts are given up.
        """
        due = self._resume if early else self._due
        if not self._flushed <= self._now() < due:  # a clock that is set back delays no write
            self.flush()

    def flush(self) -> None:
        """Write counts now, in one transaction of bounded size.

        Raises:
            Exception: as for `flush_due`.
        """
        self._flushed = self._now()
        self._due = self._flushed + self.seconds * (1 - JITTER * self._chance())
        now = self._clock()
        batch = self._current(now)
        if batch is None:
            return
        self._batch = None
        try:
            self._table.add(batch.adds, batch.token)
        except Conflict:  # nothing is written: environments write the same items at times
            batch.token, batch.until = _token(), now + TOKEN_S
            self._batch = batch
            self._due = self._flushed + self.seconds * self._chance() / 2
        except Unavailable:  # it may be written, or not
            self._batch = batch
            # After the call, which may have waited long: the next requests shall not wait again.
            self._resume = self._now() + max(self.seconds, PAUSE_S)
            self._due = self._resume
        except BaseException:
            self._give_up(batch.requests)
            raise

    def flush_all(self) -> None:
        """Write every count, because the environment ends.

        Raises:
            Exception: as for `flush_due`.
        """
        for _ in range(WRITES_LAST):
            if not (self._rows or self._recent or self._batch):
                return
            self.flush_due(early=True)

    def unwritten(self) -> list[tuple[RowKey, Counters]]:
        """Return copies of the counters that no write has begun with."""
        with self._lock:
            self._add_recent()
            return [(RowKey(*key), _copy(row)) for key, row in self._rows.items()]

    def _add_recent(self) -> None:
        """Add recent requests to the counters; the lock is held."""
        recent = self._recent
        while recent:
            key, status, latency_ns, sizes, flags, stages_ns, now = recent.popleft()
            row = self._rows.get(key) or self._row(*key)
            _count(row, status, latency_ns, sizes)
            cold, drawn, has_quota = flags
            row.cold_starts += cold
            row.drawn += drawn
            if status < 400 and sizes[2]:
                _count_run(row, sizes[2], stages_ns)
                row.last_ms = int(now * 1000)
            if has_quota:
                self._quota_keys.add(key[3])
            if self._start_s is not None:
                row.ms += round(self._start_s() * 1000)
                self._start_s = None

    def _row(self, *key: *_Key) -> Counters:
        """Add a row and return it; the lock is held.

        Without room, it is not kept."""
        row = Counters()
        if len(self._rows) < ROWS_MAX:
            self._rows[key] = row
        else:
            if self._batch is None:
                self._due = 0.0
            self._give_up(1)
        return row

    def _current(self, now: float) -> _Batch | None:
        """Return the write that has had no answer, else the next one."""
        batch = self._batch
        if batch is not None and now >= batch.until:
            self._give_up(batch.requests)
            batch = None
        return batch or self._next(now)

    def _next(self, now: float) -> _Batch | None:
        with self._lock:
            self._add_recent()
            keys = _of_one_write(self._rows)
            rows = [(RowKey(*key), self._rows.pop(key)) for key in keys]
            quota_keys, self._quota_keys = self._quota_keys, set()
            self._quota_keys |= quota_keys & {key[3] for key in self._rows}
        if not rows:
            return None
        adds = adds_of(rows, quota_keys, self._now(), self._keep_days)
        requests = sum(row.requests for _, row in rows)
        return _Batch(adds, requests, _token(), now + TOKEN_S)

    def _give_up(self, requests: int) -> None:
        if not self.lost:
            self._warn("counts of requests are lost: the registry's table does not take them")
        self.lost += requests


def _of_one_write(rows: Iterable[_Key]) -> list[_Key]:
    """Return the keys of the rows to write next, oldest first.

    The versions of one split go together: a canary compares their numbers of requests.
    """
    splits: dict[tuple[object, ...], list[_Key]] = {}
    for row in rows:
        model, _, alias, key, traffic = row
        split = (model, alias, key, traffic) if traffic else row
        splits.setdefault(split, []).append(row)
    keys: list[_Key] = []
    for members in splits.values():
        if len(keys) + len(members) > ROWS_WRITE:
            break
        keys += members
    return keys


def _count(row: Counters, status: int, latency_ns: int, sizes: _Sizes) -> None:
    row.requests += 1
    row.ms += -(-latency_ns // 1_000_000)
    row.bytes_in += sizes[0]
    row.bytes_out += sizes[1]
    row.tokens_in += sizes[3]
    row.tokens_out += sizes[4]
    bucket = bucket_of(latency_ns // 1000)
    row.latency[bucket] = row.latency.get(bucket, 0) + 1
    if status >= 400:
        row.fail_ns += latency_ns
        if status >= 500:
            row.errors += 1
        else:
            row.refused += 1


def _count_run(row: Counters, inferences: int, stages_ns: Mapping[str, int]) -> None:
    row.executions += 1
    row.inferences += inferences
    row.queue_ns += stages_ns.get("load", 0)
    row.input_ns += stages_ns.get("decode", 0)
    row.infer_ns += stages_ns.get("compute", 0)
    row.output_ns += stages_ns.get("encode", 0)


def _copy(row: Counters) -> Counters:
    copy = Counters()
    copy.add(row)
    return copy


def _token() -> str:
    return os.urandom(16).hex()
