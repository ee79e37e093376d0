"""Commands of language models: chat in the terminal, embed texts."""

import json
import math
import operator
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from mayfly.cli.session import Session, common
from mayfly.client.errors import InvalidInput
from mayfly.client.sync.language import Chat

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
             mayfly chat smollm:prod "What is the capital of France?" --temperature 0
             mayfly chat smollm --system "Answer in one word." < question.txt
    """
    options = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in options.items() if value is not None}
    messages = [{"role": "system", "content": system}] if system else []
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise InvalidInput("ask a QUESTION, as an argument or on standard input")
    if question is not None:
        _ask(session, model, messages, question, options)
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
        except InvalidInput as error:  # e.g. the chat is too long: another question may do
            del messages[before:]
            click.echo(f"{click.style('mayfly:', fg='red')} {error}", err=True)


def _ask(
    session: Session,
    model: str,
    messages: list[dict[str, str]],
    question: str,
    options: dict[str, Any],
) -> None:
    """Ask a question, print the streamed reply, add both to the messages."""
    messages.append({"role": "user", "content": question})
    reply = session.model(model).chat(messages, **options)
    started, first, stopped = time.monotonic(), 0.0, False
    try:
        for piece in reply:
            first = first or time.monotonic()
            if not session.json:
                click.echo(piece, nl=False)
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
        facts.append("stopped")
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
        texts = tuple(line.rstrip("\n") for line in sys.stdin if line.strip())
    if not texts:
        raise InvalidInput("name texts, or give one a line on standard input")
    if similarity and len(texts) != 2:
        raise InvalidInput(f"--similarity compares two texts, not {len(texts)}")
    vectors = session.model(model).embed(texts, dimensions=dimensions)
    if similarity:
        value = cosine(*vectors)
        session.show({"texts": list(texts), "similarity": value}, f"{value:.4f}")
        return
    documents = [
        {"text": text, "embedding": vector} for text, vector in zip(texts, vectors, strict=True)
    ]
    if session.json:
        session.show(documents)
    elif not session.quiet:
        _print_lines(documents)


def _print_lines(documents: Sequence[Any]) -> None:
    for document in documents:
        click.echo(json.dumps(document, ensure_ascii=False))


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors.

    >>> cosine([1.0, 0.0], [1.0, 1.0]).__round__(3), cosine([0.0], [1.0])
    (0.707, 0.0)
    """
    lengths = math.hypot(*first) * math.hypot(*second)
    return sum(map(operator.mul, first, second)) / lengths if lengths else 0.0
