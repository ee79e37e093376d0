"""Text from a served language model: python -m training.generate http://127.0.0.1:8080/live/v2/models/gpt "The for"

    from training.generate import Served, generate
    with Served("http://127.0.0.1:8080/live/v2/models/gpt") as model:
        print(b"".join(generate(model, model.past, b"The for statement", temperature=0.5)))

The service remembers nothing between two requests: keys and values of what the model has read come back as `present`
and go in again as `past`, so that each request reads one byte only. Their size grows with the text.
"""

from __future__ import annotations

import argparse
import codecs
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from training.recipe import Arrays, Run

LENGTH, TEMPERATURE, CONTEXT = 200, 0.5, 128


def generate(
    ask: Run,
    past: NDArray[np.float32],
    prompt: bytes,
    *,
    length: int = LENGTH,
    temperature: float = TEMPERATURE,
    seed: int | None = None,
    context: int = CONTEXT,
    cached: bool = True,
) -> Iterator[bytes]:
    """The `length` bytes that follow `prompt`, one at a time.

    `ask` takes `tokens` (1, length) and `past`, and answers `logits` and `present`; the `past` given here is the empty
    one. At temperature 0 the likeliest byte follows, above it one drawn by its chances, the more evenly the higher.
    `context` is what the network learned to read at once: of a longer text, the last half of it is read anew, and it
    goes on from there. Not `cached`, all of that is read again for every byte: the same text, slower.

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
        answer = ask({"tokens": np.array([text[read:]], np.int64), "past": state})
        read, state = len(text), answer["present"]
        text.append(_drawn(answer["logits"][0, -1], temperature, generator))
        yield bytes(text[-1:])


def _drawn(logits: NDArray[np.float32], temperature: float, generator: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    chances = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return int(generator.choice(len(chances), p=chances / chances.sum()))


class Served:
    """A decoder over HTTP, in binary both ways. `past` is the empty one of one text."""

    def __init__(self, url: str) -> None:
        """`url` is that of the model or of one of its versions, …/v2/models/gpt/versions/3.

        Raises:
            ValueError: it is none, or the model has no cache.
            ConnectionError: nobody answers there, or an error; so does asking.
        """
        import tritonclient.http as triton

        found = re.fullmatch(r"(https?)://(.+)/v2/models/([^/]+)(?:/versions/([^/]+))?/?", url)
        if found is None:
            raise ValueError(
                f"{url} is no model's URL: http(s)://HOST[/STAGE]/v2/models/NAME[/versions/VERSION]"
            )
        scheme, base, self._name, version = found.groups()
        self._version = version or ""
        self._triton: Any = triton
        self._client: Any = triton.InferenceServerClient(base, ssl=scheme == "https")
        told = self._asked(self._client.get_model_metadata, self._name, self._version)
        inputs = {one["name"]: one["shape"] for one in told["inputs"]}
        if "past" not in inputs:
            raise ValueError(f"{self._name} has no input 'past' but {', '.join(inputs)}")
        stacks, _, heads, _, size = inputs["past"]
        self.past = np.zeros((stacks, 1, heads, 0, size), np.float32)

    def __call__(self, inputs: Arrays) -> Arrays:
        tensors = []
        for name, values in inputs.items():
            datatype = "INT64" if values.dtype == np.int64 else "FP32"
            tensor = self._triton.InferInput(name, list(values.shape), datatype)
            tensors.append(tensor.set_data_from_numpy(np.ascontiguousarray(values)))
        answer = self._asked(self._client.infer, self._name, tensors, self._version)
        return {name: answer.as_numpy(name) for name in ("logits", "present")}

    def _asked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._triton.InferenceServerException as error:
            raise ConnectionError(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._client.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.generate", description="Let a served model write on."
    )
    parser.add_argument("url", help="http://HOST[/STAGE]/v2/models/NAME[/versions/VERSION]")
    parser.add_argument("prompt")
    parser.add_argument("--length", type=int, default=LENGTH, help="bytes [%(default)s]")
    parser.add_argument(
        "--temperature",
        type=float,
        default=TEMPERATURE,
        help="0: always the likeliest [%(default)s]",
    )
    parser.add_argument(
        "--context", type=int, default=CONTEXT, help="the recipe's `length` [%(default)s]"
    )
    parser.add_argument("--seed", type=int)
    options = parser.parse_args(arguments)
    settings = {
        "length": options.length,
        "temperature": options.temperature,
        "context": options.context,
    }
    try:
        with Served(options.url) as model:
            written = generate(
                model, model.past, options.prompt.encode(), seed=options.seed, **settings
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


if __name__ == "__main__":
    sys.exit(main())
