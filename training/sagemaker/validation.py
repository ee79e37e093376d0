"""Validate SageMaker job requests before sending, by botocore's service model and rules."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sized
from typing import Any

from botocore.session import get_session
from botocore.validate import ParamValidator

from training.errors import InvalidJob
from training.sagemaker.training_job import Request

ANYTHING = r"[\s\S]*"  # pattern of a string that the service model does not restrict
EXAMPLE_ROLE = "arn:aws:iam::123456789012:role/training"
CHOICES_SHOWN = 8  # choices in an error; enumerations of instance types are long
# The service model's patterns are Java's, of which Python lacks these classes.
JAVA_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{N}": r"\w",
    r"\p{Z}": r"\s",
    r"\p{Alnum}": "a-zA-Z0-9",
}


def validate(request: Request) -> None:
    """Validate a CreateTrainingJob request: field types, limits and cross-field rules.

    Raises:
        InvalidJob: names the field at fault.
    """
    shape = check_shape(request, "CreateTrainingJob")
    if not re.fullmatch(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}", request["TrainingJobName"]):
        raise InvalidJob(
            f"job name {request['TrainingJobName']!r}: at most 63 letters, digits and inner hyphens"
        )
    check_rules(request, shape)
    check_limits(request, shape)


def check_shape(request: Request, operation: str) -> Any:
    """Check a request's fields, types and required values; return botocore's input shape.

    Raises:
        InvalidJob: names the field at fault.
    """
    shape = get_session().get_service_model("sagemaker").operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise InvalidJob("; ".join(report.generate_report().splitlines()))
    return shape


def check_limits(request: Request, shape: Any) -> None:
    """Check a request's maximum sizes, patterns and enumerations, which botocore skips.

    Raises:
        InvalidJob: names the field at fault.
    """
    problem = next(_problems(request, shape, ""), None)
    if problem is not None:
        raise InvalidJob(problem)


def _problems(value: Any, shape: Any, path: str) -> Iterator[str]:
    yield from _own_problems(value, shape, path)
    if shape.type_name == "structure":
        for name, part in value.items():
            yield from _problems(part, shape.members[name], f"{path}.{name}".lstrip("."))
    elif shape.type_name == "list":
        for number, part in enumerate(value):
            yield from _problems(part, shape.member, f"{path}[{number}]")
    elif shape.type_name == "map":
        for name, part in value.items():
            yield from _problems(name, shape.key, f"{path}, name {name[:80]!r}")
            yield from _problems(part, shape.value, f"{path}.{name}")


def _own_problems(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Yield limit violations of one request value, not of its parts."""
    limits, kind = shape.metadata, shape.type_name
    size = value if kind in ("integer", "long") else len(value) if isinstance(value, Sized) else 0
    if size > limits.get("max", size):
        unit = {"string": " characters", "list": " entries", "map": " entries"}.get(kind, "")
        yield f"{path}: {size}{unit} where SageMaker takes {limits['max']} at most"
    if kind != "string":
        return
    choices = limits.get("enum") or [value]
    if value not in choices:
        yield f"{path}: {value!r} is none of {', '.join(choices[:CHOICES_SHOWN])}"
    if not _matches(value, limits.get("pattern", ANYTHING)):
        yield f"{path}: {value[:80]!r} does not have the form {limits['pattern']}"


def _matches(text: str, pattern: str) -> bool:
    for java, python in JAVA_CLASSES.items():
        pattern = pattern.replace(java, python)
    return re.fullmatch(pattern, text) is not None


def check_role(role: str) -> None:
    """Check that a role is an ARN, no name.

    Raises:
        InvalidJob: it is not.
    """
    if not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/.+", role):
        raise InvalidJob(f"role {role!r} is no role ARN, e.g. {EXAMPLE_ROLE}")


def check_rules(request: Request, shape: Any) -> None:
    """Check job request rules missing from the service model: role, spot, data.

    The messages explain the commonest mistakes.

    Raises:
        InvalidJob: names the field at fault.
    """
    check_role(request["RoleArn"])
    resources, stopping = request["ResourceConfig"], request["StoppingCondition"]
    instance, spot = resources["InstanceType"], request["EnableManagedSpotTraining"]
    instance_types = shape.members["ResourceConfig"].members["InstanceType"].enum
    runtime_s = stopping["MaxRuntimeInSeconds"]
    addresses = (
        channel["DataSource"]["S3DataSource"]["S3Uri"]
        for channel in request.get("InputDataConfig", [])
    )
    folder = next((address for address in addresses if not address.startswith("s3://")), None)
    rules = [
        (
            instance in instance_types,
            f"instance type {instance!r} is none of SageMaker's, e.g. ml.g5.xlarge",
        ),
        (
            folder is None,
            f"a job reads its data from S3: --data NAME=s3://bucket/prefix/, not {folder!r}",
        ),
        (
            stopping.get("MaxWaitTimeInSeconds", sys.maxsize) >= runtime_s,
            "max wait includes the runtime: make it no shorter",
        ),
        (
            spot or "MaxWaitTimeInSeconds" not in stopping,
            "max wait is for spot instances: leave it out, or add --spot",
        ),
        (
            not (spot and "KeepAlivePeriodInSeconds" in resources),
            "a warm pool needs an instance on demand: add --no-spot",
        ),
        (resources["InstanceCount"] >= 1, "a job needs one instance at least"),
    ]
    for holds, message in rules:
        if not holds:
            raise InvalidJob(message)
