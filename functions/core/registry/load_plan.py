"""How a compiled model is loaded: what registration measured, and infer does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """How `infer` loads the model: data, never code."""

    optimised: str = "none"  # graph optimisation done at registration: "none" or "extended"
    prepacking: bool = True
    threads: int = 1
    warmup: bool = True  # a load that no request waits for ends with one run of the sample
    layout: bool = (
        False  # at load, weights of convolutions are laid out anew for the processor at hand
    )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Plan":
        """The plan in a version's record, whichever release wrote it."""
        return cls(
            **{name: value for name, value in record.items() if name in cls.__dataclass_fields__}
        )
