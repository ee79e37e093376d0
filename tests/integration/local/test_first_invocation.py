"""Functions in a process of their own, under both runtime clients."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.children import empty
from benchmarks.harness.cloud import plain_environment
from benchmarks.harness.measure import ROOT
from benchmarks.harness.runtime.first_invocation import CLIENTS, invoke


def environment(tmp: Path) -> Mapping[str, str]:
    return {**plain_environment(tmp), "LAMBDA_TASK_ROOT": str(ROOT)}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_reply_to_the_first_event_is_timed(client: str, tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text("{}")

    duration_ms, reply = invoke(
        "benchmarks.children.empty.lambda_handler", event, client, environment, tmp_path
    )

    assert duration_ms > 0
    assert reply == empty.REPLY
    assert list(tmp_path.iterdir()) == [event]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_handler_that_is_missing_ends_the_benchmark(client: str, tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text("{}")

    with pytest.raises(RuntimeError, match="Handler 'nobody' missing"):
        invoke("benchmarks.children.empty.nobody", event, client, environment, tmp_path)
