"""Prune, compile and bind to a processor what `sam build` wrote.

    python3.13 -m scripts.bundle .aws-sam/build x86_64

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
    # tokenizers downloads from Hugging Face with these; a function reads the files of an upload.
    "_yaml", "anyio*", "click*", "filelock*", "fsspec*", "h11*", "hf_xet*", "httpcore2*", "httpx2*",
    "huggingface_hub*", "idna*", "pyyaml*", "tqdm*", "truststore*", "yaml",
)  # fmt: skip
# Packages for registration alone. Predictions need only ONNX Runtime's C library.
NOT_FOR_INFER = (
    "flatbuffers*", "google", "numpy*", "packaging*", "protobuf*",
    "onnxruntime/capi/onnxruntime_pybind11_state*",
    "onnxruntime/quantization", "onnxruntime/tools", "onnxruntime/transformers",
)  # fmt: skip
# The client of Hugging Face's hub, which tokenizers requires and imports only to download.
NOT_FOR_TOKENIZERS = (
    "anyio*", "click*", "filelock*", "fsspec*", "h11*", "hf_xet*", "httpcore2*", "httpx2*",
    "huggingface_hub*", "idna*", "pyyaml*", "tqdm*", "truststore*", "yaml", "_yaml",
)  # fmt: skip
# Processors of Lambda by their number in an ELF file, in the template's order
MACHINES = {62: "x86_64", 183: "arm64"}


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


def foreign_libraries(build: Path, architecture: str) -> list[Path]:
    """Return the native libraries of a build that another processor needs."""
    return [path for path in sorted(build.rglob("*")) if _machine(path) not in (None, architecture)]


def _machine(path: Path) -> str | None:
    """Return the processor of an ELF file; None for any other file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(20)
    if not head.startswith(b"\x7fELF"):
        return None
    number = int.from_bytes(head[18:20], "little")
    return MACHINES.get(number, f"machine {number}")


def bind(template: str, architecture: str) -> str:
    """Restrict a built template to the processor that it was built for.

    CloudFormation then refuses to deploy the build as another one.
    """
    allowed = "".join(f"    - {name}\n" for name in MACHINES.values())
    declared = f"    Default: x86_64\n    AllowedValues:\n{allowed}"
    if template.count(declared) != 1:
        raise ValueError("the built template does not declare the parameter Architecture")
    [alternative] = {*MACHINES.values()} - {architecture}
    bound = (
        f"    Default: {architecture}\n    AllowedValues:\n    - {architecture}\n"
        f"    ConstraintDescription: this build is for {architecture} alone,"
        f" make build ARCHITECTURE={alternative} makes the other\n"
    )
    return template.replace(declared, bound)


def main(build: Path, architecture: str) -> None:
    """Prune a build's layers, compile to byte code, bind to a processor."""
    for layer in build.glob("*Layer"):
        predicts = layer.name in ("InferLayer", "GenerateLayer")
        prune(layer / "python", EVERYWHERE + NOT_FOR_TOKENIZERS)
        prune(layer / "python", NOT_FOR_INFER if predicts else ())
    # Unchecked hashes: Lambda cannot write to /opt, and zip files change the files' times.
    mode = PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(build, quiet=1, force=True, invalidation_mode=mode):
        sys.exit("a file of the bundle does not compile")
    if foreign := foreign_libraries(build, architecture):
        sys.exit(f"{foreign[0]} is not for {architecture}: remove {build} and build again")
    template = build / "template.yaml"
    template.write_text(bind(template.read_text(), architecture))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
