"""Types of the manifest's fields."""

from typing import Annotated

from pydantic import ConfigDict, Field

Text = Annotated[str, Field(max_length=4096)]
Label = Annotated[str, Field(max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]  # [low, high]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Scalars = dict[Text, str | int | float | bool | None]

# Fields of a schema are checked, others are accepted.
OPEN = ConfigDict(extra="allow", strict=True, frozen=True)
