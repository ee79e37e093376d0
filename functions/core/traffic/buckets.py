"""Hash buckets: which version of a split a caller gets.

A caller has one of 10,000 buckets for each alias, whatever versions it splits between. The first
candidate's buckets begin at the start and the second's at the end; the stable version has those
between. So a candidate that grows out of the stable version only gains callers.
"""

import hashlib

BUCKETS = 10_000  # one is 0.01 % of the callers


def bucket_of(model: str, alias: str, caller: str) -> int:
    """Return a caller's bucket for an alias, equal in every environment.

    >>> bucket_of("digits", "prod", "ann"), bucket_of("digits", "beta", "ann")
    (3660, 6937)
    """
    text = f"{model}\n{alias}\n{caller}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % BUCKETS


def place_of(bucket: int, first: int, second: int) -> int:
    """Return a bucket's candidate, 1 or 2; 0 if stable.

    `first` and `second` are the candidates' numbers of buckets. As they grow, no bucket leaves
    them:

    >>> [place_of(700, first, 0) for first in (0, 500, 1_000, 10_000)]
    [0, 0, 1, 1]
    >>> [place_of(9_500, 1_000, second) for second in (0, 400, 600, 9_000)]
    [0, 0, 2, 2]
    """
    if bucket < first:
        return 1
    return 2 if bucket >= BUCKETS - second else 0
