"""template.yaml after the SAM transform: methods, replies, throttling and log of the API."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from functions.core.access.auth import Auth
from functions.core.access.grants import Scope
from functions.core.access.keys import parse_key
from tests.control_plane import ControlPlane
from tests.data_plane import Client, DataPlane, rows
from tests.integration.template.transformed import Deployment, of_type


def api_body(deployment: Deployment) -> dict[str, Any]:
    """Return the OpenAPI document of a stack's API."""
    [api] = of_type(deployment.resources, "AWS::ApiGateway::RestApi").values()
    return dict(api["Body"])


@pytest.fixture
def body(deployment: Deployment) -> dict[str, Any]:
    """OpenAPI document of the API."""
    return api_body(deployment)


METHODS = {"get", "head", "post", "put", "patch", "delete", "options"}
PATHS = {
    "/v2": {"get", "head", "post", "options"},
    "/v2/{path+}": METHODS,
    "/v2/models": METHODS,
    "/v2/models/{model}": METHODS,
    "/v2/models/{model}/versions/{version}": METHODS,
    "/v2/models/{model}/generate": {"post", "options"},
    "/v2/models/{model}/generate_stream": {"post", "options"},
    "/v2/models/{model}/versions/{version}/generate": {"post", "options"},
    "/v2/models/{model}/versions/{version}/generate_stream": {"post", "options"},
    "/v1/{path+}": METHODS,
    "/api/v1/{path+}": METHODS,
    "/console": {"get"},
    "/console/{path+}": {"get", "head"},
    "/docs": {"get", "head"},
    "/docs/{path+}": {"get", "head", "options"},
}


TARGETS = {
    "InferFunctionAliaslive": "${InferFunctionAliaslive}",
    "GenerateFunctionAliaslive": "${GenerateFunctionAliaslive}",
    "ManageFunction": "${ManageFunction.Arn}",
}


def function_of(path: str) -> str:
    """Return the function that answers at a path."""
    if path.startswith("/v1") or "/generate" in path:
        return "GenerateFunctionAliaslive"
    return "InferFunctionAliaslive" if path.startswith("/v2") else "ManageFunction"


def test_language_models_stream_for_as_long_as_their_function_runs(body: dict[str, Any]) -> None:
    for path, item in body["paths"].items():
        for method in item.values():
            integration = method["x-amazon-apigateway-integration"]
            streams = function_of(path) == "GenerateFunctionAliaslive"
            uri = json.dumps(integration["uri"])
            assert (integration.get("responseTransferMode") == "STREAM") == streams
            assert ("response-streaming-invocations" in uri) == streams
            assert integration.get("timeoutInMillis") == (900_000 if streams else None)


def test_every_method_is_explicit_and_bodies_are_binary(body: dict[str, Any]) -> None:
    assert {path: set(item) for path, item in body["paths"].items()} == PATHS
    assert "*/*" in body["x-amazon-apigateway-binary-media-types"]
    assert body["info"]["title"] == {"Ref": "AWS::StackName"}  # the API's name: see ApiErrorAlarm


@pytest.mark.parametrize("auth", ["keys", "iam", "none"])
def test_signatures_are_checked_with_iam_alone_and_never_of_a_preflight(
    deployment: Deployment, auth: str
) -> None:
    resources = deployment.with_parameters(Auth=auth).resources
    [api] = of_type(resources, "AWS::ApiGateway::RestApi").values()

    for item in api["Body"]["paths"].values():
        for name, method in item.items():
            signed = auth == "iam" and name != "options"
            assert method.get("security") == ([{"AWS_IAM": []}] if signed else None)
    scheme = api["Body"]["components"]["securitySchemes"]["AWS_IAM"]
    assert scheme["x-amazon-apigateway-authtype"] == "awsSigv4"


def test_another_kind_of_authorisation_deploys_the_stage_anew(source: dict[str, Any]) -> None:
    """Check that a resolved value of Auth is in the text from which SAM names the deployment.

    Otherwise the stage would go on without signatures after a change to iam.
    """
    types = source["Resources"]["Api"]["Properties"]["BinaryMediaTypes"]

    assert {"Fn::Sub": "application/x-auth-${Auth}"} in types


def test_a_caller_needs_no_permission_for_the_function(body: dict[str, Any]) -> None:
    """Check that API Gateway calls the function as itself.

    With "credentials" it would call as the caller, and answer 500 to those who may only call the
    API: github.com/aws/serverless-application-model/issues/923.
    """
    for path, item in body["paths"].items():
        target = TARGETS[function_of(path)]
        for method in item.values():
            integration = method["x-amazon-apigateway-integration"]
            assert "credentials" not in integration
            assert target in json.dumps(integration["uri"])


def test_the_api_may_call_its_functions_and_nothing_else_may(resources: dict[str, Any]) -> None:
    permissions = of_type(resources, "AWS::Lambda::Permission").values()
    of_api = [p for p in permissions if p["Principal"] == "apigateway.amazonaws.com"]
    named = [permission["FunctionName"]["Ref"] for permission in of_api]

    assert Counter(named) == {
        name: sum(len(methods) for path, methods in PATHS.items() if function_of(path) == name)
        for name in TARGETS
    }
    for permission in of_api:
        assert "${__ApiId__}" in json.dumps(permission["SourceArn"])


@pytest.mark.parametrize("auth", ["keys", "iam"])
def test_every_gateway_response_has_the_protocols_error_shape(
    deployment: Deployment, auth: str
) -> None:
    body = api_body(deployment.with_parameters(Auth=auth))
    responses = body["x-amazon-apigateway-gateway-responses"]
    needed = {"DEFAULT_4XX", "DEFAULT_5XX", "MISSING_AUTHENTICATION_TOKEN", "REQUEST_TOO_LARGE"}
    assert needed <= responses.keys()
    for response in responses.values():
        template = response["responseTemplates"]["application/json"]
        text = template["Fn::Sub"] if isinstance(template, dict) else template
        filled = text.replace("$context.error.messageString", '"text"')
        assert list(json.loads(filled)) == ["error"]


@pytest.mark.parametrize(("auth", "is_told"), [("keys", False), ("none", False), ("iam", True)])
def test_a_caller_is_told_to_sign_where_signatures_are_needed(
    deployment: Deployment, auth: str, is_told: bool
) -> None:
    # API Gateway calls an unknown path and an unsigned request the same.
    body = api_body(deployment.with_parameters(Auth=auth))
    response = body["x-amazon-apigateway-gateway-responses"]["MISSING_AUTHENTICATION_TOKEN"]
    text = json.loads(response["responseTemplates"]["application/json"]["Fn::Sub"])["error"]

    assert response["statusCode"] == "403"
    assert ("not signed with AWS Signature 4" in text) == is_told
    assert "nothing at this path" in text
    assert "/${StageName}/v2 and /${StageName}/api/v1" in text


def test_a_throttled_caller_learns_when_to_retry(body: dict[str, Any]) -> None:
    throttled = body["x-amazon-apigateway-gateway-responses"]["THROTTLED"]

    assert throttled["statusCode"] == "429"
    assert throttled["responseParameters"] == {"gatewayresponse.header.Retry-After": "'1'"}


def test_every_method_is_throttled(resources: dict[str, Any], source: dict[str, Any]) -> None:
    [stage] = of_type(resources, "AWS::ApiGateway::Stage").values()
    [settings] = stage["MethodSettings"]

    assert (settings["ResourcePath"], settings["HttpMethod"]) == ("/*", "*")
    assert settings["ThrottlingRateLimit"] == {"Ref": "ThrottleRate"}
    assert settings["ThrottlingBurstLimit"] == {"Ref": "ThrottleBurst"}
    assert source["Parameters"]["ThrottleRate"]["Default"] <= 1000


def test_the_access_log_is_off_unless_the_account_has_its_role(deployment: Deployment) -> None:
    off, on, with_role = (
        deployment.with_parameters(AccessLog=value).resources
        for value in ("off", "on", "with-role")
    )

    assert "AccessLogSetting" not in of_type(off, "AWS::ApiGateway::Stage")["ApiStage"]
    assert not off.keys() & {"AccessLogs", "LogsAccount", "LogsRole"}
    assert on.keys() & {"AccessLogs", "LogsAccount", "LogsRole"} == {"AccessLogs"}
    assert with_role.keys() >= {"AccessLogs", "LogsAccount", "LogsRole"}
    # The account's setting comes first: a stage with a log cannot be made before.
    assert {"Ref": "LogsAccount"} in [tag["Value"] for tag in access_logs(with_role)["Tags"]]
    assert access_logs(on)["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def access_logs(resources: dict[str, Any]) -> dict[str, Any]:
    return dict(resources["AccessLogs"]["Properties"])


def access_line(deployment: Deployment) -> dict[str, str]:
    """Return the format of a line in the access log."""
    stage = deployment.with_parameters(AccessLog="on").resources["ApiStage"]["Properties"]
    return dict(json.loads(stage["AccessLogSetting"]["Format"]))


def function_lines(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return log lines of infer and manage for requests with a key, and the key's id."""
    plane = DataPlane(tmp_path)
    plane.register("m")
    key = plane.create_key(Scope.INFER)
    client = Client(plane.handler(gate=plane.gate))
    client.post("/v2/models/m/infer", rows([1, 2, 3]), headers={"x-api-key": key})
    control = ControlPlane(Auth.KEYS)
    control.client.get("/api/v1/keys", headers={"x-api-key": key})
    return plane.lines[-1], control.lines[-1], str(parse_key(key))


def test_the_documented_query_joins_the_access_log_with_the_keys(
    deployment: Deployment, tmp_path: Path
) -> None:
    page = Path("docs/operations.md").read_text()
    [query] = re.findall(r"^filter ispresent\(request_id\) .*$", page, re.MULTILINE)
    arguments = re.findall(r"(?:max|coalesce|ispresent)\(([a-z_, ]+)\)", query)
    fields = {name for text in arguments for name in text.split(", ")}
    access = access_line(deployment)
    infer, manage, key_id = function_lines(tmp_path)

    assert query.endswith(" by request_id")
    assert {"request_id", "ip", "path", "key", "actor"} <= fields
    assert fields <= access.keys() | infer.keys() | manage.keys()
    assert {"key", "actor"}.isdisjoint(access)  # the functions alone know the key
    assert infer["key"] == key_id
    assert access["request_id"] == "$context.requestId"  # the event's requestContext.requestId
    assert infer["request_id"] == manage["request_id"] == "the-request"


def test_a_line_of_the_access_log_is_json_without_headers(deployment: Deployment) -> None:
    line = access_line(deployment)

    assert {"request_id", "status", "caller"} <= line.keys()
    for value in line.values():  # a header or a query string can hold a key
        assert value.startswith("$context.")
        assert "override" not in value
