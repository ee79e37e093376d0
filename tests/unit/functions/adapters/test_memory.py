"""What an environment may take: time to start, and memory."""

import time

import pytest

from functions.adapters import lambda_size
from functions.adapters.lambda_size import init_seconds


@pytest.mark.parametrize(
    ("kind", "age", "seconds"),
    [
        ("on-demand", 1.5, 6.0),
        ("on-demand", 100.0, 0.0),
        ("provisioned-concurrency", 1.5, 60),
        ("snap-start", 1.5, 60),
    ],
)
def test_a_start_ends_before_lambda_would_begin_it_again(
    kind: str, age: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambda_size, "_process_age", lambda: age)

    assert init_seconds(kind) == seconds


def test_a_process_knows_its_age() -> None:
    before, began = lambda_size._process_age(), time.monotonic()
    while (passed := time.monotonic() - began) < 0.02:
        pass

    assert 0 < before < 24 * 3600
    assert lambda_size._process_age() - before >= passed / 2
