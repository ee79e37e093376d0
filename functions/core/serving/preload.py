"""Models in memory before the first request asks for them.

Nothing that goes wrong here is worth an error: what is not loaded in time is loaded when a request asks for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from functions.core.names import is_model_name
from functions.core.registry.resolver import Resolver
from functions.core.serving.model_cache import ModelCache

AT_ONCE = 4  # one waits for storage while another takes the processor; those named first come first

log = logging.getLogger(__name__)


def parse_names(text: str) -> list[tuple[str, int | str | None]]:
    """Models with commas between them, each perhaps with the alias or the version that is meant.

    >>> parse_names("digits, faces:latest,faces:3,")
    [('digits', None), ('faces', 'latest'), ('faces', 3)]
    """
    found: list[tuple[str, int | str | None]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, reference = part.partition(":")
        found.append(
            (
                model,
                int(reference)
                if reference.isascii() and reference.isdigit()
                else reference or None,
            )
        )
    return found


def preload(
    names: Sequence[tuple[str, int | str | None]],
    resolver: Resolver,
    models: ModelCache,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Resolve, load and warm up `names` until `deadline`, an instant of the clock; what has begun then goes on."""
    left = iter(names)

    def work() -> None:
        for model, reference in left:
            if clock() >= deadline:
                return
            _preload(model, reference, resolver, models, deadline)

    threads = [threading.Thread(target=work, name="preload", daemon=True) for _ in names[:AT_ONCE]]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:  # no memory for its stack
        log.warning("preloading with fewer threads: %s", error)
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, deadline - clock()))


def _preload(
    model: str, reference: int | str | None, resolver: Resolver, models: ModelCache, deadline: float
) -> None:
    try:
        if not is_model_name(model):
            raise LookupError("this is no name of a model")
        version = resolver.resolve(model, reference).version
        with models.session(version, deadline, evict=False) as session:
            models.warm_up(version, session, deadline)
    except Exception as error:  # one line, and the first request finds out
        log.warning("not preloaded: %s: %s", model[:128], f"{type(error).__name__}: {error}"[:300])
