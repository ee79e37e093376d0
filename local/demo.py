"""Demo: train a digit classifier, register it, call it over HTTP.

python -m local.demo            stop afterwards
python -m local.demo --keep     keep the stack up until Ctrl-C
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from botocore.exceptions import BotoCoreError, ClientError

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.clock import utc_now
from functions.core.errors import one_line
from functions.core.registry.registry import Registry
from functions.core.registry.version import Version
from local.client import RunningStack, start_stack
from local.execution.processes import ROOT, is_dying
from local.screen import Screen
from training.data import Dataset, digits

STATE = ROOT / ".local"
MODEL = "digits"
GOAL = 0.98  # accuracy on the held-out test set
BATCH = 64
JOB_LIMIT_S = 3600  # limits are generous: a busy machine only takes longer
READY_LIMIT_S = 600
POLL_S = 0.25
NEXT = "Next: make local keeps the stack up; open the console's address that it prints last."


# Raised when a part of the stack has ended.
STACK_ERRORS = (BotoCoreError, ClientError, HTTPException, OSError)


class DemoFailed(Exception):
    """Failure of a demo step; the text is the cause."""


@contextlib.contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Print a step's title, its progress while running, and its duration.

    Yields a function that sets the progress text.
    """
    started = time.monotonic()
    progress = [""]
    done = threading.Event()
    terminal = sys.stdout.isatty()

    def tick() -> None:
        shown = ""
        while not done.wait(1):
            text = f"  … {time.monotonic() - started:3.0f} s  {progress[0]}"[:110]
            if terminal:
                print(f"\r{text:<110}", end="", flush=True)
            elif progress[0] != shown:  # no terminal: print each text once
                shown = progress[0]
                print(text, flush=True)

    print(f"\n{title}", flush=True)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield lambda text: progress.__setitem__(0, text)
    finally:
        done.set()
        ticker.join()
        if terminal:
            print(f"\r{'':110}\r", end="")
    print(f"  done in {time.monotonic() - started:.1f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m local.demo", description="Train, register and call a digit classifier."
    )
    parser.add_argument("--keep", action="store_true", help="keep the stack up until Ctrl-C")
    parser.add_argument("--api-port", type=int, default=0, help="port of the API [a free one]")
    parser.add_argument(
        "--aws-port", type=int, default=0, help="port of S3, SQS, DynamoDB, SageMaker [a free one]"
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    return run(lambda stack: show(options, stack, started), keep=options.keep)


def run(steps: Callable[[contextlib.ExitStack], None], *, keep: bool) -> int:
    """Run steps, print why they failed, and return the exit status.

    With `keep`, Ctrl-C is how they end.
    """
    try:
        with contextlib.ExitStack() as stack:
            steps(stack)
    except DemoFailed as failure:
        print(f"\nerror: {failure}", file=sys.stderr)
        return 1
    except STACK_ERRORS as error:
        print(f"\nerror: {one_line(str(error))}{last_words()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 0 if keep else 130
    return 0


def show(options: argparse.Namespace, stack: contextlib.ExitStack, started: float) -> None:
    """Run the demo's steps: start, train, register and call."""
    with step("1. Start the local stack: template.yaml on 127.0.0.1, no Docker, no account"):
        ports = ("--api-port", str(options.api_port), "--aws-port", str(options.aws_port))
        try:
            running = stack.enter_context(start_stack(state_dir=STATE, arguments=ports))
        except RuntimeError as error:
            raise DemoFailed(str(error)) from error
        key = running.create_key("admin")
    print(f"  API {running.api_url}   AWS {running.endpoint_url}   logs {short(running.log_dir)}")

    with step("2. Train: submit the recipe `digits` as a SageMaker training job") as say:
        job = submit(running, MODEL)
        say(f"job {job}")
        follow(running, job, say)
    print(f"  job {job}: Completed; its model.onnx landed in s3://…/models/{MODEL}/")

    with step("3. Register: the upload's event runs the register function") as say:
        version = wait_until_ready(running, MODEL, say, key)
    card(version)

    data = digits()
    count = f"{len(data.test)} held-out images through tritonclient"
    with step(f"4. Call: {count}, {BATCH} a request, binary") as say:
        accuracy, cold_ms, warm_ms = ask(running, key, data, say)
    print(
        f"  accuracy over HTTP {accuracy:.4f} (goal {GOAL})"
        f"   first call {cold_ms:.0f} ms, later calls {warm_ms:.1f} ms"
    )

    command = curl(running, key, data)
    if options.keep:  # no stack, no call
        print(f"  {command}")
    print(f"\nTotal: {time.monotonic() - started:.1f} s.", flush=True)
    if accuracy < GOAL:
        raise DemoFailed(f"accuracy {accuracy:.4f} is below {GOAL}")
    print(f"\n{advice(running, key, options.keep)}", flush=True)
    if options.keep:
        while not is_dying(running.pid):
            time.sleep(POLL_S)
        raise DemoFailed(f"the local stack has ended{last_words()}")


def screen(running: RunningStack, key: str) -> Screen:
    """Return the text screen for a stack with the demo's model."""
    return Screen(
        api_url=running.api_url,
        root_url=running.root_url,
        endpoint_url=running.endpoint_url,
        lambda_url=running.lambda_url,
        log_dir=running.log_dir,
        bucket=running.outputs["ArtifactsBucketName"],
        table=running.outputs["RegistryTableName"],
        functions=list(running.environment),
        models=[MODEL],
        key=key,
    )


def submit(running: RunningStack, recipe: str, *more: str) -> str:
    """Submit a SageMaker training job via the CLI; return its name.

    Only the endpoint differs from AWS.
    """
    command = [
        sys.executable,
        "-m",
        "training.sagemaker.cli",
        recipe,
        "--bucket",
        running.outputs["ArtifactsBucketName"],
    ]
    command += ["--role", "arn:aws:iam::123456789012:role/training", *more]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = clean | {
        "AWS_ENDPOINT_URL": running.endpoint_url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoFailed(f"the job was not accepted: {last_line(done.stderr)}")
    return last_line(done.stdout).removeprefix("submitted ")


def follow(
    running: RunningStack, job: str, say: Callable[[str], None], limit_s: float = JOB_LIMIT_S
) -> dict[str, Any]:
    """Wait for a training job to complete and return its description."""
    sagemaker = running.client("sagemaker")
    log = running.log_dir / f"training-{job}.log"
    for _ in until(limit_s):
        description: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=job)
        status = description["TrainingJobStatus"]
        if status == "Completed":
            return description
        if status != "InProgress":
            reason = description.get("FailureReason", "no reason given")
            raise DemoFailed(f"the training job is {status}: {reason}")
        if log.exists() and (line := last_line(log.read_text())):
            say(line)
    raise DemoFailed(f"the training job did not end within {limit_s:.0f} s; see {short(log)}")


def wait_until_ready(
    running: RunningStack,
    model: str,
    say: Callable[[str], None],
    key: str = "",
    limit_s: float = READY_LIMIT_S,
) -> Version:
    """Wait until a registered model is ready and return its version.

    Raises:
        DemoFailed: the version was rejected, or time ran out.
    """
    table = DynamoTable(running.client("dynamodb"), running.outputs["RegistryTableName"])
    registry = Registry(table, utc_now)
    for _ in until(limit_s):
        if is_ready(f"{running.api_url}/v2/models/{model}/ready", key):
            return registry.resolve(model, None).version
        versions = registry.versions(model)
        for version in versions:
            if version.reason:
                raise DemoFailed(f"version {version.number} was rejected: {version.reason.message}")
        say(f"{len(versions)} version(s) so far")
    raise DemoFailed(
        f"the model was not ready within {limit_s:.0f} s; see {short(running.log_dir)}"
    )


def card(version: Version) -> None:
    """Print a model version's card: metrics, tensors, data and graph."""
    facts, signature = version.card, version.signature
    if signature is None:
        raise DemoFailed(f"version {version.number} is READY without a signature")
    [[metric, value], *_] = facts["metrics"].items()
    baselines = ", ".join(
        f"{name} {values[metric]:.4f}" for name, values in facts["baselines"].items()
    )
    tensors = ", ".join(
        f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in signature.inputs
    )
    answers = ", ".join(
        f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in signature.outputs
    )
    data = facts["data"]
    size = f"{version.size_bytes / 1000:.0f} KB"
    print(f"  {version.model} version {version.number}, aliases prod and latest, {size}")
    print(f"    answers   {facts['description']}")
    print(f"    in, out   {tensors}  →  {answers}")
    print(f"    {metric:<9} {value:.4f} on the held-out part   (baselines: {baselines})")
    rows = data["split"]
    print(f"    data      {data['source']}, {rows['train']} to train, {rows['test']} to test")
    graph = f"opset {version.graph['opset']}, {version.graph['producer']}"
    print(f"    graph     {graph}, sha256 {version.digest[:12]}…")


def ask(
    running: RunningStack, key: str, data: Dataset, say: Callable[[str], None]
) -> tuple[float, float, float]:
    """Measure accuracy and latency of the served model with tritonclient.

    Returns (accuracy, milliseconds of the first call, median milliseconds of later calls).
    """
    client = triton.InferenceServerClient(
        running.api_url.removeprefix("http://"), network_timeout=60
    )
    right, times, headers = 0, [], {"x-api-key": key}
    try:
        for at in range(0, len(data.test), BATCH):
            images, truth = (
                data.test.inputs["image"][at : at + BATCH],
                data.test.target[at : at + BATCH],
            )
            tensor = triton.InferInput("image", list(images.shape), "FP32")
            tensor.set_data_from_numpy(images)
            began = time.perf_counter()
            answer = client.infer(MODEL, [tensor], headers=headers).as_numpy("probabilities")
            times.append(1000 * (time.perf_counter() - began))
            right += int((answer.argmax(axis=1) == truth).sum())
            say(f"{at + len(images)} of {len(data.test)} images")
    except triton.InferenceServerException as error:
        raise DemoFailed(f"the endpoint refused a request: {error}") from error
    finally:
        client.close()
    return right / len(data.test), times[0], float(np.median(times[1:]))


def curl(running: RunningStack, key: str, data: Dataset) -> str:
    """Write a test image's inference request, send it, return its curl command."""
    image, truth = data.test.inputs["image"][:1], int(data.test.target[0])
    request = STATE / "digit.json"
    tensor = {
        "name": "image",
        "shape": list(image.shape),
        "datatype": "FP32",
        "data": image.round(4).ravel().tolist(),
    }
    outputs = [{"name": "probabilities", "parameters": {"classification": 1}}]
    request.write_text(json.dumps({"inputs": [tensor], "outputs": outputs}))
    url = f"{running.api_url}/v2/models/{MODEL}/infer"
    answer = fetch(url, request.read_bytes(), key)
    value, index, *_ = answer["outputs"][0]["data"][0].split(":")
    answer_text = f"a {truth}, answered {index} with {float(value):.3f}"
    print(f"\nThe same in JSON: {answer_text} (pixels from 0 paper to 1 ink)")
    return f'curl -s -H "x-api-key: {key}" {url} -d @{short(request)}'


def advice(running: RunningStack, key: str, keep: bool) -> str:
    """Return the next step: use the stack, or keep one."""
    return screen(running, key).text() if keep else NEXT


def fetch(url: str, body: bytes | None = None, key: str = "") -> Any:
    """Request a URL; return the JSON reply.

    Raises:
        DemoFailed: the reply is an error; the text is its status and message.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, {"x-api-key": key})  # noqa: S310 (loopback)
    try:
        with opener.open(request, timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        text = one_line(error.read().decode(errors="replace"))
        raise DemoFailed(f"the endpoint answered {error.code}: {text}") from error


def is_ready(url: str, key: str = "") -> bool:
    """Tell whether a URL answers without an error."""
    try:
        fetch(url, key=key)
    except DemoFailed:
        return False
    return True


def until(limit_s: float) -> Iterator[None]:
    """Yield every POLL_S seconds until `limit_s` seconds have passed."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        yield
        time.sleep(POLL_S)


def last_line(text: str) -> str:
    """Return the last line of a text, without "error: ", or "".

    >>> last_line("importing\\nerror: m.gguf does not exist\\n")
    'm.gguf does not exist'
    """
    return (text.strip().splitlines() or [""])[-1].removeprefix("error: ")


def last_words() -> str:
    """Return the local stack's last output line, to append to errors."""
    path = STATE / "stack.log"
    line = last_line(path.read_text()) if path.exists() else ""
    return f"; the local stack's last words: {line}" if line else ""


def short(path: Path) -> str:
    """Return a path relative to the repository, if it lies in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
