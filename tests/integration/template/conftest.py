"""template.yaml before and after the SAM transform, without network."""

import json
import os
import subprocess
from typing import Any

import pytest

from tests.integration.template.transformed import Deployment

SAM_PYTHON = os.environ.get("MAYFLY_SAM_PYTHON", ".venv-sam/bin/python")


@pytest.fixture(scope="session")
def transformed() -> dict[str, Any]:
    """Return {"before": template.yaml, "after": what CloudFormation gets}."""
    done = subprocess.run(
        [SAM_PYTHON, "scripts/transform.py"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture
def source(transformed: dict[str, Any]) -> dict[str, Any]:
    return transformed["before"]


@pytest.fixture
def deployment(transformed: dict[str, Any]) -> Deployment:
    """The stack with the parameters' defaults."""
    return Deployment(transformed["after"])


@pytest.fixture
def resources(deployment: Deployment) -> dict[str, Any]:
    """Resources of the stack with the parameters' defaults."""
    return deployment.resources
