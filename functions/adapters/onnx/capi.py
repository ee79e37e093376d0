"""ONNX Runtime's C API, called through ctypes.

The wheel brings the C library beside its Python package. The package itself is not imported: it
and numpy would take most of a cold start (docs/decisions/0016-the-c-api.md).

`OrtApi` in onnxruntime_c_api.h is a struct of function pointers. New releases only append to it,
so the index of a function never changes; the tables below are those indices.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # the library reads it when it is loaded

import ctypes
import sys
import threading
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

VERSION_MIN = (1, 31, 1)  # crafted models crash the process in earlier releases
API_VERSION = 24  # version of `OrtApi`: the first that has all functions below
# Members of OrtErrorCode. Kernels return these for values they cannot compute with; all others
# (no such file, invalid protobuf, failed execution provider ...) are faults of this function.
FAIL, INVALID_ARGUMENT, RUNTIME_EXCEPTION, NOT_IMPLEMENTED = 1, 2, 6, 9
FATAL = 4  # OrtLoggingLevel: errors come as statuses, and the library's log lines may hold values

_DEVICE_ALLOCATOR, _DEFAULT_MEMORY = 0, 0  # OrtAllocatorType, OrtMemType

# ONNXTensorElementDataType: ONNX's name and the protocol's datatype, by number.
ELEMENT_TYPES: tuple[tuple[str, str | None], ...] = (
    ("undefined", None),
    ("float", "FP32"),
    ("uint8", "UINT8"),
    ("int8", "INT8"),
    ("uint16", "UINT16"),
    ("int16", "INT16"),
    ("int32", "INT32"),
    ("int64", "INT64"),
    ("string", "BYTES"),
    ("bool", "BOOL"),
    ("float16", "FP16"),
    ("double", "FP64"),
    ("uint32", "UINT32"),
    ("uint64", "UINT64"),
    ("complex64", None),
    ("complex128", None),
    ("bfloat16", "BF16"),
    ("float8e4m3fn", None),
    ("float8e4m3fnuz", None),
    ("float8e5m2", None),
    ("float8e5m2fnuz", None),
    ("uint4", None),
    ("int4", None),
    ("float4e2m1", None),
)
ELEMENT_DATATYPES = {
    number: datatype for number, (_, datatype) in enumerate(ELEMENT_TYPES) if datatype is not None
}

_P, _INT, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
# Functions that return at once and are called with the GIL held, by name: index, argument types.
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
# Functions that take time and are called with the GIL released, so that other threads go on.
_LONG: dict[str, tuple[int, tuple[Any, ...]]] = {
    "CreateEnv": (3, (_INT, _TEXT, _P)),
    "CreateSession": (7, (_P, _TEXT, _P, _P)),
    "CreateSessionFromArray": (8, (_P, _P, _SIZE, _P, _P)),
    "Run": (9, (_P, _P, _P, _P, _SIZE, _P, _SIZE, _P)),
}
# Functions that take one handle and return nothing, not even a status.
_RELEASES = {
    "ReleaseValue": 96,
    "ReleaseRunOptions": 97,
    "ReleaseTypeInfo": 98,
    "ReleaseSessionOptions": 100,
}


class OrtError(Exception):
    """Error reported by ONNX Runtime, with the library's message and status code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def library_path() -> Path:
    """Find ONNX Runtime's C library file without importing its Python package.

    Raises:
        ImportError: the package onnxruntime is not installed, or holds no library.
    """
    package = PathFinder.find_spec("onnxruntime")
    for folder in (package and package.submodule_search_locations) or ():
        for path in Path(folder, "capi").glob("libonnxruntime.*"):  # .so.1.31.1, or .1.31.1.dylib
            return path
    raise ImportError(f"the package onnxruntime, with its C library, is in none of {sys.path}")


class _ApiBase(ctypes.Structure):
    """ctypes declaration of the C struct OrtApiBase in onnxruntime_c_api.h."""

    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("version", ctypes.CFUNCTYPE(_TEXT)),
    )


class Api:
    """ONNX Runtime's C functions as methods that raise `OrtError` or MemoryError.

    A function of the C API returns a status, null for success; most write their result to a
    pointer in their last argument (see `new`).
    """

    def __init__(self, path: Path) -> None:
        get_base = ctypes.CDLL(str(path)).OrtGetApiBase
        get_base.restype = ctypes.POINTER(_ApiBase)
        base = get_base().contents
        self.version = base.version().decode()
        if tuple(int(part) for part in self.version.split(".")[:3]) < VERSION_MIN:
            minimum = ".".join(map(str, VERSION_MIN))
            raise ImportError(
                f"onnxruntime {self.version} is older than {minimum}, which fixes crashes"
            )
        self._table = ctypes.cast(base.get_api(API_VERSION), ctypes.POINTER(ctypes.c_void_p))

        # PYFUNCTYPE keeps the GIL during a call, CFUNCTYPE releases it.
        for name, (index, arguments) in _SHORT.items():
            self._add_checked(name, ctypes.PYFUNCTYPE(_P), index, arguments)
        for name, (index, arguments) in _LONG.items():
            self._add_checked(name, ctypes.CFUNCTYPE(_P), index, arguments)
        for name, index in _RELEASES.items():
            setattr(self, name, self._function(ctypes.PYFUNCTYPE(None), index, _P))
        # Frees a model's memory and joins its threads, which takes time.
        self.ReleaseSession = self._function(ctypes.CFUNCTYPE(None), 95, _P)
        self._error_code = self._function(ctypes.PYFUNCTYPE(_INT), 1, _P)
        self._error_message = self._function(ctypes.PYFUNCTYPE(_TEXT), 2, _P)
        self._release_status = self._function(ctypes.PYFUNCTYPE(None), 93, _P)

    if TYPE_CHECKING:  # the attributes set above; at run time a hook would slow them down

        def __getattr__(self, name: str) -> Any: ...

    def new(self, create: Any, *arguments: Any) -> int:
        """Call the C function `create` and return the handle it makes.

        It writes the handle to its last argument, a pointer, which is added here.
        """
        handle = ctypes.c_void_p()
        create(*arguments, ctypes.byref(handle))
        return handle.value or 0

    def _function(self, prototype: Any, index: int, *arguments: Any) -> Any:
        function = prototype(self._table[index])
        function.argtypes = arguments
        return function

    def _add_checked(
        self, name: str, prototype: Any, index: int, arguments: tuple[Any, ...]
    ) -> None:
        function = self._function(prototype, index, *arguments)
        function.errcheck = self._check_status
        setattr(self, name, function)

    def _check_status(self, status: int | None, _function: Any, _arguments: Any) -> None:
        if status is not None:
            self._fail(status)

    def _fail(self, status: int) -> None:
        code = self._error_code(status)
        message = self._error_message(status).decode("utf-8", "replace")
        self._release_status(status)
        # The library has no status code for a lack of memory, only these messages.
        shortages = ("bad_alloc", "allocate memory", "pthread_create failed")
        if any(words in message for words in shortages):
            raise MemoryError
        raise OrtError(message, code)


class Library:
    """ONNX Runtime's loaded C library, and handles shared by all sessions."""

    def __init__(self) -> None:
        self.api = api = Api(library_path())
        self.environment = api.new(api.CreateEnv, FATAL, b"mayfly")  # 11 ms: registers operators
        self.memory = api.new(api.CreateCpuMemoryInfo, _DEVICE_ALLOCATOR, _DEFAULT_MEMORY)
        self.allocator = api.new(api.GetAllocatorWithDefaultOptions)

    def node_names(self, session: int, kind: str) -> list[str]:
        """Return the names of a loaded model's inputs or outputs.

        `kind` is "Input" or "Output".
        """
        api = self.api
        count = ctypes.c_size_t()
        getattr(api, f"SessionGet{kind}Count")(session, ctypes.byref(count))
        get_name = getattr(api, f"SessionGet{kind}Name")
        names = []
        for at in range(count.value):
            text = api.new(get_name, session, at, self.allocator)
            names.append(ctypes.string_at(text).decode())
            api.AllocatorFree(self.allocator, text)
        return names


_lock = threading.Lock()
_libraries: list[Library] = []  # at most one: a process loads the library once


def library() -> Library:
    """Return ONNX Runtime's C library, loaded on the first call.

    Raises:
        ImportError: as `library_path` does, or the library is too old.
    """
    with _lock:
        if not _libraries:
            _libraries.append(Library())
    return _libraries[0]
