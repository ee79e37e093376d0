"""Client and command line of Mayfly.

    from mayfly import Mayfly
    answer = Mayfly(url, key).model("digits").predict(image)

Nothing is imported before it is used, so that the command line starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mayfly.client import errors as errors
    from mayfly.client.aio.client import AsyncMayfly as AsyncMayfly
    from mayfly.client.aio.model import AsyncModel as AsyncModel
    from mayfly.client.prediction import Prediction as Prediction
    from mayfly.client.sync.client import Mayfly as Mayfly
    from mayfly.client.sync.model import Model as Model
    from mayfly.client.tensors.signature import Signature as Signature
    from mayfly.client.tensors.signature import TensorSpec as TensorSpec

__version__ = "0.1.0"

_MODULES = {
    "AsyncMayfly": "mayfly.client.aio.client",
    "AsyncModel": "mayfly.client.aio.model",
    "Mayfly": "mayfly.client.sync.client",
    "Model": "mayfly.client.sync.model",
    "Prediction": "mayfly.client.prediction",
    "Signature": "mayfly.client.tensors.signature",
    "TensorSpec": "mayfly.client.tensors.signature",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "errors":
        return import_module("mayfly.client.errors")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mayfly' has no attribute {name!r}")
