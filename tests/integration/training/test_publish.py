"""Publishing adds a manifest that the registry accepts, or explains the refusal."""

import json
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper

from functions.register.manifest import read_manifest
from local.aws.provision import Deployed
from training import manifest
from training.export import graphs
from training.publish import main
from training.publishing.rows import answer

pytestmark = pytest.mark.train


def make_graph(x: Any, y: Any, nodes: list[Any], constants: list[Any] | None = None) -> Any:
    graph = helper.make_graph(nodes, "g", [x], [y], constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_doubler(shape: tuple[Any, ...] = ("batch", 3)) -> Any:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    return make_graph(
        x,
        y,
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        [numpy_helper.from_array(np.float32(2), "two")],
    )


def make_table(rows: int) -> Any:
    """Make a model that looks up rows, and refuses missing ones."""
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    table = numpy_helper.from_array(np.arange(2 * rows, dtype=np.float32).reshape(rows, 2), "table")
    return make_graph(x, y, [helper.make_node("Gather", ["table", "x"], ["y"])], [table])


def publish(tmp_path: Path, model: Any, *options: str, task: str | None = "regression") -> int:
    file = tmp_path / "mine.onnx"
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    task_option = ["--task", task] if task else []
    return main(
        [
            str(file),
            "--model",
            "mine",
            *task_option,
            "--output",
            str(tmp_path / "out" / "model.onnx"),
            *options,
        ]
    )


def card_of(path: Path) -> dict[str, Any]:
    graph = onnx.load(path)
    read: dict[str, Any] = json.loads(
        next(prop.value for prop in graph.metadata_props if prop.key == manifest.KEY)
    )
    return read


def test_the_card_has_the_declared_tensors_and_two_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        publish(
            tmp_path, make_doubler(), "--description", "Doubles.", "--preprocessing", "as they are"
        )
        == 0
    )

    card = card_of(tmp_path / "out" / "model.onnx")
    assert card["task"] == "regression"
    assert card["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3], "preprocessing": "as they are"}
    ]
    assert card["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3], "kind": "value"}]
    for sample, rows in zip(card["samples"], (1, 2), strict=True):
        x, y = sample["request"]["inputs"][0], sample["response"]["outputs"][0]
        assert x["shape"] == y["shape"] == [rows, 3]
        assert y["data"] == [2 * value for value in x["data"]]
    assert (
        "mine.onnx: ONNX Runtime loads it; x FP32['batch', 3] → y FP32['batch', 3]"
        in capsys.readouterr().out
    )
    read_manifest(json.dumps(card).encode())  # the registry's own check


def test_the_published_file_is_not_changed(tmp_path: Path) -> None:
    assert publish(tmp_path, make_doubler()) == 0
    assert (tmp_path / "mine.onnx").read_bytes() == make_doubler().SerializeToString()


@pytest.mark.parametrize("location", ["mine.onnx.data", "data/weights é 1.bin"])
def test_weights_in_another_file_are_packed_with_the_model(tmp_path: Path, location: str) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "mine.onnx"
    model = make_table(100)
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)
    assert (tmp_path / location).stat().st_size == 800

    assert publish(tmp_path, path.read_bytes()) == 0

    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert not graph.graph.initializer[0].external_data
    sample = card_of(tmp_path / "out" / "model.onnx")["samples"][0]
    rows = sample["request"]["inputs"][0]["data"]
    expected = [value for row in rows for value in (2.0 * row, 2.0 * row + 1)]
    assert sample["response"]["outputs"][0]["data"] == expected


def test_missing_weights_are_refused_with_torchs_argument(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.onnx"
    onnx.save_model(
        make_table(100), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (tmp_path / "w.bin").unlink()

    assert publish(tmp_path, path.read_bytes()) == 1

    message = capsys.readouterr().err
    assert "w.bin" in message
    assert "export one file with torch.onnx.export(..., external_data=False)" in message


def test_labels_go_to_the_output_of_their_number(tmp_path: Path) -> None:
    labels = [word for label in ("a", "b", "c") for word in ("--label", label)]

    assert publish(tmp_path, make_doubler(), *labels, task="classification") == 0
    assert card_of(tmp_path / "out" / "model.onnx")["outputs"][0]["labels"] == ["a", "b", "c"]


def test_the_command_line_overrides_a_manifest(tmp_path: Path) -> None:
    declared = {
        "task": "ranking",
        "description": "old",
        "metrics": {"rmse": 0.5},
        "data": {"source": "file:x.csv"},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(declared))

    assert (
        publish(
            tmp_path,
            make_doubler(),
            "--manifest",
            str(tmp_path / "manifest.json"),
            "--description",
            "new",
        )
        == 0
    )
    card = card_of(tmp_path / "out" / "model.onnx")
    assert (card["task"], card["description"], card["metrics"]) == (
        "regression",
        "new",
        {"rmse": 0.5},
    )

    # The manifest inside a file is read as well.
    again = (tmp_path / "out" / "model.onnx").read_bytes()
    assert publish(tmp_path, again, "--output", str(tmp_path / "again.onnx"), task=None) == 0
    assert card_of(tmp_path / "again.onnx")["metrics"] == {"rmse": 0.5}


def test_column_names_are_kept_if_their_number_fits(tmp_path: Path) -> None:
    for names, kept in ((["a", "b", "c"], True), (["a", "b"], False)):
        inputs = [{"name": "x", "columns": names}]
        (tmp_path / "manifest.json").write_text(
            json.dumps({"task": "regression", "inputs": inputs})
        )
        assert publish(tmp_path, make_doubler(), "--manifest", str(tmp_path / "manifest.json")) == 0
        assert ("columns" in card_of(tmp_path / "out" / "model.onnx")["inputs"][0]) is kept


def test_a_users_sample_is_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "ask.npz", x=np.array([41, 7]))

    assert publish(tmp_path, make_table(50), "--sample", str(tmp_path / "ask.npz")) == 0
    [sample] = card_of(tmp_path / "out" / "model.onnx")["samples"]
    assert sample["response"]["outputs"][0]["data"] == [82, 83, 14, 15]


def test_made_up_requests_suit_the_model(tmp_path: Path) -> None:
    assert publish(tmp_path, make_table(1)) == 0  # refuses 1, takes 0


def test_an_upload_lands_where_the_registry_looks(tmp_path: Path, deployed: Deployed) -> None:
    bucket = deployed.outputs["ArtifactsBucketName"]

    assert publish(tmp_path, make_doubler(), "--bucket", bucket) == 0
    [item] = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert item["Key"].startswith("models/mine/")
    assert item["Key"].endswith("/model.onnx")
    body = boto3.client("s3").get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
    assert body == (tmp_path / "out" / "model.onnx").read_bytes()


def make_external() -> Any:
    model = make_doubler()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return model


def make_new() -> Any:
    model = make_doubler()
    model.opset_import[0].version = 99
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (b"no onnx", [], "mine.onnx is no ONNX file"),
        (
            make_external(),
            [],
            "mine.onnx keeps weights in other files (",
        ),
        (make_new(), [], "mine.onnx does not load: "),
        (
            make_doubler(),
            ["--label", "a"],
            "1 labels, and no output has a last dimension of that size",
        ),
        (make_doubler(), ["--model", "Mine!"], "'Mine!' is no model name: use A-Z"),
        (make_doubler(), ["--manifest", "nowhere.json"], "there is no file nowhere.json"),
        (make_doubler(), ["--sample", "nowhere.npz"], "nowhere.npz cannot be read as .npz: "),
        (
            make_doubler(),
            ["--bucket", "no-such-bucket"],
            "cannot upload to bucket 'no-such-bucket': ",
        ),
    ],
    ids=[
        "no onnx",
        "external",
        "too new",
        "labels",
        "name",
        "manifest",
        "sample",
        "bucket",
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    deployed: Deployed,
    model: Any,
    options: list[str],
    message: str,
) -> None:
    assert publish(tmp_path, model, *options) == 1

    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_sample_with_other_inputs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "ask.npz", z=np.zeros(3))

    assert publish(tmp_path, make_doubler(), "--sample", str(tmp_path / "ask.npz")) == 1
    assert capsys.readouterr().err == "error: ask.npz holds z; the model takes x\n"


def test_a_task_is_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(tmp_path, make_doubler(), task=None) == 1
    assert "say what the model does: --task classification, multilabel" in capsys.readouterr().err


def test_the_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(tmp_path, make_doubler(), "--output", str(tmp_path / "mine.onnx")) == 1
    assert "is the file itself; it is not overwritten" in capsys.readouterr().err


def classifier(imports: int = 1) -> Any:
    """Make an ONNX text classifier as skl2onnx exports it by default."""
    x = helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])
    label = helper.make_tensor_value_info("label", TensorProto.STRING, ["n"])
    inner = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    ml: Any = {"domain": "ai.onnx.ml"}
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["label"], case_change_action="LOWER"),
        helper.make_node(
            "LabelEncoder", ["label"], ["p1"], **ml, keys_strings=["a"], values_floats=[0.25]
        ),
        helper.make_node("Unsqueeze", ["p1", "one"], ["column"]),
        helper.make_node("Concat", ["column", "column"], ["pair"], axis=1),
        helper.make_node("ZipMap", ["pair"], ["p"], **ml, classlabels_strings=["dog", "cat"]),
    ]
    model = make_graph(x, label, nodes, [numpy_helper.from_array(np.array([1]), "one")])
    model.graph.output.append(helper.make_value_info("p", helper.make_sequence_type_proto(inner)))
    model.opset_import.add(domain="ai.onnx.ml", version=2)
    for _ in range(imports - 1):
        model.opset_import.add(domain="", version=20)
    return model


def test_what_a_registration_changes_is_changed_in_the_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(tmp_path, classifier(imports=2), task="classification") == 0

    path = tmp_path / "out" / "model.onnx"
    operators = {node.op_type: node for node in onnx.load(path).graph.node}
    assert "ZipMap" not in operators
    locale = {item.name: item.s for item in operators["StringNormalizer"].attribute}["locale"]
    assert locale == b"C.UTF-8"
    label, probabilities = card_of(path)["outputs"]
    assert probabilities["labels"] == ["dog", "cat"]
    assert "labels" not in label
    response = card_of(path)["samples"][0]["response"]["outputs"]
    assert {output["name"]: output["data"] for output in response} == {
        "label": ["a"],
        "p": [0.25, 0.25],
    }
    assert "ONNX Runtime loads it; x BYTES" in capsys.readouterr().out


def test_a_sequence_is_named_with_its_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_doubler()
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["s"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))

    assert publish(tmp_path, model) == 1
    assert "s is a seq(tensor(float)), and only tensors are served" in capsys.readouterr().err


def test_a_turkish_locale_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    model.graph.node[0].attribute.append(helper.make_attribute("locale", "tr_TR"))

    assert publish(tmp_path, model, task="classification") == 1
    assert "needs the locale tr_TR" in capsys.readouterr().err


def test_the_rows_given_as_data_are_described_by_their_columns(tmp_path: Path) -> None:
    rows = "a,b,label,c\n1,2,no,3\n4,5,yes,6\n7,8,no,9\n"
    (tmp_path / "rows.csv").write_text(rows)
    options = ["--data", str(tmp_path / "rows.csv"), "--target", "label"]

    labels = ["--label", "no", "--label", "yes", "--label", "maybe"]
    assert publish(tmp_path, make_doubler(), *options, *labels, task="classification") == 0

    card = card_of(tmp_path / "out" / "model.onnx")
    described = card["distributions"]
    assert [feature["feature"] for feature in described["inputs"]["features"]] == ["a", "b", "c"]
    assert described["inputs"]["features"][0]["counts"] == [1, 1, 1]
    assert described["outputs"]["rows"] == 3
    assert described["outputs"]["features"][1]["values"] == ["no", "yes", "maybe"]
    assert described["priors"] == {"no": 0.666667, "yes": 0.333333, "maybe": 0.0}
    assert read_manifest(json.dumps(card).encode())


@pytest.mark.parametrize("kind", ["rows.npz", "folder", "large folder"])
def test_arrays_given_as_data_are_described_by_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    x, location = np.arange(12.0).reshape(4, 3), tmp_path / kind
    if kind == "rows.npz":
        np.savez(location, x=x, y=np.ones(4))
    else:
        location.mkdir()
        np.save(location / "x.npy", x)
    if kind == "large folder":  # larger than what is read at once
        monkeypatch.setattr("training.data.sources.IN_MEMORY_MB", 0)

    assert publish(tmp_path, make_doubler((1, 3)), "--data", str(location)) == 0

    described = card_of(tmp_path / "out" / "model.onnx")["distributions"]
    assert described["inputs"]["rows"] == described["outputs"]["rows"] == 4
    assert described["outputs"]["features"][0]["edges"] == [3, 9, 15]
    assert "priors" not in described


@pytest.mark.parametrize(
    ("batch", "rows", "answered"),
    [(256, 700, 512), (300, 1400, 900), (1200, 2500, 1200), (None, 1500, 1000)],
)
def test_a_model_with_a_fixed_batch_answers_whole_batches_of_spread_rows(
    tmp_path: Path, batch: int | None, rows: int, answered: int
) -> None:
    session = graphs.open_session(make_doubler((batch, 1)))
    x = np.arange(float(rows), dtype=np.float32).reshape(-1, 1)

    (values,) = answer(session, {"x": x}).values()

    assert len(values) == answered
    assert values.max() >= 2 * rows * 0.99  # rows in order: the last ones are described, too


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("rows.csv", "a,b\n1,2\n", [], "rows.csv has 2 columns (a, b), and the model takes x"),
        ("rows.csv", "a,b,c\n1,2,x\n", [], "row 2, column 'c': 'x' is no number"),
        ("rows.npz", "no archive", [], "rows.npz is no .npz file, or is damaged"),
        ("rows.json", "{}", [], "--data rows.json: give .npz, .csv"),
        ("rows.csv", "a,b,c,y\n1,2,3,no\n", ["--task", "classification", "--target", "y"],
         "say which there are by --label"),
    ],
)  # fmt: skip
def test_wrong_data_are_refused_with_the_next_step(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    options: list[str],
    message: str,
) -> None:
    (tmp_path / name).write_text(content)

    assert publish(tmp_path, make_doubler(), "--data", str(tmp_path / name), *options) == 1

    assert message in capsys.readouterr().err
