"""LRU cache of loaded models, within bounds on memory and temporary storage.

A model's files lie in a private directory only while it is loaded. What the runtime has mapped
stays mapped after the files are removed. So a killed environment leaves no files behind, but the
disk blocks stay occupied until the runtime unmaps them.

A load continues when the request that started it has timed out, and when the environment was
frozen in between.
"""

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
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from functions.core.errors import PlatformError, Unavailable, copy_error
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import Blob, Version
from functions.core.threads import start_thread

if TYPE_CHECKING:
    from functions.core.protocol.tensors import Tensor

MB = 1024 * 1024
MODEL_OVERHEAD_BYTES = 2 * MB  # a session without weights takes 0.5-1 MB
WEIGHTS_FACTOR = 2  # copies of the weights: as loaded, and packed for the runtime's kernels
STORAGE_RESERVE_BYTES = 16 * MB  # temporary storage left to the rest of the process
LOADING_STACK_BYTES = 8 * MB  # size of a main thread's stack, with which registration loads
FETCHES = 8  # parallel downloads for one model
WARM_UP_SECONDS = 10.0  # limit for a warm-up run that no request waits for
FAILURES = 256  # failed loads that are cached
FAILED_SECONDS = 30  # lifetime of a cached failure: the same bytes fail again
UNAVAILABLE_SECONDS = 1  # lifetime of a cached storage failure, which may soon be over

Files = tuple[Blob, ...]
S = TypeVar("S")  # a loaded model

_folder_numbers = itertools.count()


class Session(Protocol):
    """Interface to a loaded model that can run inference."""

    def run(
        self,
        inputs: "Mapping[str, Tensor]",
        outputs: Sequence[str],
        timeout_s: float,
        reply_bytes_max: int | None = None,
    ) -> "dict[str, Tensor]":
        """Run the model on input tensors and return outputs by name.

        An output that a reply of `reply_bytes_max` cannot hold is not copied.

        Raises:
            InvalidRequest: values that a tensor of the runtime cannot hold.
            ExecutionFailed: the model refused the values.
            PayloadTooLarge: an output exceeds `reply_bytes_max`.
            TimedOut: it was stopped after `timeout_s`.
            MemoryError: it asked for more memory than there is.
        """


class Runtime(Protocol):
    """Interface to a runtime that loads model files, e.g. ONNX Runtime."""

    def load(self, path: Path, plan: Plan | None = None) -> Session:
        """Load the model file at `path` into memory.

        External weights lie in the same directory, under the names that the model uses. Without a
        plan the runtime's defaults apply.

        Raises:
            InvalidModel: the runtime refuses the model.
            MemoryError: it does not fit.
        """


class Blobs(Protocol):
    """Interface to the storage from which model files are downloaded."""

    def fetch(self, blob: Blob, path: Path) -> None:
        """Download a blob to `path`, complete and digest-checked or not at all.

        Raises:
            Unavailable: it could not be read, or does not match its digest.
        """


def footprint_bytes(version: Version) -> int:
    """Return the memory in bytes that a loaded model version takes.

    Measured at registration, or estimated from the size of its files.
    """
    if measured := version.measured.get("resident_mb"):
        return int(measured * MB) + MODEL_OVERHEAD_BYTES
    return WEIGHTS_FACTOR * version.size_bytes + MODEL_OVERHEAD_BYTES


def loading_bytes(version: Version) -> int:
    """Return the peak memory in bytes of loading and running a version."""
    peak = int(version.measured.get("peak_memory_mb", 0.0) * MB) + MODEL_OVERHEAD_BYTES
    return max(peak, footprint_bytes(version))


class _Slot(Generic[S]):
    """Model cache entry: a model in memory or being loaded.

    `users` counts the requests that use it, plus one while it is loading.
    """

    __slots__ = ("done", "error", "file_bytes", "ready", "session", "size_bytes", "users")

    def __init__(self, size_bytes: int, file_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.file_bytes = file_bytes
        self.session: S | None = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self.ready = False  # done, without an error
        self.users = 1


class Lease(Generic[S]):
    """Context manager that keeps a model loaded from its creation on.

    `waits` is True if the model was not loaded then.
    """

    __slots__ = ("_cache", "_deadline", "_slot", "_version", "waits")

    def __init__(
        self, cache: "FileCache[S]", version: Version, deadline: float, evict: bool
    ) -> None:
        self._cache = cache
        self._version = version
        self._deadline = deadline
        self._slot, self.waits = cache._acquire(version, evict)

    def __enter__(self) -> S:
        slot = self._slot
        if slot.ready and slot.session is not None:
            return slot.session
        try:
            return self._cache._await(slot, self._version, self._deadline)
        except BaseException:
            self._cache._release(slot)
            raise

    def __exit__(self, *_: object) -> None:
        with self._cache._lock:
            self._slot.users -= 1


class FileCache(Generic[S]):
    """LRU cache of loaded models, bounded in memory and temporary storage.

    Its keys are the models' files. Versions with the same files share a session. A subclass says
    how they are loaded.

    `memory_bytes` bounds the sum of footprints. `storage_bytes` bounds the files in `directory`
    plus the removed files that are still mapped; its default is the free space at the start. One
    session is created at a time, so that only one model needs its peak memory.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        memory_bytes: int,
        directory: Path,
        storage_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if storage_bytes is None:
            storage_bytes = _free_bytes(directory) - STORAGE_RESERVE_BYTES
        self._blobs = blobs
        self._memory_bytes = memory_bytes
        self._storage_bytes = storage_bytes
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        # Least recently used first.
        self._slots: OrderedDict[Files, _Slot[S]] = OrderedDict()
        # Error and the time until which it is repeated; oldest first.
        self._failures: OrderedDict[Files, tuple[BaseException, float]] = OrderedDict()

    def holds(self, version: Version) -> bool:
        """Return True if the model version is loaded in memory."""
        slot = self._slots.get(self._files_of(version))
        return slot is not None and slot.session is not None

    def held_bytes(self) -> tuple[int, int]:
        """Return the memory and temporary storage that models use, in bytes."""
        with self._lock:
            return self._held()

    def check_fits(self, version: Version) -> None:
        """Raise Unavailable if a version exceeds this environment's memory or storage.

        Raises:
            Unavailable: it is too large (MODEL_TOO_LARGE).
        """
        need = self._footprint_bytes(version)
        if need > self._memory_bytes:
            room = self._memory_bytes // MB
            reason = f"takes about {need // MB} MB of memory, {room} MB are kept for models"
            raise _too_large(version, reason)
        if version.size_bytes > self._storage_bytes:
            need, room = version.size_bytes // MB, max(0, self._storage_bytes) // MB
            raise _too_large(version, f"takes {need} MB of temporary storage, there are {room} MB")

    def session(self, version: Version, deadline: float, *, evict: bool = True) -> Lease[S]:
        """Load a model version if needed; keep it during a `with` block.

        A load that is not done at `deadline` (a time of the clock) continues for the next request.
        A failed load is not retried for a while; its error is raised again. Without `evict` only
        free memory is used.

        Raises:
            Unavailable: it cannot be fetched, does not fit now, or is still loading.
            InvalidModel: the runtime refuses it.
        """
        return Lease(self, version, deadline, evict)

    def _await(self, slot: _Slot[S], version: Version, deadline: float) -> S:
        """Wait for a model's load; return its session."""
        if not slot.done.is_set() and not slot.done.wait(max(0.0, deadline - self._clock())):
            raise _not_ready(
                version, "is still loading; try again", code="MODEL_LOADING", retry_after_s=2
            )
        if slot.error is not None:
            raise copy_error(slot.error, slot.error.__traceback__)
        if slot.session is None:
            raise LookupError("a model was loaded without a session")
        return slot.session

    def start_loading(self, version: Version) -> None:
        """Load a model version in the background, unless loaded or loading.

        Raises:
            Unavailable, InvalidModel: as `session` does, where no load is needed to find out.
        """
        slot, _ = self._acquire(version, evict=True)
        self._release(slot)

    def warm_up(self, version: Version, session: S, deadline: float) -> None:
        """Run a model once after a load that no request awaits."""

    def evict(self, files: Files) -> None:
        """Remove a model from the cache, unless a request uses it."""
        with self._lock:
            slot = self._slots.get(files)
            if slot is not None and slot.users == 0:
                del self._slots[files]

    def clear_failure(self, files: Files) -> None:
        """Forget a model's cached load failure, so the next request retries."""
        with self._lock:
            self._failures.pop(files, None)

    def _acquire(self, version: Version, evict: bool) -> tuple[_Slot[S], bool]:
        """Return a model version's cache entry, counting one more user.

        A new slot is created if there is none, and its load is started. The second result is True
        if the model was not loaded.
        """
        key = self._files_of(version)
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                self._slots.move_to_end(key)
                slot.users += 1
                return slot, not slot.ready
            self._raise_cached_failure(key)
            self.check_fits(version)
            slot = _Slot[S](
                min(self._loading_bytes(version), self._memory_bytes), version.size_bytes
            )
            self._make_room(slot, self._idle() if evict else [])
            self._slots[key] = slot
            slot.users += 1
        self._start_load(version, slot)
        return slot, True

    def _release(self, slot: _Slot[S]) -> None:
        with self._lock:
            slot.users -= 1

    def _start_load(self, version: Version, slot: _Slot[S]) -> None:
        thread = threading.Thread(target=self._load, args=(version, slot), name="load", daemon=True)
        try:
            start_thread(thread, LOADING_STACK_BYTES)
        except RuntimeError as error:  # no memory for the thread's stack
            refusal = _busy("memory")
            refusal.__cause__ = error
            self._finish_load(version, slot, refusal)

    def _load(self, version: Version, slot: _Slot[S]) -> None:
        """Load a model version into its cache entry, in a separate thread."""
        try:
            slot.session = self._fetch_and_open(version)
        except BaseException as error:  # `session` raises it in the waiting requests
            refusal = error
            with suppress(MemoryError):
                refusal = self._as_refusal(error, version)
            self._finish_load(version, slot, refusal)
            return
        if not self._finish_load(version, slot, None):
            self.warm_up(version, slot.session, self._clock() + WARM_UP_SECONDS)
            self._release(slot)

    def _finish_load(self, version: Version, slot: _Slot[S], error: BaseException | None) -> bool:
        """Publish a finished or failed model load to the waiting requests.

        Returns False if it succeeded and no request waits: the slot then stays in use, for the
        warm-up. Otherwise the load stops using it before the requests continue, so that the next
        request may evict it.
        """
        with self._lock:
            slot.error = error
            ended = error is not None or slot.users > 1
            if ended:
                slot.users -= 1
            if error is None:
                slot.size_bytes = self._footprint_bytes(version)
                weights = version.files[1:]  # the runtime may have mapped these
                slot.file_bytes = sum(blob.size_bytes for blob in weights)
            else:
                del self._slots[self._files_of(version)]
                with suppress(MemoryError):  # a request may have left none; waiting ones must go on
                    self._cache_failure(self._files_of(version), error)
        slot.ready = error is None
        slot.done.set()
        return ended

    def _fetch_and_open(self, version: Version) -> S:
        files = self._files_of(version)
        with _private_folder(self._directory) as folder:
            paths = [folder / blob.name for blob in files]
            self._fetch_all(files, paths)
            with self._opening:
                return self._open(version, paths)

    def _open(self, version: Version, paths: Sequence[Path]) -> S:
        """Load a model's files; without memory, evict idle models and retry once.

        A load can need more memory for a moment than registration measured.
        """
        try:
            return self._load_files(version, paths)
        except MemoryError:
            if not self._evict_idle():
                raise
        return self._load_files(version, paths)

    def _fetch_all(self, files: Files, paths: Sequence[Path]) -> None:
        """Download the files of a model in parallel.

        Each download waits for its first byte, so parallel ones take less time.
        """
        remaining = iter(zip(files, paths, strict=True))
        errors: list[BaseException] = []
        threads = [
            threading.Thread(
                target=self._fetch_remaining, args=(remaining, errors), name="fetch", daemon=True
            )
            for _ in files[1:FETCHES]
        ]
        with suppress(RuntimeError):  # no memory for a stack: fewer threads fetch everything
            for thread in threads:
                thread.start()
        self._fetch_remaining(remaining, errors)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if errors:
            raise errors[0]

    def _fetch_remaining(
        self, remaining: Iterator[tuple[Blob, Path]], errors: list[BaseException]
    ) -> None:
        try:
            for blob, path in remaining:
                if errors:
                    return
                self._fetch(blob, path)
        except BaseException as error:  # raised by `_fetch_all`
            errors.append(error)

    def _fetch(self, blob: Blob, path: Path) -> None:
        """Download one model file; after a failure, retry once.

        The environment may have been frozen, which breaks connections.
        """
        try:
            self._blobs.fetch(blob, path)
        except Unavailable as error:
            if error.instance_code == "BLOB_MISSING":
                raise
            self._blobs.fetch(blob, path)

    def _as_refusal(self, error: BaseException, version: Version) -> BaseException:
        """Translate lack of memory or storage into Unavailable; return other errors unchanged."""
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            return _busy("temporary storage")
        if not isinstance(error, MemoryError) and number != errno.ENOMEM:
            return error
        with self._lock:
            models_in_use = sum(slot.users > 0 for slot in self._slots.values())
        if models_in_use > 1:  # the model being loaded counts as in use
            return _busy("memory")
        size_mb = version.size_bytes // MB
        return _too_large(version, f"({size_mb} MB) does not fit into the memory there is")

    def _evict_idle(self) -> int:
        """Evict every idle model from the cache; return the number evicted."""
        with self._lock:
            idle = self._idle()
            for key in idle:
                del self._slots[key]
            return len(idle)

    # --- what is loaded, and how

    def _files_of(self, version: Version) -> Files:
        """Return the files that a version is loaded from, and cached by."""
        return version.files

    def _load_files(self, version: Version, paths: Sequence[Path]) -> S:
        """Load a version's files, which lie in one folder."""
        raise NotImplementedError

    def _footprint_bytes(self, version: Version) -> int:
        return footprint_bytes(version)

    def _loading_bytes(self, version: Version) -> int:
        return loading_bytes(version)

    # --- with the lock held

    def _held(self) -> tuple[int, int]:
        slots = self._slots.values()
        return sum(slot.size_bytes for slot in slots), sum(slot.file_bytes for slot in slots)

    def _idle(self) -> list[Files]:
        return [key for key, slot in self._slots.items() if slot.users == 0]

    def _make_room(self, slot: _Slot[S], idle: Sequence[Files]) -> None:
        """Evict idle models, in order, until the new cache entry fits.

        Raises:
            Unavailable: it does not fit even then; nothing is evicted.
        """
        memory, storage = self._held()
        excess_memory = memory + slot.size_bytes - self._memory_bytes
        excess_storage = storage + slot.file_bytes - self._storage_bytes
        evicted = []
        for key in idle:
            if excess_memory <= 0 and excess_storage <= 0:
                break
            size_bytes, file_bytes = self._slots[key].size_bytes, self._slots[key].file_bytes
            if (excess_memory > 0 and size_bytes) or (excess_storage > 0 and file_bytes):
                excess_memory -= size_bytes
                excess_storage -= file_bytes
                evicted.append(key)
        if excess_memory > 0 or excess_storage > 0:
            raise _busy("memory" if excess_memory > 0 else "temporary storage")
        for key in evicted:
            del self._slots[key]

    def _raise_cached_failure(self, key: Files) -> None:
        error, until = self._failures.get(key, (None, 0.0))
        if error is None:
            return
        remaining_s = until - self._clock()
        if remaining_s <= 0:
            del self._failures[key]
            return
        error = copy_error(error)
        if isinstance(error, Unavailable):
            error.retry_after_s = math.ceil(remaining_s)
        raise error

    def _cache_failure(self, key: Files, error: BaseException) -> None:
        too_large = isinstance(error, Unavailable) and error.instance_code == "MODEL_TOO_LARGE"
        temporary = isinstance(error, Unavailable) and not too_large
        seconds = UNAVAILABLE_SECONDS if temporary else FAILED_SECONDS
        self._failures[key] = copy_error(error), self._clock() + seconds
        self._failures.move_to_end(key)
        if len(self._failures) > FAILURES:
            self._failures.popitem(last=False)


class ModelCache(FileCache[Session]):
    """LRU cache of models in a runtime for tensors."""

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
        super().__init__(
            blobs,
            memory_bytes=memory_bytes,
            directory=directory,
            storage_bytes=storage_bytes,
            clock=clock,
        )
        self._runtime = runtime

    def warm_up(self, version: Version, session: Session, deadline: float) -> None:
        """Run the model's sample request once, because first runs are slower.

        Only for loads that no request waits for: a waiting request is the first run itself. Errors
        are logged and not raised.
        """
        if version.sample is None or version.signature is None or not version.plan.get("warmup"):
            return
        # Not at the top: a load may start before this module is imported (see infer/prefetch.py).
        from functions.core.protocol.infer_request import decode_infer

        try:
            request = decode_infer(self._sample_body(version.sample), None, version.signature)
            outputs = [output.name for output in request.outputs]
            session.run(request.inputs, outputs, deadline - self._clock())
        except (PlatformError, MemoryError, OSError, ValueError, LookupError, TypeError) as error:
            import logging  # not at the top: it imports the formatting of tracebacks

            logging.getLogger(__name__).warning(
                "no warm-up of version %d of %s: %s",
                version.number,
                version.model,
                type(error).__name__,
            )

    def _load_files(self, version: Version, paths: Sequence[Path]) -> Session:
        plan = Plan.from_record(version.plan) if version.plan else None
        return self._runtime.load(paths[0], plan)

    def _sample_body(self, sample: Blob) -> bytes:
        """Download a model's sample and return its request body as JSON."""
        with _private_folder(self._directory) as folder:
            path = folder / sample.name
            self._blobs.fetch(sample, path)
            document = json.loads(path.read_bytes())
        return json.dumps(document["request"]).encode()


@contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    """Create an empty private folder for the duration of a `with` block.

    Not `tempfile`, whose import takes 3 ms of a cold start.
    """
    folder = parent / f"{os.getpid()}-{next(_folder_numbers)}"
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


def _busy(resource: str) -> Unavailable:
    return Unavailable(
        f"the models in use leave no {resource} for another one now; try again", code="MODELS_BUSY"
    )


def _not_ready(version: Version, reason: str, code: str, retry_after_s: int) -> Unavailable:
    text = f"Model version not ready: version {version.number} of '{version.model}' {reason}"
    return Unavailable(text, code=code, retry_after_s=retry_after_s)


def _too_large(version: Version, reason: str) -> Unavailable:
    reason = f"{reason}; give this function more"
    return _not_ready(version, reason, code="MODEL_TOO_LARGE", retry_after_s=FAILED_SECONDS)
