"""JSON schemas of the Open Inference Protocol's documents."""

from typing import Any

DATATYPES = [
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
]
STATES = ["READY", "UNAVAILABLE", "LOADING"]
PARAMETERS: dict[str, Any] = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}
TEXT: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer"}
SHAPE: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def fields(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return the schema of an object with these fields."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
    }


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema of SCHEMAS."""
    return {"$ref": f"#/components/schemas/{name}"}


def rows(name: str) -> dict[str, Any]:
    """Return the schema of a list of documents."""
    return {"type": "array", "items": ref(name)}


_SWITCH = {"type": ["boolean", "null"]}
_ABSENT = {"additionalProperties": {"type": "null"}}  # null is as if the field were missing
_DURATION = fields({"count": INTEGER, "ns": INTEGER})
_NAMED = {
    "name": {**TEXT, "description": "Name of the tensor."},
    "shape": SHAPE,
    "datatype": {"type": "string", "enum": DATATYPES},
}
SCHEMAS: dict[str, Any] = {
    "InferRequest": fields(
        {"inputs": rows("RequestInput")},
        id={"type": ["string", "null"]},
        outputs={"type": ["array", "null"], "items": ref("RequestOutput")},
        parameters={**PARAMETERS, "description": "`timeout` in µs; `binary_data_output`."},
    )
    | {
        "examples": [
            {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
        ]
    },
    "RequestInput": fields(
        _NAMED,
        data={
            "type": ["array", "null"],
            "description": "Values in row-major order, flat or nested; absent in binary.",
        },
        parameters={**PARAMETERS, "description": "`binary_data_size`; `content_type: base64`."},
    ),
    "RequestOutput": fields(
        {"name": TEXT},
        parameters={**PARAMETERS, "description": "`binary_data`; `classification`: N highest."},
    ),
    "InferResponse": fields(
        {"model_name": TEXT, "model_version": TEXT, "outputs": rows("ResponseOutput")},
        id=TEXT,
        parameters={"type": "object"},
    ),
    "ResponseOutput": fields(_NAMED, data={"type": "array"}, parameters={"type": "object"}),
    "ServerMetadata": fields(
        {"name": TEXT, "version": TEXT, "extensions": {"type": "array", "items": TEXT}}
    ),
    "Live": fields({"live": {"type": "boolean"}}),
    "Ready": fields({"live": {"type": "boolean"}, "ready": {"type": "boolean"}}),
    "Models": fields({"models": {"type": "array", "items": TEXT}}),
    "ModelMetadata": fields(
        {
            "name": TEXT,
            "versions": {"type": "array", "items": TEXT},
            "platform": TEXT,
            "inputs": rows("TensorMetadata"),
            "outputs": rows("TensorMetadata"),
            "properties": {"type": "object", "additionalProperties": TEXT},
        }
    ),
    "TensorMetadata": fields(
        {
            "name": TEXT,
            "datatype": {"type": "string", "enum": DATATYPES},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": -1},
                "description": "-1 is a dimension of any size.",
            },
        }
    ),
    "ModelReady": fields({"name": TEXT, "version": TEXT, "ready": {"type": "boolean"}}),
    "ModelConfig": fields(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "max_batch_size": INTEGER,
            "input": rows("ConfiguredTensor"),
            "output": rows("ConfiguredTensor"),
        },
        version_policy={"type": "object"},
        default_model_filename=TEXT,
        model_transaction_policy={"type": "object"},
    ),
    "ConfiguredTensor": fields(
        {"name": TEXT, "data_type": TEXT, "dims": {"type": "array", "items": INTEGER}}
    ),
    "Statistics": fields(
        {
            "model_stats": rows("ModelStatistics"),
            "delay_seconds": {
                "type": "number",
                "description": "Age of other environments' counts.",
            },
        }
    ),
    "ModelStatistics": fields(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": INTEGER,
            "inference_count": INTEGER,
            "execution_count": INTEGER,
            "inference_stats": {"type": "object", "additionalProperties": _DURATION},
        }
    ),
    "IndexRequest": fields({}, ready={"type": ["boolean", "null"]}),
    "Index": rows("IndexRow"),
    "IndexRow": fields(
        {"name": TEXT, "state": {"type": "string", "enum": STATES}},
        version={**TEXT, "description": "Absent for an upload that became no version."},
        reason=TEXT,
    ),
    "LoadRequest": fields({}, parameters={"type": ["object", "null"]} | _ABSENT) | _ABSENT,
    "UnloadRequest": fields(
        {},
        unload_dependents=_SWITCH,
        parameters={"type": ["object", "null"], "properties": {"unload_dependents": _SWITCH}}
        | _ABSENT,
    )
    | _ABSENT,
    "Empty": fields({}),
    "ErrorDocument": fields(
        {
            "error": {**TEXT, "description": "One sentence for people."},
            "code": {**TEXT, "description": "Stable code for programs, e.g. INVALID_REQUEST."},
            "request_id": TEXT,
        }
    ),
}
