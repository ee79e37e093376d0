"""Import language models from GGUF files and Hugging Face's folders.

python -m training import-gguf model.gguf --out model.tar.gz
python -m training import-hf FOLDER --out model.tar.gz
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from training.errors import InvalidModelFile, TrainingError
from training.language import byte_models, package, proof
from training.language.checkpoint import Array, Checkpoint, DecoderSizes, EncoderSizes, Weights
from training.language.graph import decoder as decoders
from training.language.graph import encoder as encoders
from training.language.reference import decoder_logits

CONTEXT = 8192  # tokens; more costs memory that a function seldom has


def main(kind: str, arguments: Sequence[str]) -> int:
    """Import a model from the command line; return the exit status.

    `kind` is "gguf" or "bytes" for a file, "hf" for a folder.
    """
    options = _parser(kind).parse_args(arguments)
    try:
        import_model(kind, options.source, options.out, options.context, options.bits)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser(kind: str) -> argparse.ArgumentParser:
    source = {
        "gguf": "a GGUF file",
        "hf": "a folder with safetensors and tokenizer.json",
        "bytes": "a model.onnx of the recipes gpt or embedder",
    }[kind]
    parser = argparse.ArgumentParser(
        prog=f"python -m training import-{kind}", description=f"Make a package of {source}."
    )
    add = parser.add_argument
    add("source", type=Path, metavar="FOLDER" if kind == "hf" else "FILE")
    add("--out", type=Path, default=Path("model.tar.gz"), help="the package [%(default)s]")
    add(
        "--context",
        type=int,
        default=CONTEXT,
        help="most tokens of prompt and reply together [%(default)s, or the model's if less]",
    )
    add(
        "--bits",
        type=int,
        choices=(4, 8),
        default=4,
        help="of a decoder's weights; 8: nearer to the original, 1.5 times as large [%(default)s]",
    )
    return parser


def import_model(kind: str, source: Path, out: Path, context: int = CONTEXT, bits: int = 4) -> None:
    """Read a model, write its package, print the proof.

    Raises:
        InvalidModelFile: the model cannot be read, or is of an unknown kind.
        ExportFailed: the graph does not compute what the model does, or is too large.
    """
    if context < 1:
        raise InvalidModelFile(f"--context {context}: it takes one token at least")
    if not source.exists():
        raise InvalidModelFile(f"{source} does not exist")
    if kind == "bytes":
        model, texts = byte_models.read(source, context)
        package.write(out, model, texts)
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; its tokens are bytes", flush=True)
        return
    checkpoint = read_source(kind, source, context)
    sizes = checkpoint.sizes
    if isinstance(sizes, DecoderSizes):
        model, lines = _decoder(checkpoint, sizes, bits)
    else:
        model, lines = _encoder(checkpoint, sizes)
    package.write(out, model, checkpoint.assets)
    for line in lines:
        print(line, flush=True)
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB; {_summary(checkpoint)}", flush=True)


def read_source(kind: str, source: Path, context: int) -> Checkpoint:
    """Read a GGUF file ("gguf") or a folder ("hf").

    Raises:
        InvalidModelFile: it cannot be read, or a package of the group import is missing. Weights
            raise it, too: when they are read, and have values that are not finite.
    """
    try:
        if kind == "gguf":
            from training.language.sources import gguf_file

            checkpoint = gguf_file.read(source, context)
        else:
            from training.language.sources import hf_folder

            checkpoint = hf_folder.read(source, context)
    except ModuleNotFoundError as error:
        raise InvalidModelFile(
            f"the package {error.name} is missing: python -m pip install --group import"
        ) from error
    return replace(checkpoint, weights=_finite(checkpoint.weights))


def _finite(weights: Weights) -> Weights:
    def checked(name: str) -> Array:
        values = weights(name)
        if not np.isfinite(values).all():
            raise InvalidModelFile(f"tensor {name} has values that are not finite (NaN, infinity)")
        return values

    return checked


def _decoder(
    checkpoint: Checkpoint, sizes: DecoderSizes, bits: int
) -> tuple[onnx.ModelProto, list[str]]:
    tokenizer = proof.tokenizer(checkpoint.assets)
    tokens = tokenizer.encode(proof.TEXT).ids
    proof.check_tokens(tokens, sizes.vocabulary)
    row = np.array(tokens, np.int64)[: sizes.context]
    peaks: list[float] = []
    original = decoder_logits(sizes, checkpoint.weights, row, peaks)
    outlying = decoders.outlying_layers(peaks)
    decoder = decoders.quantise(sizes, checkpoint.weights, bits, outlying)
    model = decoders.decoder_graph(decoder)
    return model, proof.prove_decoder(decoder, model, original, row)


def _encoder(checkpoint: Checkpoint, sizes: EncoderSizes) -> tuple[onnx.ModelProto, list[str]]:
    tokenizer = proof.tokenizer(checkpoint.assets)
    vocabulary = len(checkpoint.weights("embeddings.word_embeddings.weight"))
    proof.check_tokens(tokenizer.encode(proof.TEXT).ids, vocabulary)
    model = encoders.encoder_graph(sizes, checkpoint.weights)
    return model, proof.prove_encoder(sizes, model, checkpoint.weights, tokenizer)


def _summary(checkpoint: Checkpoint) -> str:
    sizes = checkpoint.sizes
    if isinstance(sizes, DecoderSizes):
        template = "chat_template.jinja" in checkpoint.assets
        use = "chat and completions" if template else "completions (it has no chat template)"
        cache = 8 * sizes.layers * sizes.kv_heads * sizes.head_size / 1000
        return (
            f"{checkpoint.architecture}, {sizes.layers} layers, context {sizes.context} tokens of "
            f"{cache:.0f} KB each, for {use}"
        )
    use = "reranking" if sizes.pooling == "score" else f"embeddings of {sizes.width} numbers"
    return f"{checkpoint.architecture}, {sizes.layers} layers, {sizes.context} tokens, for {use}"
