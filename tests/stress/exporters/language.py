"""Compatibility test of language models as people's own tools export them.

Each package of `export_language.py` must become READY as the tool wrote it, and its tokens,
prompts, replies, vectors and scores must equal the tool's own. A package that cannot be served
must be rejected with the sentence in `REFUSED`.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from functions.adapters.language.model import LanguageModel
from functions.adapters.sandbox import ProcessSandbox
from functions.core.language.ports import Options
from functions.core.language.spec import LanguageSpec
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import State, Version
from functions.core.uploads import Upload
from tests.platform import Platform

ROOT = Path(__file__).parents[3]
OPTIMUM, EXPORTERS = (ROOT / f".venv-{name}/bin/python" for name in ("optimum", "exporters"))
EXPORT_S = 7200  # on a busy machine
KEY = "models/demo/model.tar.gz"
# Of log probabilities, vectors and scores; 8-bit inputs of 4-bit weights round differently
# where a prompt is read in other parts.
TOLERANCE = 2e-3
CACHE_BYTES = 64 << 20
# Packages that cannot be served, with a part of the sentence that says why.
REFUSED: Mapping[str, str] = {"optimum_bloom": "its longest context is unknown"}
# Contexts of packages whose graphs compute longer ones otherwise than the model does.
LIMITED: Mapping[str, int] = {
    "genai_mistral_fp32": 16,
    "genai_phi3_longrope_fp32": 4096,
    "genai_phi3_longrope_int4": 4096,
    "optimum_phi3_longrope": 4096,
}


def run(names: Sequence[str]) -> int:
    """Test models by the beginnings of their names; return the number of problems."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script("export_language.py", OPTIMUM, folder, *names)
        script("build_genai.py", EXPORTERS, folder)
        return report(folder, check)


def script(name: str, python: Path, *arguments: object) -> None:
    """Run a script of this folder in another environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, Path(__file__).with_name(name), *map(str, arguments)]
    subprocess.run(command, check=True, timeout=EXPORT_S, env=environment)


def report(folder: Path, check: Callable[[Path, ProcessSandbox, Path], str]) -> int:
    """Check each model of a folder, print the results, and count the problems."""
    sandbox, problems = ProcessSandbox(), 0
    for each in sorted(folder.iterdir()):
        with tempfile.TemporaryDirectory() as directory:
            problem = check(each, sandbox, Path(directory))
        print(f"{each.name}: {problem or 'as expected'}", flush=True)
        problems += bool(problem)
    return problems


def check(folder: Path, sandbox: ProcessSandbox, directory: Path) -> str:
    """Register an exported package and compare its answers; describe the problems, if any."""
    if (folder / "failed.txt").exists():
        return f"its exporter failed: {(folder / 'failed.txt').read_text()}"
    platform = Platform(directory, sandbox)
    version = register(platform, folder / "package")
    reason = version.reason
    refused = REFUSED.get(folder.name)
    if refused is not None:
        got = f"{version.state}: {reason.message if reason else ''}"
        return "" if reason is not None and refused in reason.message else got
    if version.state is not State.READY:
        assert reason is not None
        return f"{reason.code}: {reason.message}"
    if version.language is None:
        return f"READY, and no language model: {version.notes}"
    expected = json.loads((folder / "expected.json").read_text())
    model = load(platform, version, directory)
    limit = LIMITED.get(folder.name, expected["context"])
    if model.spec.context != limit:
        return f"the context is {model.spec.context}, not {limit}"
    return "; ".join(differences(model, expected))


def differences(model: LanguageModel, expected: Mapping[str, Any]) -> Iterator[str]:
    """Describe what a language model answers otherwise than the tool's own."""
    compare = {"decoder": _decoder, "encoder": _encoder, "reranker": _reranker}
    return compare[expected["kind"]](model, expected)


def register(platform: Platform, package: Path) -> Version:
    """Pack a folder by tar, as people do, and register it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "model.tar.gz"
        subprocess.run(["tar", "czf", archive, "-C", package, "."], check=True)
        object_version = platform.uploads.put("up", KEY, archive.read_bytes())
    version = platform.registration.register(Upload("up", KEY, object_version))
    assert version is not None
    return version


def load(platform: Platform, version: Version, directory: Path) -> LanguageModel:
    """Load a READY language model from the blobs of its version."""
    paths = {}
    for blob in version.files + version.assets:
        paths[blob.name] = directory / blob.name
        paths[blob.name].parent.mkdir(parents=True, exist_ok=True)
        paths[blob.name].write_bytes(platform.blobs.content[blob.key])
    paths["model.onnx"] = paths[version.files[0].name]
    spec = LanguageSpec.from_record(version.language or {})
    return LanguageModel.load(paths, spec, Plan.from_record(version.plan), 1, CACHE_BYTES)


def _decoder(model: LanguageModel, expected: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts(model, expected)
    if expected["eos"] not in model.spec.eos:
        yield f"replies end by {model.spec.eos}, not by {expected['eos']}"
    if expected["chat"] is not None:
        prompt = model.template.render(expected["messages"]) if model.template else None
        if prompt != expected["chat"]:
            yield f"chat: {prompt!r} instead of {expected['chat']!r}"
    for prompt, own in zip(expected["prompts"], expected["replies"], strict=True):
        if len(prompt) + len(own["tokens"]) > model.spec.context:
            continue
        tokens, scores = _reply(model, prompt, len(own["tokens"]))
        if tokens != own["tokens"]:
            yield f"{len(prompt)} tokens: {tokens} instead of {own['tokens']}"
        else:
            yield from _near(f"{len(prompt)} tokens: log probabilities", scores, own["logprobs"])


def _reply(
    model: LanguageModel, prompt: Sequence[int], count: int
) -> tuple[list[int], list[float]]:
    options = Options(max_tokens=count, temperature=0.0, ignore_eos=True, logprobs=0)
    pieces = list(model.generate(prompt, options, deadline=math.inf))
    tokens = [token for piece in pieces for token in piece.tokens]
    return tokens, [score.logprob for piece in pieces for score in piece.scores]


def _encoder(model: LanguageModel, expected: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts(model, expected)
    for rows in _batches(model, expected["tokens"]):
        for text, vector, own in zip(expected["texts"], rows, expected["vectors"], strict=True):
            yield from _near(repr(text[:20]), vector, own)


def _reranker(model: LanguageModel, expected: Mapping[str, Any]) -> Iterator[str]:
    if not model.spec.reranker:
        yield "it is no reranker"
        return
    tokens = [model.tokenizer.encode_pair(*pair) for pair in expected["pairs"]]
    if tokens != expected["tokens"]:
        yield f"pair: tokens {tokens[0]} instead of {expected['tokens'][0]}"
    for rows in _batches(model, tokens):
        yield from _near("scores", [row[0] for row in rows], expected["scores"])


def _batches(
    model: LanguageModel, tokens: Sequence[Sequence[int]]
) -> Iterator[list[Sequence[float]]]:
    """Yield the vectors of texts sent at once, and one by one; try the longest text, too."""
    yield model.embed(tokens, deadline=math.inf)
    longest = (list(tokens[0]) * model.spec.context)[: model.spec.context]
    model.embed([longest], deadline=math.inf)
    yield [model.embed([text], deadline=math.inf)[0] for text in tokens]


def _texts(model: LanguageModel, expected: Mapping[str, Any]) -> Iterator[str]:
    for text, own in zip(expected["texts"], expected["tokens"], strict=True):
        tokens = model.tokenizer.encode(text)
        if tokens != own:
            yield f"{text!r}: tokens {tokens} instead of {own}"


def _near(what: str, values: Sequence[float], own: Sequence[float]) -> Iterator[str]:
    if len(values) != len(own):
        yield f"{what}: {len(values)} numbers instead of {len(own)}"
        return
    off = max(abs(value - answer) for value, answer in zip(values, own, strict=True))
    if not off <= TOLERANCE * max(1.0, *map(abs, own)):
        yield f"{what}: differs by {off:.2g}"
