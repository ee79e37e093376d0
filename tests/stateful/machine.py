"""State machine of uploads, deliveries, operators and faults around the real code.

Registration, registry, adapters, handler and reconciler are real; only the sandbox is a fake.
People upload, delete, move aliases and archive. Events arrive late, twice, in any order or never.
Workers die, pause and continue at every AWS call. S3 and DynamoDB throttle, fail and lose
replies. The stored state is checked after every write and every step. At the end everything left
is delivered and reconciled, and no version may be PENDING.
"""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote_plus

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs, S3Uploads
from functions.adapters.aws.s3_listing import S3BlobListing, S3UploadListing
from functions.adapters.aws.sqs import SqsQueue
from functions.core.errors import InvalidModel, PlatformError, Unavailable
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.records import replace
from functions.core.registration.registration import Registration
from functions.core.registration.sandbox_protocol import Brief, Built, Unpacked
from functions.core.registry.dead_letters import note_failure
from functions.core.registry.reconciler import Limits, Reconciler
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.registry.version import Version
from functions.core.traffic.traffic import Weight, split
from functions.core.uploads import Form, Upload
from functions.register.handler import RegisterHandler
from functions.register.manifest import read_manifest
from tests.stateful.cloud import HOUR, Cloud, Fault, Worker
from tests.stateful.invariants import DEATHS, Checker, Sent

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
LIMITS = Limits(deaths=DEATHS)
LAMBDA_S = 900.0  # the longest that a worker can live
GOOD, DESCRIBED, BAD = b"good", b"described", b"bad"
MANIFEST = b'{"schema": 1, "task": "regression"}'

MODELS = st.sampled_from(["a", "b"])
FILES = st.sampled_from(["x.onnx", "job 1/ä+b.onnx"])
# Uniform choices: hypothesis itself would prefer small numbers and earlier values.
CHOICES = st.randoms(use_true_random=True)


def _plan(choices: Random, calls: int = 11) -> dict[int, Fault]:
    """Return no fault, a pause, or one or two faults, by the number of the call.

    A registration without interference makes eight to eleven calls.
    """
    kind = choices.randrange(8)
    if kind < 2:
        return {}
    if kind < 4:
        return {choices.randint(1, calls): Fault.PAUSE}
    return {
        choices.randint(1, calls): choices.choice(list(Fault)) for _ in range(1 if kind < 7 else 2)
    }


PLANS = CHOICES.map(_plan)
CALLS = CHOICES.map(lambda choices: choices.randint(1, 11))
EARLY = CHOICES.map(lambda choices: choices.randint(1, 4))  # calls that archive a version
LATE = CHOICES.map(lambda choices: choices.randint(5, 10))  # calls that store blobs
INDEX = CHOICES.map(lambda choices: choices.randrange(100))  # modulo the number of candidates
FAULTS = [fault for fault in Fault if fault is not Fault.PAUSE]
ORDERS = CHOICES.map(lambda choices: choices.choice([None] * 5 + FAULTS))
ALIASES = st.sampled_from(["prod", "canary"])
PERCENTS = st.sampled_from([0, 0.5, 10, 100])


class TrustingSandbox:
    """Fake sandbox that believes a file's first word and serves the file unchanged."""

    suspect = False

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        content = (directory / "upload" / "model.onnx").read_bytes()
        if content.startswith(BAD):
            raise InvalidModel("it is no model: export it again", code="NOT_ONNX")
        described = content.startswith(DESCRIBED)
        if described:
            (directory / "package" / "manifest.json").write_bytes(MANIFEST)
        (directory / "package" / "model.onnx").write_bytes(content)
        return Unpacked("model.onnx", (), described, {"opset": 20})

    def build(self, brief: Brief, directory: Path) -> Built:
        shutil.copy(directory / "package" / "model.onnx", directory / "serving" / "model.onnx")
        return Built(("model.onnx",), SIGNATURE)


class Context:
    """Lambda context with time left."""

    aws_request_id = "request"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 900_000


@dataclass(slots=True)
class Message:
    """Message in the queue; `upload` is the object that it announces."""

    id: str
    body: str
    upload: Sent


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """Batch of messages that a worker processes; without messages, a person's call."""

    worker: Worker
    messages: tuple[Message, ...]
    again: bool  # SQS delivers it once more although it was acknowledged
    clean: bool  # no fault is planned
    allowed: bool = True  # a person's call that has to succeed without interference


@dataclass(slots=True)
class Watched:
    """Registration that reports its errors, index the handler would hide."""

    registration: Registration
    failed: Callable[[str], None]
    retried: Callable[[PlatformError], None]

    def register(self, upload: Upload) -> Version | None:
        try:
            return self.registration.register(upload)
        except (Unavailable, InvalidModel) as error:
            self.retried(error)
            raise
        except Exception as error:
            self.failed(f"{type(error).__name__} reached the handler: {error}")
            raise


class Machine(RuleBasedStateMachine):
    """State machine on an emptied cloud."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__()
        cloud.clear()
        self.cloud = cloud
        self.checker = Checker(cloud)
        self.violation: AssertionError | None = None
        cloud.applied = lambda _: self.check()
        table = DynamoTable(cloud.dynamodb, cloud.table_name)
        self.registry = Registry(table, cloud.now, pause=lambda _: None)
        self.releases = Releases(table, cloud.now, pause=lambda _: None)
        self.reconciler = Reconciler(
            self.registry,
            S3UploadListing(cloud.s3, cloud.artifacts),
            S3BlobListing(cloud.s3, cloud.serving),
            SqsQueue(cloud.sqs, cloud.queue_url).send,
            cloud.ago,
            LIMITS,
        )
        registration = Registration(
            self.registry,
            S3Uploads(cloud.s3),
            S3Blobs(cloud.s3, cloud.serving, cloud.now),
            TrustingSandbox(),
            read_manifest,
        )
        watched = Watched(registration, self.fail, self.remember)
        logger, metrics = (
            Logger(stream=io.StringIO(), service="register"),
            Metrics(namespace="mayfly", service="register"),
        )
        self.environment = lambda: RegisterHandler(
            watched, logger, metrics, cloud.artifacts, partial(note_failure, self.registry)
        )
        self.queue: list[Message] = []
        self.paused: list[Delivery] = []
        self.made = self.sends = 0
        self.last_error: PlatformError | None = None  # of a registration that is retried

    # --- actions of people

    @rule(model=MODELS, file=FILES, kind=st.sampled_from([GOOD, GOOD, DESCRIBED, BAD]))
    def upload(self, model: str, file: str, kind: bytes) -> None:
        """Upload new bytes; an existing key gets a new object version."""
        self.made += 1
        self.put(model, file, b"%s %d" % (kind, self.made))

    @rule(model=MODELS, file=FILES, index=INDEX)
    @precondition(lambda self: self.checker.sent)
    def upload_again(self, model: str, file: str, index: int) -> None:
        """Upload the bytes of an earlier upload: another version with the same blob."""
        content = pick(list(self.checker.sent.values()), index).stored.content
        assert content is not None
        self.put(model, file, content)

    def put(self, model: str, file: str, content: bytes) -> None:
        stored = self.cloud.put(f"models/{model}/{file}", content)
        sent = Sent(stored, model, not content.startswith(BAD))
        self.checker.sent[stored.key, stored.version_id] = sent
        event = self.cloud.event(stored.key, stored.version_id)
        if self.made % 2:  # as in events that a person or the reconciler sends
            del event["Records"][0]["s3"]["object"]["sequencer"]
        self.enqueue(json.dumps(event), sent)

    def enqueue(self, body: str, sent: Sent) -> None:
        self.sends += 1
        self.queue.append(Message(f"message-{self.sends}", body, sent))

    @rule(index=INDEX, marker=st.booleans())
    @precondition(lambda self: len(self.checker.sent) > len(self.checker.gone))
    def delete(self, index: int, marker: bool) -> None:
        """Delete an upload: with a delete marker, or one version for good."""
        kept = [address for address in self.checker.sent if address not in self.checker.gone]
        key, version_id = pick(kept, index)
        if marker:
            self.cloud.delete(key)
        else:
            self.cloud.delete(key, version_id)
            self.checker.gone.add((key, version_id))

    @rule(hours=st.sampled_from([0.1, 0.1, 3.0, 13.0, 30.0]))
    def wait(self, hours: float) -> None:
        """Let time pass; Lambda ends the workers that exceed their time limit."""
        self.cloud.time += hours * HOUR
        for delivery in list(self.paused):
            if self.cloud.time - delivery.worker.since > LAMBDA_S:
                self.go_on(delivery, Fault.KILL_BEFORE)

    @rule(plan=CHOICES.map(lambda choices: _plan(choices, calls=30)))
    def reconcile(self, plan: dict[int | str, Fault]) -> None:
        """Run the reconciler with the faults of a plan."""
        worker = Worker(self.cloud, self.reconciler.run, plan)
        delivery = Delivery(worker, (), False, not plan)
        worker.run()
        self.settle(delivery)
        self.take_sent()

    @rule(index=INDEX, died=LATE, number=LATE, inside=st.booleans())
    @precondition(lambda self: self.queue)
    def reconcile_meanwhile(self, index: int, died: int, number: int, inside: bool) -> None:
        """Interleave a registration and a run of the reconciler, a day after a worker died.

        The dead worker left blobs. With `inside` the reconciler runs while the registration is
        paused, otherwise the registration runs before a removal by the reconciler.
        """
        message = pick(self.queue, index)
        self.receive([message], True, {died: Fault.KILL_BEFORE})
        self.wait(30.0)
        if inside:
            delivery = self.receive([message], False, {number: Fault.PAUSE})
            self.reconcile({})
            self.go_on(delivery)
        else:
            paused = len(self.paused)
            self.reconcile({"DeleteObject": Fault.PAUSE})
            self.receive([message], False, {})
            while len(self.paused) > paused:
                self.go_on(self.paused[-1])
            self.take_sent()

    def take_sent(self) -> None:
        """Put the messages that the reconciler sent into the queue."""
        for body in self.cloud.take_sent():
            record = json.loads(body)["Records"][0]["s3"]
            address = unquote_plus(record["object"]["key"]), record["object"]["versionId"]
            sent = self.checker.sent.get(address)
            if sent is None or record["bucket"]["name"] != self.cloud.artifacts:
                self.fail(f"I1: the reconciler announces {record}, index was never uploaded")
            else:
                self.enqueue(body, sent)

    @rule(model=MODELS, alias=ALIASES, index=INDEX, plan=PLANS)
    def move_alias(self, model: str, alias: str, index: int, plan: dict[int, Fault]) -> None:
        """Move an alias; an allowed move has to succeed without interference."""
        number, items = self.some_version(model, index)
        allowed = items.get(f"VERSION#{number:010d}", {}).get("state") == "READY"
        self.call(lambda: self.releases.move_alias(model, alias, number, actor="me"), plan, allowed)

    @rule(model=MODELS, alias=ALIASES, index=INDEX, shadow=INDEX, percent=PERCENTS, plan=PLANS)
    def set_traffic(
        self,
        model: str,
        alias: str,
        index: int,
        shadow: int,
        percent: float,
        plan: dict[int, Fault],
    ) -> None:
        """Split an alias's traffic, or end a split; an allowed one has to succeed."""
        number, items = self.some_version(model, index)
        shadowed, _ = self.some_version(model, shadow)
        standing = items.get(f"ALIAS#{alias}")
        stable = standing["version"] if standing else number
        candidates = [
            item["version"]
            for sk, item in items.items()
            if sk.startswith("VERSION#") and item["state"] == "READY" and item["version"] != stable
        ]
        if candidates and index % 4:  # mostly a split that is allowed
            number = pick(candidates, index)
        traffic = split(stable, number, percent) if stable != number else None
        if traffic and shadow % 2:
            traffic = replace(traffic, shadow=Weight(shadowed, 500))
        named = [items.get(f"VERSION#{n:010d}", {}) for n in (traffic.versions if traffic else ())]
        ready = all(item.get("state") == "READY" and not item["damaged"] for item in named)
        shadows_itself = traffic and traffic.shadow and traffic.shadow.version == stable
        self.call(
            lambda: self.releases.set_traffic(model, alias, traffic, actor="me"),
            plan,
            allowed=bool(standing) and ready and not shadows_itself,
        )

    @rule(model=MODELS, index=INDEX, plan=PLANS)
    def archive(self, model: str, index: int, plan: dict[int, Fault]) -> None:
        number, items = self.some_version(model, index)
        aliases = [item for sk, item in items.items() if sk.startswith("ALIAS#")]
        targets = {number for item in aliases for number in named_versions(item)}
        state = items.get(f"VERSION#{number:010d}", {}).get("state", "PENDING")
        allowed = state != "PENDING" and number not in targets
        self.call(lambda: self.releases.archive(model, number, actor="me"), plan, allowed)

    @rule(model=MODELS, alias=ALIASES, index=INDEX, number=EARLY)
    def archive_and_move_alias(self, model: str, alias: str, index: int, number: int) -> None:
        """Move an alias to a version before a call that archives that version."""
        paused = len(self.paused)
        self.archive(model, index, {number: Fault.PAUSE})
        self.move_alias(model, alias, index, {})
        while len(self.paused) > paused:
            self.go_on(self.paused[-1])

    @rule(model=MODELS, alias=ALIASES, index=INDEX, number=EARLY)
    def archive_and_set_traffic(self, model: str, alias: str, index: int, number: int) -> None:
        """Give traffic to a version before a call that archives that version."""
        paused = len(self.paused)
        self.archive(model, index, {number: Fault.PAUSE})
        self.set_traffic(model, alias, index, index, 10, {})
        while len(self.paused) > paused:
            self.go_on(self.paused[-1])

    @rule(model=MODELS, alias=ALIASES, index=INDEX, archive=st.booleans())
    def split_and_end(self, model: str, alias: str, index: int, archive: bool) -> None:
        """Split an alias's traffic; archive its candidate, or roll back."""
        self.set_traffic(model, alias, index, index, 10, {})
        stored = self.cloud.rows().get(f"MODEL#{model}", {}).get(f"ALIAS#{alias}")
        if stored is None or not stored.get("traffic"):
            return
        if archive:
            number = named_versions(stored)[-1]
            self.call(lambda: self.releases.archive(model, number, actor="me"), {}, allowed=False)
        else:
            self.call(lambda: self.releases.rollback(model, alias, actor="me"), {}, allowed=True)

    @rule(model=MODELS, alias=ALIASES, resolve=st.booleans(), plan=PLANS)
    def resolve_or_roll_back(
        self, model: str, alias: str, resolve: bool, plan: dict[int, Fault]
    ) -> None:
        """I9: an existing alias can be resolved, whatever changes meanwhile."""
        if resolve:
            exists = f"ALIAS#{alias}" in self.cloud.rows().get(f"MODEL#{model}", {})
            self.call(lambda: self.registry.resolve(model, alias), plan, exists, always=True)
        else:
            self.call(lambda: self.releases.rollback(model, alias, actor="me"), plan, allowed=False)

    def some_version(self, model: str, index: int) -> tuple[int, Mapping[str, Any]]:
        """Return the number of a version, or the next unused one, and the model's items."""
        items = self.cloud.rows().get(f"MODEL#{model}", {})
        return 1 + index % (1 + sum(sk.startswith("VERSION#") for sk in items)), items

    def call(
        self,
        work: Callable[[], Any],
        plan: Mapping[int, Fault],
        allowed: bool,
        always: bool = False,
    ) -> None:
        """Make a person's call with the faults of a plan.

        An allowed call has to succeed without faults; with `always`, also if it is only paused.
        """
        worker = Worker(self.cloud, work, plan)
        worker.run()
        clean = not plan or (always and set(plan.values()) <= {Fault.PAUSE})
        self.settle(Delivery(worker, (), False, clean, allowed))

    # --- queue

    @rule(model=MODELS, file=FILES, kind=st.sampled_from([GOOD, GOOD, DESCRIBED, BAD]), plan=PLANS)
    def upload_and_deliver(
        self, model: str, file: str, kind: bytes, plan: dict[int, Fault]
    ) -> None:
        self.upload(model, file, kind)
        self.receive([self.queue[-1]], False, plan)

    @rule(model=MODELS, file=FILES)
    def upload_twice_and_deliver_backwards(self, model: str, file: str) -> None:
        """Upload two versions of a key; register the newer one first.

        Both are mostly written in the same second.
        """
        self.upload(model, file, GOOD)
        self.upload(model, file, GOOD)
        for message in self.queue[:-3:-1]:
            self.receive([message], False, {})

    @rule(index=INDEX, newest=st.booleans(), also=st.booleans(), again=st.booleans(), plan=PLANS)
    @precondition(lambda self: self.queue)
    def deliver(
        self, index: int, newest: bool, also: bool, again: bool, plan: dict[int, Fault]
    ) -> None:
        """Deliver one or two messages to a worker with the faults of `plan`."""
        first = self.queue[-1] if newest else pick(self.queue, index)
        batch = [first, *([pick(self.queue, index + 1)] if also else [])]
        self.receive(list({message.id: message for message in batch}.values()), again, plan)

    @rule(index=INDEX, number=CALLS)
    @precondition(lambda self: len(self.queue) > 1)
    def race(self, index: int, number: int) -> None:
        """Deliver two messages; the second registers before a call of the first."""
        first, second = pick(self.queue, index), pick(self.queue, index + 1)
        delivery = self.receive([first], False, {number: Fault.PAUSE})
        self.receive([second], False, {})
        self.go_on(delivery)

    @rule(index=INDEX, number=CALLS)
    @precondition(lambda self: self.queue)
    def deliver_twice_at_once(self, index: int, number: int) -> None:
        """Deliver one message to two workers; the second ends before a call of the first."""
        message = pick(self.queue, index)
        delivery = self.receive([message], True, {number: Fault.PAUSE})
        self.receive([message], True, {})
        self.go_on(delivery)

    @rule(index=INDEX)
    @precondition(lambda self: self.queue)
    def lose(self, index: int) -> None:
        self.queue.remove(pick(self.queue, index))

    @rule(index=INDEX, order=ORDERS)
    @precondition(lambda self: self.paused)
    def resume(self, index: int, order: Fault | None) -> None:
        """Continue a paused worker, maybe with a fault of its next call."""
        self.go_on(pick(self.paused, index), order)

    def go_on(self, delivery: Delivery, order: Fault | None = None) -> None:
        if delivery in self.paused:
            self.paused.remove(delivery)
            delivery.worker.run(order)
            self.settle(delivery, clean=order is None)

    def receive(self, messages: list[Message], again: bool, plan: Mapping[int, Fault]) -> Delivery:
        """Deliver messages to a new worker with the faults of `plan`."""
        records = [
            {
                "messageId": message.id,
                "eventSource": "aws:sqs",
                "body": message.body,
                "attributes": {},
            }
            for message in messages
        ]
        handler = self.environment()  # an environment processes one batch at a time
        worker = Worker(self.cloud, lambda: handler({"Records": records}, Context()), plan)
        clean = all(fault is Fault.PAUSE for fault in plan.values())
        delivery = Delivery(worker, tuple(messages), again, clean)
        worker.run()
        self.settle(delivery)
        return delivery

    def settle(self, delivery: Delivery, clean: bool = True) -> None:
        """Acknowledge the messages of a worker that has ended, as SQS would."""
        worker = delivery.worker
        if worker.state == "paused":
            self.paused.append(delivery)
            return
        if worker.error is not None and not isinstance(worker.error, PlatformError):
            self.fail(
                f"{type(worker.error).__name__} was raised: {worker.error}; calls: {worker.calls}"
            )
        if (
            worker.error is not None
            and clean
            and delivery.clean
            and (delivery.allowed or delivery.messages)
        ):
            name = type(worker.error).__name__
            self.fail(f"nothing failed, but {name} was raised: {worker.error}")
        if worker.state == "died" or worker.error or not delivery.messages:
            return
        failed = {failure["itemIdentifier"] for failure in worker.result["batchItemFailures"]}
        if failed and clean and delivery.clean:
            self.fail(
                f"nothing failed, but {failed} are retried: {self.last_error!r}; "
                f"calls: {worker.calls}"
            )
        for message in delivery.messages:
            if message.id not in failed:
                self.expect_done(message.upload)
                if not delivery.again and message in self.queue:
                    self.queue.remove(message)

    def expect_done(self, sent: Sent) -> None:
        """I6: an acknowledged message has a finished version."""
        version = self.stored_version(sent)
        if version is None or version["state"] == "PENDING":
            self.fail(f"I6: acknowledged, but the version is {version}")

    # --- checks

    def stored_version(self, sent: Sent) -> Mapping[str, Any] | None:
        items = self.cloud.rows().get(f"MODEL#{sent.model}", {})
        for sk, item in items.items():
            if sk.startswith("VERSION#"):
                source = item["source"]["key"], item["source"]["object_version"]
                if source == (sent.stored.key, sent.stored.version_id):
                    return item
        return None

    def remember(self, error: PlatformError) -> None:
        self.last_error = error

    def fail(self, why: str) -> None:
        self.violation = self.violation or AssertionError(why)

    def check(self) -> None:
        """Remember the first violation; raised here, it would look like an AWS error."""
        try:
            self.checker.check()
        except AssertionError as error:
            self.violation = self.violation or error

    @invariant()
    def everything_holds(self) -> None:
        self.check()
        if self.violation:
            raise self.violation

    def teardown(self) -> None:
        try:
            if self.violation is None:
                self.drain()
                self.everything_holds()
        finally:
            for delivery in self.paused:
                delivery.worker.end()
            self.cloud.worker = None
            self.cloud.applied = lambda _: None

    def drain(self) -> None:
        """Deliver and reconcile all that is left, and check where it ends.

        I6: no version is PENDING, valid uploads are READY and invalid ones REJECTED.
        """
        while self.paused:
            self.go_on(self.paused[0])
        for _ in range(4):
            for message in list(self.queue):
                self.receive([message], False, {})
            self.cloud.time += 30 * HOUR
            self.call(self.reconciler.run, {}, allowed=True)
            self.take_sent()
            if not self.queue:
                break
        self.everything_holds()
        assert not self.queue, "I6: the reconciler sends without end"
        for address, sent in self.checker.sent.items():
            version = self.stored_version(sent)
            if version is None:
                assert address in self.checker.gone or self.is_marked(sent), (
                    f"I6: {address} became no version"
                )
            elif address not in self.checker.gone and version["attempts"] < DEATHS:
                states = {"READY", "ARCHIVED"} if sent.valid else {"REJECTED", "ARCHIVED"}
                assert version["state"] in states, f"I6: {version}"
            assert version is None or version["state"] != "PENDING", f"I6: {version}"
        records = {pk.removeprefix("BLOB#") for pk in self.cloud.rows() if pk.startswith("BLOB#")}
        blobs = self.cloud.objects(self.cloud.serving)
        left = {
            key.rpartition("/")[2]
            for key, versions in blobs.items()
            if versions[-1].content is not None
        }
        assert left == records, (
            f"blobs without a record: {left - records}; missing blobs: {records - left}"
        )

    def is_marked(self, sent: Sent) -> bool:
        return self.cloud.objects(self.cloud.artifacts)[sent.stored.key][-1].content is None


def named_versions(alias: Mapping[str, Any]) -> list[int]:
    """Return the versions that a stored alias names: its own and those of its traffic."""
    traffic = alias.get("traffic") or {"weights": [], "shadow": None}
    shadow = [traffic["shadow"]] if traffic["shadow"] else []
    return [alias["version"], *(part["version"] for part in [*traffic["weights"], *shadow])]


def pick(candidates: list[Any], index: int) -> Any:
    return candidates[index % len(candidates)]
