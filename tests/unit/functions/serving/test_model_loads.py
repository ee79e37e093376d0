"""Loads of models: downloads, plans, warm-ups, failures and how long they are cached."""

import ctypes
import errno
import gc
import threading
import weakref
from pathlib import Path

import pytest

from functions.core.errors import (
    InvalidModel,
    Unavailable,
)
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import Blob
from functions.core.serving import model_cache
from functions.core.serving.model_cache import MB, ModelCache
from tests.data_plane import PATIENCE_S, PLAN, ClockedPlane, ScaleSession, join_loads
from tests.fakes import MemoryBlobs


@pytest.fixture
def plane(tmp_path: Path) -> ClockedPlane:
    return ClockedPlane(tmp_path)


def test_a_version_is_loaded_as_its_plan_says(plane: ClockedPlane) -> None:
    plane.infer(plane.register("m", 2.0, plan=PLAN | {"of a later release": 1}))
    plane.infer(plane.register("m", 3.0))

    assert plane.runtime.plans == [Plan(**PLAN), None]


def test_a_load_without_memory_is_retried_without_the_idle_models(
    plane: ClockedPlane,
) -> None:
    idle, version = plane.register("m", 1.0), plane.register("m", 2.0)
    plane.infer(idle)
    plane.runtime.refusals = [MemoryError()]

    assert plane.infer(version) == 2.0
    assert not plane.models.holds(idle)


def test_a_model_too_large_to_load_alone_is_refused(plane: ClockedPlane) -> None:
    plane.runtime.refusals = [MemoryError()]
    version = plane.register("m")

    with pytest.raises(Unavailable, match="does not fit"):
        plane.infer(version)
    plane.models.clear_failure(version.files)
    assert plane.infer(version) == 2.0
    assert list(plane.directory.iterdir()) == []


@pytest.mark.parametrize(
    "failure", [InvalidModel("x"), ValueError("a bug")], ids=["refused", "bug"]
)
def test_a_failed_load_leaves_no_file_and_can_be_retried(
    plane: ClockedPlane, failure: Exception
) -> None:
    plane.runtime.refusals = [failure]
    version = plane.register("m")

    with pytest.raises(type(failure)):
        plane.infer(version)
    assert not plane.models.holds(version)
    assert list(plane.directory.iterdir()) == []
    plane.models.clear_failure(version.files)
    assert plane.infer(version) == 2.0


def test_a_damaged_download_is_never_opened(plane: ClockedPlane) -> None:
    version = plane.register("m")
    plane.blobs.content[version.files[0].key] = b"666"

    with pytest.raises(Unavailable, match="corrupted"):
        plane.infer(version)
    assert plane.runtime.seen == []


def test_a_load_that_exceeds_its_deadline_continues_for_the_next_request(
    plane: ClockedPlane,
) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m")

    with pytest.raises(Unavailable, match="still loading") as refused:
        plane.infer(version, seconds=0.05)
    assert refused.value.instance_code == "MODEL_LOADING"
    plane.runtime.gate.set()
    assert plane.infer(version) == 2.0
    assert plane.runtime.loads == [2.0]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "MODELS_BUSY"), (errno.ENOMEM, "MODEL_TOO_LARGE")]
)
def test_lack_of_memory_or_storage_is_a_refusal(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def full(blob: Blob, path: Path) -> None:
        raise OSError(number, "no")

    version = plane.register("m")
    monkeypatch.setattr(plane.blobs, "fetch", full)

    assert plane.refusal(version).instance_code == code


@pytest.mark.parametrize("step", ["_as_refusal", "_cache_failure"])
def test_requests_go_on_when_a_failed_load_has_no_memory_left(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    plane.runtime.refusals = [MemoryError()]
    version = plane.register("m", 2.0)

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(ModelCache, step, fail)
        with pytest.raises((MemoryError, Unavailable)):
            plane.infer(version)
        join_loads()
    plane.models.clear_failure(version.files)

    assert plane.infer(version) == 2.0


def test_one_session_is_created_at_a_time(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path)
    loading, concurrent = [], []
    both = threading.Barrier(2)

    class Runtime:
        def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
            loading.append(path)
            concurrent.append(len(loading))
            loading.remove(path)
            return ScaleSession(float(path.read_bytes()), plane.runtime)

    class ParallelBlobs(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(PATIENCE_S)  # downloads run in parallel
            super().fetch(blob, path)

    versions = [plane.register("m", n) for n in (1.0, 2.0)]
    blobs = ParallelBlobs()
    blobs.content = plane.blobs.content
    plane.models = ModelCache(
        blobs, Runtime(), memory_bytes=MB * 100, directory=tmp_path, clock=plane.cache_clock
    )
    threads = [threading.Thread(target=plane.infer, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert concurrent == [1, 1]


def test_the_files_of_a_model_are_fetched_in_parallel(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path)
    both = threading.Barrier(2)

    class ParallelBlobs(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(PATIENCE_S)
            super().fetch(blob, path)

    version = plane.register_with_weights(2.0)
    plane.models._blobs = blobs = ParallelBlobs()
    blobs.content = plane.blobs.content

    assert plane.infer(version) == 2.0
    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


def test_a_file_that_cannot_be_fetched_fails_the_load(plane: ClockedPlane) -> None:
    version = plane.register_with_weights(2.0)
    del plane.blobs.content[version.files[1].key]

    assert plane.refusal(version).instance_code == "BLOB_MISSING"
    assert list(plane.directory.iterdir()) == []


def test_files_are_fetched_without_threads_if_none_can_start(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "fetch":
            raise RuntimeError("can't start new thread")
        start(thread)

    version = plane.register_with_weights(2.0)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert plane.infer(version) == 2.0
    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


FAILURES = [
    (InvalidModel("x", code="NOT_LOADABLE"), model_cache.FAILED_SECONDS, "NOT_LOADABLE"),
    (MemoryError(), model_cache.FAILED_SECONDS, "MODEL_TOO_LARGE"),
    (Unavailable("storage does not answer"), model_cache.UNAVAILABLE_SECONDS, "UNAVAILABLE"),
]


@pytest.mark.parametrize(
    ("failure", "seconds", "code"), FAILURES, ids=["invalid", "too large", "unavailable"]
)
def test_a_failed_load_is_not_retried_for_a_while(
    plane: ClockedPlane, failure: BaseException, seconds: float, code: str
) -> None:
    plane.runtime.refusals = [failure]
    version = plane.register("m")
    first = plane.refusal(version)
    plane.cache_clock.now += seconds - 0.5

    again = plane.refusal(version)

    assert (first.instance_code, again.instance_code, type(again)) == (code, code, type(first))
    assert plane.blobs.fetches == 1
    if isinstance(again, Unavailable):
        assert first.retry_after_s == seconds  # type: ignore[attr-defined]
        assert again.retry_after_s == 1
    plane.cache_clock.now += 0.5
    assert plane.infer(version) == 2.0
    assert plane.blobs.fetches == 2


def test_lack_of_memory_beside_models_in_use_is_temporary(
    plane: ClockedPlane,
) -> None:
    used, version = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(used, plane.cache_clock.now + 60):
        plane.runtime.refusals = [MemoryError()]
        assert plane.refusal(version).instance_code == "MODELS_BUSY"
        plane.cache_clock.now += model_cache.UNAVAILABLE_SECONDS
        assert plane.infer(version) == 2.0


def test_failures_are_cached_by_model_and_their_number_is_bounded(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "FAILURES", 3)
    versions = [plane.register("m", f"no number {n}".encode()) for n in range(5)]
    for version in versions:
        assert plane.refusal(version).instance_code == "NOT_LOADABLE"
    assert plane.infer(plane.register("m", 7.0)) == 7.0
    fetches = plane.blobs.fetches

    for version in reversed(versions):
        plane.refusal(version)

    assert plane.blobs.fetches == fetches + 2
    assert len(plane.models._failures) == 3


def test_a_bug_in_a_load_keeps_its_traceback(plane: ClockedPlane) -> None:
    plane.runtime.refusals = [ValueError("a bug")]

    with pytest.raises(ValueError, match="a bug") as caught:
        plane.infer(plane.register("m"))

    assert caught.traceback[-1].name == "load"
    assert caught.value.__traceback__ is not None


def test_cached_failures_keep_no_request_in_memory(plane: ClockedPlane) -> None:
    class Body:
        pass

    version = plane.register("m", b"no number")

    def request() -> "weakref.ref[Body]":
        body = Body()
        plane.refusal(version)
        return weakref.ref(body)

    bodies = [request() for _ in range(3)]
    gc.collect()
    assert [body() for body in bodies] == [None] * 3


class FailingBlobs(MemoryBlobs):
    """Storage whose next fetches fail, as if a freeze had broken the connections."""

    def __init__(self, failures: int, code: str | None = None) -> None:
        super().__init__()
        self.failures, self.code = failures, code

    def fetch(self, blob: Blob, path: Path) -> None:
        self.failures -= 1
        if self.failures >= 0:
            self.fetches += 1
            raise Unavailable("storage cannot be reached; try again", code=self.code)
        super().fetch(blob, path)


@pytest.mark.parametrize(
    ("failures", "code", "fetches", "answered"),
    [(1, None, 2, True), (2, None, 2, False), (1, "BLOB_MISSING", 1, False)],
    ids=["once", "twice", "missing"],
)
def test_a_download_is_retried_once_unless_the_blob_is_missing(
    plane: ClockedPlane, failures: int, code: str | None, fetches: int, answered: bool
) -> None:
    version = plane.register("m")
    plane.models._blobs = blobs = FailingBlobs(failures, code)
    blobs.content = plane.blobs.content

    if answered:
        assert plane.infer(version) == 2.0
    else:
        plane.refusal(version)
    assert blobs.fetches == fetches


def test_a_load_thread_that_cannot_start_is_a_refusal(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    version = plane.register("m")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert plane.refusal(version).instance_code == "MODELS_BUSY"
    assert plane.models.held_bytes() == (0, 0)
    plane.cache_clock.now += model_cache.UNAVAILABLE_SECONDS
    assert plane.infer(version) == 2.0


def test_models_are_loaded_with_a_main_threads_stack(plane: ClockedPlane) -> None:
    """The size is read from the running thread with glibc."""
    sizes: list[int] = []
    libc = ctypes.CDLL(None)

    class Runtime:
        def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
            attributes, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
            libc.pthread_self.restype = ctypes.c_void_p
            assert not libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes)
            libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
            sizes.append(size.value)
            return ScaleSession(2.0, plane.runtime)

    before = threading.stack_size(1 * MB)
    try:
        plane.models._runtime = Runtime()
        plane.infer(plane.register("m"))
        assert threading.stack_size() == 1 * MB
    finally:
        threading.stack_size(before)
    assert sizes[0] >= 8 * MB - 64 * 1024


def test_a_load_whose_request_timed_out_warms_up(plane: ClockedPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register_with_sample("m", 2.0)
    with pytest.raises(Unavailable, match="still loading"):
        plane.infer(version, seconds=0.0)

    plane.runtime.gate.set()
    join_loads()

    assert plane.runtime.runs == [2.0]
    assert plane.infer(version) == 2.0
    assert plane.runtime.runs == [2.0]
