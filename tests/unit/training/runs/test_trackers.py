"""A tracker that fails ends no training, and leaves no run open."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from training.runs.trackers import Numbers, Runs, State, Tracker

pytestmark = pytest.mark.train


class Refusing:
    """Backend that refuses the metrics of an epoch."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def start(self, label: str, settings: Mapping[str, Any]) -> Tracker:
        self.log.append(("start", label, dict(settings)))
        return self

    def epoch(self, row: Numbers) -> None:
        self.log.append(("epoch", row["epoch"]))
        raise ValueError("no such metric")

    def end(self, state: State, metrics: Numbers, files: Sequence[Path], reason: str) -> None:
        self.log.append(("end", state, dict(metrics), list(files), reason))

    def close(self, state: State) -> None:
        self.log.append(("close", state))


@pytest.mark.parametrize("state", ["complete", "failed"])
def test_runs_of_a_failed_tracker_are_closed_without_content(
    state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Refusing()
    runs = Runs({"Refusing": lambda: backend})
    run = runs.start("model", {"seed": 0})
    for epoch in (1, 2):
        run.epoch({"epoch": epoch, "loss": 0.5})
    assert runs.start("seed-1", {}) is not None  # it gets no run there

    if state == "complete":
        run.end({"accuracy": 0.5}, [Path("model.onnx")])
        runs.close()
    else:
        with pytest.raises(KeyboardInterrupt), runs.failed_on_error():
            raise KeyboardInterrupt

    assert backend.log == [
        ("start", "model", {"seed": 0}),
        ("epoch", 1),
        ("end", state, {}, [], ""),
        ("close", state),
    ]
    assert capsys.readouterr().out.count("warning: Refusing fails") == 1
