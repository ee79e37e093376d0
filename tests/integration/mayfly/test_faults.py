"""Both clients against a server that breaks its replies, one fault after another."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mayfly import AsyncMayfly, Mayfly, Prediction, errors
from mayfly.client.http1.messages import json_request
from tests.fault_server import FaultServer, ReceivedRequest, ServerConnection, fault_server, head

X = np.array([[1, 2, 3]], np.float32)
METADATA = {
    "name": "scaled",
    "versions": ["7"],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    "properties": {"version": "7"},
}
Fault = Callable[["Scaler", ReceivedRequest, ServerConnection], None]


class Scaler:
    """Data plane of one model, y = 2x, whose first replies to predictions are `faults`."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.predictions = 0
        self.metadata = 0

    def __call__(self, seen: ReceivedRequest, line: ServerConnection) -> None:
        if seen.method == "GET":
            self.metadata += 1
            line.answer(200, json.dumps(METADATA).encode())
            return
        self.predictions += 1
        if self.faults:
            self.faults.pop(0)(self, seen, line)
        else:
            line.send(self.reply(seen))

    def reply(self, seen: ReceivedRequest, **more: str) -> bytes:
        """Return the whole reply to a prediction."""
        body = seen.body
        if seen.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        values = np.frombuffer(body[int(seen.headers["inference-header-content-length"]) :], "<f4")
        content = (2 * values).astype("<f4").tobytes()
        output = {
            "name": "y",
            "datatype": "FP32",
            "shape": [len(values) // 3, 3],
            "parameters": {"binary_data_size": len(content)},
        }
        document = json.dumps({"model_name": "scaled", "outputs": [output]}).encode()
        body = document + content
        fields = {
            "content-length": str(len(body)),
            "inference-header-content-length": str(len(document)),
            "x-model-version": "7",
            "x-model-alias": "prod",
            "x-request-id": f"r{seen.number}",
        }
        return head(200, {**fields, **more}) + body


def reset(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
    line.reset()


def hang_up(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
    line.hang_up()


def truncate(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
    line.send(scaler.reply(seen)[:-2])
    line.hang_up()


def truncate_head(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
    line.send(scaler.reply(seen)[:30])
    line.hang_up()


def refuse(status: int, after: str = "0") -> Fault:
    def answer(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
        body = json.dumps({"error": "busy", "code": "UNAVAILABLE"}).encode()
        line.answer(status, body, retry_after=after)

    return answer


def drip(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
    """Send the reply byte by byte, for ever: each byte comes in time, the reply does not."""
    for byte in scaler.reply(seen)[:40]:
        line.send(bytes([byte]))
        time.sleep(0.05)
    while line.open:
        line.send(b"a")
        time.sleep(0.05)


def garbage(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
    line.send(b"\x16\x03\x01 no HTTP\r\n\r\n")
    line.hang_up()


class Driver:
    """Synchronous and asynchronous client behind one interface."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.kind, self.url, self.options = kind, url, options

    def predict(self, *values: Any, **options: Any) -> Any:
        """Return the prediction of each of the values, all called at once."""
        if self.kind == "async":
            return asyncio.run(self._async(values, options))
        with Mayfly(self.url, "key", **self.options) as client:
            model = client.model("scaled")
            if len(values) == 1:
                return [model.predict(values[0], **options)]
            with ThreadPoolExecutor(len(values)) as pool:
                return list(pool.map(lambda value: model.predict(value, **options), values))

    async def _async(self, values: Any, options: Any) -> list[Prediction]:
        async with AsyncMayfly(self.url, "key", **self.options) as client:
            model = client.model("scaled")
            return await asyncio.gather(*(model.predict(value, **options) for value in values))

    def change(self, *, repeatable: bool) -> None:
        """Send a change of the control plane."""
        if self.kind == "sync":
            with Mayfly(self.url, **self.options) as client:
                client._caller.change("POST", "/api/v1/x", {}, repeatable=repeatable)
            return

        async def change() -> None:
            async with AsyncMayfly(self.url, **self.options) as client:
                await client._caller.change("POST", "/api/v1/x", {}, repeatable=repeatable)

        asyncio.run(change())


@pytest.fixture
def scaler() -> Scaler:
    return Scaler()


@pytest.fixture
def server(scaler: Scaler) -> Iterator[FaultServer]:
    with fault_server(scaler) as server:
        server.signed = False
        yield server


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest, server: FaultServer) -> Driver:
    return Driver(request.param, server.url)


def test_a_prediction_tells_who_answered(driver: Driver, server: FaultServer) -> None:
    [answer] = driver.predict(X)

    np.testing.assert_array_equal(answer["y"], 2 * X)
    assert (answer.version, answer.alias, answer.request_id) == (7, "prod", "r2")
    assert repr(answer) == "<Prediction of scaled:7 (prod) y FP32 [1, 3]>"
    assert server.seen[1].headers["x-api-key"] == "key"


@pytest.mark.parametrize(
    "fault",
    [reset, hang_up, truncate, truncate_head, garbage, refuse(429), refuse(503), refuse(502)],
    ids=["reset", "hang up", "truncate", "truncate head", "garbage", "429", "503", "502"],
)
def test_a_prediction_is_repeated_after_a_fault(
    driver: Driver, scaler: Scaler, fault: Fault
) -> None:
    scaler.faults = [fault, fault]
    [answer] = driver.predict(X)

    np.testing.assert_array_equal(answer.value, 2 * X)
    assert scaler.predictions == 3


def test_sixteen_at_once_are_answered_with_faults_between(driver: Driver, scaler: Scaler) -> None:
    scaler.faults = [reset, refuse(429), truncate, refuse(503), hang_up, garbage] * 2
    answers = driver.predict(*(X * n for n in range(16)))

    for n, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], 2 * X * n)


@pytest.mark.parametrize(
    ("status", "kind"), [(503, errors.Unavailable), (429, errors.QuotaExceeded)]
)
def test_a_retry_after_beyond_the_time_limit_is_raised_at_once(
    driver: Driver, scaler: Scaler, status: int, kind: type[errors.MayflyError]
) -> None:
    scaler.faults = [refuse(status, after="3600")]
    with pytest.raises(kind) as caught:
        driver.predict(X, timeout=600.0)

    assert (caught.value.retry_after, scaler.predictions) == (3600.0, 1)  # type: ignore[attr-defined]


def test_the_last_fault_is_raised(driver: Driver, scaler: Scaler) -> None:
    scaler.faults = [reset] * 10
    with pytest.raises(errors.Disconnected, match="broke before the whole reply"):
        driver.predict(X)

    assert scaler.predictions == 5


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 500, 504])
def test_an_error_that_repeating_does_not_mend_is_raised(
    driver: Driver, scaler: Scaler, status: int
) -> None:
    scaler.faults = [refuse(status)] * 2  # a 413 is tried once more, with a compressed reply
    with pytest.raises(errors.MayflyError) as caught:
        driver.predict(X)

    assert caught.value.status == status
    assert scaler.predictions == (2 if status == 413 else 1)


def test_a_slow_drip_ends_at_the_time_limit(driver: Driver, scaler: Scaler) -> None:
    scaler.faults = [drip]
    with pytest.raises(errors.TimedOut, match="raise timeout"):
        driver.predict(X, timeout=1.0)

    assert scaler.predictions == 1


def test_a_broken_reply_does_not_answer_the_next_request(driver: Driver, scaler: Scaler) -> None:
    scaler.faults = [lambda scaler, seen, line: line.send(scaler.reply(seen) * 2)]
    first, second = driver.predict(X), driver.predict(3 * X)

    np.testing.assert_array_equal(first[0]["y"], 2 * X)
    np.testing.assert_array_equal(second[0]["y"], 6 * X)


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_change_is_repeated_with_an_idempotency_key_only(
    driver: Driver, scaler: Scaler, server: FaultServer, repeatable: bool
) -> None:
    scaler.faults = [reset, lambda _, seen, line: line.answer(200, b"{}")]
    if repeatable:
        driver.change(repeatable=True)
    else:
        with pytest.raises(errors.Disconnected):
            driver.change(repeatable=False)

    keys = [seen.headers.get("idempotency-key") for seen in server.seen]
    assert len(keys) == (2 if repeatable else 1)
    assert len(set(keys)) == 1
    assert (keys[0] is not None) == repeatable


def test_a_refused_connection_names_url_and_stack(driver: Driver, server: FaultServer) -> None:
    server.close()
    driver.options = {"retries": 1}
    with pytest.raises(errors.Disconnected, match="is the URL right, and the stack up?"):
        driver.predict(X)


def test_connections_are_kept_and_a_closed_one_is_replaced(
    scaler: Scaler, server: FaultServer
) -> None:
    def answer_and_close(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
        line.send(scaler.reply(seen))  # without connection: close
        line.hang_up()

    with Mayfly(server.url) as client:
        model = client.model("scaled")
        for _ in range(3):
            model.predict(X)
        assert server.connections == 1
        scaler.faults = [answer_and_close]
        model.predict(X)
        model.predict(X)

    assert (server.connections, scaler.predictions) == (2, 5)


def test_the_signature_is_read_once_per_version(scaler: Scaler, server: FaultServer) -> None:
    def newer(scaler: Scaler, seen: ReceivedRequest, line: ServerConnection) -> None:
        line.send(scaler.reply(seen, **{"x-model-version": "8"}))

    with Mayfly(server.url) as client:
        for _ in range(3):
            client.model("scaled").predict(X)
        assert scaler.metadata == 1
        scaler.faults = [newer]
        assert client.model("scaled").predict(X).version == 8
        client.model("scaled").predict(X)  # reads the signature of the version that answers
        assert scaler.metadata == 2


def test_a_wrong_input_is_refused_before_it_is_sent(scaler: Scaler, server: FaultServer) -> None:
    with Mayfly(server.url) as client:
        model = client.model("scaled")
        model.predict(X)
        with pytest.raises(errors.InvalidInput, match="'z': scaled has 'x'"):
            model.predict({"z": X})
        with pytest.raises(errors.InvalidInput, match=r"shape \[2\] does not fit \[-1, 3\]"):
            model.predict([1.0, 2.0])

    assert scaler.predictions == 1
    assert scaler.metadata == 3  # each error was checked against the signature of now


def test_a_large_reply_is_asked_for_compressed(scaler: Scaler, server: FaultServer) -> None:
    with Mayfly(server.url) as client:
        scaler.faults = [refuse(413)]
        client.model("scaled").predict(X)

    assert [seen.headers.get("accept-encoding") for seen in server.seen[1:]] == [None, "gzip"]


def test_an_interrupted_exchange_leaves_no_connection_behind(
    scaler: Scaler, server: FaultServer
) -> None:
    async def main() -> None:
        async with AsyncMayfly(server.url) as client:
            model = client.model("scaled")
            await model.predict(X)
            scaler.faults = [drip]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await model.predict(X)
            np.testing.assert_array_equal((await model.predict(5 * X))["y"], 10 * X)

    asyncio.run(main())


def test_any_reply_that_is_no_document_is_an_error(server: FaultServer) -> None:
    server.behave = lambda seen, line: line.answer(200, b"<html>")
    with Mayfly(server.url) as client:
        with pytest.raises(errors.ServerError, match="is the URL that of a Mayfly stack"):
            client.model("scaled").predict(X)
        assert client._caller.call(json_request("GET", "/")).status == 200
