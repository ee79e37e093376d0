"""Commands of language models: chat in the terminal, embed texts."""

import json
import math
import operator
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from mayfly.cli.session import Session, common
from mayfly.client.errors import InvalidInput
from mayfly.client.sync.language import Chat

BATCH = 256  # texts of a request; what one request may have, and how long it may take, is limited
NO_TEXT = "the text is no UTF-8: convert it, e.g. iconv -f latin1 -t utf-8"
EXIT = ("/exit", "/quit")
PROMPT = "› "  # noqa: RUF001 (a prompt, no greater-than sign)


@click.command(short_help="Chat with a model in the terminal.")
@click.argument("model")
@click.argument("question", required=False)
@click.option("--system", default="", help="How the model should answer, for the whole chat.")
@click.option("--temperature", type=float, help="0: always the likeliest word.")
@click.option("--max-tokens", type=int, help="Longest reply in tokens [2,048, or the key's limit].")
@common
def chat(
    session: Session,
    model: str,
    question: str | None,
    system: str,
    temperature: float | None,
    max_tokens: int | None,
) -> None:
    """Chat with MODEL (or MODEL:VERSION, MODEL:ALIAS); replies appear while they are made.

    With a QUESTION, or one on standard input, it answers and ends. In the terminal, Ctrl-C leaves a
    reply, /exit or Ctrl-D ends the chat. On Lambda a reply that is left is made to its end and
    billed: --max-tokens limits it.

    \b
    Example: mayfly chat smollm
             mayfly chat smollm:prod "Name the capital of France." --temperature 0
             mayfly chat smollm --system "Answer in one word." < question.txt
    """
    options = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in options.items() if value is not None}
    messages = [{"role": "system", "content": system}] if system else []
    if question is None and not sys.stdin.isatty():
        question = _standard_input()
    if question is not None:
        if not question.strip():
            raise InvalidInput("ask a QUESTION, as an argument or on standard input")
        _ask(session, model, messages, question.strip(), options)
    elif session.json:
        raise InvalidInput("--json takes a QUESTION")
    else:
        _talk(session, model, messages, options)


def _talk(
    session: Session, model: str, messages: list[dict[str, str]], options: dict[str, Any]
) -> None:
    """Read questions and print replies until /exit."""
    click.echo(click.style(f"{model}: Ctrl-C leaves a reply, /exit ends the chat.", dim=True))
    while True:
        try:
            question = input(click.style(PROMPT, bold=True)).strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if question in EXIT:
            return
        if not question:
            continue
        before = len(messages)
        try:
            _ask(session, model, messages, question, options)
        except InvalidInput as error:
            if error.input == "model":
                raise
            del messages[before:]  # e.g. the chat is too long: another question may do
            click.echo(f"{click.style('mayfly:', fg='red')} {error}", err=True)


def _ask(
    session: Session,
    model: str,
    messages: list[dict[str, str]],
    question: str,
    options: dict[str, Any],
) -> None:
    """Ask a question, print the streamed reply, add both to the messages."""
    messages.append({"role": "user", "content": _checked(question)})
    reply = session.model(model).chat(messages, **options)
    started, first, stopped = time.monotonic(), 0.0, False
    try:
        for piece in reply:
            first = first or time.monotonic()
            if not session.json:
                click.echo(piece, nl=False)
    except InvalidInput as error:
        raise _advised(error, model, "embed") from error
    except KeyboardInterrupt:
        if session.json or not sys.stdin.isatty():
            raise
        stopped = True
    ended = time.monotonic()
    messages.append({"role": "assistant", "content": reply.text})
    document = {
        "model": model,
        "reply": reply.text,
        "finish": reply.finish,
        "usage": dict(reply.usage),
        "seconds_to_first": round(first - started, 3) if first else None,
        "seconds": round(ended - started, 3),
    }
    session.show(document, "" if session.json else _note(reply, started, first, ended, stopped))


def _note(reply: Chat, started: float, first: float, ended: float, stopped: bool) -> str:
    """Return the line under a reply: tokens, speed, why it ended early."""
    tokens = reply.usage.get("completion_tokens", 0)
    facts = []
    if tokens:
        facts.append(f"{tokens} tokens")
    if tokens > 1 and ended > first:
        facts.append(f"{(tokens - 1) / (ended - first):.1f} tokens per second")
    if first:
        facts.append(f"first after {first - started:.2f} s")
    if stopped:
        facts.append("left: on Lambda it is still made to its end and billed")
    if reply.finish == "length":
        facts.append("cut at --max-tokens or the context's end")
    return "\n" + click.style(", ".join(facts), dim=True)


@click.command(short_help="Turn texts into vectors.")
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--similarity", is_flag=True, help="Print the cosine of two texts instead.")
@click.option("--dimensions", type=int, help="Shorten the vectors to this length.")
@common
def embed(
    session: Session, model: str, texts: tuple[str, ...], similarity: bool, dimensions: int | None
) -> None:
    """Print one JSON line with the vector of each text.

    Texts are arguments, or the lines of standard input.

    \b
    Example: mayfly embed minilm "A man is eating." "Someone has a meal." --similarity
             mayfly embed minilm < sentences.txt > vectors.jsonl
    """
    if not texts and not sys.stdin.isatty():
        texts = tuple(
            line.removesuffix("\r") for line in _standard_input().split("\n") if line.strip()
        )
    if not texts:
        raise InvalidInput("name texts, or give one a line on standard input")
    if similarity and len(texts) != 2:
        raise InvalidInput(f"--similarity compares two texts, not {len(texts)}")
    if similarity:
        [documents] = _embeddings(session, model, texts, dimensions)
        value = cosine(*(document["embedding"] for document in documents))
        session.show({"texts": list(texts), "similarity": value}, f"{value:.4f}")
        return
    batches = _embeddings(session, model, texts, dimensions)
    if session.json:
        session.show([document for documents in batches for document in documents])
        return
    for documents in batches:
        if not session.quiet:
            _print_lines(documents)


def _embeddings(
    session: Session, model: str, texts: Sequence[str], dimensions: int | None
) -> Iterator[list[Any]]:
    """Yield texts with their vectors, in batches of BATCH."""
    for first in range(0, len(texts), BATCH):
        batch = [_checked(text) for text in texts[first : first + BATCH]]
        try:
            vectors = session.model(model).embed(batch, dimensions=dimensions)
        except InvalidInput as error:
            if len(texts) > BATCH and error.input.startswith("input"):
                place = f"in texts {first + 1} to {first + len(batch)}: {error}"
                raise InvalidInput(place, input=error.input) from error
            raise _advised(error, model, "chat") from error
        yield [
            {"text": text, "embedding": vector} for text, vector in zip(batch, vectors, strict=True)
        ]


def _print_lines(documents: Sequence[Any]) -> None:
    for document in documents:
        click.echo(json.dumps(document, ensure_ascii=False))


def _standard_input() -> str:
    """Return the text on standard input.

    Raises:
        InvalidInput: it is no UTF-8.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise InvalidInput(NO_TEXT) from None


def _checked(text: str) -> str:
    """Return a text after a check that its bytes were UTF-8.

    Raises:
        InvalidInput: they were not.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(NO_TEXT) from None
    return text


def _advised(error: InvalidInput, model: str, command: str) -> InvalidInput:
    """Return an error about the model with the commands for its kind."""
    if error.input != "model":
        return error
    purpose = {"chat": "text", "embed": "vectors"}[command]
    advice = f"For {purpose}: mayfly {command} {model}; for tensors: mayfly call {model}"
    text = f"{error}. {advice}"
    return InvalidInput(text, input=error.input, status=error.status, code=error.code)


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors.

    >>> cosine([1.0, 0.0], [1.0, 1.0]).__round__(3), cosine([0.0], [1.0])
    (0.707, 0.0)
    """
    lengths = math.hypot(*first) * math.hypot(*second)
    return sum(map(operator.mul, first, second)) / lengths if lengths else 0.0
