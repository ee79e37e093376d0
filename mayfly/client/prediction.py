"""Answer of a model: outputs by name, decoded when they are read."""

from collections.abc import Iterator, Mapping
from typing import Any

from mayfly.client.errors import InvalidInput
from mayfly.client.tensors import codec
from mayfly.client.tensors.signature import count
from mayfly.client.tensors.texts import unpack


class RawOutput:
    """Output as it arrived: name, datatype, shape and bytes."""

    __slots__ = ("content", "datatype", "name", "shape")

    def __init__(
        self, name: str, datatype: str, shape: tuple[int, ...], content: memoryview
    ) -> None:
        self.name, self.datatype, self.shape, self.content = name, datatype, shape, content

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


class Prediction(Mapping[str, Any]):
    """Outputs by name: numpy arrays, or nested lists without numpy.

    `version` answered, reached by `alias` ("" if the version was named); `variant` is stable or
    candidate while a canary runs. `request_id` finds the request in the service's log.
    """

    def __init__(
        self, model: str, version: int, outputs: list[RawOutput], headers: Mapping[str, str]
    ) -> None:
        self.model = model
        self.version = version
        self.headers = headers
        self.alias = headers.get("x-model-alias", "")
        self.variant = headers.get("x-model-variant", "")
        self.request_id = headers.get("x-request-id", "")
        self._raw = {output.name: output for output in outputs}
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raw = self._raw[name]
            self._values[name] = codec.decode(raw.datatype, raw.shape, raw.content)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __repr__(self) -> str:
        alias = f" ({self.alias})" if self.alias else ""
        outputs = ", ".join(map(str, self._raw.values()))
        return f"<Prediction of {self.model}:{self.version}{alias} {outputs}>"

    @property
    def value(self) -> Any:
        """Values of the only output.

        Raises:
            InvalidInput: there are several.
        """
        if len(self._raw) != 1:
            raise InvalidInput(f"there are {len(self)} outputs: read one of {', '.join(self)}")
        return self[next(iter(self))]

    @property
    def cold_start(self) -> bool:
        """Tell if the request waited for the model to load."""
        return self.headers.get("x-cold-start") == "1"

    def texts(self, name: str) -> list[str]:
        """Return a BYTES output as a flat list of strings."""
        raw = self._raw[name]
        if raw.datatype != "BYTES":
            raise InvalidInput(f"output {name!r} is {raw.datatype}, no BYTES")
        return [value.decode(errors="replace") for value in unpack(raw.content, count(raw.shape))]
