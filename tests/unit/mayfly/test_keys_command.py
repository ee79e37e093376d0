"""Command line for access keys, with clients of AWS that answer from a list."""

import io
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError, NoRegionError

from mayfly.cli.main import main

KEY = {"id": "abc", "name": "ci", "state": "active"}


class Cloud:
    """CloudFormation and Lambda with prepared replies; keeps the events it gets."""

    exceptions = SimpleNamespace(ClientError=ClientError)  # as boto3's clients have

    def __init__(self) -> None:
        self.outputs: dict[str, str] = {"ManageFunctionName": "mayfly-Manage-1"}
        self.replies: list[Any] = []
        self.failure: dict[str, str] = {}
        self.calls: list[tuple[str, Any]] = []

    def describe_stacks(self, StackName: str) -> Any:  # noqa: N803 (boto3's names)
        if StackName != "mayfly":
            error = {"Code": "ValidationError", "Message": f"Stack {StackName} does not exist"}
            raise ClientError({"Error": error}, "DescribeStacks")  # type: ignore[typeddict-item]
        outputs = [{"OutputKey": k, "OutputValue": v} for k, v in self.outputs.items()]
        return {"Stacks": [{"Outputs": outputs}]}

    def invoke(self, FunctionName: str, Payload: bytes) -> Any:  # noqa: N803
        self.calls.append((FunctionName, json.loads(Payload)))
        return {"Payload": io.BytesIO(json.dumps(self.replies.pop(0)).encode()), **self.failure}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud = Cloud()
    monkeypatch.setattr(boto3, "client", lambda service: cloud)
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setenv("MAYFLY_CONFIG", "/nonexistent")
    for name in ("MAYFLY_URL", "MAYFLY_KEY"):
        monkeypatch.delenv(name, raising=False)
    return cloud


def test_a_new_key_is_all_that_standard_output_holds(cloud: Cloud, capsys: Any) -> None:
    cloud.replies = [{**KEY, "key": "mfy_abc_secret"}]

    assert main(["keys", "create"]) == 0
    output = capsys.readouterr()
    assert output.out == "mfy_abc_secret\n"
    assert "not shown again" in output.err
    assert "secret" not in output.err
    request = {"operation": "create-key", "actor": "anna", "name": "key", "scopes": ["infer"]}
    assert cloud.calls == [("mayfly-Manage-1", request)]


def test_options_become_fields(cloud: Cloud) -> None:
    cloud.replies = [{**KEY, "key": "mfy_abc_secret"}]
    arguments = (
        "keys create --function F --name ci --scope read --scope deploy --model a-* --model b"
    )
    more = ["--expires", "90d", "--monthly-requests", "1000"]
    assert main([*arguments.split(), *more]) == 0

    [(function, event)] = cloud.calls
    assert (function, event["name"]) == ("F", "ci")
    assert (event["scopes"], event["models"]) == (["read", "deploy"], ["a-*", "b"])
    assert event["monthly_requests"] == 1000
    left = datetime.fromisoformat(event["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)


@pytest.mark.parametrize(("text", "requests"), [("1000", 1000), ("0", 0), ("none", None)])
def test_a_quota_is_changed_by_the_keys_id(cloud: Cloud, text: str, requests: int | None) -> None:
    cloud.replies = [{**KEY, "monthly_requests": requests}]

    assert main(["keys", "limit", "abc", "--monthly-requests", text, "--function", "F"]) == 0
    [(_, event)] = cloud.calls
    assert (event["operation"], event["id"]) == ("change-key", "abc")
    assert event["monthly_requests"] == requests
    assert "max_tokens" not in event


def test_several_limits_are_changed_at_once_and_one_has_to_be_named(
    cloud: Cloud, capsys: Any
) -> None:
    cloud.replies = [{**KEY, "monthly_requests": 5, "max_tokens": None}]
    limits = ["--monthly-requests", "5", "--max-tokens", "none"]

    assert main(["keys", "limit", "abc", *limits, "--function", "F"]) == 0
    [(_, event)] = cloud.calls
    assert (event["monthly_requests"], event["max_tokens"]) == (5, None)
    assert "KeyCacheSeconds" in capsys.readouterr().err
    assert main(["keys", "limit", "abc", "--function", "F"]) == 2
    assert "--max-tokens" in capsys.readouterr().err
    assert len(cloud.calls) == 1


@pytest.mark.parametrize("text", ["-1", "many", "1.5", ""])
def test_a_wrong_quota_is_refused_before_any_call(cloud: Cloud, text: str) -> None:
    for option in ("--monthly-requests", "--max-tokens"):
        assert main(["keys", "limit", "abc", "--function", "F", f"{option}={text}"]) == 2
    assert main(["keys", "create", "--function", "F", f"--monthly-requests={text}"]) == 2
    assert cloud.calls == []


def test_a_key_is_created_with_a_longest_reply(cloud: Cloud) -> None:
    cloud.replies = [{**KEY, "key": "mfy_abc_new"}]

    assert main(["keys", "create", "--function", "F", "--max-tokens", "500"]) == 0
    assert cloud.calls[0][1]["max_tokens"] == 500
    assert main(["keys", "create", "--function", "F", "--max-tokens", "0"]) == 2


def test_all_pages_of_keys_are_listed(cloud: Cloud, capsys: Any) -> None:
    cloud.replies = [
        {"keys": [KEY, KEY], "next_cursor": "c"},
        {"keys": [KEY], "next_cursor": None},
    ]

    assert main(["keys", "list", "--function", "F"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [KEY] * 3
    assert cloud.calls[1][1]["cursor"] == "c"


def test_a_key_is_rotated_and_revoked_by_its_id(cloud: Cloud, capsys: Any) -> None:
    cloud.replies = [{**KEY, "key": "mfy_abc_new"}, {**KEY, "state": "revoked"}]

    assert main(["keys", "rotate", "abc", "--overlap", "7d", "--function", "F"]) == 0
    assert main(["keys", "revoke", "abc", "--function", "F"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("mfy_abc_new\n")
    assert "may still be accepted" in output.err
    rotate, revoke = (event for _, event in cloud.calls)
    assert (rotate["id"], rotate["overlap_seconds"]) == ("abc", 7 * 86_400)
    assert (revoke["operation"], revoke["id"]) == ("revoke-key", "abc")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--stack", "none"], "there is no stack none in this account and region: name it"),
        ([], "stack mayfly has no output ManageFunctionName: deploy it again"),
        (["--function", "F"], "scopes: Input should be 'infer'"),
    ],
)
def test_a_failure_is_one_line(cloud: Cloud, capsys: Any, arguments: list[str], text: str) -> None:
    cloud.outputs = {}
    cloud.replies = [{"error": "scopes: Input should be 'infer'", "code": "INVALID_REQUEST"}]

    assert main(["keys", "create", *arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mayfly: ")
    assert text in line


@pytest.mark.parametrize(
    ("error", "remedy"),
    [(NoRegionError(), "export AWS_DEFAULT_REGION"), (NoCredentialsError(), "run aws configure")],
)
def test_missing_settings_of_aws_name_their_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception, remedy: str
) -> None:
    def refuse(_: str) -> None:
        raise error

    monkeypatch.setattr(boto3, "client", refuse)

    assert main(["keys", "list"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert remedy in line


def test_a_function_that_failed_is_named(cloud: Cloud, capsys: Any) -> None:
    cloud.failure = {"FunctionError": "Unhandled"}
    cloud.replies = [{"errorMessage": "the registry does not answer; try again"}]

    assert main(["keys", "create", "--function", "F"]) == 1
    assert "F failed: the registry does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "d", "1w", "-1d", "1.5h", "9999999d"])
def test_a_malformed_time_is_refused(cloud: Cloud, capsys: Any, text: str) -> None:
    assert main(["keys", "create", f"--expires={text}"]) == 2
    assert "write 90d, 12h, 30m or 0s" in capsys.readouterr().err
