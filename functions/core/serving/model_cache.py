"""Models in the memory of this environment: each loaded once, together within a bound, the longest unused out first.

The files of a model lie in a private directory only while it is loaded. What the runtime maps it keeps mapped after
they are removed, so nothing stays behind when an environment is killed; their blocks are taken until it lets go.

A load goes on when the request that asked for it has given up, and when the environment is frozen in between.
"""

import copy
import errno
import itertools
import json
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from functions.core.errors import PlatformError, Unavailable
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import Blob, Version

if TYPE_CHECKING:
    from functions.core.protocol.tensors import Tensor

MB = 1024 * 1024
MODEL_OVERHEAD_BYTES = 2 * MB  # a session without weights takes 0.5-1 MB
WEIGHTS_FACTOR = (
    2  # memory over file size: the weights, and the copy that the runtime packs for its kernels
)
STORAGE_RESERVE_BYTES = 16 * MB  # of temporary storage, left to others
LOADING_STACK_BYTES = 8 * MB
FETCHES = 8  # files of one model at a time
WARM_UP_SECONDS = 10.0  # for the first run of a model that nobody waits for
FAILURES = 256  # models that could not be loaded, remembered
FAILED_SECONDS = 30  # how long: the same bytes fail again,
UNAVAILABLE_SECONDS = 1  # storage may be back

Files = tuple[Blob, ...]

_numbers = itertools.count()


class Session(Protocol):
    """A model in memory."""

    def run(
        self, inputs: "Mapping[str, Tensor]", outputs: Sequence[str], timeout_s: float
    ) -> "dict[str, Tensor]":
        """The wanted outputs.

        Raises:
            InvalidRequest: values that a tensor of the runtime cannot hold.
            ExecutionFailed: the model refused the values.
            TimedOut: it was stopped after `timeout_s`.
            MemoryError: it asked for more memory than there is.
        """


class Runtime(Protocol):
    """What makes sessions."""

    def load(self, path: Path, plan: Plan | None = None) -> Session:
        """The session of a model file; its weights, if outside, lie beside it under the names that it gives them.

        Without a plan it is loaded as any file would be.

        Raises:
            InvalidModel: the runtime refuses the model.
            MemoryError: it does not fit.
        """


class Blobs(Protocol):
    """Where model files are kept."""

    def fetch(self, blob: Blob, path: Path) -> None:
        """Write the blob to `path`, complete and verified or not at all.

        Raises:
            Unavailable: it could not be read, or is not what its digest says.
        """


def footprint_bytes(version: Version) -> int:
    """The memory that `version` is expected to take: what was measured at its registration, or else a guess."""
    if measured := version.measured.get("resident_mb"):
        return int(measured * MB) + MODEL_OVERHEAD_BYTES
    return WEIGHTS_FACTOR * version.size_bytes + MODEL_OVERHEAD_BYTES


def loading_bytes(version: Version) -> int:
    """The same while it is loaded and run for the first time."""
    peak = int(version.measured.get("peak_memory_mb", 0.0) * MB) + MODEL_OVERHEAD_BYTES
    return max(peak, footprint_bytes(version))


class _Slot:
    """One model, in memory or on its way. `users` counts the requests in it, and its loading."""

    __slots__ = ("done", "error", "file_bytes", "session", "size_bytes", "users")

    def __init__(self, size_bytes: int, file_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.file_bytes = file_bytes
        self.session: Session | None = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self.users = 1


class ModelCache:
    """Sessions by content: versions with the same files share one.

    `memory_bytes` bounds the sum of footprints, `storage_bytes` that of the files in `directory` and of those removed
    but still mapped; by default it is what is free there now. One session is made at a time, so that only one model
    takes for a moment more than it does afterwards.
    """

    def __init__(
        self,
        blobs: Blobs,
        runtime: Runtime,
        *,
        memory_bytes: int,
        directory: Path,
        storage_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if storage_bytes is None:
            storage_bytes = _free_bytes(directory) - STORAGE_RESERVE_BYTES
        self._blobs = blobs
        self._runtime = runtime
        self._memory_bytes = memory_bytes
        self._storage_bytes = storage_bytes
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._slots: OrderedDict[Files, _Slot] = OrderedDict()  # the longest unused first
        self._failures: OrderedDict[Files, tuple[BaseException, float]] = (
            OrderedDict()
        )  # the oldest first

    def holds(self, version: Version) -> bool:
        """Whether `version` would be answered without loading it."""
        slot = self._slots.get(version.files)
        return slot is not None and slot.session is not None

    def held_bytes(self) -> tuple[int, int]:
        """Memory and temporary storage that are taken now."""
        with self._lock:
            return self._held()

    def check_fits(self, version: Version) -> None:
        """Raises:
        Unavailable: no environment of this size can serve `version`.
        """
        need = footprint_bytes(version)
        if need > self._memory_bytes:
            room = self._memory_bytes // MB
            raise _too_large(
                version, f"takes about {need // MB} MB of memory, {room} MB are kept for models"
            )
        if version.size_bytes > self._storage_bytes:
            room = max(0, self._storage_bytes) // MB
            raise _too_large(
                version,
                f"takes {version.size_bytes // MB} MB of temporary storage, there are {room} MB",
            )

    @contextmanager
    def session(
        self, version: Version, deadline: float, *, evict: bool = True
    ) -> Iterator[Session]:
        """The session of `version`, loaded if need be, and kept as long as the caller is in here.

        A load that does not end before `deadline` (an instant of the clock) goes on for the next request. One that
        failed is not tried again for a while: its error stands. Without `evict` it takes only room that is free.

        Raises:
            Unavailable: it cannot be fetched, does not fit now, or is still loading.
            InvalidModel: the runtime refuses it.
        """
        slot = self._enter(version, evict)
        try:
            if not slot.done.is_set() and not slot.done.wait(max(0.0, deadline - self._clock())):
                raise _not_ready(
                    version, "is still loading; try again", code="MODEL_LOADING", retry_after_s=2
                )
            if slot.error is not None:
                raise _again(slot.error, slot.error.__traceback__)
            if slot.session is None:
                raise LookupError("a model was loaded without a session")
            yield slot.session
        finally:
            self._leave(slot)

    def begin(self, version: Version) -> None:
        """Load `version` if need be; whoever asks for it next waits for that.

        Raises:
            Unavailable, InvalidModel: as `session` does, where that is known already.
        """
        self._leave(self._enter(version, evict=True))

    def warm_up(self, version: Version, session: Session, deadline: float) -> None:
        """Run the sample of `version` once, so that the first request does not pay for what only a first run does.

        For loads that no request waits for: where one does, it is that first run itself. Nothing that goes wrong here
        is worth an error.
        """
        if version.sample is None or version.signature is None or not version.plan.get("warmup"):
            return
        from functions.core.protocol.infer_body import (
            decode_infer,  # not imported yet when a load can begin
        )

        try:
            with _folder(self._directory) as folder:
                path = folder / version.sample.name
                self._blobs.fetch(version.sample, path)
                body = json.dumps(json.loads(path.read_bytes())["request"]).encode()
            request = decode_infer(body, None, version.signature)
            session.run(
                request.inputs, [one.name for one in request.outputs], deadline - self._clock()
            )
        except (PlatformError, MemoryError, OSError, ValueError, LookupError, TypeError) as error:
            import logging  # with what formats tracebacks: for this line alone

            logger, told = logging.getLogger(__name__), type(error).__name__
            logger.warning(
                "no warm-up of version %d of %s: %s", version.number, version.model, told
            )

    def evict(self, files: Files) -> None:
        """Free the memory of a model that nobody is using."""
        with self._lock:
            slot = self._slots.get(files)
            if slot is not None and slot.users == 0:
                del self._slots[files]

    def forgive(self, files: Files) -> None:
        """Let the next request load a model again that could not be loaded."""
        with self._lock:
            self._failures.pop(files, None)

    def _enter(self, version: Version, evict: bool) -> _Slot:
        key = version.files
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                self._slots.move_to_end(key)
                slot.users += 1
                return slot
            self._check_failed(key)
            self.check_fits(version)
            slot = _Slot(min(loading_bytes(version), self._memory_bytes), version.size_bytes)
            self._make_room(slot, self._idle() if evict else [])
            self._slots[key] = slot
            slot.users += 1
        try:
            _start(
                threading.Thread(target=self._load, args=(version, slot), name="load", daemon=True)
            )
        except RuntimeError as error:  # no memory for its stack
            refusal = _busy("memory")
            refusal.__cause__ = error
            self._loaded(version, slot, refusal)
            self._leave(slot)
        return slot

    def _leave(self, slot: _Slot) -> None:
        with self._lock:
            slot.users -= 1

    def _load(self, version: Version, slot: _Slot) -> None:
        try:
            slot.session = self._open(version)
        except (
            BaseException
        ) as error:  # whatever it is, it is told to the requests that wait for it
            self._loaded(version, slot, self._told(error, version))
        else:
            self._loaded(version, slot, None)
            if slot.users == 1:  # nobody waits
                self.warm_up(version, slot.session, self._clock() + WARM_UP_SECONDS)
        self._leave(slot)

    def _loaded(self, version: Version, slot: _Slot, error: BaseException | None) -> None:
        with self._lock:
            slot.error = error
            if error is None:
                slot.size_bytes = footprint_bytes(version)
                slot.file_bytes = sum(
                    blob.size_bytes for blob in version.files[1:]
                )  # perhaps mapped
            else:
                del self._slots[version.files]
                self._remember_failure(version.files, error)
        slot.done.set()

    def _open(self, version: Version) -> Session:
        with _folder(self._directory) as folder:
            paths = [folder / blob.name for blob in version.files]
            self._fetch_all(version.files, paths)
            plan = Plan.from_record(version.plan) if version.plan else None
            with self._opening:
                try:
                    return self._runtime.load(paths[0], plan)
                except MemoryError:
                    if not self._drop_idle():
                        raise
                return self._runtime.load(
                    paths[0], plan
                )  # loading took more for a moment than was measured

    def _fetch_all(self, files: Files, paths: Sequence[Path]) -> None:
        """At once, because each begins with a wait for its first byte."""
        left = iter(zip(files, paths, strict=True))
        failed: list[BaseException] = []

        def work() -> None:
            try:
                for blob, path in left:
                    if failed:
                        return
                    self._fetch(blob, path)
            except BaseException as error:  # raised below
                failed.append(error)

        others = [
            threading.Thread(target=work, name="fetch", daemon=True) for _ in files[1:FETCHES]
        ]
        with suppress(RuntimeError):  # no memory for a stack: those that there are do it all
            for other in others:
                other.start()
        work()
        for other in others:
            if other.ident is not None:
                other.join()
        if failed:
            raise failed[0]

    def _fetch(self, blob: Blob, path: Path) -> None:
        """Once more where it fails: the environment may have been frozen meanwhile, and its connections died."""
        try:
            self._blobs.fetch(blob, path)
        except Unavailable as error:
            if error.instance_code == "BLOB_MISSING":
                raise
            self._blobs.fetch(blob, path)

    # --- with the lock held -----------------------------------------------------------------------------------------

    def _held(self) -> tuple[int, int]:
        slots = self._slots.values()
        return sum(slot.size_bytes for slot in slots), sum(slot.file_bytes for slot in slots)

    def _make_room(self, wanted: _Slot, idle: Sequence[Files]) -> None:
        """Drop the first of `idle` until `wanted` fits."""
        memory, storage = self._held()
        memory += wanted.size_bytes - self._memory_bytes
        storage += wanted.file_bytes - self._storage_bytes
        dropped = []
        for key in idle:
            if memory <= 0 and storage <= 0:
                break
            slot = self._slots[key]
            if (memory > 0 and slot.size_bytes) or (storage > 0 and slot.file_bytes):
                memory, storage = memory - slot.size_bytes, storage - slot.file_bytes
                dropped.append(key)
        if memory > 0 or storage > 0:
            raise _busy("memory" if memory > 0 else "temporary storage")
        for key in dropped:
            del self._slots[key]

    def _idle(self) -> list[Files]:
        return [key for key, slot in self._slots.items() if slot.users == 0]

    def _check_failed(self, key: Files) -> None:
        error, until = self._failures.get(key, (None, 0.0))
        if error is None:
            return
        left = until - self._clock()
        if left <= 0:
            del self._failures[key]
            return
        again = _again(error)
        if isinstance(again, Unavailable):
            again.retry_after_s = math.ceil(left)
        raise again

    def _remember_failure(self, key: Files, error: BaseException) -> None:
        too_large = isinstance(error, Unavailable) and error.instance_code == "MODEL_TOO_LARGE"
        for_now = isinstance(error, Unavailable) and not too_large
        seconds = UNAVAILABLE_SECONDS if for_now else FAILED_SECONDS
        self._failures[key] = _again(error), self._clock() + seconds
        self._failures.move_to_end(key)
        if len(self._failures) > FAILURES:
            self._failures.popitem(last=False)

    # ----------------------------------------------------------------------------------------------------------------

    def _told(self, error: BaseException, version: Version) -> BaseException:
        """What a request is told of an error in a load."""
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, MemoryError) or number == errno.ENOMEM:
            with self._lock:
                others = sum(slot.users > 0 for slot in self._slots.values()) - 1
            if others:
                return _busy("memory")
            text = f"({version.size_bytes // MB} MB) does not fit into the memory there is"
            return _too_large(version, text)
        return _busy("temporary storage") if number in (errno.ENOSPC, errno.EDQUOT) else error

    def _drop_idle(self) -> int:
        """Returns how many there were."""
        with self._lock:
            dropped = self._idle()
            for key in dropped:
                del self._slots[key]
            return len(dropped)


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent`, which this process has for itself. `tempfile` costs 3 ms of a cold start."""
    folder = parent / f"{os.getpid()}-{next(_numbers)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        with suppress(OSError):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _start(thread: threading.Thread) -> None:
    """With as much stack as the main thread has, where a registration loaded the model."""
    before = threading.stack_size(LOADING_STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(before)


def _again(error: BaseException, trace: TracebackType | None = None) -> BaseException:
    """A copy, because the traceback of an error that was raised holds on to the request and its body."""
    try:
        return copy.copy(error).with_traceback(trace)
    except TypeError:  # no exception of ours
        return error.with_traceback(trace)


def _busy(what: str) -> Unavailable:
    return Unavailable(
        f"the models in use leave no {what} for another one now; try again", code="MODELS_BUSY"
    )


def _not_ready(version: Version, why: str, code: str, retry_after_s: int) -> Unavailable:
    text = f"Model version not ready: version {version.number} of '{version.model}' {why}"
    return Unavailable(text, code=code, retry_after_s=retry_after_s)


def _too_large(version: Version, why: str) -> Unavailable:
    return _not_ready(
        version,
        f"{why}; give this function more",
        code="MODEL_TOO_LARGE",
        retry_after_s=FAILED_SECONDS,
    )
