"""A SAM template as the local stack sees it: parsed, its parameters filled in, its functions resolved to plain values.

`Template.functions` and `.api` are what is served; `.properties(name)` gives any other resource in its own words.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = "123456789012"
REGION = "us-east-1"
_NOTHING: Any = object()  # AWS::NoValue: the property it stands in is left out


class TemplateError(ValueError):
    """The template, or a parameter given to it, says something the local stack cannot follow."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path of the API, and the function behind it."""

    method: str  # upper case, or ANY
    path: str  # /v2/{path+}
    function: str


@dataclass(frozen=True, slots=True)
class QueueSource:
    """An SQS event source mapping."""

    queue_arn: str
    batch_size: int
    partial_failures: bool
    maximum_concurrency: int | None


@dataclass(frozen=True, slots=True)
class Function:
    name: str  # the logical id, as with `sam local`
    handler: str
    runtime: str
    memory_mb: int
    timeout_s: float
    ephemeral_mb: int
    environment: dict[str, str]
    reserved_concurrency: int | None
    sources: tuple[QueueSource, ...]

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{self.name}"


@dataclass(frozen=True, slots=True)
class GatewayResponse:
    """How the API answers by itself, e.g. when there is no such path."""

    status: int | None = None
    template: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Api:
    id: str
    stage: str
    binary_media_types: tuple[str, ...]
    responses: dict[str, GatewayResponse]
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class Template:
    """A loaded template. `references` overrides what `!Ref` gives, e.g. a queue's URL once it exists."""

    document: dict[str, Any]
    parameters: dict[str, Any]
    stack_name: str = "mayfly"
    references: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls, path: str | Path, parameters: Mapping[str, Any] | None = None, stack_name: str = "mayfly"
    ) -> "Template":
        """The template at `path` with `parameters` over its defaults.

        Raises:
            TemplateError: unreadable, or a parameter is unknown, missing or outside what the template allows.
        """
        try:
            document = yaml.load(Path(path).read_text(), _Loader)  # noqa: S506  # a SafeLoader
        except (OSError, yaml.YAMLError) as error:
            raise TemplateError(f"{path}: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("Resources"), dict):
            raise TemplateError(f"{path}: a template needs a Resources section")
        return cls(document, fill_parameters(document.get("Parameters") or {}, parameters or {}), stack_name)

    def with_references(self, references: Mapping[str, str]) -> "Template":
        return replace(self, references={**self.references, **references})

    # --- what is served -------------------------------------------------------------------------------------------

    @cached_property
    def functions(self) -> dict[str, Function]:
        return {name: self._function(name) for name in self.resources("AWS::Serverless::Function")}

    @cached_property
    def api(self) -> Api | None:
        """The one API of the template, SAM's implicit one included. None when no function has an Api event."""
        routes = tuple(
            Route(str(event["Method"]).upper(), str(event["Path"]), name)
            for name in self.resources("AWS::Serverless::Function")
            for event in self._events(name, "Api")
        )
        explicit = self.resources("AWS::Serverless::Api")
        if len(explicit) > 1:
            raise TemplateError(f"Resources.{explicit[1]}: the local stack serves one API, {explicit[0]} is the first")
        if not explicit and not routes:
            return None
        name = explicit[0] if explicit else "ServerlessRestApi"
        shared = self.resolve(self.document.get("Globals", {}).get("Api", {}), "Globals.Api")
        properties = {**shared, **(self.properties(name) if explicit else {"StageName": "Prod"})}
        responses = {
            kind: GatewayResponse(
                int(response["StatusCode"]) if "StatusCode" in response else None,
                (response.get("ResponseTemplates") or {}).get("application/json"),
                _headers(response),
            )
            for kind, response in (properties.get("GatewayResponses") or {}).items()
        }
        types = tuple(str(kind).replace("~1", "/") for kind in properties.get("BinaryMediaTypes") or ())
        return Api(name, str(properties["StageName"]), types, responses, routes)

    @cached_property
    def outputs(self) -> dict[str, str]:
        outputs = {}
        for name, output in (self.document.get("Outputs") or {}).items():
            if self._wanted(output, f"Outputs.{name}"):
                outputs[name] = str(self.resolve(output["Value"], f"Outputs.{name}.Value"))
        return outputs

    def resources(self, kind: str) -> list[str]:
        """Logical ids of the resources of one type, in the template's order, those left out by a Condition excepted."""
        return [
            name
            for name, resource in self.document["Resources"].items()
            if resource.get("Type") == kind and self._wanted(resource, f"Resources.{name}")
        ]

    def properties(self, name: str) -> dict[str, Any]:
        """A resource's properties, every reference in them resolved."""
        properties = self.document["Resources"][name].get("Properties") or {}
        return dict(self.resolve(properties, f"Resources.{name}.Properties"))

    def _function(self, name: str) -> Function:
        shared = self.document.get("Globals", {}).get("Function", {})
        own = self.document["Resources"][name].get("Properties") or {}

        def value(key: str, default: Any) -> Any:
            where = f"Resources.{name}.Properties.{key}"
            found = self.resolve(own.get(key, shared.get(key, default)), where)
            if found is None or found is _NOTHING:
                raise TemplateError(f"{where}: missing")
            return found

        def optional_number(key: str) -> int | None:
            return number(key, None) if key in own else None

        def number(key: str, default: Any) -> int:
            try:
                return int(value(key, default))
            except ValueError as error:
                where = f"Resources.{name}.Properties.{key}"
                raise TemplateError(f"{where}: {value(key, default)!r} is no number") from error

        variables: dict[str, Any] = {}
        for where, source in (("Globals.Function", shared), (f"Resources.{name}.Properties", own)):
            given = (source.get("Environment") or {}).get("Variables") or {}
            variables |= self.resolve(given, f"{where}.Environment.Variables")
        return Function(
            name=name,
            handler=str(value("Handler", None)),
            runtime=str(value("Runtime", "python3.13")),
            memory_mb=number("MemorySize", 128),
            timeout_s=number("Timeout", 3),
            ephemeral_mb=int(value("EphemeralStorage", {"Size": 512})["Size"]),
            environment={key: _text(variable) for key, variable in variables.items()},
            reserved_concurrency=optional_number("ReservedConcurrentExecutions"),
            sources=tuple(
                QueueSource(
                    queue_arn=str(event["Queue"]),
                    batch_size=int(event.get("BatchSize", 10)),
                    partial_failures="ReportBatchItemFailures" in (event.get("FunctionResponseTypes") or ()),
                    maximum_concurrency=(event.get("ScalingConfig") or {}).get("MaximumConcurrency"),
                )
                for event in self._events(name, "SQS")
                if event.get("Enabled", True)
            ),
        )

    def _events(self, function: str, kind: str) -> list[dict[str, Any]]:
        events = (self.document["Resources"][function].get("Properties") or {}).get("Events") or {}
        where = f"Resources.{function}.Properties.Events"
        return [
            self.resolve(event["Properties"], f"{where}.{name}.Properties")
            for name, event in events.items()
            if event.get("Type") == kind
        ]

    def _wanted(self, thing: Mapping[str, Any], where: str) -> bool:
        return "Condition" not in thing or self.condition(thing["Condition"], where)

    # --- CloudFormation's functions -------------------------------------------------------------------------------

    def condition(self, name: str, where: str) -> bool:
        try:
            expression = self.document["Conditions"][name]
        except KeyError as error:
            raise TemplateError(f"{where}: there is no condition {name}") from error
        return bool(self.resolve(expression, f"Conditions.{name}"))

    def resolve(self, value: Any, where: str) -> Any:
        """`value` with every intrinsic function replaced by its result; `where` is its path, for errors."""
        if isinstance(value, list):
            items = (self.resolve(item, f"{where}[{index}]") for index, item in enumerate(value))
            return [item for item in items if item is not _NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            name, argument = next(iter(value.items()))
            if name == "Condition" and isinstance(argument, str):
                return self.condition(argument, where)
            if name == "Ref" or (isinstance(name, str) and name.startswith("Fn::")):
                return self._call(name.removeprefix("Fn::"), argument, where)
        pairs = ((key, self.resolve(item, f"{where}.{key}")) for key, item in value.items())
        return {key: item for key, item in pairs if item is not _NOTHING}

    def _call(self, function: str, argument: Any, where: str) -> Any:
        try:
            match function:
                case "Ref":
                    return self._ref(argument, where)
                case "GetAtt":
                    name, attribute = argument.split(".", 1) if isinstance(argument, str) else argument
                    return self._attribute(name, attribute, where)
                case "Sub":
                    return self._sub(argument, where)
                case "If":
                    condition, yes, no = argument
                    return self.resolve(yes if self.condition(condition, where) else no, where)
                case "FindInMap":
                    mapping, first, second = self.resolve(argument, where)
                    return self.resolve(self.document["Mappings"][mapping][first][second], where)
            values = self.resolve(argument, where)
            match function:
                case "Equals":
                    return _text(values[0]) == _text(values[1])
                case "Not":
                    return not values[0]
                case "And":
                    return all(values)
                case "Or":
                    return any(values)
                case "Join":
                    return str(values[0]).join(map(_text, values[1]))
                case "Select":
                    return values[1][int(values[0])]
                case "Split":
                    return str(values[1]).split(values[0])
                case "Base64":
                    return base64.b64encode(str(values).encode()).decode()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, TemplateError):
                raise
            raise TemplateError(f"{where}: !{function} cannot work with {argument!r:.80}") from error
        raise TemplateError(f"{where}: !{function} is not known to the local stack")

    def _ref(self, name: str, where: str) -> Any:
        pseudo = {
            "AWS::AccountId": ACCOUNT,
            "AWS::Region": REGION,
            "AWS::StackName": self.stack_name,
            "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{self.stack_name}/local",
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
            "AWS::NoValue": _NOTHING,
        }
        for known in (pseudo, self.references, self.parameters):
            if name in known:
                return known[name]
        if self._kind(name, where) == "AWS::SQS::Queue":
            return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{self.physical_name(name)}"
        return self.physical_name(name)

    def physical_name(self, name: str) -> str:
        """The name that the resource has in AWS: the one the template gives it, or one made of the stack's name."""
        kind = self._kind(name, name)
        properties = self.document["Resources"][name].get("Properties") or {}
        prefixed = f"{self.stack_name}-{name}"
        match kind:
            case "AWS::S3::Bucket":
                key, default = "BucketName", prefixed.lower()
            case "AWS::SQS::Queue":
                key, default = "QueueName", prefixed
            case "AWS::DynamoDB::Table":
                key, default = "TableName", prefixed
            case "AWS::Logs::LogGroup":
                key, default = "LogGroupName", prefixed
            case _:
                return name
        return str(self.resolve(properties.get(key, default), f"Resources.{name}.Properties.{key}"))

    def _attribute(self, name: str, attribute: str, where: str) -> str:
        kind, physical = self._kind(name, where), self.physical_name(name)
        arns = {
            "AWS::S3::Bucket": f"arn:aws:s3:::{physical}",
            "AWS::SQS::Queue": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{physical}",
            "AWS::DynamoDB::Table": f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{physical}",
            "AWS::Serverless::Function": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{physical}",
            "AWS::Logs::LogGroup": f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{physical}:*",
        }
        if attribute == "Arn":
            service = kind.split("::")[1].lower()
            return arns.get(kind, f"arn:aws:{service}:{REGION}:{ACCOUNT}:{physical}")
        known = {
            ("AWS::SQS::Queue", "QueueName"): physical,
            ("AWS::SQS::Queue", "QueueUrl"): str(self._ref(name, where)),
            ("AWS::S3::Bucket", "DomainName"): f"{physical}.s3.amazonaws.com",
            ("AWS::S3::Bucket", "RegionalDomainName"): f"{physical}.s3.{REGION}.amazonaws.com",
            ("AWS::Serverless::Api", "RootResourceId"): "root",
        }
        if (kind, attribute) not in known:
            raise TemplateError(f"{where}: the local stack does not know {name}.{attribute} ({kind})")
        return known[kind, attribute]

    def _kind(self, name: str, where: str) -> str:
        if name not in self.document["Resources"]:
            raise TemplateError(f"{where}: there is no parameter or resource {name}")
        return str(self.document["Resources"][name].get("Type"))

    def _sub(self, argument: Any, where: str) -> str:
        text, extra = (argument, {}) if isinstance(argument, str) else argument

        def replaced(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("!"):  # ${!literal}
                return "${" + name[1:] + "}"
            if name in extra:
                return _text(self.resolve(extra[name], where))
            if "." in name:
                return self._attribute(name.split(".", 1)[0], name.split(".", 1)[1], where)
            return _text(self._ref(name, where))

        return re.sub(r"\$\{([^}]+)\}", replaced, text)


def fill_parameters(declared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every declared parameter.

    >>> fill_parameters({"Memory": {"Type": "Number", "Default": 128, "MaxValue": 512}}, {"Memory": "256"})
    {'Memory': 256}

    Raises:
        TemplateError: an unknown name, a missing value, or one that the declaration does not allow.
    """
    for name in given:
        if name not in declared:
            raise TemplateError(
                f"parameter {name}: the template has {', '.join(declared) or 'no parameters'}, not this one"
            )
    values = {}
    for name, rules in declared.items():
        value = given.get(name, rules.get("Default"))
        if value is None:
            raise TemplateError(f"parameter {name}: it has no default and needs a value")
        values[name] = _check_parameter(name, rules, value)
    return values


def _check_parameter(name: str, rules: Mapping[str, Any], value: Any) -> Any:
    if rules.get("Type") == "Number":
        try:
            value = float(value) if "." in str(value) else int(value)
        except ValueError as error:
            raise TemplateError(f"parameter {name}: {value!r} is no number") from error
        low, high = rules.get("MinValue", value), rules.get("MaxValue", value)
        if not float(low) <= value <= float(high):
            raise TemplateError(f"parameter {name}: {value} is not between {low} and {high}")
    elif rules.get("Type") == "CommaDelimitedList":
        value = value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
    else:
        value = _text(value)
        if "AllowedPattern" in rules and not re.fullmatch(rules["AllowedPattern"], value):
            raise TemplateError(f"parameter {name}: {value!r} does not match {rules['AllowedPattern']}")
    allowed = rules.get("AllowedValues")
    if allowed is not None and _text(value) not in map(_text, allowed):
        raise TemplateError(f"parameter {name}: {value!r} is not one of {', '.join(map(_text, allowed))}")
    return value


def _text(value: Any) -> str:
    """A value as CloudFormation writes it into a string."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _headers(gateway_response: Mapping[str, Any]) -> dict[str, str]:
    headers = (gateway_response.get("ResponseParameters") or {}).get("Headers") or {}
    return {name: str(value).strip("'") for name, value in headers.items()}


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: `!Ref X` reads as `{"Ref": "X"}`."""


def _short_form(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    if isinstance(node, yaml.MappingNode):
        return {name: loader.construct_mapping(node, deep=True)}
    return {name: loader.construct_scalar(node)}  # type: ignore[arg-type]  # what is left is a scalar


_Loader.add_multi_constructor("!", _short_form)
