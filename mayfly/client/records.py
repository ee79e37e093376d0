"""Documents of the control plane as typed values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from mayfly.client.http1.messages import listed

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Record:
    """Document with its fields as attributes; `raw` has all of it."""

    raw: Document = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, document: Document) -> Self:
        """Build a record from a document, with defaults for missing fields."""
        names = {column.name for column in fields(cls)} - {"raw"}
        return cls(raw=document, **{name: document[name] for name in names & set(document)})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class ModelRecord(Record):
    """Model with its aliases and newest version."""

    name: str = ""
    state: str = ""
    description: str = ""
    policy: Document = field(default_factory=dict)
    revision: int = 0
    versions: int = 0
    newest: Document | None = None
    aliases: Mapping[str, int] | None = None
    created_at: str | None = None
    changed_at: str | None = None
    archived_at: str | None = None
    serving: bool = True

    def __str__(self) -> str:
        aliases = ", ".join(f"{name} → {number}" for name, number in (self.aliases or {}).items())
        return f"{self.name} {self.state} {aliases or 'no alias'}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class VersionRecord(Record):
    """Version; its whole card from `card()`, a part of it in lists."""

    model: str = ""
    version: int = 0
    state: str = ""
    reason: Document | None = None
    created_at: str = ""
    finished_at: str | None = None
    size_bytes: int = 0
    memory_mb: int = 0
    task: str | None = None
    metrics: Document = field(default_factory=dict)
    aliases: list[str] | None = None
    signature: Document | None = None
    baselines: Document = field(default_factory=dict)
    evaluation: Document = field(default_factory=dict)
    measured: Document = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    note: str = ""
    damaged: str | None = None

    def __str__(self) -> str:
        why = f" {self.reason['message']}" if self.reason else ""
        return f"{self.model}:{self.version} {self.state}{why}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class DiffRecord(Record):
    """Differences of two versions; equal parts are left out."""

    model: str = ""
    from_version: int = 0
    to_version: int = 0
    differences: Document = field(default_factory=dict)

    def __str__(self) -> str:
        parts = ", ".join(self.differences) or "no difference"
        return f"{self.model}:{self.from_version} → {self.to_version} {parts}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class AliasRecord(Record):
    """Alias with the version it points at; `revision` counts its changes."""

    model: str = ""
    alias: str = ""
    version: int = 0
    previous: int | None = None
    revision: int = 0
    traffic: Document | None = None

    def __str__(self) -> str:
        return f"{self.model} {self.alias} → {self.version} (revision {self.revision})"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class AliasMove(Record):
    """Change of an alias."""

    at: str = ""
    actor: str = ""
    action: str = ""
    from_version: int | None = None
    to_version: int | None = None

    def __str__(self) -> str:
        return f"{self.at} {self.from_version} → {self.to_version} by {self.actor}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class TrafficRecord(Record):
    """Split of an alias's requests: weights in per cent, shadow, canary."""

    model: str = ""
    alias: str = ""
    weights: list[Document] = field(default_factory=list)
    shadow: Document | None = None
    sticky: str = ""
    canary: Document | None = None
    agreement: Document | None = None
    revision: int = 0

    def __str__(self) -> str:
        shares = ", ".join(f"{row['weight']:g} % {row['version']}" for row in self.weights)
        shadow = self.shadow
        copies = f", shadow {shadow['version']} of {shadow['percent']:g} %" if shadow else ""
        counts = self.agreement
        if counts and counts["compared"]:
            copies += f" ({counts['differing']} of {counts['compared']} answers differ)"
        return f"{self.model} {self.alias}: {shares}{copies}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class CanaryRecord(Record):
    """Canary of an alias, running or latest; `verdict` is in words."""

    model: str = ""
    alias: str = ""
    id: str = ""
    state: str = ""
    version: int = 0
    stable_version: int = 0
    revision: int = 0
    verdict: str = ""
    step: int | None = None
    steps: list[int] | None = None
    step_seconds_left: int | None = None
    seconds_left: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    stable: Document | None = None
    candidate: Document | None = None

    def __str__(self) -> str:
        at = f" step {self.step} of {len(self.steps)}" if self.step and self.steps else ""
        return f"{self.model} {self.alias} canary {self.version} {self.state}{at}: {self.verdict}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class UsageRow(Record):
    """Sums over the requests of one group, e.g. a version."""

    model: str | None = None
    version: int | None = None
    alias: str | None = None
    key: str | None = None
    hour: str | None = None
    day: str | None = None
    requests: int = 0
    errors: int = 0
    refused: int = 0
    cold_starts: int = 0
    latency_ms: Document = field(default_factory=dict)
    cost_usd: float = 0.0
    cost_usd_per_1000: float | None = None

    def __str__(self) -> str:
        names = (self.model, self.version, self.alias, self.key, self.hour, self.day)
        group = " ".join(str(name) for name in names if name is not None)
        return f"{group} {self.requests} requests, {self.errors} errors, ${self.cost_usd:.4f}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class UsageRecord(Record):
    """Usage between two days, both included: rows and their sum."""

    from_day: str = ""
    to_day: str = ""
    by: str = ""
    rows: list[UsageRow] = field(default_factory=list)
    total: UsageRow = field(default_factory=UsageRow)
    prices: Document = field(default_factory=dict)

    @classmethod
    def read(cls, document: Document) -> Self:
        """Build a record from a document, with typed rows."""
        rows = [UsageRow.read(row) for row in listed(document, "rows")]
        total = UsageRow.read(document.get("total") or {})
        names = {"from_day", "to_day", "by", "prices"} & set(document)
        return cls(raw=document, rows=rows, total=total, **{n: document[n] for n in names})

    def __str__(self) -> str:
        return f"{self.from_day} to {self.to_day} by {self.by}: {self.total}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class AuditRecord(Record):
    """Change: who did what to which model or key."""

    at: str = ""
    actor: str = ""
    action: str = ""
    model: str | None = None
    key: str | None = None
    version: int | None = None
    revision: int = 0
    before: Document = field(default_factory=dict)
    after: Document = field(default_factory=dict)

    def __str__(self) -> str:
        subject = self.model or self.key or ""
        return f"{self.at} {self.actor} {self.action} {subject}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class UploadRecord(Record):
    """Upload with its state; `done` means that nothing more happens by itself."""

    id: str = ""
    model: str = ""
    file: str = ""
    package: str | None = None
    key: str = ""
    state: str = ""
    done: bool = False
    next_step: str = ""
    version: int | None = None
    attempts: int = 0
    reason: Document | None = None
    size_bytes: int | None = None
    created_at: str = ""

    def __str__(self) -> str:
        why = f": {self.reason['message']}" if self.reason else ""
        number = f":{self.version}" if self.version else ""
        return f"{self.model}{number} {self.state}{why}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class DeadLetter(Record):
    """Upload event that failed too often."""

    id: str = ""
    sent_at: str = ""
    key: str = ""
    model: str | None = None
    version: int | None = None
    code: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.key} {self.reason}"


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class KeyRecord(Record):
    """Access key; `key` is its text, only when it is made."""

    id: str = ""
    name: str = ""
    state: str = ""
    scopes: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    created_at: str = ""
    expires_at: str | None = None
    monthly_requests: int | None = None
    max_tokens: int | None = None
    previous_valid_until: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.id} {self.name} {self.state} {','.join(self.scopes)}"
