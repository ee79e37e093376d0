"""Many models of random sizes, registered fast, each with an answer of its own.

Each is read, compiled, proven and measured by the sandbox's own code, but in this process, because
they are ours. The registry writes into a dictionary, whose items then go to DynamoDB in batches: moto copies its whole
table for each transaction. So what a function reads is what a registration leaves.
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
from tests.fakes import MemoryTable

SMALLEST_BYTES, LARGEST_BYTES = (
    16 * 1024,
    24 * 1024 * 1024,
)  # log-uniform: half are below 0.6 MB, the mean is 3.3 MB
AT_ONCE = 25  # items that BatchWriteItem takes


def write(member: Member, path: Path) -> None:
    """Write its model. All of its weights are read for each answer."""
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
    """The first of `count` members are the first of any larger count."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    low, high = math.log(SMALLEST_BYTES), math.log(LARGEST_BYTES)
    return [
        Member(number, int(math.exp(chance.uniform(low, high)))) for number in range(1, count + 1)
    ]


@contextmanager
def start(fleet: Sequence[Member], storage: str, memory_mb: int) -> Iterator[cloud.Cloud]:
    """A cloud in which `fleet` is registered for functions of `memory_mb`."""
    with cloud.start([], [storage]) as where:
        table = MemoryTable()
        registration = Registration(
            registry=Registry(table, utc_now),
            uploads=cloud.FileUploads(where.folder / "objects"),
            blobs=cloud.FileBlobs(where.folder / "objects" / where.variables["SERVING_BUCKET"]),
            sandbox=InProcessSandbox(),
            read_manifest=read_manifest,
            memory_mb=memory_mb,
            threads=threads_for(memory_mb),
        )
        for member in fleet:
            if member.number % 50 == 1:
                progress(f"registering {member.number} of {len(fleet)}")
            _register(registration, where.folder / "objects", member)
        _copy(table, where)
        progress("")
        try:
            yield where
        finally:
            shutil.rmtree(
                where.folder / "objects"
            )  # gigabytes: more than there is time for at the end of a cloud


def _register(registration: Registration, objects: Path, member: Member) -> None:
    key = f"models/{member.name}/model.onnx"
    path = objects / cloud.UPLOADS / key
    path.parent.mkdir(parents=True)
    write(member, path)
    version = registration.register(Upload(cloud.UPLOADS, key))
    path.unlink()
    if version is None or version.state is not State.READY:
        raise SystemExit(f"{member.name} was not registered: {version and version.reason}")


def _copy(table: MemoryTable, where: cloud.Cloud) -> None:
    client, serialize = where.dynamodb(), TypeSerializer().serialize
    name = where.variables["REGISTRY_TABLE"]
    items = iter(table.items.values())
    while some := list(islice(items, AT_ONCE)):
        plain: list[dict[str, Any]] = json.loads(json.dumps(some), parse_float=Decimal)
        client.batch_write_item(
            RequestItems={name: [{"PutRequest": {"Item": serialize(item)["M"]}} for item in plain]}
        )


class InProcessSandbox:
    """Run the sandbox steps in this process."""

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        from functions.sandbox.unpack import unpack

        return unpack(form, directory)

    def build(self, brief: Brief, directory: Path) -> Built:
        from functions.sandbox.build import build

        return build(brief, directory)
