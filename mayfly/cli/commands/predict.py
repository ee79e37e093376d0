"""Commands of the data plane: call a model, show what it takes."""

import json
from typing import Any

import click

from mayfly.cli import inputs, output
from mayfly.cli.session import Session, common
from mayfly.client.errors import InvalidInput, NotFound
from mayfly.client.prediction import Prediction
from mayfly.client.sync.model import Model
from mayfly.client.tensors.signature import Signature

ROWS = 10  # rows of an output that are shown
LABELS = 5  # best classes of a row that are shown


@click.command(short_help="Run a model.")
@click.argument("model")
@click.argument("source", required=False, metavar="[INPUT]")
@click.option(
    "--sample", is_flag=True, help="Send the version's own sample; zeros where it has none."
)
@click.option("--output", "outputs", multiple=True, help="Only this output; may be repeated.")
@click.option("--timeout", type=float, help="Seconds for the call with its retries.")
@click.option("--user", default="", help="Caller, who stays on one side of a canary.")
@common
def call(
    session: Session,
    model: str,
    source: str | None,
    sample: bool,
    outputs: tuple[str, ...],
    timeout: float | None,
    user: str,
) -> None:
    """Run MODEL (or MODEL:VERSION, MODEL:ALIAS) on INPUT and print its outputs.

    INPUT is a .json, .csv, image or .wav file, - for JSON on standard input, or JSON itself: a list
    for the only input, a dict by name for several.

    \b
    Example: mayfly call digits:8 seven.png
             mayfly call doubler '[[1, 2, 3]]'
             mayfly call digits --sample
    """
    chosen = session.model(model)
    signature = chosen.signature()
    if sample == bool(source):
        raise InvalidInput(f"name an INPUT or --sample; {model} takes {_inputs(signature)}")
    values = _sample(chosen, signature) if sample else inputs.read(str(source), signature)
    answer = chosen.predict(values, outputs=outputs, timeout=timeout, user=user)
    document = {
        "model": chosen.name,
        "version": answer.version,
        "alias": answer.alias,
        "request_id": answer.request_id,
        "outputs": {name: output.plain(answer[name]) for name in answer} if session.json else None,
    }
    session.show(document, _answer(answer, signature))


@click.command(short_help="Show a model, or one of its versions.")
@click.argument("model")
@common
def show(session: Session, model: str) -> None:
    """Show the inputs and outputs of MODEL (or MODEL:VERSION).

    \b
    Example: mayfly show digits:8
    """
    signature = session.model(model).signature()
    properties = signature.properties
    document = {
        "model": signature.model,
        "version": signature.version,
        "inputs": [_document(spec) for spec in signature.inputs],
        "outputs": [_document(spec) for spec in signature.outputs],
        "properties": dict(properties),
    }
    facts = [f"{signature.model}:{signature.version}  {properties.get('description', '')}".rstrip()]
    facts += [f"  in   {spec}" for spec in signature.inputs]
    facts += [f"  out  {spec}" for spec in signature.outputs]
    wanted_facts = ("aliases", "accuracy", "task", "size_bytes", "memory_mb", "created_at")
    for name in wanted_facts:
        if name in properties:
            value = properties[name]
            shown = output.size(int(value)) if name == "size_bytes" else value
            facts.append(f"  {name.removesuffix('_bytes')}: {shown}")
    session.show(document, "\n".join(facts), f"Try: mayfly call {model} --sample")


def _sample(model: Model, signature: Signature) -> dict[str, Any]:
    """Return the sample of the version that answers, or zeros."""
    try:
        return model.sample(int(signature.version)).inputs
    except NotFound:
        return inputs.made(signature)


def _document(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _inputs(signature: Signature) -> str:
    return ", ".join(map(str, signature.inputs))


def _answer(answer: Prediction, signature: Signature) -> str:
    lines = []
    for name in answer:
        labels = signature.properties.get(f"labels.{name}")
        rows = output.plain(answer[name])
        lines.append(f"{name}  {_rows(rows, json.loads(labels) if labels else None)}")
    alias = f" ({answer.alias})" if answer.alias else ""
    lines.append(
        click.style(f"{answer.model}:{answer.version}{alias}  {answer.request_id}", dim=True)
    )
    return "\n".join(lines)


def _rows(rows: Any, labels: list[str] | None) -> str:
    if not isinstance(rows, list):
        return _value(rows)
    shown = [_row(row, labels) for row in rows[:ROWS]]
    more = [f"… {len(rows) - ROWS} more rows"] if len(rows) > ROWS else []
    return "\n   ".join(shown + more)


def _row(row: Any, labels: list[str] | None) -> str:
    if labels and isinstance(row, list) and len(row) == len(labels):
        best = sorted(range(len(row)), key=lambda at: row[at], reverse=True)[:LABELS]
        return "  ".join(f"{labels[at]} {row[at]:.4f}" for at in best)
    if isinstance(row, list):
        cells = [_row(cell, None) for cell in row[:ROWS]] + (["…"] if len(row) > ROWS else [])
        return f"[{', '.join(cells)}]"
    return _value(row)


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
