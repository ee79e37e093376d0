"""Fixture: one simulated cloud for all examples of a test file."""

from collections.abc import Iterator

import pytest

from tests.stateful.cloud import Cloud, cloud


@pytest.fixture(scope="module")
def aws() -> Iterator[Cloud]:
    with cloud() as simulated, pytest.MonkeyPatch.context() as patched:
        patched.setenv("POWERTOOLS_METRICS_DISABLED", "true")  # they would print thousands of lines
        yield simulated
