"""Table of hostile request changes by kind, combined at random.

Each alters one part of a draft and leaves the others, so that two or three of them meet.
"""

from collections.abc import Callable
from random import Random

from tests.stress.requests.body_changes import binary, compression, raw_body, text
from tests.stress.requests.document_changes import (
    batch,
    datatypes,
    duplicates,
    fitted_sizes,
    identity,
    nesting,
    outputs,
    parameters,
    sizes,
    strings,
    values,
)
from tests.stress.requests.drafts import Draft
from tests.stress.requests.envelope_changes import events, headers, methods, paths, repository

VALUES_ONLY: tuple[Callable[[Random, Draft], None], ...] = (fitted_sizes, batch, strings)
CHANGES: tuple[Callable[[Random, Draft], None], ...] = (
    sizes, fitted_sizes, batch, datatypes, values, nesting, duplicates, outputs, outputs,
    parameters, identity, binary, binary, raw_body, text, strings, compression, compression,
    headers, paths, methods, repository, events,
)  # fmt: skip


def mix(rng: Random, draft: Draft) -> None:
    """Apply up to three random changes to a request."""
    if rng.random() < 0.5:
        pool, count = VALUES_ONLY, rng.choice((0, 0, 1))
    else:
        pool, count = CHANGES, rng.choice((1, 1, 2, 3))
    for change in rng.sample(pool, count):
        if not isinstance(draft.document, dict):
            draft.document = {}
        change(rng, draft)
        draft.kinds.append(change.__name__)
    draft.kinds = draft.kinds or ["hostile values"]
