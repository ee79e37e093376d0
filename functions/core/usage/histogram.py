"""Histogram of durations with fixed logarithmic buckets, which add up over environments.

Four buckets for each power of two of microseconds: a bucket is 14 to 25 % wide, and a quantile is
at most so far off. A histogram maps buckets to counts.
"""

from collections.abc import Mapping

SUB_BITS = 2  # 2 ** 2 buckets for each power of two
FIRST = 1 << SUB_BITS  # us; durations below have a bucket each
LAST_BUCKET = 103  # 2 ** 27 us, 134 s, and more: longer than any request may take

Histogram = Mapping[int, int]


def bucket_of(us: int) -> int:
    """Return the bucket of a duration in microseconds.

    >>> [bucket_of(us) for us in (0, 3, 4, 8, 9, 10, 1000, 10**12)]
    [0, 3, 4, 8, 8, 9, 35, 103]
    """
    if us < FIRST:
        return us if us > 0 else 0
    shift = us.bit_length() - SUB_BITS - 1
    bucket = (shift << SUB_BITS) + (us >> shift)
    return bucket if bucket < LAST_BUCKET else LAST_BUCKET


def lower_us(bucket: int) -> int:
    """Return the smallest duration of a bucket in microseconds.

    >>> [lower_us(bucket_of(us)) for us in (3, 8, 1000)]
    [3, 8, 896]
    """
    if bucket < FIRST:
        return bucket
    shift = (bucket >> SUB_BITS) - 1
    return (FIRST + bucket % FIRST) << shift


def quantile_us(histogram: Histogram, share: float) -> float | None:
    """Return a quantile of the durations in microseconds; None without any.

    Durations count as spread evenly over their bucket.

    >>> quantile_us({bucket_of(1000): 3}, 0.5)
    960.0
    """
    total = sum(histogram.values())
    if not total:
        return None
    rank, below = share * total, 0
    for bucket in sorted(histogram):
        count = histogram[bucket]
        if below + count >= rank:
            low, high = lower_us(bucket), lower_us(bucket + 1)
            return low + (high - low) * (rank - below) / count
        below += count
    return float(lower_us(max(histogram) + 1))
