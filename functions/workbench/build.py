"""From package/ to serving/: the model is loaded and served as it came."""

from pathlib import Path

from functions.adapters.onnx import inspect_signature
from functions.core.workbench import Brief, Built


def build(brief: Brief, directory: Path) -> Built:
    """What `core.workbench.Workbench.build` promises.

    Raises:
        InvalidModel: why this model can never be served.
    """
    package, serving = directory / "package", directory / "serving"
    signature = inspect_signature(package / brief.model)
    files = (brief.model, *brief.weights)
    for name in files:
        (package / name).rename(serving / name)
    return Built(files, signature)
