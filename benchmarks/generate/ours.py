"""Measured process of our loop: python ours.py FOLDER SPEC CACHE_MB THREADS.

FOLDER holds a package's files; SPEC is a LanguageSpec's record as JSON.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.generate.protocol import peak_mb, serve, timed
from functions.adapters.language.model import LanguageModel
from functions.core.language.ports import Options
from functions.core.language.spec import LanguageSpec
from functions.core.registry.load_plan import Plan

SECONDS = 600.0  # limit of a reply
MB = 1024 * 1024


def main(folder: str, spec: str, cache_mb: str, threads: str) -> None:
    """Load the model; answer requests."""
    paths = {path.name: path for path in Path(folder).iterdir()}
    plan = Plan(threads=int(threads))
    facts = LanguageSpec.from_record(json.loads(spec))
    model = LanguageModel.load(paths, facts, plan, int(threads), int(cache_mb) * MB)

    def reply(prompt: list[int], options: Options) -> Iterator[int]:
        deadline = time.monotonic() + SECONDS
        for piece in model.generate(prompt, options, deadline=deadline):
            yield from piece.tokens

    def generate(
        prompt: list[int], count: int, forget: bool = False, **sampling: Any
    ) -> dict[str, Any]:
        if forget and model._generator is not None:
            model._generator.prefixes.clear()
        chosen = {"temperature": 0.0, "ignore_eos": True} | sampling
        return timed(reply(prompt, Options(count, **chosen)))

    def embed(texts: list[list[int]], together: bool) -> dict[str, float]:
        started = time.perf_counter(), time.process_time()
        for part in [texts] if together else [[text] for text in texts]:
            model.embed(part, deadline=time.monotonic() + SECONDS)
        ended = time.perf_counter(), time.process_time()
        wall, cpu = (end - start for start, end in zip(started, ended, strict=True))
        return {"ms": wall * 1000, "cpu_ms": cpu * 1000}

    serve({"generate": generate, "embed": embed, "peak_mb": peak_mb})


if __name__ == "__main__":
    main(*sys.argv[1:])
