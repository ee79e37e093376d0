"""Demo: failures, reported in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from local.client import RunningStack

pytestmark = pytest.mark.train  # the demo reads the recipe's data


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            EndpointConnectionError(endpoint_url="http://127.0.0.1:1/"),
            "Could not connect to the endpoint URL",
        ),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (RuntimeError("the local stack did not start: no"), "did not start: no"),
    ],
    ids=["aws", "api", "start"],
)
def test_a_failure_prints_its_cause_in_one_line_and_exits_1(
    error: Exception,
    cause: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from local import demo

    @contextlib.contextmanager
    def failing(**_: object) -> Iterator[None]:
        raise error
        yield

    (tmp_path / "stack.log").write_text("error: AWS stopped: moto has ended\n")
    monkeypatch.setattr(demo, "STATE", tmp_path)
    monkeypatch.setattr(demo, "start_stack", failing)

    assert demo.main([]) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert cause in line
    assert isinstance(error, RuntimeError) or line.endswith(
        "last words: AWS stopped: moto has ended"
    )


@pytest.fixture
def running() -> RunningStack:
    return RunningStack(
        api_url="http://127.0.0.1:8080/live",
        root_url="http://127.0.0.1:8082",
        endpoint_url="http://127.0.0.1:8081",
        lambda_url="http://127.0.0.1:8083",
        log_dir=Path("logs"),
        outputs={"ArtifactsBucketName": "bucket", "RegistryTableName": "table"},
        environment={},
        pid=1,
    )


def test_a_kept_stack_ends_with_the_console_and_its_key(running: RunningStack) -> None:
    from local import demo

    assert demo.advice(running, "mfy_id_secret", keep=True).splitlines()[-2:] == [
        "Console: http://127.0.0.1:8080/live/console/",
        "Key:     mfy_id_secret",
    ]


def test_a_stopped_demo_ends_with_the_way_to_the_console(running: RunningStack) -> None:
    from local import demo

    [line] = demo.advice(running, "mfy_id_secret", keep=False).splitlines()
    assert "make local" in line
    assert "console" in line
    assert "127.0.0.1" not in line  # that stack has ended
