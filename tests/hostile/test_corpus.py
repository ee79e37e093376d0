"""Hostile uploads through the real registration and sandbox, with valid ones in between."""

import resource
import time

import pytest

from functions.adapters.child_process import Limits
from functions.adapters.sandbox import ProcessSandbox
from functions.core.registration.registration import Registration
from functions.core.registry.registry import Registry
from functions.core.registry.version import State, Version
from functions.core.uploads import Upload
from functions.register.manifest import read_manifest
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.hostile.cases import Case
from tests.hostile.corpus import GROUPS
from tests.models import scale_model

WORKER_MB = 700  # growth of this process, which also holds the uploads, some of 200 MB
CPU_S = 5


class World:
    """Worker with a real sandbox; everything else is in memory."""

    def __init__(self) -> None:
        self.number = 0
        self.uploads = MemoryUploads()
        self.registry = Registry(MemoryTable(), lambda: "2026-11-22T08:00:00.000Z")
        self.sandbox = ProcessSandbox(Limits(memory_mb=1500, cpu_s=CPU_S), spare=True)
        self.registration = Registration(
            self.registry, self.uploads, MemoryBlobs(), self.sandbox, read_manifest
        )

    def upload(self, key: str, content: bytes, **siblings: bytes) -> Version:
        self.number += 1
        folder = f"models/m/{self.number}"
        for path, data in siblings.items():
            self.uploads.put("up", f"{folder}/{path}", data)
        pinned = self.uploads.put("up", f"{folder}/{key}", content)
        version = self.registration.register(Upload("up", f"{folder}/{key}", pinned))
        self.sandbox.refill()
        self.uploads.delete("up", f"{folder}/{key}")
        assert version is not None
        return version


def check(world: World, case: Case) -> None:
    content = case.make()
    began = time.monotonic()
    version = world.upload(case.key, content, **case.siblings)
    took = time.monotonic() - began

    assert version.state is State.REJECTED, f"{case}: {version.notes}"
    assert version.reason is not None
    assert version.reason.code in case.codes, f"{case}: {version.reason}"
    assert version.reason.message.isprintable(), case
    assert 10 < len(version.reason.message) <= 300, case
    assert all(usage.cpu_s < CPU_S + 3 for usage in world.sandbox.used), case
    assert world.upload("good.onnx", scale_model()).state is State.READY, f"after {case}"
    print(
        f"{case}: {took:.1f} s, {version.reason.code}: {version.reason.message}"
    )  # shown by pytest -s


@pytest.mark.parametrize("group", GROUPS)
def test_each_artifact_is_rejected_and_a_good_one_registers_afterwards(
    group: str,
) -> None:
    world = World()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults = []
    try:
        for case in GROUPS[group]():
            try:
                check(world, case)
            except AssertionError as error:
                faults.append(str(error).splitlines()[0])
    finally:
        world.sandbox.close()

    assert not faults, "\n".join(faults)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < WORKER_MB * 1024


def test_the_corpus_has_at_least_120_cases() -> None:
    assert sum(1 for group in GROUPS.values() for _ in group()) >= 120
