"""Registry values to and from the table's items."""

import json
from typing import Any

from functions.core.protocol.signature import Signature
from functions.core.registry.table import Item, Put
from functions.core.registry.version import Alias, Blob, Failure, Reason, Source, State, Version


def model_pk(model: str) -> str:
    return f"MODEL#{model}"


def version_sk(number: int) -> str:
    return f"VERSION#{number:010d}"


def alias_sk(alias: str) -> str:
    return f"ALIAS#{alias}"


def alias_put(model: str, alias: str, number: int, now: Item | None) -> Put:
    item = {
        "pk": model_pk(model),
        "sk": alias_sk(alias),
        "alias": alias,
        "version": number,
        "previous": now["version"] if now else None,
        "revision": now["revision"] + 1 if now else 1,
    }
    return Put(item, {"revision": now["revision"]} if now else None)


def alias_of(item: Item) -> Alias:
    return Alias(item["alias"], item["version"], item["previous"], item["revision"])


def failure_of(item: Item) -> Failure:
    reason = Reason(item["reason"]["code"], item["reason"]["message"])
    return Failure(Source(**item["source"]), reason, item["attempts"], item["at"])


def failure_sk(source: Source) -> str:
    return f"FAILURE#{source.id}"


def blob_put(blob: Blob) -> Put:
    return Put({"pk": f"BLOB#{blob.sha256}", "sk": "RECORD", "size_bytes": blob.size_bytes}, {})


def audit_line(model: str, audit: Item) -> Item:
    """An audit record as a line of the log."""
    return {
        "model": model,
        **{name: value for name, value in audit.items() if name not in ("pk", "sk")},
    }


def source_record(source: Source) -> dict[str, str]:
    return {"bucket": source.bucket, "key": source.key, "object_version": source.object_version}


def blob_record(blob: Blob) -> dict[str, Any]:
    return {"name": blob.name, "sha256": blob.sha256, "size_bytes": blob.size_bytes}


def version_item(version: Version) -> Item:
    item: dict[str, Any] = {
        "pk": model_pk(version.model),
        "sk": version_sk(version.number),
        "kind": "VERSION",  # key of the index `listing`
        "listed": version.listed,
        "model": version.model,
        "version": version.number,
        "state": version.state.value,
        "source": source_record(version.source),
        "created_at": version.created_at,
        "finished_at": version.finished_at,
        "files": [blob_record(blob) for blob in version.files],
        "manifest": blob_record(version.manifest) if version.manifest else None,
        "signature": version.signature.to_record() if version.signature else None,
        "graph": dict(version.graph),
        "card": json.dumps(
            version.card
        ),  # as text: DynamoDB has no NaN, no long numbers and no deep nesting
        "ignored": list(version.ignored),
        "plan": dict(version.plan),
        "measured": dict(version.measured),
        "memory_mb": version.memory_mb,
        "notes": list(version.notes),
        "sample": blob_record(version.sample) if version.sample else None,
        "attempts": version.attempts,
        "claimed_at": version.claimed_at or version.created_at,
        "damaged": version.damaged,
    }
    if version.state is State.PENDING:
        item["pending"] = "PENDING"  # key of the index `pending`, which so holds nothing else
    if version.reason:
        item["reason"] = {"code": version.reason.code, "message": version.reason.message}
    return item


def version_of(item: Item) -> Version:
    reason = item.get("reason")
    return Version(
        model=item["model"],
        number=item["version"],
        state=State(item["state"]),
        source=Source(**item["source"]),
        created_at=item["created_at"],
        finished_at=item["finished_at"],
        reason=Reason(reason["code"], reason["message"]) if reason else None,
        files=tuple(Blob(**blob) for blob in item["files"]),
        manifest=Blob(**item["manifest"]) if item["manifest"] else None,
        signature=Signature.from_record(item["signature"]) if item["signature"] else None,
        graph=item["graph"],
        card=json.loads(item["card"]),
        ignored=tuple(item["ignored"]),
        plan=item.get("plan", {}),
        measured=item.get("measured", {}),
        memory_mb=item.get("memory_mb", 0),
        notes=tuple(item.get("notes", ())),
        sample=Blob(**item["sample"]) if item.get("sample") else None,
        attempts=item["attempts"],
        claimed_at=item["claimed_at"],
        damaged=item["damaged"],
    )
