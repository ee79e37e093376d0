"""Check SageMaker requests against botocore's service model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sized
from typing import Any

from training.errors import InvalidJob
from training.log_lines import ANYTHING
from training.sagemaker.training_job import Request

EXAMPLE_ROLE = "arn:aws:iam::123456789012:role/training"


def check_shape(request: Request, operation: str) -> Any:
    """Check `request` against the service model that ships with botocore, whose shape of it is returned.

    Raises:
        InvalidJob: names the field at fault.
    """
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise InvalidJob("; ".join(report.generate_report().splitlines()))
    return shape


def validate(request: Request) -> None:
    """Check a CreateTrainingJob request against botocore's model, and what that model leaves out.

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


def check_limits(request: Request, shape: Any) -> None:
    """The largest sizes, patterns and choices of the service model, which botocore's validator does not look at.

    Raises:
        InvalidJob: names the field at fault.
    """
    for problem in _beyond(request, shape, ""):
        raise InvalidJob(problem)


def _beyond(value: Any, shape: Any, path: str) -> Iterator[str]:
    limits, kind = shape.metadata, shape.type_name
    size = value if kind in ("integer", "long") else len(value) if isinstance(value, Sized) else 0
    if size > limits.get("max", size):
        unit = {"string": " characters", "list": " entries", "map": " entries"}.get(kind, "")
        yield f"{path}: {size}{unit} where SageMaker takes {limits['max']} at most"
    if kind == "string" and value not in (limits.get("enum") or [value]):
        yield f"{path}: {value!r} is none of {', '.join(limits['enum'][:8])}"
    if kind == "string" and not _fits(value, limits.get("pattern", ANYTHING)):
        yield f"{path}: {value[:80]!r} does not have the form {limits['pattern']}"
    if kind == "structure":
        for name, part in value.items():
            yield from _beyond(part, shape.members[name], f"{path}.{name}".lstrip("."))
    elif kind == "list":
        for number, part in enumerate(value):
            yield from _beyond(part, shape.member, f"{path}[{number}]")
    elif kind == "map":
        for name, part in value.items():
            yield from _beyond(name, shape.key, f"{path}, name {name[:80]!r}")
            yield from _beyond(part, shape.value, f"{path}.{name}")


def _fits(text: str, pattern: str) -> bool:
    for java, python in (
        (r"\p{L}", r"\w"),
        (r"\p{N}", r"\w"),
        (r"\p{Z}", r"\s"),
        (r"\p{Alnum}", "a-zA-Z0-9"),
    ):
        pattern = pattern.replace(java, python)
    return re.fullmatch(pattern, text) is not None


def check_rules(request: Request, shape: Any) -> None:
    """What no service model says, and the commonest mistakes in words of ours.

    Raises:
        InvalidJob: names the field at fault.
    """
    resources, stopping = request["ResourceConfig"], request["StoppingCondition"]
    known = (
        shape.members["ResourceConfig"].members["InstanceType"].enum
    )  # the validator skips enumerations
    instance, spot = resources["InstanceType"], request["EnableManagedSpotTraining"]
    channels = [
        one["DataSource"]["S3DataSource"]["S3Uri"] for one in request.get("InputDataConfig", [])
    ]
    local = next((uri for uri in channels if not uri.startswith("s3://")), "")
    problems = [
        (
            instance in known,
            f"instance type {instance!r} is none of SageMaker's, e.g. ml.g5.xlarge",
        ),
        (
            re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/.+", request["RoleArn"]),
            f"role {request['RoleArn']!r} is no role ARN, e.g. {EXAMPLE_ROLE}",
        ),
        (
            not local,
            f"a job reads its data from S3: --data NAME=s3://bucket/prefix/, not {local!r}",
        ),
        (
            stopping.get("MaxWaitTimeInSeconds", sys.maxsize) >= stopping["MaxRuntimeInSeconds"],
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
    for holds, message in problems:
        if not holds:
            raise InvalidJob(message)
