"""Unpack an upload: model, weights and manifest under flat names in package/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from functions.core.errors import InvalidModel, one_line, shown
from functions.core.names import is_file_name
from functions.core.package.archive import Member, extract
from functions.core.package.onnx_reader import MANIFEST_KEY, OnnxFile, read_onnx
from functions.core.registration.sandbox_protocol import MANIFEST_BYTES, Unpacked, check_room
from functions.core.uploads import Form

MODEL = "model.onnx"
MANIFEST = "manifest.json"
TEXT = 256  # characters kept of a producer or an ignored file's name


def unpack(form: Form, directory: Path) -> Unpacked:
    """Unpack an upload into package/ and describe the model's files.

    Raises:
        InvalidModel: why this upload can never be served.
    """
    upload, package = directory / "upload", directory / "package"
    if form is Form.ARCHIVE:
        return _unpack_archive(upload / "archive", package)
    for path in list(upload.iterdir()):
        path.rename(package / path.name)
    return _describe_files(form, package)


def _describe_files(form: Form, package: Path) -> Unpacked:
    """Return the description of a model uploaded as separate files."""
    sizes = {path.name: path.stat().st_size for path in package.iterdir() if path.name != MANIFEST}
    [model] = [name for name in sizes if name.lower().endswith(".onnx")]
    graph = read_onnx(package / model)
    weights = _weights(graph, form, model, sizes)
    ignored = sorted(sizes.keys() - {model, *weights})
    return _unpacked(model, weights, graph, package, ignored)


def _unpack_archive(archive: Path, package: Path) -> Unpacked:
    """Unpack a model archive into package/ and return its description.

    In three passes: list the members; write the model and the manifest; write the weights that the
    model names.
    """
    members = extract(archive, lambda _: None)
    model = _only_model(members)
    siblings = _siblings(members, model)
    first = {model.name: MODEL}
    if MANIFEST in siblings:
        manifest = siblings.pop(MANIFEST)
        if manifest.size_bytes > MANIFEST_BYTES:
            raise InvalidModel(
                f"manifest.json is over {MANIFEST_BYTES} bytes", code="MANIFEST_TOO_LARGE"
            )
        first[manifest.name] = MANIFEST
    _extract_some(archive, first, members, package)
    graph = read_onnx(package / MODEL)
    sizes = {name: member.size_bytes for name, member in siblings.items()}
    weights = _weights(graph, Form.ARCHIVE, MODEL, sizes)
    second = {siblings[name].name: name for name in weights}
    _extract_some(archive, second, members, package)
    opened = first | second
    ignored = [member.name for member in members if member.name not in opened]
    return _unpacked(MODEL, weights, graph, package, ignored)


def _only_model(members: list[Member]) -> Member:
    models = [member for member in members if member.name.endswith(".onnx")]
    if len(models) != 1:
        raise InvalidModel(
            f"the archive holds {len(models)} .onnx files and has to hold one; "
            "export the model to ONNX",
            code="NO_MODEL",
        )
    return models[0]


def _siblings(members: list[Member], model: Member) -> dict[str, Member]:
    """Return archive members beside the model, by file name."""
    folder = model.name.rpartition("/")[0]
    siblings = {}
    for member in members:
        parent, _, name = member.name.rpartition("/")
        if parent == folder and name and member is not model:
            siblings[name] = member
    return siblings


def _extract_some(
    archive: Path, targets: Mapping[str, str], members: list[Member], package: Path
) -> None:
    """Extract chosen archive members into package/ under new names.

    `targets` maps names in the archive to new names.
    """
    if not targets:
        return
    check_room(sum(member.size_bytes for member in members if member.name in targets), package)

    def target(member: Member) -> Path | None:
        return package / targets[member.name] if member.name in targets else None

    extract(archive, target)


def _unpacked(
    model: str, weights: tuple[str, ...], graph: OnnxFile, package: Path, ignored: list[str]
) -> Unpacked:
    """Describe the unpacked model; take a missing manifest from its metadata."""
    manifest = package / MANIFEST
    if not manifest.exists() and MANIFEST_KEY in graph.metadata:
        manifest.write_text(graph.metadata[MANIFEST_KEY])
    described: dict[str, Any] = {
        "opset": graph.opset,
        "ir_version": graph.ir_version,
        "producer": one_line(graph.producer, TEXT),
        "nodes": graph.nodes,
    }
    if graph.refuses_empty:
        described["refuses_empty"] = True
    names = tuple(one_line(name, TEXT) for name in ignored)
    return Unpacked(model, weights, manifest.exists(), described, names)


def _weights(graph: OnnxFile, form: Form, model: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Check and return the names of the model's weight files.

    `sizes` are those of the files beside the model.

    Raises:
        InvalidModel: `WEIGHTS_OUTSIDE`, `WEIGHTS_MISSING`, `WEIGHTS_TRUNCATED` or `BAD_FILE_NAME`.
    """
    names = tuple(graph.external)
    if names and form is Form.ONNX:
        raise InvalidModel(
            f"the weights are in another file ({shown(names[0])}): save the model in one file "
            "(save_as_external_data=False), or upload model.tar.gz or parts/ with manifest.json",
            code="WEIGHTS_OUTSIDE",
        )
    for name in names:
        if not is_file_name(name) or name in (MODEL, MANIFEST, model):
            raise InvalidModel(
                f"the model's weights are said to be in {shown(name)}: it has to be the plain name "
                "of a file beside the model, and neither the model nor the manifest",
                code="BAD_FILE_NAME",
            )
        if name not in sizes:
            raise InvalidModel(
                f"the model's weights {shown(name)} are not in the package beside it",
                code="WEIGHTS_MISSING",
            )
        if sizes[name] < graph.external[name]:
            raise InvalidModel(
                f"{shown(name)} has {sizes[name]} bytes, and the model's weights in it "
                f"{graph.external[name]}",
                code="WEIGHTS_TRUNCATED",
            )
    return names
