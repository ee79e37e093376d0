"""Lazy import of modules that orjson imports and nobody uses.

`dataclasses` imports `inspect`, and `uuid` imports `platform`: 5 and 1 ms of a cold start. orjson
takes one constant from each, to recognise the fields of dataclasses and UUIDs. No function gives
it any.
"""

import sys
import threading
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_lock = threading.RLock()


class _LazyModule(ModuleType):
    """Module that loads when a missing attribute is used.

    Not importlib's LazyLoader, which loads for attributes that exist.
    """

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if isinstance(self, _LazyModule):  # no other thread has loaded it meanwhile
                vars(self)["__loader__"].exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]
        return getattr(self, name)


def defer_imports_of_orjson() -> None:
    """Let `dataclasses` and `uuid` load when they are first used.

    Call it before orjson is imported.
    """
    _defer("dataclasses", _FIELD=None)
    _defer("uuid", UUID=type("UUID", (), {}))


def _defer(name: str, **constants: object) -> None:
    """Put a lazy module into `sys.modules`, unless it is already imported.

    `constants` are attributes that do not load it; loading replaces them.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is not None:
        module = module_from_spec(spec)
        vars(module).update(constants)
        module.__class__ = _LazyModule
        sys.modules[name] = module
