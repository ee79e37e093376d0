"""The main job, watched: train a digit reader, let its upload register it, and ask it over HTTP. Every step can fail.

python -m local.demo            then everything stops
python -m local.demo --keep     then the stack stays until Ctrl-C
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
JOB_LIMIT_S = 400
READY_LIMIT_S = 60
POLL_S = 0.25


class DemoFailed(Exception):
    """When a step did not do what it should; the text is the cause."""


@contextlib.contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Print a step and how long it took; while it runs, what `say` was told last and the seconds so far."""
    started = time.monotonic()
    told = [""]
    done = threading.Event()
    terminal = sys.stdout.isatty()

    def tick() -> None:
        shown = ""
        while not done.wait(1):
            text = f"  … {time.monotonic() - started:3.0f} s  {told[0]}"[:110]
            if terminal:
                print(f"\r{text:<110}", end="", flush=True)
            elif told[0] != shown:  # a log keeps every line: only what is new
                shown = told[0]
                print(text, flush=True)

    print(f"\n{title}", flush=True)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield lambda text: told.__setitem__(0, text)
    finally:
        done.set()
        ticker.join()
        if terminal:
            print(f"\r{'':110}\r", end="")
    print(f"  done in {time.monotonic() - started:.1f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m local.demo", description=__doc__)
    parser.add_argument(
        "--keep", action="store_true", help="leave the stack running afterwards, until Ctrl-C"
    )
    parser.add_argument("--api-port", type=int, default=0, help="of the API [a free one]")
    parser.add_argument(
        "--aws-port", type=int, default=0, help="of S3, SQS, DynamoDB, SageMaker [a free one]"
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            show(options, stack, started)
    except DemoFailed as failure:
        print(f"\nerror: {failure}", file=sys.stderr)
        return 1
    except (
        BotoCoreError,
        ClientError,
        HTTPException,
        OSError,
    ) as error:  # the stack ended, or a part of it
        print(f"\nerror: {one_line(str(error))}{last_words()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 0 if options.keep else 130
    return 0


def show(options: argparse.Namespace, stack: contextlib.ExitStack, started: float) -> None:
    with step(
        "1. Start the local stack: template.yaml on 127.0.0.1, without Docker and without an account"
    ):
        ports = ("--api-port", str(options.api_port), "--aws-port", str(options.aws_port))
        try:
            running = stack.enter_context(start_stack(state_dir=STATE, arguments=ports))
        except RuntimeError as error:
            raise DemoFailed(str(error)) from error
    print(f"  API {running.api_url}   AWS {running.endpoint_url}   logs {short(running.log_dir)}")

    with step("2. Train: submit the recipe `digits` as a SageMaker training job") as say:
        job = submit(running, MODEL)
        say(f"job {job}")
        follow(running, job, say)
    print(f"  job {job}: Completed; its model.onnx landed in s3://…/models/{MODEL}/")

    with step("3. Register: the upload's event runs the register function") as say:
        version = registered(running, MODEL, say)
    card(version)

    data = digits()
    with step(
        f"4. Call: {len(data.test)} held-out images through tritonclient, {BATCH} a request, binary"
    ) as say:
        accuracy, cold_ms, warm_ms = ask(running, data, say)
    print(
        f"  accuracy over HTTP {accuracy:.4f} (goal {GOAL})   first call {cold_ms:.0f} ms, later ones {warm_ms:.1f} ms"
    )

    curl(running, data)
    print(f"\nAll of it took {time.monotonic() - started:.1f} s.", flush=True)
    if accuracy < GOAL:
        raise DemoFailed(f"accuracy {accuracy:.4f} is below {GOAL}")
    if options.keep:
        print(f"\n{screen(running).text()}", flush=True)
        while not is_dying(running.pid):
            time.sleep(POLL_S)
        raise DemoFailed(f"the local stack has ended{last_words()}")


def screen(running: RunningStack) -> Screen:
    """Describe the running stack and the demo's model for a person."""
    return Screen(
        api_url=running.api_url,
        root_url=running.root_url,
        endpoint_url=running.endpoint_url,
        lambda_url=running.lambda_url,
        log_dir=running.log_dir,
        bucket=running.outputs["ArtifactsBucketName"],
        functions=list(running.environment),
        models=[MODEL],
    )


def submit(running: RunningStack, recipe: str, *more: str) -> str:
    """Submit the job as a person would: by the command line, the endpoint being the only difference to AWS."""
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
    """The description of the job once it has completed."""
    sagemaker = running.client("sagemaker")
    log = running.log_dir / f"training-{job}.log"
    for _ in until(limit_s):
        told: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=job)
        status = told["TrainingJobStatus"]
        if status == "Completed":
            return told
        if status != "InProgress":
            raise DemoFailed(
                f"the training job is {status}: {told.get('FailureReason', 'no reason given')}"
            )
        if log.exists() and (line := last_line(log.read_text())):
            say(line)
    raise DemoFailed(f"the training job did not end within {limit_s:.0f} s; see {short(log)}")


def registered(running: RunningStack, model: str, say: Callable[[str], None]) -> Version:
    """Wait until the endpoint says that the model is ready, then read its record."""
    table = DynamoTable(running.client("dynamodb"), running.outputs["RegistryTableName"])
    registry = Registry(table, utc_now)
    for _ in until(READY_LIMIT_S):
        if get(f"{running.api_url}/v2/models/{model}/ready"):
            return registry.resolve(model, None).version
        versions = registry.versions(model)
        for version in versions:
            if version.reason:
                raise DemoFailed(f"version {version.number} was rejected: {version.reason.message}")
        say(f"{len(versions)} version(s) so far")
    raise DemoFailed(
        f"the model was not ready within {READY_LIMIT_S} s; see {short(running.log_dir)}"
    )


def card(version: Version) -> None:
    """The model's card, as the registry keeps it."""
    about, signature = version.card, version.signature
    if signature is None:
        raise DemoFailed(f"version {version.number} is READY without a signature")
    [[metric, value], *_] = about["metrics"].items()
    baselines = ", ".join(
        f"{name} {values[metric]:.4f}" for name, values in about["baselines"].items()
    )
    tensors = ", ".join(
        f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in signature.inputs
    )
    answers = ", ".join(
        f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in signature.outputs
    )
    data = about["data"]
    print(
        f"  {version.model} version {version.number}, aliases prod and latest, {version.size_bytes / 1000:.0f} KB"
    )
    print(f"    what      {about['description']}")
    print(f"    in, out   {tensors}  →  {answers}")
    print(f"    {metric:<9} {value:.4f} on the held-out part   (baselines: {baselines})")
    print(
        f"    data      {data['source']}, {data['split']['train']} to train, {data['split']['test']} to test"
    )
    print(
        f"    graph     opset {version.graph['opset']}, {version.graph['producer']}, sha256 {version.digest[:12]}…"
    )


def ask(
    running: RunningStack, data: Dataset, say: Callable[[str], None]
) -> tuple[float, float, float]:
    """(accuracy over the test set, ms of the first call, median ms of the others), by a client that is not ours."""
    client = triton.InferenceServerClient(
        running.api_url.removeprefix("http://"), network_timeout=60
    )
    right, times = 0, []
    try:
        for at in range(0, len(data.test), BATCH):
            images, truth = (
                data.test.inputs["image"][at : at + BATCH],
                data.test.target[at : at + BATCH],
            )
            tensor = triton.InferInput("image", list(images.shape), "FP32")
            tensor.set_data_from_numpy(images)
            began = time.perf_counter()
            answer = client.infer(MODEL, [tensor]).as_numpy("probabilities")
            times.append(1000 * (time.perf_counter() - began))
            right += int((answer.argmax(axis=1) == truth).sum())
            say(f"{at + len(images)} of {len(data.test)} images")
    except triton.InferenceServerException as error:
        raise DemoFailed(f"the endpoint refused a request: {error}") from error
    finally:
        client.close()
    return right / len(data.test), times[0], float(np.median(times[1:]))


def curl(running: RunningStack, data: Dataset) -> None:
    """One request in a file and the line that sends it, run once to see that it works."""
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
    answer = get(url, request.read_bytes())
    if not answer:
        raise DemoFailed(f"the endpoint refused the request in {short(request)}")
    value, index, *_ = answer["outputs"][0]["data"][0].split(":")
    print(
        f"\nThe same in JSON (a {truth}, answered {index} with {float(value):.3f}; `make local` stays up):"
    )
    print(f"  curl -s {url} -d @{short(request)}", flush=True)


def get(url: str, body: bytes | None = None) -> Any:
    """The JSON of a 200 reply, None for any other."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, body, timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError:
        return None


def until(limit_s: float) -> Iterator[None]:
    """Polls until the limit."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        yield
        time.sleep(POLL_S)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def last_words() -> str:
    """What the stack said last, if anything, to follow an error."""
    said = STATE / "stack.log"
    line = last_line(said.read_text()) if said.exists() else ""
    return f"; the local stack's last words: {line}" if line else ""


def short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
