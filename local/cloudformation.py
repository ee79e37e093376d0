"""Evaluation of CloudFormation templates: short forms, parameters, conditions, functions."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import yaml

ACCOUNT = "123456789012"
REGION = "us-east-1"
NOTHING: Any = object()  # AWS::NoValue: removes the property


class TemplateError(ValueError):
    """Error: a template or parameter that the local stack cannot use."""


@dataclass(frozen=True)
class Document:
    """CloudFormation template with its parameters' values, able to resolve references.

    `references` overrides the results of `!Ref`, e.g. a queue's URL once the queue exists.
    """

    document: dict[str, Any]
    parameters: dict[str, Any]
    stack_name: str = "mayfly"
    references: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: str | Path,
        parameters: Mapping[str, Any] | None = None,
        stack_name: str = "mayfly",
    ) -> Self:
        """Load a CloudFormation template from a file and fill its parameters.

        Raises:
            TemplateError: the file is unreadable, or a parameter is missing or not allowed.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            document = yaml.load(text, _Loader)  # noqa: S506 (subclass of SafeLoader)
        except OSError as error:
            raise TemplateError(f"{path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise TemplateError(f"{path}: {' '.join(str(error).split())}") from error
        if not isinstance(document, dict) or not isinstance(document.get("Resources"), dict):
            raise TemplateError(f"{path}: a template needs a Resources section")
        return cls(
            document,
            fill_parameters(document.get("Parameters") or {}, parameters or {}),
            stack_name,
        )

    def with_references(self, references: Mapping[str, str]) -> Self:
        """Return a copy of the template with more values for `!Ref`."""
        return replace(self, references={**self.references, **references})

    def resources(self, kind: str) -> list[str]:
        """Return the logical ids of a type's resources whose Condition holds."""
        return [
            name
            for name, resource in self.document["Resources"].items()
            if resource.get("Type") == kind and self._is_included(resource, f"Resources.{name}")
        ]

    def properties(self, name: str) -> dict[str, Any]:
        """Return a resource's properties with every reference resolved."""
        properties = self.document["Resources"][name].get("Properties") or {}
        return dict(self.resolve(properties, f"Resources.{name}.Properties"))

    def _is_included(self, thing: Mapping[str, Any], location: str) -> bool:
        return "Condition" not in thing or self.condition(thing["Condition"], location)

    def condition(self, name: str, location: str) -> bool:
        """Evaluate a CloudFormation condition by name."""
        try:
            expression = self.document["Conditions"][name]
        except KeyError as error:
            raise TemplateError(f"{location}: there is no condition {name}") from error
        return bool(self.resolve(expression, f"Conditions.{name}"))

    def resolve(self, value: Any, location: str) -> Any:
        """Replace CloudFormation's intrinsic functions in `value` by their results.

        `location` is the path of `value` in the template, for errors.
        """
        if isinstance(value, list):
            items = (self.resolve(item, f"{location}[{index}]") for index, item in enumerate(value))
            return [item for item in items if item is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            name, argument = next(iter(value.items()))
            if name == "Condition" and isinstance(argument, str):
                return self.condition(argument, location)
            if name == "Ref" or (isinstance(name, str) and name.startswith("Fn::")):
                return self._call(name.removeprefix("Fn::"), argument, location)
        pairs = ((key, self.resolve(item, f"{location}.{key}")) for key, item in value.items())
        return {key: item for key, item in pairs if item is not NOTHING}

    def _call(self, function: str, argument: Any, location: str) -> Any:
        try:
            match function:
                case "Ref":
                    return self._ref(argument, location)
                case "GetAtt":
                    name, attribute = (
                        argument.split(".", 1) if isinstance(argument, str) else argument
                    )
                    return self._attribute(name, attribute, location)
                case "Sub":
                    return self._sub(argument, location)
                case "If":
                    condition, yes, no = argument
                    return self.resolve(
                        yes if self.condition(condition, location) else no, location
                    )
                case "FindInMap":
                    mapping, first, second = self.resolve(argument, location)
                    return self.resolve(self.document["Mappings"][mapping][first][second], location)
            values = self.resolve(argument, location)
            match function:
                case "Equals":
                    return as_text(values[0]) == as_text(values[1])
                case "Not":
                    return not values[0]
                case "And":
                    return all(values)
                case "Or":
                    return any(values)
                case "Join":
                    return str(values[0]).join(map(as_text, values[1]))
                case "Select":
                    return values[1][int(values[0])]
                case "Split":
                    return str(values[1]).split(values[0])
                case "Base64":
                    return base64.b64encode(str(values).encode()).decode()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, TemplateError):
                raise
            raise TemplateError(
                f"{location}: !{function} cannot work with {argument!r:.80}"
            ) from error
        raise TemplateError(f"{location}: !{function} is not supported by the local stack")

    def _ref(self, name: str, location: str) -> Any:
        stacks = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack"
        pseudo = {
            "AWS::AccountId": ACCOUNT,
            "AWS::Region": REGION,
            "AWS::StackName": self.stack_name,
            "AWS::StackId": f"{stacks}/{self.stack_name}/local",
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
            "AWS::NoValue": NOTHING,
        }
        for values in (pseudo, self.references, self.parameters):
            if name in values:
                return values[name]
        if self._kind(name, location) == "AWS::SQS::Queue":
            return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{self.physical_name(name)}"
        if self._kind(name, location) == "AWS::Serverless::StateMachine":
            return self._attribute(name, "Arn", location)
        return self.physical_name(name)

    def physical_name(self, name: str) -> str:
        """Return a resource's name in AWS, explicit or generated."""
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
            case "AWS::Serverless::StateMachine":
                key, default = "Name", prefixed
            case _:
                return name
        return str(self.resolve(properties.get(key, default), f"Resources.{name}.Properties.{key}"))

    def _attribute(self, name: str, attribute: str, location: str) -> str:
        kind, physical = self._kind(name, location), self.physical_name(name)
        arns = {
            "AWS::S3::Bucket": f"arn:aws:s3:::{physical}",
            "AWS::SQS::Queue": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{physical}",
            "AWS::DynamoDB::Table": f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{physical}",
            "AWS::Serverless::Function": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{physical}",
            "AWS::Serverless::StateMachine": (
                f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{physical}"
            ),
            "AWS::Logs::LogGroup": f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{physical}:*",
            "AWS::IAM::Role": f"arn:aws:iam::{ACCOUNT}:role/{self.stack_name}-{physical}",
        }
        if attribute == "Arn":
            service = kind.split("::")[1].lower()
            return arns.get(kind, f"arn:aws:{service}:{REGION}:{ACCOUNT}:{physical}")
        attributes = {
            ("AWS::SQS::Queue", "QueueName"): physical,
            ("AWS::SQS::Queue", "QueueUrl"): str(self._ref(name, location)),
            ("AWS::S3::Bucket", "DomainName"): f"{physical}.s3.amazonaws.com",
            ("AWS::S3::Bucket", "RegionalDomainName"): f"{physical}.s3.{REGION}.amazonaws.com",
            ("AWS::Serverless::Api", "RootResourceId"): "root",
            ("AWS::Serverless::StateMachine", "Name"): physical,
        }
        if (kind, attribute) not in attributes:
            raise TemplateError(
                f"{location}: the local stack does not know {name}.{attribute} ({kind})"
            )
        return attributes[kind, attribute]

    def _kind(self, name: str, location: str) -> str:
        if name not in self.document["Resources"]:
            raise TemplateError(f"{location}: there is no parameter or resource {name}")
        return str(self.document["Resources"][name].get("Type"))

    def _sub(self, argument: Any, location: str) -> str:
        text, extra = (argument, {}) if isinstance(argument, str) else argument

        def replacement(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("!"):  # ${!literal} stays ${literal}
                return "${" + name[1:] + "}"
            if name in extra:
                return as_text(self.resolve(extra[name], location))
            if "." in name:
                return self._attribute(name.split(".", 1)[0], name.split(".", 1)[1], location)
            return as_text(self._ref(name, location))

        return re.sub(r"\$\{([^}]+)\}", replacement, text)


def fill_parameters(declared: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return each declared template parameter's value: override or default, validated.

    >>> declared = {"Memory": {"Type": "Number", "Default": 128, "MaxValue": 512}}
    >>> fill_parameters(declared, {"Memory": "256"})
    {'Memory': 256}

    Raises:
        TemplateError: a name is unknown, a value is missing or not allowed.
    """
    for name in overrides:
        if name not in declared:
            raise TemplateError(
                f"parameter {name}: unknown; the template has {', '.join(declared) or 'none'}"
            )
    values = {}
    for name, rules in declared.items():
        value = overrides.get(name, rules.get("Default"))
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
        value = (
            value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
        )
    else:
        value = as_text(value)
        if "AllowedPattern" in rules and not re.fullmatch(rules["AllowedPattern"], value):
            raise TemplateError(
                f"parameter {name}: {value!r} does not match {rules['AllowedPattern']}"
            )
    allowed = rules.get("AllowedValues")
    if allowed is not None and as_text(value) not in map(as_text, allowed):
        raise TemplateError(
            f"parameter {name}: {value!r} is not one of {', '.join(map(as_text, allowed))}"
        )
    return value


def as_text(value: Any) -> str:
    """Convert a template value to text, with booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Loader(yaml.SafeLoader):
    """YAML loader for CloudFormation's short forms: `!Ref X` becomes `{"Ref": "X"}`."""


def _short_form(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    if isinstance(node, yaml.MappingNode):
        return {name: loader.construct_mapping(node, deep=True)}
    return {name: loader.construct_scalar(node)}  # type: ignore[arg-type]


_Loader.add_multi_constructor("!", _short_form)
