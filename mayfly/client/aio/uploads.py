"""Uploads of models, until they are registered."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mayfly.client import files
from mayfly.client.aio.caller import AsyncCaller
from mayfly.client.aio.transport import sleep
from mayfly.client.errors import Rejected, TimedOut
from mayfly.client.files import Progress
from mayfly.client.package import read_package
from mayfly.client.records import UploadRecord

WAIT_S = 300.0  # a registration may compile for minutes
POLL_S = 0.25
POLL_MAX_S = 2.0

Step = Callable[[UploadRecord], None]


async def upload(
    caller: AsyncCaller, model: str, path: str | Path, progress: Progress = files.silent
) -> UploadRecord:
    """Send a model's files; return the record of the last one.

    `progress` gets the bytes sent and the bytes of all files.

    Raises:
        InvalidInput: `path` is no model, no archive and no folder with one model.
    """
    package = await asyncio.to_thread(read_package, Path(path))
    total, before = sum(file.size_bytes for file in package), 0
    announced: Mapping[str, Any] = {}
    for file in package:
        together = {"package": announced["package"]} if announced else {}
        body = {"model": model} | file.describe() | together
        announced = await caller.change("POST", "/api/v1/uploads", body)
        url, headers = announced["url"], announced["headers"]
        report = _shifted(progress, before, total)
        await asyncio.to_thread(files.put_file, url, headers, file, report)
        before += file.size_bytes
    return UploadRecord.read({**announced, "model": model, "state": "received"})


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """Return the progress of one file as that of all."""
    return lambda sent, _: progress(before + sent, total)


async def wait(
    caller: AsyncCaller, upload_id: str, timeout: float = WAIT_S, step: Step = lambda _: None
) -> UploadRecord:
    """Poll an upload until it is READY; `step` gets each new state.

    Raises:
        Rejected: it became no version that can be called; the text is the reason.
        TimedOut: it has not ended within `timeout` seconds.
    """
    deadline, pause, state = time.monotonic() + timeout, POLL_S, ""
    while True:
        record = UploadRecord.read(await caller.get(f"/api/v1/uploads/{upload_id}"))
        if record.state != state:
            state = record.state
            step(record)
        if record.done:
            return _ended(record)
        if time.monotonic() + pause > deadline:
            raise TimedOut(f"{record} after {timeout:.0f} s: {record.next_step}")
        await sleep(pause)
        pause = min(pause * 1.5, POLL_MAX_S)


def _ended(record: UploadRecord) -> UploadRecord:
    if record.state in ("READY", "received"):
        return record
    reason = record.reason["message"] if record.reason else record.state
    text = reason if record.state == "REJECTED" else f"{record.state}: {reason}"
    raise Rejected(f"{text} ({record.next_step})", model=record.model, version=record.version)
