"""Stack that `make deploy` deployed into MiniStack; run by `make deploy-check`."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deployed.emulator import (
    Emulator,
    http_front,
    mend_event_sources,
    mend_permissions,
    running,
)
from tests.e2e.conftest import Api

DEPLOY_S = 600
# Short delays, and an AWS that is none
PARAMETERS = {
    "AliasCacheSeconds": "1",
    "UsageFlushSeconds": "1",
    "KeyCacheSeconds": "1",
    "UploadGraceSeconds": "0",
    "PendingGraceSeconds": "0",
}


@dataclass(frozen=True)
class Deployment:
    """Stack in the emulator, and the commands of people who run it."""

    emulator: Emulator
    name: str

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the documentation against the emulator."""
        return subprocess.run(
            command,
            env={**os.environ, **self.emulator.environment, "SAM_CLI_TELEMETRY": "0"},
            capture_output=True,
            text=True,
            timeout=DEPLOY_S,
            check=check,
        )

    def make_deploy(self, *arguments: str, **parameters: str) -> str:
        """Run `make deploy`; return what it prints."""
        pairs = " ".join(f"{name}={value}" for name, value in parameters.items())
        command = ["make", "deploy", f"STACK={self.name}", *arguments]
        done = self.run(*command, *([f"PARAMETERS={pairs}"] if pairs else []), check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        mend_event_sources(self.emulator)
        mend_permissions(self.emulator, self.name)
        return done.stdout

    @property
    def outputs(self) -> dict[str, str]:
        """Outputs of the stack by name."""
        stacks = self.emulator.client("cloudformation").describe_stacks(StackName=self.name)
        [stack] = stacks["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}

    @property
    def api_id(self) -> str:
        """Identifier of the stack's API."""
        return self.outputs["ApiUrl"].removeprefix("https://").partition(".")[0]


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("ministack")) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def stack(emulator: Emulator) -> Deployment:
    """Return the stack `mayfly`, deployed with the build for x86_64."""
    deployment = Deployment(emulator, "mayfly")
    deployment.make_deploy(EndpointUrl=emulator.url, **PARAMETERS)
    return deployment


@pytest.fixture(scope="session")
def key(stack: Deployment) -> str:
    """Return an access key for everything, made as the README says."""
    create = (".venv/bin/python", "-m", "mayfly", "keys", "create", "--scope", "admin")
    return stack.run(*create).stdout.strip()


@pytest.fixture
def api(stack: Deployment, key: str) -> Iterator[Api]:
    """Public interface of the deployed stack."""
    outputs = stack.outputs
    with http_front(stack.emulator, stack.api_id) as url:
        s3 = stack.emulator.client("s3")
        yield Api(f"{url}/live", None, outputs["ArtifactsBucketName"], s3, key)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """Return a model name that no other test uses."""
    return f"{request.node.name.replace('_', '-')[:60].strip('-')}-{time.time_ns():x}"


@pytest.fixture
def policy_example() -> str:
    """Return the policy for callers in docs/operations.md."""
    text = Path("docs/operations.md").read_text()
    return text.partition("```json\n")[2].partition("```")[0]
