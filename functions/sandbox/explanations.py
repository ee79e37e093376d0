"""What was chosen and why, in sentences for whoever uploaded the model."""

from collections.abc import Iterable

from functions.adapters.lambda_size import MB
from functions.core.registry.load_plan import Plan
from functions.sandbox.measure import Costs

AS_UPLOADED = "Served as uploaded, because the optimised form was not taken: {problem}."
NEVER_RUN = "No request could be made up that the model answers, so it was loaded and never run; add samples to its manifest."
NOT_KEPT = "The sample is too large to be kept, so there is no warm-up with it."
FIRST_ROW = (
    "The first sample is too large to be kept; its first row is, with the model's own answer."
)
MADE_UP = "The package brought no samples: the one that is kept was made up, and proves nothing."
NOT_JUDGED = "No {kind} variant: the package brought no samples to judge it by."


def form(files: int, load_ms: float, raw_load_ms: float | None) -> str:
    where = "with its weights in a file that is mapped" if files > 1 else "in one file"
    raw = "" if raw_load_ms is None else f", the upload in {raw_load_ms:.1f} ms"
    return f"Optimised ahead of time, {where}, with the same answers in every bit: loads in {load_ms:.1f} ms{raw}."


def plan(best: Costs, others: Iterable[Costs]) -> str:
    compared = list(others)
    threads = any(one.plan.threads != best.plan.threads for one in compared)
    told = "; ".join(f"{_plan(one.plan, threads)}: {_costs(one)}" for one in compared)
    return f"Load plan: {_plan(best.plan, threads)} ({_costs(best)}), not {told}."


def memory(resident_bytes: int, memory_mb: int) -> str:
    return (
        f"Takes {resident_bytes / MB:.0f} MB of memory, fits a function of {memory_mb} MB and more."
    )


def variant(
    kind: str, taken: bool, sizes: tuple[int, int], latencies: tuple[float, float], samples: int
) -> str:
    mb = "{:.2f} to {:.2f} MB".format(*(size / MB for size in sizes))
    ms = "{:.2f} to {:.2f} ms".format(*latencies)
    return (
        f"The {kind} variant was {'' if taken else 'not '}taken: from {mb}, and a request from {ms}, "
        f"with {samples} samples within the tolerance."
    )


def _plan(plan: Plan, threads: bool) -> str:
    words = "weights packed at load" if plan.prepacking else "weights used as they lie"
    words = f"{words} and laid out for this processor" if plan.layout else words
    return f"{words}, {plan.threads} thread{'s' * (plan.threads > 1)}" if threads else words


def _costs(costs: Costs) -> str:
    eight = f", eight rows in {costs.batch_8_ms:.2f} ms" if costs.batch_8_ms is not None else ""
    return f"first answer after {costs.cold_ms:.1f} ms, then {costs.batch_1_ms:.2f} ms{eight}"
