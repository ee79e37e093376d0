"""Validation: a wrong request is refused with the field at fault."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.training.sagemaker.jobs import JOB
from training.errors import InvalidJob
from training.sagemaker.training_job import build
from training.sagemaker.validation import validate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.pop("OutputDataConfig"),
            'Missing required parameter in input: "OutputDataConfig"',
        ),
        (lambda r: r["StoppingCondition"].update(MaxRuntimeInSeconds="1h"), "MaxRuntimeInSeconds"),
        (lambda r: r.update(Spot=True), 'Unknown parameter in input: "Spot"'),
        (
            lambda r: r["ResourceConfig"].update(InstanceType="ml.g5.huge"),
            "'ml.g5.huge' is none of SageMaker's",
        ),
        (lambda r: r.update(TrainingJobName="under_score"), "job name 'under_score'"),
        (lambda r: r.update(RoleArn="arn:aws:iam::1:user/x-and-then-some"), "is no role ARN"),
        (
            lambda r: r["StoppingCondition"].update(MaxWaitTimeInSeconds=1),
            "max wait includes the runtime",
        ),
        (
            lambda r: r["HyperParameters"].update(note="x" * 3000),
            "HyperParameters.note: 3000 characters where SageMaker",
        ),
        (
            lambda r: r["HyperParameters"].update({str(n): "" for n in range(101)}),
            "HyperParameters: 105 entries where",
        ),
        (
            lambda r: r["HyperParameters"].update({"n" * 300: ""}),
            "300 characters where SageMaker takes 256 at most",
        ),
        (
            lambda r: r["RetryStrategy"].update(MaximumRetryAttempts=31),
            "MaximumRetryAttempts: 31 where SageMaker takes 30",
        ),
        (
            lambda r: r["ResourceConfig"].update(VolumeKmsKeyId="a key"),
            "ResourceConfig.VolumeKmsKeyId: 'a key' does not",
        ),
        (
            lambda r: r["OutputDataConfig"].update(CompressionType="ZIP"),
            "CompressionType: 'ZIP' is none of GZIP, NONE",
        ),
        (
            lambda r: r["Tags"].append({"Key": "a#b", "Value": ""}),
            "Tags[1].Key: 'a#b' does not have the form",
        ),
        (
            lambda r: r["InputDataConfig"][0]["DataSource"]["S3DataSource"].update(
                S3Uri="my/folder"
            ),
            "a job reads its data from S3: --data NAME=s3://bucket/prefix/, not 'my/folder'",
        ),
    ],
    ids=[
        "missing",
        "type",
        "unknown",
        "instance",
        "name",
        "role",
        "wait",
        "long",
        "many",
        "name of one",
        "retries",
        "key",
        "choice",
        "tag",
        "folder",
    ],
)
def test_a_wrong_request_is_refused_with_the_field(
    change: Callable[[Any], Any], message: str
) -> None:
    request = build(JOB)
    change(request)

    with pytest.raises(InvalidJob) as caught:
        validate(request)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
