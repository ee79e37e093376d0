"""State machine of requests, loads, failures and evictions around the real model cache.

It checks that the bounds of memory and storage hold in every history. Threads are real but run in
lockstep: a download waits until the machine decides its ending, a request keeps its model until
the machine releases it, and each step waits for everything that it started. So the machine's own
small model of the cache can predict each request's answer, the loaded models, and the order of
evictions.
"""

import math
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from hypothesis.stateful import run_state_machine_as_test as run_machine

from functions.core.errors import InvalidModel, PlatformError, Unavailable
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import Blob, Source, State, Version
from functions.core.serving import model_cache
from functions.core.serving.model_cache import MB, ModelCache, footprint_bytes, loading_bytes
from tests.data_plane import Clock

VERSIONS = 6
PATIENCE_S = 60.0  # deadline for a thread that should react at once; only a bug reaches it
ENDINGS = {"unavailable": "BLOB_MISSING", "invalid": "NOT_LOADABLE", "memory": "MODEL_TOO_LARGE"}


class Session:
    def __init__(self, number: int) -> None:
        self.number = number

    def run(self, *_: Any) -> dict[str, Any]:
        raise AssertionError("no inference in this test")


class World:
    """Fake blob store and runtime whose downloads wait for the machine."""

    def __init__(self) -> None:
        self.arrived = [threading.Event() for _ in range(VERSIONS)]
        self.go = [threading.Event() for _ in range(VERSIONS)]
        self.ending = ["ok"] * VERSIONS
        self.loading: list[int] = []
        self.alive: weakref.WeakSet[Session] = weakref.WeakSet()

    def fetch(self, blob: Blob, path: Path) -> None:
        number = int(blob.sha256)
        if blob.name == "weights.bin":
            path.write_bytes(b"w")
            return
        assert number not in self.loading, "one version is loaded twice at once"
        self.loading.append(number)
        try:
            self.arrived[number].set()
            assert self.go[number].wait(PATIENCE_S)
            if self.ending[number] == "unavailable":
                raise Unavailable("storage does not answer", code="BLOB_MISSING")
            path.write_text(str(number))
        finally:
            self.loading.remove(number)

    def load(self, path: Path, plan: Plan | None = None) -> Session:
        number = int(path.read_text())
        assert (path.parent / "weights.bin").exists()
        if self.ending[number] == "memory":
            raise MemoryError
        if self.ending[number] == "invalid":
            raise InvalidModel("no model", code="NOT_LOADABLE")
        session = Session(number)
        self.alive.add(session)
        return session


class Watched(ModelCache):
    """Model cache that reports admitted requests and the threads that load."""

    loaders: dict[Any, threading.Thread]

    def _acquire(self, version: Version, evict: bool) -> Any:
        current = threading.current_thread()
        assert isinstance(current, Request)
        try:
            slot = super()._acquire(version, evict)
            current.admitted = True
            return slot
        finally:
            current.entered.set()

    def _load(self, version: Version, slot: Any) -> None:
        self.loaders[version.files] = threading.current_thread()
        super()._load(version, slot)

    def join(self, version: Version) -> None:
        loader = self.loaders.pop(version.files)
        loader.join(PATIENCE_S)
        assert not loader.is_alive()


class Request(threading.Thread):
    """Request that keeps its model until `leave` is set."""

    def __init__(self, cache: Watched, number: int, version: Version, deadline: float) -> None:
        super().__init__(daemon=True)
        self.number = number
        self._cache, self._version, self._deadline = cache, version, deadline
        self.entered, self.settled, self.leave = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self.admitted = False
        self.answer: int | None = None
        self.error: PlatformError | None = None

    def run(self) -> None:
        try:
            with self._cache.session(self._version, self._deadline) as session:
                self.answer = session.number  # type: ignore[attr-defined]
                del session
                self.settled.set()
                self.leave.wait(PATIENCE_S)
        except PlatformError as error:
            self.error = error.with_traceback(None)  # its frames hold on to the model
            self.settled.set()


class Caches(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize(
        sizes=st.lists(
            st.tuples(st.integers(0, 20), st.integers(0, 15)), min_size=VERSIONS, max_size=VERSIONS
        ),
        bound=st.integers(15, 80),
        files=st.lists(st.integers(1, 9), min_size=VERSIONS, max_size=VERSIONS),
        storage=st.integers(8, 50),
    )
    def begin(
        self, sizes: list[tuple[int, int]], bound: int, files: list[int], storage: int
    ) -> None:
        self.folder = Path(mkdtemp(prefix="cache-"))
        self.world, self.clock = World(), Clock()
        self.memory, self.storage = bound * MB, storage
        self.cache = Watched(
            self.world, self.world, memory_bytes=self.memory, storage_bytes=storage,
            directory=self.folder, clock=self.clock,
        )  # fmt: skip
        self.cache.loaders = {}
        self.versions = [
            Version(
                f"m{n}",
                1,
                State.READY,
                Source("b", "k", str(n)),
                "now",
                files=(
                    Blob("model.onnx", f"{n:064d}", 1),
                    Blob("weights.bin", f"{n:064d}", files[n]),
                ),
                measured={"resident_mb": resident or 0.5, "peak_memory_mb": float(resident + more)},
            )
            for n, (resident, more) in enumerate(sizes)
        ]
        # Expected state, by number. Slots: [memory, storage, users], least recently used first.
        self.slots: OrderedDict[int, list[int]] = OrderedDict()
        self.waiting: dict[int, list[Request]] = {}
        self.failed: dict[int, tuple[str, float]] = {}  # code, time until which it is cached
        self.started: list[Request] = []

    # --- steps

    @rule(target=requests, number=st.integers(0, VERSIONS - 1), patient=st.booleans())
    def ask(self, number: int, patient: bool) -> Any:
        return multiple(*self._ask(number, patient))

    @rule(number=st.integers(0, VERSIONS - 1))
    def use(self, number: int) -> None:
        """Run one request from beginning to end, with the load that it needs."""
        inside = self._ask(number, True)
        if number in self.waiting:
            inside = self._end_load(number, "ok")
        for request in inside:
            self._leave(request)

    def _ask(self, number: int, patient: bool) -> list[Request]:
        """Start a request; return it if it has its model now."""
        version = self.versions[number]
        expected, begins = self._expected(number)
        if begins:
            self.world.arrived[number].clear()
            self.world.go[number].clear()
            self.waiting[number] = []
        deadline = math.inf if patient else self.clock.now
        request = Request(self.cache, number, version, min(deadline, self.clock.now + 3600))
        self.started.append(request)
        request.start()
        assert request.entered.wait(PATIENCE_S)
        assert request.admitted == (expected in ("inside", "wait"))
        if begins:
            assert self.world.arrived[number].wait(PATIENCE_S)
        if expected == "wait" and patient:
            self.slots[number][2] += 1
            self.waiting[number].append(request)
            return []
        assert request.settled.wait(PATIENCE_S)
        if expected == "inside":
            self.slots[number][2] += 1
            assert (request.answer, request.error) == (number, None)
            return [request]
        request.join(PATIENCE_S)
        assert request.error is not None
        assert request.error.instance_code == ("MODEL_LOADING" if expected == "wait" else expected)
        assert not isinstance(request.error, Unavailable) or request.error.retry_after_s >= 1
        return []

    @precondition(lambda self: getattr(self, "waiting", None))
    @rule(
        target=requests,
        index=st.integers(0, VERSIONS - 1),
        ending=st.sampled_from(["ok", "ok", "ok", *ENDINGS]),
    )
    def end_load(self, index: int, ending: str) -> Any:
        number = sorted(self.waiting)[index % len(self.waiting)]
        return multiple(*self._end_load(number, ending))

    def _end_load(self, number: int, ending: str) -> list[Request]:
        """Let a load end; return the requests that have its model now."""
        version = self.versions[number]
        self.world.ending[number] = ending
        self.world.go[number].set()
        self.cache.join(version)
        waited = self.waiting.pop(number)
        for request in waited:
            assert request.settled.wait(PATIENCE_S)
        if ending == "ok":
            self.slots[number][:] = [
                footprint_bytes(version),
                version.files[1].size_bytes,
                len(waited),
            ]
            assert [(request.answer, request.error) for request in waited] == [
                (number, None)
            ] * len(waited)
            return waited
        code = ENDINGS[ending]
        if ending == "memory" and any(
            slot[2] or key in self.waiting for key, slot in self.slots.items() if key != number
        ):
            code = "MODELS_BUSY"
        codes = [request.error and request.error.instance_code for request in waited]
        assert codes == [code] * len(waited)
        for request in waited:
            request.join(PATIENCE_S)
        del self.slots[number]
        if ending == "memory":  # the cache evicted the idle models and loaded again
            for idle in self._idle():
                del self.slots[idle]
        for_now = code in ("BLOB_MISSING", "MODELS_BUSY")
        seconds = model_cache.UNAVAILABLE_SECONDS if for_now else model_cache.FAILED_SECONDS
        self.failed[number] = code, self.clock.now + seconds
        return []

    @rule(request=consumes(requests))
    def leave(self, request: Request) -> None:
        self._leave(request)

    def _leave(self, request: Request) -> None:
        request.leave.set()
        request.join(PATIENCE_S)
        assert not request.is_alive()
        self.slots[request.number][2] -= 1

    @rule(number=st.integers(0, VERSIONS - 1))
    def evict(self, number: int) -> None:
        self.cache.evict(self.versions[number].files)
        if number in self._idle():
            del self.slots[number]

    @rule(number=st.integers(0, VERSIONS - 1))
    def forgive(self, number: int) -> None:
        self.cache.clear_failure(self.versions[number].files)
        self.failed.pop(number, None)

    @rule(seconds=st.sampled_from([0.5, 2.0, 31.0]))
    def tick(self, seconds: float) -> None:
        self.clock.now += seconds

    # --- expected state

    def _expected(self, number: int) -> tuple[str, bool]:
        """Predict a request's outcome, and whether it begins a load.

        The outcome is "inside", "wait" or the code of an error.
        """
        version = self.versions[number]
        if number in self.slots:
            self.slots.move_to_end(number)
            return ("wait" if number in self.waiting else "inside"), False
        code, until = self.failed.get(number, ("", 0.0))
        if self.clock.now < until:
            return code, False
        if footprint_bytes(version) > self.memory or version.size_bytes > self.storage:
            return "MODEL_TOO_LARGE", False
        need = min(loading_bytes(version), self.memory), version.size_bytes
        busy = [slot for key, slot in self.slots.items() if key not in self._idle()]
        if any(
            sum(slot[kind] for slot in busy) + need[kind] > most
            for kind, most in ((0, self.memory), (1, self.storage))
        ):
            return "MODELS_BUSY", False
        for idle in self._idle():
            if not self._lacks(need):
                break
            if self._lacks(need)[0] or self.slots[idle][1]:
                del self.slots[idle]
        self.slots[number] = [*need, 0]
        return "wait", True

    def _lacks(self, need: tuple[int, int]) -> list[bool]:
        """Return [memory lacks, storage lacks]; empty if both suffice."""
        lacks = [
            sum(slot[kind] for slot in self.slots.values()) + need[kind] > most
            for kind, most in ((0, self.memory), (1, self.storage))
        ]
        return lacks if any(lacks) else []

    def _idle(self) -> list[int]:
        return [key for key, slot in self.slots.items() if not slot[2] and key not in self.waiting]

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "cache"):
            return
        memory, storage = self.cache.held_bytes()
        assert memory <= self.memory
        assert storage <= self.storage
        expected = [sum(slot[kind] for slot in self.slots.values()) for kind in (0, 1)]
        assert [memory, storage] == expected
        loaded = self.slots.keys() - self.waiting.keys()
        assert {n for n, version in enumerate(self.versions) if self.cache.holds(version)} == loaded
        alive = sorted(session.number for session in self.world.alive)
        assert alive == sorted(loaded)  # evicted sessions are freed
        assert len(list(self.folder.iterdir())) == len(self.waiting)

    def teardown(self) -> None:
        """End all loads and requests, and check that nothing is left."""
        if not hasattr(self, "cache"):
            return
        try:
            for event in self.world.go:
                event.set()
            for loader in list(self.cache.loaders.values()):
                loader.join(PATIENCE_S)
            for request in self.started:
                request.leave.set()
                request.join(PATIENCE_S)
            assert list(self.folder.iterdir()) == []
            assert not any(thread.is_alive() for thread in self.started)
        finally:
            shutil.rmtree(self.folder)


def size(examples: int, steps: int, **changes: Any) -> settings:
    defaults = {"derandomize": True, "deadline": None, "database": None, "phases": [Phase.generate]}
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=list(HealthCheck),
        **{**defaults, **changes},
    )


def test_every_history_keeps_the_bounds() -> None:
    run_machine(Caches, settings=size(30, 40))


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_every_history_keeps_the_bounds_for_long() -> None:
    run_machine(Caches, settings=size(2000, 60, derandomize=False, print_blob=True))


def evicts_used_models(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(
        ModelCache,
        "_idle",
        lambda self: [k for k, slot in self._slots.items() if slot.session and slot.users < 2],
    )


def counts_no_peak(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(model_cache, "loading_bytes", footprint_bytes)


def counts_no_mapped_files(patched: pytest.MonkeyPatch) -> None:
    held = ModelCache._held
    patched.setattr(ModelCache, "_held", lambda self: (held(self)[0], 0))


def evicts_the_newest(patched: pytest.MonkeyPatch) -> None:
    idle = ModelCache._idle
    patched.setattr(ModelCache, "_idle", lambda self: idle(self)[::-1])


def caches_no_failure(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(ModelCache, "_cache_failure", lambda *_: None)


def never_releases(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(ModelCache, "_release", lambda *_: None)


FAULTS = [
    evicts_used_models,
    counts_no_peak,
    counts_no_mapped_files,
    evicts_the_newest,
    caches_no_failure,
    never_releases,
]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)

    with pytest.raises((AssertionError, KeyError)):
        run_machine(Caches, settings=size(100, 40))
