"""Conversion of SavedModels and Keras files; refusal of other formats."""

from __future__ import annotations

import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

from training.errors import InvalidArtifact
from training.publishing.conversion import Conversion

_SAVED_MODEL = "saved_model.pb"
_KERAS = (".keras", ".h5", ".hdf5")
# Lower-case name patterns → what it is, and what to do instead. No such file is opened.
REFUSED = (
    (
        ("*.pkl", "*.pickle", "*.joblib", "*.dill", "*.cloudpickle"),
        "is a pickled Python object, which is not opened, because opening it runs code: load it "
        "where you trust it, convert a scikit-learn model with skl2onnx.to_onnx(model, "
        "X[:1].astype(np.float32)) and publish that",
    ),
    (
        ("*.skops",),
        "is a model of skops: load it, convert it with skl2onnx.to_onnx(model, "
        "X[:1].astype(np.float32)) and publish that",
    ),
    (
        ("*.safetensors",),
        "holds weights without a network: python -m training import-hf FOLDER reads language "
        "models; of other models load the weights into the network and publish what "
        "torch.onnx.export writes",
    ),
    (("*.gguf",), "is a language model in llama.cpp's format: python -m training import-gguf FILE"),
    (
        ("*.tflite",),
        "is TensorFlow Lite's: run python -m tf2onnx.convert --tflite FILE --output model.onnx and "
        "publish model.onnx",
    ),
    (
        ("*.pb", "*.pbtxt"),
        "is a TensorFlow graph: run python -m tf2onnx.convert --graphdef FILE --inputs NAMES "
        "--outputs NAMES --output model.onnx and publish model.onnx",
    ),
    (
        ("*.tar.gz", "*.tgz", "*.zip"),
        "is a package, and publish describes one file: give the .onnx file in it, or upload the "
        "package as it is",
    ),
)  # fmt: skip
_EXPORT = "torch.onnx.export(model, inputs, 'model.onnx', external_data=False)"


def convert(path: Path, signature: str | None) -> Conversion | None:
    """Convert a SavedModel or Keras file to ONNX, or return None.

    `signature` chooses among a SavedModel's.

    Raises:
        InvalidArtifact: the format cannot be converted here; the message says where it can.
    """
    if path.name == _SAVED_MODEL and path.is_file():
        path = path.parent
    if path.is_dir():
        if not (path / _SAVED_MODEL).is_file():
            raise InvalidArtifact(
                f"{path} is a folder without {_SAVED_MODEL}: give an ONNX file, a Keras file, or "
                "the folder of a TensorFlow SavedModel"
            )
        from training.publishing import saved_model

        return saved_model.convert(path, signature)
    if signature is not None:
        raise InvalidArtifact(f"--signature is for a TensorFlow SavedModel; {path.name} is none")
    if path.suffix.lower() in _KERAS and path.is_file():
        from training.publishing import keras_file  # imports torch

        return keras_file.convert(path)
    _refuse(path)
    return None


def _refuse(path: Path) -> None:
    """Raise InvalidArtifact for a file whose name is that of another format."""
    name = path.name.lower()
    if not path.is_file():
        return
    for patterns, advice in REFUSED:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            raise InvalidArtifact(f"{path.name} {advice}")
    if name.endswith((".pt", ".pth", ".pt2", ".ckpt", ".bin")):
        raise InvalidArtifact(f"{path.name} {_torch_advice(path)}")


def _torch_advice(path: Path) -> str:
    """Describe a file of torch by the names in its archive."""
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if any(name.endswith("constants.pkl") for name in names):
        return (
            "is a TorchScript program: model = torch.jit.load(FILE), then "
            f"{_EXPORT[:-1]}, dynamo=False, dynamic_axes={{'x': {{0: 'batch'}}}}, "
            "input_names=['x']), and publish model.onnx"
        )
    if any(name.endswith(("archive_format", "models/model.json")) for name in names):
        return (
            "is a program of torch.export: torch.onnx.export(torch.export.load(FILE), "
            "dynamo=True, external_data=False).save('model.onnx'), and publish model.onnx"
        )
    return (
        "holds weights, or a pickled module, which is not opened, because opening it can run code: "
        f"make the network, load the weights with torch.load(FILE, weights_only=True), then "
        f"{_EXPORT}, and publish model.onnx"
    )
