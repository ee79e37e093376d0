"""Compatibility test of `import-hf` and `import-gguf` with what other tools write.

Each folder of `save_checkpoints.py` is read and computed as transformers does, and its package
becomes READY, with the same tokens, end tokens and chat; or it is refused by the words in
`REFUSED`. Packages of the GGUF files of `save_sentencepiece.py` make SentencePiece's tokens.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State, Version
from functions.core.uploads import Upload
from tests.platform import Platform
from tests.stress.exporters import language
from training.errors import TrainingError
from training.language import importing
from training.language.checkpoint import DecoderSizes
from training.language.reference import decoder_logits
from training.language.sources import hf_folder

TOLERANCE = 1e-4  # share of the largest logit
# Models that import-hf does not know, by the word that says why.
REFUSED = {
    "llama_rope_yarn": "rope scaling 'yarn'",
    "llama_rope_dynamic": "rope scaling 'dynamic'",
    "llama_attention_bias": "self_attn.o_proj.bias",
    "llama_mlp_bias": "mlp.down_proj.bias",
    "llama_gelu": "hidden_act",
    "qwen2_yarn": "rope scaling 'yarn'",
    "bert_two_labels": "has 2 labels",
    "distilbert_rerank": "only BERT and RoBERTa rerankers",
    "mpnet": "model_type 'mpnet'",
}


def run() -> int:
    """Test folders of transformers 4 and 5; return the number of problems."""
    problems = 0
    for python, names in ((language.OPTIMUM, ()), (language.EXPORTERS, ("llama", "qwen2"))):
        with tempfile.TemporaryDirectory() as folder:
            language.script("save_checkpoints.py", python, folder, *names)
            problems += language.report(Path(folder), check)
    with tempfile.TemporaryDirectory() as folder:
        language.script("save_sentencepiece.py", language.OPTIMUM, folder)
        return problems + language.report(Path(folder), check_sentencepiece)


def check_sentencepiece(folder: Path, sandbox: ProcessSandbox, directory: Path) -> str:
    """Import a GGUF file and compare its tokenizer; describe the problems, if any."""
    package = directory / "model.tar.gz"
    importing.import_model("gguf", folder / "model.gguf", package)
    platform = Platform(directory, sandbox)
    version = _register(platform, package)
    if version.state is not State.READY:
        return f"its package is rejected: {version.reason}"
    tokenizer = language.load(platform, version, directory).tokenizer
    expected = json.loads((folder / "expected.json").read_text())
    names = ("texts", "tokens", "decoded")
    problems = []
    for text, own, decoded in zip(*(expected[name] for name in names), strict=True):
        tokens = tokenizer.encode(text, special=False)
        if tokens != own:
            problems.append(f"{text!r}: {tokens} instead of {own}")
        elif tokenizer.decode(tokens) != decoded:
            problems.append(f"{text!r}: decoded to {tokenizer.decode(tokens)!r}, not {decoded!r}")
    return "; ".join(problems[:3])


def check(folder: Path, sandbox: ProcessSandbox, directory: Path) -> str:
    """Import a saved model and compare it; describe the problems, if any."""
    if (folder / "failed.txt").exists():
        return f"it could not be saved: {(folder / 'failed.txt').read_text()}"
    package, refused = directory / "model.tar.gz", REFUSED.get(folder.name)
    try:
        importing.import_model("hf", folder / "model", package)
    except TrainingError as error:
        return "" if refused and refused in str(error) else f"refused: {error}"
    if refused:
        return "it is imported"
    expected = json.loads((folder / "expected.json").read_text())
    return "; ".join(_differences(folder, package, expected, Platform(directory, sandbox)))


def _register(platform: Platform, package: Path) -> Version:
    object_version = platform.uploads.put("up", language.KEY, package.read_bytes())
    version = platform.registration.register(Upload("up", language.KEY, object_version))
    assert version is not None
    return version


def _differences(
    folder: Path, package: Path, expected: Mapping[str, Any], platform: Platform
) -> Iterator[str]:
    version = _register(platform, package)
    if version.state is not State.READY:
        yield f"its package is rejected: {version.reason}"
        return
    model = language.load(platform, version, package.parent)
    if expected["kind"] != "decoder":
        yield from language.differences(model, expected)
        return
    yield from _logits(folder / "model", expected)
    if not set(expected["eos"]) <= set(model.spec.eos):
        yield f"replies end by {model.spec.eos}, not by {expected['eos']}"
    prompt = model.template.render(expected["messages"]) if model.template else None
    if prompt != expected["chat"]:
        yield f"chat: {prompt!r} instead of {expected['chat']!r}"


def _logits(folder: Path, expected: Mapping[str, Any]) -> Iterator[str]:
    """Compare a plain forward pass, which the import compares its graph with."""
    checkpoint = hf_folder.read(folder, importing.CONTEXT)
    assert isinstance(checkpoint.sizes, DecoderSizes)
    count = min(len(expected["tokens"]), checkpoint.sizes.context)
    tokens = np.array(expected["tokens"][:count])
    own = np.array(expected["logits"][:count])
    logits = decoder_logits(checkpoint.sizes, checkpoint.weights, tokens)
    off = float(np.abs(logits - own).max() / np.abs(own).max())
    if not off <= TOLERANCE:
        yield f"logits differ by {off:.1e} of the largest one"
