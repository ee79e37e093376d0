"""Models for hostile requests: small graphs of many operators, and mutants of them."""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from tests.models import make_model, scale_model
from tests.stress.mutants import mutate_message, seeds
from tests.stress.operator_graphs import catalog

VALUES = Path("tests/integration/functions/serving/hostile_values.txt")
WIDE = 5_000_000  # columns: 60 MB of weights

# Graphs whose inputs decide how much they take, and types that the others do not have.
GRAPHS = """
text (string[n] t) => (string[n] y) { y = Identity(t) }
expand_text (string[n] t, int64[k] i) => (string[] y) { y = Expand(t, i) }
labels (float[n,5] x) => (float[n,5] y) { y = Softmax(x) }
flags (bool[n] c, bool d) => (bool[] y) { y = And(c, d) }
narrow (int8[n] a, uint8[n] b, int16[n] c) => (int8[n] p, uint8[n] q, int16[n] r)
    { p = Identity(a) q = Identity(b) r = Identity(c) }
wide_integers (uint16[n] a, uint32[n] b, uint64[n] c, int32[n] d)
    => (uint16[n] p, uint32[n] q, uint64[n] r, int32[n] s)
    { p = Identity(a) q = Identity(b) r = Identity(c) s = Identity(d) }
halves (float16[n] x, bfloat16[n] z, double[n] w) => (float16[n] y, bfloat16[n] v, double[] u)
    { y = Neg(x) v = Identity(z) u = Neg(w) }
image (float[n,1,h,w] x) => (float[] y) <float[1,1,3,3] k = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
    { y = Conv <strides = [2, 2]> (x, k) }
pooled (float[n,1,h,w] x) => (float[] y) { y = AveragePool <kernel_shape = [3, 3]> (x) }
scalar (float x, int64 i) => (float y, int64 j) { y = Sqrt(x) j = Abs(i) }
none_taken () => (float[] y) <float[3] c = {1, 2, 3}> { y = Neg(c) }
deep (float[1,n,1,m,1,1,1,1] x) => (float[] y) { y = Flatten <axis = 3> (x) }
"""


def parse(name: str, text: str) -> bytes:
    """Parse a graph in ONNX text syntax into a model."""
    graph = onnx.parser.parse_graph(f"g {text}")
    graph.name = name
    opset = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def wide_model() -> bytes:
    """Return a model that sums x @ W over a large W."""
    value = helper.make_tensor_value_info
    weights = np.ones((3, WIDE), np.float32)
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1]), "a")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["all"]),
        helper.make_node("ReduceSum", ["all", "a"], ["y"]),
    ]
    kind = TensorProto.FLOAT
    inputs, outputs = [value("x", kind, ["batch", 3])], [value("y", kind, ["batch", 1])]
    return bytes(make_model(nodes, inputs, outputs, constants).SerializeToString())


def graphs() -> dict[str, bytes]:
    """Return the test graphs, as ONNX text, by name."""
    texts = dict(re.findall(r"(\w+) ((?:.+\n?)(?: .+\n)*)", GRAPHS))
    for line in VALUES.read_text().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.split(" ", 2)
            texts[name] = rest.rpartition(" # ")[0]
    return {name: parse(name, text) for name, text in texts.items()}


def required() -> dict[str, bytes]:
    """Return the models that must answer correctly throughout the run."""
    return {"scale": scale_model(), "wide": wide_model(), "text": graphs()["text"]}


def candidates(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield models in random order without end, every fourth mutated."""
    valid = [
        *graphs().items(),
        *((f"seed{at}", content) for at, content in enumerate(seeds())),
        *((f"operator{at}", operator.content) for at, operator in enumerate(catalog())),
    ]
    rng.shuffle(valid)
    contents = [content for _, content in valid]
    for number in itertools.count():
        if number < len(valid):
            yield valid[number]
        if number % 3 == 0 or number >= len(valid):
            yield f"mutant{number}", mutate_message(rng, contents)
