"""Choice of the model in a package with several .onnx files."""

import posixpath
from collections.abc import Sequence

# Names that exporters give to the model beside its variants, the preferred first. Optimum writes
# a decoder in three forms, of which the merged one reads prompts and continues them.
_NAMES = ("decoder_model_merged.onnx", "model.onnx", "decoder_with_past_model.onnx")


def choose_model(paths: Sequence[str]) -> str | None:
    """Return the model's path among .onnx files; None if unclear.

    >>> choose_model(["onnx/model_quantized.onnx", "onnx/model.onnx"])
    'onnx/model.onnx'
    >>> choose_model(["a/model.onnx", "b/model.onnx"]), choose_model(["b.onnx"])
    (None, 'b.onnx')

    A decoder beside its encoder is half a model:

    >>> choose_model(["encoder_model.onnx", "decoder_model_merged.onnx"])
    """
    if len(paths) == 1:
        return paths[0]
    names = {path: posixpath.basename(path).lower() for path in paths}
    if any(name.startswith("encoder") for name in names.values()):
        return None
    for preferred in _NAMES:
        namesakes = [path for path, name in names.items() if name == preferred]
        if namesakes:
            return namesakes[0] if len(namesakes) == 1 else None
    return None


def chosen(path: str, count: int) -> str:
    """Return a note that says which of several .onnx files is served."""
    return f"Of {count} .onnx files, {path} is served; to serve another, upload it by itself."
