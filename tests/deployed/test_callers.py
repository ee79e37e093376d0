"""Callers of a deployed stack with Auth=iam: signed by curl, with the documented policy."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deployed.conftest import Deployment

pytestmark = pytest.mark.deployed


@pytest.fixture(scope="module")
def signed(stack: Deployment) -> Iterator[Deployment]:
    """The stack while it takes signed requests alone."""
    stack.make_deploy(Auth="iam")
    yield stack
    stack.make_deploy(Auth="keys")


def access_key(stack: Deployment, user: str, policy: dict[str, Any] | None) -> str:
    """Create a user of the account; return key and secret as curl takes them."""
    iam = stack.emulator.client("iam")
    iam.create_user(UserName=user)
    if policy is not None:
        iam.put_user_policy(UserName=user, PolicyName="call", PolicyDocument=json.dumps(policy))
    made = iam.create_access_key(UserName=user)["AccessKey"]
    return f"{made['AccessKeyId']}:{made['SecretAccessKey']}"


def status(stack: Deployment, path: str, *options: str, key: str | None) -> int:
    """Return the status of a request to the API's own host, signed if there is a key."""
    host = f"{stack.api_id}.execute-api.localhost:{stack.emulator.port}"
    signature = ("--aws-sigv4", "aws:amz:us-east-1:execute-api", "--user", key) if key else ()
    done = stack.run(
        *("curl", "-s", "--cacert", str(stack.emulator.certificate), "-o", "/dev/null"),
        *("-w", "%{http_code}", *signature, *options, f"https://{host}/live{path}"),
    )
    return int(done.stdout)


def test_a_caller_needs_the_documented_policy_and_no_more(
    signed: Deployment, policy_example: str
) -> None:
    account = signed.outputs["TrainingRoleArn"].split(":")[4]
    text = policy_example.replace("<api id>", signed.api_id).replace("123456789012", account)
    policy = json.loads(text)
    caller = access_key(signed, "caller", policy)
    stranger = access_key(signed, "stranger", None)

    assert status(signed, "/v2/models/nobody", key=caller) == 404  # our function's answer
    assert status(signed, "/v2/models/nobody", key=stranger) == 403
    assert status(signed, "/v2/models/nobody", key=None) == 403
    assert status(signed, "/api/v1/keys", key=caller) == 403  # not in the policy


def test_a_policy_for_models_alone_keeps_a_caller_from_unloading(
    signed: Deployment, policy_example: str
) -> None:
    account = signed.outputs["TrainingRoleArn"].split(":")[4]
    text = policy_example.replace("<api id>", signed.api_id).replace("123456789012", account)
    policy = json.loads(text)
    policy["Statement"][0]["Resource"].pop()
    caller = access_key(signed, "reader", policy)

    unload = "/v2/repository/models/nobody/unload"
    assert status(signed, "/v2/models/nobody", key=caller) == 404
    assert status(signed, unload, "-X", "POST", key=caller) == 403
