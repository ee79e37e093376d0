"""Prune the output of `sam build` and compile it to byte code.

    python3.13 -m scripts.bundle .aws-sam/build

`make build` runs this with the deployed Python version, because byte code is specific to it.
"""

import compileall
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

# Files that no function imports; tests/e2e/test_bundle.py runs the pruned bundle.
EVERYWHERE = (
    "*.a", "*.h", "*.pxd", "*.pyi", "**/tests", "numpy/_core/include", "numpy/f2py",
    "onnxruntime/backend", "onnxruntime/datasets",
    "onnx/backend/test", "onnx/bin",
)  # fmt: skip
# Packages for registration alone. Infer needs only ONNX Runtime's C library.
NOT_FOR_INFER = (
    "flatbuffers*", "google", "numpy*", "packaging*", "protobuf*",
    "onnxruntime/capi/onnxruntime_pybind11_state*",
    "onnxruntime/quantization", "onnxruntime/tools", "onnxruntime/transformers",
)  # fmt: skip


def prune(packages: Path, patterns: tuple[str, ...]) -> None:
    """Remove a layer's files and folders that match glob patterns.

    `*.suffix` matches in every folder.
    """
    for path in [path for pattern in patterns for path in _matches(packages, pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _matches(packages: Path, pattern: str) -> Iterator[Path]:
    return packages.rglob(pattern) if pattern.startswith("*.") else packages.glob(pattern)


def main(build: Path) -> None:
    """Prune each Lambda layer of a build, then compile to byte code."""
    for layer in build.glob("*Layer"):
        infer_only = NOT_FOR_INFER if layer.name == "InferLayer" else ()
        prune(layer / "python", EVERYWHERE + infer_only)
    # Unchecked hashes: Lambda cannot write to /opt, and zip files change the files' times.
    mode = PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(build, quiet=1, force=True, invalidation_mode=mode):
        sys.exit("a file of the bundle does not compile")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
