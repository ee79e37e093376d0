"""Publish an existing ONNX file, TensorFlow SavedModel or Keras file.

The copy gets a manifest with samples, and is uploaded.

python -m training publish churn.onnx --model churn --task classification \\
    --label stays --label leaves --bucket my-artifacts
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import onnx

from training import manifest
from training.errors import InvalidArtifact, TrainingError
from training.evaluation import distributions
from training.export import graph_editing, graphs, model_card
from training.export.graphs import first_line
from training.publishing import formats, rows
from training.publishing.conversion import Conversion, prove
from training.publishing.requests import answer, answers_to_extremes, made_up, sample
from training.recipe import NAME, Arrays, Task


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
        prog="python -m training publish", description="Publish a model that exists."
    )
    add = parser.add_argument
    add(
        "file",
        type=Path,
        help="an ONNX file, a .keras or .h5 file, or the folder of a TensorFlow SavedModel; it is "
        "read only",
    )
    add("--model", required=True, help="its name in the registry")
    add("--signature", metavar="NAME", help="which signature of a SavedModel [serving_default]")
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
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help="rows it was trained on (.npz or a folder of .npy by input name, CSV, Parquet): their "
        "distributions are kept, to detect drift",
    )
    add("--target", metavar="NAME", help="column or array of --data that the model predicts")
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
    converted = formats.convert(options.file, options.signature)
    graph = converted.graph if converted else read(options.file)
    own_labels = graph_editing.make_servable(graph)
    session = _open(graph, options.file.name)
    print(f"{options.file.name}: ONNX Runtime loads it; {_signature(session)}", flush=True)
    requests = [sample(path, session) for path in options.sample] or made_up(session)
    if not requests:
        print("warning: no sample inside; give a request: --sample FILE.npz", flush=True)
    try:
        samples = graphs.samples(graph, requests)
        answers = [answer(session, request) for request in requests]
    except Exception as error:  # the runtime raises native errors of any kind
        reason = first_line(error)
        raise InvalidArtifact(f"the model does not answer its samples: {reason}") from error
    if converted is not None:
        _prove(converted, session, requests, options)
    card = _card(graph, options, [*answers, *answers_to_extremes(session, requests)])
    _add_labels(card, own_labels)
    card["samples"] = samples
    if options.data is not None:
        card["distributions"] = _distributions(session, card, options.data, options.target)
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


def _prove(
    converted: Conversion, session: Any, requests: Sequence[Arrays], options: argparse.Namespace
) -> None:
    """Compare a converted graph with its original, on rows of --data, too."""
    if options.data is not None:
        inputs = rows.read(options.data, session, options.target, ()).inputs
        requests = [*requests, *rows.batches(session, inputs)]
    count = prove(converted, session, requests)
    print(f"the graph answers {count} requests as the original does", flush=True)


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


def _distributions(
    session: Any, card: Mapping[str, Any], path: Path, target: str | None
) -> manifest.Distributions:
    """Return the distributions of a file's rows and the model's answers."""
    labels = _labels(card) if card["task"] == "classification" else []
    if target and not labels and card["task"] == "classification":
        raise InvalidArtifact("--target names the classes of rows: say which there are by --label")
    data = rows.read(path, session, target, labels)
    return distributions.describe(
        data.inputs,
        rows.answer(session, data.inputs),
        parts=("data", "data"),
        columns=data.columns,
        labels=labels,
        target=data.target,
    )


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
