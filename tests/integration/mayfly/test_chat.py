"""Chats stream through both clients and the command line; embeddings keep their order."""

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mayfly import AsyncMayfly, Mayfly, errors
from tests.fault_server import FaultServer, ReceivedRequest, ServerConnection, fault_server, head
from tests.integration.mayfly.conftest import Run

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
STREAM = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
DONE = b"data: [DONE]\n\n"
Behaviour = Callable[[ReceivedRequest, ServerConnection], None]


def chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def event(document: Any) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def delta(text: str | None, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def speak(seen: ReceivedRequest, line: ServerConnection, *pieces: str) -> None:
    """Answer as the service does; events are split in odd places."""
    words = b"".join(delta(piece) for piece in pieces) + delta(None, "stop")
    words += event({"choices": [], "usage": USAGE}) + DONE
    line.send(head(200, STREAM))
    for at in range(0, len(words), 50):
        line.send(chunk(words[at : at + 50]))
    line.send(b"0\r\n\r\n")


def paris(seen: ReceivedRequest, line: ServerConnection) -> None:
    speak(seen, line, "Par", "is", " ✓")


@pytest.fixture
def served() -> Iterator[Callable[[Behaviour], FaultServer]]:
    """Return a function that starts a server."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(behave: Behaviour) -> FaultServer:
            server = stack.enter_context(fault_server(behave))
            server.signed = False
            return server

        yield start


Ask = Callable[[str], tuple[list[str], Any]]


def ask_sync(url: str) -> tuple[list[str], Any]:
    with Mayfly(url, "key") as client:
        reply = client.model("smollm", 3).chat("Capital?", system="Be brief.", temperature=0)
        return list(reply), reply


def ask_async(url: str) -> tuple[list[str], Any]:
    async def ask() -> tuple[list[str], Any]:
        async with AsyncMayfly(url, "key") as client:
            reply = client.model("smollm:3").chat("Capital?", system="Be brief.", temperature=0)
            return [piece async for piece in reply], reply

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async])


@both
def test_chat_gives_pieces_and_then_usage(
    ask: Ask, served: Callable[[Behaviour], FaultServer]
) -> None:
    server = served(paris)

    pieces, reply = ask(server.url)

    assert pieces == ["Par", "is", " ✓"]
    assert (reply.text, reply.finish, reply.usage) == ("Paris ✓", "stop", USAGE)
    [seen] = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["x-api-key"] == "key"
    assert json.loads(seen.body) == {
        "model": "smollm:3",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Capital?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }


def test_first_piece_arrives_while_the_rest_is_made(
    served: Callable[[Behaviour], FaultServer],
) -> None:
    arrived = threading.Event()

    def wait(seen: ReceivedRequest, line: ServerConnection) -> None:
        line.send(head(200, STREAM) + chunk(delta("one")))
        assert arrived.wait(60)
        line.send(chunk(delta("two") + DONE) + b"0\r\n\r\n")

    with Mayfly(served(wait).url) as client:
        pieces = iter(client.model("smollm").chat("Count"))
        assert next(pieces) == "one"
        arrived.set()
        assert list(pieces) == ["two"]


def test_first_piece_arrives_early_in_the_event_loop_too(
    served: Callable[[Behaviour], FaultServer],
) -> None:
    arrived = threading.Event()

    def wait(seen: ReceivedRequest, line: ServerConnection) -> None:
        line.send(head(200, STREAM) + chunk(delta("one")))
        assert arrived.wait(60)
        line.send(chunk(delta("two") + DONE) + b"0\r\n\r\n")

    async def count(url: str) -> list[str]:
        pieces = []
        async with AsyncMayfly(url) as client:
            async for piece in client.model("smollm").chat("Count"):
                pieces.append(piece)
                arrived.set()
        return pieces

    assert asyncio.run(count(served(wait).url)) == ["one", "two"]


@both
def test_connection_serves_again_after_a_chat(
    ask: Ask, served: Callable[[Behaviour], FaultServer]
) -> None:
    server = served(paris)

    with Mayfly(server.url) as client:
        for _ in range(3):
            assert "".join(client.model("smollm").chat("Capital?")) == "Paris ✓"

    assert server.connections == 1


def test_chat_that_is_left_closes_its_connection(
    served: Callable[[Behaviour], FaultServer],
) -> None:
    server = served(paris)

    with Mayfly(server.url) as client:
        model = client.model("smollm")
        for piece in model.chat("Capital?"):
            assert piece == "Par"
            break
        assert "".join(model.chat("Capital?")) == "Paris ✓"

    assert server.connections == 2


def refuse(seen: ReceivedRequest, line: ServerConnection) -> None:
    error = {"message": "prompt has 9000 tokens", "type": "invalid_request_error", "code": "long"}
    line.answer(400, json.dumps({"error": error}).encode())


def break_off(seen: ReceivedRequest, line: ServerConnection) -> None:
    line.send(head(200, STREAM) + chunk(delta("one")))
    line.hang_up()


def fail_late(seen: ReceivedRequest, line: ServerConnection) -> None:
    line.send(head(200, STREAM) + chunk(delta("one")))
    line.send(chunk(event({"error": {"message": "out of memory", "code": None}})) + b"0\r\n\r\n")


def stop_early(seen: ReceivedRequest, line: ServerConnection) -> None:
    line.send(head(200, STREAM) + chunk(delta("one") + delta(None, "stop")) + b"0\r\n\r\n")


def no_json(seen: ReceivedRequest, line: ServerConnection) -> None:
    line.send(head(200, STREAM) + chunk(b"data: <html>\n\n") + b"0\r\n\r\n")


@both
@pytest.mark.parametrize(
    ("behave", "kind", "text"),
    [
        (refuse, errors.InvalidInput, "prompt has 9000 tokens"),
        (break_off, errors.Disconnected, "before the end of the reply"),
        (fail_late, errors.ServerError, "out of memory"),
        (stop_early, errors.Disconnected, "ended before its last event"),
        (no_json, errors.ServerError, "no JSON"),
    ],
)
def test_fault_of_a_chat_is_an_error_of_its_kind(
    behave: Behaviour,
    kind: type[Exception],
    text: str,
    ask: Ask,
    served: Callable[[Behaviour], FaultServer],
) -> None:
    with pytest.raises(kind, match=text):
        ask(served(behave).url)


# --- embeddings


def embed(seen: ReceivedRequest, line: ServerConnection) -> None:
    texts = json.loads(seen.body)["input"]
    rows = [{"index": at, "embedding": [float(len(text)), 1.0]} for at, text in enumerate(texts)]
    line.answer(200, json.dumps({"data": rows[::-1]}).encode())


def test_vectors_are_in_the_order_of_the_texts(
    served: Callable[[Behaviour], FaultServer],
) -> None:
    server = served(embed)

    with Mayfly(server.url) as client:
        vectors = client.model("minilm").embed(["a", "abc"], dimensions=2)

    assert vectors == [[1.0, 1.0], [3.0, 1.0]]
    body = json.loads(server.seen[0].body)
    assert body["model"] == "minilm"
    assert body["dimensions"] == 2


# --- command line


def test_chat_command_streams_a_reply_and_ends(
    run: Run, served: Callable[[Behaviour], FaultServer]
) -> None:
    code, out, _ = run("chat", "smollm", "Capital?", "--url", served(paris).url)

    assert code == 0
    reply, note = out.splitlines()
    assert reply == "Paris ✓"
    assert note.startswith("3 tokens, ")
    assert "tokens per second, first after" in note


def test_chat_command_writes_one_document(
    run: Run, served: Callable[[Behaviour], FaultServer]
) -> None:
    code, out, _ = run("chat", "smollm", "Capital?", "--json", "--url", served(paris).url)

    assert code == 0
    document = json.loads(out)
    assert (document["reply"], document["usage"]) == ("Paris ✓", USAGE)


class Terminal(io.StringIO):
    """Standard input of a terminal, with lines that were typed before."""

    def isatty(self) -> bool:
        return True


def test_chat_in_the_terminal_keeps_the_conversation(
    run: Run,
    served: Callable[[Behaviour], FaultServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = served(paris)
    monkeypatch.setattr("sys.stdin", Terminal("Capital?\n\nAnd now?\n/exit\nNever read\n"))

    code, out, _ = run("chat", "smollm", "--max-tokens", "8", "--url", server.url)

    assert code == 0
    assert out.count("Paris ✓") == 2
    second = json.loads(server.seen[1].body)
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "Paris ✓"
    assert second["max_tokens"] == 8
    assert len(server.seen) == 2


def test_refused_question_ends_no_chat(
    run: Run,
    served: Callable[[Behaviour], FaultServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def behave(seen: ReceivedRequest, line: ServerConnection) -> None:
        (refuse if seen.number == 1 else paris)(seen, line)

    server = served(behave)
    monkeypatch.setattr("sys.stdin", Terminal("Too long\nCapital?\n"))

    code, out, err = run("chat", "smollm", "--url", server.url)

    assert code == 0
    assert "prompt has 9000 tokens" in err
    assert "Paris ✓" in out
    assert len(json.loads(server.seen[1].body)["messages"]) == 1


def test_question_on_standard_input_is_answered(
    run: Run,
    served: Callable[[Behaviour], FaultServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = served(paris)
    monkeypatch.setattr("sys.stdin", io.StringIO("Capital?\n"))

    code, out, _ = run("chat", "smollm", "--url", server.url)

    assert (code, out.splitlines()[0]) == (0, "Paris ✓")
    assert json.loads(server.seen[0].body)["messages"] == [{"role": "user", "content": "Capital?"}]


@pytest.mark.parametrize("typed", ["", "  \n"])
def test_chat_without_a_question_is_refused(
    typed: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))

    code, _, err = run("chat", "smollm", "--url", "http://127.0.0.1:9")

    assert code == 2
    assert "ask a QUESTION" in err


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(question: str, run: Run) -> None:
    code, _, err = run("chat", "smollm", question, "--url", "http://127.0.0.1:9")

    assert code == 2
    assert "ask a QUESTION" in err


def no_utf8() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")


def surrogates() -> io.TextIOWrapper:
    """Standard input in the locale C."""
    return io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("command", ["chat", "embed"])
@pytest.mark.parametrize("make_input", [no_utf8, surrogates])
def test_bytes_that_are_no_text_are_refused(
    command: str,
    make_input: Callable[[], io.TextIOWrapper],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", make_input())

    code, _, err = run(command, "smollm", "--url", "http://127.0.0.1:9")

    assert code == 2
    assert "no UTF-8" in err


def refuse_the(model: str, code: str, status: int) -> Behaviour:
    """Answer by an error of OpenAI's API about the model."""
    error = {"message": model, "type": "invalid_request_error", "param": "model", "code": code}

    def behave(_: ReceivedRequest, line: ServerConnection) -> None:
        line.answer(status, json.dumps({"error": error}).encode())

    return behave


@pytest.mark.parametrize(("command", "other"), [("chat", "embed"), ("embed", "chat")])
def test_a_model_of_another_kind_comes_with_its_command(
    command: str,
    other: str,
    run: Run,
    served: Callable[[Behaviour], FaultServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = served(refuse_the("model: 'minilm' is of another kind", "invalid_value", 400))
    monkeypatch.setattr("sys.stdin", Terminal("Hi\nHi\n"))
    texts = ["Hi"] if command == "embed" else []  # a chat ends at once

    code, _, err = run(command, "minilm", *texts, "--url", server.url)

    assert code == 2
    assert f"mayfly {other} minilm" in err
    assert len(server.seen) == 1


def test_an_unknown_model_of_a_chat_has_a_class_of_its_own(
    served: Callable[[Behaviour], FaultServer],
) -> None:
    server = served(refuse_the("unknown model", "model_not_found", 404))

    with Mayfly(server.url) as client, pytest.raises(errors.ModelNotFound):
        list(client.model("smollm").chat("Hi"))


def test_embed_sends_many_texts_in_batches(
    run: Run, served: Callable[[Behaviour], FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = served(embed)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\r\n" * 600))

    code, out, _ = run("embed", "minilm", "--url", server.url)

    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a"] * 600
    assert [len(json.loads(seen.body)["input"]) for seen in server.seen] == [256, 256, 88]


def test_embed_command_prints_lines_or_a_similarity(
    run: Run, served: Callable[[Behaviour], FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = served(embed).url

    code, out, _ = run("embed", "minilm", "a", "abc", "--url", url)
    assert code == 0
    assert [json.loads(line)["embedding"] for line in out.splitlines()] == [[1, 1], [3, 1]]

    assert run("embed", "minilm", "a", "b", "--similarity", "--url", url)[1] == "1.0000\n"

    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nabc\n"))
    code, out, _ = run("embed", "minilm", "--json", "--url", url)
    assert [row["text"] for row in json.loads(out)] == ["a", "abc"]


def test_similarity_takes_two_texts(run: Run) -> None:
    code, _, err = run("embed", "minilm", "a", "--similarity", "--url", "http://127.0.0.1:9")

    assert code == 2
    assert "compares two texts, not 1" in err
