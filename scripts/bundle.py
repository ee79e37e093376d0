"""Makes what `sam build` left smaller and quicker to start: prunes the layers, ships byte code.

python3.13 -m scripts.bundle .aws-sam/build        (`make build` does it; the interpreter has to be the deployed one)
"""

import compileall
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

# Nothing that a function runs imports these; tests/e2e/test_bundle.py runs what is left.
EVERYWHERE = (
    "*.a", "*.h", "*.pxd", "*.pyi", "**/tests", "numpy/_core/include", "numpy/f2py",
    "onnxruntime/backend", "onnxruntime/datasets",
    "onnx/backend/test", "onnx/bin",
)  # fmt: skip
# What only registration does: comparing answers, and making variants with the tools of onnxruntime's Python package, of
# which serving a model takes the C library alone.
NOT_FOR_INFER = (
    "flatbuffers*", "google", "numpy*", "packaging*", "protobuf*",
    "onnxruntime/capi/onnxruntime_pybind11_state*",
    "onnxruntime/quantization", "onnxruntime/tools", "onnxruntime/transformers",
)  # fmt: skip


def prune(packages: Path, patterns: tuple[str, ...]) -> None:
    """Remove what matches; a pattern without a slash in front of a suffix is looked for in every folder."""
    for found in [path for pattern in patterns for path in _matches(packages, pattern)]:
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)


def _matches(packages: Path, pattern: str) -> Iterator[Path]:
    return packages.rglob(pattern) if pattern.startswith("*.") else packages.glob(pattern)


def main(build: Path) -> None:
    for layer in build.glob("*Layer"):
        prune(layer / "python", EVERYWHERE + (NOT_FOR_INFER if layer.name == "InferLayer" else ()))
    # Unchecked: whatever times the files get in the zip, nothing is compiled again (and /opt cannot be written to).
    if not compileall.compile_dir(
        build, quiet=1, force=True, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH
    ):
        sys.exit("a file of the bundle does not compile")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
