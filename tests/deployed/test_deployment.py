"""Life of a deployed stack: deployments, other parameters, both processors, deletion and return."""

import io
import json
import os
import ssl
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scripts.bundle import foreign_libraries
from tests.deployed.conftest import Deployment
from tests.deployed.emulator import Emulator, http_front
from tests.e2e.conftest import Api
from tests.models import scale_model

pytestmark = pytest.mark.deployed

FUNCTIONS = [
    "InferFunction",
    "JudgeFunction",
    "ManageFunction",
    "ReconcileFunction",
    "RegisterFunction",
]
E2E_S = 1800  # of one part of the end-to-end tests
OPTIONS = {
    "AccessLog": "with-role",
    "AlarmEmail": "ops@example.org",
    "Auth": "iam",
    "DeletionProtection": "false",
    "KmsKeyArn": "arn:aws:kms:us-east-1:000000000000:key/k",
    "ModelMetrics": "10",
    "SnapStart": "true",
    "TrainingDataBucket": "data",
}
BUNDLE = "tests/e2e/test_bundle.py"
# Parts of the end-to-end tests. Left out are those that start a stack of their own, the browser, to
# which it is all the same who answers, and canaries under load (test_control_plane.py has one).
PARTS = {
    "the data plane": sorted({*map(str, Path("tests/e2e").glob("test_*.py"))} - {BUNDLE}),
    "access": ["tests/e2e/access"],
    "the control plane": ["tests/e2e/manage"],
    "clients": ["tests/e2e/mayfly"],
    "traffic": ["tests/e2e/traffic/test_split.py"],
}
# Faults of the emulator: see emulator.py
DESELECTED = [
    "tests/e2e/traffic/test_split.py"
    "::test_every_reply_is_of_the_version_that_it_names_while_the_alias_moves",
    "tests/e2e/manage/test_uploads.py::test_dead_letters_are_listed_and_redriven",
    "tests/e2e/test_uploads.py::test_a_multipart_upload_is_one_version",
    "tests/e2e/test_operations.py::test_a_redriven_dead_letter_is_registered",
    "tests/e2e/test_bad_requests.py::test_a_path_outside_the_api_is_named_with_where_the_api_is",
]


def physical(stack: Deployment, logical: str) -> str:
    """Return the name in AWS of one of the stack's resources."""
    reply = stack.emulator.client("cloudformation").describe_stack_resource(
        StackName=stack.name, LogicalResourceId=logical
    )
    return str(reply["StackResourceDetail"]["PhysicalResourceId"])


def variables(stack: Deployment, qualifier: str) -> dict[str, str]:
    """Return the variables of one version of the stack's infer function."""
    configuration = stack.emulator.client("lambda").get_function_configuration(
        FunctionName=physical(stack, "InferFunction"), Qualifier=qualifier
    )
    return dict(configuration["Environment"]["Variables"])


def block_of(page: str, heading: str) -> str:
    """Return the first shell block of a page's section."""
    section = Path(page).read_text().partition(f"## {heading}\n")[2]
    return section.partition("```bash\n")[2].partition("```")[0]


def test_the_lines_of_the_docs_deploy_nothing_twice_and_lead_to_a_training_job(
    stack: Deployment,
) -> None:
    """Run README's block on deployment and the one on training, with --dry-run for --wait.

    The emulator has no SageMaker. The stack keeps the parameters that it was deployed with.
    """
    deploy = block_of("README.md", "Deploy")
    train = block_of("docs/operations.md", "Training on SageMaker")
    assert deploy.startswith("make build")
    assert "--wait" in train
    script = f'{deploy}{train.replace("--wait", "--dry-run")}\necho "API=$API BUCKET=$BUCKET"'

    done = stack.run("bash", "-euo", "pipefail", "-c", script)

    assert "No changes to deploy" in done.stdout
    assert f"BUCKET={stack.outputs['ArtifactsBucketName']}" in done.stdout
    assert f"API={stack.outputs['ApiUrl']}" in done.stdout
    assert f'"RoleArn": "{stack.outputs["TrainingRoleArn"]}"' in done.stdout
    assert f"s3://{stack.outputs['ArtifactsBucketName']}/models/digits/" in done.stdout


@pytest.mark.timeout(E2E_S + 600)
@pytest.mark.parametrize("part", PARTS)
def test_the_end_to_end_tests_pass(stack: Deployment, api: Api, key: str, part: str) -> None:
    environment = {
        **os.environ,
        **stack.emulator.environment,
        "SSL_CERT_FILE": stack.emulator.environment["AWS_CA_BUNDLE"],  # signed URLs lead to its S3
        "STACK_URL": api.url,
        "ARTIFACTS_BUCKET": api.bucket,
        "MAYFLY_KEY": key,
        "STACK_NAME": stack.name,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    deselected = [f"--deselect={test}" for test in DESELECTED]
    done = subprocess.run(
        [*command, *PARTS[part], *deselected],
        env=environment,
        capture_output=True,
        text=True,
        timeout=E2E_S,
    )

    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-5000:]
    assert key not in stack.emulator.log.read_text()


def test_a_function_without_its_policy_is_denied(stack: Deployment, api: Api, model: str) -> None:
    """Check that the emulator evaluates policies, so that the other tests prove ours."""
    iam, role = stack.emulator.client("iam"), physical(stack, "RegisterFunctionRole")
    name = "RegisterFunction"
    policy = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
    without = [s for s in policy["Statement"] if s.get("Sid") != "StoreBlobs"]
    put = {"RoleName": role, "PolicyName": name}
    try:
        iam.put_role_policy(**put, PolicyDocument=json.dumps({**policy, "Statement": without}))
        api.upload(f"models/{model}/x.onnx", scale_model())
        api.wait(lambda: denied(stack, model), "register to be denied")
    finally:
        iam.put_role_policy(**put, PolicyDocument=json.dumps(policy))


def denied(stack: Deployment, model: str) -> bool:
    """Return True once the registry notes that an upload failed for lack of permission."""
    items = stack.emulator.client("dynamodb").query(
        TableName=stack.outputs["RegistryTableName"],
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": f"MODEL#{model}"}},
    )["Items"]
    return "ACCESS_DENIED" in json.dumps(items)


def test_a_changed_parameter_reaches_the_callers(stack: Deployment) -> None:
    assert variables(stack, "live")["LOG_SAMPLE_RATE"] == "1"

    stack.make_deploy(LogSampleRate="0.5")

    assert variables(stack, "live")["LOG_SAMPLE_RATE"] == "0.5"
    assert variables(stack, "live")["KEY_CACHE_SECONDS"] == "1"  # as it was


def test_a_build_is_refused_as_another_processors(stack: Deployment) -> None:
    done = stack.run(
        *(".venv-sam/bin/sam", "deploy", "--config-file", str(Path("samconfig.toml").absolute())),
        *("--template-file", ".aws-sam/build/template.yaml", "--stack-name", stack.name),
        *("--parameter-overrides", "Architecture=arm64"),
        check=False,
    )

    assert done.returncode != 0
    assert "Parameter 'Architecture' value 'arm64' is not in AllowedValues" in done.stderr


def test_two_ways_to_start_fast_are_refused(stack: Deployment) -> None:
    done = stack.run(
        *("make", "deploy", f"STACK={stack.name}"),
        "PARAMETERS=SnapStart=true ProvisionedConcurrency=1",
        check=False,
    )

    assert done.returncode != 0
    assert "SnapStart and ProvisionedConcurrency exclude each other" in done.stderr


def test_the_arm_build_deploys_arm_libraries_alone(emulator: Emulator, tmp_path: Path) -> None:
    """Deploy the build for arm64 as another stack, with every option.

    Its functions cannot run here.
    """
    stack = Deployment(emulator, "mayfly-arm64")
    stack.make_deploy("ARCHITECTURE=arm64", EndpointUrl=emulator.url, **OPTIONS)
    functions = emulator.client("lambda")

    for name in FUNCTIONS:
        function = functions.get_function_configuration(FunctionName=physical(stack, name))
        assert function["Architectures"] == ["arm64"]
        for layer in function["Layers"]:
            version = functions.get_layer_version_by_arn(Arn=layer["Arn"])
            assert version["CompatibleArchitectures"] == ["arm64"]
            path = urlsplit(version["Content"]["Location"])._replace(scheme="", netloc="").geturl()
            unpack(emulator, emulator.url + path, tmp_path / name)
        assert any((tmp_path / name).rglob("libonnxruntime.so*"))
        assert foreign_libraries(tmp_path / name, "arm64") == []
    stack.run(".venv-sam/bin/sam", "delete", "--stack-name", stack.name, "--no-prompts")


def status(stack: Deployment) -> str:
    """Return the status of the stack in CloudFormation."""
    reply = stack.emulator.client("cloudformation").describe_stacks(StackName=stack.name)
    return str(reply["Stacks"][0]["StackStatus"])


def unpack(emulator: Emulator, url: str, folder: Path) -> None:
    context = ssl.create_default_context(cafile=emulator.certificate)
    with urllib.request.urlopen(url, context=context, timeout=120) as reply:
        zipfile.ZipFile(io.BytesIO(reply.read())).extractall(folder)


def test_a_deleted_stack_is_taken_back_with_its_models(
    stack: Deployment, api: Api, key: str, model: str
) -> None:
    """Run the commands of docs/operations.md: nothing of the registry is lost."""
    api.upload(f"models/{model}/x.onnx", scale_model(2.0))
    api.wait_ready(model)
    before = stack.outputs
    kept = [before[name] for name in ("ArtifactsBucketName", "ServingBucketName")]

    stack.run(".venv-sam/bin/sam", "delete", "--stack-name", stack.name, "--no-prompts")
    names = (
        *("--artifacts", kept[0], "--serving", kept[1]),
        "--table",
        before["RegistryTableName"],
    )
    stack.run(".venv/bin/python", "-m", "scripts.adopt", *names)
    aws, change = (".venv/bin/aws", "cloudformation"), ("--stack-name", stack.name)
    change_set = (*change, "--change-set-name", "adopt")
    stack.run(
        *(*aws, "create-change-set", *change_set, "--change-set-type", "IMPORT"),
        *("--resources-to-import", "file://.aws-sam/adopt-resources.json"),
        *("--template-body", "file://.aws-sam/adopt-template.json"),
    )
    stack.run(*aws, "wait", "change-set-create-complete", *change_set)  # at once, here
    stack.run(*aws, "execute-change-set", *change_set)
    api.wait(lambda: status(stack) == "IMPORT_COMPLETE", "the stack to be imported")
    stack.make_deploy(EndpointUrl=stack.emulator.url)

    assert [stack.outputs[name] for name in ("ArtifactsBucketName", "ServingBucketName")] == kept
    with http_front(stack.emulator, stack.api_id) as url:
        adopted = Api(f"{url}/live", None, kept[0], stack.emulator.client("s3"), key)
        assert adopted.infer(model, [1, 2, 3]).json["outputs"][0]["data"] == [2, 4, 6]
        adopted.upload(f"models/{model}/x.onnx", scale_model(3.0))
        adopted.wait_ready(model, 2)  # the bucket's events reach the new queue
