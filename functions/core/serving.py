"""Models in the memory of this environment: each loaded once, together within a bound, the longest unused out first.

The files of a model lie in a private directory only while it is loaded. What the runtime maps it keeps mapped after
they are removed, so nothing stays behind when an environment is killed.
"""

import json
import logging
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from functions.core.errors import PlatformError, Unavailable
from functions.core.protocol import decode_infer
from functions.core.registry import Blob, Version
from functions.core.workbench import Plan

if TYPE_CHECKING:
    import numpy as np

MB = 1024 * 1024
MODEL_OVERHEAD_BYTES = 2 * MB  # a session without weights takes 0.5-1 MB
WEIGHTS_FACTOR = 2  # memory over file size: the weights, and the copy that the runtime packs for its kernels
DISK_RESERVE_BYTES = 16 * MB

Files = tuple[Blob, ...]

log = logging.getLogger(__name__)


class Session(Protocol):
    """A model in memory."""

    def run(
        self, inputs: "Mapping[str, np.ndarray]", outputs: Sequence[str], timeout_s: float
    ) -> "dict[str, np.ndarray]":
        """The wanted outputs, in the array conventions of `core.tensors`.

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


class _Slot:
    """One model, in memory or on its way. `users` counts the requests in it, and its loading."""

    __slots__ = ("done", "error", "session", "size_bytes", "users")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.session: Session | None = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self.users = 1


class ModelCache:
    """Sessions by content: versions with the same files share one. `memory_bytes` bounds the sum of footprints."""

    def __init__(
        self,
        blobs: Blobs,
        runtime: Runtime,
        *,
        memory_bytes: int,
        directory: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blobs = blobs
        self._runtime = runtime
        self._memory_bytes = memory_bytes
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: OrderedDict[Files, _Slot] = OrderedDict()  # the longest unused first

    def holds(self, version: Version) -> bool:
        """Whether `version` would be answered without loading it."""
        slot = self._slots.get(version.files)
        return slot is not None and slot.session is not None

    def check_fits(self, version: Version) -> None:
        """Raises:
        Unavailable: no environment of this size can serve `version`.
        """
        need = footprint_bytes(version)
        if need > self._memory_bytes:
            room = self._memory_bytes // MB
            raise _too_large(version, f"takes about {need // MB} MB of memory, {room} MB are kept for models")

    @contextmanager
    def session(self, version: Version, deadline: float) -> Iterator[Session]:
        """The session of `version`, loaded if need be, and kept as long as the caller is in here.

        A load that does not end before `deadline` (an instant of the clock) goes on for the next request.

        Raises:
            Unavailable: it cannot be fetched, does not fit now, or is still loading.
            InvalidModel: the runtime refuses it.
        """
        slot = self._enter(version)
        try:
            if not slot.done.is_set() and not slot.done.wait(max(0.0, deadline - self._clock())):
                raise _not_ready(version, "is still loading; try again", code="MODEL_LOADING", retry_after_s=2)
            if slot.error is not None:
                raise slot.error.with_traceback(None)
            if slot.session is None:
                raise LookupError("a model was loaded without a session")
            yield slot.session
        finally:
            with self._lock:
                slot.users -= 1

    def warm_up(self, version: Version, session: Session, deadline: float) -> None:
        """Run the sample of `version` once, so that the first request does not pay for what only a first run does.

        For loads that no request waits for: where one does, it is that first run itself. Nothing that goes wrong here
        is worth an error.
        """
        if version.sample is None or version.signature is None or not version.plan.get("warmup"):
            return
        try:
            with tempfile.TemporaryDirectory(prefix="sample-", dir=self._directory) as name:
                path = Path(name) / version.sample.name
                self._blobs.fetch(version.sample, path)
                body = json.dumps(json.loads(path.read_bytes())["request"]).encode()
            request = decode_infer(body, None, version.signature)
            session.run(request.inputs, [one.name for one in request.outputs], deadline - self._clock())
        except (PlatformError, MemoryError, OSError, ValueError, LookupError, TypeError) as error:
            log.warning("no warm-up of version %d of %s: %s", version.number, version.model, type(error).__name__)

    def evict(self, files: Files) -> None:
        """Free the memory of a model that nobody is using."""
        with self._lock:
            slot = self._slots.get(files)
            if slot is not None and slot.users == 0:
                del self._slots[files]

    def _enter(self, version: Version) -> _Slot:
        key = version.files
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                self.check_fits(version)
                slot = _Slot(footprint_bytes(version))
                self._make_room(slot.size_bytes)
                _start(self._load, version, slot)
                self._slots[key] = slot
            self._slots.move_to_end(key)
            slot.users += 1
            return slot

    def _load(self, version: Version, slot: _Slot) -> None:
        try:
            slot.session = self._open(version)
        except MemoryError:
            slot.error = _too_large(version, f"({version.size_bytes // MB} MB) does not fit into the memory there is")
        except BaseException as error:  # whatever it is, it is told to the requests that wait for it
            slot.error = error
        with self._lock:
            slot.users -= 1
            if slot.error is not None:
                del self._slots[version.files]
        slot.done.set()

    def _open(self, version: Version) -> Session:
        self._make_disk_room(version)
        with tempfile.TemporaryDirectory(prefix=f"{version.digest[:16]}-", dir=self._directory) as name:
            paths = [Path(name) / blob.name for blob in version.files]
            for blob, path in zip(version.files, paths, strict=True):
                self._blobs.fetch(blob, path)
            plan = Plan.from_record(version.plan) if version.plan else None
            try:
                return self._runtime.load(paths[0], plan)
            except MemoryError:
                if not self._drop_idle():
                    raise
            return self._runtime.load(paths[0], plan)  # loading takes more for a moment than the model does afterwards

    def _make_room(self, need: int) -> None:
        """Drop the longest unused until `need` more bytes fit. The lock is held."""
        room = self._memory_bytes - sum(slot.size_bytes for slot in self._slots.values())
        for key in self._idle():
            if room >= need:
                break
            room += self._slots.pop(key).size_bytes
        if room < need:
            raise Unavailable("the models in use leave no memory for another one now; try again", code="MODELS_BUSY")

    def _make_disk_room(self, version: Version) -> None:
        """Drop the longest unused, which may hold mapped files, until the files of `version` fit."""
        need = version.size_bytes + DISK_RESERVE_BYTES
        while shutil.disk_usage(self._directory).free < need:
            if not self._drop_idle(1):
                raise _too_large(version, f"takes {need // MB} MB of temporary storage, more than there is")

    def _drop_idle(self, count: int | None = None) -> int:
        """Drop the `count` longest unused, or all idle ones. Returns how many there were."""
        with self._lock:
            dropped = self._idle()[:count]
            for key in dropped:
                del self._slots[key]
            return len(dropped)

    def _idle(self) -> list[Files]:
        return [key for key, slot in self._slots.items() if slot.users == 0]


def _start(load: Callable[[Version, _Slot], None], version: Version, slot: _Slot) -> None:
    try:
        threading.Thread(target=load, args=(version, slot), name="load", daemon=True).start()
    except RuntimeError as error:  # no memory for its stack
        raise Unavailable("there is no memory to load a model now; try again", code="MODELS_BUSY") from error


def _not_ready(version: Version, why: str, code: str, retry_after_s: int) -> Unavailable:
    text = f"Model version not ready: version {version.number} of '{version.model}' {why}"
    return Unavailable(text, code=code, retry_after_s=retry_after_s)


def _too_large(version: Version, why: str) -> Unavailable:
    return _not_ready(version, f"{why}; give this function more", code="MODEL_TOO_LARGE", retry_after_s=60)
