"""ONNX Runtime's C API, as far as we use it, through ctypes.

The wheel brings the library beside its Python package, whose import, with numpy's, every cold start would pay for
(docs/decisions/0016-the-c-api.md). A table of functions in onnxruntime_c_api.h
(`OrtApi`) that only ever grows at its end: a place in it is a promise.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded

import ctypes
import sys
import threading
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

FLOOR = (
    1,
    31,
    1,
)  # below it, crafted models crash the process (field notes on security, section 1.1)
API_VERSION = 24  # of the table: the first that has all of these
FATAL = 4  # OrtLoggingLevel: errors come as statuses, and the library's own lines may hold values

_DEVICE_ALLOCATOR, _DEFAULT_MEMORY = 0, 0  # OrtAllocatorType, OrtMemType

_P, _INT, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
# name: place in the table, arguments. All of these are over in no time, and keep the GIL.
_SHORT: dict[str, tuple[int, tuple[Any, ...]]] = {
    "CreateSessionOptions": (10, (_P,)),
    "SetOptimizedModelFilePath": (11, (_P, _TEXT)),
    "DisableMemPattern": (17, (_P,)),
    "DisableCpuMemArena": (19, (_P,)),
    "SetSessionLogSeverityLevel": (22, (_P, _INT)),
    "SetSessionGraphOptimizationLevel": (23, (_P, _INT)),
    "SetIntraOpNumThreads": (24, (_P, _INT)),
    "SetInterOpNumThreads": (25, (_P, _INT)),
    "SessionGetInputCount": (30, (_P, _P)),
    "SessionGetOutputCount": (31, (_P, _P)),
    "SessionGetInputTypeInfo": (33, (_P, _SIZE, _P)),
    "SessionGetOutputTypeInfo": (34, (_P, _SIZE, _P)),
    "SessionGetInputName": (36, (_P, _SIZE, _P, _P)),
    "SessionGetOutputName": (37, (_P, _SIZE, _P, _P)),
    "CreateRunOptions": (39, (_P,)),
    "RunOptionsSetTerminate": (46, (_P,)),
    "CreateTensorAsOrtValue": (48, (_P, _P, _SIZE, _INT, _P)),
    "CreateTensorWithDataAsOrtValue": (49, (_P, _P, _SIZE, _P, _SIZE, _INT, _P)),
    "GetTensorMutableData": (51, (_P, _P)),
    "GetStringTensorDataLength": (53, (_P, _P)),
    "GetStringTensorContent": (54, (_P, _P, _SIZE, _P, _SIZE)),
    "CastTypeInfoToTensorInfo": (55, (_P, _P)),
    "GetOnnxTypeFromTypeInfo": (56, (_P, _P)),
    "GetTensorElementType": (60, (_P, _P)),
    "GetDimensionsCount": (61, (_P, _P)),
    "GetDimensions": (62, (_P, _P, _SIZE)),
    "CreateCpuMemoryInfo": (69, (_INT, _INT, _P)),
    "AllocatorFree": (76, (_P, _P)),
    "GetAllocatorWithDefaultOptions": (78, (_P,)),
    "CastTypeInfoToMapTypeInfo": (103, (_P, _P)),
    "CastTypeInfoToSequenceTypeInfo": (104, (_P, _P)),
    "GetMapKeyType": (105, (_P, _P)),
    "GetMapValueType": (106, (_P, _P)),
    "GetSequenceElementType": (107, (_P, _P)),
    "AddSessionConfigEntry": (130, (_P, _TEXT, _TEXT)),
    "GetResizedStringTensorElementBuffer": (252, (_P, _SIZE, _SIZE, _P)),
    "GetTensorElementTypeAndShapeDataReference": (414, (_P, _P, _P, _P)),
}
# These take their time, and let other threads go on.
_LONG: dict[str, tuple[int, tuple[Any, ...]]] = {
    "CreateEnv": (3, (_INT, _TEXT, _P)),
    "CreateSession": (7, (_P, _TEXT, _P, _P)),
    "Run": (9, (_P, _P, _P, _P, _SIZE, _P, _SIZE, _P)),
}
_RELEASES = {
    "ReleaseValue": 96,
    "ReleaseRunOptions": 97,
    "ReleaseTypeInfo": 98,
    "ReleaseSessionOptions": 100,
}


class OrtError(Exception):
    """What the library says went wrong."""


def library_path() -> Path:
    """Where the library is.

    Raises:
        ImportError: the package onnxruntime is not installed, or has none.
    """
    found = PathFinder.find_spec("onnxruntime")
    for folder in (found and found.submodule_search_locations) or ():
        for path in Path(folder, "capi").glob("libonnxruntime.*"):  # .so.1.31.1, or .1.31.1.dylib
            return path
    raise ImportError(f"the package onnxruntime, with its C library, is in none of {sys.path}")


class _Base(ctypes.Structure):
    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("version", ctypes.CFUNCTYPE(_TEXT)),
    )


class Api:
    """Each function of the tables above as a method that raises `OrtError`, or MemoryError, where it fails."""

    def __init__(self, path: Path) -> None:
        get_base = ctypes.CDLL(str(path)).OrtGetApiBase
        get_base.restype = ctypes.POINTER(_Base)
        base = get_base().contents
        self.version = base.version().decode()
        if tuple(int(part) for part in self.version.split(".")[:3]) < FLOOR:
            raise ImportError(
                f"onnxruntime {self.version} is older than {'.'.join(map(str, FLOOR))}, which fixes crashes"
            )
        table = ctypes.cast(base.get_api(API_VERSION), ctypes.POINTER(ctypes.c_void_p))

        def function(kind: Any, at: int, *arguments: Any) -> Any:
            made = kind(table[at])
            made.argtypes = arguments
            return made

        keeps, lets = ctypes.PYFUNCTYPE(_P), ctypes.CFUNCTYPE(_P)
        self._message = function(ctypes.PYFUNCTYPE(_TEXT), 2, _P)
        nothing = ctypes.PYFUNCTYPE(None)
        self._release_status = function(nothing, 93, _P)
        for name, (at, arguments) in _SHORT.items():
            setattr(self, name, self._checked(function(keeps, at, *arguments)))
        for name, (at, arguments) in _LONG.items():
            setattr(self, name, self._checked(function(lets, at, *arguments)))
        for name, at in _RELEASES.items():
            setattr(self, name, function(nothing, at, _P))
        self.ReleaseSession = function(
            ctypes.CFUNCTYPE(None), 95, _P
        )  # frees all that a model had, and ends threads

    def __getattr__(self, name: str) -> Any:  # for readers of types: `__init__` sets them all
        raise AttributeError(name)

    def new(self, create: Any, *arguments: Any) -> int:
        """What `create` makes, whose last argument is where to put it."""
        made = ctypes.c_void_p()
        create(*arguments, ctypes.byref(made))
        return made.value or 0

    def _checked(self, call: Any) -> Any:
        def check(status: int | None, _: Any, __: Any) -> None:
            if status is not None:
                self._fail(status)

        call.errcheck = check
        return call

    def _fail(self, status: int) -> None:
        text = self._message(status).decode("utf-8", "replace")
        self._release_status(status)
        if any(
            words in text for words in ("bad_alloc", "allocate memory", "pthread_create failed")
        ):
            raise MemoryError  # the library has no code for it
        raise OrtError(text)


class Library:
    """The library and what all sessions share."""

    def __init__(self) -> None:
        self.api = api = Api(library_path())
        self.environment = api.new(api.CreateEnv, FATAL, b"mayfly")  # 11 ms: thousands of operators
        self.memory = api.new(api.CreateCpuMemoryInfo, _DEVICE_ALLOCATOR, _DEFAULT_MEMORY)
        self.allocator = api.new(api.GetAllocatorWithDefaultOptions)


_making = threading.Lock()
_made: list[Library] = []


def library() -> Library:
    """The library of this process, made by whoever needs it first.

    Raises:
        ImportError: as `library_path` does, or it is too old.
    """
    with _making:
        if not _made:
            _made.append(Library())
    return _made[0]
