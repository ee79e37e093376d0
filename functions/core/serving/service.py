"""What the data plane does, whatever brings the request: every method answers one `Call`.

Methods return a JSON document or, for an inference, the encoded reply. What became known on the way stays in the call,
so that errors, too, name the version and tell where the time went.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from functions.core.errors import (
    ExecutionFailed,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    TimedOut,
    Unsupported,
    shown,
)
from functions.core.names import is_model_name
from functions.core.protocol.fast_decoder import Decoder
from functions.core.protocol.infer_body import InferReply, InferRequest, encode_infer
from functions.core.protocol.signature import Signature
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.registry.version import Resolved, State, Version
from functions.core.serving import metadata
from functions.core.serving.metadata import Document, signature_of
from functions.core.serving.model_cache import ModelCache, Session
from functions.core.serving.statistics import Statistics

PATIENCE_SECONDS = 60.0  # where nobody says how long an answer may take
DECODERS = 64  # versions whose forms of requests are remembered

Answer = Document | list[Document] | InferReply


@dataclass(slots=True)
class Call:
    """One request, and below `deadline` what became known of it on the way."""

    model: str = ""
    reference: int | str | None = None
    body: bytes = b""
    header_length: str | None = None
    deadline: float = field(
        default_factory=lambda: time.monotonic() + PATIENCE_SECONDS
    )  # by when it must be answered
    resolved: Resolved | None = None
    loaded: bool = False  # the model was not in memory
    headers: dict[str, str] = field(default_factory=dict)
    stages_ns: dict[str, int] = field(default_factory=dict)
    mark_ns: int = field(default_factory=time.perf_counter_ns)
    began_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def lap(self, stage: str) -> None:
        """Say that what happened since the last lap was `stage`."""
        now = time.perf_counter_ns()
        self.stages_ns[stage] = now - self.mark_ns
        self.mark_ns = now


class InferenceService:
    """Open Inference Protocol v2 over the registry's models."""

    def __init__(
        self,
        registry: Registry,
        resolver: Resolver,
        models: ModelCache,
        statistics: Statistics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._resolver = resolver
        self._models = models
        self._statistics = statistics
        self._clock = clock
        self._decoders: dict[tuple[str, int], Decoder] = {}

    # --- the server -------------------------------------------------------------------------------------------------

    def live(self, _: Call) -> Document:
        return {"live": True}

    def ready(self, _: Call) -> Document:
        self._registry.reachable()
        return {"live": True, "ready": True}

    def server_metadata(self, _: Call) -> Document:
        return metadata.server_metadata()

    def not_offered(self, _: Call) -> Document:
        raise Unsupported(
            "this part of the protocol is not offered here; GET /v2 lists the extensions that are"
        )

    # --- models -----------------------------------------------------------------------------------------------------

    def models(self, _: Call) -> Document:
        ready = (model for model, _, state, _ in self._registry.listing() if state is State.READY)
        return {"models": list(dict.fromkeys(ready))}

    def model_metadata(self, call: Call) -> Document:
        version = self._resolve(call).version
        versions, aliases = self._registry.versions(call.model), self._registry.aliases(call.model)
        return metadata.model_metadata(version, versions, aliases)

    def model_ready(self, call: Call) -> Document:
        version = self._resolve(call).version
        self._models.check_fits(version)
        call.headers["x-model-residency"] = "warm" if self._models.holds(version) else "cold"
        return {"name": version.model, "version": str(version.number), "ready": True}

    def model_config(self, call: Call) -> Document:
        return metadata.model_config(self._resolve(call).version)

    def model_statistics(self, call: Call) -> Document:
        """Of the version asked for or, without one, of the default and of all that were counted here."""
        version = self._resolve(call).version
        keys = {(version.model, version.number)}
        if call.reference is None:
            keys |= self._statistics.counted(version.model)
        return self._statistics_of(keys)

    def statistics(self, _: Call) -> Document:
        return self._statistics_of(self._statistics.counted())

    def infer(self, call: Call) -> InferReply:
        version = self._resolve(call).version
        call.lap("resolve")
        started = call.mark_ns
        try:
            return self._infer(call, version, signature_of(version))
        except BaseException:
            self._statistics.failed(version.model, version.number, time.perf_counter_ns() - started)
            raise

    def _infer(self, call: Call, version: Version, signature: Signature) -> InferReply:
        decoder = self._decoder(version, signature)
        request = decoder.decode(call.body, call.header_length)
        call.lap("decode")
        call.loaded = not self._models.holds(version)
        with self._models.session(version, call.deadline) as session:
            call.lap("load")
            outputs = self._run(
                session,
                request,
                call.deadline,
                never_empty=version.graph.get("refuses_empty", False),
            )
            call.lap("compute")
        reply = encode_infer(request, outputs, signature, version.model, version.number)
        call.lap("encode")
        self._count(call, version, request, decoder)
        return reply

    def _decoder(self, version: Version, signature: Signature) -> Decoder:
        key = version.model, version.number
        decoder = self._decoders.get(key)
        if decoder is None or (
            decoder.signature is not signature and decoder.signature != signature
        ):
            if len(self._decoders) >= DECODERS:
                self._decoders.clear()
            decoder = self._decoders[key] = Decoder(signature)
        decoder.signature = (
            signature  # equal; the next request brings this very object, and comparing takes time
        )
        return decoder

    def _run(
        self, session: Session, request: InferRequest, deadline: float, *, never_empty: bool
    ) -> Mapping[str, Any]:
        empty = next((name for name, tensor in request.inputs.items() if 0 in tensor.shape), None)
        if empty is not None and never_empty:
            raise InvalidRequest(
                f"input {shown(empty)} is empty, and this model takes no empty input"
            )
        left = deadline - self._clock()
        timeout_s = min(left, request.timeout_us / 1e6) if request.timeout_us else left
        if timeout_s <= 0:
            raise TimedOut("no time was left to run the model; try again")
        try:
            return session.run(
                request.inputs, [output.name for output in request.outputs], timeout_s
            )
        except ExecutionFailed as error:
            if empty is None:
                raise
            raise InvalidRequest(
                f"input {shown(empty)} is empty, and the model refuses that: {error}"
            ) from error

    def _count(self, call: Call, version: Version, request: InferRequest, decoder: Decoder) -> None:
        batch = (
            next(iter(request.inputs.values())).shape[0]
            if decoder.batches and request.inputs
            else 1
        )
        stages = call.stages_ns
        durations = {
            "queue": stages["load"],
            "compute_input": stages["decode"],
            "compute_infer": stages["compute"],
            "compute_output": stages["encode"],
        }
        self._statistics.succeeded(version.model, version.number, batch, durations)

    # --- the repository ---------------------------------------------------------------------------------------------

    def index(self, call: Call) -> list[Document]:
        """Every version of every model; with {"ready": true}, those that answer."""
        ready = _body(call).get("ready", False)
        if type(ready) is not bool:
            raise InvalidRequest("ready must be true or false")
        listing = list(self._registry.listing())
        unloaded = self._registry.unloaded(model for model, *_ in listing)
        rows = [metadata.index_row(*entry, unloaded=entry[0] in unloaded) for entry in listing]
        return [row for row in rows if row["state"] == "READY" or not ready]

    def load(self, call: Call) -> Document:
        """Switch a model on for every environment and bring it into the memory of this one."""
        parameters = _parameters(call)
        if any(name == "config" or name.startswith("file:") for name in parameters):
            raise InvalidRequest(
                "load takes neither a config nor files: models come from the registry; upload to models/<model>/"
            )
        self._check_known(call, f"failed to load {shown(call.model)}")
        self._registry.serve(call.model, True)
        self._resolver.forget(call.model)
        version = self._resolve(call).version
        call.lap("resolve")
        self._models.forgive(version.files)
        call.loaded = not self._models.holds(version)
        with self._models.session(version, call.deadline) as session:
            call.lap("load")
            if call.loaded:
                self._models.warm_up(version, session, call.deadline)
                call.lap("warm_up")
        return {}

    def unload(self, call: Call) -> Document:
        """Switch a model off: here at once, elsewhere within the seconds that aliases are remembered."""
        _parameters(call)
        self._check_known(call, f"failed to unload {shown(call.model)}")
        self._registry.serve(call.model, False)
        self._resolver.forget(call.model)
        for version in self._registry.versions(call.model):
            self._models.evict(version.files)
        return {}

    # --- inside -----------------------------------------------------------------------------------------------------

    def _resolve(self, call: Call) -> Resolved:
        if not is_model_name(call.model):
            raise ModelNotFound(f"Request for unknown model: {shown(call.model)} is not found")
        call.resolved = self._resolver.resolve(call.model, call.reference)
        return call.resolved

    def _check_known(self, call: Call, failure: str) -> None:
        """Ask the registry itself, not what is remembered of it."""
        try:
            if not is_model_name(call.model):
                raise ModelNotFound(call.model)
            self._registry.resolve(call.model, None)
        except NotReady:
            return
        except ModelNotFound as error:
            raise ModelNotFound(f"{failure}, no model of this name is registered") from error

    def _statistics_of(self, keys: set[tuple[str, int]]) -> Document:
        return {"model_stats": [self._statistics.document(*key) for key in sorted(keys)]}


def _parameters(call: Call) -> Mapping[str, Any]:
    parameters = _body(call).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object")
    return parameters


def _body(call: Call) -> Mapping[str, Any]:
    """The JSON object in a body that may be empty."""
    if not call.body.strip():
        return {}
    try:
        body = json.loads(call.body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is not JSON") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body
