"""Model version and its parts: state, source, blobs, alias, rejection reason."""

import hashlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from functions.core.protocol.signature import Signature
from functions.core.records import field, record
from functions.core.registry.table import Item

if TYPE_CHECKING:  # an infer function that serves no split starts without it
    from functions.core.traffic.traffic import Traffic

DIGEST_BYTES = 32  # length of a BLAKE3 digest


class State(StrEnum):
    """Model version states: PENDING, then READY or REJECTED, then ARCHIVED."""

    PENDING = "PENDING"
    READY = "READY"
    REJECTED = "REJECTED"
    ARCHIVED = "ARCHIVED"


@record
class Source:
    """Uploaded S3 object version that a model version is made from.

    `object_version` is S3's VersionId, or the ETag in a bucket without versioning. It is empty
    in a note about an upload whose event named no version.
    """

    bucket: str
    key: str
    object_version: str

    @property
    def id(self) -> str:
        """Idempotency key: a SHA-256 equal for all events of one upload."""
        address = f"{self.bucket}/{self.key}?{self.object_version}"
        return hashlib.sha256(address.encode()).hexdigest()


# True if storage wrote the first after the second, a version of the same key; None if unknown.
IsNewer = Callable[[Source, Source], bool | None]


@record
class Blob:
    """Stored file of a model version: name, SHA-256 and size.

    A file is stored under its SHA-256. Versions with equal files share a blob. Digests of its
    ranges let each be verified as it arrives; they do not tell blobs apart.
    """

    name: str
    sha256: str
    size_bytes: int
    range_bytes: int = field(default=0, compare=False)  # the last range may be shorter
    range_digests: bytes = field(default=b"", compare=False, repr=False)  # BLAKE3 of each range

    def __hash__(self) -> int:
        return hash(self.sha256)  # kept by the string; every request looks files up

    @property
    def key(self) -> str:
        """S3 key of the blob in the serving bucket."""
        return f"blobs/{self.sha256[:2]}/{self.sha256}"

    def range_digest(self, start: int) -> bytes:
        """Return the BLAKE3 of the range at `start`; empty if unknown."""
        at = start // self.range_bytes * DIGEST_BYTES
        return self.range_digests[at : at + DIGEST_BYTES]


@record
class Reason:
    """Stable code and sentence that say why an upload failed."""

    code: str
    message: str


@record
class Version:
    """Registered model version: state, source, files, signature and measurements.

    The first seven fields are known from the first claim on, `finished_at`, `written_at` and
    `sequencer` once the registration has ended, `reason` if it was rejected, and the rest, except
    `damaged`, `approval` and `note`, once it is READY.
    """

    model: str
    number: int
    state: State
    source: Source
    created_at: str
    attempts: int = 1  # claims: the first one, and one for each later delivery while PENDING
    claimed_at: str = ""  # time of the latest claim
    finished_at: str | None = None
    reason: Reason | None = None
    files: tuple[Blob, ...] = ()  # the model file, then its external weights
    manifest: Blob | None = None
    signature: Signature | None = None
    graph: Mapping[str, Any] = field(default_factory=dict)  # opset, ir_version, producer
    card: Mapping[str, Any] = field(default_factory=dict)  # manifest's strings and numbers
    ignored: tuple[str, ...] = ()  # names of archive members that were not read
    plan: Mapping[str, Any] = field(default_factory=dict)  # fields of `load_plan.Plan`
    measured: Mapping[str, float] = field(default_factory=dict)
    memory_mb: int = 0  # measured need of a process that serves the version, or 0
    notes: tuple[str, ...] = ()  # choices that registration made, each with its reason
    sample: Blob | None = None  # example request with its response
    language: Mapping[str, Any] | None = None  # fields of `language.spec.LanguageSpec`
    assets: tuple[Blob, ...] = ()  # tokenizer.json, chat_template.jinja, … of a language model
    damaged: str | None = None  # missing or altered blob that the reconciler found
    approval: Mapping[str, Any] | None = None  # decision, by, at and note of a person
    note: str = ""  # remark of a person
    written_at: str = ""  # S3's LastModified of the upload: whole seconds, in ISO 8601
    sequencer: str = ""  # hexadecimal order of S3's events of one key, if the event had it

    @property
    def digest(self) -> str:
        """SHA-256 of the version's .onnx file."""
        return self.files[0].sha256

    @property
    def size_bytes(self) -> int:
        """Total size of the model file and its weights, in bytes."""
        return sum(blob.size_bytes for blob in self.files)

    @property
    def listed(self) -> str:
        """Sort key in the listing of all versions: model, then number."""
        return f"{self.model}#{self.number:010d}"

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Distinct blobs of the version: model, weights, assets, manifest and sample.

        Every stored file has to be in here: the reconciler deletes blobs without a reference.
        """
        extra = (blob for blob in (self.manifest, self.sample) if blob)
        return tuple({blob.sha256: blob for blob in (*self.files, *self.assets, *extra)}.values())

    def is_written_after(self, rival: "Version", is_newer: IsNewer) -> bool:
        """Return True if this version's S3 object was written after another's.

        S3's LastModified decides: the time of the write, or of a multipart upload's beginning, in
        whole seconds. In one second, versions of one key follow the sequencers of their events or,
        if one lacks it, S3's listing; different keys follow their names. So the order does not
        depend on when or how often the uploads are registered.
        """
        if self._written != rival._written:
            return self._written > rival._written
        if self.sequencer and rival.sequencer:
            return _padded(self.sequencer) > _padded(rival.sequencer)
        newer = is_newer(self.source, rival.source)
        return self.number > rival.number if newer is None else newer

    @property
    def _written(self) -> tuple[str, str, str]:
        """Time and S3 address of the upload, used to order versions.

        Records of earlier releases lack the time; their creation time replaces it.
        """
        return self.written_at or self.created_at, self.source.bucket, self.source.key


def _padded(sequencer: str) -> str:
    """Right-pad an S3 event sequencer with zeros, as AWS prescribes for comparison."""
    return sequencer.upper().ljust(64, "0")


@record
class Alias:
    """Model alias, e.g. prod: a name that points at a version.

    `revision` counts its changes, so that a caller can say which state it has seen. `traffic`
    splits its requests; without one, `version` gets them all.
    """

    name: str
    version: int
    previous: int | None
    revision: int
    traffic: "Traffic | None" = None

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions that the alias names: its own and those of its traffic."""
        return self.traffic.versions if self.traffic else (self.version,)


@record
class Failure:
    """Note of an upload's failed registration: reason, attempts and time."""

    source: Source
    reason: Reason  # reason of the latest failure
    attempts: int  # failures so far
    at: str  # time of the latest failure


@record
class Change:
    """Content of an audit record: actor, action, and values before and after."""

    action: str
    actor: str
    version: int | None  # None if the change concerns the whole model
    before: Item
    after: Item


@record
class Resolved:
    """Model version that a request resolved to, with the alias if any.

    With a traffic object, `variant` is "stable" or "candidate", and `sides` holds what each version
    of the split resolves to. Copies of the stable version's requests go to `shadow`.
    """

    version: Version
    alias: str | None
    traffic: "Traffic | None" = None
    variant: str = ""
    sides: "Mapping[int, Resolved]" = field(default_factory=dict, compare=False, repr=False)
    shadow: Version | None = None

    def side_of(self, user: str | None, key_id: str, request_id: str) -> "Resolved":
        """Return the side of the split on which a request falls.

        `user` is the header x-mayfly-user, `key_id` that of the access key, if any.
        """
        if self.traffic is None or self.alias is None:
            return self
        from functions.core.traffic.buckets import bucket_of  # see above

        caller = self.traffic.caller_of(user, key_id) or request_id
        bucket = bucket_of(self.version.model, self.alias, caller)
        return self.sides.get(self.traffic.version_for(bucket), self)


@record
class Release:
    """Decision of a model's policy about a READY version, with its reason."""

    reason: str
    moves: bool = False  # `prod` points at the version from now on
    traffic: "Traffic | None" = None  # or a canary gives the version a share of `prod`


# Returns the decision of a policy on a READY version, beside that at `prod` and the alias itself.
ReleaseRule = Callable[[Mapping[str, Any], Version, Version, Alias], Release]
