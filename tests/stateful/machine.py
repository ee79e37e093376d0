"""A rule-based machine over the real registration, registry, adapters, handler and reconciler; the sandbox is a fake.

People upload, delete, move aliases and archive; events come late, twice, in any order or never; workers die, stop and
go on at every AWS call; S3 and DynamoDB throttle, fail and lose replies. After every write and every step the stored
state is checked; at the end everything that is left is delivered and reconciled, and nothing may be PENDING.
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
from functions.core.registration.registration import Registration
from functions.core.registration.sandbox_protocol import Brief, Built, Unpacked
from functions.core.registry.dead_letters import note_failure
from functions.core.registry.reconciler import Limits, Reconciler
from functions.core.registry.registry import Registry
from functions.core.registry.version import Version
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
CHOICES = st.randoms(
    use_true_random=True
)  # uniform, where hypothesis prefers small numbers and what it had before


def _plan(choices: Random, calls: int = 10) -> dict[int, Fault]:
    """No fault, a pause, or one or two faults. A registration that meets nobody makes eight to ten calls."""
    kind = choices.randrange(8)
    if kind < 2:
        return {}
    if kind < 4:
        return {choices.randint(1, calls): Fault.PAUSE}
    return {
        choices.randint(1, calls): choices.choice(list(Fault)) for _ in range(1 if kind < 7 else 2)
    }


PLANS = CHOICES.map(_plan)
CALLS = CHOICES.map(lambda choices: choices.randint(1, 10))
LATE = CHOICES.map(lambda choices: choices.randint(5, 10))  # about when blobs are stored
WHICH = CHOICES.map(lambda choices: choices.randrange(100))  # modulo how many there are
ORDERS = CHOICES.map(
    lambda choices: choices.choice([None] * 5 + [one for one in Fault if one is not Fault.PAUSE])
)
ALIASES = st.sampled_from(["prod", "canary"])


class TrustingSandbox:
    """Takes a file for what its first word says, and serves it as it is."""

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
    """Lambda's, with time left."""

    aws_request_id = "request"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 900_000


@dataclass(slots=True)
class Message:
    """An event in the queue; `upload` is the object that it tells of."""

    id: str
    body: str
    upload: Sent


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A batch in a worker's hands; or, without messages, what a person asked for."""

    worker: Worker
    messages: tuple[Message, ...]
    again: bool  # SQS delivers it once more although it was acknowledged
    clean: bool  # no fault is planned
    may: bool = True


@dataclass(slots=True)
class Watched:
    """`Registration`, with the errors that the handler would swallow."""

    registration: Registration
    failed: Callable[[str], None]
    put_off: Callable[[PlatformError], None]

    def register(self, upload: Upload) -> Version | None:
        try:
            return self.registration.register(upload)
        except (Unavailable, InvalidModel) as error:
            self.put_off(error)
            raise
        except Exception as error:
            self.failed(f"{type(error).__name__} reached the handler: {error}")
            raise


class Machine(RuleBasedStateMachine):
    """`cloud` is emptied for it; `registry` and the like are where a fault is planted."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__()
        cloud.clear()
        self.cloud = cloud
        self.checker = Checker(cloud)
        self.violation: AssertionError | None = None
        cloud.applied = lambda _: self.check()
        self.registry = Registry(
            DynamoTable(cloud.dynamodb, cloud.table_name), cloud.now, pause=lambda _: None
        )
        self.reconciler = Reconciler(
            self.registry,
            S3UploadListing(cloud.s3, cloud.artifacts),
            S3BlobListing(cloud.s3, cloud.serving),
            SqsQueue(cloud.sqs, cloud.queue_url),
            cloud.artifacts,
            cloud.now,
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
            watched, logger, metrics, partial(note_failure, self.registry)
        )
        self.queue: list[Message] = []
        self.paused: list[Delivery] = []
        self.made = self.sends = 0
        self.put_off: PlatformError | None = None  # the last of them

    # --- people -----------------------------------------------------------------------------------------------------

    @rule(model=MODELS, file=FILES, kind=st.sampled_from([GOOD, GOOD, DESCRIBED, BAD]))
    def upload(self, model: str, file: str, kind: bytes) -> None:
        """A file that nobody has uploaded before; where the key is taken, a new version of the object."""
        self.made += 1
        self.put(model, file, b"%s %d" % (kind, self.made))

    @rule(model=MODELS, file=FILES, which=WHICH)
    @precondition(lambda self: self.checker.sent)
    def upload_again(self, model: str, file: str, which: int) -> None:
        """The bytes of an earlier upload: a version of its own that shares the blob."""
        content = pick(list(self.checker.sent.values()), which).stored.content
        assert content is not None
        self.put(model, file, content)

    def put(self, model: str, file: str, content: bytes) -> None:
        stored = self.cloud.put(f"models/{model}/{file}", content)
        sent = Sent(stored, model, not content.startswith(BAD))
        self.checker.sent[stored.key, stored.version_id] = sent
        self.enqueue(json.dumps(self.cloud.event(stored.key, stored.version_id)), sent)

    def enqueue(self, body: str, sent: Sent) -> None:
        self.sends += 1
        self.queue.append(Message(f"message-{self.sends}", body, sent))

    @rule(which=WHICH, marker=st.booleans())
    @precondition(lambda self: len(self.checker.sent) > len(self.checker.gone))
    def delete(self, which: int, marker: bool) -> None:
        """A source object: with a marker its versions stay, without one this version is gone for good."""
        key, version_id = pick(
            [at for at in self.checker.sent if at not in self.checker.gone], which
        )
        if marker:
            self.cloud.delete(key)
        else:
            self.cloud.delete(key, version_id)
            self.checker.gone.add((key, version_id))

    @rule(hours=st.sampled_from([0.1, 0.1, 3.0, 13.0, 30.0]))
    def wait(self, hours: float) -> None:
        """Grace periods pass, and Lambda ends the workers that are over their time."""
        self.cloud.time += hours * HOUR
        for delivery in [
            one for one in self.paused if self.cloud.time - one.worker.since > LAMBDA_S
        ]:
            self.go_on(delivery, Fault.KILL_BEFORE)

    @rule(plan=CHOICES.map(lambda choices: _plan(choices, calls=30)))
    def reconcile(self, plan: dict[int | str, Fault]) -> None:
        worker = Worker(self.cloud, self.reconciler.run, plan)
        delivery = Delivery(worker, (), False, not plan)
        worker.run()
        self.settle(delivery)
        self.take_sent()

    @rule(which=WHICH, died=LATE, number=LATE, inside=st.booleans())
    @precondition(lambda self: self.queue)
    def reconcile_meanwhile(self, which: int, died: int, number: int, inside: bool) -> None:
        """A worker died and left what it stored; a day later another one and the reconciler meet, either inside."""
        message = pick(self.queue, which)
        self.receive([message], True, {died: Fault.KILL_BEFORE})
        self.wait(30.0)
        if inside:
            delivery = self.receive([message], False, {number: Fault.PAUSE})
            self.reconcile({})
            self.go_on(delivery)
        else:
            known = len(self.paused)
            self.reconcile({"DeleteObject": Fault.PAUSE})
            self.receive([message], False, {})
            while len(self.paused) > known:
                self.go_on(self.paused[-1])
            self.take_sent()

    def take_sent(self) -> None:
        """What the reconciler sent to the queue."""
        for body in self.cloud.sent():
            found = json.loads(body)["Records"][0]["s3"]
            at = unquote_plus(found["object"]["key"]), found["object"]["versionId"]
            sent = self.checker.sent.get(at)
            if sent is None or found["bucket"]["name"] != self.cloud.artifacts:
                self.fail(f"I1: the reconciler tells of {found}, which was never uploaded")
            else:
                self.enqueue(body, sent)

    @rule(model=MODELS, alias=ALIASES, which=WHICH, plan=PLANS)
    def move_alias(self, model: str, alias: str, which: int, plan: dict[int, Fault]) -> None:
        """What is allowed has to work if nothing interferes."""
        number, items = self.some_version(model, which)
        may = items.get(f"VERSION#{number:010d}", {}).get("state") == "READY"
        self.call(lambda: self.registry.move_alias(model, alias, number, actor="me"), plan, may)

    @rule(model=MODELS, which=WHICH, plan=PLANS)
    def archive(self, model: str, which: int, plan: dict[int, Fault]) -> None:
        number, items = self.some_version(model, which)
        held = any(
            sk.startswith("ALIAS#") and item["version"] == number for sk, item in items.items()
        )
        may = (
            items.get(f"VERSION#{number:010d}", {}).get("state", "PENDING") != "PENDING"
            and not held
        )
        self.call(lambda: self.registry.archive(model, number, actor="me"), plan, may)

    @rule(model=MODELS, alias=ALIASES, asked=st.booleans(), plan=PLANS)
    def ask_or_roll_back(self, model: str, alias: str, asked: bool, plan: dict[int, Fault]) -> None:
        """I9: an alias that stands is answered, however much changes meanwhile."""
        if asked:
            may = f"ALIAS#{alias}" in self.cloud.rows().get(f"MODEL#{model}", {})
            self.call(lambda: self.registry.resolve(model, alias), plan, may, always=True)
        else:
            self.call(lambda: self.registry.rollback(model, alias, actor="me"), plan, may=False)

    def some_version(self, model: str, which: int) -> tuple[int, Mapping[str, Any]]:
        """One of the model's versions, or one more than there are, and the model's items."""
        items = self.cloud.rows().get(f"MODEL#{model}", {})
        return 1 + which % (1 + sum(sk.startswith("VERSION#") for sk in items)), items

    def call(
        self, work: Callable[[], Any], plan: Mapping[int, Fault], may: bool, always: bool = False
    ) -> None:
        """A person's call. If it `may`, it has to work when nothing interferes, or `always` if only time passes."""
        worker = Worker(self.cloud, work, plan)
        worker.run()
        clean = not plan or (always and set(plan.values()) <= {Fault.PAUSE})
        self.settle(Delivery(worker, (), False, clean, may))

    # --- the queue --------------------------------------------------------------------------------------------------

    @rule(model=MODELS, file=FILES, kind=st.sampled_from([GOOD, GOOD, DESCRIBED, BAD]), plan=PLANS)
    def upload_and_deliver(
        self, model: str, file: str, kind: bytes, plan: dict[int, Fault]
    ) -> None:
        self.upload(model, file, kind)
        self.receive([self.queue[-1]], False, plan)

    @rule(which=WHICH, newest=st.booleans(), also=st.booleans(), again=st.booleans(), plan=PLANS)
    @precondition(lambda self: self.queue)
    def deliver(
        self, which: int, newest: bool, also: bool, again: bool, plan: dict[int, Fault]
    ) -> None:
        """One message, or two, to a worker that meets the faults of `plan`."""
        first = self.queue[-1] if newest else pick(self.queue, which)
        batch = [first, *([pick(self.queue, which + 1)] if also else [])]
        self.receive(list({message.id: message for message in batch}.values()), again, plan)

    @rule(which=WHICH, number=CALLS)
    @precondition(lambda self: len(self.queue) > 1)
    def race(self, which: int, number: int) -> None:
        """Two messages, the second one registered before a call of the first."""
        first, second = pick(self.queue, which), pick(self.queue, which + 1)
        delivery = self.receive([first], False, {number: Fault.PAUSE})
        self.receive([second], False, {})
        self.go_on(delivery)

    @rule(which=WHICH, number=CALLS)
    @precondition(lambda self: self.queue)
    def deliver_twice_at_once(self, which: int, number: int) -> None:
        """One message to two workers, the second one done before a call of the first."""
        message = pick(self.queue, which)
        delivery = self.receive([message], True, {number: Fault.PAUSE})
        self.receive([message], True, {})
        self.go_on(delivery)

    @rule(which=WHICH)
    @precondition(lambda self: self.queue)
    def lose(self, which: int) -> None:
        self.queue.remove(pick(self.queue, which))

    @rule(which=WHICH, order=ORDERS)
    @precondition(lambda self: self.paused)
    def resume(self, which: int, order: Fault | None) -> None:
        """A worker that stopped goes on, with whatever happens to its call."""
        self.go_on(pick(self.paused, which), order)

    def go_on(self, delivery: Delivery, order: Fault | None = None) -> None:
        if delivery in self.paused:
            self.paused.remove(delivery)
            delivery.worker.run(order)
            self.settle(delivery, clean=order is None)

    def receive(self, messages: list[Message], again: bool, plan: Mapping[int, Fault]) -> Delivery:
        """SQS hands messages to a worker that meets the faults of `plan`."""
        records = [
            {
                "messageId": message.id,
                "eventSource": "aws:sqs",
                "body": message.body,
                "attributes": {},
            }
            for message in messages
        ]
        handler = self.environment()  # one each: an environment has one batch at a time
        worker = Worker(self.cloud, lambda: handler({"Records": records}, Context()), plan)
        clean = all(fault is Fault.PAUSE for fault in plan.values())
        delivery = Delivery(worker, tuple(messages), again, clean)
        worker.run()
        self.settle(delivery)
        return delivery

    def settle(self, delivery: Delivery, clean: bool = True) -> None:
        """What SQS does with a batch whose worker came to an end."""
        worker = delivery.worker
        if worker.state == "paused":
            self.paused.append(delivery)
            return
        if worker.error is not None and not isinstance(worker.error, PlatformError):
            self.fail(
                f"{type(worker.error).__name__} came out: {worker.error}; calls: {worker.calls}"
            )
        if (
            worker.error is not None
            and clean
            and delivery.clean
            and (delivery.may or delivery.messages)
        ):
            self.fail(f"nothing failed, and {type(worker.error).__name__} came out: {worker.error}")
        if worker.state == "died" or worker.error or not delivery.messages:
            return
        failed = {failure["itemIdentifier"] for failure in worker.result["batchItemFailures"]}
        if failed and clean and delivery.clean:
            self.fail(
                f"nothing failed, and {failed} come again: {self.put_off!r}; calls: {worker.calls}"
            )
        for message in delivery.messages:
            if message.id not in failed:
                self.expect_done(message.upload)
                if not delivery.again and message in self.queue:
                    self.queue.remove(message)

    def expect_done(self, sent: Sent) -> None:
        """I6: a message that was acknowledged left a finished version behind."""
        version = self.version_of(sent)
        if version is None or version["state"] == "PENDING":
            self.fail(f"I6: acknowledged, and there is {version}")

    # --- checking ---------------------------------------------------------------------------------------------------

    def version_of(self, sent: Sent) -> Mapping[str, Any] | None:
        items = self.cloud.rows().get(f"MODEL#{sent.model}", {})
        at = (sent.stored.key, sent.stored.version_id)
        found = [
            item
            for sk, item in items.items()
            if sk.startswith("VERSION#")
            and (item["source"]["key"], item["source"]["object_version"]) == at
        ]
        return found[0] if found else None

    def remember(self, error: PlatformError) -> None:
        self.put_off = error

    def fail(self, why: str) -> None:
        self.violation = self.violation or AssertionError(why)

    def check(self) -> None:
        """Remember the first violation: an exception here would be one more fault of the code's AWS."""
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
        """Everything comes to its end. I6: nothing is PENDING; what is valid is READY, what is not REJECTED."""
        while self.paused:
            self.go_on(self.paused[0])
        for _ in range(4):
            for message in list(self.queue):
                self.receive([message], False, {})
            self.cloud.time += 30 * HOUR
            self.call(self.reconciler.run, {}, may=True)
            self.take_sent()
            if not self.queue:
                break
        self.everything_holds()
        assert not self.queue, "I6: the reconciler sends and sends"
        for at, sent in self.checker.sent.items():
            version = self.version_of(sent)
            if version is None:
                assert at in self.checker.gone or self.is_marked(sent), (
                    f"I6: {at} became no version"
                )
            elif at not in self.checker.gone and version["attempts"] < DEATHS:
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
            f"blobs that nobody has: {left - records}; that are gone: {records - left}"
        )

    def is_marked(self, sent: Sent) -> bool:
        return self.cloud.objects(self.cloud.artifacts)[sent.stored.key][-1].content is None


def pick(things: list[Any], which: int) -> Any:
    return things[which % len(things)]
