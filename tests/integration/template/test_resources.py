"""template.yaml after the SAM transform: queue, functions, alarms, parameters, outputs.

Neither moto nor SAM would report the mistakes that these tests find.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from functions.core.intake.status import RECEIVES_MAX
from functions.core.serving.request_log import LANGUAGE_UNITS, NAMESPACE, UNITS
from functions.register.handler import RESERVE_MS
from scripts.layer import layer_requirements
from tests.integration.template.transformed import Deployment, allowed_actions, of_type


def test_the_reconciler_runs_on_a_schedule_and_may_redrive(resources: dict[str, Any]) -> None:
    [rule] = of_type(resources, "AWS::Events::Rule").values()
    assert rule["ScheduleExpression"] == {"Ref": "ReconcileSchedule"}
    # StartMessageMoveTask receives, deletes and sends with its caller's permissions.
    needed = {
        "sqs:StartMessageMoveTask",
        "sqs:ReceiveMessage",
        "sqs:DeleteMessage",
        "sqs:SendMessage",
    }
    assert needed <= allowed_actions(resources, "ReconcileFunctionRole")


@pytest.mark.parametrize(
    "function", ["RegisterFunction", "ReconcileFunction", "InferFunction", "GenerateFunction"]
)
def test_every_function_may_read_registry_items_in_batches(
    function: str, resources: dict[str, Any]
) -> None:
    # GetItem's permission does not include BatchGetItem.
    assert "dynamodb:BatchGetItem" in allowed_actions(resources, f"{function}Role")


def test_the_queue_gets_every_object_under_models(resources: dict[str, Any]) -> None:
    """Check that S3 notifications have a prefix filter but no suffix filter.

    Suffix filters are case-sensitive, and would hide ignored uploads from the queue.
    """
    notifications = resources["ArtifactsBucket"]["Properties"]["NotificationConfiguration"]
    [rule] = notifications["QueueConfigurations"]
    assert rule["Event"] == "s3:ObjectCreated:*"
    [prefix] = rule["Filter"]["S3Key"]["Rules"]
    assert (prefix["Name"], prefix["Value"]) == ("prefix", "models/")


def test_an_upload_waits_for_no_neighbour_of_its_batch(
    source: dict[str, Any], resources: dict[str, Any]
) -> None:
    [mapping] = of_type(resources, "AWS::Lambda::EventSourceMapping").values()
    assert mapping["BatchSize"] == 1
    # An upload is begun in every invocation, so that none goes round the queue for ever.
    assert source["Parameters"]["RegisterTimeout"]["MinValue"] * 1000 > RESERVE_MS
    assert "sqs:SendMessage" in allowed_actions(resources, "RegisterFunctionRole")


def test_a_message_stays_invisible_for_six_timeouts_and_is_dead_lettered(
    source: dict[str, Any], resources: dict[str, Any]
) -> None:
    defaults = {name: parameter["Default"] for name, parameter in source["Parameters"].items()}
    assert defaults["RegistrationVisibilityTimeout"] == 6 * defaults["RegisterTimeout"]
    queue = resources["RegistrationQueue"]["Properties"]
    assert queue["RedrivePolicy"]["maxReceiveCount"] == RECEIVES_MAX == 5
    [mapping] = of_type(resources, "AWS::Lambda::EventSourceMapping").values()
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_functions_run_python_3_13_without_telemetry_and_expire_their_logs(
    resources: dict[str, Any],
) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    assert functions.keys() == {
        *("RegisterFunction", "ReconcileFunction", "InferFunction", "ManageFunction"),
        *("GenerateFunction", "JudgeFunction"),
    }
    for function in functions.values():
        assert function["Runtime"] == "python3.13"
        assert function["Environment"]["Variables"]["ORT_DISABLE_TELEMETRY"] == "1"
        logs = resources[function["LoggingConfig"]["LogGroup"]["Ref"]]
        assert logs["Properties"]["RetentionInDays"]


@pytest.mark.parametrize(
    "resource",
    [
        "InferFunction",
        "GenerateFunction",
        "RegisterFunction",
        "ReconcileFunction",
        "ManageFunction",
        "JudgeFunction",
    ],
)
def test_functions_and_layers_are_of_the_processor_that_was_built(
    resource: str, source: dict[str, Any], resources: dict[str, Any]
) -> None:
    assert resources[resource]["Properties"]["Architectures"] == [{"Ref": "Architecture"}]
    for layer in of_type(source["Resources"], "AWS::Serverless::LayerVersion"):
        built = source["Resources"][layer]["Metadata"]["BuildArchitecture"]
        assert built == {"Ref": "Architecture"}


@pytest.mark.parametrize("name", ["Infer", "Generate"])
def test_a_layer_brings_a_new_version_of_its_function(name: str, source: dict[str, Any]) -> None:
    assert source["Resources"][f"{name}Layer"]["Properties"]["PublishLambdaVersion"] is True
    assert source["Resources"][f"{name}Function"]["Properties"]["AutoPublishAliasAllProperties"]


def parameters_in(value: Any, source: dict[str, Any]) -> set[str]:
    """Return the names of the parameters on which a value of the template depends."""
    text = json.dumps(value)
    names = set(re.findall(r'"Ref": "(\w+)"', text)) | set(re.findall(r"\$\{(\w+)", text))
    for name in re.findall(r'"Fn::If": \["(\w+)"', text):
        names |= parameters_in(source["Conditions"][name], source)
    return names & source["Parameters"].keys()


@pytest.mark.parametrize("name", ["InferFunction", "GenerateFunction"])
def test_a_functions_parameter_is_in_its_versions_description(
    name: str, source: dict[str, Any]
) -> None:
    """Check that a new value publishes a new version, which the alias then names.

    SAM compares properties, not the values of parameters: without another description, the alias
    would go on with the old value.
    """
    function = source["Resources"][name]["Properties"]
    properties = ("MemorySize", "Timeout", "SnapStart", "Environment", "EphemeralStorage")
    version = {name: function[name] for name in properties if name in function}
    version["Globals"] = {
        name: source["Globals"]["Function"][name]
        for name in ("Architectures", "EphemeralStorage", "Environment")
    }
    described = parameters_in(function["VersionDescription"], source)

    assert parameters_in(version, source) == described
    [text] = function["VersionDescription"].values()
    longest = sum(longest_value(source["Parameters"][name]) for name in described)
    assert len(re.sub(r"\$\{\w+\}", "", text)) + longest <= 256  # CloudFormation's limit


def longest_value(parameter: dict[str, Any]) -> int:
    values = [parameter["Default"], *parameter.get("AllowedValues", ())]
    if parameter["Type"] == "Number":
        values += [parameter["MinValue"], parameter["MaxValue"], 0.001]
    return max(parameter.get("MaxLength", 0), *(len(str(value)) for value in values))


def test_nothing_is_kept_started_by_default(deployment: Deployment) -> None:
    alias = deployment.resources["InferFunctionAliaslive"]["Properties"]
    infer = deployment.resources["InferFunction"]["Properties"]
    generate = deployment.resources["GenerateFunctionAliaslive"]["Properties"]

    assert "ProvisionedConcurrencyConfig" not in {**alias, **generate}
    assert infer["SnapStart"] == {"ApplyOn": "None"}
    assert infer["EphemeralStorage"] == {"Size": {"Ref": "EphemeralStorage"}}


def test_provisioned_concurrency_and_snapshots_are_behind_the_alias(
    deployment: Deployment,
) -> None:
    provisioned = deployment.with_parameters(ProvisionedConcurrency=2).resources
    snapshot = deployment.with_parameters(SnapStart="true").resources
    config = provisioned["InferFunctionAliaslive"]["Properties"]["ProvisionedConcurrencyConfig"]

    assert config == {"ProvisionedConcurrentExecutions": {"Ref": "ProvisionedConcurrency"}}
    infer = snapshot["InferFunction"]["Properties"]
    assert infer["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert infer["EphemeralStorage"] == {"Size": 512}  # the most that a snapshot allows


def test_environments_of_generate_are_kept_started_on_their_own(deployment: Deployment) -> None:
    resources = deployment.with_parameters(GenerateProvisionedConcurrency=1).resources
    alias = resources["GenerateFunctionAliaslive"]["Properties"]

    wanted = {"ProvisionedConcurrentExecutions": {"Ref": "GenerateProvisionedConcurrency"}}
    assert alias["ProvisionedConcurrencyConfig"] == wanted
    infer = resources["InferFunctionAliaslive"]["Properties"]
    assert "ProvisionedConcurrencyConfig" not in infer


def test_the_concurrency_of_generate_is_reserved_on_request(deployment: Deployment) -> None:
    unlimited = deployment.resources["GenerateFunction"]["Properties"]
    limited = deployment.with_parameters(GenerateConcurrency=20).resources["GenerateFunction"]

    assert "ReservedConcurrentExecutions" not in unlimited
    reserved = limited["Properties"]["ReservedConcurrentExecutions"]
    assert reserved == {"Ref": "GenerateConcurrency"}


def test_every_handler_exists() -> None:
    handlers = re.findall(r"Handler: (\S+)\.lambda_handler", Path("template.yaml").read_text())
    assert len(handlers) == 6
    for handler in handlers:
        assert Path(handler.replace(".", "/") + ".py").is_file()


def test_dead_letters_age_errors_and_latency_raise_alarms(resources: dict[str, Any]) -> None:
    alarms = of_type(resources, "AWS::CloudWatch::Alarm")
    watched = {alarm["MetricName"] for alarm in alarms.values()}
    of_aws = {"Errors", "Throttles", "5XXError", "Duration", "ExecutionsFailed"}
    of_sqs = {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"}
    of_mayfly = {
        *("UploadsRejected", "UploadsIgnored", "UploadsRetried"),
        *("Reconciled", "Stuck", "Damaged"),
        "FirstTokenMs",
    }
    assert watched == of_aws | of_sqs | of_mayfly
    assert all(alarm["AlarmDescription"] for alarm in alarms.values())
    for alarm in alarms.values():
        if alarm["MetricName"] in LANGUAGE_UNITS:  # emitted without a dimension
            assert (alarm["Namespace"], "Dimensions" in alarm) == (NAMESPACE, False)
        elif alarm["Namespace"] == "Mayfly":  # a metric of a function, whose handler emits it
            [dimension] = alarm["Dimensions"]
            handler = Path(f"functions/{dimension['Value']}/handler.py").read_text()
            assert f'"{alarm["MetricName"]}"' in handler


@pytest.mark.parametrize(
    ("parameters", "actions"),
    [
        ({}, []),
        ({"AlarmEmail": "a@b.org"}, [{"Ref": "AlarmTopic"}]),
        ({"AlarmTopicArn": "arn:aws:sns:us-east-1:1:t"}, [{"Ref": "AlarmTopicArn"}]),
        (
            {"AlarmEmail": "a@b.org", "AlarmTopicArn": "arn:aws:sns:us-east-1:1:t"},
            [{"Ref": "AlarmTopicArn"}, {"Ref": "AlarmTopic"}],
        ),
    ],
)
def test_every_alarm_reaches_the_address_and_the_topic(
    deployment: Deployment, parameters: dict[str, str], actions: list[Any]
) -> None:
    resources = deployment.with_parameters(**parameters).resources

    for alarm in of_type(resources, "AWS::CloudWatch::Alarm").values():
        assert alarm["AlarmActions"] == actions
    topics = of_type(resources, "AWS::SNS::Topic")
    assert len(topics) == ("AlarmEmail" in parameters)
    for topic in topics.values():
        assert topic["Subscription"] == [{"Protocol": "email", "Endpoint": {"Ref": "AlarmEmail"}}]


def test_the_dashboard_shows_metrics_of_this_stack(deployment: Deployment) -> None:
    assert not of_type(deployment.resources, "AWS::CloudWatch::Dashboard")  # by default

    resources = deployment.with_parameters(Dashboard="on").resources
    [dashboard] = of_type(resources, "AWS::CloudWatch::Dashboard").values()
    text, own = dashboard["DashboardBody"]["Fn::Sub"]
    referred = set(re.findall(r"\$\{([\w:]+)\}", text)) - set(own)
    assert referred <= {"AWS::Region", "AWS::StackName", *resources}
    assert all(value["Fn::GetAtt"][0] in resources for value in own.values())
    widgets = json.loads(text)["widgets"]
    rows = [row for widget in widgets for row in widget["properties"]["metrics"]]
    shown = {tuple(row[:2]) for row in rows if isinstance(row[0], str)}
    assert {
        *(("Mayfly", name) for name in UNITS if name != "Errors"),
        *(("Mayfly", name) for name in LANGUAGE_UNITS),
        *(("Mayfly", f"Uploads{end}") for end in ("Registered", "Rejected", "Retried", "Ignored")),
        *(("AWS/ApiGateway", name) for name in ("Count", "4XXError", "5XXError", "Latency")),
        *(("AWS/Lambda", name) for name in ("Duration", "Throttles", "ConcurrentExecutions")),
        ("AWS/DynamoDB", "ConsumedWriteCapacityUnits"),
        ("AWS/DynamoDB", "ConsumedReadCapacityUnits"),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
    } == shown


def test_every_parameter_has_a_default_and_a_description(source: dict[str, Any]) -> None:
    for name, parameter in source["Parameters"].items():
        assert "Default" in parameter, name
        assert parameter["Description"].endswith("."), name


def test_every_output_has_a_use_in_the_documentation(source: dict[str, Any]) -> None:
    pages = [Path("README.md"), *Path("docs").rglob("*.md")]
    text = "".join(page.read_text() for page in pages)
    for name, output in source["Outputs"].items():
        assert name in text, f"no page uses the output {name}"
        assert output["Description"].endswith(".")


@pytest.mark.parametrize("layer", ["generate", "infer", "register"])
def test_a_layer_has_the_versions_of_pyproject(layer: str) -> None:
    assert Path(f"layers/{layer}/requirements.txt").read_text() == layer_requirements(layer), (
        "run `make layer`"
    )
