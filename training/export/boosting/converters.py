"""Converters of xgboost, LightGBM and CatBoost estimators for skl2onnx.

Each is registered if its library is installed: xgboost and LightGBM with onnxmltools, CatBoost
with its own exporter. They work alone and as the last step of a pipeline.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from training.errors import ExportFailed

OPTIONS = {"nocl": [True, False], "zipmap": [True, False, "columns"]}


@functools.cache
def register(libraries: frozenset[str]) -> None:
    """Register the converters of `libraries`, names of imported packages.

    Raises:
        ExportFailed: a package that a converter needs is missing.
    """
    for library in libraries & set(REGISTER):
        try:
            REGISTER[library]()
        except ModuleNotFoundError as missing:
            raise ExportFailed(
                f"{library} is exported with the package {missing.name}: pip install {missing.name}"
            ) from missing


def libraries(parts: Sequence[Any]) -> frozenset[str]:
    """Return the top packages that estimators come from."""
    return frozenset(type(part).__module__.partition(".")[0] for part in parts)


def _register_xgboost() -> None:
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from xgboost import XGBClassifier, XGBRegressor

    update_registered_converter(
        XGBClassifier, "MayflyXGBClassifier", calculate_linear_classifier_output_shapes,
        convert_xgboost, options=OPTIONS,
    )  # fmt: skip
    update_registered_converter(
        XGBRegressor, "MayflyXGBRegressor", calculate_linear_regressor_output_shapes,
        convert_xgboost,
    )  # fmt: skip


def _register_lightgbm() -> None:
    from lightgbm import LGBMClassifier, LGBMRegressor
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    update_registered_converter(
        LGBMClassifier, "MayflyLGBMClassifier", calculate_linear_classifier_output_shapes,
        convert_lightgbm, options=OPTIONS,
    )  # fmt: skip
    update_registered_converter(
        LGBMRegressor, "MayflyLGBMRegressor", calculate_linear_regressor_output_shapes,
        convert_lightgbm, options={"split": None},
    )  # fmt: skip


def _register_catboost() -> None:
    from catboost import CatBoostClassifier, CatBoostRegressor
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    update_registered_converter(
        CatBoostClassifier, "MayflyCatBoostClassifier",
        calculate_linear_classifier_output_shapes, _convert_catboost,
        parser=_parse_catboost_classifier, options=OPTIONS,
    )  # fmt: skip
    update_registered_converter(
        CatBoostRegressor, "MayflyCatBoostRegressor", calculate_linear_regressor_output_shapes,
        _convert_catboost,
    )  # fmt: skip


def _parse_catboost_classifier(
    scope: Any, model: Any, inputs: list[Any], custom_parsers: Any = None
) -> Any:
    """Declare a CatBoost classifier's label and probabilities, without a ZipMap."""
    from skl2onnx._parse import _get_sklearn_operator_name
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    del custom_parsers
    operator = scope.declare_local_operator(_get_sklearn_operator_name(type(model)), model)
    operator.inputs = inputs
    operator.outputs.append(scope.declare_local_variable("label", Int64TensorType()))
    operator.outputs.append(scope.declare_local_variable("probabilities", FloatTensorType()))
    return operator.outputs


def _convert_catboost(scope: Any, operator: Any, container: Any) -> None:
    """Add the tree ensemble that CatBoost's exporter writes to a graph."""
    from catboost.utils import convert_to_onnx_object
    from onnx import helper

    model = convert_to_onnx_object(operator.raw_operator)
    (ensemble,) = [node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")]
    attributes = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in ensemble.attribute
    }
    attributes = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in attributes.items()
    }
    for name, value in attributes.items():
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            attributes[name] = [text.decode() for text in value]
    container.add_node(
        ensemble.op_type,
        [operator.inputs[0].full_name],
        [output.full_name for output in operator.outputs],
        op_domain="ai.onnx.ml",
        op_version=1,
        name=scope.get_unique_operator_name("CatBoost"),
        **attributes,
    )


REGISTER = {
    "xgboost": _register_xgboost,
    "lightgbm": _register_lightgbm,
    "catboost": _register_catboost,
}
