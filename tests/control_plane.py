"""Control plane in memory: the manage function over fakes."""

import io
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from aws_lambda_powertools.logging import Logger

from functions.adapters.clock import iso
from functions.core.access.auth import Auth
from functions.core.access.cors import parse_origins
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.access.key_store import KeyStore
from functions.core.canary.canaries import Canaries
from functions.core.canary.judge import Arm
from functions.core.catalog.catalog import Catalog
from functions.core.catalog.decisions import Decisions
from functions.core.catalog.trail import Trail
from functions.core.errors import PlatformError
from functions.core.idempotency import KeyReused, StillRunning, StoredReply
from functions.core.intake.upload_log import UploadLog
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.registry.version import Blob, Source, Version
from functions.core.usage.meter import Meter
from functions.core.usage.prices import make_tariff
from functions.manage.caller import Entrance
from functions.manage.console.site import Console
from functions.manage.handler import ManageHandler
from functions.manage.keys import KeysApi
from functions.manage.parts import Parts, make_router
from functions.manage.repeats import Repeats
from functions.manage.routes.canaries import CanaryParts
from functions.manage.routes.uploads import Uploads
from functions.manage.usage import UsageApi
from tests.data_plane import BrokenTable, Client, Clock, Context, Reply
from tests.unit.functions.registry.versions import ready, rejected

BUCKET = "uploads"
NOW_S = 1_795_335_330.0  # 2026-11-22T08:15:30Z


class FakePuts:
    """Signer that signs nothing."""

    def sign(self, key: str, size_bytes: int, sha256: str) -> tuple[str, dict[str, str]]:
        return f"https://{BUCKET}.example/{key}?signed", {"content-length": str(size_bytes)}


class FakeReconcile:
    """Reconcile function that answers from `replies` and keeps its events."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.started: list[Mapping[str, Any]] = []
        self.reply: dict[str, Any] | PlatformError = {"dead_letters": [], "task": "t"}

    def call(self, event: Mapping[str, Any]) -> dict[str, Any]:
        self.events.append(event)
        if isinstance(self.reply, PlatformError):
            raise self.reply
        return self.reply

    def start(self, event: Mapping[str, Any]) -> None:
        self.started.append(event)


class MemoryReplies:
    """Stored replies in a dictionary; `running` are keys whose first request has not ended."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], tuple[str, StoredReply]] = {}
        self.running: set[tuple[str, str]] = set()

    def once(
        self,
        key: tuple[str, str],
        request: str,
        action: Callable[[], StoredReply],
        remaining_ms: int,
    ) -> StoredReply:
        if key in self.running:
            raise StillRunning
        if key not in self.stored:
            self.stored[key] = request, action()
        first, reply = self.stored[key]
        if first != request:
            raise KeyReused
        return reply


class Samples:
    """Stored sample requests, by SHA-256."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] = {}

    def read(self, blob: Blob) -> Any:
        return self.stored[blob.sha256]


class ControlPlane:
    """Execution environment of the manage function, over a table in memory."""

    def __init__(self, auth: Auth = Auth.KEYS, table: BrokenTable | None = None) -> None:
        self.table, self.clock, self.log = table or BrokenTable(), Clock(), io.StringIO()
        # Loggers of one service share the stream of the first.
        logger = Logger(service=f"manage-{uuid.uuid4()}", stream=self.log)
        writer = {
            "table": self.table,
            "now": self._now,
            "pause": lambda _: None,
            "audit_log": lambda record: logger.info("audit", audit=dict(record)),
        }
        self.registry, self.releases = Registry(**writer), Releases(**writer)
        gate = Gate(partial(read_grant, self.table), 60.0, self.clock, lambda: NOW_S)
        tariff = make_tariff(
            json.loads(Path("functions/manage/prices.json").read_text()),
            "eu-nowhere-1",
            "x86_64",
            memory_mb=1024,
            tmp_mb=512,
            provisioned=0,
        )
        self.launches: dict[str, Any] = {}
        self.arms = Arm(), Arm()
        self.canaries = Canaries(self.releases, self._now)
        canary = CanaryParts(
            self.canaries,
            self.launches.__setitem__,
            lambda *_: self.arms,
            self._now,
        )
        self.samples = Samples()
        usage = UsageApi(self.table, tariff, 10, lambda: NOW_S)
        self.stored: set[str] = set()  # keys in the artifacts bucket
        self.reconcile = FakeReconcile()
        parts = Parts(
            keys=KeysApi(KeyStore(**writer), lambda: NOW_S, usage.month_of_key),
            catalog=Catalog(self.table),
            trail=Trail(self.table),
            releases=self.releases,
            decisions=Decisions(**writer),
            canary=canary,
            usage=usage,
            uploads=Uploads(
                UploadLog(self.table, self.registry, BUCKET, self._now, self.stored.__contains__),
                FakePuts(),
                lambda: self._now_plus(900),
            ),
            reconcile=self.reconcile,
            samples=self.samples,
        )
        self.router = make_router(parts)
        cors = parse_origins("https://app.example.org")
        self.replies = MemoryReplies()
        repeats = Repeats(self.replies)
        entrance = Entrance(auth, gate)
        console = Console(lambda: "https://uploads.example.org")
        self.handler = ManageHandler(parts, self.router, entrance, repeats, console, cors, logger)
        self.client = Client(self.handler)

    def _now(self) -> str:
        return self._now_plus(0)

    def _now_plus(self, seconds: float) -> str:
        return iso(round((NOW_S + self.clock.now + seconds) * 1000))

    def meter(self, now_s: float) -> Meter:
        """Return the meter of an environment of infer at a Unix time."""
        return Meter(self.table, now=lambda: now_s)

    def invoke(self, operation: object, **fields: Any) -> Any:
        """Invoke the function directly, as `aws lambda invoke` does."""
        return self.handler({"operation": operation, **fields}, Context())

    def refuse(self, model: str) -> Version:
        """Upload the next version of a model, which registration rejects."""
        source = Source("uploads", f"models/{model}/{uuid.uuid4()}.onnx", "v1")
        return self.registry.finish(rejected(self.registry.claim(model, source)))

    def register(self, model: str, **fields: Any) -> Version:
        """Upload the next version of a model, which becomes READY."""
        self.clock.now += 1
        source = Source("uploads", f"models/{model}/{uuid.uuid4()}.onnx", "v1")
        version = ready(self.registry.claim(model, source))
        return self.registry.finish(replace(version, written_at=self._now(), **fields))

    def create(self, *scopes: str, **fields: Any) -> dict[str, Any]:
        """Create a key by direct invocation."""
        request = {"name": "ci", "scopes": list(scopes) or ["admin"], **fields}
        return dict(self.invoke("create-key", **request))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def error(reply: Reply) -> tuple[int, str, str]:
    """Return status, code and text of an error reply, whose shape is checked."""
    document = reply.json
    assert set(document) - {"details", "revision"} == {"error", "code", "request_id"}
    assert document["request_id"] == reply.headers["x-request-id"] == "the-request"
    assert len(document["error"]) <= 300
    assert document["error"].isprintable()
    return reply.status, document["code"], document["error"]
