"""Tiny language models of random weights, with tokenizers, as packages; and a reference loop."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

OPSET, IR = 20, 10
CONTEXT = 1024  # tokens of a decoder's prompt and reply
ENCODER_CONTEXT = 128
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_SIZE, INNER = 2, 64, 4, 2, 16, 128
ENCODER_WIDTH, ENCODER_HEADS = 32, 4
END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE)  # tokens 0, 1, 2
EOS = 2
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
    "The capital of France is Paris. What is the capital of Italy? It is Rome.",
    "A cat sat on the mat and looked at the dog that barked at the cat.",
    '{"name": "Ada", "age": 36, "languages": ["French", "English"], "married": true}',
    "for i in range(10):\n    print(i)\n",
)
# Arguments of `decoder_model`, by name: what exporters write.
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "gqa": {},  # onnxruntime-genai
    "gqa-positions": {"position_ids": True},
    "gqa-last": {"last_logits": True},  # genai with prune_lm_head
    "plain": {"attention": "plain"},
    "plain-positions": {"attention": "plain", "position_ids": True},  # optimum
    "plain-stacked": {"attention": "plain", "layout": "stacked"},  # our recipe gpt
}


class _Graph:
    """ONNX graph under construction, with seeded random weights."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(seed)
        self._count = 0

    def add(
        self, op: str, *inputs: str, out: str | None = None, domain: str = "", **more: Any
    ) -> str:
        outputs = [out or self._name(op)]
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **more))
        return outputs[0]

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = self._name("constant")
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def random(self, *shape: int, scale: float | None = None) -> str:
        values = self._random.standard_normal(shape) * (scale or shape[0] ** -0.5)
        return self.const(values, np.float32)

    def linear(self, x: str, inputs: int, outputs: int, scale: float | None = None) -> str:
        return self.add("MatMul", x, self.random(inputs, outputs, scale=scale))

    def _name(self, op: str) -> str:
        self._count += 1
        return f"{op}_{self._count}"

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data


# --- decoders


def decoder_model(
    *,
    attention: str = "gqa",
    position_ids: bool = False,
    last_logits: bool = False,
    layout: str = "named",
    window: int = 0,
    window_cache: bool = False,
    free_heads: bool = False,
    vocabulary: int | None = None,
    seed: int = 0,
) -> bytes:
    """Return a llama-like decoder of two layers.

    `attention` is "gqa" (GroupQueryAttention, as onnxruntime-genai writes it) or "plain" (standard
    operators, as optimum does). `last_logits` gives the logits of the last token alone. The layout
    "stacked" has one tensor `past` (2 x layers, batch, heads, past, size), as our recipe gpt. The
    first layer of "gqa" attends to the last `window` tokens; with `window_cache` its cache is to
    have that size, too, as onnxruntime-genai 0.18 writes Gemma 2. `free_heads` names the head size
    instead of stating it, as its builder does.
    """
    vocabulary = vocabulary or len(json.loads(decoder_tokenizer())["model"]["vocab"])
    graph = _Graph(seed)
    inputs, state = _decoder_inputs(graph, position_ids, layout)
    state["window"] = {"local_window_size": window} if window else {}
    if window_cache:
        state["window"]["sliding_window_cache"] = 1
    attend = (_gqa if attention == "gqa" else _plain_attention)(graph, state)
    embeddings = graph.random(vocabulary, WIDTH, scale=1.0)
    x = graph.add("Gather", embeddings, state["tokens"])
    for layer in range(LAYERS):
        y = _rms_norm(graph, x)
        q, k, v = (graph.linear(y, WIDTH, n * HEAD_SIZE) for n in (HEADS, KV_HEADS, KV_HEADS))
        y = attend(layer, q, k, v)
        x = graph.add("Add", x, graph.linear(y, HEADS * HEAD_SIZE, WIDTH))
        y = _rms_norm(graph, x)
        gate, up = graph.linear(y, WIDTH, INNER), graph.linear(y, WIDTH, INNER)
        y = graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), up)
        x = graph.add("Add", x, graph.linear(y, INNER, WIDTH))
    if last_logits:
        ends = graph.const([2**62])
        x = graph.add("Slice", x, graph.const([-1]), ends, graph.const([1]))
    x = _rms_norm(graph, x)
    logits = graph.linear(x, WIDTH, vocabulary, scale=0.3)
    graph.add("Identity", logits, out="logits")
    length = 1 if last_logits else "length"
    outputs = [_info("logits", TensorProto.FLOAT, ["batch", length, vocabulary])]
    if layout == "stacked":
        graph.add("Concat", *state["presents"], out="present", axis=0)
        outputs.append(_info("present", TensorProto.FLOAT, _stacked("past + length")))
    else:
        outputs += [_info(name, TensorProto.FLOAT, _named("total")) for name in state["presents"]]
    if free_heads:
        for each in [*inputs, *outputs]:
            if each.name.startswith(("past", "present")):
                each.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    return graph.model(inputs, outputs)


def _info(name: str, element: int, shape: Sequence[Any]) -> Any:
    return helper.make_tensor_value_info(name, element, shape)


def _named(length: str) -> list[Any]:
    return ["batch", KV_HEADS, length, HEAD_SIZE]


def _stacked(length: str) -> list[Any]:
    return [2 * LAYERS, "batch", KV_HEADS, length, HEAD_SIZE]


def _decoder_inputs(
    graph: _Graph, position_ids: bool, layout: str
) -> tuple[list[Any], dict[str, Any]]:
    state: dict[str, Any] = {"presents": [], "pasts": []}
    kinds = [(layer, kind) for layer in range(LAYERS) for kind in ("key", "value")]
    if layout == "stacked":
        state["tokens"] = "tokens"
        inputs = [
            _info("tokens", TensorProto.INT64, ["batch", "length"]),
            _info("past", TensorProto.FLOAT, _stacked("past")),
        ]
        for at in range(len(kinds)):
            past = graph.add("Gather", "past", graph.const(at), axis=0)
            state["pasts"].append(past)
            state["presents"].append(f"present_{at}")
        return inputs, state
    state["tokens"], state["mask"] = "input_ids", "attention_mask"
    inputs = [
        _info("input_ids", TensorProto.INT64, ["batch", "length"]),
        _info("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    if position_ids:
        inputs.append(_info("position_ids", TensorProto.INT64, ["batch", "length"]))
        state["positions"] = "position_ids"
    for layer, kind in kinds:
        name = f"past_key_values.{layer}.{kind}"
        inputs.append(_info(name, TensorProto.FLOAT, _named("past")))
        state["pasts"].append(name)
        state["presents"].append(f"present.{layer}.{kind}")
    return inputs, state


def _rms_norm(graph: _Graph, x: str) -> str:
    square = graph.add("Mul", x, x)
    mean = graph.add("ReduceMean", square, graph.const([-1]), keepdims=1)
    scale = graph.add("Sqrt", graph.add("Add", mean, graph.const(1e-5, np.float32)))
    weight = graph.const(np.ones(WIDTH), np.float32)
    return graph.add("Mul", graph.add("Div", x, scale), weight)


def _rotations(graph: _Graph) -> tuple[str, str]:
    """Add tables of cosines and sines, (context, size / 2)."""
    frequencies = 10000.0 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    angles = np.outer(np.arange(CONTEXT), frequencies)
    return graph.const(np.cos(angles), np.float32), graph.const(np.sin(angles), np.float32)


def _gqa(graph: _Graph, state: dict[str, Any]) -> Any:
    """Attention by GroupQueryAttention; without `position_ids` it also rotates."""
    cosines, sines = _rotations(graph)
    summed = graph.add("ReduceSum", state["mask"], graph.const([1]), keepdims=0)
    last = graph.add("Sub", summed, graph.const(1))
    last = graph.add("Cast", last, to=TensorProto.INT32)
    total = graph.add("Gather", graph.add("Shape", state["mask"]), graph.const(1))
    total = graph.add("Cast", total, to=TensorProto.INT32)
    domain = "com.microsoft"

    def attend(layer: int, q: str, k: str, v: str) -> str:
        tables = (cosines, sines)
        rotate = "positions" not in state
        if not rotate:
            arguments = (state["positions"], *tables)
            q = graph.add("RotaryEmbedding", q, *arguments, domain=domain, num_heads=HEADS)
            k = graph.add("RotaryEmbedding", k, *arguments, domain=domain, num_heads=KV_HEADS)
        pasts, presents = (state[name][2 * layer : 2 * layer + 2] for name in ("pasts", "presents"))
        out = f"attended_{layer}"
        node = helper.make_node(
            "GroupQueryAttention",
            [q, k, v, *pasts, last, total, *(tables if rotate else ())],
            [out, *presents],
            domain=domain,
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            scale=HEAD_SIZE**-0.5,
            do_rotary=int(rotate),
            **(state["window"] if layer == 0 else {}),
        )
        graph.nodes.append(node)
        return out

    return attend


def _plain_attention(graph: _Graph, state: dict[str, Any]) -> Any:
    """Attention of MatMul and Softmax, whose present is past and new keys joined."""
    cosines, sines = _rotations(graph)
    length = graph.add("Gather", graph.add("Shape", state["tokens"]), graph.const(1))
    before = graph.add("Gather", graph.add("Shape", state["pasts"][0]), graph.const(2))
    total = graph.add("Add", before, length)
    zero, one = graph.const(0), graph.const(1)
    queries = graph.add("Range", before, total, one)
    positions = state.get("positions") or graph.add("Unsqueeze", queries, graph.const([0]))
    # (batch, 1, length, size / 2), for every head
    cos, sin = (
        graph.add("Unsqueeze", graph.add("Gather", table, positions), graph.const([1]))
        for table in (cosines, sines)
    )
    keys = graph.add("Range", zero, total, one)
    row, column = graph.const([0]), graph.const([1])
    causal = graph.add(
        "LessOrEqual", graph.add("Unsqueeze", keys, row), graph.add("Unsqueeze", queries, column)
    )
    if "mask" in state:
        kept = graph.add("Unsqueeze", state["mask"], graph.const([1, 2]))
        causal = graph.add("And", causal, graph.add("Cast", kept, to=TensorProto.BOOL))
    low, none = graph.const(-1e9, np.float32), graph.const(0, np.float32)
    bias = graph.add("Where", causal, none, low)

    def split(x: str, heads: int) -> str:
        x = graph.add("Reshape", x, graph.const([0, 0, heads, HEAD_SIZE]))
        return graph.add("Transpose", x, perm=[0, 2, 1, 3])

    def rotate(x: str) -> str:
        node = helper.make_node("Split", [x], [f"{x}_a", f"{x}_b"], axis=-1, num_outputs=2)
        graph.nodes.append(node)
        a, b = node.output
        first = graph.add("Sub", graph.add("Mul", a, cos), graph.add("Mul", b, sin))
        second = graph.add("Add", graph.add("Mul", b, cos), graph.add("Mul", a, sin))
        return graph.add("Concat", first, second, axis=-1)

    def repeat(x: str) -> str:
        """(batch, kv heads, total, size) → (batch, heads, total, size)."""
        x = graph.add("Unsqueeze", x, graph.const([2]))
        shape = [1, 1, HEADS // KV_HEADS, 1, 1]
        x = graph.add("Expand", x, graph.const(shape))
        return graph.add("Reshape", x, graph.const([0, HEADS, -1, HEAD_SIZE]))

    def attend(layer: int, q: str, k: str, v: str) -> str:
        pasts, presents = (state[name][2 * layer : 2 * layer + 2] for name in ("pasts", "presents"))
        q, k, v = rotate(split(q, HEADS)), rotate(split(k, KV_HEADS)), split(v, KV_HEADS)
        joined = []
        for past, new, present in zip(pasts, (k, v), presents, strict=True):
            both = graph.add("Concat", past, new, axis=2)
            if present.startswith("present_"):  # stacked later
                graph.add("Unsqueeze", both, graph.const([0]), out=present)
            else:
                graph.add("Identity", both, out=present)
            joined.append(repeat(both))
        scores = graph.add("MatMul", q, graph.add("Transpose", joined[0], perm=[0, 1, 3, 2]))
        scores = graph.add("Mul", scores, graph.const(HEAD_SIZE**-0.5, np.float32))
        weights = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
        y = graph.add("Transpose", graph.add("MatMul", weights, joined[1]), perm=[0, 2, 1, 3])
        return graph.add("Reshape", y, graph.const([0, 0, HEADS * HEAD_SIZE]))

    return attend


# --- encoders


def encoder_model(*, scores: bool = False, seed: int = 1) -> bytes:
    """Return a BERT-like encoder of two layers, or a reranker with output `logits` (batch, 1)."""
    graph, width = _Graph(seed), ENCODER_WIDTH
    vocabulary = len(json.loads(encoder_tokenizer())["model"]["vocab"])
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [_info(name, TensorProto.INT64, ["batch", "length"]) for name in names]
    length = graph.add("Gather", graph.add("Shape", "input_ids"), graph.const(1))
    positions = graph.add("Range", graph.const(0), length, graph.const(1))
    tables = [graph.random(rows, width, scale=1.0) for rows in (vocabulary, 2, ENCODER_CONTEXT)]
    parts = ("input_ids", "token_type_ids", positions)
    words, types, places = (
        graph.add("Gather", table, ids) for table, ids in zip(tables, parts, strict=True)
    )
    x = _layer_norm(graph, graph.add("Add", graph.add("Add", words, types), places))
    kept = graph.add("Cast", "attention_mask", to=TensorProto.BOOL)
    kept = graph.add("Unsqueeze", kept, graph.const([1, 2]))
    low, none = graph.const(-1e9, np.float32), graph.const(0, np.float32)
    bias = graph.add("Where", kept, none, low)
    size = width // ENCODER_HEADS
    for _ in range(LAYERS):
        q, k, v = (
            graph.add(
                "Transpose",
                graph.add(
                    "Reshape",
                    graph.linear(x, width, width),
                    graph.const([0, 0, ENCODER_HEADS, size]),
                ),
                perm=perm,
            )
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        attention = graph.add("Mul", graph.add("MatMul", q, k), graph.const(size**-0.5, np.float32))
        weights = graph.add("Softmax", graph.add("Add", attention, bias), axis=-1)
        y = graph.add("Transpose", graph.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        y = graph.linear(graph.add("Reshape", y, graph.const([0, 0, width])), width, width)
        x = _layer_norm(graph, graph.add("Add", x, y))
        y = graph.linear(graph.add("Gelu", graph.linear(x, width, 64)), 64, width)
        x = _layer_norm(graph, graph.add("Add", x, y))
    if scores:
        first = graph.add("Gather", x, graph.const(0), axis=1)
        graph.add("Identity", graph.linear(first, width, 1), out="logits")
        return graph.model(inputs, [_info("logits", TensorProto.FLOAT, ["batch", 1])])
    graph.add("Identity", x, out="last_hidden_state")
    shape = ["batch", "length", width]
    return graph.model(inputs, [_info("last_hidden_state", TensorProto.FLOAT, shape)])


def _layer_norm(graph: _Graph, x: str) -> str:
    ones, zeros = (graph.const(make(ENCODER_WIDTH), np.float32) for make in (np.ones, np.zeros))
    return graph.add("LayerNormalization", x, ones, zeros, axis=-1)


# --- tokenizers and packages


def decoder_tokenizer() -> str:
    """Return a byte-level BPE tokenizer.json of 300 tokens, with ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    text: str = tokenizer.to_str()
    return text


def encoder_tokenizer() -> str:
    """Return a WordPiece tokenizer.json with BERT's special tokens."""
    words = sorted({word for text in TEXTS for word in text.lower().split() if word.isalpha()})
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + each for each in letters)]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys([*pieces, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    text: str = tokenizer.to_str()
    return text


def decoder_files(**variant: Any) -> dict[str, bytes]:
    """Return the files of a decoder's package; arguments as of `decoder_model`."""
    config = {
        "model_type": "llama",
        "eos_token_id": EOS,
        "max_position_embeddings": CONTEXT,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "hidden_size": WIDTH,
    }
    generation = {"eos_token_id": [EOS, 0], "temperature": 0.7, "top_p": 0.9, "do_sample": True}
    return {
        "model.onnx": decoder_model(**variant),
        "tokenizer.json": decoder_tokenizer().encode(),
        "chat_template.jinja": CHATML.encode(),
        "generation_config.json": json.dumps(generation).encode(),
        "config.json": json.dumps(config).encode(),
    }


def genai_files(**variant: Any) -> dict[str, bytes]:
    """Return a decoder's files as onnxruntime-genai's builder writes them, without config.json."""
    files = decoder_files(free_heads=True, **variant)
    del files["config.json"], files["generation_config.json"]
    sizes = {
        "head_size": HEAD_SIZE,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
    }
    model = {"context_length": CONTEXT, "decoder": sizes, "eos_token_id": [EOS, 0]}
    return {**files, "genai_config.json": json.dumps({"model": model}).encode()}


def encoder_files(*, scores: bool = False) -> dict[str, bytes]:
    """Return the files of an encoder's or a reranker's package."""
    architecture = "BertForSequenceClassification" if scores else "BertModel"
    config = {
        "model_type": "bert",
        "architectures": [architecture],
        "max_position_embeddings": ENCODER_CONTEXT,
        "hidden_size": ENCODER_WIDTH,
    }
    return {
        "model.onnx": encoder_model(scores=scores),
        "tokenizer.json": encoder_tokenizer().encode(),
        "config.json": json.dumps(config).encode(),
    }


def package(files: Mapping[str, bytes]) -> bytes:
    """Return files as a tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def decoder_package(**variant: Any) -> bytes:
    """Return a decoder's package as tar.gz; arguments as of `decoder_model`."""
    return package(decoder_files(**variant))


def encoder_package(*, scores: bool = False) -> bytes:
    """Return an encoder's package as tar.gz."""
    return package(encoder_files(scores=scores))


# --- references


def reference_logits(model: bytes | str, tokens: Sequence[int]) -> Any:
    """Return a decoder's logits after all tokens, (vocabulary), with an empty cache."""
    return next(_steps(model, tokens, lambda _: 0))


def reference_greedy(model: bytes | str, prompt: Sequence[int], count: int) -> list[int]:
    """Return a decoder's greedy reply of `count` tokens, with plain onnxruntime and numpy.

    `model` is a file's bytes or path.
    """
    reply: list[int] = []
    for logits in _steps(model, prompt, lambda logits: int(np.argmax(logits))):
        reply.append(int(np.argmax(logits)))
        if len(reply) == count:
            break
    return reply


def _steps(model: bytes | str, prompt: Sequence[int], choose: Any) -> Any:
    """Yield the logits after the prompt and after each token chosen from them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = {each.name: each for each in session.get_inputs()}
    outputs = [each.name for each in session.get_outputs()]
    cache = {
        name: np.zeros([1 if isinstance(size, str) else size for size in each.shape], np.float32)
        for name, each in inputs.items()
        if name.startswith("past")
    }
    cache = {name: value[..., :0, :] for name, value in cache.items()}
    tokens, total = list(prompt), 0
    while True:
        total += len(tokens)
        ids = np.array([tokens], np.int64)
        feeds: dict[str, Any] = {
            "input_ids": ids,
            "tokens": ids,
            "attention_mask": np.ones((1, total), np.int64),
        }
        feeds["position_ids"] = np.arange(total - len(tokens), total)[None]
        feeds = {name: value for name, value in {**feeds, **cache}.items() if name in inputs}
        results = dict(zip(outputs, session.run(None, feeds), strict=True))
        cache = {
            name: results[name.replace("past_key_values", "present").replace("past", "present")]
            for name in cache
        }
        logits = results["logits"][0, -1]
        yield logits
        tokens = [choose(logits)]
