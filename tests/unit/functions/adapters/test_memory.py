"""Seconds that INIT may take."""

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
def test_init_ends_before_lambda_restarts_it(
    kind: str, age: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambda_size, "_process_age", lambda: age)

    assert init_seconds(kind) == seconds


def test_process_age_grows_with_time() -> None:
    before, began = lambda_size._process_age(), time.monotonic()
    while (passed := time.monotonic() - began) < 0.02:
        pass

    assert 0 < before < 24 * 3600
    assert lambda_size._process_age() - before >= passed / 2
