"""template.yaml after the SAM transform, without network.

Neither moto nor SAM would report the mistakes that these tests find.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from functions.register.handler import RESERVE_MS
from scripts.layer import layer_requirements

SAM_PYTHON = os.environ.get("MAYFLY_SAM_PYTHON", ".venv-sam/bin/python")


@pytest.fixture(scope="module")
def transformed() -> dict[str, Any]:
    done = subprocess.run(
        [SAM_PYTHON, "scripts/transform.py"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture
def source(transformed: dict[str, Any]) -> dict[str, Any]:
    return transformed["before"]


@pytest.fixture
def deployed(transformed: dict[str, Any]) -> dict[str, Any]:
    return transformed["after"]["Resources"]


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: r["Properties"] for name, r in resources.items() if r["Type"] == kind}


def statements(resources: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, statement)
        for name, role in of_type(resources, "AWS::IAM::Role").items()
        for policy in role.get("Policies", [])
        for statement in policy["PolicyDocument"]["Statement"]
    ]


def actions(statement: dict[str, Any]) -> list[str]:
    action = statement["Action"]
    return action if isinstance(action, list) else [action]


def allowed_actions(resources: dict[str, Any], role: str) -> set[str]:
    return {
        action
        for name, statement in statements(resources)
        if name == role
        for action in actions(statement)
    }


def test_no_role_may_do_everything_or_touch_everything(deployed: dict[str, Any]) -> None:
    assert statements(deployed)
    for name, statement in statements(deployed):
        assert not any("*" in action for action in actions(statement)), name
        assert statement["Resource"] != "*", (name, statement)


def test_infer_writes_to_no_bucket_and_to_no_registry_record(deployed: dict[str, Any]) -> None:
    for name, statement in statements(deployed):
        if not name.startswith("InferFunction"):
            continue
        allowed = set(actions(statement))
        reading = {"s3:GetObject", "s3:ListBucket"}
        assert not {action for action in allowed - reading if action.startswith("s3:")}
        if allowed & {"dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem"}:
            keys = {"dynamodb:LeadingKeys": ["SERVING#*"]}
            assert statement["Condition"] == {"ForAllValues:StringLike": keys}


def test_only_the_reconciler_may_delete_and_only_blob_versions(deployed: dict[str, Any]) -> None:
    deleting = [
        (name, action, statement["Resource"])
        for name, statement in statements(deployed)
        for action in actions(statement)
        if "Delete" in action and not action.startswith("sqs:")
    ]

    blobs = {"Fn::Sub": "${ServingBucket.Arn}/blobs/*"}
    assert deleting == [("ReconcileFunctionRole", "s3:DeleteObjectVersion", blobs)]
    versioning = deployed["ServingBucket"]["Properties"]["VersioningConfiguration"]
    assert versioning == {"Status": "Enabled"}


def test_the_reconciler_runs_on_a_schedule_and_may_redrive(deployed: dict[str, Any]) -> None:
    [rule] = of_type(deployed, "AWS::Events::Rule").values()
    assert rule["ScheduleExpression"] == {"Ref": "ReconcileSchedule"}
    # StartMessageMoveTask receives, deletes and sends with its caller's permissions.
    needed = {
        "sqs:StartMessageMoveTask",
        "sqs:ReceiveMessage",
        "sqs:DeleteMessage",
        "sqs:SendMessage",
    }
    assert needed <= allowed_actions(deployed, "ReconcileFunctionRole")


@pytest.mark.parametrize("function", ["RegisterFunction", "ReconcileFunction", "InferFunction"])
def test_every_function_may_read_registry_items_in_batches(
    function: str, deployed: dict[str, Any]
) -> None:
    # GetItem's permission does not include BatchGetItem.
    assert "dynamodb:BatchGetItem" in allowed_actions(deployed, f"{function}Role")


def test_every_bucket_is_private_encrypted_and_tls_only(deployed: dict[str, Any]) -> None:
    buckets = of_type(deployed, "AWS::S3::Bucket")
    assert buckets.keys() == {"ArtifactsBucket", "ServingBucket"}
    policies = {p["Bucket"]["Ref"]: p for p in of_type(deployed, "AWS::S3::BucketPolicy").values()}
    for name, bucket in buckets.items():
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert bucket["BucketEncryption"]
        [statement] = policies[name]["PolicyDocument"]["Statement"]
        assert statement["Effect"] == "Deny"
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert buckets["ArtifactsBucket"]["VersioningConfiguration"] == {"Status": "Enabled"}


def test_the_queue_gets_every_object_under_models(deployed: dict[str, Any]) -> None:
    """Check that S3 notifications have a prefix filter but no suffix filter.

    Suffix filters are case-sensitive, and would hide ignored uploads from the queue.
    """
    notifications = deployed["ArtifactsBucket"]["Properties"]["NotificationConfiguration"]
    [rule] = notifications["QueueConfigurations"]
    assert rule["Event"] == "s3:ObjectCreated:*"
    [prefix] = rule["Filter"]["S3Key"]["Rules"]
    assert (prefix["Name"], prefix["Value"]) == ("prefix", "models/")


def test_an_upload_waits_for_no_neighbour_of_its_batch(
    source: dict[str, Any], deployed: dict[str, Any]
) -> None:
    [mapping] = of_type(deployed, "AWS::Lambda::EventSourceMapping").values()
    assert mapping["BatchSize"] == 1
    # An upload is begun in every invocation, so that none goes round the queue for ever.
    assert source["Parameters"]["RegisterTimeout"]["MinValue"] * 1000 > RESERVE_MS
    assert "sqs:SendMessage" in allowed_actions(deployed, "RegisterFunctionRole")


def test_a_message_stays_invisible_for_six_timeouts_and_is_dead_lettered(
    source: dict[str, Any], deployed: dict[str, Any]
) -> None:
    defaults = {name: parameter["Default"] for name, parameter in source["Parameters"].items()}
    assert defaults["RegistrationVisibilityTimeout"] == 6 * defaults["RegisterTimeout"]
    queue = deployed["RegistrationQueue"]["Properties"]
    assert queue["RedrivePolicy"]["maxReceiveCount"] == 5
    [mapping] = of_type(deployed, "AWS::Lambda::EventSourceMapping").values()
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_callers_need_iam_and_every_method_is_explicit(deployed: dict[str, Any]) -> None:
    [api] = of_type(deployed, "AWS::ApiGateway::RestApi").values()
    body = api["Body"]
    methods = {path: set(item) for path, item in body["paths"].items()}
    assert methods == {
        "/v2": {"get", "post", "head"},
        "/v2/{path+}": {"get", "post", "head", "put", "patch", "delete"},
    }
    for item in body["paths"].values():
        for method in item.values():
            assert method["security"] == [{"AWS_IAM": []}]
    in_body = body.get("x-amazon-apigateway-binary-media-types")
    assert ["*/*"] in (api.get("BinaryMediaTypes"), in_body)


def test_every_gateway_response_has_the_protocols_error_shape(deployed: dict[str, Any]) -> None:
    [api] = of_type(deployed, "AWS::ApiGateway::RestApi").values()
    responses = api["Body"]["x-amazon-apigateway-gateway-responses"]
    needed = {"DEFAULT_4XX", "DEFAULT_5XX", "MISSING_AUTHENTICATION_TOKEN", "REQUEST_TOO_LARGE"}
    assert needed <= responses.keys()
    for response in responses.values():
        template = response["responseTemplates"]["application/json"]
        filled = template.replace("$context.error.messageString", '"text"')
        assert list(json.loads(filled)) == ["error"]


def test_a_throttled_caller_learns_when_to_retry(deployed: dict[str, Any]) -> None:
    [api] = of_type(deployed, "AWS::ApiGateway::RestApi").values()
    throttled = api["Body"]["x-amazon-apigateway-gateway-responses"]["THROTTLED"]

    assert throttled["statusCode"] == "429"
    assert throttled["responseParameters"] == {"gatewayresponse.header.Retry-After": "'1'"}


def test_functions_run_python_3_13_without_telemetry_and_expire_their_logs(
    deployed: dict[str, Any],
) -> None:
    functions = of_type(deployed, "AWS::Lambda::Function")
    assert functions.keys() == {"RegisterFunction", "ReconcileFunction", "InferFunction"}
    for function in functions.values():
        assert function["Runtime"] == "python3.13"
        assert function["Environment"]["Variables"]["ORT_DISABLE_TELEMETRY"] == "1"
        logs = deployed[function["LoggingConfig"]["LogGroup"]["Ref"]]
        assert logs["Properties"]["RetentionInDays"]


def test_every_handler_exists() -> None:
    handlers = re.findall(r"Handler: (\S+)\.lambda_handler", Path("template.yaml").read_text())
    assert len(handlers) == 3
    for handler in handlers:
        assert Path(handler.replace(".", "/") + ".py").is_file()


def test_dead_letters_age_errors_and_latency_raise_alarms(deployed: dict[str, Any]) -> None:
    alarms = of_type(deployed, "AWS::CloudWatch::Alarm")
    watched = {alarm["MetricName"] for alarm in alarms.values()}
    of_aws = {"Errors", "5XXError", "Duration"}
    of_sqs = {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"}
    of_mayfly = {
        *("UploadsRejected", "UploadsIgnored", "UploadsRetried"),
        *("Reconciled", "Stuck", "Damaged"),
    }
    assert watched == of_aws | of_sqs | of_mayfly
    assert all(alarm["AlarmDescription"] for alarm in alarms.values())
    for alarm in alarms.values():
        if alarm["Namespace"] == "Mayfly":  # a metric of a function, whose handler emits it
            [dimension] = alarm["Dimensions"]
            source = Path(f"functions/{dimension['Value']}/handler.py").read_text()
            assert f'"{alarm["MetricName"]}"' in source


def test_every_parameter_has_a_description(source: dict[str, Any]) -> None:
    for name, parameter in source["Parameters"].items():
        assert parameter["Description"].endswith("."), name


@pytest.mark.parametrize("layer", ["infer", "register"])
def test_a_layer_has_the_versions_of_pyproject(layer: str) -> None:
    assert Path(f"layers/{layer}/requirements.txt").read_text() == layer_requirements(layer), (
        "run `make layer`"
    )
