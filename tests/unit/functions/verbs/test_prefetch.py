"""The first event: asked for ahead, answered by the handler alone."""

import threading
import time
from typing import Any

import pytest

from functions.core.errors import ModelNotFound
from functions.infer.prefetch import PrefetchingHandler

INFER = {"httpMethod": "POST", "path": "/prod/v2/models/digits/versions/latest/infer"}


class World:
    """A handler that is made when the test says so, and what was asked for before."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made = threading.Event()
        self.error = error
        self.asked: list[tuple[str, Any]] = []
        self.begun: list[str] = []
        self.answered: list[int | None] = []
        self.ahead = PrefetchingHandler(self.make, self, self)  # type: ignore[arg-type]

    def make(self) -> Any:
        assert self.made.wait(10)

        def handler(event: Any, context: Any, began_ns: int | None = None) -> dict[str, Any]:
            self.answered.append(began_ns)
            return {"statusCode": 200}

        return handler

    def resolve(self, model: str, reference: Any) -> Any:
        self.asked.append((model, reference))
        self.made.set()
        if self.error:
            raise self.error
        return type("Resolved", (), {"version": "the version"})

    def start_loading(self, version: str) -> None:
        self.begun.append(version)


def test_what_the_first_event_needs_is_asked_for_before_there_is_a_handler() -> None:
    world = World()
    before = time.perf_counter_ns()

    assert world.ahead(INFER, None) == {"statusCode": 200}
    assert world.ahead(INFER, None) == {"statusCode": 200}

    assert world.asked == [("digits", "latest")]
    assert world.begun == ["the version"]
    first, second = world.answered
    assert first is not None
    assert before <= first <= time.perf_counter_ns()  # so that what it waited counts as its latency
    assert second is None


@pytest.mark.parametrize(
    ("event", "reference"),
    [
        ({"path": "/v2/models/digits/infer", "headers": {"X-Model-Version": "3"}}, 3),
        (
            {"rawPath": "/v2/models/digits/infer", "queryStringParameters": {"version": "prod"}},
            "prod",
        ),
        ({"path": "/v2/models/digits/infer", "headers": None, "queryStringParameters": None}, None),
    ],
)
def test_the_version_is_guessed_as_the_handler_reads_it(
    event: dict[str, Any], reference: Any
) -> None:
    world = World()

    world.ahead(event, None)

    assert world.asked == [("digits", reference)]


@pytest.mark.parametrize(
    "error", [ModelNotFound("no such model"), RuntimeError("access is denied")]
)
def test_whatever_goes_wrong_ahead_the_handler_answers(error: Exception) -> None:
    world = World(error)

    assert world.ahead(INFER, None) == {"statusCode": 200}
    assert world.begun == []


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"path": "/v2/models/digits/ready"},
        {"path": "/v2/models/NO NAME/infer"},
        {"path": "/v2/models/digits/versions/-1/infer"},
        {"path": "/v2/models/digits/infer", "headers": ["no", "mapping"]},
    ],
)
def test_what_is_no_inference_asks_for_nothing(event: dict[str, Any]) -> None:
    world = World()
    world.made.set()

    assert world.ahead(event, None) == {"statusCode": 200}
    assert world.asked == []


def test_a_handler_that_cannot_be_made_says_why_each_time() -> None:
    def broken() -> Any:
        raise LookupError("a variable is missing")

    ahead = PrefetchingHandler(broken, None, None)  # type: ignore[arg-type]

    for _ in range(2):
        with pytest.raises(LookupError, match="a variable is missing"):
            ahead({}, None)
