"""Stress test of the sandbox with mutated models: READY and right, or rejected with a reason.

Byte flips, truncations, insertions and splices of valid models, seeded, go through both processes
of the sandbox (`make stress`: 10,000 mutants). A process checks many mutants until it dies. A built
model is right if its sample response is what a plain session returns.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from functions.adapters.child_process import Child, ChildEnded, Limits
from functions.core.errors import InvalidModel
from functions.core.registration.sandbox_answers import read_built, read_unpacked
from functions.core.registration.sandbox_protocol import Brief, Built, build_task, unpack_task
from functions.core.uploads import Form
from tests.hostile.cases import BOOL, FLOAT, INT64, constant, graph, model, node, value
from tests.models import scale_model

LIMITS = Limits(memory_mb=1500, cpu_s=100_000)
ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
TASK_S = 15.0
TASKS = 100  # for one process
KINDS = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}


def seeds() -> list[bytes]:
    """Return valid models, small, so that a random byte is often part of the structure."""
    rng = np.random.default_rng(0)
    convolution = model(
        [
            node("Conv", "x w b", "c", kernel_shape=[3, 3]),
            node("Relu", "c", "r"),
            node("GlobalAveragePool", "r", "y"),
        ],
        [value("x", shape=["batch", 1, 8, 8])],
        [value("y", shape=["batch", 4, 1, 1])],
        constant("w", rng.normal(size=(4, 1, 3, 3))),
        constant("b", rng.normal(size=4)),
    )
    branches = {
        name: graph(name, [node(op, "x", f"r{name}")], [], [value(f"r{name}")])
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    branch = model(
        [node("If", "c", "y", then_branch=branches["then"], else_branch=branches["else"])],
        [value("x"), value("c", BOOL, [])],
        [value("y")],
    )
    shapes = model(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n", axis=0),
            node("Div", "n two", "h"),
            node("Cast", "h", "f", to=FLOAT),
            node("Mul", "x f", "y"),
        ],
        [value("x")],
        [value("y")],
        constant("zero", 0, np.int64),
        constant("two", 2, np.int64),
    )
    forest = model(
        [
            node(
                "TreeEnsembleRegressor", "x", "y", domain="ai.onnx.ml", n_targets=1,
                nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
                nodes_values=[0.5, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
                nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0],
                target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
            )
        ],
        [value("x")],
        [value("y", shape=["batch", 1])],
        opsets={"ai.onnx.ml": 3},
    )  # fmt: skip
    integers = model(
        [node("Mod", "x w", "y")],
        [value("x", INT64)],
        [value("y", INT64)],
        constant("w", [3, 5, 7], np.int64),
    )
    body = graph(
        "body",
        [node("Add", "v v", "w"), node("Identity", "go", "on")],
        [value("i", INT64, []), value("go", BOOL, []), value("v", shape=None)],
        [value("on", BOOL, []), value("w", shape=None)],
    )
    loop = model(
        [helper.make_node("Loop", ["three", "", "x"], ["y"], body=body)],
        [value("x", shape=[2])],
        [value("y", shape=[2])],
        constant("three", 3, np.int64),
    )
    described = scale_model(
        manifest={"schema": 1, "task": "regression", "outputs": [{"name": "y"}]}
    )
    return [scale_model(), described, convolution, branch, shapes, forest, integers, loop]


def mutate(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Change one of `valid` in one to four ways.

    Every second mutant is changed as a protobuf message, so that it still parses.
    """
    return mutate_message(rng, valid) if rng.random() < 0.5 else mutate_bytes(rng, valid)


def mutate_message(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Remove, repeat or change fields, or exchange them with those of another model."""
    mutant, donor = (onnx.ModelProto.FromString(rng.choice(valid)) for _ in range(2))
    for _ in range(rng.choice((1, 1, 2, 4))):
        parts = list(messages(mutant))
        part = rng.choice(parts)
        fields = part.ListFields()
        if not fields:
            continue
        field, content = rng.choice(fields)
        if rng.random() < 0.1:
            part.ClearField(field.name)
        elif field.message_type:  # replaced by, or repeated with, a message of its type
            alike = [
                message
                for source in (mutant, donor)
                for message in messages(source)
                if message.DESCRIPTOR is field.message_type
            ]
            chosen = rng.choice(alike)
            copied = type(chosen).FromString(chosen.SerializeToString())
            if field.is_repeated:
                (content.add() if rng.random() < 0.5 else rng.choice(content)).CopyFrom(copied)
            else:
                content.CopyFrom(copied)
        else:
            with suppress(ValueError):  # protobuf refuses some enumerators and numbers
                if field.is_repeated:
                    content[rng.randrange(len(content))] = changed(rng, content[0])
                else:
                    setattr(part, field.name, changed(rng, content))
    return mutant.SerializeToString()


def messages(part: Any) -> Iterator[Any]:
    """Yield `part` and every message within it."""
    yield part
    for field, content in part.ListFields():
        if field.message_type:
            for inner in content if field.is_repeated else [content]:
                yield from messages(inner)


def changed(rng: random.Random, content: Any) -> Any:
    if isinstance(content, bool | int):
        return rng.choice(
            (0, 1, 2, 3, 6, 7, 9, 11, 16, 255, 2**31 - 1, int(content) ^ 1 << rng.randrange(8))
        )
    if isinstance(content, float):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if isinstance(content, str):
        return rng.choice(
            ("", "x", "y", "w", "Relu", "Add", "axis", "value", content + "2", content[1:])
        )
    return bytes(rng.randrange(256) if rng.random() < 0.1 else byte for byte in content)


def mutate_bytes(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    content = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(7):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + rng.randrange(1, 9)]
            case 4:
                content[at:at] = rng.choice(
                    (b"\0", b"\xff", b"\x7f\xff\xff\xff", rng.randbytes(rng.randrange(1, 9)))
                )
            case 5:  # overwrite with a piece of another model
                donor = rng.choice(valid)
                begin = rng.randrange(len(donor))
                content[at : at + rng.randrange(32)] = donor[begin : begin + rng.randrange(1, 64)]
            case _:  # repeat a piece
                content[at:at] = content[at : at + rng.randrange(1, 64)]
        if not content:
            break
    return bytes(content)


class Processes:
    """Both processes of the sandbox, restarted when they die and after TASKS tasks.

    Each build leaves threads behind in its process.
    """

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._tasks: Counter[str] = Counter()
        self.started = 0

    def run(self, step: str, task: Mapping[str, Any]) -> object:
        child = self._children.get(step)
        self._tasks[step] += 1
        if child and self._tasks[step] % TASKS == 0:
            self._children.pop(step).kill()
            child = None
        if child is None:
            self.started += 1
            child = self._children[step] = Child(step, LIMITS, ENVIRONMENT)
        try:
            return child.ask(task, time.monotonic() + TASK_S)
        except (ChildEnded, InvalidModel):
            self._children.pop(step).kill()
            raise

    def close(self) -> None:
        while self._children:
            self._children.popitem()[1].kill()


def outcome(processes: Processes, content: bytes) -> str:
    """Return READY or the reason of the rejection.

    Raises:
        AssertionError: the sandbox ended in another way.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        directory = Path(name)
        for folder in ("upload", "package", "serving"):
            (directory / folder).mkdir()
        (directory / "upload/model.onnx").write_bytes(content)
        try:
            answer = processes.run("unpack", unpack_task(Form.ONNX, directory))
            assert not (isinstance(answer, dict) and "crashed" in answer), answer
            unpacked = read_unpacked(answer)
            shutil.copyfile(directory / "package/model.onnx", directory / "raw.onnx")
            answer = processes.run("build", build_task(Brief(unpacked.model), directory))
            assert not (isinstance(answer, dict) and "crashed" in answer), answer
            if isinstance(answer, dict) and "memory" in answer:
                return "memory"
            built = read_built(answer)
        except ChildEnded as ended:
            assert ended.ready, ended
            return f"ended: {ended}"
        except InvalidModel as error:
            assert error.instance_code != "SANDBOX_BAD_ANSWER", error
            assert 10 < len(str(error)) <= 300, error
            assert str(error).isprintable(), error
            return error.instance_code
        assert {path.name for path in (directory / "serving").iterdir()} == set(built.files)
        return f"READY, {check_sample(built, directory / 'raw.onnx')}"


def check_sample(built: Built, raw: Path) -> str:
    """Compare the sample response with the mutant's in a session without optimisation."""
    sample = built.sample
    if sample is None:
        return "never answered"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])
    inputs = {tensor["name"]: tensor for tensor in sample["request"]["inputs"]}
    if any(tensor["datatype"] not in KINDS for tensor in inputs.values()):
        return "not compared"
    feeds = {
        name: np.array(tensor["data"], KINDS[tensor["datatype"]]).reshape(tensor["shape"])
        for name, tensor in inputs.items()
    }
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    for tensor in sample["response"]["outputs"]:
        expected = np.array(tensor["data"], dtype=np.float64).reshape(tensor["shape"])
        actual = np.asarray(outputs[tensor["name"]], dtype=np.float64)
        assert expected.shape == actual.shape, (expected.shape, actual.shape)
        close = np.allclose(expected, actual, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert close, (expected, actual)
    return "right"


def run(count: int, seed: int) -> Counter[str]:
    """Check `count` mutants and count their outcomes.

    Raises:
        AssertionError: a mutant ended in another way; the message has its number and bytes.
    """
    rng, valid, processes = random.Random(seed), seeds(), Processes()  # noqa: S311 (no secret)
    outcomes: Counter[str] = Counter()
    try:
        for number in range(count):
            content = mutate(rng, valid)
            try:
                outcomes[outcome(processes, content)] += 1
            except AssertionError as error:
                raise AssertionError(
                    f"mutant {number} of seed {seed}: {error}; {content.hex()}"
                ) from error
    finally:
        processes.close()
    outcomes["(processes started)"] = processes.started
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=20261122)
    options = parser.parse_args()
    began = time.monotonic()
    outcomes = run(options.count, options.seed)
    for name, times in outcomes.most_common():
        print(f"{times:7,}  {name}")
    settings = {"count": options.count, "seed": options.seed}
    print(json.dumps({**settings, "seconds": round(time.monotonic() - began), **outcomes}))


if __name__ == "__main__":
    main()
