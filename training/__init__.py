"""Training of recipes: from data to one model.onnx.

import training

result = training.run("digits", epochs=2)
result.metrics["accuracy"], result.path
"""

from __future__ import annotations

from typing import Any

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Import `run` at its first use, because it imports torch."""
    if name == "run":
        from training.train import run

        return run
    raise AttributeError(f"module 'training' has no attribute {name!r}")
