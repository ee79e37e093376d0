"""Tests of which S3 keys are models, and errors for others."""

import pytest

from functions.core.errors import MESSAGE_LIMIT, InvalidModel
from functions.core.foreign_formats import FORMATS
from functions.core.uploads import Form, model_and_form


@pytest.mark.parametrize(
    ("key", "model", "form"),
    [
        ("ResNet50/model.onnx", "ResNet50", Form.ONNX),
        ("A/x.onnx", "A", Form.ONNX),
        ("bert-Base_uncased.V2/x.onnx", "bert-Base_uncased.V2", Form.ONNX),
        ("m/model.ONNX", "m", Form.ONNX),
        ("m/Model.Onnx", "m", Form.ONNX),
        ("m/MODEL.TAR.GZ", "m", Form.ARCHIVE),
        ("m/model.tgz", "m", Form.ARCHIVE),
        ("m/job/output/MODEL.TGZ", "m", Form.ARCHIVE),
        ("m/resnet.tar.gz", "m", Form.ARCHIVE),
        ("m/Manifest.json", "m", Form.MANIFEST),
        ("m/MANIFEST.JSON", "m", Form.MANIFEST),
        ("m/" + "deep/" * 60 + "x.onnx", "m", Form.ONNX),
        ("M" * 128 + "/x.onnx", "M" * 128, Form.ONNX),
    ],
)
def test_names_and_endings_may_have_capitals(key: str, model: str, form: Form) -> None:
    assert model_and_form(f"models/{key}") == (model, form)


def test_names_that_differ_in_case_are_two_models() -> None:
    names = {model_and_form(f"models/{name}/x.onnx")[0] for name in ("ResNet", "resnet", "RESNET")}

    assert names == {"ResNet", "resnet", "RESNET"}


@pytest.mark.parametrize(
    ("key", "code", "cure"),
    [
        ("My Model/x.onnx", "BAD_MODEL_NAME", "A-Z a-z 0-9"),
        ("modèle/x.onnx", "BAD_MODEL_NAME", "models/<model>/"),
        ("-m/model.tar.gz", "BAD_MODEL_NAME", "models/<model>/"),
        ("M" * 129 + "/x.onnx", "BAD_MODEL_NAME", "1 to 128"),
        ("/x.onnx", "BAD_MODEL_NAME", "models/<model>/"),
        ("x.onnx", "NO_MODEL_FOLDER", "models/<model>/"),
        ("MODEL.TGZ", "NO_MODEL_FOLDER", "models/<model>/"),
        ("manifest.json", "NO_MODEL_FOLDER", "models/<model>/"),
        ("m/model.h5", "FOREIGN_FORMAT", "model.export('model.onnx', format='onnx')"),
        ("m/net.KERAS", "FOREIGN_FORMAT", "model.export"),
        ("m/1/saved_model.pb", "FOREIGN_FORMAT", "tf2onnx.convert --saved-model"),
        ("m/frozen_inference_graph.pb", "FOREIGN_FORMAT", "tf2onnx.convert --graphdef"),
        ("m/model.tflite", "FOREIGN_FORMAT", "tf2onnx.convert --tflite"),
        ("m/model.pt", "FOREIGN_FORMAT", "external_data=False"),
        ("m/best.PTH", "FOREIGN_FORMAT", "torch.onnx.export"),
        ("m/pytorch_model.bin", "FOREIGN_FORMAT", "torch.onnx.export"),
        ("m/pytorch_model-00001-of-00002.bin", "FOREIGN_FORMAT", "torch.onnx.export"),
        ("m/model.safetensors", "FOREIGN_FORMAT", "optimum-cli export onnx"),
        ("m/model.pkl", "FOREIGN_FORMAT", "skl2onnx.to_onnx"),
        ("m/model.joblib", "FOREIGN_FORMAT", "skl2onnx.to_onnx"),
        ("model.pkl", "FOREIGN_FORMAT", "skl2onnx.to_onnx"),
        ("m/model.ubj", "FOREIGN_FORMAT", "onnxmltools.convert_xgboost"),
        ("m/model.cbm", "FOREIGN_FORMAT", "save_model('model.onnx', format='onnx')"),
        ("m/model.ort", "FOREIGN_FORMAT", "the .onnx file that it was made from"),
        ("m/model.zip", "FOREIGN_FORMAT", "tar czf model.tar.gz"),
        ("m/model.tar", "FOREIGN_FORMAT", "tar czf model.tar.gz"),
        ("m/model.tar.bz2", "FOREIGN_FORMAT", "tar czf model.tar.gz"),
        ("m/model.onnx.gz", "FOREIGN_FORMAT", "tar czf model.tar.gz"),
    ],
)
def test_a_key_that_looks_like_a_model_and_is_none_says_the_next_step(
    key: str, code: str, cure: str
) -> None:
    with pytest.raises(InvalidModel) as refused:
        model_and_form(f"models/{key}")

    assert refused.value.instance_code == code
    assert cure in str(refused.value)


def test_every_way_to_onnx_fits_in_one_message() -> None:
    for entry in FORMATS:
        for pattern in entry.patterns:
            name = pattern.replace("*", "n" * 80, 1).replace("*", "")
            with pytest.raises(InvalidModel) as refused:
                model_and_form(f"models/m/{name}")
            assert str(refused.value).endswith("and upload that")
            assert len(str(refused.value)) <= MESSAGE_LIMIT


@pytest.mark.parametrize(
    "key",
    [
        "models/m/readme.txt",
        "models/m/output/output.tar.gz",  # SageMaker's, beside every model.tar.gz
        "models/m/source/sourcedir.tar.gz",
        "models/m/model.onnx.data",
        "models/m/model.onnx_data",
        "models/m/model.onnx_data_1",
        "models/m/weights.bin",
        "models/m/model.tar.gz.sha256",
        "models/m/model.onnx.optimized.data",
        "models/m/tokenizer.json",
        "models/m/test_data_set_0/input_0.pb",
        "models/m/parts/model.onnx",
        "models/m/1/parts/weights.safetensors",
        "models/m/._model.onnx",
        "models/m/",
        "models/",
        "other/m/model.onnx",
        "other/m/model.h5",
    ],
)
def test_files_of_a_package_and_bystanders_are_no_fault(key: str) -> None:
    assert model_and_form(key) is None
