"""Invariants of the stored state, checked after every write.

The checks read table and buckets directly, without the code under test.

I1  each upload is exactly one version, and each version belongs to an upload
I2  versions are numbered 1..n without a gap, and n + 1 is next
I3  a READY version's blobs exist, match their address, and are the bytes of that object version
I4  an alias points at a READY version, and its traffic names only such
I5  PENDING becomes READY or REJECTED, these become ARCHIVED; nothing else of a finished version
    changes
I6  every upload ends: no version stays PENDING once all events were delivered (see machine.py)
I7  audit records are numbered 1..revision without a gap and never change; replaying them gives
    the stored state
I8  `latest` is the READY version whose upload was written last, and never moves back; `prod`
    moves by itself once, to the first version that becomes READY
    A move ends the alias's split; a rollback during a split ends it and moves nothing
I9  an existing alias can always be resolved (see machine.py)
I10 an invalid upload is REJECTED with a reason, never READY; nothing else is stored
I11 META holds the aliases and the newest version that lists of models show
"""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from tests.stateful.cloud import Cloud, Stored

PARTITIONS = {"MODEL", "BLOB", "RECONCILE", "UPLOAD"}
DEATHS = 5  # workers that one upload may kill before it is rejected
Rows = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """Upload made by the test. A `valid` one has to become READY if it can still be read."""

    stored: Stored
    model: str
    valid: bool


@dataclass
class Checker:
    """Checker of the invariants: knows all uploads, and the state of the previous check."""

    cloud: Cloud
    sent: dict[tuple[str, str], Sent] = field(default_factory=dict)  # (key, version id)
    gone: set[tuple[str, str]] = field(default_factory=set)  # deleted for good
    before: dict[str, dict[str, Any]] = field(default_factory=dict)

    def check(self) -> None:
        """Check the invariants of the stored state.

        Raises:
            AssertionError: an invariant does not hold.
        """
        rows = self.cloud.rows()
        blobs = self.cloud.objects(self.cloud.serving)
        self._check_buckets(blobs)
        for pk, items in rows.items():
            kind, _, model = pk.partition("#")
            assert kind in PARTITIONS, f"I10: unknown partition {pk}"
            notes = {sk for sk in items if sk.startswith("FAILURE#")}
            if kind != "MODEL" or notes == set(items):
                continue
            if items != self.before.get(pk):
                self._check_history(items, self.before.get(pk, {}))
                self._check_model(model, items)
            self._check_blobs(items, blobs)
        self._check_records(rows)
        assert set(self.before) <= set(rows), "I5: a model or the record of a blob is gone"
        self.before = rows

    def _check_buckets(self, blobs: Mapping[str, list[Stored]]) -> None:
        for key, versions in blobs.items():
            content = versions[-1].content
            if content is not None:  # None: the reconciler removed it
                digest = hashlib.sha256(content).hexdigest()
                assert key == f"blobs/{digest[:2]}/{digest}", f"I3: {key} holds {digest}"
        uploads = {
            (stored.key, stored.version_id)
            for versions in self.cloud.objects(self.cloud.artifacts).values()
            for stored in versions
            if stored.content is not None
        }
        assert uploads == set(self.sent) - self.gone, "I10: the uploads were changed"

    def _check_model(self, model: str, items: Rows) -> None:
        meta = items["META"]
        versions = {item["version"]: item for item in _sorted(items, "VERSION#")}
        assert sorted(versions) == list(range(1, len(versions) + 1)), (
            f"I2: versions {sorted(versions)}"
        )
        assert meta["next_version"] == len(versions) + 1, (
            f"I2: {meta['next_version']} comes after {len(versions)}"
        )
        for number, item in versions.items():
            assert f"VERSION#{number:010d}" in items, "I2: a version under the key of another"
            self._check_version(model, item)
        aliases = {item["alias"]: item["version"] for item in _sorted(items, "ALIAS#")}
        assert meta["aliases"] == aliases, f"I11: lists show {meta['aliases']}, not {aliases}"
        newest = {name: versions[len(versions)][name] for name in ("version", "state", "damaged")}
        shown = {name: meta["newest"][name] for name in newest}
        assert shown == newest, f"I11: lists show {shown}, not {newest}"
        self._check_sources(items, versions)
        self._check_replay(meta, items, versions)

    def _check_sources(self, items: Rows, versions: Mapping[int, Rows]) -> None:
        ids = {f"SOURCE#{_source_id(item['source'])}": number for number, item in versions.items()}
        assert len(ids) == len(versions), "I1: two versions of one upload"
        claims = {sk: item["version"] for sk, item in items.items() if sk.startswith("SOURCE#")}
        assert claims == ids, f"I1: claims {claims}, versions {ids}"

    def _check_version(self, model: str, item: Rows) -> None:
        source = item["source"]
        upload = self.sent.get((source["key"], source["object_version"]))
        assert upload is not None, f"I1: version of {source}, which was never uploaded"
        assert (item["model"], source["bucket"]) == (model, self.cloud.artifacts), (
            "I1: another model's upload"
        )
        assert upload.model == model, "I1: another model's upload"
        state, reason = item["state"], item.get("reason")
        assert state in {"PENDING", "READY", "REJECTED", "ARCHIVED"}, f"I5: {state}"
        assert (item["finished_at"] is None) == (state == "PENDING"), (
            f"I5: {state} at {item['finished_at']}"
        )
        assert state == "ARCHIVED" or (reason is None) == (state != "REJECTED"), (
            f"I10: {state} because of {reason}"
        )
        assert (item.get("pending") is not None) == (state == "PENDING"), (
            f"I6: {state} in the index of PENDING versions"
        )
        if reason is not None:
            assert reason["code"].isupper(), f"I10: {reason}"
            assert reason["message"].isprintable(), f"I10: {reason}"
            assert 0 < len(reason["message"]) <= 300, f"I10: {reason}"
            justified = {
                "OBJECT_GONE": _address(source) in self.gone,
                "REGISTRATION_DIED": item["attempts"] >= DEATHS,
            }
            assert justified.get(reason["code"], not upload.valid), (
                f"I6: {upload} is REJECTED: {reason}"
            )
        if state == "READY" or (state == "ARCHIVED" and reason is None):
            assert upload.valid, "I10: an invalid upload is READY"
            assert upload.stored.content is not None
            digest = hashlib.sha256(upload.stored.content).hexdigest()
            assert item["files"][0]["sha256"] == digest, (
                "I3: READY with other bytes than were uploaded"
            )
            assert item["files"][0]["size_bytes"] == len(upload.stored.content), (
                "I3: READY with another size"
            )

    def _check_blobs(self, items: Rows, blobs: Mapping[str, list[Stored]]) -> None:
        for item in _sorted(items, "VERSION#"):
            if item["state"] == "READY":
                for blob in _blobs(item):
                    key = f"blobs/{blob['sha256'][:2]}/{blob['sha256']}"
                    stored = blobs.get(key, [])
                    content = stored[-1].content if stored else None
                    assert content is not None, f"I3: READY without {blob['name']}"
                    assert len(content) == blob["size_bytes"], (
                        f"I3: {blob['name']} has another size"
                    )

    def _check_replay(self, meta: Rows, items: Rows, versions: Mapping[int, Rows]) -> None:
        audit = _sorted(items, "AUDIT#")
        revisions = [
            int(sk.removeprefix("AUDIT#")) for sk in sorted(items) if sk.startswith("AUDIT#")
        ]
        assert revisions == list(range(1, meta["revision"] + 1)), (
            f"I7: revision {meta['revision']} of {revisions}"
        )
        uploads = {number: self.sent[_address(item["source"])] for number, item in versions.items()}
        replay = Replay(uploads, self.gone)
        for record in audit:
            replay.apply(record)
        stored = {
            number: {name: item.get(name) for name in AUDITED} for number, item in versions.items()
        }
        assert replay.versions == stored, f"I7: {replay.versions} by the audit, {stored} stored"
        aliases = {item["alias"]: item for item in _sorted(items, "ALIAS#")}
        points = {alias: item["version"] for alias, item in aliases.items()}
        assert replay.aliases == points, f"I7: {replay.aliases} by the audit, {points} stored"
        states = {number: item["state"] for number, item in versions.items()}
        for alias, item in aliases.items():
            assert states.get(item["version"]) == "READY", (
                f"I4: {alias} points at {item['version']} of {states}"
            )
            self._check_traffic(item, states)
            traffic = _document(item.get("traffic"))
            assert traffic == replay.traffic.get(alias), (
                f"I7: {traffic} stored, {replay.traffic} by the audit"
            )
            assert (item["previous"], item["revision"]) == replay.history[alias], (
                f"I7: {item} stored, {replay.history} by the audit"
            )
        ready = [number for number, state in states.items() if state == "READY"]
        assert ("latest" in points) == bool(ready), f"I8: aliases {points} of {ready}"
        newer = [number for number in ready if replay.is_newer(number, points["latest"])]
        assert not newer, f"I8: latest is {points['latest']}, and {newer} were written later"
        ready_count = replay.ready
        assert meta.get("ready", 0) == ready_count, f"I2: {meta} after {ready_count} READY versions"

    def _check_traffic(self, alias: Rows, states: Mapping[int, str]) -> None:
        """I4: a split sums to 100 and names READY versions, first that of the alias."""
        traffic = alias.get("traffic")
        if traffic is None:
            return
        weights = traffic["weights"]
        assert weights[0]["version"] == alias["version"], f"I4: {alias}"
        assert round(sum(weight["weight"] for weight in weights), 6) == 100, f"I4: {alias}"
        shadow = [traffic["shadow"]] if traffic["shadow"] else []
        for part in [*weights, *shadow]:
            number = part["version"]
            assert number == 0 or states.get(number) == "READY", (
                f"I4: {alias} gives traffic to {number} of {states}"
            )

    def _check_records(self, rows: Mapping[str, Rows]) -> None:
        versions = [
            item
            for pk, items in rows.items()
            if pk.startswith("MODEL#")
            for item in _sorted(items, "VERSION#")
        ]
        needed = {f"BLOB#{blob['sha256']}" for item in versions for blob in _blobs(item)}
        stored = {pk for pk in rows if pk.startswith("BLOB#")}
        assert stored == needed, (
            f"I3: records without a version {stored - needed}, missing {needed - stored}"
        )

    def _check_history(self, items: Rows, before: Rows) -> None:
        for sk, was in before.items():
            now = items.get(sk)
            assert now is not None, f"I5: {sk} is gone"
            if sk.startswith(("AUDIT#", "SOURCE#")):
                assert now == was, f"I7: {sk} was rewritten"
            if sk.startswith("VERSION#"):
                follows = {was["state"], *FOLLOWS.get(was["state"], set())}
                assert now["state"] in follows, f"I5: {was['state']} became {now['state']}"
                if was["state"] != "PENDING":
                    assert _frozen(now) == _frozen(was), (
                        f"I5: a finished version was changed: {was} → {now}"
                    )
                assert (now["source"], now["created_at"]) == (was["source"], was["created_at"]), (
                    f"I1: {sk} changed"
                )


AUDITED = ("state", "attempts", "damaged")  # fields of a version in audit records
FOLLOWS = {
    None: {"PENDING"},
    "PENDING": {"READY", "REJECTED"},
    "READY": {"ARCHIVED"},
    "REJECTED": {"ARCHIVED"},
}


@dataclass
class Replay:
    """State of a model, rebuilt from its audit records."""

    uploads: Mapping[int, Sent]  # by version number
    gone: Set[tuple[str, str]]  # (key, version id) of uploads that were deleted for good
    versions: dict[int, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    history: dict[str, tuple[int | None, int]] = field(default_factory=dict)  # previous, changes
    traffic: dict[str, Rows | None] = field(default_factory=dict)  # documents by alias
    ready: int = 0  # versions that were ever READY

    def apply(self, record: Rows) -> None:
        """Apply one audit record, and check that it fits the state so far."""
        number, before, after = record["version"], record["before"], record["after"]
        assert record["actor"], "I7: no actor"
        if number not in self.versions:
            assert (record["action"], number) == ("claim", len(self.versions) + 1), (
                f"I2: {record} comes out of order"
            )
            self.versions[number] = {"state": None, "attempts": 1, "damaged": None}
        version = self.versions[number]
        for name in AUDITED:
            if name in after:
                assert before[name] == version[name], f"I7: {record} follows {version}"
        if "state" in after:
            assert after["state"] in FOLLOWS.get(version["state"], set()), (
                f"I5, I7: {record} follows {version}"
            )
            self.ready += after["state"] == "READY"
        version |= {name: after[name] for name in AUDITED if name in after}
        for alias, target in after.get("aliases", {}).items():
            was, (previous, moves) = self.aliases.get(alias), self.history.get(alias, (None, 0))
            assert before["aliases"][alias] == was, f"I7: {record}, and {alias} pointed at {was}"
            assert self.versions[target]["state"] == "READY", (
                f"I4: {record}, and the version is {self.versions[target]}"
            )
            if alias == "latest" and was is not None:
                assert not self.is_newer(was, target), (
                    f"I8: latest moved back from {was} to {target}"
                )
            if alias == "prod" and record["action"] == "finish":
                assert (was, self.ready) == (None, 1), f"I8: prod moved by itself: {record}"
            if record["action"] == "rollback" and self.traffic.get(alias):
                assert target == was, f"I8: {record} moved {alias} and did not end its split first"
            self.history[alias] = (previous if target == was else was, moves + 1)
            self.aliases[alias] = target
            self._apply_traffic(alias, record)

    def _apply_traffic(self, alias: str, record: Rows) -> None:
        """Replace an alias's traffic object; a move without one ends none."""
        before = record["before"].get("traffic", {}).get(alias)
        assert before == self.traffic.get(alias), f"I7: {record} follows {self.traffic}"
        self.traffic[alias] = record["after"].get("traffic", {}).get(alias)

    def is_newer(self, number: int, rival: int) -> bool:
        """Return True if a version's S3 object was written after another's.

        S3's listing cannot order two versions of one second once one of them is deleted.
        """
        stored, other = self.uploads[number].stored, self.uploads[rival].stored
        order, other_order = ((int(s.modified), s.key) for s in (stored, other))
        if order != other_order:
            return order > other_order
        addresses = {(s.key, s.version_id) for s in (stored, other)}
        return not addresses & self.gone and stored.modified > other.modified


def _sorted(items: Rows, prefix: str) -> list[Rows]:
    return [items[sk] for sk in sorted(items) if sk.startswith(prefix)]


def _document(traffic: Rows | None) -> Rows | None:
    """Return a stored traffic object without the empty place of a first candidate."""
    if traffic is None:
        return None
    weights = [weight for weight in traffic["weights"] if weight["version"]]
    return {**traffic, "weights": weights}


def _address(source: Rows) -> tuple[str, str]:
    return source["key"], source["object_version"]


def _source_id(source: Rows) -> str:
    return hashlib.sha256(
        f"{source['bucket']}/{source['key']}?{source['object_version']}".encode()
    ).hexdigest()


def _frozen(item: Rows) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in {"state", "damaged"}}


def _blobs(item: Rows) -> list[Rows]:
    return [*item["files"], *filter(None, [item["manifest"], item.get("sample")])]
