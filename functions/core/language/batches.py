"""Batches of texts of similar lengths, with little padding."""

from collections.abc import Iterator, Sequence

PADDING_MAX = 4  # a text is padded by at most a quarter of the longest, or by a few tokens
PADDING_FREE = 8


def batches(lengths: Sequence[int], tokens_max: int) -> Iterator[list[int]]:
    """Yield the indices of texts in batches, the longest texts first.

    A batch has at most `tokens_max` tokens with its padding, or one text.

    >>> list(batches([3, 40, 4, 38, 3], tokens_max=100))
    [[1, 3], [2, 0, 4]]
    """
    batch: list[int] = []
    longest = 0
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        padding = longest - lengths[at]
        if batch and (
            longest * (len(batch) + 1) > tokens_max
            or padding > max(PADDING_FREE, longest // PADDING_MAX)
        ):
            yield batch
            batch = []
        if not batch:
            longest = lengths[at]
        batch.append(at)
    if batch:
        yield batch
