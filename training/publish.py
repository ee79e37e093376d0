"""Publish an existing ONNX file: add a manifest with samples, upload it.

python -m training publish churn.onnx --model churn --task classification \\
    --label stays --label leaves --bucket my-artifacts
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
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
from training.export import graph_editing, graphs, model_card
from training.export.graphs import first_line
from training.recipe import NAME, Arrays, Task

# Sizes of free dimensions other than the batch, tried in this order.
SIZES = (2, 1, 4, 8, 16, 32, 224)
ELEMENTS = 2**24  # most values of a made-up input
EXTREMES = (100.0, -100.0)  # factors of a request's numbers
SEED = 20261122  # random seed of generated requests, which are the same in every run
DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "FP64": "float64", "BYTES": "object",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Publish an ONNX file from the command line; return the exit status."""
    try:
        publish(_parser().parse_args(arguments), environ)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training publish", description="Publish an ONNX file that exists."
    )
    add = parser.add_argument
    add("file", type=Path, help="the ONNX file; it is read only")
    add("--model", required=True, help="its name in the registry")
    add("--task", choices=get_args(Task), help="[the manifest's]")
    add("--description", help="what it answers, in a sentence [the manifest's]")
    add("--label", action="append", default=[], help="a class, in the order of the probabilities")
    add("--preprocessing", help="what a caller has to do to raw data, in a sentence")
    add("--manifest", type=Path, metavar="FILE", help="JSON: metrics, data, … as in schema 1")
    add(
        "--sample",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.npz",
        help="inputs by name",
    )
    add("--output", type=Path, help="the described copy [artifacts/<model>/model.onnx]")
    add("--bucket", help="upload it to this artifacts bucket, which registers it")
    add("--region", help="[$AWS_REGION, $AWS_DEFAULT_REGION or us-east-1]")
    return parser


def publish(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Write an ONNX file's copy with manifest and samples; return the path.

    With --bucket the copy is uploaded, too.

    Raises:
        InvalidArtifact: the file, its manifest or a sample is wrong, or the model does not answer.
    """
    if not NAME.fullmatch(options.model):
        raise InvalidArtifact(
            f"{options.model!r} is no model name: use A-Z, a-z, 0-9, '.', '_', '-'"
        )
    graph = read(options.file)
    own_labels = graph_editing.make_servable(graph)
    session = _open(graph, options.file.name)
    print(f"{options.file.name}: ONNX Runtime loads it; {_signature(session)}", flush=True)
    requests = [_sample(path, session) for path in options.sample] or made_up(session)
    if not requests:
        print("warning: no sample inside; give a request: --sample FILE.npz", flush=True)
    try:
        samples = graphs.samples(graph, requests)
        answers = [_answer(session, request) for request in requests]
    except Exception as error:  # the runtime raises native errors of any kind
        reason = first_line(error)
        raise InvalidArtifact(f"the model does not answer its samples: {reason}") from error
    card = _card(graph, options, [*answers, *_answers_to_extremes(session, requests)])
    _add_labels(card, own_labels)
    card["samples"] = samples
    model_card.embed(graph, card)
    path: Path = options.output or Path("artifacts", options.model, "model.onnx")
    if path.exists() and path.samefile(options.file):
        raise InvalidArtifact(f"--output {path} is the file itself; it is not overwritten")
    graphs.save(graph, path)
    size_kb = path.stat().st_size / 1000
    print(f"{path}: {size_kb:.0f} KB, {len(card['samples'])} samples inside", flush=True)
    if options.bucket:
        region = options.region or _region(environ)
        print(f"uploaded {upload(path, options.model, options.bucket, region)}", flush=True)
        print("the registration checks more, and says READY or why not: POST /v2/repository/index")
    return path


def _region(environ: Mapping[str, str]) -> str:
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def read(path: Path) -> onnx.ModelProto:
    """Load an ONNX file with external weights from its folder.

    Raises:
        InvalidArtifact: the file or one of its weight files is missing, no ONNX, or too large for
            one file.
    """
    if not path.is_file():
        raise InvalidArtifact(f"there is no file {path}")
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise InvalidArtifact(f"{path.name} is no ONNX file") from error
    _load_weights(graph, path)
    return graph


def _load_weights(graph: onnx.ModelProto, path: Path) -> None:
    """Load a model's external weight files into its ONNX graph."""
    try:
        onnx.load_external_data_for_model(graph, str(path.parent))
    except Exception as error:  # the library raises its own errors, the system's and plain ones
        raise InvalidArtifact(
            f"{path.name} keeps weights in other files ({first_line(error)}): put them beside it, "
            "or export one file with torch.onnx.export(..., external_data=False)"
        ) from error
    if graph.ByteSize() > graphs.LIMIT_BYTES:
        raise InvalidArtifact(
            f"{path.name} and its weights have {graph.ByteSize() / 1e9:.2f} GB, too much for one "
            "ONNX file: pack all its files into model.tar.gz and upload that to models/<model>/"
        )


def _open(graph: onnx.ModelProto, name: str) -> Any:
    """Load an ONNX graph into ONNX Runtime; refuse non-tensor inputs and outputs.

    Raises:
        InvalidArtifact: it does not load, or has an input or output that is no tensor.
    """
    problem = graphs.locale_problem(graph)
    if problem is not None:
        raise InvalidArtifact(f"{name} {problem}")
    try:
        session = graphs.open_session(graph)
    except Exception as error:  # the runtime raises native errors of any kind
        raise InvalidArtifact(f"{name} does not load: {first_line(error)}") from error
    for value in (*session.get_inputs(), *session.get_outputs()):
        if value.type not in graphs.DATATYPES:
            raise InvalidArtifact(
                f"{name}: {value.name} is a {value.type}, and only tensors are served; "
                "export it as tensors"
            )
    return session


def _signature(session: Any) -> str:
    return f"{_spelled(session.get_inputs())} → {_spelled(session.get_outputs())}"


def _spelled(values: Sequence[Any]) -> str:
    return ", ".join(
        f"{value.name} {graphs.DATATYPES[value.type]}{list(value.shape)}" for value in values
    )


# --- model card


def _card(
    graph: onnx.ModelProto, options: argparse.Namespace, answers: Sequence[Arrays]
) -> dict[str, Any]:
    """Build the manifest from file, answers, --manifest and other options.

    A later source overrides an earlier one.
    """
    card = _manifests(graph, options.manifest)
    set_by_options = {"task": options.task, "description": options.description}
    card |= {"schema": 1} | {
        name: value for name, value in set_by_options.items() if value is not None
    }
    if "task" not in card:
        raise InvalidArtifact(f"say what the model does: --task {', '.join(get_args(Task))}")
    labels = options.label or _labels(card)
    card["inputs"] = _inputs(graph, card.get("inputs", []), options.preprocessing)
    card["outputs"] = _outputs(graph, card, labels, answers)
    if labels and not any(output.get("labels") for output in card["outputs"]):
        raise InvalidArtifact(
            f"{len(labels)} labels, and no output has a last dimension of that size"
        )
    card.setdefault("tolerance", {"rtol": graphs.RTOL, "atol": graphs.ATOL})
    card.setdefault("published", datetime.now(UTC).isoformat(timespec="seconds"))
    return card


def _manifests(graph: onnx.ModelProto, path: Path | None) -> dict[str, Any]:
    card: dict[str, Any] = {}
    for prop in graph.metadata_props:
        if prop.key == manifest.KEY:
            card |= _parse_object(prop.value, "the manifest inside the file")
    if path is not None:
        if not path.is_file():
            raise InvalidArtifact(f"there is no file {path}")
        card |= _parse_object(path.read_text(encoding="utf-8"), path.name)
    return card


def _add_labels(card: Mapping[str, Any], labels: Mapping[str, list[str]]) -> None:
    """Add class labels from the ONNX graph to outputs lacking labels."""
    for output in card["outputs"]:
        if output["name"] in labels and not output.get("labels"):
            output["labels"] = labels[output["name"]]


def _inputs(
    graph: onnx.ModelProto, declared: Sequence[Mapping[str, Any]], preprocessing: str | None
) -> list[manifest.Input]:
    by_name = {str(entry.get("name")): entry for entry in declared}
    sentences = {name: str(entry.get("preprocessing", "")) for name, entry in by_name.items()}
    columns = {name: list(entry.get("columns", ())) for name, entry in by_name.items()}
    return model_card.inputs(graph, sentences if preprocessing is None else preprocessing, columns)


def _outputs(
    graph: onnx.ModelProto,
    card: Mapping[str, Any],
    labels: Sequence[str],
    answers: Sequence[Arrays],
) -> list[manifest.Output]:
    """Return manifest entries of the graph's outputs, kinds from manifest or answers."""
    kinds = model_card.output_kinds(card["task"], answers) if answers else {}
    entries = {entry.get("name"): entry for entry in card.get("outputs", [])}
    kinds |= {name: entry["kind"] for name, entry in entries.items() if "kind" in entry}
    return model_card.outputs(graph, kinds, labels, answers[0] if answers else None)


def _parse_object(text: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArtifact(f"{source} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArtifact(f"{source} is no JSON object")
    return value


def _labels(card: Mapping[str, Any]) -> list[str]:
    for output in card.get("outputs", []):
        if output.get("labels"):
            return list(output["labels"])
    return []


# --- requests


def _sample(path: Path, session: Any) -> dict[str, NDArray[Any]]:
    """Read a sample request from .npz, converted to the model's datatypes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise InvalidArtifact(f"{path.name} cannot be read as .npz: {first_line(error)}") from error
    dtypes = {value.name: DTYPES[graphs.DATATYPES[value.type]] for value in session.get_inputs()}
    if set(arrays) != set(dtypes):
        raise InvalidArtifact(
            f"{path.name} holds {', '.join(arrays)}; the model takes {', '.join(dtypes)}"
        )
    return {name: values.astype(dtypes[name]) for name, values in arrays.items()}


def made_up(session: Any) -> list[Arrays]:
    """Generate one or two requests that the model answers without error.

    The first has one row; a second has two rows, where the batch size is free. There is none, and
    a line printed, if the model refuses all sizes and values that are tried.
    """
    reason = ""
    for batch, size, integer in _attempts():
        try:
            requests = list(_requests(session, batch, size, integer))
            for request in requests:
                session.run(None, dict(request))
        except Exception as error:  # native errors of any kind; the next size is tried
            reason = reason or first_line(error)
            continue
        return requests
    print(f"the model refuses every made-up request ({reason})", flush=True)
    return []


def _attempts() -> Iterator[tuple[int, int, int]]:
    """Yield sizes of batch and other dimensions, and an integer value.

    The batch is one row; where the model refuses that, it is as large as the other dimensions.
    """
    pairs = [(1, size) for size in SIZES] + [(size, size) for size in SIZES if size > 1]
    for (batch, size), integer in product(pairs, (1, 0)):
        yield batch, size, integer


def _answer(session: Any, request: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(request)), strict=True))


def _answers_to_extremes(session: Any, requests: Sequence[Arrays]) -> list[Arrays]:
    """Return answers to large numbers, which tell logits from probabilities."""
    answers = []
    for factor, sample in product(EXTREMES, requests[:1]):
        request = {
            name: values * values.dtype.type(factor) if values.dtype.kind == "f" else values
            for name, values in sample.items()
        }
        with contextlib.suppress(Exception):  # native errors of any kind: it refuses such numbers
            answers.append(_answer(session, request))
    return answers


def _requests(session: Any, batch: int, size: int, integer: int) -> Iterator[Arrays]:
    """Yield a generated request of one row and, where possible, two.

    Two rows are possible where all inputs have a free first dimension.
    """
    inputs = session.get_inputs()
    is_free = all(value.shape and not isinstance(value.shape[0], int) for value in inputs)
    for rows in (1, 2) if is_free and batch == 1 else (batch,):
        random = np.random.default_rng(SEED)
        yield {
            value.name: _values(
                graphs.DATATYPES[value.type], _shape(value.shape, rows, size), integer, random
            )
            for value in inputs
        }


def _shape(declared: Sequence[int | str | None], rows: int, size: int) -> list[int]:
    """Fill a shape's free dimensions: axis 0 with `rows`, others with `size`.

    A sum of dimensions, such as a decoder's "past_length + length", is the sum of their sizes.
    """
    free = [rows, *[size] * len(declared)]
    return [
        dim if isinstance(dim, int) else _dimension(dim, free[axis], size)
        for axis, dim in enumerate(declared)
    ]


def _dimension(name: str | None, single: int, size: int) -> int:
    terms = [term.strip() for term in (name or "").split("+")]
    if len(terms) == 1:
        return single
    return sum(int(term) if term.isdigit() else size for term in terms)


def _values(
    datatype: str, shape: Sequence[int], integer: int, random: np.random.Generator
) -> NDArray[Any]:
    """Generate tensor values: random eighths for floats, `integer` for other numbers.

    Eighths from 0 to 1 are short in JSON.
    """
    if math.prod(shape) > ELEMENTS:
        raise ValueError(f"an input of shape {list(shape)} is too large to make up")
    if datatype == "BYTES":
        return np.full(shape, "a", object)
    if datatype.startswith("FP"):
        return (random.integers(0, 9, shape) / 8).astype(DTYPES[datatype])
    return np.full(shape, integer, DTYPES[datatype])


# --- upload


def upload(path: Path, model: str, bucket: str, region: str) -> str:
    """Upload a model file to S3, which registers it; return its URI.

    The key begins with `models/<model>/`.

    Raises:
        InvalidArtifact: S3 refuses; the message is its own.
    """
    import boto3  # imported late: only an upload needs it
    from botocore.exceptions import BotoCoreError, ClientError

    key = f"models/{model}/{datetime.now(UTC):%Y%m%dT%H%M%S}/{path.name}"
    try:
        with path.open("rb") as file:  # one PutObject request causes one S3 event
            boto3.client("s3", region_name=region).put_object(Bucket=bucket, Key=key, Body=file)
    except (BotoCoreError, ClientError) as error:
        raise InvalidArtifact(f"cannot upload to bucket {bucket!r}: {first_line(error)}") from error
    return f"s3://{bucket}/{key}"
