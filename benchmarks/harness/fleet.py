"""Fleet of many ONNX models of random sizes, registered quickly.

The sandbox's code reads, compiles, checks and measures each model, but in this process, because
these models can be trusted. The registry writes into a dictionary, and its items are copied to
DynamoDB in batches, because moto copies its whole table for each transaction. The items are those
that any registration writes. Each model answers with its own number.
"""

import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from boto3.dynamodb.types import TypeSerializer
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import cloud
from benchmarks.harness.measure import progress
from benchmarks.harness.member import WIDTH, Member
from benchmarks.harness.models import IR, OPSET
from functions.adapters.clock import utc_now
from functions.adapters.lambda_size import threads_for
from functions.core.registration.registration import Registration
from functions.core.registration.sandbox_protocol import Brief, Built, Unpacked
from functions.core.registry.registry import Registry
from functions.core.registry.version import State
from functions.core.uploads import Form, Upload
from functions.register.manifest import read_manifest
from functions.sandbox.build import build
from functions.sandbox.unpack import unpack
from tests.fakes import MemoryTable

# Model sizes are log-uniform between these limits: half are below 0.6 MB, the mean is 3.3 MB.
SMALLEST_BYTES, LARGEST_BYTES = 16 * 1024, 24 * 1024 * 1024
BATCH = 25  # items per BatchWriteItem, DynamoDB's limit


def write(member: Member, path: Path) -> None:
    """Write the ONNX file of one fleet model.

    Each answer reads all weights of the model.
    """
    inner = max(1, member.size_bytes // 4 // (2 * WIDTH))
    weights = {
        "in": np.full((WIDTH, inner), 0.25, np.float32),
        "out": np.full((inner, WIDTH), 1 / inner, np.float32),
        "number": np.float32(member.number),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "in"], ["wide"]),
        helper.make_node("MatMul", ["wide", "out"], ["narrow"]),
        helper.make_node("Add", ["narrow", "number"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy"
    )
    initializers = [
        numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    ]
    graph = helper.make_graph(nodes, "fleet", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.save_model(model, path)


def members(count: int, seed: int = 1) -> list[Member]:
    """Return descriptions of `count` fleet models with random sizes.

    A larger fleet of the same seed begins with the same members.
    """
    generator = random.Random(seed)  # noqa: S311 (no secret)
    low, high = math.log(SMALLEST_BYTES), math.log(LARGEST_BYTES)
    sizes = [int(math.exp(generator.uniform(low, high))) for _ in range(count)]
    return [Member(number, size) for number, size in enumerate(sizes, start=1)]


@contextmanager
def start(fleet: Sequence[Member], storage: str, memory_mb: int) -> Iterator[cloud.Cloud]:
    """Start a local AWS in which a fleet of models is registered.

    `memory_mb` is that of the function which will load the models.
    """
    with cloud.start([], [storage]) as aws:
        table, objects = MemoryTable(), aws.folder / "objects"
        registration = Registration(
            registry=Registry(table, utc_now),
            uploads=cloud.FileUploads(objects),
            blobs=cloud.FileBlobs(objects / aws.variables["SERVING_BUCKET"]),
            sandbox=InProcessSandbox(),
            read_manifest=read_manifest,
            memory_mb=memory_mb,
            threads=threads_for(memory_mb),
        )
        for member in fleet:
            if member.number % 50 == 1:
                progress(f"registering {member.number} of {len(fleet)}")
            _register(registration, objects, member)
        _copy(table, aws)
        progress("")
        try:
            yield aws
        finally:
            shutil.rmtree(objects)  # gigabytes: more than the exit of `cloud.start` has time for


def _register(registration: Registration, objects: Path, member: Member) -> None:
    key = f"models/{member.name}/model.onnx"
    path = objects / cloud.UPLOADS / key
    path.parent.mkdir(parents=True)
    write(member, path)
    version = registration.register(Upload(cloud.UPLOADS, key))
    path.unlink()
    if version is None or version.state is not State.READY:
        raise SystemExit(f"{member.name} was not registered: {version and version.reason}")


def _copy(table: MemoryTable, aws: cloud.Cloud) -> None:
    client, serialize = aws.dynamodb(), TypeSerializer().serialize
    name = aws.variables["REGISTRY_TABLE"]
    items = iter(table.items.values())
    while batch := list(islice(items, BATCH)):
        plain: list[dict[str, Any]] = json.loads(json.dumps(batch), parse_float=Decimal)
        puts = [{"PutRequest": {"Item": serialize(item)["M"]}} for item in plain]
        client.batch_write_item(RequestItems={name: puts})


class InProcessSandbox:
    """Registration sandbox that runs in the current process, for trusted models."""

    suspect = False

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        return unpack(form, directory)

    def build(self, brief: Brief, directory: Path) -> Built:
        return build(brief, directory)
