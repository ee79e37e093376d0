"""Script that builds packages by onnxruntime-genai from folders of `export_language.py`.

    python tests/stress/exporters/build_genai.py FOLDER

Runs in the environment of the group `exporters` and imports nothing of this project. Where
weights are rounded to 4 bits, the answers become those of onnxruntime-genai itself.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoTokenizer


def build(folder: Path) -> None:
    """Run the builder as its documentation says; keep its package."""
    options = json.loads((folder / "builder.json").read_text())
    cache = folder / "cache"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
    command += ["-i", folder / "source", "-o", folder / "package", "-c", cache, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(cache, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    path = folder / "expected.json"
    answers = json.loads(path.read_text())
    # The builder writes the tokenizer anew, by a newer transformers.
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    answers["tokens"] = [tokenizer(text)["input_ids"] for text in answers["texts"]]
    if "int4" in options:
        count = len(answers["replies"][0]["tokens"])
        model = og.Model(str(folder / "package"))
        replies = [reply(model, prompt, count) for prompt in answers["prompts"]]
        answers["replies"] = replies
    path.write_text(json.dumps(answers))
    shutil.rmtree(folder / "source")


def reply(model: Any, prompt: Sequence[int], count: int) -> Mapping[str, Any]:
    """Continue a prompt greedily by onnxruntime-genai."""
    params = og.GeneratorParams(model)
    # Without a least length, random weights may end the reply at once.
    length = len(prompt) + count
    params.set_search_options(do_sample=False, min_length=length, max_length=max(length, 128))
    generator = og.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    tokens, scores = [], []
    for _ in range(count):
        logits = np.array(generator.get_logits(), np.float64).reshape(-1)
        scores.append(float(-np.log(np.exp(logits - logits.max()).sum())))
        tokens.append(int(logits.argmax()))
        generator.generate_next_token()
    own = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    if own != tokens:
        raise RuntimeError(f"onnxruntime-genai generates {own}, and the likeliest are {tokens}")
    return {"tokens": tokens, "logprobs": scores}


def main(target: Path) -> None:
    """Build all packages whose folders have a source."""
    for source in sorted(target.glob("*/source")):
        folder = source.parent
        if not (folder / "builder.json").exists():
            continue
        try:
            build(folder)
        except Exception as error:  # the others are still built; the caller reports it
            (folder / "failed.txt").write_text(f"{type(error).__name__}: {error}")
        print(folder.name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
