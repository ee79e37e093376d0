"""Parsed manifest.json of an upload, and its check against the model's signature."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from functions.core.errors import InvalidModel, shown
from functions.core.names import is_onnx_file, is_plain_path, overlapping
from functions.core.package.model_choice import choose_model
from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec


@dataclass(frozen=True, slots=True)
class ListedFile:
    """File listed in a manifest.json: relative path, size and SHA-256.

    `path` is relative to the manifest.
    """

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """Optional datatype, shape and labels of a tensor in a manifest.

    `None` and no labels mean undeclared.
    """

    datatype: str | None = None
    shape: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Parsed manifest.json: model card, tensors, files, samples, tolerances and variants."""

    raw: bytes  # content of manifest.json, stored as a blob
    card: Mapping[str, Any]  # description of the model, stored in the version's record
    outputs: Mapping[str, DeclaredTensor] = field(default_factory=dict)
    inputs: Mapping[str, DeclaredTensor] = field(default_factory=dict)
    files: tuple[ListedFile, ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()
    rtol: float = 1e-3
    atol: float = 1e-5
    variants: tuple[str, ...] = ()
    language: Mapping[str, Any] = field(default_factory=dict)  # context, pooling, normalised


def check_listing(files: tuple[ListedFile, ...]) -> None:
    """Check a manifest's file list: one model, relative paths, no duplicates.

    Raises:
        InvalidModel: `NO_MODEL` or `BAD_FILE_NAME`.
    """
    models = [file.path for file in files if is_onnx_file(file.path)]
    if choose_model(models) is None:
        names = " and ".join(shown(path) for path in models[:2]) or "none"
        raise InvalidModel(
            f"manifest.json has to list one .onnx file under `files`, and it lists {names}",
            code="NO_MODEL",
        )
    for path in (file.path for file in files):
        if not is_plain_path(path):
            raise InvalidModel(
                f"{shown(path)} in manifest.json is no relative path of printable names",
                code="BAD_FILE_NAME",
            )
    twice = overlapping(["manifest.json", *(file.path for file in files)])
    if twice is not None:
        raise InvalidModel(
            f"manifest.json lists itself, or two files, as {shown(twice)}", code="BAD_FILE_NAME"
        )


def label_outputs(
    signature: Signature,
    manifest: Manifest | None,
    labels: Mapping[str, tuple[str, ...]],
) -> Signature:
    """Check a model's signature against its manifest; return it with output labels.

    `labels` are the model's own, by name of the output; the manifest's take their place.

    Raises:
        InvalidModel: the manifest describes another model; the code is `MANIFEST_MISMATCH`.
    """
    outputs = manifest.outputs if manifest else {}
    if manifest:
        _check_tensors("input", manifest.inputs, signature.inputs)
        _check_tensors("output", outputs, signature.outputs)
    undeclared = DeclaredTensor()
    labelled = tuple(
        replace(
            spec,
            labels=outputs.get(spec.name, undeclared).labels or labels.get(spec.name, ()),
        )
        for spec in signature.outputs
    )
    return replace(signature, outputs=labelled)


def _check_tensors(
    kind: str, declared: Mapping[str, DeclaredTensor], specs: tuple[TensorSpec, ...]
) -> None:
    by_name = {spec.name: spec for spec in specs}
    for name, tensor in declared.items():
        if name not in by_name:
            names = shown(", ".join(by_name))
            raise _mismatch(f"{kind} {shown(name)}, and the model has {names}")
        _check_tensor(f"{kind} {shown(name)}", tensor, by_name[name])


def _check_tensor(title: str, declared: DeclaredTensor, spec: TensorSpec) -> None:
    if declared.datatype not in (None, spec.datatype):
        datatype = shown(declared.datatype)
        raise _mismatch(f"{title} as {datatype}, and the model has {spec.datatype}")
    if declared.shape is not None and not _shapes_agree(declared.shape, spec.shape):
        shapes = f"{list(declared.shape)}, and the model has {list(spec.shape)}"
        raise _mismatch(f"{title} with shape {shapes}")
    width = spec.shape[-1] if spec.shape else 1
    count = len(declared.labels)
    if count and width not in (DYNAMIC, count):
        raise _mismatch(f"{count} labels for {title}, whose last dimension is {width}")


def _shapes_agree(declared: tuple[int, ...], actual: tuple[int, ...]) -> bool:
    return len(declared) == len(actual) and all(
        size == dimension or DYNAMIC in (size, dimension)
        for size, dimension in zip(declared, actual, strict=True)
    )


def _mismatch(detail: str) -> InvalidModel:
    return InvalidModel(f"the manifest describes {detail}", code="MANIFEST_MISMATCH")
