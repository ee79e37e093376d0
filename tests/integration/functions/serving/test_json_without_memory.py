"""Tests that JSON parsing and serialising survive a lack of memory."""

import os
import subprocess
import sys

import pytest

PRELUDE = """
import resource, struct, sys
from functions.core.protocol.fast_decoder import read_list
from functions.core.protocol.infer_reply import encode_infer
from functions.core.protocol.infer_request import InferRequest, RequestedOutput
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.adapters.memory import data_bytes, is_restored, limit_memory

MB = 2**20
limit_memory(2**40)  # the settings of an environment

def with_room(room_mb, work):
    is_restored(0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + int(room_mb * MB), hard))
    try:
        return work()
    except MemoryError:
        return None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (2**40, hard))

def rooms():
    return [0, 0.3, 1, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64, 100, 200]

def reply(datatype, data, count, binary=False):
    spec = TensorSpec("y", datatype, (-1,))
    tensor = Tensor(datatype, (count,), data)
    request = InferRequest(None, {}, (RequestedOutput("y", binary, 0),), None, {})
    signature = Signature((spec,), (spec,))
    return encode_infer(request, {"y": tensor}, signature, "m", 1, 2**30).body
"""

WRITTEN = """
work = lambda: reply({datatype!r}, data, count)
count = {count}
data = {data}
expected = work()
replies = [with_room(room, work) for room in rooms()]
assert set(replies) == {{None, expected}}, set(map(type, replies))
"""

READ = """
text = {text}
spec = TensorSpec("x", "FP32", (-1,) * {rank})
work = lambda: read_list(spec, {shape}, text, 0, len(text))
expected = work()
assert expected is not None
tensors = [with_room(room, work) for room in rooms()]
assert expected in tensors and None in tensors
assert all(tensor in (None, expected) for tensor in tensors)
"""

EVENT = """
import base64, json
from functions.core.serving.http import HttpResponse, load_event
body = '{{"data": [' + '0.5, "a", ' * 200_000 + '1]}}'
raw = json.dumps({event}).encode()
response = HttpResponse(200, body.encode(), {{}}, {binary})
for work in (lambda: load_event(raw), response.to_bytes):
    expected = work()
    results = [with_room(room, work) for room in rooms()]
    assert expected in results
    assert all(result in (None, expected) for result in results)
"""

NUMBERS = 200_000
CASES = {
    "numbers": WRITTEN.format(
        datatype="FP32", count=NUMBERS, data=f"struct.pack('f', 0.1) * {NUMBERS}"
    ),
    "not finite": WRITTEN.format(
        datatype="FP32", count=NUMBERS, data=f"struct.pack('f', float('nan')) * {NUMBERS}"
    ),
    "texts": WRITTEN.format(datatype="BYTES", count=10_000, data="[b'\\0' * 99 + b'a'] * 10_000"),
    "a long text": WRITTEN.format(datatype="BYTES", count=1, data="['ü'.encode() * 1_000_000]"),
    "bytes": WRITTEN.format(datatype="BYTES", count=9, data="[b'\\xff' * 100_000] * 9"),
    "event of text": EVENT.format(event='{"body": body}', binary=False),
    "event of base64": EVENT.format(
        event='{"body": base64.b64encode(body.encode()).decode(), "isBase64Encoded": True}',
        binary=True,
    ),
    "flat list": READ.format(
        text=f"b'[' + b'0.5,' * {NUMBERS - 1} + b'0.5]'", rank=1, shape=(NUMBERS,)
    ),
    "nested list": READ.format(
        text="b'[' + b'[0.5,1],' * 99_999 + b'[0.5,1]]'", rank=2, shape=(100_000, 2)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_json_is_right_or_refused_however_little_memory_is_left(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + CASES[case]],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "PYTHONPATH": "."},
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
