"""SIGKILL at every step of a registration: it is retried, and makes exactly one READY version.

A step ends where the function calls AWS. The functions reach AWS through a proxy, which kills the
register function at the n-th call: before the call arrives, or after it is applied and before the
reply.
"""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from local.client import RunningStack, start_stack
from tests.e2e.conftest import wait
from tests.e2e.proxy import Proxy, proxy
from tests.models import scale_model

VISIBLE_AGAIN_S = 10  # longer than a registration, under load, too; every kill costs as much
CALLS = 9  # to AWS, in a registration with a manifest
factors = itertools.count(2.0)


@dataclass(frozen=True)
class System:
    """Stack whose functions call AWS through a proxy."""

    stack: RunningStack
    proxy: Proxy

    def upload(self, model: str) -> None:
        """Upload a model that shares no blob with another one."""
        bucket = self.stack.outputs["ArtifactsBucketName"]
        content = scale_model(next(factors), {"schema": 1, "task": "regression", "name": model})
        self.stack.client("s3").put_object(
            Bucket=bucket, Key=f"models/{model}/x.onnx", Body=content
        )

    def kill(self) -> None:
        """Send SIGKILL to the busy environments of the register function."""
        for environment in self.stack.environments("RegisterFunction"):
            if environment["state"] == "busy" and environment["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(environment["pid"], signal.SIGKILL)

    def rows(self, model: str) -> dict[str, dict[str, Any]]:
        """Read the registry items of a model, by sort key, with DynamoDB's own client."""
        reply = self.stack.client("dynamodb").query(
            TableName=self.stack.outputs["RegistryTableName"],
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": f"MODEL#{model}"}},
            ConsistentRead=True,
        )
        return {item["sk"]["S"]: item for item in reply["Items"]}

    def lose_messages(self) -> None:
        """Purge the registration queue, including messages that are being processed."""
        name = self.stack.environment["ReconcileFunction"]["REGISTRATION_QUEUE_URL"].rpartition(
            "/"
        )[2]
        sqs = self.stack.client("sqs")
        sqs.purge_queue(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"])

    def reconcile(self) -> dict[str, int]:
        reply = self.stack.client("lambda").invoke(FunctionName="ReconcileFunction", Payload=b"{}")
        counts: dict[str, int] = json.loads(reply["Payload"].read())
        assert "FunctionError" not in reply, counts
        return counts

    def is_ready(self, model: str) -> bool:
        return self.rows(model).get("VERSION#0000000001", {}).get("state") == {"S": "READY"}

    def blob(self, key: str) -> bytes:
        bucket = self.stack.environment["RegisterFunction"]["SERVING_BUCKET"]
        content: bytes = self.stack.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return content


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if "STACK_URL" in os.environ:
        pytest.skip("needs the local stack: STACK_URL names another one")
    parameters = {
        "RegistrationVisibilityTimeout": VISIBLE_AGAIN_S,
        "UploadGraceSeconds": 0,
        "PendingGraceSeconds": 0,
    }
    with proxy() as before_aws:
        arguments = ("--function-endpoint-url", before_aws.url)
        state_dir = tmp_path_factory.mktemp("kill")
        with start_stack(parameters=parameters, state_dir=state_dir, arguments=arguments) as stack:
            before_aws.upstream = stack.endpoint_url
            yield System(stack, before_aws)


def check_registered_once(system: System, model: str) -> None:
    rows = system.rows(model)
    versions = [sk for sk in rows if sk.startswith("VERSION#")]
    assert versions == ["VERSION#0000000001"]
    assert len([sk for sk in rows if sk.startswith("SOURCE#")]) == 1
    aliases = {
        item["alias"]["S"]: item["version"]["N"]
        for sk, item in rows.items()
        if sk.startswith("ALIAS#")
    }
    assert aliases == {"latest": "1", "prod": "1"}
    assert rows["META"]["next_version"] == {"N": "2"}
    actions = [rows[sk]["action"]["S"] for sk in sorted(rows) if sk.startswith("AUDIT#")]
    assert len(actions) == int(rows["META"]["revision"]["N"])
    assert (actions[0], actions.count("claim"), actions.count("finish")) == ("claim", 1, 1)
    version = rows[versions[0]]
    blobs = [blob["M"] for blob in version["files"]["L"]] + [version["manifest"]["M"]]
    blobs += [version["sample"]["M"]] if "M" in version["sample"] else []
    for blob in blobs:
        digest = blob["sha256"]["S"]
        assert hashlib.sha256(system.blob(f"blobs/{digest[:2]}/{digest}")).hexdigest() == digest


def new_name(stem: str) -> str:
    return f"{stem}-{time.time_ns():x}"


def test_a_registration_makes_the_expected_number_of_calls(system: System) -> None:
    warm_up = new_name("warm-up")  # a slow cold start could be redelivered, and counted twice
    system.upload(warm_up)
    wait(lambda: system.is_ready(warm_up), f"{warm_up} to be READY")
    model = new_name("counted")
    system.proxy.arm(0, applied=False, kill=lambda: None)

    system.upload(model)
    wait(lambda: system.is_ready(model), f"{model} to be READY")

    assert len(system.proxy.calls) == CALLS, system.proxy.calls
    check_registered_once(system, model)


def boundaries(few: set[tuple[int, bool]], rounds: int) -> list[Any]:
    """Return parameters for each call, lost and applied, in each round.

    `make test` runs `few` of them once, `make stress` the others.
    """
    return [
        pytest.param(
            number,
            applied,
            marks=[] if (number, applied) in few and not again else pytest.mark.stress,
            id=f"call {number} {'applied' if applied else 'lost'}, round {again + 1}",
        )
        for again in range(rounds)
        for number in range(1, CALLS + 1)
        for applied in (False, True)
    ]


@pytest.mark.parametrize(
    ("number", "applied"), boundaries({(3, True), (6, False), (CALLS, True)}, rounds=3)
)
def test_a_registration_killed_at_any_call_succeeds_on_redelivery(
    system: System, number: int, applied: bool
) -> None:
    model = new_name("killed")
    system.proxy.arm(number, applied=applied, kill=system.kill)

    system.upload(model)

    wait(lambda: not system.proxy.armed, "the kill")
    wait(lambda: system.is_ready(model), f"{model} to be READY")
    check_registered_once(system, model)


@pytest.mark.parametrize(("number", "applied"), boundaries({(CALLS, False)}, rounds=1))
def test_a_killed_registration_whose_message_is_lost_is_reconciled(
    system: System, number: int, applied: bool
) -> None:
    model = new_name("lost")
    system.proxy.arm(number, applied=applied, kill=system.kill)
    system.upload(model)
    wait(lambda: not system.proxy.armed, "the kill")
    system.lose_messages()
    done = system.is_ready(model)

    counts = system.reconcile()

    assert done or counts["lost_uploads"] + counts["resumed_versions"] == 1, counts
    wait(lambda: system.is_ready(model), f"{model} to be READY")
    check_registered_once(system, model)
