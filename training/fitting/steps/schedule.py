"""Schedules of an epoch's rows and of the learning rate.

The rate warms up, then decays to zero by a cosine or line, or stays.
"""

import math

from training.errors import InvalidHyperparameter


def schedule(step: int, total: int, kind: str = "cosine", warm_up: float = 0.1) -> float:
    """Return the learning rate at a step, relative to the peak rate.

    The rate rises linearly over the first `warm_up` of the `total` steps.

    >>> [round(schedule(step, 5, "linear", warm_up=0.4), 2) for step in range(5)]
    [0.5, 1.0, 1.0, 0.67, 0.33]
    """
    rising = max(1, round(total * warm_up)) if warm_up else 0
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    decays = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return decays[kind]


def rows_per_epoch(rows: int, batch_size: int, processes: int, accumulate: int) -> int:
    """Return the rows of an epoch that go in parts of two.

    A last batch that would leave a process or a part with one row is left out: BatchNorm cannot
    normalize it. The order of rows differs in each epoch, and so do those left out.

    >>> [rows_per_epoch(rows, 32, 1, 1) for rows in (64, 65, 66)]
    [64, 64, 66]

    Raises:
        InvalidHyperparameter: every batch leaves such a part.
    """
    last = rows % batch_size
    if _smallest_part(min(rows, batch_size), processes, accumulate) < 2:
        raise InvalidHyperparameter(
            f"batch_size: BatchNorm needs two rows at least, and {min(rows, batch_size)} rows for "
            f"{processes} processes in {accumulate} parts leave one alone"
        )
    return rows - last if last and _smallest_part(last, processes, accumulate) < 2 else rows


def _smallest_part(rows: int, processes: int, accumulate: int) -> int:
    """Return the size of a batch's smallest part in any process."""
    sizes = (rows // processes, -(-rows // processes))
    return min(_last_chunk(size, accumulate) for size in sizes)


def _last_chunk(rows: int, count: int) -> int:
    step = max(-(-rows // count), 1)  # as torch.chunk cuts
    return (rows - 1) % step + 1 if rows else 0
