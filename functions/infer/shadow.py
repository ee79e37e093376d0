"""Runs of shadow versions on copies of requests, after their replies.

Imported by the first request that is copied: few aliases have a shadow.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from functions.core.errors import (
    InvalidRequest,
    PlatformError,
    TimedOut,
    Unavailable,
    one_line,
    shown,
)
from functions.core.protocol.infer_reply import REPLY_BYTES_MAX
from functions.core.protocol.signature import DYNAMIC, TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.core.serving.metadata import require_signature
from functions.core.serving.model_cache import ModelCache, Session
from functions.core.serving.service import Call, Copy
from functions.core.traffic.agreement import Tolerance, agrees

SECONDS_MAX = 10.0  # limit of one copy, with the load of its model
SHARE = 0.5  # share of the invocation's remaining time: its overtime would end the environment


class Record(Protocol):
    """Counter of copies: `usage.meter.Meter.count_shadow`."""

    def __call__(
        self,
        model: str,
        version: int,
        alias: str,
        traffic: str,
        latency_ns: int,
        *,
        agreed: bool | None,
    ) -> None: ...


def run_copy(call: Call, context: Any, models: ModelCache, record: Record) -> bool:
    """Run a request's copy on its shadow version; record the agreement.

    Nothing is recorded if the shadow cannot be loaded or run in time, or in the memory that is
    free: it takes none from models that callers use. Returns False if memory may be missing now.
    """
    copy, call.copy = call.copy, None
    if copy is None:
        return True
    remaining_s = context.get_remaining_time_in_millis() / 1000
    deadline = time.monotonic() + min(SECONDS_MAX, SHARE * remaining_s)
    agreed, began_ns, latency_ns = None, time.perf_counter_ns(), 0
    try:
        with models.session(copy.shadow, deadline, evict=False) as session:
            began_ns = time.perf_counter_ns()
            outputs = _run(copy, session, deadline)
            latency_ns = time.perf_counter_ns() - began_ns
        agreed = _agrees(copy, outputs)
    except (Unavailable, TimedOut):  # a copy has less time than its request had
        return True
    except MemoryError:
        return False
    except (PlatformError, LookupError) as error:
        logging.getLogger(__name__).info("the shadow failed: %s", one_line(str(error)))
    shadow = copy.shadow
    latency_ns = latency_ns or time.perf_counter_ns() - began_ns
    record(shadow.model, shadow.number, copy.alias, call.traffic, latency_ns, agreed=agreed)
    return True


def _run(copy: Copy, session: Session, deadline: float) -> Mapping[str, Tensor]:
    """Run the shadow, if its signature takes the request.

    Raises:
        InvalidRequest: it has other inputs or outputs.
        PlatformError: the run failed.
    """
    shadow = copy.shadow
    signature = shadow.signature or require_signature(shadow)
    refuses_empty = shadow.graph.get("refuses_empty", False)
    if copy.inputs.keys() != {spec.name for spec in signature.inputs}:
        raise InvalidRequest("the shadow has other inputs")
    for spec in signature.inputs:
        tensor = copy.inputs[spec.name]
        if not _fits(spec, tensor) or (refuses_empty and 0 in tensor.shape):
            raise InvalidRequest(f"the shadow's input {shown(spec.name)} does not take the tensor")
    if not copy.outputs.keys() <= {spec.name for spec in signature.outputs}:
        raise InvalidRequest("the shadow lacks an output")
    timeout_s = max(0.0, deadline - time.monotonic())
    return session.run(copy.inputs, [*copy.outputs], timeout_s, REPLY_BYTES_MAX)


def _fits(spec: TensorSpec, tensor: Tensor) -> bool:
    shape = tensor.shape
    return (
        tensor.datatype == spec.datatype
        and len(shape) == len(spec.shape)
        and all(size in (DYNAMIC, length) for size, length in zip(spec.shape, shape, strict=True))
    )


def _agrees(copy: Copy, outputs: Mapping[str, Tensor]) -> bool:
    declared = copy.version.card.get("tolerance") or {}
    named = {name: declared[name] for name in ("rtol", "atol") if name in declared}
    signature = copy.version.signature or require_signature(copy.version)
    return agrees(copy.outputs, outputs, signature.outputs, Tolerance(**named))
