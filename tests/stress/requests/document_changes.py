"""Changes to the JSON document of a request: shapes, values, names, outputs, parameters."""

from random import Random
from typing import Any

from tests.stress.requests.drafts import ODD, WORDS, Draft, tensor, value

DATATYPES = ("FP32", "INT64", "BYTES", "BOOL", "FP16", "BF16", "UINT8", "FP64", "INT32", "STRING")


def some_tensor(rng: Random, draft: Draft) -> dict[str, Any]:
    """Return a random input tensor to change, or add one."""
    if not draft.inputs:
        draft.document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    tensor: dict[str, Any] = rng.choice(draft.inputs)
    return tensor


def sizes(rng: Random, draft: Draft) -> None:
    """Declare a shape that differs from the data's."""
    tensor = some_tensor(rng, draft)
    shape = tensor.get("shape")
    match rng.randrange(5):
        case 0:
            tensor["shape"] = rng.choice((*ODD, [2**26], [2**26, 2**26], [0, 2**63], [1] * 70))
        case 1 if isinstance(shape, list):
            tensor["shape"] = [*shape, rng.choice((0, 1, 2))]
        case 2 if isinstance(shape, list) and shape:
            del tensor["shape"][0]
        case _ if isinstance(shape, list) and shape:
            shape[rng.randrange(len(shape))] = rng.choice((*ODD, 2**26, 2**26 + 1, 1000))


def fitted_sizes(rng: Random, draft: Draft) -> None:
    """Change an input's shape and its data to match."""
    spec = rng.choice(draft.signature.inputs or [None])
    if spec is None:
        return
    large = rng.choice((0, 1, 2, 17, 1000, 30_000))
    changed = tensor(rng, spec, {-1: large})
    draft.document["inputs"] = [
        changed if each.get("name") == spec.name else each for each in draft.inputs
    ]


def batch(rng: Random, draft: Draft) -> None:
    """Send a huge batch of zeros or of one hostile value."""
    for spec, each in zip(draft.signature.inputs, draft.inputs, strict=False):
        if not spec.shape or spec.shape[0] != -1:
            continue
        rows, rest = rng.choice((1000, 100_000, 500_000)), 1
        shape = each.get("shape")
        if not isinstance(shape, list) or any(type(size) is not int for size in shape):
            continue
        for size in shape[1:]:
            rest *= size
        if not 0 <= rest * rows <= 1_000_000:
            continue
        each["shape"] = [rows, *shape[1:]]
        each["data"] = [value(rng, spec.datatype)] * (rows * rest)


def datatypes(rng: Random, draft: Draft) -> None:
    some_tensor(rng, draft)["datatype"] = rng.choice((*DATATYPES, *ODD, "fp32", "FP32 "))


def values(rng: Random, draft: Draft) -> None:
    """Replace values by ones of other types and ranges."""
    each = some_tensor(rng, draft)
    data = each.get("data")
    if not isinstance(data, list) or not data or rng.random() < 0.2:
        each["data"] = rng.choice((*ODD, [[1], 2], [[[[]]]], ["1"], {"0": 1}))
        return
    for _ in range(rng.choice((1, 1, 3))):
        data[rng.randrange(len(data))] = rng.choice((*ODD, *WORDS))


def nesting(rng: Random, draft: Draft) -> None:
    """Nest the data's JSON lists correctly, partly, or far too deeply."""
    each = some_tensor(rng, draft)
    data = each.get("data")
    if isinstance(data, list) and rng.random() < 0.5:
        width = rng.choice((1, 2, 3))
        each["data"] = [data[at : at + width] for at in range(0, len(data), width)]
        return
    depth = rng.choice((10, 900, 5000, 200_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")))
    inner = opened * depth + b"1" + closed * depth
    name = rng.choice(("data", "shape", "parameters", "id", "unknown"))
    (each if rng.random() < 0.5 else draft.document)[name] = "DEEP"
    draft.text.append(lambda body: body.replace(b'"DEEP"', inner, 1))


def duplicates(rng: Random, draft: Draft) -> None:
    """Duplicate, drop or rename inputs, or repeat a JSON key."""
    inputs = draft.document.get("inputs")
    match rng.randrange(6):
        case 0 if isinstance(inputs, list) and inputs:
            inputs.append(dict(draft.inputs[0]) if draft.inputs else 1)
        case 1 if isinstance(inputs, list) and inputs:
            del inputs[rng.randrange(len(inputs))]
        case 2:
            some_tensor(rng, draft)["name"] = rng.choice((*ODD, *WORDS, "nosuch"))
        case 3:
            draft.document["inputs"] = rng.choice((*ODD, [None], [[]], [{}] * 1000))
        case 4:
            each = some_tensor(rng, draft)
            each.pop(rng.choice(("name", "datatype", "shape", "data")), None)
        case _:
            key = rng.choice((b'"name"', b'"data"', b'"inputs"', b'"shape"'))
            draft.text.append(lambda body: body.replace(key, key + b": 1, " + key, 1))


def outputs(rng: Random, draft: Draft) -> None:
    """Request unknown or duplicate outputs and odd class counts."""
    names = [spec.name for spec in draft.signature.outputs]
    chosen = [{"name": rng.choice((*names, *names, "nosuch"))} for _ in range(rng.choice((1, 2)))]
    for each in chosen:
        parameters = {
            "classification": rng.choice((1, 2, 5, 1000, *ODD)),
            "binary_data": rng.choice((True, False, *ODD)),
            "odd": rng.choice(ODD),
        }
        kept = rng.sample(sorted(parameters), rng.randrange(3))
        each["parameters"] = {name: parameters[name] for name in kept}
    draft.document["outputs"] = rng.choice((chosen, chosen, chosen, rng.choice(ODD), [{}], [None]))


def parameters(rng: Random, draft: Draft) -> None:
    """Set odd parameters on the request or an input."""
    target = draft.document if rng.random() < 0.7 else some_tensor(rng, draft)
    if rng.random() < 0.2:
        target["parameters"] = rng.choice(ODD)
        return
    names = ("timeout", "binary_data_output", "priority", "sequence_id", "content_type", "a" * 999)
    chosen = {name: rng.choice(ODD) for name in rng.sample(names, 2)}
    if rng.random() < 0.3:
        chosen["content_type"] = rng.choice(("base64", "str", "np", "BASE64"))
    target["parameters"] = chosen


def identity(rng: Random, draft: Draft) -> None:
    draft.document["id"] = rng.choice((*ODD, *WORDS, "x" * 100_000, "a\r\nset-cookie: b=c"))


def strings(rng: Random, draft: Draft) -> None:
    """Send very long or very many strings, wherever a string may be."""
    for spec, each in zip(draft.signature.inputs, draft.inputs, strict=False):
        if spec.datatype == "BYTES" and isinstance(each.get("data"), list) and each["data"]:
            word = rng.choice((*WORDS, "a" * 100_000, "\U0010ffff" * 9999, "\0" * 5000))
            each["data"] = [word for _ in each["data"]]
            return
    rng.choice((draft.document, some_tensor(rng, draft)))[rng.choice(("x" * 200_000, "", "ü"))] = 1
