"""Lambda entry point for inference: read the environment, wire the adapters.

Only what the first AWS calls need is imported here; the rest is imported by `make()`. See
prefetch.py.
"""

import gc

# Until `make` ends: collections would take 5 ms of the imports, which leave no garbage.
gc.disable()

import os
from typing import TYPE_CHECKING, Any

from functions.adapters.aws_http.environment import ON_DEMAND, SNAP_START, ServingEnvironment

environment = ServingEnvironment(os.environ)

from contextlib import suppress

from functions.adapters.lambda_size import MB_PER_CPU, models_bytes, threads_for
from functions.adapters.lazy_modules import defer_imports_of_orjson
from functions.adapters.onnx.lazy import LazyRuntime
from functions.core.serving.model_cache import ModelCache
from functions.infer.prefetch import Handler, PrefetchingHandler

if TYPE_CHECKING:
    from functions.infer.exchange import Exchange

size_mb, initialization = environment.size_mb, environment.initialization
resolver, gate = environment.resolver, environment.gate
runtime = LazyRuntime(threads_for(size_mb))
models = ModelCache(
    environment.blobs,
    runtime,
    memory_bytes=models_bytes(size_mb),
    directory=environment.scratch.path,
)


def has_its_memory() -> bool:
    """Return True if only the loaded models and the process take memory."""
    return environment.has_memory(models.held_bytes()[0])


def check_memory() -> None:
    """End the Lambda environment unless its memory was freed.

    Raises:
        EndEnvironment: it was not.
    """
    from functions.runtime.context import EndEnvironment  # there under our runtime client

    if not has_its_memory():
        raise EndEnvironment("this environment ends, short of memory")


def end_if_starved(reply: dict[str, Any] | bytes, context: Any) -> None:
    """End the Lambda environment after its reply if memory was not freed.

    Our runtime client posts the reply first. AWS's cannot act after it: then the reply is posted
    here.
    """
    if hasattr(context, "after"):
        context.after(check_memory)
        return
    runtime_api = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if not runtime_api or has_its_memory():
        return
    with suppress(OSError, MemoryError):  # this environment goes on, and tries again another time
        import logging  # neither module at the top: a cold start does not need them

        from functions.adapters.last_answer import answer_and_exit

        logging.getLogger(__name__).warning("this environment ends, short of memory")
        answer_and_exit(runtime_api, reply, context.aws_request_id)


def make() -> Handler:
    """Import the remaining modules and return the inference handler."""
    defer_imports_of_orjson()
    runtime.import_runtime()
    from functions.core.serving.service import InferenceService
    from functions.core.serving.statistics import Statistics
    from functions.infer.handler import InferHandler

    meter = environment.meter(lambda: init_s)

    def run_copy(exchange: "Exchange", context: Any) -> None:
        """Run a request's copy on its shadow version, after the reply."""
        from functions.infer import shadow  # few aliases have one

        if not shadow.run_copy(exchange, context, models, meter.count_shadow):
            context.after(check_memory)

    statistics = Statistics(environment.table, meter)
    handler = InferHandler(
        InferenceService(environment.registry, resolver, models, statistics),
        meter=meter,
        gate=gate,
        cors=environment.cors(),
        sample_rate=float(os.environ.get("LOG_SAMPLE_RATE", "1")),
        model_metrics=int(os.environ.get("MODEL_METRICS", "0")),
        after_shortage=end_if_starved,
        run_copy=run_copy,
    )
    gc.freeze()  # imports stay, so no collection has to look at them
    gc.enable()
    return handler


prefetching = PrefetchingHandler(make, resolver, models, gate, environment.table.read_ahead)
if initialization == SNAP_START:
    from functions.infer.snapshot import register_hooks

    caches = (resolver, gate) if gate else (resolver,)
    connections = (environment.dynamodb.close, environment.blobs.close)
    register_hooks(connections, [cache.invalidate for cache in caches])
preloads = environment.preload(models)
# Lambda gives INIT full CPU, so small functions and pre-provisioned environments finish importing
# before INIT ends.
imports_in_init = initialization != ON_DEMAND or size_mb < MB_PER_CPU or preloads
if imports_in_init:
    prefetching.wait()
lambda_handler = prefetching
init_s = environment.init_s()
