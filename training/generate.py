"""Command line and client that generate text from a served language model.

    python -m training.generate http://127.0.0.1:8080/live/v2/models/gpt "The for statement"

The variable MAYFLY_KEY holds the access key, if the service asks for one. In Python:

    from training.generate import Served, generate
    with Served("http://127.0.0.1:8080/live/v2/models/gpt", key) as model:
        print(b"".join(generate(model, model.past, b"The for statement", temperature=0.5)))

The service keeps no state between requests. Keys and values of the bytes read so far come back as
`present` and go in again as `past`, so that each request reads one byte. Their size grows with the
text.
"""

from __future__ import annotations

import argparse
import codecs
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from training.recipe import Arrays, Run

LENGTH = 200  # bytes to generate
TEMPERATURE = 0.5
CONTEXT = 128  # bytes; the gpt recipe's `length`
URL = re.compile(r"(https?)://(.+)/v2/models/([^/]+)(?:/versions/([^/]+))?/?")


def generate(
    run: Run,
    past: NDArray[np.float32],
    prompt: bytes,
    *,
    length: int = LENGTH,
    temperature: float = TEMPERATURE,
    seed: int | None = None,
    context: int = CONTEXT,
    cached: bool = True,
) -> Iterator[bytes]:
    """Yield `length` bytes that a language model generates after `prompt`.

    `run` takes `tokens` (1, length) and `past`, and answers `logits` and `present`; `past` is the
    empty cache. At temperature 0 the most likely byte follows; above it the byte is sampled, the
    more evenly the higher. `context` is the longest text that the network was trained on: of a
    longer one, the last half of it is read again into an empty cache. Without `cached`, the whole
    context is read again for every byte: the same text, slower.

    Raises:
        ValueError: the prompt is empty, or the temperature is below 0.
    """
    if not prompt:
        raise ValueError("the prompt is empty: it takes a byte to go on from")
    if temperature < 0:
        raise ValueError(f"a temperature of {temperature} is below 0")
    generator = np.random.default_rng(seed)
    text, read, state = list(prompt[-context:]), 0, past
    for _ in range(length):
        if len(text) > context:
            text, read = text[-(context // 2) :], 0
        if read == 0 or not cached:
            read, state = 0, past
        answer = run({"tokens": np.array([text[read:]], np.int64), "past": state})
        read, state = len(text), answer["present"]
        text.append(_sample(answer["logits"][0, -1], temperature, generator))
        yield bytes(text[-1:])


def _sample(logits: NDArray[np.float32], temperature: float, generator: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    chances = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return int(generator.choice(len(chances), p=chances / chances.sum()))


class Served:
    """HTTP client of a served language model, with binary tensors.

    `past` is the empty cache of one text.
    """

    def __init__(self, url: str, key: str = "") -> None:
        """Connect to a model or model version by URL (…/v2/models/gpt/versions/3).

        `key` is the access key that requests send, if they need one.

        Raises:
            ValueError: the URL is no model's, or the model has no cache.
            ConnectionError: the server does not answer, or answers with an error; also when called.
        """
        import tritonclient.http as triton  # imported late: `generate` runs without this package

        match = URL.fullmatch(url)
        if match is None:
            raise ValueError(
                f"{url} is no model's URL: http(s)://HOST[/STAGE]/v2/models/NAME[/versions/VERSION]"
            )
        scheme, base, self._name, version = match.groups()
        self._version = version or ""
        self._headers = {"x-api-key": key} if key else {}
        self._triton: Any = triton
        self._client: Any = triton.InferenceServerClient(base, ssl=scheme == "https")
        metadata = self._call(self._client.get_model_metadata, self._name, self._version)
        shapes = {tensor["name"]: tensor["shape"] for tensor in metadata["inputs"]}
        if "past" not in shapes:
            raise ValueError(f"{self._name} has no input 'past' but {', '.join(shapes)}")
        stacks, _, heads, _, size = shapes["past"]
        self.past = np.zeros((stacks, 1, heads, 0, size), np.float32)

    def __call__(self, inputs: Arrays) -> Arrays:
        tensors = []
        for name, values in inputs.items():
            datatype = "INT64" if values.dtype == np.int64 else "FP32"
            tensor = self._triton.InferInput(name, list(values.shape), datatype)
            tensors.append(tensor.set_data_from_numpy(np.ascontiguousarray(values)))
        answer = self._call(self._client.infer, self._name, tensors, self._version)
        return {name: answer.as_numpy(name) for name in ("logits", "present")}

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(*arguments, headers=self._headers)
        except self._triton.InferenceServerException as error:
            raise ConnectionError(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._client.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a command-line prompt and its generated text; return exit status."""
    options = _parser().parse_args(arguments)
    try:
        with Served(options.url, os.environ.get("MAYFLY_KEY", "")) as model:
            written = generate(
                model,
                model.past,
                options.prompt.encode(),
                length=options.length,
                temperature=options.temperature,
                context=options.context,
                seed=options.seed,
            )
            print(options.prompt, end="", flush=True)
            letters = codecs.getincrementaldecoder("utf-8")("replace")
            for byte in written:
                print(letters.decode(byte), end="", flush=True)
        print(letters.decode(b"", final=True))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.generate", description="Let a served model write on."
    )
    add = parser.add_argument
    add("url", help="http://HOST[/STAGE]/v2/models/NAME[/versions/VERSION]")
    add("prompt")
    add("--length", type=int, default=LENGTH, help="bytes [%(default)s]")
    add(
        "--temperature",
        type=float,
        default=TEMPERATURE,
        help="0: always the likeliest [%(default)s]",
    )
    add("--context", type=int, default=CONTEXT, help="the recipe's `length` [%(default)s]")
    add("--seed", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
