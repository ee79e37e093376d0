"""DescribeStacks of the local stack, as a WSGI application in front of another."""

import io
from pathlib import Path
from typing import Any

import pytest

from local.aws.stack_descriptions import StackDescriptions, write_description

SIGNED = "AWS4-HMAC-SHA256 Credential=local/20261122/us-east-1/{}/aws4_request"


def ask(path: Path, body: str, service: str = "cloudformation") -> tuple[str, str]:
    """Send a request; return status and text of the reply, which echoes what is passed on."""
    status = []

    def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"passed on: " + environ["wsgi.input"].read()]

    environ = {
        "HTTP_AUTHORIZATION": SIGNED.format(service),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body.encode()),
    }
    reply = StackDescriptions(echo, path)(environ, lambda line, _: status.append(line))
    return status[0], b"".join(reply).decode()


def test_a_stack_is_described_with_its_outputs(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    write_description(path, "mayfly", {"ApiUrl": "http://127.0.0.1/live?a=1&b=2"})

    for body in ("Action=DescribeStacks&StackName=mayfly", "Action=DescribeStacks"):
        status, text = ask(path, body)
        assert status == "200 OK"
        assert "<OutputValue>http://127.0.0.1/live?a=1&amp;b=2</OutputValue>" in text


@pytest.mark.parametrize("name", ["nobody", "<mayfly>"])
def test_another_stack_does_not_exist(tmp_path: Path, name: str) -> None:
    path = tmp_path / "stack.json"
    for _ in range(2):
        status, text = ask(path, f"Action=DescribeStacks&StackName={name}")
        assert (status, "<Code>ValidationError</Code>" in text) == ("400 Bad Request", True)
        assert "does not exist" in text
        write_description(path, "mayfly", {})


def test_no_stack_is_listed_before_there_is_one(tmp_path: Path) -> None:
    status, text = ask(tmp_path / "stack.json", "Action=DescribeStacks")

    assert (status, "<member>" in text) == ("200 OK", False)


@pytest.mark.parametrize(
    ("body", "service"), [("Action=ListStacks", "cloudformation"), ("x" * 1000, "s3"), ("", "s3")]
)
def test_other_requests_are_passed_on_whole(tmp_path: Path, body: str, service: str) -> None:
    assert ask(tmp_path / "stack.json", body, service) == ("200 OK", f"passed on: {body}")
