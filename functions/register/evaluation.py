"""Schema of a manifest's `evaluation`: intervals, groups, calibration, figures."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from functions.core.errors import one_line
from functions.register.fields import OPEN, Count, Finite, Interval, Label, Share, Text

POINTS_MAX = 10_000  # more than a page can draw
Column = Annotated[list[Finite | None], Field(max_length=POINTS_MAX)]
Row = dict[Text, Any]  # table row: name, number of rows, metrics


class _Open(BaseModel):
    model_config = OPEN


class Primary(_Open):
    """Primary metric, which decides which of two models is better."""

    metric: Text
    higher_is_better: bool


class Lead(_Open):
    """Model's lead over the best baseline in the primary metric.

    `by` is above zero for a model that is better than the baseline `over`.
    """

    over: Text
    by: float
    interval: Interval | None = None


class Groups(_Open):
    """Primary metric by group of rows, the worst groups first."""

    by: Text | None = None  # the column that names a row's group
    count: Count | None = None
    worst: Annotated[list[Row], Field(max_length=1024)] = []


class Bin(_Open):
    """Test rows of one bin of confidence, and their accuracy."""

    confidence: Share
    accuracy: Share
    rows: Count


class Calibration(_Open):
    """Calibration of a classifier, which pages draw as a reliability diagram."""

    expected_error: Finite | None = None
    bins: Annotated[list[Bin], Field(max_length=1024)] = []


class Learning(_Open):
    """Learning curves: columns of one value an epoch, null for none."""

    __pydantic_extra__: dict[str, Column]

    epoch: Annotated[list[int], Field(max_length=POINTS_MAX)]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for name, column in (self.model_extra or {}).items():
            if len(column) != len(self.epoch):
                epochs = f"there are {len(self.epoch)} epochs"
                raise ValueError(f"{one_line(name, 80)} has {len(column)} values, and {epochs}")
        return self


class Confusion(_Open):
    """Confusion matrix: counts by actual class (row) and predicted class.

    `classes` is the number of all classes, of which `labels` may name the most confused ones.
    """

    labels: Annotated[list[Label], Field(max_length=256)]
    counts: list[list[Count]]
    classes: Count | None = None

    @model_validator(mode="after")
    def _check_square(self) -> Self:
        size = len(self.labels)
        if [len(row) for row in self.counts] != [size] * size:
            raise ValueError(f"counts have to be {size} rows of {size}, as many as labels")
        return self


class Residuals(_Open):
    """Histogram of a regression's errors: len(edges) - 1 counts."""

    edges: Annotated[list[Finite], Field(max_length=POINTS_MAX)]
    counts: list[Count]

    @model_validator(mode="after")
    def _check_bins(self) -> Self:
        if len(self.counts) != len(self.edges) - 1:
            bins = max(len(self.edges) - 1, 0)
            raise ValueError(f"{len(self.counts)} counts, and edges of {bins} bins")
        return self


class Figures(_Open):
    """Numbers of a training run that pages draw."""

    learning: Learning | None = None
    confusion: Confusion | None = None
    residuals: Residuals | None = None


class Evaluation(_Open):
    """Evidence behind a model's metrics: intervals, groups, calibration, figures."""

    primary: Primary | None = None
    rows: Annotated[int, Field(ge=0)] | None = None  # in the test set
    intervals: dict[Text, Interval] = {}  # confidence intervals by metric
    lead: Lead | None = None
    groups: Groups = Groups()
    classes: Annotated[list[Row], Field(max_length=1024)] = []  # the worst first
    calibration: Calibration = Calibration()
    figures: Figures = Figures()
