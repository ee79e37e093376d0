"""Commands of uploads: upload, wait, dead-letters."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from mayfly.cli import output
from mayfly.cli.session import Session, common
from mayfly.cli.times import SECONDS
from mayfly.client.records import UploadRecord
from mayfly.client.sync.uploads import WAIT_S
from mayfly.client.sync.uploads import upload as send

BAR = 22  # signs of the progress bar
STEPS = {"waiting": "waiting", "received": "received", "registering": "read"}


@click.command(short_help="Upload a model as the next version.")
@click.argument("file", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Name of the model; it may be new.")
@click.option("--no-wait", is_flag=True, help="Return when the file is sent.")
@click.option("--timeout", type=SECONDS, default=int(WAIT_S), metavar="TIME", help="[5m]")
@common
def upload(session: Session, file: Path, model: str, no_wait: bool, timeout: int) -> None:
    """Upload PATH and follow its registration.

    PATH is an .onnx, which brings weights of its name beside it (model.onnx.data); a model.tar.gz;
    or a folder with one .onnx, whose other files are sent, too: weights, tokenizer and
    configuration of a language model, manifest.json.

    \b
    Example: mayfly upload model.onnx --model digits
             mayfly upload exported/ --model bert
    """
    started = time.monotonic()
    record = send(session.client._caller, model, file, _bar(session))
    if no_wait:
        session.show(dict(record.raw), record.id, f"Follow: mayfly wait {record.id}")
        return
    _follow(session, record.id, timeout, started)


@click.command(short_help="Wait until an upload is registered.")
@click.argument("upload_id")
@click.option("--timeout", type=SECONDS, default=int(WAIT_S), metavar="TIME", help="[5m]")
@common
def wait(session: Session, upload_id: str, timeout: int) -> None:
    """Follow the registration of an upload until READY or the reason.

    \b
    Example: mayfly wait 3f9c…
    """
    _follow(session, upload_id, timeout, time.monotonic())


def _follow(session: Session, upload_id: str, timeout: int, started: float) -> None:
    record = session.client.wait(upload_id, timeout, _step(session))
    passed = time.monotonic() - started
    text = f"{record.model} {record.version}   ready {output.good('✓')}   {passed:.1f} s"
    if record.version is None:
        text = f"{record.file} {record.state}: {record.next_step}"
    name = record.model
    advice = (
        f"Try: mayfly call {name}:{record.version} --sample     "
        f"Promote: mayfly promote {name} {record.version}"
    )
    session.show(dict(record.raw), text, advice if record.version else "")


def _bar(session: Session) -> Callable[[int, int], None]:
    """Return a progress bar on standard error, silent where nobody looks."""
    started = time.monotonic()

    def progress(sent: int, size: int) -> None:
        if session.json or session.quiet or not sys.stderr.isatty():
            return
        full = BAR * sent // max(size, 1)
        speed = sent / max(time.monotonic() - started, 1e-3)
        bar = f"{'█' * full}{' ' * (BAR - full)}"
        text = f"\ruploading  {bar}  {output.size(size)}  {output.size(speed)}/s"
        click.echo(text, err=True, nl=sent >= size)

    return progress


def _step(session: Session) -> Callable[[UploadRecord], None]:
    def step(record: UploadRecord) -> None:
        if not (session.json or session.quiet or record.done):
            click.secho(
                f"{record.model}  {STEPS.get(record.state, record.state)} …", dim=True, err=True
            )

    return step


@click.command("dead-letters", short_help="List registrations that failed, redrive them.")
@click.option("--redrive", is_flag=True, help="Register the uploads once more.")
@common
def dead_letters(session: Session, redrive: bool) -> None:
    """List uploads whose registration failed five times, with the reasons.

    \b
    Example: mayfly dead-letters --redrive
    """
    if redrive:
        session.client.redrive()
        session.show(
            {"redriven": True}, "The uploads are registered once more: mayfly versions MODEL"
        )
        return
    records = session.client.dead_letters()
    rows = [[output.age(row.sent_at), row.key, row.code, row.reason] for row in records]
    heads = ["WHEN", "OBJECT", "CODE", "REASON"]
    session.show_rows([row.raw for row in records], heads, rows, "No dead letters.")
