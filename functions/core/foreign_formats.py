"""File name patterns of other model formats, with advice on ONNX conversion."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from functions.core.errors import InvalidModel, shown


@dataclass(frozen=True, slots=True)
class Format:
    """Non-ONNX model format: lower-case file name patterns and conversion advice."""

    patterns: tuple[str, ...]
    kind: str
    cure: str


_TF2ONNX = "python -m tf2onnx.convert --{} {} --output model.onnx"
FORMATS = (
    Format(
        ("*.keras", "*.h5", "*.hdf5"),
        "Keras' format",
        "export it with model.export('model.onnx', format='onnx')",
    ),
    Format(
        ("saved_model.pb",),
        "a part of a TensorFlow SavedModel",
        "run " + _TF2ONNX.format("saved-model", "FOLDER"),
    ),
    Format(
        ("*graph.pb", "frozen_*.pb"),
        "a TensorFlow graph",
        "run " + _TF2ONNX.format("graphdef", "FILE --inputs NAMES --outputs NAMES"),
    ),
    Format(("*.tflite",), "TensorFlow Lite's format", "run " + _TF2ONNX.format("tflite", "FILE")),
    Format(
        ("*.pt", "*.pth", "*.pt2", "*.ckpt", "pytorch_model*.bin"),
        "PyTorch's format",
        "export it with torch.onnx.export(model, inputs, 'model.onnx', external_data=False)",
    ),
    Format(
        ("*.safetensors", "*.gguf"),
        "weights without a graph",
        "load them in their framework and export ONNX from there, "
        "e.g. optimum-cli export onnx --model FOLDER OUTPUT",
    ),
    Format(
        ("*.pkl", "*.pickle", "*.joblib", "*.dill", "*.skops"),
        "a stored Python object, which is never opened",
        "export a scikit-learn model with skl2onnx.to_onnx(model, X[:1].astype(np.float32))",
    ),
    Format(
        ("*.ubj", "*.xgb", "*.bst"),
        "XGBoost's format",
        "export it with onnxmltools.convert_xgboost",
    ),
    Format(
        ("*.cbm",),
        "CatBoost's format",
        "export it with model.save_model('model.onnx', format='onnx')",
    ),
    Format(("*.mlmodel",), "Core ML's format", "export ONNX from the framework it was trained in"),
    Format(("*.pdmodel",), "PaddlePaddle's format", "export it with paddle2onnx"),
    Format(
        ("*.ort", "*.engine", "*.plan", "*.trt"),
        "a model compiled for one runtime",
        "use the .onnx file that it was made from",
    ),
    Format(
        (
            *("*.zip", "*.7z", "*.rar", "*.mar", "*.tar", "*.tbz2", "*.txz"),
            *("*.tar.bz2", "*.tar.xz", "*.tar.zst"),
            *("*.onnx.gz", "*.onnx.bz2", "*.onnx.xz", "*.onnx.zst"),
        ),
        "an archive of a kind that is not opened",
        "pack the .onnx file with tar czf model.tar.gz model.onnx",
    ),
)


def check_not_foreign(name: str) -> None:
    """Refuse the file name of a model format other than ONNX.

    Raises:
        InvalidModel: `FOREIGN_FORMAT`; the message says how to convert the model to ONNX.
    """
    lower = name.lower()
    for entry in FORMATS:
        if any(fnmatchcase(lower, pattern) for pattern in entry.patterns):
            raise InvalidModel(
                f"{shown(name)} is {entry.kind} and no ONNX: {entry.cure}, and upload that",
                code="FOREIGN_FORMAT",
            )
