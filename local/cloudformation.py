"""CloudFormation's language: YAML with its short forms, parameters, conditions and intrinsic functions."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import yaml

ACCOUNT = "123456789012"
REGION = "us-east-1"
NOTHING: Any = object()  # AWS::NoValue: the property it stands in is left out


class TemplateError(ValueError):
    """The template, or a parameter given to it, says something the local stack cannot follow."""


@dataclass(frozen=True)
class Document:
    """A loaded template. `references` overrides what `!Ref` gives, e.g. a queue's URL once it exists."""

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
        """The template at `path` with `parameters` over its defaults.

        Raises:
            TemplateError: unreadable, or a parameter is unknown, missing or outside what the template allows.
        """
        try:
            document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506  # a SafeLoader
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
        return replace(self, references={**self.references, **references})

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

    def _wanted(self, thing: Mapping[str, Any], where: str) -> bool:
        return "Condition" not in thing or self.condition(thing["Condition"], where)

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
            return [item for item in items if item is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            name, argument = next(iter(value.items()))
            if name == "Condition" and isinstance(argument, str):
                return self.condition(argument, where)
            if name == "Ref" or (isinstance(name, str) and name.startswith("Fn::")):
                return self._call(name.removeprefix("Fn::"), argument, where)
        pairs = ((key, self.resolve(item, f"{where}.{key}")) for key, item in value.items())
        return {key: item for key, item in pairs if item is not NOTHING}

    def _call(self, function: str, argument: Any, where: str) -> Any:
        try:
            match function:
                case "Ref":
                    return self._ref(argument, where)
                case "GetAtt":
                    name, attribute = (
                        argument.split(".", 1) if isinstance(argument, str) else argument
                    )
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
                f"{where}: !{function} cannot work with {argument!r:.80}"
            ) from error
        raise TemplateError(f"{where}: !{function} is not known to the local stack")

    def _ref(self, name: str, where: str) -> Any:
        pseudo = {
            "AWS::AccountId": ACCOUNT,
            "AWS::Region": REGION,
            "AWS::StackName": self.stack_name,
            "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{self.stack_name}/local",
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
            "AWS::NoValue": NOTHING,
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
            raise TemplateError(
                f"{where}: the local stack does not know {name}.{attribute} ({kind})"
            )
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
                return as_text(self.resolve(extra[name], where))
            if "." in name:
                return self._attribute(name.split(".", 1)[0], name.split(".", 1)[1], where)
            return as_text(self._ref(name, where))

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
    """A value as CloudFormation writes it into a string."""
    return str(value).lower() if isinstance(value, bool) else str(value)


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
