"""Conversion of model versions, aliases and notes to DynamoDB items and back.

Attribute names are stored data: changing one needs a migration of the table.
"""

import json
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from functions.core.protocol.signature import Signature
from functions.core.records import replace
from functions.core.registry.table import Delete, Item, Put, Write
from functions.core.registry.version import (
    Alias,
    Blob,
    Change,
    Failure,
    Reason,
    Source,
    State,
    Version,
)

if TYPE_CHECKING:
    from functions.core.traffic.traffic import Traffic


def model_pk(model: str) -> str:
    """Return the DynamoDB partition key of a model."""
    return f"MODEL#{model}"


def switch_pk(model: str) -> str:
    """Return the DynamoDB partition key of a model's on/off serving switch."""
    return f"SERVING#{model}"


def blob_pk(sha256: str) -> str:
    """Return the DynamoDB partition key of the blob with this SHA-256."""
    return f"BLOB#{sha256}"


def version_sk(number: int) -> str:
    """Return the DynamoDB sort key of a model version."""
    return f"VERSION#{number:010d}"


def alias_sk(alias: str) -> str:
    """Return the DynamoDB sort key of a model's alias."""
    return f"ALIAS#{alias}"


def source_sk(source: Source) -> str:
    """Return the DynamoDB sort key of an upload's version number."""
    return f"SOURCE#{source.id}"


def failure_sk(source: Source) -> str:
    """Return the DynamoDB sort key of an upload's failure note."""
    return f"FAILURE#{source.id}"


def ignored_key(key: str) -> tuple[str, str]:
    """Return the DynamoDB primary key of an ignored S3 upload's record.

    DynamoDB takes 1,024 bytes, S3's limit for an object's key; only a forged event has more.
    """
    encoded = key.encode("utf-8", "replace")[:1024]
    return "IGNORED", encoded.decode("utf-8", "ignore")


def ignored_to_item(key: str, reason: Reason, at: str, expires_at: int) -> Item:
    """Convert an ignored S3 upload's record to an expiring DynamoDB item.

    `kind` and `listed` put it in the index `listing`, apart from the versions.
    """
    pk, sk = ignored_key(key)
    return {
        "pk": pk,
        "sk": sk,
        "kind": "IGNORED",
        "listed": at,
        "reason": reason_to_record(reason),
        "expires_at": expires_at,
    }


def ignored_clear(item: Item | None) -> list[Put]:
    """Return DynamoDB writes that remove an ignored upload from the list."""
    if item is None or "kind" not in item:
        return []
    return [Put({name: item[name] for name in ("pk", "sk", "expires_at")}, {})]


def alias_put(
    model: str, alias: str, number: int, stored: Item | None, retired_revision: int = 0
) -> Put:
    """Return the conditional DynamoDB write that points an alias at a version.

    Its condition is that the alias's item is still `stored`. All requests go to the version: a
    traffic object ends. A move to the version itself keeps the previous one. A new alias continues
    after the revision of a deleted one of its name.
    """
    previous = stored["version"] if stored else None
    if stored and previous == number:
        previous = stored["previous"]
    item = {
        "pk": model_pk(model),
        "sk": alias_sk(alias),
        "alias": alias,
        "version": number,
        "previous": previous,
        "revision": (stored["revision"] if stored else retired_revision) + 1,
    }
    return Put(item, {"revision": stored["revision"]} if stored else None)


def traffic_put(stored: Item, traffic: Item | None) -> Put:
    """Return the conditional DynamoDB write of an alias's traffic object."""
    item = {**stored, "traffic": traffic, "revision": stored["revision"] + 1}
    return Put(item, {"revision": stored["revision"]})


def source_put(model: str, source: Source, number: int) -> Put:
    """Return the DynamoDB write that binds an upload to its version number."""
    return Put({"pk": model_pk(model), "sk": source_sk(source), "version": number}, None)


def blob_put(blob: Blob) -> Put:
    """Return the DynamoDB write that marks a blob as used by versions."""
    return Put({"pk": blob_pk(blob.sha256), "sk": "RECORD", "size_bytes": blob.size_bytes}, {})


def alias_from_item(item: Item) -> Alias:
    """Parse a model's alias from its DynamoDB item."""
    traffic = traffic_from_item(item)
    return Alias(item["alias"], item["version"], item["previous"], item["revision"], traffic)


def traffic_from_item(item: Item) -> "Traffic | None":
    """Parse an alias's traffic object from its DynamoDB item, if any."""
    record = item.get("traffic")
    if record is None:
        return None
    from functions.core.traffic.traffic import Traffic  # see version.py

    return Traffic.from_record(record)


def failure_from_item(item: Item) -> Failure:
    """Parse an upload's failure note from its DynamoDB item."""
    reason = reason_from_record(item["reason"])
    return Failure(Source(**item["source"]), reason, item["attempts"], item["at"])


def failure_to_item(model: str, failure: Failure, expires_at: int) -> Item:
    """Convert an upload's failure note to a DynamoDB item that expires.

    DynamoDB deletes the item after `expires_at`, in seconds since the epoch.
    """
    return {
        "pk": model_pk(model),
        "sk": failure_sk(failure.source),
        "source": source_to_record(failure.source),
        "reason": reason_to_record(failure.reason),
        "attempts": failure.attempts,
        "at": failure.at,
        "expires_at": expires_at,
    }


def audit_put(pk: str, revision: int, change: Change, at: str) -> Put:
    """Return the DynamoDB write of an audit record, numbered by a revision."""
    item: dict[str, Any] = {
        "pk": pk,
        "sk": f"AUDIT#{revision:012d}",
        "revision": revision,
        "action": change.action,
        "actor": change.actor,
        "at": at,
        "version": change.version,
        "before": change.before,
        "after": change.after,
        "kind": "AUDIT",  # in the index `listing`: all audit records by time
        "listed": f"{at}#{pk}#{revision:012d}",
    }
    return Put(item, None)


def audit_to_log(audit: Item, **subject: str) -> Item:
    """Convert an audit record's DynamoDB item to fields of a log line.

    `subject` names the changed thing, e.g. model="digits".
    """
    keys = ("pk", "sk", "kind", "listed")
    fields = {name: value for name, value in audit.items() if name not in keys}
    return {**subject, **fields}


def source_to_record(source: Source) -> dict[str, str]:
    """Return an upload's S3 bucket, key and version as a plain dict."""
    return {"bucket": source.bucket, "key": source.key, "object_version": source.object_version}


def blob_to_record(blob: Blob) -> dict[str, Any]:
    """Return a blob's name, SHA-256 and size as a plain dict."""
    return {"name": blob.name, "sha256": blob.sha256, "size_bytes": blob.size_bytes}


def ranges_to_record(files: Sequence[Blob]) -> dict[str, Any] | None:
    """Return the digests of files' ranges as a plain dict, or None.

    They lie beside the files' own records, which earlier releases read without unknown fields.
    """
    range_bytes = max((blob.range_bytes for blob in files), default=0)
    if not range_bytes:
        return None
    digests = [b2a_base64(blob.range_digests, newline=False).decode() for blob in files]
    return {"range_bytes": range_bytes, "blake3": digests}


def files_from_records(files: Sequence[Item], ranges: Item | None) -> tuple[Blob, ...]:
    """Build a version's files from the records of files and ranges."""
    blobs = tuple(Blob(**blob) for blob in files)
    if not ranges:
        return blobs
    return tuple(
        replace(blob, range_bytes=ranges["range_bytes"], range_digests=a2b_base64(digests))
        if digests
        else blob
        for blob, digests in zip(blobs, ranges["blake3"], strict=True)
    )


def reason_to_record(reason: Reason) -> dict[str, str]:
    """Return a failure reason's code and message as a plain dict."""
    return {"code": reason.code, "message": reason.message}


def reason_from_record(record: Item) -> Reason:
    """Build a failure reason from a dict of its code and message."""
    return Reason(record["code"], record["message"])


def model_facts(meta: Item, writes: Sequence[Write]) -> Item:
    """Return a META item's attributes for lists of models, after writes.

    `kind` and `listed` put it in the index `listing`. `aliases` is missing in an item of an earlier
    release, until the reconciler adds it.
    """
    facts: dict[str, Any] = {
        "kind": "ARCHIVED" if meta.get("archived_at") else "MODEL",
        "listed": meta["model"],
        "newest": meta.get("newest"),
    }
    aliases = meta.get("aliases")
    newest = facts["newest"]["version"] if facts["newest"] else meta["next_version"] - 1
    for write in writes:
        item: Item = write.item if isinstance(write, Put) else {}
        if "alias" in item and aliases is not None:
            aliases = {**aliases, item["alias"]: item["version"]}
        elif item.get("kind") == "VERSION" and item["version"] >= newest:
            newest, facts["newest"] = item["version"], newest_facts(item)
        elif isinstance(write, Delete) and aliases is not None:
            removed = write.key[1].removeprefix(alias_sk(""))
            aliases = {name: number for name, number in aliases.items() if name != removed}
    return facts if aliases is None else {**facts, "aliases": aliases}


def newest_facts(item: Item) -> Item:
    """Return facts of a model's newest version for lists."""
    names = ("version", "state", "created_at", "finished_at", "damaged")
    size_bytes = sum(blob["size_bytes"] for blob in item["files"])
    return {**{name: item[name] for name in names}, "size_bytes": size_bytes}


def version_to_item(version: Version) -> Item:
    """Convert a model version to its DynamoDB item."""
    item: dict[str, Any] = {
        "pk": model_pk(version.model),
        "sk": version_sk(version.number),
        "kind": "VERSION",  # partition key of the index `listing`
        "listed": version.listed,
        "model": version.model,
        "version": version.number,
        "state": version.state.value,
        "source": source_to_record(version.source),
        "created_at": version.created_at,
        "finished_at": version.finished_at,
        "files": [blob_to_record(blob) for blob in version.files],
        "ranges": ranges_to_record(version.files),
        "manifest": blob_to_record(version.manifest) if version.manifest else None,
        "signature": version.signature.to_record() if version.signature else None,
        "graph": dict(version.graph),
        "card": json.dumps(version.card),  # DynamoDB has no NaN, long numbers or deep nesting
        "ignored": list(version.ignored),
        "plan": dict(version.plan),
        "measured": dict(version.measured),
        "memory_mb": version.memory_mb,
        "notes": list(version.notes),
        "sample": blob_to_record(version.sample) if version.sample else None,
        "language": dict(version.language) if version.language else None,
        "assets": [blob_to_record(blob) for blob in version.assets],
        "attempts": version.attempts,
        "claimed_at": version.claimed_at or version.created_at,
        "damaged": version.damaged,
        "approval": dict(version.approval) if version.approval else None,
        "note": version.note,
        "written_at": version.written_at,
        "sequencer": version.sequencer,
    }
    if version.state is State.PENDING:
        item["pending"] = "PENDING"  # partition key of the index of PENDING versions
    if version.reason:
        item["reason"] = reason_to_record(version.reason)
    return item


def version_from_item(item: Item) -> Version:
    """Parse a model version from its DynamoDB item.

    An item that an earlier release wrote may lack attributes.
    """
    reason, sample = item.get("reason"), item.get("sample")
    return Version(
        model=item["model"],
        number=item["version"],
        state=State(item["state"]),
        source=Source(**item["source"]),
        created_at=item["created_at"],
        attempts=item["attempts"],
        claimed_at=item["claimed_at"],
        finished_at=item["finished_at"],
        reason=reason_from_record(reason) if reason else None,
        files=files_from_records(item["files"], item.get("ranges")),
        manifest=Blob(**item["manifest"]) if item["manifest"] else None,
        signature=Signature.from_record(item["signature"]) if item["signature"] else None,
        graph=item["graph"],
        card=json.loads(item["card"]),
        ignored=tuple(item["ignored"]),
        plan=item.get("plan", {}),
        measured=item.get("measured", {}),
        memory_mb=item.get("memory_mb", 0),
        notes=tuple(item.get("notes", ())),
        sample=Blob(**sample) if sample else None,
        language=item.get("language"),
        assets=tuple(Blob(**blob) for blob in item.get("assets", ())),
        damaged=item["damaged"],
        approval=item.get("approval"),
        note=item.get("note", ""),
        written_at=item.get("written_at", ""),
        sequencer=item.get("sequencer", ""),
    )
