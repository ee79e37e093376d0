"""Regular expressions for the metrics in training's log lines."""

from __future__ import annotations

from training.evaluation import metrics as evaluate
from training.recipe import Task

ANYTHING = r"[\s\S]*"
NUMBER = r"(-?[0-9.]+(?:e[+-]?[0-9]+)?)"


def metrics(task: Task | None = None) -> dict[str, str]:
    """Regular expressions by name, for what the loop and the report print of `task`, or of any task.

    >>> metrics("regression")["test:r2"]
    'test_r2=(-?[0-9.]+(?:e[+-]?[0-9]+)?)'
    """
    tasks: list[Task] = [task] if task else list(evaluate.PRIMARY)
    validated = dict.fromkeys(["loss", *(evaluate.PRIMARY[one].metric for one in tasks)])
    tested = dict.fromkeys(name for one in tasks for name in evaluate.names(one))
    return {
        "train:loss": rf"epoch \d+/\d+ +loss={NUMBER}",
        "train:examples_per_s": r"  rate=([0-9.]+)/s",
        **{f"validation:{name}": f"validation_{name}={NUMBER}" for name in validated},
        **{f"test:{name}": f"test_{name}={NUMBER}" for name in tested},
        "train:epoch": r"epoch (\d+)/\d+ ",  # last: who sees it sees what came with it
    }
