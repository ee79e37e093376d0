"""Notes that tell an uploader how the model is served, and why."""

from collections.abc import Iterable

from functions.adapters.lambda_size import MB
from functions.core.errors import InvalidModel, one_line
from functions.core.registry.load_plan import Plan
from functions.sandbox.comparison import Reference
from functions.sandbox.measure import Costs

NEVER_RUN = (
    "The model refused all generated requests, so it was loaded and never run; "
    "add samples to its manifest."
)
NOT_STORED = "The sample is too large to be stored, so the model is not warmed up with it."
FIRST_ROW = (
    "The first sample is too large to be stored; its first row is, with the model's own answer."
)
SYNTHETIC = "The package has no samples: the stored one was generated, and proves nothing."
NOT_JUDGED = "No {kind} variant: the package has no samples to judge it by."
FEW_CHECKED = "Only the first {checked} of {samples} samples were checked: each takes long."
NO_TIME = "it was not measured, because the build had used {seconds:.0f} s of processor time"
NOTE_CHARACTERS = 400


def as_uploaded(problem: str) -> str:
    """Explain to the uploader why the model is served without optimisation."""
    text = f"Served as uploaded, because the optimised form was not used: {problem}"
    return one_line(text.rstrip("."), NOTE_CHARACTERS - 1) + "."


def no_variant(kind: str, problem: str) -> str:
    """Explain to the uploader why a compressed model variant is not served."""
    return one_line(f"The {kind} variant was not used: {problem}.", NOTE_CHARACTERS)


def compiled(files: int, load_ms: float, raw_load_ms: float | None) -> str:
    """Return a note that the optimised model is served, with times."""
    place = "with its weights in a file that is mapped" if files > 1 else "in one file"
    raw = "" if raw_load_ms is None else f", the upload in {raw_load_ms:.1f} ms"
    return f"Optimised ahead of time, {place}: loads in {load_ms:.1f} ms{raw}."


def compared(best: Costs, reference: Reference) -> str:
    """Describe the comparison of served outputs with the uploaded model's outputs."""
    by_default = reference.is_final and reference.plan.prepacking
    origin = "ONNX Runtime's default for the upload" if by_default else "the upload, used in place"
    requests = ", ".join(reference.answers)
    if best.difference is None:
        result = "the same in every bit"
    else:
        result = (
            f"within the tolerance (rtol {reference.rtol:g}, atol {reference.atol:g}), "
            f"at most {best.difference:.3g} off"
        )
    return f"Answers compared with {origin} ({requests}): {result}."


def dropped(plan: Plan, reason: str) -> str:
    """Explain to the uploader why a load plan was not chosen."""
    text = f"Load plan not used: {_plan(plan, name_threads=True)}: {reason}"
    return one_line(text.rstrip("."), NOTE_CHARACTERS - 1) + "."


def reason(error: Exception) -> str:
    """Describe the error that ruled out a load plan."""
    if isinstance(error, InvalidModel) and error.instance_code == "SAMPLE_MISMATCH":
        return f"its answers are not ONNX Runtime's default ones: {error}"
    return str(error) or "it does not fit into the memory of the function that checks models"


def plan(best: Costs, rivals: Iterable[Costs]) -> str:
    """Return a note that explains the chosen load plan by costs."""
    compared = list(rivals)
    name_threads = any(costs.plan.threads != best.plan.threads for costs in compared)
    rejected = "; ".join(
        f"{_plan(costs.plan, name_threads)}: {_costs(costs)}" for costs in compared
    )
    return f"Load plan: {_plan(best.plan, name_threads)} ({_costs(best)}), not {rejected}."


def memory(resident_bytes: int, memory_mb: int) -> str:
    """Return a note on the memory that serving the model needs."""
    return (
        f"Takes {resident_bytes / MB:.0f} MB of memory, fits a function of {memory_mb} MB and more."
    )


def variant(
    kind: str, used: bool, sizes: tuple[int, int], latencies: tuple[float, float], samples: int
) -> str:
    """Return a note why a smaller variant is served or not.

    Sizes and latencies are (before, after).
    """
    mb = "{:.2f} to {:.2f} MB".format(*(size / MB for size in sizes))
    ms = "{:.2f} to {:.2f} ms".format(*latencies)
    return (
        f"The {kind} variant was {'' if used else 'not '}used: from {mb}, and a request from {ms}, "
        f"with {samples} samples within the tolerance."
    )


def _plan(plan: Plan, name_threads: bool) -> str:
    text = "weights packed at load" if plan.prepacking else "weights used in place"
    if plan.layout:
        text += " and laid out for this processor"
    return f"{text}, {plan.threads} thread{'s' * (plan.threads > 1)}" if name_threads else text


def _costs(costs: Costs) -> str:
    eight = f", eight rows in {costs.batch_8_ms:.2f} ms" if costs.batch_8_ms is not None else ""
    return f"first answer after {costs.cold_ms:.1f} ms, then {costs.batch_1_ms:.2f} ms{eight}"
