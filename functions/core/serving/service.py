"""Open Inference Protocol v2 service: one public method for each route.

A method takes a `Call` and returns a JSON document or, for an inference, the encoded reply. It
records the version and its timing in the call, so that the log line and headers of an error have
them, too.
"""

import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType, NoneType
from typing import Any

from functions.core.access.grants import UNLIMITED, Grant
from functions.core.errors import (
    ExecutionFailed,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    NotServable,
    TimedOut,
    Unsupported,
    shown,
)
from functions.core.names import is_model_name
from functions.core.protocol.fast_decoder import FastDecoder
from functions.core.protocol.infer_reply import InferReply, encode_infer, reply_limit
from functions.core.protocol.infer_request import InferRequest, parse_document
from functions.core.protocol.signature import Signature
from functions.core.protocol.tensors import Tensor, describe
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.registry.transactions import unknown_model
from functions.core.registry.version import Resolved, State, Version
from functions.core.serving import metadata
from functions.core.serving.metadata import Document, require_signature
from functions.core.serving.model_cache import ModelCache, Session
from functions.core.serving.statistics import Statistics
from functions.core.usage.meter import Meter

DEFAULT_TIMEOUT_SECONDS = 60.0  # without a Lambda context, e.g. in tests
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
NAMES = 256  # cached model names
DECODERS = 64  # cached decoders, each with the request templates of one version

_is_model_name = lru_cache(maxsize=NAMES)(is_model_name)

Reply = Document | list[Document] | InferReply


class Copy:
    """Decoded request and its answer, for a shadow version.

    `outputs` are those that the reply has, of `version`, called by `alias`.
    """

    __slots__ = ("alias", "inputs", "outputs", "shadow", "version")

    def __init__(
        self,
        resolved: Resolved,
        shadow: Version,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
    ) -> None:
        self.version = resolved.version
        self.alias = resolved.alias or ""
        self.shadow = shadow
        self.inputs = inputs
        self.outputs = outputs


class Call:
    """Arguments of one API request, with its timings, counts and response headers.

    Times are nanoseconds of `time.perf_counter_ns`; `deadline` is a time in seconds of
    `time.monotonic`.
    """

    __slots__ = (
        "action",
        "began_ms",
        "began_ns",
        "body",
        "bytes_in",
        "bytes_out",
        "code",
        "compressed",
        "copy",
        "cors_headers",
        "deadline",
        "drawn",
        "grant",
        "header_length",
        "headers",
        "inferences",
        "lap_began_ns",
        "loaded",
        "method",
        "model",
        "reference",
        "request_id",
        "resolved",
        "stages_ns",
        "tokens_in",
        "tokens_out",
        "traffic",
        "user",
    )

    def __init__(self, model: str = "", body: bytes = b"", deadline: float | None = None) -> None:
        self.model = model
        self.reference: int | str | None = None  # requested version number or alias
        self.request_id = ""
        self.user: str | None = None  # caller's user, kept on one side of a split
        self.body = body
        self.header_length: str | None = None
        self.deadline = deadline or time.monotonic() + DEFAULT_TIMEOUT_SECONDS
        self.compressed = False  # the caller accepts a compressed reply
        self.grant = UNLIMITED  # permissions of the caller's access key
        # Recorded while the call is answered:
        self.action = "unknown"  # service method
        self.method = ""  # HTTP method
        self.code: str | None = None  # error code
        self.cors_headers = NO_HEADERS
        self.bytes_in = self.bytes_out = 0
        self.tokens_in = self.tokens_out = 0
        self.resolved: Resolved | None = None
        self.traffic = ""  # id of the alias's traffic object
        self.drawn = False  # chance chose its version for this request
        self.copy: Copy | None = None  # for the shadow version
        self.inferences = 0  # rows of a successful run
        self.loaded = False  # the model had to be loaded for this call
        self.headers = NO_HEADERS  # response headers
        self.stages_ns: dict[str, int] = {}
        self.began_ms = time.time_ns() // 1_000_000
        self.began_ns = self.lap_began_ns = time.perf_counter_ns()

    def lap(self, stage: str) -> None:
        """Record the time since the previous lap as the request stage's duration."""
        now = time.perf_counter_ns()
        self.stages_ns[stage] = now - self.lap_began_ns
        self.lap_began_ns = now

    def count(self, meter: Meter, status: int, latency_ns: int, cold: bool) -> None:
        """Count a request that came to a version."""
        resolved = self.resolved
        if resolved is None:
            return
        meter.count(
            resolved.version.model,
            resolved.version.number,
            resolved.alias or "",
            self.grant.key_id,
            self.traffic,
            status,
            latency_ns,
            cold=cold,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            inferences=self.inferences,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            drawn=self.drawn,
            stages_ns=self.stages_ns,
            has_quota=self.grant.quota is not None,
        )


class InferenceService:
    """Service that answers Open Inference Protocol v2 requests with registered models."""

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
        self._decoders: dict[tuple[str, int], FastDecoder] = {}

    # --- server

    def live(self, _: Call) -> Document:
        """Answer the liveness check: the process is running."""
        return {"live": True}

    def ready(self, _: Call) -> Document:
        """Answer the readiness check, after a test read of the registry.

        Raises:
            Unavailable: it does not.
        """
        self._registry.ping()
        return {"live": True, "ready": True}

    def server_metadata(self, _: Call) -> Document:
        """Return the server metadata: name, version and protocol extensions."""
        return metadata.server_metadata()

    def not_offered(self, _: Call) -> Document:
        """Refuse a request for an unimplemented part of the protocol (501).

        Raises:
            Unsupported: always.
        """
        raise Unsupported(
            "this part of the protocol is not offered here; GET /v2 lists the extensions that are"
        )

    # --- models

    def models(self, call: Call) -> Document:
        """List the models that can be called: READY and not unloaded."""
        served = self._served(call.grant)
        return {"models": list(dict.fromkeys(model for model, _ in served))}

    def _served(self, grant: Grant) -> list[tuple[str, int]]:
        """Return (model, version number) of every version that can be called."""
        ready = [
            (model, number)
            for model, number, state, _ in self._registry.listing()
            if state is State.READY and grant.sees(model)
        ]
        unloaded = self._registry.unloaded_models(model for model, _ in ready)
        return [(model, number) for model, number in ready if model not in unloaded]

    def model_metadata(self, call: Call) -> Document:
        """Return a model's metadata: READY versions, inputs, outputs and properties."""
        version = self._resolve(call).version
        versions, aliases = self._registry.versions(call.model), self._registry.aliases(call.model)
        return metadata.model_metadata(version, versions, aliases)

    def model_ready(self, call: Call) -> Document:
        """Check that a version can be served; set its residency header.

        Raises:
            Unavailable: it is not READY, or too large for this function.
        """
        version = self._resolve(call).version
        self._models.check_fits(version)
        residency = "warm" if self._models.holds(version) else "cold"
        call.headers = {"x-model-residency": residency}
        return {"name": version.model, "version": str(version.number), "ready": True}

    def model_config(self, call: Call) -> Document:
        """Return a model version's configuration in Triton's ModelConfig format."""
        return metadata.model_config(self._resolve(call).version)

    def model_statistics(self, call: Call) -> Document:
        """Return inference statistics of a model, for one or all READY versions.

        All environments count them: a version that none has served has zeros.
        """
        version = self._resolve(call).version
        totals = self._statistics.read(version.model)
        if call.reference is not None:
            return self._statistics.document(totals, [(version.model, version.number)])
        versions = self._registry.versions(version.model)
        ready = {(v.model, v.number) for v in versions if v.state is State.READY}
        return self._statistics.document(totals, ready | set(totals))

    def statistics(self, call: Call) -> Document:
        """Return inference statistics of every model version served now or before.

        All environments count them, as for `model_statistics`.
        """
        totals = self._statistics.read()
        counted = {key for key in totals if call.grant.sees(key[0])}
        return self._statistics.document(totals, {*self._served(call.grant), *counted})

    def infer(self, call: Call) -> InferReply:
        """Run a model on the request's tensors; return the encoded outputs."""
        version = self._resolve(call).version
        call.lap("resolve")
        return self._infer(call, version, version.signature or require_signature(version))

    def _infer(self, call: Call, version: Version, signature: Signature) -> InferReply:
        decoder = self._decoder(version, signature)
        request = decoder.decode(call.body, call.header_length, call.deadline)
        call.lap("decode")
        limit = reply_limit(request, call.compressed)
        call.loaded = True  # also if it is refused
        lease = self._models.session(version, call.deadline)
        call.loaded = lease.waits
        with lease as session:
            call.lap("load")
            outputs = self._run(session, request, call, version, limit)
            call.lap("compute")
        model, number = version.model, version.number
        reply = encode_infer(request, outputs, signature, model, number, limit)
        call.lap("encode")
        call.inferences = _rows(request, decoder)
        if call.traffic:
            _keep_copy(call, request.inputs, outputs)
        return reply

    def _decoder(self, version: Version, signature: Signature) -> FastDecoder:
        key = version.model, version.number
        decoder = self._decoders.get(key)
        if decoder is not None and decoder.signature is signature:
            return decoder
        if decoder is None or decoder.signature != signature:
            if len(self._decoders) >= DECODERS:
                self._decoders.clear()
            decoder = self._decoders[key] = FastDecoder(signature)
        # An equal signature, read again: later requests hold it, and `is` is faster than ==.
        decoder.signature = signature
        return decoder

    def _run(
        self,
        session: Session,
        request: InferRequest,
        call: Call,
        version: Version,
        limit: int,
    ) -> Mapping[str, Any]:
        # Versions registered before their graphs got guards carry this mark.
        if version.graph.get("refuses_empty", False):
            _refuse_empty(request.inputs)
        timeout_s = call.deadline - self._clock()
        if request.timeout_us:
            timeout_s = min(timeout_s, request.timeout_us / 1e6)
        if timeout_s <= 0:
            raise TimedOut("no time was left to run the model; try again")
        outputs = request.outputs
        # The classes of an output take less than its values: `encode_infer` bounds these.
        reply_bytes = None if outputs.classified else limit
        try:
            return session.run(request.inputs, outputs.names, timeout_s, reply_bytes)
        except ExecutionFailed as error:
            oddity = _oddity(request.inputs)
            if oddity is None:
                raise
            raise InvalidRequest(f"{oddity}, and the model refuses that: {error}") from error

    # --- repository

    def index(self, call: Call) -> list[Document]:
        """List every version of every model with its state, then ignored uploads.

        With {"ready": true} in the body, only the versions that can be served.
        """
        ready = _body(call).get("ready")
        if type(ready) not in (bool, NoneType):
            raise InvalidRequest(f"ready must be true or false, not {describe(ready)}")
        grant = call.grant
        listing = [entry for entry in self._registry.listing() if grant.sees(entry[0])]
        unloaded = self._registry.unloaded_models(model for model, *_ in listing)
        rows = [metadata.index_row(*entry, unloaded=entry[0] in unloaded) for entry in listing]
        if ready:
            return [row for row in rows if row["state"] == "READY"]
        ignored = self._registry.ignored(None if grant.sees_all else partial(_is_visible, grant))
        return rows + [metadata.ignored_row(*note) for note in ignored]

    def load(self, call: Call) -> Document:
        """Enable a model in all Lambda environments; load it in this one."""
        failure = f"failed to load {shown(call.model)}"
        _check_parameters(call, failure, {})
        self._check_registered(call, failure)
        self._registry.serve(call.model, True, actor=_actor(call.grant))
        self._resolver.invalidate(call.model)
        version = self._resolve(call).version
        call.lap("resolve")
        self._models.clear_failure(version.files)
        call.loaded = not self._models.holds(version)
        with self._models.session(version, call.deadline) as session:
            call.lap("load")
            if call.loaded:
                self._models.warm_up(version, session, call.deadline)
                call.lap("warm_up")
        return {}

    def unload(self, call: Call) -> Document:
        """Disable a model in all Lambda environments; evict it from this one.

        Other environments follow when their cached aliases expire (ALIAS_CACHE_SECONDS).
        """
        failure = f"failed to unload {shown(call.model)}"
        _check_parameters(call, failure, {"unload_dependents": bool})  # no model has dependents
        self._check_registered(call, failure)
        self._registry.serve(call.model, False, actor=_actor(call.grant))
        self._resolver.invalidate(call.model)
        for version in self._registry.versions(call.model):
            self._models.evict(version.files)
        return {}

    def _resolve(self, call: Call) -> Resolved:
        return resolve_call(self._resolver, call)

    def _check_registered(self, call: Call, failure: str) -> None:
        """Check in the registry, bypassing the cache, that a model exists."""
        try:
            _check_visible(call)
            self._registry.resolve(call.model, None)
        except (NotReady, NotServable):
            return
        except ModelNotFound as error:
            raise ModelNotFound(f"{failure}, no model of this name is registered") from error


def resolve_call(resolver: Resolver, call: Call) -> Resolved:
    """Resolve a request's version, and record it in the call.

    Raises:
        PlatformError: as `Resolver.resolve`; a model that the caller may not see is unknown.
    """
    _check_visible(call)
    resolved = resolver.resolve(call.model, call.reference)
    if resolved.traffic is not None:
        call.traffic = resolved.traffic.id
        call.drawn = not resolved.traffic.caller_of(call.user, call.grant.key_id)
        resolved = resolved.side_of(call.user, call.grant.key_id, call.request_id)
    call.resolved = resolved
    return resolved


def _rows(request: InferRequest, decoder: FastDecoder) -> int:
    """Return a request's number of rows, 1 for unbatched models."""
    if not (decoder.batches and request.inputs):
        return 1
    first = next(iter(request.inputs.values()))
    return first.shape[0]


def _keep_copy(call: Call, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
    """Keep a sampled request with its answer for a shadow version."""
    resolved = call.resolved
    if resolved is None or resolved.shadow is None or resolved.traffic is None:
        return
    if resolved.traffic.copies(call.request_id):
        call.copy = Copy(resolved, resolved.shadow, inputs, outputs)


def _refuse_empty(inputs: Mapping[str, Tensor]) -> None:
    empty = next((name for name, tensor in inputs.items() if 0 in tensor.shape), None)
    if empty is not None:
        raise InvalidRequest(f"input {shown(empty)} is empty, and this model takes no empty input")


def _check_visible(call: Call) -> None:
    """Check that a model of this name may exist for the caller.

    Raises:
        ModelNotFound: as for a model that does not exist.
    """
    if not (_is_model_name(call.model) and call.grant.sees(call.model)):
        raise unknown_model(call.model)


def _is_visible(grant: Grant, key: str) -> bool:
    """Return True if an ignored upload is listed for the caller."""
    return grant.sees(metadata.ignored_name(key))


def _actor(grant: Grant) -> str:
    """Return who sends a request, for audit records."""
    return f"key:{grant.key_id}" if grant.key_id else "infer"


def _oddity(inputs: Mapping[str, Tensor]) -> str | None:
    """Describe the first input tensor that is empty or not UTF-8."""
    for name, tensor in inputs.items():
        if 0 in tensor.shape:
            return f"input {shown(name)} is empty"
        if tensor.datatype == "BYTES" and not all(map(_is_text, tensor.data)):
            return f"input {shown(name)} holds bytes that are not UTF-8"
    return None


def _is_text(element: bytes) -> bool:
    try:
        element.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_parameters(call: Call, failure: str, offered: Mapping[str, type]) -> None:
    """Validate the parameters of a model load or unload request.

    Raises:
        InvalidRequest: beginning with `failure`, as Triton's errors do, and naming the parameter.
    """
    body = _body(call)
    parameters = body.get("parameters")
    if not isinstance(parameters, dict | NoneType):
        raise InvalidRequest(f"{failure}, parameters must be an object, not {describe(parameters)}")
    settings = {**{name: body[name] for name in body if name != "parameters"}, **(parameters or {})}
    for name, value in settings.items():
        if value is None:
            continue
        if name not in offered:
            raise InvalidRequest(f"{failure}, {_ineffective(name)}")
        if type(value) is not offered[name]:
            raise InvalidRequest(f"{failure}, {name} must be true or false, not {describe(value)}")


def _ineffective(name: str) -> str:
    if name == "config" or name.startswith("file:"):
        return (
            f"parameter {shown(name)} is not offered: models come from the registry; "
            "upload to models/<model>/"
        )
    return (
        f"parameter {shown(name)} has no effect: leave it out; "
        "load and unload switch a model with all its versions"
    )


def _body(call: Call) -> Mapping[str, Any]:
    """Parse a request body as a JSON object; {} if empty."""
    return parse_document(memoryview(call.body), hint="") if call.body.strip() else {}
