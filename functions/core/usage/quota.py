"""Monthly quota of an access key.

Environments count a key with a quota by month, and read the count with the key. A quota
is soft: requests of the last UsageFlushSeconds and KeyCacheSeconds may exceed it.
"""

import time

from functions.core.errors import TooManyRequests
from functions.core.records import record
from functions.core.registry.table import Put, Table

DAY_S = 86_400
KEPT_DAYS = 40  # a month's count outlasts the month
EXHAUSTED = (
    "the access key's %d requests of this month are used up; its quota begins anew at %s: "
    "wait, or ask for a larger one"
)


@record
class Quota:
    """Requests that a key may make in a month, and those made."""

    requests: int
    used: int
    resets_s: int  # Unix time; then none are used

    def check(self, now_s: float) -> None:
        """Accept a request at a Unix time.

        Raises:
            TooManyRequests: the quota is used up.
        """
        if self.used < self.requests or now_s >= self.resets_s:
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.resets_s))
        raise TooManyRequests(
            EXHAUSTED % (self.requests, at),
            code="QUOTA_EXCEEDED",
            retry_after_s=max(1, int(self.resets_s - now_s) + 1),
        )


def month_of(now_s: float) -> str:
    """Return the month of a Unix time in UTC, e.g. 2026-11."""
    return time.strftime("%Y-%m", time.gmtime(now_s))


def next_month_s(now_s: float) -> int:
    """Return the Unix time at which the next month begins in UTC.

    >>> next_month_s(1795335330), next_month_s(1798761599)  # 2026-11-22, 2026-12-31
    (1796083200, 1798761600)
    """
    day = int(now_s) // DAY_S + 1
    month = time.gmtime(now_s).tm_mon
    while time.gmtime(day * DAY_S).tm_mon == month:
        day += 1
    return day * DAY_S


def read_quota(table: Table, key_id: str, requests: int, now_s: float) -> Quota:
    """Read a key's use of its quota; failed requests do not count."""
    from functions.core.usage.items import month_key  # not in a cold start without quotas

    [item] = table.get([month_key(key_id, month_of(now_s))])
    used = item.get("requests", 0) - item.get("errors", 0) if item else 0
    return Quota(requests, used, next_month_s(now_s))


def month_put(key_id: str, used: int, now_s: float) -> Put:
    """Return the write that begins a month's count in its middle."""
    from functions.core.usage.items import month_key

    pk, sk = month_key(key_id, month_of(now_s))
    expires_at = int(now_s) + KEPT_DAYS * DAY_S
    return Put({"pk": pk, "sk": sk, "requests": used, "expires_at": expires_at}, {})
