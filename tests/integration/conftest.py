"""Moto in this process, with the buckets, queues and tables of template.yaml."""

from collections.abc import Iterator

import boto3
import pytest
from moto import mock_aws

from local.aws.provision import Deployed, provision
from local.aws.server import as_aws_notifies, moves_messages
from local.template import Template


@pytest.fixture
def deployed() -> Iterator[Deployed]:
    with mock_aws(), as_aws_notifies(), moves_messages():
        yield provision(Template.load("template.yaml"), boto3.Session(region_name="us-east-1"))


@pytest.fixture
def function_environment(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, str]]:
    """The environment of each function, which `main.py` modules read; set for all of them."""
    for variables in deployed.environment.values():
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    return deployed.environment
