"""Template reader of the local stack, with template.yaml and with small templates."""

from pathlib import Path
from typing import Any

import pytest

from local.cloudformation import TemplateError, fill_parameters
from local.template import GatewayResponse, Route, Template

TEMPLATE = Path(__file__).parents[3] / "template.yaml"


@pytest.fixture(scope="module")
def ours() -> Template:
    return Template.load(TEMPLATE)


def make_template(tmp_path: Path, text: str, **parameters: Any) -> Template:
    path = tmp_path / "template.yaml"
    path.write_text(text)
    return Template.load(path, parameters)


def test_functions_have_globals_parameters_and_references(ours: Template) -> None:
    infer = ours.functions["InferFunction"]

    assert infer.handler == "functions.infer.main.lambda_handler"
    assert (infer.memory_mb, infer.timeout_s, infer.ephemeral_mb) == (3008, 29, 2048)
    assert infer.runtime == "python3.13"
    assert infer.environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert infer.environment["SERVING_BUCKET"] == "mayfly-servingbucket"
    assert infer.environment["REGISTRY_TABLE"] == "mayfly-RegistryTable"
    assert infer.environment["ALIAS_CACHE_SECONDS"] == "5"


def test_parameters_reach_the_functions() -> None:
    template = Template.load(TEMPLATE, {"RegisterTimeout": "150", "RegisterConcurrency": 2})

    register = template.functions["RegisterFunction"]
    assert register.timeout_s == 150
    (source,) = register.sources
    assert source.queue_arn.endswith(":mayfly-RegistrationQueue")
    assert (source.batch_size, source.partial_failures, source.maximum_concurrency) == (1, True, 2)


@pytest.mark.parametrize(("parameters", "reserved"), [({}, None), ({"GenerateConcurrency": 2}, 2)])
def test_concurrency_is_reserved_on_request(
    parameters: dict[str, int], reserved: int | None
) -> None:
    generate = Template.load(TEMPLATE, parameters).functions["GenerateFunction"]

    assert generate.reserved_concurrency == reserved


def test_the_api_has_its_stage_routes_and_error_shapes(ours: Template) -> None:
    api = ours.api

    assert api is not None
    assert api.stage == "live"
    assert "*/*" in api.binary_media_types
    assert Route("POST", "/v2/{path+}", "InferFunction") in api.routes
    message = '{"error": $context.error.messageString}'
    assert api.responses["DEFAULT_4XX"] == GatewayResponse(None, message)
    assert api.responses["MISSING_AUTHENTICATION_TOKEN"].status == 403


def api_event(properties: str) -> str:
    return f"""
Resources:
  F:
    Type: AWS::Serverless::Function
    Properties:
      Handler: a.b
      Events: {{Call: {{Type: Api, Properties: {{Path: /a, Method: post, {properties}}}}}}}
"""


def test_a_route_may_stream_and_have_its_own_timeout(tmp_path: Path) -> None:
    streaming = "ResponseTransferMode: RESPONSE_STREAM, TimeoutInMillis: 900000"
    for properties, route in (
        (streaming, Route("POST", "/a", "F", streams=True, timeout_s=900)),
        ("ResponseTransferMode: BUFFERED", Route("POST", "/a", "F")),
        ("", Route("POST", "/a", "F")),
    ):
        api = make_template(tmp_path, api_event(properties)).api
        assert api is not None
        assert api.routes == (route,)


def test_an_unknown_transfer_mode_is_named(tmp_path: Path) -> None:
    template = make_template(tmp_path, api_event("ResponseTransferMode: STREAM"))

    with pytest.raises(TemplateError, match="of /a is BUFFERED or RESPONSE_STREAM, not STREAM"):
        _ = template.api


def test_outputs_are_resolved(ours: Template) -> None:
    assert ours.outputs["ArtifactsBucketName"] == "mayfly-artifactsbucket"
    assert ours.outputs["ApiUrl"] == "https://Api.execute-api.us-east-1.amazonaws.com/live"


INTRINSICS = """
Parameters:
  Size: {Type: Number, Default: 5}
Mappings:
  Sizes: {small: {memory: 128}}
Conditions:
  Big: !Not [!Equals [!Ref Size, 5]]
  Never: !And [!Condition Big, !Equals [a, b]]
Resources:
  Queue: {Type: "AWS::SQS::Queue"}
  Left: {Type: "AWS::SQS::Queue", Condition: Big}
  F:
    Type: AWS::Serverless::Function
    Properties:
      Handler: m.f
      MemorySize: !FindInMap [Sizes, small, memory]
      Environment:
        Variables:
          SUB: !Sub "${Queue.Arn}/${AWS::Region}/${!kept}"
          SUB2: !Sub ["${a}-${Size}", {a: !Ref "AWS::StackName"}]
          IF: !If [Big, yes, !Join ["-", [x, !Select [1, !Split [",", "p,q"]]]]]
          GONE: !If [Never, 1, !Ref "AWS::NoValue"]
          LONG: {"Fn::GetAtt": [Queue, QueueName]}
          BOOL: true
"""


def test_intrinsic_functions_in_both_forms(tmp_path: Path) -> None:
    template = make_template(tmp_path, INTRINSICS)

    assert template.functions["F"].environment == {
        "SUB": "arn:aws:sqs:us-east-1:123456789012:mayfly-Queue/us-east-1/${kept}",
        "SUB2": "mayfly-5",
        "IF": "x-q",
        "LONG": "mayfly-Queue",
        "BOOL": "true",
    }
    assert template.functions["F"].memory_mb == 128
    assert template.resources("AWS::SQS::Queue") == ["Queue"]
    large = make_template(tmp_path, INTRINSICS, Size=6)
    assert large.resources("AWS::SQS::Queue") == ["Queue", "Left"]


def test_physical_ids_replace_the_default_references(tmp_path: Path) -> None:
    text = 'Resources: {Q: {Type: "AWS::SQS::Queue"}}\nOutputs: {Url: {Value: !Ref Q}}'
    template = make_template(tmp_path, text)

    provisioned = template.with_references({"Q": "http://127.0.0.1/q"})
    assert provisioned.outputs == {"Url": "http://127.0.0.1/q"}
    assert template.outputs == {"Url": "https://sqs.us-east-1.amazonaws.com/123456789012/mayfly-Q"}


@pytest.mark.parametrize(
    ("rules", "values", "message"),
    [
        ({}, {"Other": 1}, "parameter Other: unknown; the template has P"),
        ({"Default": None}, {}, "parameter P: it has no default and needs a value"),
        ({"Type": "Number"}, {"P": "x"}, "parameter P: 'x' is no number"),
        ({"Type": "Number", "MinValue": 2}, {"P": 1}, "parameter P: 1 is not between 2 and 1"),
        (
            {"Type": "String", "AllowedValues": ["a", "b"]},
            {"P": "c"},
            "parameter P: 'c' is not one of a, b",
        ),
        (
            {"Type": "String", "AllowedPattern": "[a-z]+"},
            {"P": "C"},
            "parameter P: 'C' does not match [a-z]+",
        ),
    ],
    ids=["unknown", "missing", "no number", "too small", "not allowed", "pattern"],
)
def test_parameters_are_checked(
    rules: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(TemplateError) as error:
        fill_parameters({"P": rules}, values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("!Ref Nothing", "Variables.X: there is no parameter or resource Nothing"),
        (
            "!GetAtt F.Colour",
            "Variables.X: the local stack does not know F.Colour (AWS::Serverless::Function)",
        ),
        ("!Cidr [a]", "Variables.X: !Cidr is not supported by the local stack"),
        ("!If [Nothing, 1, 2]", "Variables.X: there is no condition Nothing"),
        ("!Select [7, [a]]", "Variables.X: !Select cannot work with [7, ['a']]"),
    ],
)
def test_errors_name_resource_and_property(tmp_path: Path, value: str, message: str) -> None:
    text = (
        "Conditions: {}\nResources: {F: {Type: 'AWS::Serverless::Function', "
        f"Properties: {{Handler: m.f, Environment: {{Variables: {{X: {value}}}}}}}}}}}"
    )
    template = make_template(tmp_path, text)
    with pytest.raises(TemplateError) as error:
        template.functions  # noqa: B018  # a property that resolves
    assert str(error.value) == f"Resources.F.Properties.Environment.{message}"


@pytest.mark.parametrize("text", ["a: [", "just text", "Resources: 5"])
def test_a_file_that_is_no_template_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(TemplateError, match=r"template\.yaml: "):
        make_template(tmp_path, text)
