"""Publish an ONNX file that exists: describe it, prove that it loads and answers, add samples, upload it.

python -m training publish churn.onnx --model churn --task classification --label stays --label leaves --bucket mine
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from training import manifest
from training.errors import InvalidArtifact, TrainingError
from training.export import graphs, model_card
from training.export.graphs import first_line
from training.recipe import NAME, OUTPUTS, Arrays, Task

SIZES = (2, 1, 4, 8, 16, 32, 224)  # of free dimensions other than the batch, tried in this order
SEED = 20261122
DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "object",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    try:
        publish(_parser().parse_args(arguments), environ)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m training publish", description="Publish an ONNX file that exists."
    )
    made.add_argument("file", type=Path, help="the ONNX file; it is read only")
    made.add_argument("--model", required=True, help="its name in the registry")
    made.add_argument("--task", choices=get_args(Task), help="[the manifest's]")
    made.add_argument("--description", help="what it answers, in a sentence [the manifest's]")
    made.add_argument(
        "--label", action="append", default=[], help="of a class, in the order of the probabilities"
    )
    made.add_argument("--preprocessing", help="what a caller has to do to raw data, in a sentence")
    made.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="JSON: metrics, data, … in the words of schema 1",
    )
    made.add_argument(
        "--sample",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.npz",
        help="inputs by name",
    )
    made.add_argument(
        "--output", type=Path, help="the described copy [artifacts/<model>/model.onnx]"
    )
    made.add_argument("--bucket", help="upload it to this artifacts bucket, which registers it")
    made.add_argument("--region", help="[$AWS_REGION, $AWS_DEFAULT_REGION or us-east-1]")
    return made


def publish(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Write the described copy and upload it where a bucket is named; its path.

    Raises:
        InvalidArtifact: the file, its manifest or a sample is wrong, or the model does not answer.
    """
    if not NAME.fullmatch(options.model):
        raise InvalidArtifact(f"{options.model!r} is no model name: use a-z, 0-9, '.', '_', '-'")
    graph = read(options.file)
    session = graphs.runtime(graph)
    print(f"{options.file.name}: loads; {_signature(session)}", flush=True)
    card = _card(graph, options)
    requests = [_sample(path, session) for path in options.sample] or made_up(session)
    try:
        card["samples"] = graphs.samples(graph, requests)
    except Exception as error:  # native errors of any kind: the samples are the user's
        raise InvalidArtifact(
            f"the model does not answer its samples: {first_line(error)}"
        ) from error
    model_card.embed(graph, card)
    path: Path = options.output or Path("artifacts", options.model, "model.onnx")
    if path.exists() and path.samefile(options.file):
        raise InvalidArtifact(f"--output {path} is the file itself; it is not overwritten")
    graphs.save(graph, path)
    print(
        f"{path}: {path.stat().st_size / 1000:.0f} KB, {len(card['samples'])} samples inside",
        flush=True,
    )
    if options.bucket:
        region = (
            options.region
            or environ.get("AWS_REGION")
            or environ.get("AWS_DEFAULT_REGION")
            or "us-east-1"
        )
        print(f"uploaded {upload(path, options.model, options.bucket, region)}", flush=True)
    return path


def read(path: Path) -> onnx.ModelProto:
    """The graph in the file at `path`.

    Raises:
        InvalidArtifact: it is not there, no ONNX, in more than one file, or does not load.
    """
    if not path.is_file():
        raise InvalidArtifact(f"there is no file {path}")
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise InvalidArtifact(f"{path.name} is no ONNX file") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer):
        raise InvalidArtifact(
            f"{path.name} keeps weights in other files; save it with save_as_external_data=False"
        )
    problem = graphs.unfit(graph)
    if problem is None:
        try:
            graphs.runtime(graph)
        except Exception as error:  # as above
            problem = f"does not load: {first_line(error)}"
    if problem is not None:
        raise InvalidArtifact(f"{path.name} {problem}")
    return graph


def _signature(session: Any) -> str:
    def spelled(values: Sequence[Any]) -> str:
        return ", ".join(
            f"{value.name} {graphs.DATATYPES[value.type]}{list(value.shape)}" for value in values
        )

    return f"{spelled(session.get_inputs())} → {spelled(session.get_outputs())}"


def _card(graph: onnx.ModelProto, options: argparse.Namespace) -> dict[str, Any]:
    """What the file and the manifest say, and what was told on the command line over both."""
    card: dict[str, Any] = {}
    for prop in graph.metadata_props:
        if prop.key == manifest.KEY:
            card |= _object(prop.value, "the manifest inside the file")
    if options.manifest is not None:
        if not options.manifest.is_file():
            raise InvalidArtifact(f"there is no file {options.manifest}")
        card |= _object(options.manifest.read_text(encoding="utf-8"), options.manifest.name)
    told = {"task": options.task, "description": options.description}
    card |= {"schema": 1} | {name: value for name, value in told.items() if value is not None}
    if "task" not in card:
        raise InvalidArtifact(f"say what the model does: --task {', '.join(get_args(Task))}")
    labels = options.label or _labels(card)
    known = {
        str(one.get("name")): str(one.get("preprocessing", "")) for one in card.get("inputs", [])
    }
    columns = {str(one.get("name")): list(one.get("columns", ())) for one in card.get("inputs", [])}
    told_of = known if options.preprocessing is None else str(options.preprocessing)
    card["inputs"] = model_card.inputs(graph, told_of, columns)
    names = [value.name for value in graph.graph.output]
    kinds = {one.get("name"): one.get("kind", "tensor") for one in card.get("outputs", [])}
    by_position = dict(zip(names, OUTPUTS.get(card["task"], {}).values(), strict=False))
    card["outputs"] = model_card.outputs(graph, by_position | kinds, labels)
    if labels and not any(output.get("labels") for output in card["outputs"]):
        raise InvalidArtifact(
            f"{len(labels)} labels, and no output has a last dimension of that size"
        )
    card.setdefault("tolerance", {"rtol": graphs.RTOL, "atol": graphs.ATOL})
    card.setdefault("published", datetime.now(UTC).isoformat(timespec="seconds"))
    return card


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArtifact(f"{what} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArtifact(f"{what} is no JSON object")
    return value


def _labels(card: Mapping[str, Any]) -> list[str]:
    return next(
        (list(output["labels"]) for output in card.get("outputs", []) if output.get("labels")), []
    )


def _sample(path: Path, session: Any) -> dict[str, NDArray[Any]]:
    """The inputs in an .npz file, each of the type that the model wants."""
    try:
        with np.load(path, allow_pickle=False) as file:
            given = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise InvalidArtifact(f"{path.name} cannot be read as .npz: {first_line(error)}") from error
    wanted = {value.name: DTYPES[graphs.DATATYPES[value.type]] for value in session.get_inputs()}
    if set(given) != set(wanted):
        raise InvalidArtifact(
            f"{path.name} holds {', '.join(given)}; the model takes {', '.join(wanted)}"
        )
    return {name: values.astype(wanted[name]) for name, values in given.items()}


# --- requests that are made up ----------------------------------------------------------------------------------------


def made_up(session: Any) -> list[Arrays]:
    """Two requests that the model answers, of one row and of two where that can be chosen.

    Raises:
        InvalidArtifact: it refuses all that were tried.
    """
    reason = ""
    for size, integer in product(SIZES, (1, 0)):
        try:
            requests = list(_requests(session, size, integer))
            for request in requests:
                session.run(None, dict(request))
        except Exception as error:  # native errors of any kind: the next is tried
            reason = reason or first_line(error)
            continue
        return requests
    raise InvalidArtifact(
        f"the model refuses every made-up request ({reason}); give it one: --sample FILE.npz"
    )


def _requests(session: Any, size: int, integer: int) -> Iterator[Arrays]:
    """Of one row, and of two where the first dimension of every input is free."""
    inputs = session.get_inputs()
    free = all(value.shape and not isinstance(value.shape[0], int) for value in inputs)
    for rows in (1, 2) if free else (1,):
        random = np.random.default_rng(SEED)
        yield {
            value.name: _values(
                graphs.DATATYPES[value.type],
                [
                    have if isinstance(have, int) else size if at else rows
                    for at, have in enumerate(value.shape)
                ],
                integer,
                random,
            )
            for value in inputs
        }


def _values(
    datatype: str, shape: Sequence[int], integer: int, random: np.random.Generator
) -> NDArray[Any]:
    """Eighths from 0 to 1, which are short in JSON; ones or zeros where integers are asked for."""
    if datatype == "BYTES":
        return np.full(shape, "a", object)
    if datatype.startswith("FP"):
        return (random.integers(0, 9, shape) / 8).astype(DTYPES[datatype])
    return np.full(shape, integer, DTYPES[datatype])


def upload(path: Path, model: str, bucket: str, region: str) -> str:
    """Put the file under `models/<model>/`, which registers it; where it lies.

    Raises:
        InvalidArtifact: S3 refuses, in its own words.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    key = f"models/{model}/{datetime.now(UTC):%Y%m%dT%H%M%S}/{path.name}"
    try:
        with path.open("rb") as file:  # one PutObject, so one event
            boto3.client("s3", region_name=region).put_object(Bucket=bucket, Key=key, Body=file)
    except (BotoCoreError, ClientError) as error:
        raise InvalidArtifact(f"cannot upload to bucket {bucket!r}: {first_line(error)}") from error
    return f"s3://{bucket}/{key}"
