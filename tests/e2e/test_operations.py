"""Repair by an operator, who invokes the reconcile function."""

import json
from typing import Any

from local.client import RunningStack
from tests.e2e.conftest import Api
from tests.models import scale_model


def invoke(stack: RunningStack, **event: Any) -> dict[str, Any]:
    reply = stack.client("lambda").invoke(
        FunctionName="ReconcileFunction", Payload=json.dumps(event).encode()
    )
    answer = json.loads(reply["Payload"].read())
    assert "FunctionError" not in reply, answer
    return dict(answer)


def test_an_upload_whose_event_was_lost_is_registered(
    stack: RunningStack, api: Api, model: str, upload_silently: Any
) -> None:
    upload_silently(f"models/{model}/x.onnx", scale_model())

    assert invoke(stack)["lost_uploads"] == 1

    api.wait_ready(model, 1)
    assert invoke(stack)["lost_uploads"] == 0


def test_a_version_whose_blob_is_missing_is_flagged_until_restored(
    stack: RunningStack, api: Api, model: str
) -> None:
    api.upload(f"models/{model}/x.onnx", scale_model(7.5))
    api.wait_ready(model)
    s3, bucket = api.s3, stack.outputs["ServingBucketName"]
    blobs = {item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    table = stack.client("dynamodb").query(
        TableName=stack.outputs["RegistryTableName"],
        KeyConditionExpression="pk = :pk AND sk = :sk",
        ExpressionAttributeValues={
            ":pk": {"S": f"MODEL#{model}"},
            ":sk": {"S": "VERSION#0000000001"},
        },
    )
    digest = table["Items"][0]["files"]["L"][0]["M"]["sha256"]["S"]
    [key] = [key for key in blobs if key.endswith(digest)]

    marker = s3.delete_object(Bucket=bucket, Key=key)["VersionId"]
    assert invoke(stack)["damaged"] == 1
    assert f"{model}#0000000001" in stack.log("ReconcileFunction")

    s3.delete_object(
        Bucket=bucket, Key=key, VersionId=marker
    )  # restores the blob in a versioned bucket
    assert invoke(stack)["damaged"] == 0


def test_dead_letters_have_their_reason_and_can_be_redriven(
    stack: RunningStack, api: Api, model: str, upload_silently: Any
) -> None:
    upload_silently(f"models/{model}/x.onnx", scale_model())
    event = {
        "Records": [
            {
                "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": api.bucket}, "object": {"key": f"models/{model}/x.onnx"}},
            }
        ]
    }
    url = stack.outputs["RegistrationDeadLettersUrl"]
    stack.client("sqs").send_message(QueueUrl=url, MessageBody=json.dumps(event))

    [letter] = invoke(stack, operation="dead-letters")["dead_letters"]
    assert (letter["model"], letter["version"], letter["code"]) == (model, None, "UNKNOWN")
    invoke(stack, operation="redrive")

    api.wait_ready(model, 1)
    assert invoke(stack, operation="dead-letters") == {"dead_letters": []}
