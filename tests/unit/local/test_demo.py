"""Demo: failures, reported in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

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
        "last words: error: AWS stopped: moto has ended"
    )


def test_a_command_is_shown_only_while_its_stack_runs() -> None:
    from local import demo

    assert demo.next_step("curl URL", keep=True) == "curl URL"
    hint = demo.next_step("curl URL", keep=False)
    assert "curl" not in hint
    assert "make local" in hint
