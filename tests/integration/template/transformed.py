"""Transformed template with its conditions decided, for tests of what AWS would create."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from local.cloudformation import NOTHING, Document, fill_parameters

Statement = dict[str, Any]


class Deployment:
    """Stack as CloudFormation would create it with the given parameters."""

    def __init__(self, transformed: dict[str, Any], **parameters: Any) -> None:
        self._transformed = transformed
        values = fill_parameters(transformed["Parameters"], parameters)
        self._conditions = Document(transformed, values)

    def with_parameters(self, **parameters: Any) -> "Deployment":
        """Return the same template's stack with other parameters."""
        return Deployment(self._transformed, **parameters)

    @cached_property
    def resources(self) -> dict[str, Any]:
        """Resources whose condition holds, with every Fn::If decided."""
        return {
            name: self._decide(resource)
            for name, resource in self._transformed["Resources"].items()
            if "Condition" not in resource
            or self._conditions.condition(resource["Condition"], name)
        }

    def _decide(self, value: Any) -> Any:
        if isinstance(value, list):
            items = [self._decide(item) for item in value]
            return [item for item in items if item is not NOTHING]
        if not isinstance(value, dict):
            return value
        if value == {"Ref": "AWS::NoValue"}:
            return NOTHING
        if list(value) == ["Fn::If"]:
            condition, yes, no = value["Fn::If"]
            return self._decide(yes if self._conditions.condition(condition, "") else no)
        pairs = {key: self._decide(item) for key, item in value.items()}
        return {key: item for key, item in pairs.items() if item is not NOTHING}


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the properties of each resource of a CloudFormation type."""
    return {name: r.get("Properties", {}) for name, r in resources.items() if r["Type"] == kind}


def policies(resources: dict[str, Any]) -> Iterator[tuple[str, Statement]]:
    """Yield (role, statement) for each statement of each role's own policies."""
    for name, role in of_type(resources, "AWS::IAM::Role").items():
        for policy in role.get("Policies", []):
            for statement in policy["PolicyDocument"]["Statement"]:
                yield name, statement


def actions(statement: Statement) -> list[str]:
    """Return the actions of an IAM policy's statement."""
    action = statement["Action"]
    return action if isinstance(action, list) else [action]


def resource_names(statement: Statement) -> list[str]:
    """Return a statement's resources in a short form, e.g. "ServingBucket/blobs/*"."""
    resources = statement["Resource"]
    return [_short(name) for name in (resources if isinstance(resources, list) else [resources])]


def _short(resource: Any) -> str:
    if isinstance(resource, str):
        return resource
    [(function, argument)] = resource.items()
    if function == "Fn::GetAtt":
        return str(argument[0] if isinstance(argument, list) else argument.removesuffix(".Arn"))
    return str(argument).replace("${", "").replace(".Arn}", "").replace("}", "")


def allowed_actions(resources: dict[str, Any], role: str) -> set[str]:
    """Return every action that a role's own policies allow."""
    return {
        action
        for name, statement in policies(resources)
        if name == role
        for action in actions(statement)
    }
