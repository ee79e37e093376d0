"""Provisioning in moto: the resources of template.yaml, as the functions expect them."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from local.aws.provision import Deployed, local_session, provision
from local.aws.server import as_aws_notifies
from local.execution.processes import ROOT
from local.template import Template


@pytest.fixture
def deployed() -> Iterator[Deployed]:
    with mock_aws(), as_aws_notifies():
        template = Template.load(ROOT / "template.yaml", {"RegistrationVisibilityTimeout": 7})
        yield provision(template, local_session(), api_origin="http://127.0.0.1:8080")


def client(service: str) -> Any:
    return boto3.client(service, region_name="us-east-1")


def test_outputs_name_existing_resources(deployed: Deployed) -> None:
    outputs = deployed.outputs

    assert outputs["ApiUrl"] == "http://127.0.0.1:8080/live"
    client("s3").head_bucket(Bucket=outputs["ServingBucketName"])
    versioning = client("s3").get_bucket_versioning(Bucket=outputs["ArtifactsBucketName"])
    assert versioning["Status"] == "Enabled"
    assert deployed.environment["InferFunction"]["SERVING_BUCKET"] == outputs["ServingBucketName"]


def test_the_table_has_its_keys_and_index(deployed: Deployed) -> None:
    name = deployed.outputs["RegistryTableName"]
    table = client("dynamodb").describe_table(TableName=name)["Table"]
    indexes = [index["IndexName"] for index in table["GlobalSecondaryIndexes"]]

    assert [key["AttributeName"] for key in table["KeySchema"]] == ["pk", "sk"]
    assert indexes == ["listing", "pending"]


def test_the_queue_sends_failed_messages_to_the_dead_letters(deployed: Deployed) -> None:
    url = deployed.outputs["RegistrationQueueUrl"]
    queue = client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    attributes = queue["Attributes"]

    assert attributes["VisibilityTimeout"] == "7"
    redrive = json.loads(attributes["RedrivePolicy"])
    assert redrive["maxReceiveCount"] == 5
    assert redrive["deadLetterTargetArn"].endswith(":mayfly-RegistrationDeadLetters")


@pytest.mark.parametrize(
    "key", ["models/A/x.ONNX", "models/a/MODEL.TGZ", "models/a/b/manifest.json", "models/a/x.h5"]
)
def test_every_object_under_models_sends_one_notification(deployed: Deployed, key: str) -> None:
    bucket, url = deployed.outputs["ArtifactsBucketName"], deployed.outputs["RegistrationQueueUrl"]
    for name in ("other/x.onnx", "models.onnx", key):
        version = client("s3").put_object(Bucket=bucket, Key=name, Body=b"x")["VersionId"]

    messages = client("sqs").receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    bodies = [json.loads(message["Body"]) for message in messages]
    uploads = [body["Records"][0]["s3"]["object"] for body in bodies if "Records" in body]
    assert [(upload["key"], upload["versionId"]) for upload in uploads] == [(key, version)]
