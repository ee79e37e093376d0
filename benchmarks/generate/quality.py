"""Imported decoders: how near to their source, how large, how fast?

    python -m benchmarks.generate.quality SOURCE --packages A.tar.gz,B.tar.gz [--rounds N]

SOURCE is the GGUF file or folder that the packages were imported from. Its weights are computed in
float32 by a plain forward pass, and each package token by token from its cache, over the beginnings
of English texts of this repository.

same         share of places with the same likeliest next token
divergence   mean Kullback-Leibler divergence from the source's next token, nats
perplexity   of the texts
decode       CPU milliseconds a token, by our loop with one thread; each round measures all packages
over_first   decode over the first package's in the same round
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generate.__main__ import Measurement
from benchmarks.generate.packages import Package, unpack
from benchmarks.harness import measure, options
from benchmarks.harness.measure import ROOT
from training.language import proof
from training.language.checkpoint import Checkpoint, DecoderSizes
from training.language.importing import read_source
from training.language.reference import decoder_logits, log_softmax

TEXTS = ("CHANGELOG.md", "README.md", "docs/architecture.md", "docs/training.md")
TOKENS = 256  # first ones of each text
PROMPT, COUNT = 64, 48  # tokens of a timed reply


def evaluate(checkpoint: Checkpoint, packages: Sequence[Package]) -> list[dict[str, Any]]:
    """Return results of the source, then of each package."""
    sizes = checkpoint.sizes
    if not isinstance(sizes, DecoderSizes):
        raise SystemExit("error: the source is no decoder")
    tokenizer = proof.tokenizer(checkpoint.assets)
    texts = [tokenizer.encode((ROOT / name).read_text()).ids[:TOKENS] for name in TEXTS]
    rows = [np.array(text, np.int64) for text in texts]
    original = [decoder_logits(sizes, checkpoint.weights, row) for row in rows]
    results: list[dict[str, Any]] = [{"perplexity": _perplexity(rows, original)}]
    for package in packages:
        measure.progress(package.name)
        session = proof.Cached((package.folder / "model.onnx").read_bytes(), sizes)
        rounded = [session.each(row) for row in rows]
        loss = proof.Loss.of(np.concatenate(original), np.concatenate(rounded))
        results.append(
            {
                "same": loss.agreement,
                "divergence": loss.divergence,
                "perplexity": _perplexity(rows, rounded),
            }
        )
    return results


def _perplexity(rows: Sequence[Any], logits: Sequence[Any]) -> float:
    losses = [
        -log_softmax(predicted[:-1].astype(np.float64))[np.arange(len(row) - 1), row[1:]]
        for row, predicted in zip(rows, logits, strict=True)
    ]
    return float(np.exp(np.concatenate(losses).mean()))


def decode_times(packages: Sequence[Package], rounds: int) -> list[list[float]]:
    """Return each package's CPU milliseconds a token, one number a round."""
    chosen = argparse.Namespace(threads=1)
    prompt = list(range(PROMPT))
    times: list[list[float]] = [[] for _ in packages]
    for number in range(rounds):
        measure.progress(f"round {number + 1} of {rounds}")
        with ExitStack() as stack:  # new processes: where memory lies makes a difference
            contenders = [
                (values, stack.enter_context(Measurement(package, chosen).start("ours")))
                for package, values in zip(packages, times, strict=True)
            ]
            for values, process in contenders[:: -1 if number % 2 else 1]:
                for _ in range(2):  # the first is a warm-up
                    reply = process.ask("generate", prompt=prompt, count=COUNT, forget=True)
                values.append(reply["rest_cpu_ms"] / (COUNT - 1))
    return times


def main() -> None:
    parser = options.make_parser("generate.quality", __doc__, rounds=6)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--packages", required=True, help="packages, with commas between them")
    chosen = parser.parse_args()
    paths = [Path(name) for name in chosen.packages.split(",")]
    checkpoint = read_source("hf" if chosen.source.is_dir() else "gguf", chosen.source, 8192)
    with tempfile.TemporaryDirectory() as folder:
        packages = [unpack(path, Path(folder)) for path in paths]
        source, *results = evaluate(checkpoint, packages)
        times = decode_times(packages, chosen.rounds)
    rows = [("", "same", "divergence", "perplexity", "MB", "decode, CPU ms", "over_first")]
    rows.append((chosen.source.name, "", "", f"{source['perplexity']:.2f}", "", "", ""))
    for path, result, values in zip(paths, results, times, strict=True):
        rows.append(
            (
                path.name,
                f"{result['same']:.1%}",
                f"{result['divergence']:.4f}",
                f"{result['perplexity']:.2f}",
                f"{path.stat().st_size / 1e6:.1f}",
                f"{statistics.median(values):.2f}",
                str(measure.ratios(values, times[0]).median),
            )
        )
    print(measure.table(rows))


if __name__ == "__main__":
    main()
