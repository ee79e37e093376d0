"""Measured process of onnxruntime-genai: python genai.py FOLDER.

FOLDER holds model.onnx and a genai_config.json.
"""

import sys
from collections.abc import Iterator
from typing import Any

import onnxruntime_genai as og

from benchmarks.generate.protocol import peak_mb, serve, timed


def main(folder: str) -> None:
    """Load the model; answer requests."""
    model = og.Model(folder)

    def reply(prompt: list[int], count: int) -> Iterator[int]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(prompt)
        for _ in range(count):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def generate(prompt: list[int], count: int, **_: Any) -> dict[str, Any]:
        return timed(reply(prompt, count))

    serve({"generate": generate, "peak_mb": peak_mb})


if __name__ == "__main__":
    main(sys.argv[1])
