"""Repair by an operator, who invokes the reconcile function."""

import json
from typing import Any

from tests.e2e.conftest import Api, Operator
from tests.models import scale_model


def record(operator: Operator, model: str) -> dict[str, Any]:
    """Return the registry's item of a model's first version."""
    items = operator.client("dynamodb").query(
        TableName=operator.outputs["RegistryTableName"],
        KeyConditionExpression="pk = :pk AND sk = :sk",
        ExpressionAttributeValues={
            ":pk": {"S": f"MODEL#{model}"},
            ":sk": {"S": "VERSION#0000000001"},
        },
    )["Items"]
    return dict(items[0])


def test_an_upload_whose_event_was_lost_is_registered(
    operator: Operator, api: Api, model: str, upload_silently: Any
) -> None:
    upload_silently(f"models/{model}/x.onnx", scale_model())

    assert operator.reconcile()["lost_uploads"] == 1

    api.wait_ready(model, 1)
    assert operator.reconcile()["lost_uploads"] == 0


def test_a_version_whose_blob_is_missing_is_flagged_until_restored(
    operator: Operator, api: Api, model: str
) -> None:
    api.upload(f"models/{model}/x.onnx", scale_model(7.5))
    api.wait_ready(model)
    s3, bucket = api.s3, operator.outputs["ServingBucketName"]
    blobs = {item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    digest = record(operator, model)["files"]["L"][0]["M"]["sha256"]["S"]
    [key] = [key for key in blobs if key.endswith(digest)]

    marker = s3.delete_object(Bucket=bucket, Key=key)["VersionId"]
    assert operator.reconcile()["damaged"] == 1
    assert record(operator, model)["damaged"]["S"]

    s3.delete_object(
        Bucket=bucket, Key=key, VersionId=marker
    )  # restores the blob in a versioned bucket
    assert operator.reconcile()["damaged"] == 0


def give_up(operator: Operator, api: Api, model: str) -> None:
    """Put an upload's event among the dead letters."""
    event = {
        "Records": [
            {
                "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": api.bucket}, "object": {"key": f"models/{model}/x.onnx"}},
            }
        ]
    }
    url = operator.outputs["RegistrationDeadLettersUrl"]
    operator.client("sqs").send_message(QueueUrl=url, MessageBody=json.dumps(event))


def dead_letters(operator: Operator, model: str) -> list[dict[str, Any]]:
    letters = operator.reconcile(operation="dead-letters")["dead_letters"]
    return [letter for letter in letters if letter["model"] == model]


def test_a_dead_letter_is_listed_with_its_reason(operator: Operator, api: Api, model: str) -> None:
    give_up(operator, api, model)

    [letter] = dead_letters(operator, model)

    assert (letter["version"], letter["code"]) == (None, "UNKNOWN")


def test_a_redriven_dead_letter_is_registered(
    operator: Operator, api: Api, model: str, upload_silently: Any
) -> None:
    upload_silently(f"models/{model}/x.onnx", scale_model())
    give_up(operator, api, model)

    operator.reconcile(operation="redrive")

    api.wait_ready(model, 1)
    assert dead_letters(operator, model) == []
