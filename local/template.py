"""SAM template as plain values: functions, routes, event sources, API.

`Template.functions` and `.api` are served; `.properties(name)` returns any other resource.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from local.cloudformation import ACCOUNT, NOTHING, REGION, Document, TemplateError, as_text


@dataclass(frozen=True, slots=True)
class Route:
    """API method and path with the Lambda function that handles them."""

    method: str  # upper case, or ANY
    path: str  # /v2/{path+}
    function: str
    streams: bool = False  # ResponseTransferMode: RESPONSE_STREAM
    timeout_s: float | None = None  # None: API Gateway's default


@dataclass(frozen=True, slots=True)
class QueueSource:
    """SQS queue that triggers a Lambda function, with batch settings."""

    queue_arn: str
    batch_size: int
    partial_failures: bool
    maximum_concurrency: int | None


@dataclass(frozen=True, slots=True)
class Function:
    """Lambda function of a SAM template, with the Globals section applied."""

    name: str  # logical id
    handler: str
    runtime: str
    memory_mb: int
    timeout_s: float
    ephemeral_mb: int
    environment: dict[str, str]
    reserved_concurrency: int | None
    sources: tuple[QueueSource, ...]
    layers: tuple[str, ...] = ()  # logical ids

    @property
    def arn(self) -> str:
        """ARN of the Lambda function."""
        return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{self.name}"


@dataclass(frozen=True, slots=True)
class GatewayResponse:
    """API Gateway's own reply, e.g. to an unknown path."""

    status: int | None = None
    template: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Api:
    """REST API with its routes and gateway responses."""

    id: str
    stage: str
    binary_media_types: tuple[str, ...]
    responses: dict[str, GatewayResponse]
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class Template(Document):
    """Loaded SAM template with its Lambda functions, API and outputs."""

    @cached_property
    def functions(self) -> dict[str, Function]:
        """Lambda functions of the template by logical id."""
        return {name: self._function(name) for name in self.resources("AWS::Serverless::Function")}

    @cached_property
    def api(self) -> Api | None:
        """REST API of the template, explicit or implicit; None without Api events."""
        routes = tuple(
            _route(event, name)
            for name in self.resources("AWS::Serverless::Function")
            for event in self._events(name, "Api")
        )
        explicit = self.resources("AWS::Serverless::Api")
        if len(explicit) > 1:
            raise TemplateError(
                f"Resources.{explicit[1]}: the local stack serves one API, {explicit[0]}"
            )
        if not explicit and not routes:
            return None
        name = explicit[0] if explicit else "ServerlessRestApi"
        shared = self.resolve(self.document.get("Globals", {}).get("Api", {}), "Globals.Api")
        properties = {**shared, **(self.properties(name) if explicit else {"StageName": "Prod"})}
        responses = {
            kind: GatewayResponse(
                int(response["StatusCode"]) if "StatusCode" in response else None,
                (response.get("ResponseTemplates") or {}).get("application/json"),
                _headers(response),
            )
            for kind, response in (properties.get("GatewayResponses") or {}).items()
        }
        types = tuple(
            str(kind).replace("~1", "/") for kind in properties.get("BinaryMediaTypes") or ()
        )
        return Api(name, str(properties["StageName"]), types, responses, routes)

    @cached_property
    def outputs(self) -> dict[str, str]:
        """Values of the template's Outputs section, by name."""
        outputs = {}
        for name, output in (self.document.get("Outputs") or {}).items():
            if self._is_included(output, f"Outputs.{name}"):
                outputs[name] = str(self.resolve(output["Value"], f"Outputs.{name}.Value"))
        return outputs

    def _function(self, name: str) -> Function:
        shared = self.document.get("Globals", {}).get("Function", {})
        own = self.document["Resources"][name].get("Properties") or {}

        def value(key: str, default: Any) -> Any:
            location = f"Resources.{name}.Properties.{key}"
            resolved = self.resolve(own.get(key, shared.get(key, default)), location)
            if resolved is None or resolved is NOTHING:
                raise TemplateError(f"{location}: missing")
            return resolved

        def optional_number(key: str) -> int | None:
            location = f"Resources.{name}.Properties.{key}"
            if key not in own or self.resolve(own[key], location) is NOTHING:
                return None
            return number(key, None)

        def number(key: str, default: Any) -> int:
            try:
                return int(value(key, default))
            except ValueError as error:
                location = f"Resources.{name}.Properties.{key}"
                raise TemplateError(f"{location}: {value(key, default)!r} is no number") from error

        variables: dict[str, Any] = {}
        for location, source in (
            ("Globals.Function", shared),
            (f"Resources.{name}.Properties", own),
        ):
            values = (source.get("Environment") or {}).get("Variables") or {}
            variables |= self.resolve(values, f"{location}.Environment.Variables")
        return Function(
            name=name,
            handler=str(value("Handler", None)),
            runtime=str(value("Runtime", "python3.13")),
            memory_mb=number("MemorySize", 128),
            timeout_s=number("Timeout", 3),
            ephemeral_mb=int(value("EphemeralStorage", {"Size": 512})["Size"]),
            environment={key: as_text(variable) for key, variable in variables.items()},
            reserved_concurrency=optional_number("ReservedConcurrentExecutions"),
            sources=tuple(
                QueueSource(
                    queue_arn=str(event["Queue"]),
                    batch_size=int(event.get("BatchSize", 10)),
                    partial_failures="ReportBatchItemFailures"
                    in (event.get("FunctionResponseTypes") or ()),
                    maximum_concurrency=(event.get("ScalingConfig") or {}).get(
                        "MaximumConcurrency"
                    ),
                )
                for event in self._events(name, "SQS")
                if event.get("Enabled", True)
            ),
            layers=tuple(
                layer["Ref"] for layer in (*shared.get("Layers", ()), *own.get("Layers", ()))
            ),
        )

    def _events(self, function: str, kind: str) -> list[dict[str, Any]]:
        events = (self.document["Resources"][function].get("Properties") or {}).get("Events") or {}
        location = f"Resources.{function}.Properties.Events"
        return [
            self.resolve(event["Properties"], f"{location}.{name}.Properties")
            for name, event in events.items()
            if event.get("Type") == kind
        ]


def _route(event: Mapping[str, Any], function: str) -> Route:
    """Return the route of a function's Api event.

    Raises:
        TemplateError: ResponseTransferMode has a value that SAM does not know.
    """
    mode = event.get("ResponseTransferMode", "BUFFERED")
    if mode not in ("BUFFERED", "RESPONSE_STREAM"):
        raise TemplateError(
            f"Resources.{function}.Properties.Events: ResponseTransferMode of {event['Path']} is"
            f" BUFFERED or RESPONSE_STREAM, not {mode}"
        )
    timeout_ms = event.get("TimeoutInMillis")
    return Route(
        method=str(event["Method"]).upper(),
        path=str(event["Path"]),
        function=function,
        streams=mode == "RESPONSE_STREAM",
        timeout_s=None if timeout_ms is None else int(timeout_ms) / 1000,
    )


def _headers(gateway_response: Mapping[str, Any]) -> dict[str, str]:
    headers = (gateway_response.get("ResponseParameters") or {}).get("Headers") or {}
    return {name: str(value).strip("'") for name, value in headers.items()}
