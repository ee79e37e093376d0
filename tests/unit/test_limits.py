"""What an environment may take: time to start, and memory."""

import time

import pytest

from functions.adapters import limits
from functions.adapters.limits import init_seconds


@pytest.mark.parametrize(
    ("kind", "age", "seconds"),
    [("on-demand", 1.5, 6.0), ("on-demand", 100.0, 0.0), ("provisioned-concurrency", 1.5, 60), ("snap-start", 1.5, 60)],
)
def test_a_start_ends_before_lambda_would_begin_it_again(
    kind: str, age: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_process_age", lambda: age)

    assert init_seconds(kind) == seconds


def test_a_process_knows_its_age() -> None:
    before, began = limits._process_age(), time.monotonic()
    while (passed := time.monotonic() - began) < 0.02:
        pass

    assert 0 < before < 24 * 3600
    assert limits._process_age() - before >= passed / 2
