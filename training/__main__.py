"""Command line `python -m training`: train, publish, import, list recipes, submit jobs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

HELP = """python -m training COMMAND …

  train RECIPE   train here; with --on sagemaker or --on local-stack as a training job
                 (its options: job --help)
  publish FILE   describe an ONNX file that exists, prove that it loads, and upload it; also of a
                 TensorFlow SavedModel and of a Keras file, which are converted
  import-gguf FILE    make a package of a language model in llama.cpp's format
  import-bytes FILE   make a package of a model.onnx of the recipes gpt or embedder
  import-hf FOLDER    the same of safetensors with a tokenizer.json: decoders and encoders
  list           the recipes that come with this package
  show RECIPE    its hyperparameters with defaults, meaning, and what --tune tries
  job RECIPE     the same as train RECIPE --on sagemaker

COMMAND --help says more. A RECIPE is the name of a built-in one or a .py file of yours."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the training command named in `arguments`; return its exit status."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), "--help"]
    if command in ("-h", "--help"):
        print(HELP)
        return 0
    if command not in COMMANDS:
        names = ", ".join(COMMANDS)
        print(f"error: there is no command {command!r}; there are {names}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[command](rest[:-1])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


# Each command imports its own module: machines that submit jobs may have no torch.


def _train(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training train", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--on", choices=["here", "local-stack", "sagemaker"])
    options, rest = parser.parse_known_args(arguments)
    if options.on in ("local-stack", "sagemaker"):
        return _job([*rest, "--on", options.on])
    if "--dry-run" in rest and options.on is None:
        return _job(rest)
    from training import train

    return train.main(rest)


def _job(arguments: Sequence[str]) -> int:
    from training.sagemaker import cli

    return cli.main(arguments)


def _publish(arguments: Sequence[str]) -> int:
    from training import publish

    return publish.main(arguments)


def _import_gguf(arguments: Sequence[str]) -> int:
    from training.language import importing

    return importing.main("gguf", arguments)


def _import_hf(arguments: Sequence[str]) -> int:
    from training.language import importing

    return importing.main("hf", arguments)


def _import_bytes(arguments: Sequence[str]) -> int:
    from training.language import importing

    return importing.main("bytes", arguments)


def _list(arguments: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="python -m training list").parse_args(arguments)
    from training.recipe_loading import built_in, load

    for name in built_in():
        recipe = load(name)
        print(f"{name:<14} {recipe.task:<15} {recipe.description}")
    return 0


def _show(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training show", description="List a recipe's hyperparameters."
    )
    parser.add_argument("recipe", help="a built-in recipe (digits) or a .py file that defines one")
    options = parser.parse_args(arguments)
    from training.errors import TrainingError
    from training.hyperparameters import listed
    from training.recipe_loading import load

    try:
        recipe = load(options.recipe)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{recipe.name}: {recipe.task}. {recipe.description}")
    for entry in listed(recipe.hyperparameters):
        print(f"  {entry.name}={entry.default}  ({entry.kind})  {entry.meaning}".rstrip())
        if entry.name in recipe.search:
            print(f"      --tune tries {recipe.search[entry.name]}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "publish": _publish,
    "import-gguf": _import_gguf,
    "import-hf": _import_hf,
    "import-bytes": _import_bytes,
    "list": _list,
    "show": _show,
    "job": _job,
}

if __name__ == "__main__":
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun -m training train
        from training.fitting import distributed

        distributed.run_and_exit(main)
    sys.exit(main())
