"""Versions of a model and their parts: state, source, blobs, rejection reason."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from functions.core.protocol.signature import Signature
from functions.core.registry.table import Item


class State(StrEnum):
    """Where a version is in its life."""

    PENDING = "PENDING"
    READY = "READY"
    REJECTED = "REJECTED"
    ARCHIVED = "ARCHIVED"


@dataclass(frozen=True, slots=True)
class Source:
    """The exact object that a version was uploaded as.

    `object_version` is S3's VersionId, or the ETag in a bucket without versions.
    """

    bucket: str
    key: str
    object_version: str

    @property
    def id(self) -> str:
        """The same for every event about this object version, and for no other."""
        return hashlib.sha256(
            f"{self.bucket}/{self.key}?{self.object_version}".encode()
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a version, stored once under its digest."""

    name: str
    sha256: str
    size_bytes: int

    @property
    def key(self) -> str:
        return f"blobs/{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a version was rejected: a stable code and a sentence that says what to change."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one model. What stands below `created_at` is known once it is READY."""

    model: str
    number: int
    state: State
    source: Source
    created_at: str
    finished_at: str | None = None
    reason: Reason | None = None
    files: tuple[Blob, ...] = ()  # the first is the model, the others its weights
    manifest: Blob | None = None
    signature: Signature | None = None
    graph: Mapping[str, Any] = field(default_factory=dict)  # opset, ir_version, producer
    card: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the manifest says about training: strings and numbers
    ignored: tuple[str, ...] = ()  # members of the package that were never opened
    plan: Mapping[str, Any] = field(default_factory=dict)  # how infer loads it: core.workbench.Plan
    measured: Mapping[str, float] = field(default_factory=dict)
    memory_mb: int = 0  # what the process that serves it needs; 0 where nobody measured
    notes: tuple[str, ...] = ()  # what was chosen at registration and why
    sample: Blob | None = None  # a request with its response
    attempts: int = 1  # claims: 1, and 1 more each time the upload came again before the end
    claimed_at: str = ""  # the last of them
    damaged: str | None = None  # what the reconciler found missing or wrong in storage

    @property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        return self.files[0].sha256

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.files)

    @property
    def listed(self) -> str:
        """Its place in the listing: by model, then by number."""
        return f"{self.model}#{self.number:010d}"

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything of this version in the serving bucket, each once. What is not here is collected one day."""
        every = (*self.files, *(blob for blob in (self.manifest, self.sample) if blob))
        return tuple({blob.sha256: blob for blob in every}.values())


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points at a version. `revision` counts its moves: a caller names the one it saw."""

    name: str
    version: int
    previous: int | None
    revision: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an upload was last put off, and how often it was."""

    source: Source  # `object_version` is empty where the event named none
    reason: Reason
    attempts: int
    at: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction does, for its audit record."""

    action: str
    actor: str
    version: int | None
    before: Item
    after: Item


@dataclass(frozen=True, slots=True)
class Resolved:
    """A version, and the alias it was asked for by."""

    version: Version
    alias: str | None
