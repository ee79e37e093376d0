"""template.yaml after the SAM transform, offline: moto and SAM would both swallow what is asserted here."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

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


def test_no_role_may_do_everything_or_touch_everything(deployed: dict[str, Any]) -> None:
    found = statements(deployed)
    assert found
    for name, statement in found:
        actions = (
            statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        )
        assert not any("*" in action for action in actions), name
        assert statement["Resource"] != "*", (name, statement)


def test_infer_writes_to_no_bucket_and_to_no_registry_record(deployed: dict[str, Any]) -> None:
    for name, statement in statements(deployed):
        if not name.startswith("InferFunction"):
            continue
        actions = (
            statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        )
        assert not any(action.startswith("s3:") and action != "s3:GetObject" for action in actions)
        if any(
            action in ("dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem")
            for action in actions
        ):
            assert statement["Condition"] == {
                "ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["SERVING#*"]}
            }


def test_only_the_reconciler_may_delete_and_only_versions_of_blobs(
    deployed: dict[str, Any],
) -> None:
    deleting = [
        (name, action, statement["Resource"])
        for name, statement in statements(deployed)
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
        if "Delete" in action and not action.startswith("sqs:")
    ]

    blobs = {"Fn::Sub": "${ServingBucket.Arn}/blobs/*"}
    assert deleting == [("ReconcileFunctionRole", "s3:DeleteObjectVersion", blobs)]
    assert deployed["ServingBucket"]["Properties"]["VersioningConfiguration"] == {
        "Status": "Enabled"
    }


def test_the_reconciler_runs_on_a_schedule_and_may_use_what_it_calls(
    deployed: dict[str, Any],
) -> None:
    [rule] = of_type(deployed, "AWS::Events::Rule").values()
    assert rule["ScheduleExpression"] == {"Ref": "ReconcileSchedule"}
    allowed = {
        action
        for name, statement in statements(deployed)
        if name == "ReconcileFunctionRole"
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
    }
    # StartMessageMoveTask works with its caller's right to take from the one queue and to send to the other
    assert {
        "sqs:StartMessageMoveTask",
        "sqs:ReceiveMessage",
        "sqs:DeleteMessage",
        "sqs:SendMessage",
    } <= allowed


def test_every_function_that_reads_the_registry_may(deployed: dict[str, Any]) -> None:
    for function in ("RegisterFunction", "ReconcileFunction", "InferFunction"):
        allowed = [
            a for name, s in statements(deployed) if name == f"{function}Role" for a in s["Action"]
        ]
        assert "dynamodb:BatchGetItem" in allowed, function  # GetItem does not cover it


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


def test_uploads_reach_the_queue_in_all_three_forms_and_nothing_else_does(
    deployed: dict[str, Any],
) -> None:
    rules = deployed["ArtifactsBucket"]["Properties"]["NotificationConfiguration"][
        "QueueConfigurations"
    ]
    filters = [{r["Name"]: r["Value"] for r in rule["Filter"]["S3Key"]["Rules"]} for rule in rules]
    assert filters == [
        {"prefix": "models/", "suffix": ".onnx"},
        {"prefix": "models/", "suffix": "model.tar.gz"},
        {"prefix": "models/", "suffix": "manifest.json"},
    ]
    assert {rule["Event"] for rule in rules} == {"s3:ObjectCreated:*"}


def test_a_message_outlives_six_runs_of_the_function_and_ends_in_the_dead_letters(
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
    methods = {(path, method) for path, item in body["paths"].items() for method in item}
    assert methods == {("/v2", m) for m in ("get", "post")} | {
        ("/v2/{path+}", m) for m in ("get", "post", "head", "put", "patch", "delete")
    }
    for item in body["paths"].values():
        for method in item.values():
            assert method["security"] == [{"AWS_IAM": []}]
    assert api["BinaryMediaTypes"] == ["*/*"] or body["x-amazon-apigateway-binary-media-types"] == [
        "*/*"
    ]


def test_every_gateway_response_has_the_protocols_error_shape(deployed: dict[str, Any]) -> None:
    [api] = of_type(deployed, "AWS::ApiGateway::RestApi").values()
    responses = api["Body"]["x-amazon-apigateway-gateway-responses"]
    assert {
        "DEFAULT_4XX",
        "DEFAULT_5XX",
        "MISSING_AUTHENTICATION_TOKEN",
        "REQUEST_TOO_LARGE",
    } <= responses.keys()
    for response in responses.values():
        template = response["responseTemplates"]["application/json"]
        filled = template.replace("$context.error.messageString", '"text"')
        assert list(json.loads(filled)) == ["error"]


def test_every_function_runs_the_deployed_python_without_telemetry_and_keeps_its_logs_for_a_while(
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
    assert watched == {
        "ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage", "Errors", "5XXError", "Duration",
        "UploadsRejected", "UploadsRetried", "Reconciled", "Stuck", "Damaged",
    }  # fmt: skip
    assert all(alarm["AlarmDescription"] for alarm in alarms.values())
    for alarm in alarms.values():
        if alarm["Namespace"] == "Mayfly":  # a function's own metric, found under its name
            [dimension] = alarm["Dimensions"]
            source = Path(f"functions/{dimension['Value']}/handler.py").read_text()
            assert f'"{alarm["MetricName"]}"' in source


def test_every_parameter_says_what_it_is_for(source: dict[str, Any]) -> None:
    for name, parameter in source["Parameters"].items():
        assert parameter["Description"].endswith("."), name


@pytest.mark.parametrize("layer", ["infer", "register"])
def test_a_layer_holds_what_pyproject_pins(layer: str) -> None:
    assert Path(f"layers/{layer}/requirements.txt").read_text() == layer_requirements(layer), (
        "run `make layer`"
    )
