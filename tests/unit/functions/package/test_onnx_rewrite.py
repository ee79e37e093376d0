"""Tests of rewritten ONNX files, compared with the onnx package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from functions.core.errors import InvalidModel
from functions.core.package import onnx_rewrite
from functions.core.package.onnx_reader import read_onnx
from functions.core.package.onnx_rewrite import Rewrite, apply
from tests import language_models
from tests.models import make_model

FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING
SHARP = "Groß İ"  # labels may have any letters


def value(name: str, kind: int = FLOAT, shape: Sequence[Any] = ("n", 3)) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def maps(name: str, key: int = STRING) -> Any:
    """Declare a sequence of maps, the output type of ZipMap."""
    inner = helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, []))
    return helper.make_value_info(name, helper.make_sequence_type_proto(inner))


def classifier(labels: Sequence[str] | Sequence[int] = ("a", SHARP, "c")) -> Any:
    """Make a classifier as CatBoost exports it, with a ZipMap node."""
    kind = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"
    model = make_model(
        [
            helper.make_node("Add", ["x", "w"], ["p"]),
            helper.make_node("ZipMap", ["p"], ["z"], "zip", domain="ai.onnx.ml", **{kind: labels}),
            helper.make_node("ArgMax", ["p"], ["y"], axis=1, keepdims=0),
        ],
        [value("x")],
        [value("y", TensorProto.INT64, ["n"]), maps("z")],
        [numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")],
        {"k": "v"},
    )
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    return model


def normaliser(**attributes: Any) -> Any:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], "n", **attributes)
    return make_model([node], [value("x", STRING, ["n"])], [value("y", STRING, ["m"])])


def rewritten(tmp_path: Path, model: Any) -> tuple[Any, Rewrite]:
    """Rewrite an ONNX model; return the parsed result and its edits."""
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    rewrite = read_onnx(path).rewrite
    if rewrite.edits:
        apply(path, rewrite.edits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert not read_onnx(path).rewrite.edits
    return onnx.load(path, load_external_data=False), rewrite


# --- ZipMap


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(("a", SHARP, "c"), ("a", SHARP, "c")), ((0, -7, 2**62), ("0", "-7", str(2**62)))],
)
def test_zipmap_is_cut_off_and_everything_else_stays(
    tmp_path: Path, labels: Any, expected: tuple[str, ...]
) -> None:
    model = classifier(labels)

    found, rewrite = rewritten(tmp_path, model)

    model.graph.node[1].CopyFrom(helper.make_node("Cast", ["p"], ["z"], "zip", to=1))
    model.graph.output[1].CopyFrom(value("z", shape=[None, 3]))
    assert found == model
    assert rewrite.labels == {"z": expected}
    assert len(rewrite.notes) == 1
    assert "'z'" in next(iter(rewrite.notes))
    assert "ZipMap" in next(iter(rewrite.notes))


def test_each_of_several_zipmaps_is_cut_off_with_the_types_declared_inside(tmp_path: Path) -> None:
    model = classifier()
    second = helper.make_node(
        "ZipMap", ["p"], ["z2"], domain="ai.onnx.ml", classlabels_int64s=[5, 6, 7]
    )
    model.graph.node.append(second)
    model.graph.output.append(maps("z2", TensorProto.INT64))
    model.graph.value_info.append(maps("z"))

    found, rewrite = rewritten(tmp_path, model)

    assert [node.op_type for node in found.graph.node] == ["Add", "Cast", "ArgMax", "Cast"]
    declared = [*found.graph.output, *found.graph.value_info]
    assert [item.type.WhichOneof("value") for item in declared] == ["tensor_type"] * 4
    assert rewrite.labels == {"z": ("a", SHARP, "c"), "z2": ("5", "6", "7")}


def test_packed_class_labels_are_read(tmp_path: Path) -> None:
    minus_one = b"\xff" * 9 + b"\x01"
    unpacked = b"\x40\x01\x40\xac\x02\x40" + minus_one + b"\x40\x07"
    packed = b"\x42\x0e\x01\xac\x02" + minus_one + b"\x07" + b"\x40\x09"  # and one unpacked
    raw = classifier([1, 300, -1, 7]).SerializeToString()
    assert unpacked in raw

    model = onnx.ModelProto.FromString(raw.replace(unpacked, packed))
    [node] = [node for node in model.graph.node if node.op_type == "ZipMap"]
    assert list(node.attribute[0].ints) == [1, 300, -1, 7, 9]
    path = tmp_path / "model.onnx"
    path.write_bytes(raw.replace(unpacked, packed))

    assert read_onnx(path).rewrite.labels == {"z": ("1", "300", "-1", "7", "9")}


def test_weights_in_another_file_keep_their_place(tmp_path: Path) -> None:
    model = classifier()
    [weight] = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in {"location": "w.bin", "offset": "4096", "length": "12"}.items():
        weight.external_data.add(key=key, value=text)

    found, _ = rewritten(tmp_path, model)

    assert found.graph.initializer[0] == weight


def test_a_zipmap_that_makes_no_output_stays(tmp_path: Path) -> None:
    model = classifier()
    model.graph.node.append(helper.make_node("Identity", ["z"], ["other"]))
    model.graph.output[1].CopyFrom(maps("other"))

    found, rewrite = rewritten(tmp_path, model)

    assert found == model
    assert not rewrite.notes


def test_labels_that_no_record_holds_are_left_out_and_the_note_says_so(tmp_path: Path) -> None:
    labels = [f"{at:09d}" for at in range(onnx_rewrite.LABELS_BYTES // 16)]

    _, rewrite = rewritten(tmp_path, classifier(labels))

    assert not rewrite.labels
    assert "labels are too long" in next(iter(rewrite.notes))


# --- locale


@pytest.mark.parametrize("locale", ["en_US", "en_US.UTF-8", "de_DE", "", "tt_RU", "trv_TW", None])
@pytest.mark.parametrize("action", ["LOWER", "UPPER", "NONE"])
def test_a_locale_that_machines_lack_becomes_one_that_they_have(
    tmp_path: Path, locale: str | None, action: str
) -> None:
    given = {} if locale is None else {"locale": locale}
    model = normaliser(**given, case_change_action=action, stopwords=["the", "a"])

    found, rewrite = rewritten(tmp_path, model)

    expected = normaliser(**given, case_change_action=action, stopwords=["the", "a"])
    attributes = {item.name: item for item in expected.graph.node[0].attribute}
    attribute = attributes.get("locale") or expected.graph.node[0].attribute.add()
    attribute.CopyFrom(helper.make_attribute("locale", "C.UTF-8"))
    assert found == expected
    assert len(rewrite.notes) == 1
    assert repr("en_US" if locale is None else locale) in next(iter(rewrite.notes))


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "C.utf8"])
def test_a_locale_of_every_machine_stays(tmp_path: Path, locale: str) -> None:
    model = normaliser(locale=locale, case_change_action="LOWER")

    assert rewritten(tmp_path, model)[0] == model


@pytest.mark.parametrize("locale", ["tr_TR", "tr", "tr-TR", "az_AZ.UTF-8", "ku_TR", "crh_UA"])
def test_a_locale_with_another_upper_case_is_refused_with_the_cure(
    tmp_path: Path, locale: str
) -> None:
    with pytest.raises(InvalidModel, match=r"'n' .*change case before the model.*C\.UTF-8") as no:
        rewritten(tmp_path, normaliser(locale=locale, case_change_action="UPPER"))
    assert no.value.instance_code == "LOCALE"

    unused = normaliser(locale=locale, case_change_action="NONE")
    assert rewritten(tmp_path, unused)[0] == unused


def test_nodes_in_branches_are_rewritten_too(tmp_path: Path) -> None:
    def branch(name: str, **attributes: Any) -> Any:
        node = helper.make_node("StringNormalizer", ["x"], [name], "n" * 200, **attributes)
        return helper.make_graph([node], name, [], [value(name, STRING, ["m"])])

    def model(**attributes: Any) -> Any:
        node = helper.make_node(
            "If",
            ["c"],
            ["y"],
            then_branch=branch("t", case_change_action="LOWER", **attributes),
            else_branch=branch("e", case_change_action="UPPER", **attributes),
        )
        inputs = [value("c", TensorProto.BOOL, []), value("x", STRING, ["n"])]
        return make_model([node], inputs, [value("y", STRING, ["m"])])

    found, rewrite = rewritten(tmp_path, model(locale="en_US"))

    assert found == model(locale="C.UTF-8")
    assert len(rewrite.notes) == 1


# --- training information


@pytest.mark.parametrize("filled", [True, False])
def test_training_information_is_left_out(tmp_path: Path, filled: bool) -> None:
    model = classifier()
    training = model.training_info.add()
    if filled:
        training.algorithm.node.append(helper.make_node("Adam", ["x"], ["u"], domain="no.such"))

    found, rewrite = rewritten(tmp_path, model)

    assert not any(info.ByteSize() for info in found.training_info)
    assert ("training information" in "".join(rewrite.notes)) is filled


def test_a_file_that_needs_no_change_is_not_written(tmp_path: Path) -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], [value("x")], [value("y")])

    found, rewrite = rewritten(tmp_path, model)

    assert found == model
    assert rewrite == Rewrite()


# --- caches of a window


def test_a_cache_of_the_windows_size_is_switched_off(tmp_path: Path) -> None:
    model = onnx.load_from_string(language_models.decoder_model(window=8, window_cache=True))
    found, rewrite = rewritten(tmp_path, model)

    expected = onnx.load_from_string(language_models.decoder_model(window=8))
    assert list(rewrite.notes) == [onnx_rewrite.WINDOWED]
    assert found.SerializeToString() == expected.SerializeToString()
