"""Loading a model: downloads, plans, warm-ups, failures and how long they are cached."""

import ctypes
import errno
import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import (
    InvalidModel,
    Unavailable,
)
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import Blob, Version
from functions.core.serving import model_cache
from functions.core.serving.model_cache import MB, ModelCache
from tests.data_plane import ClockedPlane, ScaleSession
from tests.fakes import MemoryBlobs

PLAN = {"optimised": "extended", "prepacking": False, "threads": 1, "warmup": True, "layout": False}


@pytest.fixture
def plane(tmp_path: Path) -> ClockedPlane:
    return ClockedPlane(tmp_path)


def wide(plane: ClockedPlane, factor: float, graph: int = 10, weights: int = 1000) -> Version:
    """A version with a file of weights, which the runtime maps."""
    text = f"{factor} "
    files = (
        plane.blobs.add("model.onnx", text.ljust(graph).encode()),
        plane.blobs.add("weights.bin", text.ljust(weights).encode()),
    )
    return replace(plane.register("wide", factor), files=files)


def sampled(plane: ClockedPlane, model: str, factor: float, **record: Any) -> Version:
    document = b'{"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}}'
    return plane.register(
        model, factor, plan=PLAN, sample=plane.blobs.add("sample.json", document), **record
    )


def wait_for_loads() -> None:
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(10)


def test_a_version_is_loaded_as_its_plan_says(plane: ClockedPlane) -> None:
    plane.ask(plane.register("m", 2.0, plan=PLAN | {"of a later release": 1}))
    plane.ask(plane.register("m", 3.0))

    assert plane.runtime.plans == [Plan(**PLAN), None]


def test_a_load_that_lacks_memory_is_tried_again_without_the_idle_models(
    plane: ClockedPlane,
) -> None:
    idle, wanted = plane.register("m", 1.0), plane.register("m", 2.0)
    plane.ask(idle)
    plane.runtime.refusals = [MemoryError()]

    assert plane.ask(wanted) == 2.0
    assert not plane.models.holds(idle)


def test_a_load_that_lacks_memory_by_itself_is_told(plane: ClockedPlane) -> None:
    plane.runtime.refusals = [MemoryError()]
    version = plane.register("m")

    with pytest.raises(Unavailable, match="does not fit"):
        plane.ask(version)
    plane.models.clear_failure(version.files)
    assert plane.ask(version) == 2.0
    assert list(plane.directory.iterdir()) == []


@pytest.mark.parametrize(
    "failure", [InvalidModel("x"), ValueError("a bug")], ids=["refused", "bug"]
)
def test_a_failed_load_leaves_nothing_and_is_tried_again(
    plane: ClockedPlane, failure: Exception
) -> None:
    plane.runtime.refusals = [failure]
    version = plane.register("m")

    with pytest.raises(type(failure)):
        plane.ask(version)
    assert not plane.models.holds(version)
    assert list(plane.directory.iterdir()) == []
    plane.models.clear_failure(version.files)
    assert plane.ask(version) == 2.0


def test_a_damaged_download_is_never_opened(plane: ClockedPlane) -> None:
    version = plane.register("m")
    plane.blobs.content[version.files[0].key] = b"666"

    with pytest.raises(Unavailable, match="corrupted"):
        plane.ask(version)
    assert plane.runtime.seen == []


def test_a_load_that_takes_too_long_goes_on_for_the_next_request(plane: ClockedPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m")

    with pytest.raises(Unavailable, match="still loading") as refused:
        plane.ask(version, seconds=0.05)
    assert refused.value.instance_code == "MODEL_LOADING"
    plane.runtime.gate.set()
    assert plane.ask(version) == 2.0
    assert plane.runtime.loads == [2.0]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "MODELS_BUSY"), (errno.ENOMEM, "MODEL_TOO_LARGE")]
)
def test_what_the_system_lacks_is_no_bug(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def full(blob: Blob, path: Path) -> None:
        raise OSError(number, "no")

    version = plane.register("m")
    monkeypatch.setattr(plane.blobs, "fetch", full)

    assert plane.refusal(version).instance_code == code


def test_one_session_is_made_at_a_time(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path)
    making, most = [], []
    both = threading.Barrier(2)

    class Runtime:
        def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
            making.append(path)
            most.append(len(making))
            making.remove(path)
            return ScaleSession(float(path.read_bytes()), plane.runtime)

    class Together(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(10)  # downloads do not wait for each other
            super().fetch(blob, path)

    versions = [plane.register("m", n) for n in (1.0, 2.0)]
    blobs = Together()
    blobs.content = plane.blobs.content
    plane.models = ModelCache(
        blobs, Runtime(), memory_bytes=MB * 100, directory=tmp_path, clock=plane.cache_clock
    )
    threads = [threading.Thread(target=plane.ask, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert most == [1, 1]


def test_the_files_of_a_model_are_fetched_at_once(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path)
    both = threading.Barrier(2)

    class Together(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(10)
            super().fetch(blob, path)

    version = wide(plane, 2.0)
    plane.models._blobs = blobs = Together()
    blobs.content = plane.blobs.content

    assert plane.ask(version) == 2.0
    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


def test_files_that_cannot_be_fetched_end_the_load(plane: ClockedPlane) -> None:
    version = wide(plane, 2.0)
    del plane.blobs.content[version.files[1].key]

    assert plane.refusal(version).instance_code == "BLOB_MISSING"
    assert list(plane.directory.iterdir()) == []


def test_without_memory_for_a_thread_files_are_fetched_one_by_one(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "fetch":
            raise RuntimeError("can't start new thread")
        start(thread)

    version = wide(plane, 2.0)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert plane.ask(version) == 2.0
    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


FAILURES = [
    (InvalidModel("x", code="NOT_LOADABLE"), model_cache.FAILED_SECONDS, "NOT_LOADABLE"),
    (MemoryError(), model_cache.FAILED_SECONDS, "MODEL_TOO_LARGE"),
    (Unavailable("storage does not answer"), model_cache.UNAVAILABLE_SECONDS, "UNAVAILABLE"),
]


@pytest.mark.parametrize(
    ("failure", "seconds", "code"), FAILURES, ids=["invalid", "too large", "unavailable"]
)
def test_a_model_that_could_not_be_loaded_is_not_downloaded_again_for_a_while(
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
    assert plane.ask(version) == 2.0
    assert plane.blobs.fetches == 2


def test_a_load_that_lacks_memory_beside_models_in_use_is_too_large_for_now_only(
    plane: ClockedPlane,
) -> None:
    used, version = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(used, plane.cache_clock.now + 60):
        plane.runtime.refusals = [MemoryError()]
        assert plane.refusal(version).instance_code == "MODELS_BUSY"
        plane.cache_clock.now += model_cache.UNAVAILABLE_SECONDS
        assert plane.ask(version) == 2.0


def test_a_failure_concerns_its_own_model_and_few_are_remembered(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "FAILURES", 3)
    versions = [plane.register("m", f"no number {n}".encode()) for n in range(5)]
    for version in versions:
        assert plane.refusal(version).instance_code == "NOT_LOADABLE"
    assert plane.ask(plane.register("m", 7.0)) == 7.0
    fetches = plane.blobs.fetches

    for version in reversed(versions):
        plane.refusal(version)

    assert plane.blobs.fetches == fetches + 2
    assert len(plane.models._failures) == 3


def test_a_bug_in_a_load_says_where_it_is(plane: ClockedPlane) -> None:
    plane.runtime.refusals = [ValueError("a bug")]

    with pytest.raises(ValueError, match="a bug") as caught:
        plane.ask(plane.register("m"))

    assert caught.traceback[-1].name == "load"
    assert caught.value.__traceback__ is not None


def test_failures_hold_on_to_no_request(plane: ClockedPlane) -> None:
    class Body:
        pass

    version = plane.register("m", b"no number")

    def request() -> "weakref.ref[Body]":
        body = Body()
        plane.refusal(version)
        return weakref.ref(body)

    kept = [request() for _ in range(3)]
    gc.collect()
    assert [one() for one in kept] == [None] * 3


class Dying(MemoryBlobs):
    """Storage whose next fetches fail, as connections do that died while the environment was frozen."""

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
def test_a_download_is_tried_once_more_where_that_may_help(
    plane: ClockedPlane, failures: int, code: str | None, fetches: int, answered: bool
) -> None:
    version = plane.register("m")
    plane.models._blobs = blobs = Dying(failures, code)
    blobs.content = plane.blobs.content

    if answered:
        assert plane.ask(version) == 2.0
    else:
        plane.refusal(version)
    assert blobs.fetches == fetches


def test_no_memory_for_a_thread_is_told_and_takes_nothing(
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
    assert plane.ask(version) == 2.0


def test_models_are_loaded_with_the_stack_of_a_main_thread(plane: ClockedPlane) -> None:
    """glibc says how much: the attributes of the running thread."""
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
        plane.ask(plane.register("m"))
        assert threading.stack_size() == 1 * MB
    finally:
        threading.stack_size(before)
    assert sizes[0] >= 8 * MB - 64 * 1024


def test_a_load_whose_request_gave_up_warms_up(plane: ClockedPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = sampled(plane, "m", 2.0)
    with pytest.raises(Unavailable, match="still loading"):
        plane.ask(version, seconds=0.0)

    plane.runtime.gate.set()
    wait_for_loads()

    assert plane.runtime.runs == [2.0]
    assert plane.ask(version) == 2.0
    assert plane.runtime.runs == [2.0]
