"""Learning-rate schedules: warm-up, then cosine or linear decay to zero, or constant."""

import math


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
