"""Schema (version 1) and parser of manifest.json, the model's metadata file.

A manifest is a training job's record of its model. Every field but `schema` is optional. Fields of
this schema are checked, others are accepted. The file is stored whole beside the model.
"""

import json
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from functions.core.errors import InvalidModel, one_line
from functions.core.registration.manifest import DeclaredTensor, ListedFile, Manifest
from functions.register.evaluation import Evaluation
from functions.register.fields import OPEN, Count, Finite, Label, Name, Scalars, Share, Text


class _Open(BaseModel):
    model_config = OPEN


class Tensor(_Open):
    """Input or output of the model, as the manifest declares it.

    A declared datatype or shape has to agree with the model's graph; -1 is a dimension of any
    size. `labels` name the classes along the last dimension of an output, `columns` those of a
    table.
    """

    name: Name
    datatype: Annotated[str, Field(max_length=16)] | None = None  # e.g. "FP32"
    shape: Annotated[list[int], Field(max_length=16)] | None = None
    labels: Annotated[list[Label], Field(max_length=100_000)] = []
    columns: Annotated[list[Label], Field(max_length=100_000)] | None = None


class File(_Open):
    """Manifest entry of a file in a model uploaded in parts.

    `path` is relative to the manifest, which has to be uploaded last. `size` is in bytes.
    """

    path: Name
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Sample(_Open):
    """Example request with the trained model's expected response.

    Both are JSON of the Open Inference Protocol. A registration rejects a model that answers a
    sample differently.
    """

    request: dict[str, Any]
    response: dict[str, Any]


class Tolerance(_Open):
    """Accepted difference between a sample's response and the model's answer.

    The limit of a value is `atol + rtol * abs(expected)`.
    """

    rtol: Annotated[float, Field(ge=0, le=1)] = 1e-3
    atol: Annotated[float, Field(ge=0)] = 1e-5


class Feature(_Open):
    """Histogram of an input, output or column at training time.

    Numbers have ascending `edges` and a count for each of the len(edges) + 1 bins, which are open
    at both ends. Categories and labels have `values` and a count for each.
    """

    name: Name
    feature: Label | None = None  # the column
    of: Annotated[str, Field(max_length=32)] = "value"
    edges: Annotated[list[Finite], Field(max_length=256)] | None = None
    values: Annotated[list[Label], Field(max_length=1024)] | None = None
    counts: Annotated[list[Count], Field(max_length=1024)]
    missing: Count = 0

    @model_validator(mode="after")
    def _check_bins(self) -> Self:
        if (self.edges is None) == (self.values is None):
            raise ValueError("give either edges or values")
        bins = len(self.values) if self.values is not None else len(self.edges or ()) + 1
        if len(self.counts) != bins:
            raise ValueError(f"{len(self.counts)} counts, and there are {bins} bins")
        edges = self.edges or []
        if any(low >= high for low, high in pairwise(edges)):
            raise ValueError("edges have to ascend")
        return self


class Features(_Open):
    """Histograms of the rows of a part of the data."""

    part: Label | None = None
    rows: Count | None = None
    features: Annotated[list[Feature], Field(max_length=4096)] = []


class Distributions(_Open):
    """Distributions at training time, the reference for drift."""

    inputs: Features = Features()
    outputs: Features = Features()
    priors: Annotated[dict[Label, Share], Field(max_length=1024)] = {}  # by class


class Language(_Open):
    """Facts of a language model, before those of its configuration files."""

    context: Annotated[int, Field(ge=2, le=2**24)] | None = None  # tokens
    pooling: Literal["mean", "cls", "last"] | None = None  # encoders alone
    normalised: bool | None = None  # an encoder's vectors have length 1


class ManifestSchema(_Open):
    """Content of manifest.json: signature, metrics, samples and other model metadata.

    Tensors and samples use the terms of the Open Inference Protocol:
    https://github.com/kserve/open-inference-protocol
    """

    schema_: Annotated[Literal[1], Field(alias="schema")]
    task: Annotated[str, Field(max_length=128)] | None = None  # e.g. "classification"
    description: Text | None = None
    inputs: Annotated[list[Tensor], Field(max_length=1024)] = []
    outputs: Annotated[list[Tensor], Field(max_length=1024)] = []
    metrics: Scalars = {}
    baselines: dict[Text, Scalars] = {}  # metrics by baseline
    evaluation: Evaluation = Evaluation()
    data: dict[Text, Any] = {}
    distributions: Distributions = Distributions()  # kept in the stored manifest alone
    hyperparameters: dict[Text, Any] = {}
    training: dict[Text, Any] = {}
    tolerance: Tolerance = Tolerance()
    # Variants to try at registration; one is served if it matches the samples and saves enough.
    variants: Annotated[list[Literal["int8", "fp16"]], Field(max_length=2)] = []
    samples: Annotated[list[Sample], Field(max_length=64)] = []
    language: Language = Language()
    files: Annotated[list[File], Field(max_length=256)] = []  # only of a package in parts


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
    "tolerance",
    "compression",
)


def read_manifest(raw: bytes) -> Manifest:
    """Parse and validate manifest.json, the model's metadata.

    Raises:
        InvalidModel: `BAD_MANIFEST`, with the path of the field at fault.
    """
    document = _parse_json(raw)
    schema = _validate(document)
    return Manifest(
        raw=raw,
        card=_card(document),
        inputs=_declared_tensors(schema.inputs),
        outputs=_declared_tensors(schema.outputs),
        files=tuple(ListedFile(file.path, file.size, file.sha256) for file in schema.files),
        samples=tuple(
            {"request": sample.request, "response": sample.response} for sample in schema.samples
        ),
        rtol=schema.tolerance.rtol,
        atol=schema.tolerance.atol,
        variants=tuple(dict.fromkeys(schema.variants)),
        language=_stated(schema.language),
    )


def _stated(language: Language) -> dict[str, Any]:
    """Return the known fields of a manifest's `language` that have a value."""
    fields = {name: getattr(language, name) for name in Language.model_fields}
    return {name: value for name, value in fields.items() if value is not None}


def _parse_json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"the manifest is no JSON: {error}", code="BAD_MANIFEST") from error


def _validate(document: Any) -> ManifestSchema:
    try:
        return ManifestSchema.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or "manifest"
        message = f"the manifest's {one_line(path, 80)}: {first['msg']}"
        raise InvalidModel(message, code="BAD_MANIFEST") from error


def _card(document: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's non-empty model-card fields, without class labels.

    The signature holds the labels.
    """
    card = {
        name: document[name] for name in CARD_FIELDS if document.get(name) not in (None, {}, [])
    }
    for side in ("inputs", "outputs"):
        if side in card:
            card[side] = [_without_labels(tensor) for tensor in card[side]]
    return card


def _without_labels(tensor: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tensor.items() if name != "labels"}


def _declared_tensors(tensors: list[Tensor]) -> dict[str, DeclaredTensor]:
    return {
        tensor.name: DeclaredTensor(
            datatype=tensor.datatype,
            shape=None if tensor.shape is None else tuple(tensor.shape),
            labels=tuple(tensor.labels),
        )
        for tensor in tensors
    }
