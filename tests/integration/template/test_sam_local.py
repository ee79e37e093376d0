"""Variables that `sam local invoke` gives the functions, computed by SAM itself.

SAM needs a container engine to run a function, but none to decide on its environment.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from local.aws.provision import Deployed
from tests.integration.template.conftest import SAM_PYTHON

ENDPOINT = "http://127.0.0.1:8081"  # as exported in the shell, from the lines of `make local`
VARIABLES = Path("events/env.local.json")
SCRIPT = """
import json, sys
from types import SimpleNamespace
from samcli.commands.local.lib.local_lambda import LocalLambdaRunner
from samcli.lib.providers.sam_function_provider import SamFunctionProvider
from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider
from samcli.lib.config.file_manager import TomlFileManager

config = TomlFileManager.read(__import__("pathlib").Path("samconfig.toml"))
path = config["default"]["local_invoke"]["parameters"]["env_vars"]
stacks, _ = SamLocalStackProvider.get_stacks("template.yaml")
provider = SamFunctionProvider(stacks)
variables = json.load(open(path))
runner = LocalLambdaRunner(SimpleNamespace(), provider, ".", ".", env_vars_values=variables)
runner.get_aws_creds = lambda: {}
functions = {function.name: function for function in provider.get_all()}
environments = {name: runner._make_env_vars(f).resolve() for name, f in functions.items()}
print(json.dumps(environments))
"""


@pytest.fixture(scope="module")
def environments() -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [SAM_PYTHON, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={"AWS_ENDPOINT_URL": ENDPOINT, "PATH": "/usr/bin:/bin"},
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "function",
    [
        "RegisterFunction",
        "ReconcileFunction",
        "InferFunction",
        "GenerateFunction",
        "ManageFunction",
        "JudgeFunction",
    ],
)
def test_a_function_gets_the_local_stacks_variables(
    function: str, environments: dict[str, dict[str, str]], deployed: Deployed
) -> None:
    variables = environments[function]

    assert variables["AWS_ENDPOINT_URL"] == ENDPOINT
    for name, value in deployed.environment[function].items():
        if name == "AUTH":
            assert variables[name] == "none"  # the events hold no key
        elif name != "AWS_ENDPOINT_URL":
            assert variables[name] == value, name


def test_no_line_of_the_file_is_without_effect(
    environments: dict[str, dict[str, str]],
) -> None:
    overridden: dict[str, Any] = json.loads(VARIABLES.read_text())["Parameters"]
    declared = {name for variables in environments.values() for name in variables}

    assert overridden.keys() <= declared
