"""Load plan of a model: runtime settings that registration chose by measurement."""

from collections.abc import Mapping
from typing import Any

from functions.core.records import record


@record
class Plan:
    """ONNX Runtime settings with which the infer function loads a model.

    Plain data, never code.
    """

    optimised: str = "none"  # graph optimisation applied at registration: "none" or "extended"
    prepacking: bool = True
    threads: int = 1
    warmup: bool = True  # run the sample once after a load that no request waits for
    layout: bool = False  # rearrange convolution weights at load, for the environment's processor

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Plan":
        """Build a load plan from the record stored with a model version.

        Fields that another release wrote and this one does not have are ignored; missing ones
        get their defaults.
        """
        fields = cls.__match_args__
        return cls(**{name: value for name, value in record.items() if name in fields})
