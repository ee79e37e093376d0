"""Selection of the likeliest tokens by ONNX Runtime, instead of numpy.

Each step is a model of a few nodes, made here (docs/decisions/0051-the-decode-loop.md). It runs on
the logits where the decoder left them.
"""

import struct
from collections.abc import Callable, Mapping
from ctypes import memmove

from functions.adapters.onnx.buffers import Binding, BoundRuns, Buffer
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.language.sampling import Candidates
from functions.core.package.onnx_writer import (
    BFLOAT16,
    BOOL,
    FLOAT,
    FLOAT16,
    INT64,
    UINT8,
    Constant,
    Operation,
    Value,
    encode_model,
)

_TIMEOUT_S = 60.0  # for a step that takes milliseconds
_INFINITY = b"\x00\x00\x80\xff"  # FP32, negative
_Place = tuple[int, str, int]  # address, datatype and number of elements of a tensor


def _best_model() -> bytes:
    return encode_model(
        [Operation("ArgMax", ("logits",), ("token",), {"axis": 0, "keepdims": 1})],
        [Value("logits", FLOAT, 1)],
        [Value("token", INT64, 1)],
    )


def _top_model() -> bytes:
    return encode_model(
        [
            Operation("Mul", ("logits", "scale"), ("scaled",)),
            Operation("TopK", ("scaled", "count"), ("values", "tokens")),
            Operation("ReduceLogSumExp", ("scaled",), ("normaliser",), {"keepdims": 1}),
        ],
        [Value("logits", FLOAT, 1), Value("scale", FLOAT, 1), Value("count", INT64, 1)],
        [Value("values", FLOAT, 1), Value("tokens", INT64, 1), Value("normaliser", FLOAT, 1)],
    )


def _mask_model() -> bytes:
    """Return a model that sets logits outside a mask to -infinity."""
    return encode_model(
        [
            Operation("Unsqueeze", ("mask", "last"), ("bytes",)),
            Operation("BitwiseAnd", ("bytes", "bits"), ("set",)),
            Operation("Cast", ("set",), ("booleans",), {"to": BOOL}),
            Operation("Reshape", ("booleans", "last"), ("allowed",)),
            Operation("Where", ("allowed", "logits", "infinity"), ("masked",)),
        ],
        [Value("logits", FLOAT, 1), Value("mask", UINT8, 1)],
        [Value("masked", FLOAT, 1)],
        [
            Constant("last", INT64, (1,), struct.pack("<q", -1)),
            Constant("bits", UINT8, (1, 8), bytes(1 << bit for bit in range(8))),
            Constant("infinity", FLOAT, (1,), _INFINITY),
        ],
    )


def _cast_model(element: int) -> bytes:
    return encode_model(
        [Operation("Cast", ("halves",), ("logits",), {"to": FLOAT})],
        [Value("halves", element, 1)],
        [Value("logits", FLOAT, 1)],
    )


class LogitsKernels:
    """Models that select tokens; each is loaded when it is first used.

    `width` is the number of logits a token has.
    """

    def __init__(self, runtime: OnnxRuntime, width: int) -> None:
        self.width = width
        self.padded = -(-width // 8) * 8  # whole bytes of a mask
        self._runtime = runtime
        self._loaded: dict[str, BoundRuns] = {}

    def load(self, name: str) -> BoundRuns:
        """Return the model "best", "top" or "mask"."""
        if name not in self._loaded:
            model, inputs, outputs = _MODELS[name]
            session = self._runtime.load_bytes(model())
            self._loaded[name] = BoundRuns(session, inputs, outputs)
        return self._loaded[name]


_MODELS: Mapping[str, tuple[Callable[[], bytes], tuple[str, ...], tuple[str, ...]]] = {
    "best": (_best_model, ("logits",), ("token",)),
    "top": (_top_model, ("logits", "scale", "count"), ("values", "tokens", "normaliser")),
    "FP16": (lambda: _cast_model(FLOAT16), ("halves",), ("logits",)),
    "BF16": (lambda: _cast_model(BFLOAT16), ("halves",), ("logits",)),
    "mask": (_mask_model, ("logits", "mask"), ("masked",)),
}


class NativeLogits:
    """Logits of one reply's next token; implements `core.language.sampling.Logits`.

    The decoder writes them to `address`. Behind them lie logits of -infinity, up to a whole byte
    of a mask.
    """

    def __init__(self, kernels: LogitsKernels) -> None:
        self._kernels = kernels
        width, padded = kernels.width, kernels.padded
        self._buffer = Buffer(4 * padded)
        self._buffer.view("B")[4 * width :] = _INFINITY * (padded - width)
        self.address = self._buffer.address
        self.values = self._buffer.view("f")[:width]
        self._masked = Buffer(0)
        self._source = self.address
        self._bindings: dict[tuple[str, int, int], tuple[Binding, Buffer]] = {}

    def renew(self) -> None:
        """Forget the mask: the decoder has written other logits."""
        self._source = self.address

    def copy(self, address: int, datatype: str) -> None:
        """Take over logits from other memory, as FP32."""
        width = self._kernels.width
        if datatype == "FP32":
            memmove(self.address, address, 4 * width)
            return
        runs = self._kernels.load(datatype)
        source, target = (address, datatype, width), (self.address, "FP32", width)
        Binding(runs, [source], [target]).run(_TIMEOUT_S)

    def best(self) -> int:
        """Return the token with the highest logit."""
        binding, results = self._bind("best", 8, lambda at: ([], [(at, "INT64", 1)]))
        binding.run(_TIMEOUT_S)
        return min(int(results.view("q")[0]), self._kernels.width - 1)

    def top(self, count: int, scale: float = 1.0) -> Candidates:
        """Return the `count` likeliest tokens, of logits times `scale`."""
        tokens, values = 8, 8 + 8 * count
        scales = values + 4 * count
        size_bytes = scales + 8
        binding, memory = self._bind(
            "top",
            size_bytes,
            lambda at: (
                [(at + scales, "FP32", 1), (at, "INT64", 1)],
                [
                    (at + values, "FP32", count),
                    (at + tokens, "INT64", count),
                    (at + scales + 4, "FP32", 1),
                ],
            ),
        )
        view = memory.view("B")
        view[:8] = struct.pack("<q", count)
        view[scales : scales + 4] = struct.pack("<f", scale)
        binding.run(_TIMEOUT_S)
        return Candidates(
            view[tokens:values].cast("q").tolist(),
            view[values:scales].cast("f").tolist(),
            view[scales + 4 : size_bytes].cast("f")[0],
        )

    def restrict(self, mask: bytes) -> None:
        """Let `best` and `top` choose tokens of the mask alone."""
        padded = self._kernels.padded
        self.renew()
        if self._masked.size_bytes < 4 * padded:
            self._masked = Buffer(4 * padded)
        address = self._masked.address
        binding, memory = self._bind(
            "mask",
            padded // 8,
            lambda at: ([(at, "UINT8", padded // 8)], [(address, "FP32", padded)]),
        )
        memory.view("B")[:] = mask[: padded // 8].ljust(padded // 8, b"\0")
        binding.run(_TIMEOUT_S)
        self._source = address

    def _bind(
        self, name: str, size_bytes: int, layout: Callable[[int], tuple[list[_Place], list[_Place]]]
    ) -> tuple[Binding, Buffer]:
        """Return a model's values and their memory, made once.

        `layout` gives the places of inputs and outputs in memory at an address.
        """
        key = name, self._source, size_bytes
        if key not in self._bindings:
            memory = Buffer(size_bytes)
            inputs, outputs = layout(memory.address)
            logits = (self._source, "FP32", self._kernels.padded)
            binding = Binding(self._kernels.load(name), [logits, *inputs], outputs)
            self._bindings[key] = binding, memory
        return self._bindings[key]
