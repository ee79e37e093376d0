"""Preload the models named in PRELOAD_MODELS before the first request.

Failures are logged and never raised: a model that is not preloaded is loaded by its first request.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from functions.core.names import is_model_name
from functions.core.registry.resolver import Resolver
from functions.core.serving.model_cache import FileCache

THREADS = 4  # models at once: one downloads while another is loaded

log = logging.getLogger(__name__)


def parse_names(text: str) -> list[tuple[str, int | str | None]]:
    """Parse a comma-separated list of model names with optional alias or version.

    >>> parse_names("digits, faces:latest,faces:3,")
    [('digits', None), ('faces', 'latest'), ('faces', 3)]
    """
    names: list[tuple[str, int | str | None]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, reference = part.partition(":")
        is_number = reference.isascii() and reference.isdigit()
        names.append((model, int(reference) if is_number else reference or None))
    return names


def preload(
    names: Sequence[tuple[str, int | str | None]],
    resolver: Resolver,
    models: FileCache[Any],
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Resolve, load and warm up models in order until a deadline.

    `deadline` is a time of `clock`. Loads that have started by then continue in the background.
    """
    remaining = iter(names)

    def work() -> None:
        for model, reference in remaining:
            if clock() >= deadline:
                return
            _preload(model, reference, resolver, models, deadline)

    threads = [threading.Thread(target=work, name="preload", daemon=True) for _ in names[:THREADS]]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:  # no memory for a thread's stack
        log.warning("preloading with fewer threads: %s", error)
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, deadline - clock()))


def _preload(
    model: str,
    reference: int | str | None,
    resolver: Resolver,
    models: FileCache[Any],
    deadline: float,
) -> None:
    try:
        if not is_model_name(model):
            raise LookupError("this is no name of a model")
        version = resolver.resolve(model, reference).version
        with models.session(version, deadline, evict=False) as session:
            models.warm_up(version, session, deadline)
    except Exception as error:  # the model's first request gets the error
        log.warning("not preloaded: %s: %s", model[:128], f"{type(error).__name__}: {error}"[:300])
