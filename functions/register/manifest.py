"""The manifest, schema 1: what a training job says about its model. Unknown fields are kept; known ones are checked."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from functions.core.errors import InvalidModel, one_line
from functions.core.registration.registration import DeclaredTensor, ListedFile, Manifest

Text = Annotated[str, Field(max_length=4096)]
Label = Annotated[str, Field(max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Scalars = dict[Text, str | int | float | bool | None]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class Tensor(_Open):
    name: Name
    datatype: Annotated[str, Field(max_length=16)] | None = None
    shape: Annotated[list[int], Field(max_length=16)] | None = None
    labels: Annotated[list[Label], Field(max_length=100_000)] = []


class File(_Open):
    path: Name
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Sample(_Open):
    """One Open Inference Protocol request and the response it had in training."""

    request: dict[str, Any]
    response: dict[str, Any]


class Tolerance(_Open):
    rtol: Annotated[float, Field(ge=0, le=1)] = 1e-3
    atol: Annotated[float, Field(ge=0)] = 1e-5


class Primary(_Open):
    metric: Text
    higher_is_better: bool


class Lead(_Open):
    """How much better than the best baseline; above zero is better."""

    over: Text
    by: float
    interval: Interval | None = None


class Evaluation(_Open):
    """How sure the metrics are and for whom they hold: what a gate may ask beside the metrics."""

    primary: Primary | None = None
    rows: Annotated[int, Field(ge=0)] | None = None
    intervals: dict[Text, Interval] = {}
    lead: Lead | None = None
    groups: dict[Text, Any] = {}
    calibration: dict[Text, Any] = {}


class ManifestSchema(_Open):
    """`mayfly.manifest`: https://github.com/kserve/open-inference-protocol for the words of samples and tensors."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    task: Annotated[str, Field(max_length=128)] | None = None
    description: Text | None = None
    inputs: Annotated[list[Tensor], Field(max_length=256)] = []
    outputs: Annotated[list[Tensor], Field(max_length=256)] = []
    metrics: Scalars = {}
    baselines: dict[Text, Scalars] = {}
    evaluation: Evaluation = Evaluation()
    data: dict[Text, Any] = {}
    hyperparameters: dict[Text, Any] = {}
    training: dict[Text, Any] = {}
    tolerance: Tolerance = Tolerance()
    variants: Annotated[list[Literal["int8", "fp16"]], Field(max_length=2)] = []
    samples: Annotated[list[Sample], Field(max_length=64)] = []
    files: Annotated[list[File], Field(max_length=64)] = []


CARD_FIELDS = (
    "task",
    "description",
    "inputs",
    "outputs",
    "metrics",
    "baselines",
    "evaluation",
    "data",
    "hyperparameters",
    "training",
    "compression",
)


def read_manifest(raw: bytes) -> Manifest:
    """Check a manifest and take from it what a registration needs.

    Raises:
        InvalidModel: `BAD_MANIFEST`, with the path of the field at fault.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"the manifest is no JSON: {error}", code="BAD_MANIFEST") from error
    try:
        checked = ManifestSchema.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise InvalidModel(
            f"the manifest's {one_line(where, 80)}: {first['msg']}", code="BAD_MANIFEST"
        ) from error
    card = {
        name: document[name] for name in CARD_FIELDS if document.get(name) not in (None, {}, [])
    }
    for tensors in (card.get("inputs", []), card.get("outputs", [])):
        for tensor in tensors:
            tensor.pop("labels", None)  # they are in the signature
    return Manifest(
        raw=raw,
        card=card,
        inputs=_declared(checked.inputs),
        outputs=_declared(checked.outputs),
        files=tuple(ListedFile(file.path, file.size, file.sha256) for file in checked.files),
        samples=tuple(
            {"request": sample.request, "response": sample.response} for sample in checked.samples
        ),
        rtol=checked.tolerance.rtol,
        atol=checked.tolerance.atol,
        variants=tuple(dict.fromkeys(checked.variants)),
    )


def _declared(tensors: list[Tensor]) -> dict[str, DeclaredTensor]:
    return {
        tensor.name: DeclaredTensor(
            tensor.datatype,
            None if tensor.shape is None else tuple(tensor.shape),
            tuple(tensor.labels),
        )
        for tensor in tensors
    }
