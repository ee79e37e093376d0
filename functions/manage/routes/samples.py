"""Route of a version's sample request."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, Field

from functions.core.access.grants import Scope
from functions.core.catalog.catalog import Catalog
from functions.core.errors import ModelNotFound
from functions.core.registry.version import Blob
from functions.manage.documents.fields import ModelName, PathNumber
from functions.manage.route import Route


class Samples(Protocol):
    """Stored samples; `adapters/aws/samples.py` documents the method."""

    def read(self, blob: Blob) -> Mapping[str, Any]: ...


class SampleDocument(BaseModel):
    """Sample request of a version, with its reply."""

    model: str
    version: int
    request: dict[str, Any]
    response: dict[str, Any]
    synthetic: bool = Field(description="True if registration made it up; else the package's own.")


class SampleRoutes:
    """Route that reads a version's sample request."""

    tag = "versions"

    def __init__(self, catalog: Catalog, samples: Samples) -> None:
        self._catalog = catalog
        self._samples = samples

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        sample = "/models/<model>/versions/<number>/sample"
        return (Route("GET", sample, Scope.READ, self.read_sample),)

    def read_sample(self, model: ModelName, number: PathNumber) -> SampleDocument:
        """Return a request that the version answers, with its reply."""
        version, _ = self._catalog.version(model, number)
        if version.sample is None:
            raise ModelNotFound(
                f"version {number} of '{model}' has no sample: the package has none, "
                "and a generated one is too large"
            )
        sample = self._samples.read(version.sample)
        return SampleDocument(model=model, version=number, **sample)
