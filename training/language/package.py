"""Write a language model's package: model.onnx and its texts in one model.tar.gz."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from training.errors import ExportFailed
from training.export.graphs import LIMIT_BYTES


def write(path: Path, model: onnx.ModelProto, assets: Mapping[str, str]) -> None:
    """Write a package, the same bytes for the same model.

    Raises:
        ExportFailed: the graph is larger than one ONNX file can be.
    """
    size = model.ByteSize()
    if size > LIMIT_BYTES:
        raise ExportFailed(
            f"the model has {size / 1e9:.1f} GB with 4-bit weights, and one ONNX file holds 2.1 "
            "GB: take a smaller model; on a processor it would be slow, too"
        )
    files = {"model.onnx": model.SerializeToString()}
    files |= {name: text.encode() for name, text in sorted(assets.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.tmp")
    with (
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    part.replace(path)
