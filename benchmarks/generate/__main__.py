"""Text generation: tokens over onnxruntime-genai, memory's bandwidth, prefixes, embeddings.

    python -m benchmarks.generate [--packages A.tar.gz,B.tar.gz] [--rounds N] [--threads N]
                                  [--genai .venv-genai/bin/python] [--no-save]

Without `--packages`, tiny models of random weights are measured. `make .venv-genai/.done` makes the
environment of onnxruntime-genai. It runs the same graph as our loop, in a process of its own, and
has to give the same greedy tokens. Times are CPU times, so that other processes disturb them
little, with one thread. Each round measures all, and ratios are of the same round.

decode         milliseconds a token, after the first, of 64 (greedy) after 64
prefill        milliseconds a token of a prompt of 512, to its first token
sampled        as decode, with temperature 0.8 and top_p 0.95, over greedy
over_floor     decode's tokens a second over what memory's bandwidth allows: one thread's bytes
               a second, over the bytes of weights, keys and values that a token reads
second_turn    time to the first token of a second turn with 500 tokens of history, over the
               same without the prefix cache
memory         peak of the process, over weights, keys and values
cold_start     milliseconds of wall time from the process's start to its first token, with a local
               file and without other imports
embeddings     texts a second, 64 of 4 to 60 tokens in batches, over one after another
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from benchmarks.generate.bandwidth import Bandwidth
from benchmarks.generate.packages import Package, unpack, unpack_bytes
from benchmarks.harness import measure, options
from benchmarks.harness.measure import ROOT, Spread
from functions.core.language.spec import Kind
from tests.language_models import decoder_package, encoder_package

OURS, GENAI = "ours", "genai"
MB = 1024 * 1024
CACHE_MB = 256
COUNT, PROMPT, LONG_PROMPT = 64, 64, 512  # tokens
HISTORY, QUESTION, REPLY = 500, 20, 16  # tokens of a conversation
TEXTS, TEXT_MIN, TEXT_MAX = 64, 4, 60  # texts to embed, tokens of each
TEXT = ROOT / "CHANGELOG.md"  # English, of which prompts are parts
GENAI_PYTHON = ROOT / ".venv-genai/bin/python"


class Process:
    """Measured process that answers requests; `spec` is given to ours alone."""

    def __init__(self, python: Path | str, script: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.generate.{script}", *words],
            cwd=ROOT,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a request; return its answer.

        Raises:
            RuntimeError: the process ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the measured process has no pipes")
        print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"the measured process ended with {self._process.wait()}")


class Measurement:
    """Measurements of one package, with a process for each contender."""

    def __init__(self, package: Package, chosen: argparse.Namespace) -> None:
        self._package = package
        self._chosen = chosen
        self._random = random.Random(0)  # noqa: S311 (no secret)
        self._bandwidth = Bandwidth()
        tokenizer = Tokenizer.from_file(str(package.folder / "tokenizer.json"))
        text = TEXT.read_text()
        self._text: list[int] = tokenizer.encode(text, add_special_tokens=False).ids

    def start(self, contender: str) -> Process:
        """Start a contender's process."""
        folder, threads = str(self._package.folder), str(self._chosen.threads)
        if contender == GENAI:
            self._package.write_genai_config(self._chosen.threads)
            return Process(self._chosen.genai, GENAI, folder)
        spec = json.dumps(self._package.spec.to_record())
        return Process(sys.executable, OURS, folder, spec, str(CACHE_MB), threads)

    def decoder(self) -> list[dict[str, Any]]:
        """Return the results of a decoder."""
        contenders = [OURS] + ([GENAI] if Path(self._chosen.genai).exists() else [])
        rounds = []
        for number in range(-1, self._chosen.rounds):
            measure.progress(f"{self._package.name}: round {number + 1}")
            result = self._round(contenders if number % 2 else contenders[::-1])
            if number >= 0:
                rounds.append(result)
        return self._entries(rounds, contenders)

    def encoder(self) -> list[dict[str, Any]]:
        """Return the results of an encoder."""
        ratios, rates = [], []
        with self.start(OURS) as ours:
            for number in range(-1, self._chosen.rounds):
                measure.progress(f"{self._package.name}: round {number + 1}")
                lengths = [self._random.randint(TEXT_MIN, TEXT_MAX) for _ in range(TEXTS)]
                texts = [self._tokens(length) for length in lengths]
                alone = ours.ask("embed", texts=texts, together=False)
                batched = ours.ask("embed", texts=texts, together=True)
                if number >= 0:
                    ratios.append(alone["cpu_ms"] / batched["cpu_ms"])
                    rates.append(TEXTS / batched["cpu_ms"] * 1000)
        entry = self._entry("embeddings a CPU second", OURS, rates, 1)
        return [entry | {"over_single": Spread.from_values(ratios).to_record()}]

    def _round(self, contenders: Sequence[str]) -> dict[Any, Any]:
        """Measure everything once, in new processes: where memory lies makes a difference."""
        prompt, long = self._tokens(PROMPT), self._tokens(LONG_PROMPT)
        result: dict[Any, Any] = {}
        replies = set()
        with ExitStack() as stack:
            processes = {}
            for name in contenders:
                started = time.perf_counter()
                process = processes[name] = stack.enter_context(self.start(name))
                process.ask("generate", prompt=prompt, count=1)
                result[name, "start"] = (time.perf_counter() - started) * 1000
            for name, process in processes.items():
                reply = process.ask("generate", prompt=prompt, count=COUNT, forget=True)
                replies.add(tuple(reply["tokens"]))
                result[name, "decode"] = reply["rest_cpu_ms"] / (COUNT - 1)
                reply = process.ask("generate", prompt=long, count=1, forget=True)
                result[name, "prefill"] = reply["first_cpu_ms"] / LONG_PROMPT
            result["bandwidth"] = self._bandwidth.bytes_per_cpu_second()
            result |= self._round_of_ours(processes[OURS], prompt)
        result["unlike_genai"] = len(replies) > 1
        return result

    def _round_of_ours(self, ours: Process, prompt: Sequence[int]) -> dict[Any, Any]:
        sampling = {"temperature": 0.8, "top_p": 0.95, "seed": 1}
        reply = ours.ask("generate", prompt=prompt, count=COUNT, forget=True, **sampling)
        sampled = reply["rest_cpu_ms"] / (COUNT - 1)
        history = self._tokens(HISTORY - REPLY)
        history += ours.ask("generate", prompt=history, count=REPLY, forget=True)["tokens"]
        turn = history + self._tokens(QUESTION)
        cached = ours.ask("generate", prompt=turn, count=1)
        whole = ours.ask("generate", prompt=turn, count=1, forget=True)
        return {
            (OURS, "sampled"): sampled,
            "second_turn": cached["first_cpu_ms"] / whole["first_cpu_ms"],
            "unlike_uncached": cached["tokens"] != whole["tokens"],
            "peak_mb": ours.ask("peak_mb"),
        }

    def _entries(
        self, rounds: Sequence[Mapping[Any, Any]], contenders: Sequence[str]
    ) -> list[dict[str, Any]]:
        package, spec = self._package, self._package.spec
        entries = []
        labels = {
            "decode": "decode, CPU ms a token",
            "prefill": "prefill, CPU ms a token",
            "start": "cold start to the first token, ms",
        }
        for name in contenders:
            for part, label in labels.items():
                values = [each[name, part] for each in rounds]
                entry = self._entry(label, name, values, 3)
                if name == OURS and GENAI in contenders:
                    rival = [each[GENAI, part] for each in rounds]
                    entry["speed_over_genai"] = measure.ratios(rival, values).to_record()
                entries.append(entry)
        cache_bytes = spec.cache_bytes_per_token * (PROMPT + COUNT // 2)
        read = package.bytes_a_token + cache_bytes
        speed = [read / each["bandwidth"] * 1000 / each[OURS, "decode"] for each in rounds]
        sampled = [each[OURS, "sampled"] / each[OURS, "decode"] for each in rounds]
        turns = [each["second_turn"] for each in rounds]
        gigabytes = [each["bandwidth"] / 1e9 for each in rounds]
        return [
            *entries,
            self._entry("speed over the bandwidth's floor", OURS, speed, 3),
            self._entry("GB a CPU second, read by one thread", "memory", gigabytes, 1),
            self._entry("sampled over greedy", OURS, sampled, 3),
            self._entry("second turn over no prefix cache", OURS, turns, 3)
            | {
                name: sum(each[name] for each in rounds)
                for name in ("unlike_genai", "unlike_uncached")  # rounds with other greedy tokens
            },
            self._memory_entry([each["peak_mb"] for each in rounds]),
        ]

    def _memory_entry(self, peaks_mb: Sequence[float]) -> dict[str, Any]:
        spec = self._package.spec
        tokens = LONG_PROMPT + 64  # the longest sequence, rounded up as the cache is
        cache_mb = spec.cache_bytes_per_token * tokens / MB
        weights_mb = self._package.weights_bytes / MB
        over = [peak_mb / (weights_mb + cache_mb) for peak_mb in peaks_mb]
        return self._entry("peak memory, MB", OURS, peaks_mb, 1) | {
            "weights_mb": round(weights_mb, 1),
            "cache_mb": round(cache_mb, 1),
            "over_weights_and_cache": Spread.from_values(over, 2).to_record(),
        }

    def _entry(
        self, label: str, contender: str, values: Sequence[float], digits: int
    ) -> dict[str, Any]:
        spread = Spread.from_values(values, digits)
        return measure.row(spread, model=self._package.name, what=label, contender=contender)

    def _tokens(self, count: int) -> list[int]:
        """Return tokens of English text, from a random place."""
        at = self._random.randrange(len(self._text) - count)
        return self._text[at : at + count]


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format results as a text table."""
    plain = {"model", "what", "contender", "n", "median", "p90"}
    rows: list[Sequence[str]] = [("model", "measured", "contender", "median", "p90", "more")]
    for entry in entries:
        more = [
            f"{name} {value['median'] if isinstance(value, dict) else value}"
            for name, value in entry.items()
            if name not in plain
        ]
        cells = (entry["what"], entry["contender"], str(entry["median"]), str(entry["p90"]))
        rows.append((entry["model"], *cells, ", ".join(more)))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the benchmark."""
    parser = options.make_parser("generate", __doc__, rounds=10)
    parser.add_argument("--packages", type=lambda text: [Path(part) for part in text.split(",")])
    parser.add_argument("--threads", type=options.positive, default=1)
    parser.add_argument("--genai", default=str(GENAI_PYTHON), help="Python that has it")
    return parser.parse_args(words)


def main() -> None:
    chosen = arguments()
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.packages:
            packages = [unpack(path, folder) for path in chosen.packages]
        else:
            made = {"tiny-decoder": decoder_package(), "tiny-encoder": encoder_package()}
            packages = [unpack_bytes(name, data, folder) for name, data in made.items()]
        for package in packages:
            measurement = Measurement(package, chosen)
            decodes = package.spec.kind is Kind.DECODER
            entries += measurement.decoder() if decodes else measurement.encoder()
    print(table(entries))
    line = measure.result_line("generate", "see what", chosen.rounds, entries)
    measure.finish(line | {"threads": chosen.threads}, chosen.save)


if __name__ == "__main__":
    main()
