"""Backends: the SDK gets the same request, and failures are one sentence."""

from dataclasses import replace

from tests.unit.training.sagemaker.jobs import JOB
from training.sagemaker import backends
from training.sagemaker.training_job import build


def test_the_sdk_gets_the_same_fields_and_the_users_keys() -> None:
    converted = backends.snake_case(build(replace(JOB, environment={"MixedCase": "1"})))

    assert converted["algorithm_specification"]["container_entrypoint"][0] == "python3"
    assert converted["resource_config"]["volume_size_in_gb"] == 30
    assert converted["environment"]["MixedCase"] == "1"
    assert (
        converted["input_data_config"][0]["data_source"]["s3_data_source"]["s3_uri"]
        == "s3://my-artifacts/code/abc/"
    )
