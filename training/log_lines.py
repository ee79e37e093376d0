"""Regular expressions that parse metrics from training log lines, for SageMaker.

They are the metric definitions of SageMaker jobs. fitting/progress.py and evaluation/report.py
print the lines.
"""

from __future__ import annotations

from training.evaluation.metrics import NAMES, PRIMARY
from training.recipe import Task

NUMBER = r"(-?[0-9.]+(?:e[+-]?[0-9]+)?)"


def metrics(task: Task | None = None) -> dict[str, str]:
    """Return each metric's log-line regular expression, for one task or all.

    >>> metrics("regression")["test:r2"]
    'test_r2=(-?[0-9.]+(?:e[+-]?[0-9]+)?)'
    """
    tasks: list[Task] = [task] if task else list(PRIMARY)
    primary = (PRIMARY[each].metric for each in tasks)
    validation = dict.fromkeys(["loss", *primary])
    test = dict.fromkeys(name for each in tasks for name in NAMES[each])
    return {
        "train:loss": rf"epoch \d+/\d+ +loss={NUMBER}",
        "train:examples_per_s": r"  rate=([0-9.]+)/s",
        **{f"validation:{name}": f"validation_{name}={NUMBER}" for name in validation},
        **{f"test:{name}": f"test_{name}={NUMBER}" for name in test},
        # Last, so that a reader who sees an epoch has seen the metrics printed with it.
        "train:epoch": r"epoch (\d+)/\d+ ",
    }
