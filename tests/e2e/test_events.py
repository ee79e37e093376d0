"""Every file in events/ against its function, on stacks that need keys and that do not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.client import RunningStack, start_stack
from tests.e2e.conftest import connect
from tests.models import scale_model

PLACEHOLDER = "$MAYFLY_KEY"  # replaced by sed in the commands of docs/operations.md
EVENTS = sorted(
    path.name for path in Path("events").glob("*.json") if path.name != "env.local.json"
)
HTTP = [name for name in EVENTS if name.startswith("apigw_")]
# Functions of the other events, by the first word of the file's name
FUNCTIONS = {
    "eventbridge": "RegisterFunction",
    "invoke": "ManageFunction",
    "reconcile": "ReconcileFunction",
    "s3": "RegisterFunction",
    "schedule": "ReconcileFunction",
    "sqs": "RegisterFunction",
    "states": "JudgeFunction",
}
# Pages and documents that nobody needs a key for
OPEN = ("health", "docs", "openapi", "console")
STATUSES = {
    "apigw_chat.json": 404,  # no such model
    "apigw_infer_bad_shape.json": 400,
    "apigw_infer_broken_json.json": 400,
    "apigw_infer_unknown_model.json": 404,
}


def start(auth: str, folder: Path) -> Iterator[tuple[RunningStack, str]]:
    """Start a stack with the model `demo`; yield it and a key, "" where none is needed."""
    if "STACK_URL" in os.environ:
        pytest.skip("needs local stacks: STACK_URL names another one")
    with start_stack(parameters={"Auth": auth}, state_dir=folder) as running:
        api = connect(running)
        api.upload("models/demo/model.onnx", scale_model())
        api.wait_ready("demo")
        yield running, api.key if auth == "keys" else ""


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningStack, str]]:
    yield from start("keys", tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def without_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningStack, str]]:
    yield from start("none", tmp_path_factory.mktemp("none"))


@pytest.fixture(params=["keys", "none"])
def either(request: pytest.FixtureRequest) -> tuple[RunningStack, str]:
    name = "with_keys" if request.param == "keys" else "without_keys"
    running: tuple[RunningStack, str] = request.getfixturevalue(name)
    return running


def function_of(name: str, event: dict[str, Any]) -> str:
    """Return the logical name of the function that an event file is for."""
    word = name.partition("_")[0]
    if word == "apigw":
        served = {"/v1": "GenerateFunction", "/v2": "InferFunction"}
        return served.get(event["path"][:3], "ManageFunction")
    return FUNCTIONS.get(word) or f"{word.capitalize()}Function"


def invoke(stack: RunningStack, name: str, key: str = PLACEHOLDER) -> Any:
    """Invoke the function of an event file, with a key in the placeholder's place."""
    text = Path("events", name).read_text().replace(PLACEHOLDER, key)
    reply = stack.client("lambda").invoke(
        FunctionName=function_of(name, json.loads(text)), Payload=text.encode()
    )
    # A streamed reply is its head, eight zero bytes and the body.
    answer = json.loads(reply["Payload"].read().partition(bytes(8))[0] or b"null")
    assert "FunctionError" not in reply, answer
    return answer


@pytest.mark.parametrize("name", [name for name in EVENTS if name not in HTTP])
def test_an_event_of_aws_or_an_operator_needs_no_key(
    either: tuple[RunningStack, str], name: str
) -> None:
    answer = invoke(either[0], name)

    assert not (isinstance(answer, dict) and "error" in answer), answer


@pytest.mark.parametrize("name", HTTP)
def test_an_http_event_is_answered_with_a_key_in_its_placeholder(
    with_keys: tuple[RunningStack, str], name: str
) -> None:
    stack, key = with_keys
    status = invoke(stack, name, key)["statusCode"]

    if name.startswith(("apigw_infer", "apigw_chat")):
        assert status == STATUSES.get(name, 200)
    assert status < 500
    assert status not in (401, 403)


@pytest.mark.parametrize("name", HTTP)
def test_an_http_event_with_the_bare_placeholder_is_refused_or_needs_no_key(
    with_keys: tuple[RunningStack, str], without_keys: tuple[RunningStack, str], name: str
) -> None:
    refused, answered = invoke(with_keys[0], name), invoke(without_keys[0], name)

    is_control = function_of(name, json.loads(Path("events", name).read_text())) != "InferFunction"
    assert refused["statusCode"] == (200 if any(word in name for word in OPEN) else 401)
    assert answered["statusCode"] != 401
    assert is_control or answered["statusCode"] == STATUSES.get(name, 200)


def test_the_documented_commands_invoke_a_function_with_a_key(
    with_keys: tuple[RunningStack, str], tmp_path: Path
) -> None:
    stack, key = with_keys
    block = Path("docs/operations.md").read_text().partition("  sed ")[2].partition("```")[0]
    environment = {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_LAMBDA": stack.lambda_url,
        "AWS_SECRET_ACCESS_KEY": "local",
        "MAYFLY_KEY": key,
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    (tmp_path / "events").symlink_to(Path("events").absolute())
    command = ["bash", "-euo", "pipefail", "-c", f"sed {block}"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=240)

    assert json.loads((tmp_path / "out.json").read_text())["statusCode"] == 200
