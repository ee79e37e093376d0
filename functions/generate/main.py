"""Lambda entry point for language models: read the environment, wire the adapters.

Everything is imported while Lambda starts the environment: most of a first request's time goes to
the files of its model (docs/decisions/0053-the-generate-function.md).
"""

import gc

# Until the end: collections would take 5 ms of the imports, which leave no garbage.
gc.disable()

import os

from functions.adapters.aws_http.environment import ServingEnvironment

environment = ServingEnvironment(os.environ)

from functions.adapters.lambda_size import models_bytes, threads_for
from functions.adapters.language.model import LanguageModel
from functions.core.language.ports import SCHEMA_OVERTIME
from functions.core.openai.service import LanguageService
from functions.generate.handler import GenerateHandler
from functions.generate.text_models import TextModels

models = TextModels(
    environment.blobs,
    LanguageModel.load,
    threads=threads_for(environment.size_mb),
    memory_bytes=models_bytes(environment.size_mb),
    directory=environment.scratch.path,
)


def end_if_starved(code: str) -> None:
    """End the environment unless its memory and processors are free.

    Raises:
        EndEnvironment: they are not.
    """
    from functions.runtime.context import EndEnvironment

    if code == SCHEMA_OVERTIME:
        raise EndEnvironment("this environment ends: the compilation of a JSON schema goes on")
    if not environment.has_memory(models.held_bytes()[0]):
        raise EndEnvironment("this environment ends, short of memory")


lambda_handler = GenerateHandler(
    LanguageService(environment.registry, environment.resolver, models),
    meter=environment.meter(lambda: init_s),
    gate=environment.gate,
    cors=environment.cors(),
    after_shortage=end_if_starved,
)
environment.preload(models)
gc.freeze()  # imports stay, so no collection has to look at them
gc.enable()
init_s: float = environment.init_s()
