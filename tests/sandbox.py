"""Fake sandbox: unpacks for real and accepts every model, without a process or ONNX Runtime."""

from pathlib import Path

from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registration.sandbox_protocol import Brief, Built, Unpacked
from functions.core.uploads import Form
from functions.sandbox.unpack import unpack

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))


class MemorySandbox:
    """Sandbox in this process; `built` lists the files in package/ of each build."""

    suspect = False

    def __init__(self, signature: Signature = SIGNATURE) -> None:
        self.built: list[list[str]] = []
        self._signature = signature

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        return unpack(form, directory)

    def build(self, brief: Brief, directory: Path) -> Built:
        self.built.append(sorted(path.name for path in (directory / "package").iterdir()))
        files = (brief.model, *brief.weights)
        for name in files:
            (directory / "package" / name).rename(directory / "serving" / name)
        return Built(files, self._signature)
