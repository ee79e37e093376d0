# Written by scripts/sync_client.py from mayfly/client/aio: change that.
"""Releases of one model: versions, aliases, traffic, canary, usage, audit records."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mayfly.client.http1.messages import listed, with_query
from mayfly.client.records import (
    AliasMove,
    AliasRecord,
    AuditRecord,
    CanaryRecord,
    DiffRecord,
    ModelRecord,
    TrafficRecord,
    UsageRecord,
    VersionRecord,
)
from mayfly.client.sample import SampleRecord
from mayfly.client.sync.caller import Caller

PROD = "prod"


class Releases:
    """Changes and records of one model."""

    def __init__(self, caller: Caller, name: str) -> None:
        self._caller = caller
        self.name = name

    def info(self) -> ModelRecord:
        """Return description, policy, state and aliases."""
        return ModelRecord.read(self._caller.get(self._path()))

    def describe(
        self,
        description: str | None = None,
        *,
        policy: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
    ) -> ModelRecord:
        """Change description or release policy; what is None stays."""
        body = _without_none(
            description=description, policy=policy, expected_revision=expected_revision
        )
        return ModelRecord.read(self._caller.change("PATCH", self._path(), body))

    def archive(self) -> ModelRecord:
        """Take the model out of service; `restore` puts it back."""
        return ModelRecord.read(self._caller.change("POST", self._path("archive")))

    def restore(self) -> ModelRecord:
        """Put the archived model back into service."""
        return ModelRecord.read(self._caller.change("POST", self._path("restore")))

    def versions(self, state: str = "") -> Iterator[VersionRecord]:
        """Yield the versions, newest first; states are READY, REJECTED, ARCHIVED, PENDING."""
        path = with_query(self._path("versions"), state=state)
        for document in self._caller.pages(path, "versions"):
            yield VersionRecord.read({"model": self.name, **document})

    def card(self, version: int) -> VersionRecord:
        """Return everything about one version."""
        return VersionRecord.read(self._caller.get(self._path("versions", version)))

    def sample(self, version: int) -> SampleRecord:
        """Return a request that the version answers, with its reply.

        Raises:
            NotFound: the version has no sample.
        """
        return SampleRecord.read(self._caller.get(self._path("versions", version, "sample")))

    def diff(self, old: int, new: int) -> DiffRecord:
        """Return the differences of two versions."""
        path = with_query(self._path("diff"), **{"from": old, "to": new})
        return DiffRecord.read(self._caller.get(path))

    def note(self, version: int, note: str) -> VersionRecord:
        """Replace the note of a version."""
        path = self._path("versions", version)
        return VersionRecord.read(self._caller.change("PATCH", path, {"note": note}))

    def approve(self, version: int, note: str = "") -> VersionRecord:
        """Approve a READY version."""
        return self._judge(version, "approve", note)

    def reject(self, version: int, note: str = "") -> VersionRecord:
        """Reject a READY version: nothing serves it any more."""
        return self._judge(version, "reject", note)

    def archive_version(self, version: int, note: str = "") -> VersionRecord:
        """Archive a version for good."""
        return self._judge(version, "archive", note)

    def aliases(self) -> list[AliasRecord]:
        """Return the aliases by name."""
        document = self._caller.get(self._path("aliases"))
        return [AliasRecord.read(alias) for alias in listed(document, "aliases")]

    def alias(self, alias: str = PROD) -> AliasRecord:
        """Return an alias."""
        return AliasRecord.read(self._caller.get(self._path("aliases", alias)))

    def history(self, alias: str = PROD) -> Iterator[AliasMove]:
        """Yield the changes of an alias, newest first."""
        for document in self._caller.pages(self._path("aliases", alias, "history"), "history"):
            yield AliasMove.read(document)

    def promote(
        self, version: int, alias: str = PROD, *, expected_revision: int | None = None
    ) -> AliasRecord:
        """Point an alias at a version.

        Raises:
            Conflict: the version is not READY, or the alias has another revision.
        """
        body = _without_none(version=version, expected_revision=expected_revision)
        path = self._path("aliases", alias)
        return AliasRecord.read(self._caller.change("PUT", path, body))

    def rollback(self, alias: str = PROD, *, expected_revision: int | None = None) -> AliasRecord:
        """Point an alias back at the version before its last move."""
        body = _without_none(expected_revision=expected_revision)
        path = self._path("aliases", alias, "rollback")
        return AliasRecord.read(self._caller.change("POST", path, body))

    def delete_alias(self, alias: str) -> None:
        """Delete an alias; prod and latest stay."""
        self._caller.change("DELETE", self._path("aliases", alias))

    def traffic(self, alias: str = PROD) -> TrafficRecord:
        """Return the split of an alias's requests."""
        path = self._path("aliases", alias, "traffic")
        return self._traffic(alias, self._caller.get(path))

    def set_traffic(
        self,
        weights: Mapping[int, float],
        alias: str = PROD,
        *,
        shadow: tuple[int, float] | None = None,
        sticky: str = "auto",
        expected_revision: int | None = None,
    ) -> TrafficRecord:
        """Split an alias's requests, in per cent, e.g. {7: 90, 8: 10}.

        `shadow` is a version that gets copies, and their share in per cent."""
        body: dict[str, Any] = {
            "weights": [
                {"version": version, "weight": weight} for version, weight in weights.items()
            ],
            "sticky": sticky,
        }
        if shadow is not None:
            body["shadow"] = {"version": shadow[0], "percent": shadow[1]}
        if expected_revision is not None:
            body["expected_revision"] = expected_revision
        path = self._path("aliases", alias, "traffic")
        return self._traffic(alias, self._caller.change("PUT", path, body))

    def clear_traffic(self, alias: str = PROD) -> TrafficRecord:
        """Send all requests to the alias's own version again."""
        path = self._path("aliases", alias, "traffic")
        return self._traffic(alias, self._caller.change("DELETE", path))

    def canary(self, alias: str = PROD) -> CanaryRecord:
        """Return the canary of an alias, with the verdict so far."""
        return CanaryRecord.read(self._caller.get(self._path("aliases", alias, "canary")))

    def start_canary(
        self,
        version: int,
        alias: str = PROD,
        *,
        steps: Sequence[int] | None = None,
        bake_seconds: int | None = None,
        min_samples: int | None = None,
        **settings: Any,
    ) -> CanaryRecord:
        """Start to give a version growing shares of the requests.

        `steps` are per cent; found harm goes back to the stable version."""
        body = _without_none(
            version=version,
            steps=None if steps is None else list(steps),
            bake_seconds=bake_seconds,
            min_samples=min_samples,
            **settings,
        )
        path = self._path("aliases", alias, "canary")
        return CanaryRecord.read(self._caller.change("POST", path, body))

    def stop_canary(self, alias: str = PROD) -> CanaryRecord:
        """Stop the canary and go back."""
        path = self._path("aliases", alias, "canary")
        return CanaryRecord.read(self._caller.change("DELETE", path))

    def finish_canary(self, alias: str = PROD) -> CanaryRecord:
        """Promote the canary's version now."""
        path = self._path("aliases", alias, "canary", "promote")
        return CanaryRecord.read(self._caller.change("POST", path))

    def usage(self, by: str = "version", *, first: str = "", last: str = "") -> UsageRecord:
        """Return the requests by version, alias, key, hour or day.

        `first` and `last` are days in UTC, e.g. 2026-11-22; by default the last seven.
        """
        path = with_query(self._path("usage"), **{"from": first, "to": last, "by": by})
        return UsageRecord.read(self._caller.get(path))

    def audit(self, *, actor: str = "", action: str = "") -> Iterator[AuditRecord]:
        """Yield the model's audit records, newest first."""
        path = with_query(self._path("audit"), actor=actor, action=action)
        for document in self._caller.pages(path, "records"):
            yield AuditRecord.read(document)

    def _judge(self, version: int, decision: str, note: str) -> VersionRecord:
        path = self._path("versions", version, decision)
        return VersionRecord.read(self._caller.change("POST", path, {"note": note}))

    def _traffic(self, alias: str, document: Mapping[str, Any]) -> TrafficRecord:
        return TrafficRecord.read({"model": self.name, "alias": alias, **document})

    def _path(self, *parts: str | int) -> str:
        quoted = (quote(str(part), safe="") for part in ("models", self.name, *parts))
        return "/api/v1/" + "/".join(quoted)


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
