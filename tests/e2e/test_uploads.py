"""Uploads of all forms: each becomes exactly one version, ready or rejected with a reason."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from local.client import RunningStack
from tests.e2e.conftest import Api
from tests.models import make_model, outside_weights_model, scale_model


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def listing(files: dict[str, bytes]) -> dict[str, object]:
    return {
        "schema": 1,
        "files": [
            {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in files.items()
        ],
    }


def classifier() -> bytes:
    """Return a model with string and integer inputs and two outputs."""
    model = make_model(
        [
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["f", "w"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
            helper.make_node("Identity", ["s"], ["t"]),
        ],
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, ["rows", 2]),
            helper.make_tensor_value_info("s", TensorProto.STRING, [None]),
        ],
        [
            helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("t", TensorProto.STRING, [None]),
        ],
        [numpy_helper.from_array(np.eye(2, 3, dtype=np.float32), "w")],
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_a_valid_model_is_served_without_a_restart(api: Api, model: str) -> None:
    assert api.get(f"/v2/models/{model}/ready").status == 404

    api.upload(f"models/{model}/any/folder/x.onnx", classifier())
    api.wait_ready(model)

    metadata = api.get(f"/v2/models/{model}").json
    assert metadata["platform"] == "onnxruntime_onnx"
    assert metadata["inputs"] == [
        {"name": "n", "datatype": "INT64", "shape": [-1, 2]},
        {"name": "s", "datatype": "BYTES", "shape": [-1]},
    ]
    reply = api.call(
        "POST",
        f"/v2/models/{model}/infer",
        {
            "inputs": [
                {"name": "n", "shape": [1, 2], "datatype": "INT64", "data": [[0, 100]]},
                {"name": "s", "shape": [2], "datatype": "BYTES", "data": ["naïve", ""]},
            ]
        },
    )
    assert reply.status == 200, reply.body
    assert reply.json["outputs"][0]["data"] == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    assert reply.json["outputs"][1]["data"] == ["naïve", ""]


def test_a_second_version_moves_latest_and_leaves_prod(api: Api, model: str) -> None:
    api.upload(f"models/{model}/x.onnx", scale_model(2.0))
    api.wait_ready(model)
    assert api.infer(model, [1, 2, 3], "latest").json["outputs"][0]["data"] == [2, 4, 6]

    api.upload(f"models/{model}/x.onnx", scale_model(3.0))
    api.wait_ready(model, version=2)
    api.wait(
        lambda: api.infer(model, [1, 1, 1], "latest").json["model_version"] == "2",
        "latest to follow",
    )

    for reference, version, factor, alias in [
        (None, 1, 2, "prod"),
        ("prod", 1, 2, "prod"),
        ("latest", 2, 3, "latest"),
        (1, 1, 2, None),
        (2, 2, 3, None),
    ]:
        reply = api.infer(model, [1, 2, 3], reference)
        assert reply.json["outputs"][0]["data"] == [factor, 2 * factor, 3 * factor]
        assert reply.json["model_version"] == str(version)
        assert reply.headers["x-model-version"] == str(version)
        assert reply.headers.get("x-model-alias") == alias
    assert api.get(f"/v2/models/{model}").json["versions"] == ["1", "2"]


def test_latest_is_the_last_of_five_uploads_without_a_pause(api: Api, model: str) -> None:
    key = f"models/{model}/model.onnx"
    for factor in range(1, 6):
        api.upload(key, scale_model(float(factor)))
    api.wait_ended(model, 5)

    api.wait(
        lambda: api.infer(model, [1, 1, 1], "latest").json["outputs"][0]["data"] == [5, 5, 5],
        "latest to be the last upload",
    )


def test_direct_invocations_from_new_to_old_leave_latest_at_the_last_upload(
    api: Api, stack: RunningStack, model: str, upload_silently: Callable[[str, bytes], str]
) -> None:
    key = f"models/{model}/model.onnx"
    versions = [upload_silently(key, scale_model(float(factor))) for factor in range(1, 6)]
    function = stack.client("lambda")

    for version_id in reversed(versions):
        reply = function.invoke(
            FunctionName="RegisterFunction", Payload=event(api.bucket, key, version_id)
        )
        assert json.load(reply["Payload"])["versions"][0]["state"] == "READY"

    latest = api.infer(model, [1, 1, 1], "latest")
    assert latest.json["outputs"][0]["data"] == [5, 5, 5]
    assert latest.headers["x-model-version"] == "1"


def event(bucket: str, key: str, version_id: str | None) -> bytes:
    s3_object = {"key": key, **({"versionId": version_id} if version_id else {})}
    record = {
        "eventName": "ObjectCreated:Put",
        "eventSource": "aws:s3",
        "s3": {"bucket": {"name": bucket}, "object": s3_object},
    }
    return json.dumps({"Records": [record]}).encode()


def test_repeated_and_swapped_events_make_one_version_per_upload(
    api: Api, stack: RunningStack, model: str
) -> None:
    key = f"models/{model}/x.onnx"
    first = api.upload(key, scale_model(2.0))
    second = api.upload(key, scale_model(3.0))
    api.wait_ended(model, 2)
    function = stack.client("lambda")

    for version_id in (second, first, first, first, second, first, first):
        reply = function.invoke(
            FunctionName="RegisterFunction", Payload=event(api.bucket, key, version_id)
        )
        assert json.load(reply["Payload"])["versions"][0]["state"] == "READY"

    rows = api.wait_ended(model, 2)
    assert [row["version"] for row in rows] == ["1", "2"]
    answers = {
        api.infer(model, [1, 1, 1], number).json["outputs"][0]["data"][0] for number in (1, 2)
    }
    assert answers == {2.0, 3.0}


def test_a_multipart_upload_is_one_version(api: Api, model: str, tmp_path: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    path = tmp_path / "big.onnx"
    weights = numpy_helper.from_array(np.zeros(3_000_000, dtype=np.float32), "unused")
    big = onnx.load_from_string(scale_model(5.0))
    big.graph.initializer.append(weights)
    path.write_bytes(big.SerializeToString())

    api.s3.upload_file(
        str(path), api.bucket, f"models/{model}/big.onnx",
        Config=TransferConfig(multipart_threshold=5_000_000, multipart_chunksize=5_000_000),
    )  # fmt: skip

    api.wait_ready(model)
    assert api.infer(model, [1, 1, 1]).json["outputs"][0]["data"] == [5, 5, 5]
    assert len(api.wait_ended(model, 1)) == 1


def test_a_key_with_spaces_and_signs_registers(api: Api, model: str) -> None:
    api.upload(f"models/{model}/run 1/my+model (final) é.onnx", scale_model())

    api.wait_ready(model)


def test_capitals_in_name_and_endings_register_as_a_model_of_its_own(api: Api, model: str) -> None:
    name = model.upper()
    api.upload(f"models/{name}/Net.ONNX", scale_model(2.0))
    api.wait_ready(name)
    api.upload(f"models/{name}/MODEL.TGZ", tar({"net.onnx": scale_model(3.0)}))
    api.wait_ready(name, 2)

    assert api.infer(name, [1, 1, 1], 1).json["outputs"][0]["data"] == [2, 2, 2]
    assert api.infer(name, [1, 1, 1], 2).json["outputs"][0]["data"] == [3, 3, 3]
    assert api.infer(model, [1, 1, 1]).status == 404


def test_an_upload_that_becomes_no_version_is_in_the_index_with_its_reason(
    api: Api, model: str
) -> None:
    ignored = {
        f"models/{model}/model.h5": (model, "model.export('model.onnx', format='onnx')"),
        f"models/{model} bad/x.onnx": (f"{model} bad", "cannot name a model"),
        f"models/{model}.onnx": (f"{model}.onnx", "upload it to models/<model>/"),
    }
    for key in (*ignored, f"models/{model}/readme.md", f"models/{model}/x.onnx.data"):
        api.upload(key, b"content")
    for key, (name, cure) in ignored.items():
        [row] = api.wait(lambda name=name: api.index(name), f"{key} in the index")
        assert (row["state"], row.get("version")) == ("UNAVAILABLE", None)
        assert cure in row["reason"]
        assert row["reason"].endswith(f"{key[-30:]})")


def test_external_weights_come_in_an_archive_or_with_a_manifest(
    api: Api, model: str, tmp_path: Path
) -> None:
    content, weights = outside_weights_model(tmp_path, "w.bin")
    api.upload(
        f"models/{model}/job/output/model.tar.gz", tar({"net.onnx": content, "w.bin": weights})
    )
    api.wait_ready(model, 1)
    files = {"parts/net.onnx": content, "parts/w.bin": weights}
    for path, data in files.items():
        api.upload(f"models/{model}/second/{path}", data)
    api.upload(f"models/{model}/second/manifest.json", json.dumps(listing(files)).encode())
    api.wait_ready(model, 2)

    for version in (1, 2):
        assert api.infer(model, [1, 1, 1], version).json["outputs"][0]["data"] == [1, 2, 3]


@pytest.mark.parametrize("order", ["model first", "weights first"])
def test_weights_copied_beside_the_model_are_served(
    api: Api, model: str, tmp_path: Path, order: str
) -> None:
    content, weights = outside_weights_model(tmp_path)
    reason = "'model.onnx.data' are not beside it"
    folder = f"models/{model}/run"
    if order == "model first":
        api.upload(f"{folder}/model.onnx", content)
        api.wait(lambda: [row for row in api.index(model) if reason in row["reason"]], reason)
    api.upload(f"{folder}/model.onnx.data", weights)
    if order == "weights first":
        api.upload(f"{folder}/model.onnx", content)

    api.wait_ready(model, 1)

    assert api.infer(model, [1, 1, 1]).json["outputs"][0]["data"] == [1, 2, 3]
    assert len(api.wait_ended(model, 1)) == 1


def test_bad_uploads_are_rejected_with_reasons_and_block_nothing(api: Api, model: str) -> None:
    folder = f"models/{model}"
    wrong = listing({"parts/m.onnx": scale_model()})
    wrong["files"][0]["sha256"] = "0" * 64
    api.upload(f"{folder}/parts/m.onnx", scale_model())
    bad = {
        f"{folder}/truncated.onnx": (scale_model()[:-20], "truncated"),
        f"{folder}/text.onnx": (b"dear registry, please serve me", "no ONNX model"),
        f"{folder}/empty.onnx": (b"", "empty"),
        f"{folder}/model.tar.gz": (tar({"readme.txt": b"hello"}), "holds no .onnx file"),
        f"{folder}/manifest.json": (json.dumps(wrong).encode(), "sha256"),
    }
    for number, (key, (content, _)) in enumerate(bad.items(), 1):
        api.upload(key, content)
        api.wait_ended(model, number)
    api.upload(f"{folder}/good.onnx", scale_model())
    api.wait_ready(model)

    rows = api.wait_ended(model, len(bad) + 1)

    assert [row["state"] for row in rows] == ["UNAVAILABLE"] * len(bad) + ["READY"]
    for row, (_, why) in zip(rows, bad.values(), strict=False):
        assert why in row["reason"], row
    assert api.infer(model, [1, 1, 1]).headers["x-model-version"] == str(len(bad) + 1)
    refused = api.infer(model, [1, 1, 1], 1)
    assert refused.status == 409
    assert "rejected" in refused.json["error"].lower()


def test_an_event_for_a_missing_object_is_rejected_or_ignored(
    api: Api, stack: RunningStack, model: str
) -> None:
    function = stack.client("lambda")
    key = f"models/{model}/gone.onnx"

    unnamed = function.invoke(FunctionName="RegisterFunction", Payload=event(api.bucket, key, None))
    named = function.invoke(
        FunctionName="RegisterFunction", Payload=event(api.bucket, key, "3sL4kqtJlcpXroDTDmJ")
    )

    assert json.load(unnamed["Payload"]) == {"versions": []}
    [version] = json.load(named["Payload"])["versions"]
    assert (version["state"], version["code"]) == ("REJECTED", "OBJECT_GONE")


@pytest.mark.parametrize("path", sorted(Path("events").glob("*.json")), ids=lambda path: path.stem)
def test_every_event_can_be_sent_to_its_function(stack: RunningStack, path: Path) -> None:
    """Bucket and model do not exist: the README's command gets a reply and no traceback."""
    resource = json.loads(path.read_text()).get("resource", "")
    by_path = "InferFunction" if resource.startswith("/v2") else "ManageFunction"
    function = by_path if path.name.startswith("apigw") else "RegisterFunction"

    answer = stack.client("lambda").invoke(FunctionName=function, Payload=path.read_bytes())

    assert "FunctionError" not in answer, answer["Payload"].read()
    assert json.load(answer["Payload"]).get("batchItemFailures", []) == []


def test_the_queues_are_empty_after_all_uploads(api: Api, stack: RunningStack, scaled: str) -> None:
    sqs = stack.client("sqs")

    def is_empty() -> bool:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        queue = sqs.get_queue_attributes(
            QueueUrl=stack.outputs["RegistrationQueueUrl"], AttributeNames=names
        )
        return all(count == "0" for count in queue["Attributes"].values())

    api.wait(is_empty, "an empty queue")
    dead_letters = sqs.get_queue_attributes(
        QueueUrl=stack.outputs["RegistrationDeadLettersUrl"],
        AttributeNames=["ApproximateNumberOfMessages"],
    )
    assert dead_letters["Attributes"]["ApproximateNumberOfMessages"] == "0"
