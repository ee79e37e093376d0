"""Python client: time and CPU of a call, beside tritonclient's.

    python -m benchmarks.python_client [--rounds N] [--no-save]

Question: does the client's comfort (signature, casts, retries, deadline, result object) cost more
than a bare call of tritonclient? Both send the same values in binary to the same model (y = 2x) of
the local stack, and read the answer as an array; tritonclient is given names, datatype and shape.

sync    blocks of calls one after another, from one thread
async   blocks with 4 calls at once (tritonclient.http.aio)
httpx2  the same request through httpx2.Client, made and read by hand: the reason for a transport
        of our own

A round gives every contender a block, in a rotating order. Wall is the time that passes per call,
with the stack's own; CPU is that of the client's process alone (process_time). Ratios compare the
same round. An answer that is not 2x ends the benchmark with an error.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import httpx2
import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import measure, options
from benchmarks.harness.measure import Spread
from local.client import RunningStack, start_stack
from mayfly import AsyncMayfly, Mayfly, errors

MODEL = "doubler"
SIZES = {1: 20, 10_000: 10}  # rows of three values → calls of a block
AT_ONCE = 4  # tritonclient does not retry, and the stack answers 429 to more at once than it runs
BASE = {"mayfly": "triton", "httpx2": "triton", "mayfly-async": "triton-async"}
Array = np.ndarray[Any, Any]
Cost = tuple[float, float]  # wall and CPU of a call, in µs


def model() -> bytes:
    """Return the model y = 2x of rows of three values."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")
    )
    two = numpy_helper.from_array(np.asarray(2, np.float32), "two")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])], MODEL, [x], [y], [two]
    )
    opsets = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def upload(stack: RunningStack, key: str) -> None:
    """Upload the model and wait until it can be called."""
    bucket = stack.outputs["ArtifactsBucketName"]
    stack.client("s3").put_object(Bucket=bucket, Key=f"models/{MODEL}/m.onnx", Body=model())
    with Mayfly(stack.api_url, key) as client:
        end = time.monotonic() + 120
        while not _ready(client) and time.monotonic() < end:
            time.sleep(0.1)


def _ready(client: Mayfly) -> bool:
    try:
        return client.model(MODEL).ready()
    except errors.ModelNotFound:
        return False


def check(answer: Array, values: Array) -> None:
    """Compare an answer with twice the values.

    Raises:
        SystemExit: they differ.
    """
    if not np.array_equal(answer, 2 * values):
        raise SystemExit("an answer is not 2x")


def sync_block(call: Callable[[], Array], values: Array) -> Cost:
    """Return wall and CPU per call of a block, in µs."""
    calls = SIZES[len(values)]
    check(call(), values)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    return _cost(wall, cpu, calls)


def async_block(
    loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[Array]], values: Array
) -> Cost:
    """Return wall and CPU per call, with 4 at once, in µs."""

    async def at_once() -> list[Array]:
        return await asyncio.gather(*(call() for _ in range(AT_ONCE)))

    check(loop.run_until_complete(at_once())[0], values)
    wall, cpu = time.perf_counter(), time.process_time()
    loop.run_until_complete(at_once())
    return _cost(wall, cpu, AT_ONCE)


def _cost(wall: float, cpu: float, calls: int) -> Cost:
    passed, used = time.perf_counter() - wall, time.process_time() - cpu
    return passed / calls * 1e6, used / calls * 1e6


def triton_tensor(module: Any, values: Array) -> Any:
    """Return tritonclient's input, given what Mayfly's client finds out."""
    tensor = module.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return tensor


class Clients:
    """Clients of one stack that call a model with the same values."""

    def __init__(self, url: str, key: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url, self.loop, self.key = url, loop, key
        host = url.partition("://")[2]
        self.mayfly = Mayfly(url, key).model(MODEL)
        self.triton = triton.InferenceServerClient(host)
        self.httpx = httpx2.Client(headers={"x-api-key": key}, trust_env=False)
        self.mayfly_async = AsyncMayfly(url, key).model(MODEL)
        self.triton_async: Any = None  # needs a running loop

    def contenders(self, values: Array) -> dict[str, Callable[[], Cost]]:
        """Return a block of calls of each client."""
        loop = self.loop
        return {
            "triton": lambda: sync_block(partial(self.by_triton, values), values),
            "mayfly": lambda: sync_block(partial(self.by_mayfly, values), values),
            "httpx2": lambda: sync_block(partial(self.by_httpx, values), values),
            "triton-async": lambda: async_block(
                loop, partial(self.by_triton_async, values), values
            ),
            "mayfly-async": lambda: async_block(
                loop, partial(self.by_mayfly_async, values), values
            ),
        }

    def headers(self) -> dict[str, str]:
        """Return new headers for tritonclient, which adds its own to them."""
        return {"x-api-key": self.key, "accept": "*/*"}

    def by_triton(self, values: Array) -> Array:
        """Call with tritonclient."""
        tensors = [triton_tensor(triton, values)]
        answer: Array = self.triton.infer(MODEL, tensors, headers=self.headers()).as_numpy("y")
        return answer

    def by_mayfly(self, values: Array) -> Array:
        """Call with Mayfly's client."""
        answer: Array = self.mayfly.predict(values)["y"]
        return answer

    def by_httpx(self, values: Array) -> Array:
        """Call with httpx2, with a request made by hand."""
        tensor = {
            "name": "x",
            "shape": values.shape,
            "datatype": "FP32",
            "parameters": {"binary_data_size": values.nbytes},
        }
        document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(document).encode()
        reply = self.httpx.post(
            f"{self.url}/v2/models/{MODEL}/infer",
            content=head + values.tobytes(),
            headers={"inference-header-content-length": str(len(head))},
        )
        length = int(reply.headers["inference-header-content-length"])
        json.loads(reply.content[:length])
        return np.frombuffer(reply.content, np.float32, offset=length).reshape(values.shape)

    async def by_triton_async(self, values: Array) -> Array:
        """Call with tritonclient.http.aio."""
        if self.triton_async is None:
            host = self.url.partition("://")[2]
            self.triton_async = triton_aio.InferenceServerClient(host)
        tensors = [triton_tensor(triton_aio, values)]
        result = await self.triton_async.infer(MODEL, tensors, headers=self.headers())
        answer: Array = result.as_numpy("y")
        return answer

    async def by_mayfly_async(self, values: Array) -> Array:
        """Call with Mayfly's asynchronous client."""
        answer: Array = (await self.mayfly_async.predict(values))["y"]
        return answer

    async def close(self) -> None:
        """Close what holds sockets of the loop."""
        await self.mayfly_async._caller.transport.close()
        await self.triton_async.close()


def results(rows: int, costs: Mapping[str, Sequence[Cost]]) -> list[dict[str, Any]]:
    """Return an entry per contender: µs and ratios to tritonclient."""
    entries = []
    for name, values in costs.items():
        wall, cpu = zip(*values, strict=True)
        entry = measure.row(Spread.from_values(wall, 1), contender=name, rows=rows)
        entry["cpu"] = Spread.from_values(cpu, 1).to_record()
        if base := BASE.get(name):
            base_wall, base_cpu = zip(*costs[base], strict=True)
            entry["over_triton"] = measure.ratios(wall, base_wall).to_record()
            entry["cpu_over_triton"] = measure.ratios(cpu, base_cpu).to_record()
        entries.append(entry)
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format the results as a text table."""
    rows: list[Sequence[str]] = [
        ("client", "rows", "wall µs", "CPU µs", "/ triton", "CPU / triton")
    ]
    for entry in entries:
        over = entry.get("over_triton", {}).get("median")
        cpu_over = entry.get("cpu_over_triton", {}).get("median")
        rows.append((
            entry["contender"], str(entry["rows"]), f"{entry['median']:.0f}",
            f"{entry['cpu']['median']:.0f}", f"{over:.2f}" if over else "",
            f"{cpu_over:.2f}" if cpu_over else "",
        ))  # fmt: skip
    return measure.table(rows)


def main() -> None:
    chosen = options.make_parser("python_client", __doc__, rounds=30).parse_args()
    entries: list[dict[str, Any]] = []
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder, start_stack(state_dir=folder) as stack:
        key = stack.create_key("admin")
        upload(stack, key)
        clients = Clients(stack.api_url, key, loop)
        for rows in SIZES:
            values = np.random.default_rng(0).random((rows, 3), np.float32)
            costs = measure.interleave(
                clients.contenders(values), chosen.rounds, label=f"{rows} rows"
            )
            entries += results(rows, costs)
        loop.run_until_complete(clients.close())
    print(table(entries))
    measure.finish(measure.result_line("python_client", "us", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
