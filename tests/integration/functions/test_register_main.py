"""Tests of the register Lambda with the real sandbox on moto."""

import importlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import boto3
import moto.s3.models
import pytest

from local.aws.provision import Deployed
from tests.models import scale_model

KEY = "models/demo/model.onnx"
FACTORS = (1.0, 2.0, 3.0, 4.0, 5.0)


class Context:
    aws_request_id = "request"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 900_000


@pytest.fixture
def main(
    function_environment: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """Import the register Lambda's main module with the test stack's settings."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "3008")
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    for name, value in function_environment["RegisterFunction"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "functions.register.main", raising=False)
    module = importlib.import_module("functions.register.main")
    yield module
    module.sandbox.close()


@pytest.fixture
def five_versions(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Upload five models to one key within a second; return version ids."""
    second = datetime(2026, 11, 22, 8, 15, 30, tzinfo=UTC).replace(tzinfo=None)
    ticks = iter(second + timedelta(milliseconds=100 * tick) for tick in range(10))
    s3, bucket = boto3.client("s3"), deployed.outputs["ArtifactsBucketName"]
    with monkeypatch.context() as patched:
        patched.setattr(moto.s3.models, "utcnow", lambda: next(ticks))
        return [
            s3.put_object(Bucket=bucket, Key=KEY, Body=scale_model(factor))["VersionId"]
            for factor in FACTORS
        ]


def event(bucket: str, **stored: str) -> dict[str, Any]:
    record = {
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": KEY, **stored}},
    }
    return {"Records": [record]}


def latest(main: ModuleType) -> str:
    """Return the S3 version id behind the model alias `latest`."""
    source = main.registry.resolve("demo", "latest").version.source
    return str(source.object_version)


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (2, 4, 0, 3, 1)], ids=str)
def test_direct_invocations_in_any_order_end_with_the_last_put(
    main: ModuleType, deployed: Deployed, five_versions: list[str], order: tuple[int, ...]
) -> None:
    """Check that S3's listing orders same-second versions of events without sequencers."""
    bucket = deployed.outputs["ArtifactsBucketName"]
    for index in (*order, *order[:2]):  # two of them once more, as by a redrive
        [summary] = main.lambda_handler(event(bucket, versionId=five_versions[index]), Context())[
            "versions"
        ]
        assert summary["state"] == "READY", summary

    assert latest(main) == five_versions[-1]
    versions = main.registry.versions("demo")
    assert [v.source.object_version for v in versions] == [five_versions[i] for i in order]
    assert {v.written_at for v in versions} == {"2026-11-22T08:15:30.000Z"}
    assert main.registry.aliases("demo")["prod"] == 1


def test_queued_events_in_reverse_end_with_the_last_put(
    main: ModuleType, deployed: Deployed, five_versions: list[str]
) -> None:
    sqs, queue = boto3.client("sqs"), deployed.outputs["RegistrationQueueUrl"]
    bodies = []
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        bodies += [message["Body"] for message in messages if "TestEvent" not in message["Body"]]
    assert len(bodies) == len(FACTORS)
    bodies.sort(key=lambda body: sequencer(body), reverse=True)
    records = [
        {"messageId": str(number), "eventSource": "aws:sqs", "body": body, "attributes": {}}
        for number, body in enumerate(bodies)
    ]

    assert main.lambda_handler({"Records": records}, Context()) == {"batchItemFailures": []}

    assert latest(main) == five_versions[-1]
    assert main.registry.aliases("demo") == {"latest": 1, "prod": 1}


def sequencer(body: str) -> str:
    return str(json.loads(body)["Records"][0]["s3"]["object"]["sequencer"])


def test_an_event_without_a_version_registers_the_current_object(
    main: ModuleType, deployed: Deployed, five_versions: list[str]
) -> None:
    """Check that an event without version id registers the current object only.

    The older versions are left to the reconciler.
    """
    bucket = deployed.outputs["ArtifactsBucketName"]
    for _ in five_versions:
        main.lambda_handler(event(bucket), Context())

    [version] = main.registry.versions("demo")
    assert version.source.object_version == five_versions[-1]
    assert latest(main) == five_versions[-1]
