"""From upload/ to package/: the model and its weights under flat names, and the manifest."""

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
TEXT = 256  # characters of a producer or a member's name that are kept


def unpack(form: Form, directory: Path) -> Unpacked:
    """Unpack upload/ into package/.

    Raises:
        InvalidModel: why this upload can never be served.
    """
    upload, package = directory / "upload", directory / "package"
    if form is Form.ARCHIVE:
        return _unpack_archive(upload / "archive", package)
    for path in list(upload.iterdir()):
        path.rename(package / path.name)
    files = sorted(path.name for path in package.iterdir() if path.name != MANIFEST)
    [model] = [name for name in files if name.endswith(".onnx")]
    graph = read_onnx(package / model)
    weights = _weights(
        graph, form, model, {name: (package / name).stat().st_size for name in files}
    )
    return _unpacked(
        model,
        weights,
        graph,
        package,
        ignored=[name for name in files if name not in (model, *weights)],
    )


def _unpack_archive(archive: Path, package: Path) -> Unpacked:
    """Two passes: find the model and the manifest, then the weight files that the model names."""
    members = extract(archive, lambda _: None)
    models = [member for member in members if member.name.endswith(".onnx")]
    if len(models) != 1:
        raise InvalidModel(
            f"the archive holds {len(models)} .onnx files and has to hold one; export the model to ONNX",
            code="NO_MODEL",
        )
    folder = models[0].name.rpartition("/")[0]
    beside = {_beside(member, folder): member for member in members if _beside(member, folder)}
    first = {models[0].name: MODEL}
    if MANIFEST in beside:
        if beside[MANIFEST].size_bytes > MANIFEST_BYTES:
            raise InvalidModel(
                f"manifest.json is over {MANIFEST_BYTES} bytes", code="MANIFEST_TOO_LARGE"
            )
        first[beside[MANIFEST].name] = MANIFEST
    _extract_some(archive, first, members, package)
    graph = read_onnx(package / MODEL)
    present = {
        name: member.size_bytes for name, member in beside.items() if member.name not in first
    }
    weights = {beside[name].name: name for name in _weights(graph, Form.ARCHIVE, MODEL, present)}
    _extract_some(archive, weights, members, package)
    opened = first.keys() | weights.keys()
    return _unpacked(
        MODEL,
        tuple(weights.values()),
        graph,
        package,
        ignored=[member.name for member in members if member.name not in opened],
    )


def _unpacked(
    model: str, weights: tuple[str, ...], graph: OnnxFile, package: Path, ignored: list[str]
) -> Unpacked:
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
    return Unpacked(
        model,
        weights,
        manifest.exists(),
        described,
        tuple(one_line(name, TEXT) for name in ignored),
    )


def _weights(
    graph: OnnxFile, form: Form, model: str, present: Mapping[str, int]
) -> tuple[str, ...]:
    """The files that the model names, each flat, in the same package and not the model itself.

    Raises:
        InvalidModel: `WEIGHTS_OUTSIDE`, `WEIGHTS_MISSING` or `BAD_FILE_NAME`.
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
                f"the model's weights are said to be in {shown(name)}: it has to be the plain name of a file beside "
                "the model, and neither the model nor the manifest",
                code="BAD_FILE_NAME",
            )
        if name not in present:
            raise InvalidModel(
                f"the model's weights {shown(name)} are not in the package beside it",
                code="WEIGHTS_MISSING",
            )
        if present[name] < graph.external[name]:
            raise InvalidModel(
                f"{shown(name)} has {present[name]} bytes, and the model's weights in it {graph.external[name]}",
                code="WEIGHTS_TRUNCATED",
            )
    return names


def _extract_some(
    archive: Path, wanted: Mapping[str, str], members: list[Member], package: Path
) -> None:
    """Write the members of `wanted` (name in the archive -> name of ours)."""
    if wanted:
        check_room(sum(member.size_bytes for member in members if member.name in wanted), package)
        extract(
            archive, lambda member: package / wanted[member.name] if member.name in wanted else None
        )


def _beside(member: Member, folder: str) -> str:
    """The flat name of a member in the folder of the model; empty for the others."""
    parent, _, name = member.name.rpartition("/")
    return name if parent == folder else ""
