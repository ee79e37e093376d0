"""Keras on its torch backend: recognise its models, import it."""

from __future__ import annotations

import os
import sys
from typing import Any

from training.errors import InvalidRecipe

VARIABLE, BACKEND = "KERAS_BACKEND", "torch"
MISSING = "Keras is not installed: pip install keras"


def is_keras(model: object) -> bool:
    """Return whether `model` is a Keras model, without importing Keras."""
    keras = sys.modules.get("keras")
    return hasattr(keras, "Model") and isinstance(model, keras.Model)  # type: ignore[union-attr]


def load() -> Any:
    """Import Keras on its torch backend and return the module.

    Raises:
        InvalidRecipe: Keras is missing, or was imported with another backend before.
    """
    os.environ[VARIABLE] = BACKEND  # read once, while Keras is imported
    try:
        import keras
    except ImportError as error:
        raise InvalidRecipe(MISSING) from error
    if keras.backend.backend() != BACKEND:
        raise InvalidRecipe(
            f"Keras was imported with its {keras.backend.backend()} backend, and only a model of "
            f"its torch backend is trained and exported here: set {VARIABLE}={BACKEND} before the "
            "first `import keras`"
        )
    return keras
