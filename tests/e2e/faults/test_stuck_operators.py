"""Operators that ONNX Runtime cannot interrupt, from the upload to the caller's reply."""

from collections.abc import Iterator

import pytest

from local.client import RunningStack, start_stack
from tests.e2e.conftest import Api, connect
from tests.integration.functions.serving.test_stuck_operators import STUCK, TIMEOUT_S, model
from tests.models import scale_model

# Registration puts a guard before a convolution whose kernel may be empty, so that one never runs.
ANSWERS = {"multiplication": (504, "TIMED_OUT"), "convolution": (400, "EXECUTION_FAILED")}


@pytest.fixture(scope="module")
def stack_with_little_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("stack")
    with start_stack(parameters={"InferTimeout": TIMEOUT_S}, state_dir=folder) as running:
        yield running


def infer(api: Api, name: str, n: int) -> tuple[int, str | None]:
    tensor = {"name": "n", "shape": [], "datatype": "INT64", "data": [n]}
    reply = api.call("POST", f"/v2/models/{name}/infer", {"inputs": [tensor]})
    return reply.status, reply.json.get("code")


@pytest.mark.parametrize("operator", ANSWERS)
def test_callers_of_a_stuck_model_have_a_reason_and_others_their_reply(
    stack_with_little_time: RunningStack, operator: str
) -> None:
    nodes, harmless, stuck = STUCK[operator]
    api, other = connect(stack_with_little_time), f"beside-{operator}"
    api.upload(f"models/{operator}/model.onnx", model(nodes))
    api.upload(f"models/{other}/model.onnx", scale_model(2.0, {"schema": 1}))
    api.wait_ready(operator)
    api.wait_ready(other)

    assert infer(api, operator, harmless) == (200, None)
    assert infer(api, operator, stuck) == ANSWERS[operator]
    assert api.infer(other, [1, 2, 3]).json["outputs"][0]["data"] == [2, 4, 6]
    assert infer(api, operator, harmless) == (200, None)
    assert "Task timed out" not in stack_with_little_time.log("InferFunction")
    if ANSWERS[operator][0] == 504:  # the environment has ended, and its count is there
        usage = f"/api/v1/models/{operator}/usage"
        errors = api.wait(lambda: api.get(usage).json["total"]["errors"], "a counted failure")
        assert errors == 1
