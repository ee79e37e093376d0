"""Sample of a version: a request that it answers, with the reply."""

from dataclasses import dataclass, field
from typing import Any

from mayfly.client.errors import ServerError
from mayfly.client.records import Document, Record
from mayfly.client.tensors.nesting import named


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class SampleRecord(Record):
    """Request with its reply; `synthetic` if registration made it up."""

    model: str = ""
    version: int = 0
    request: Document = field(default_factory=dict)
    response: Document = field(default_factory=dict)
    synthetic: bool = False

    @property
    def inputs(self) -> dict[str, Any]:
        """Return the request's tensors as nested lists, ready for `predict`."""
        try:
            return named(self.request["inputs"])
        except (KeyError, TypeError, IndexError) as error:
            raise ServerError(f"the sample of {self.model}:{self.version} is broken") from error

    def __str__(self) -> str:
        kind = "synthetic " if self.synthetic else ""
        names = ", ".join(str(row.get("name")) for row in self.request.get("inputs", ()))
        return f"{self.model}:{self.version} {kind}sample of {names}"
