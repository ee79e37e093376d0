# Written by scripts/sync_client.py from mayfly/client/aio: change that.
"""Model of a stack: predictions, signature, readiness."""

from collections.abc import Mapping, Sequence
from typing import Any

from mayfly.client import inference
from mayfly.client.errors import Conflict, InvalidInput, TooLarge, Unavailable
from mayfly.client.inference import REPLY_BYTES, Options
from mayfly.client.prediction import Prediction
from mayfly.client.signature_cache import Reference
from mayfly.client.sync.caller import Caller
from mayfly.client.tensors.signature import Signature, read_signature
from mayfly.client.wire import Request, json_request


class Model:
    """Model of a stack: one version or alias of it, or `prod`."""

    def __init__(self, caller: Caller, name: str, version: Reference = None) -> None:
        self._caller = caller
        self.name = name
        self.reference = version
        self._gzip = False  # the last replies were large enough

    def __repr__(self) -> str:
        reference = "" if self.reference is None else f":{self.reference}"
        return f"<{type(self).__name__} {self.name}{reference} at {self._caller.transport.address}>"

    def predict(
        self,
        inputs: Any,
        *,
        outputs: Sequence[str] = (),
        classes: Mapping[str, int] | None = None,
        timeout: float | None = None,
        user: str = "",
    ) -> Prediction:
        """Return the outputs for arrays, nested lists, or a dict.

        `outputs` limits the reply. `classes` asks for the N highest values of an output, as
        "value:index:label". `timeout` is in seconds, with retries. `user` keeps a caller on the
        same side of a canary.

        Raises:
            InvalidInput: inputs or options do not fit the model; its `input` is the name.
            MayflyError: any other of the classes in mayfly.errors.
        """
        options = Options(tuple(outputs), dict(classes or {}), timeout, user)
        request = self._request(inputs, options)
        try:
            reply = self._caller.call(request)
        except TooLarge:
            if "accept-encoding" in request.headers:
                raise
            reply = self._caller.call(self._accepting_gzip(request))
        self._gzip = len(reply.body) >= REPLY_BYTES and not self._nearby
        answer = inference.read(self.name, reply)
        self._caller.signatures.answered(self.name, self.reference, answer.version)
        return answer

    def signature(self) -> Signature:
        """Return the inputs and outputs of the version that answers now."""
        path = inference.model_path(self.name, self.reference)
        signature = read_signature(self._caller.get(path))
        self._caller.signatures.keep(signature, self.reference)
        return signature

    def ready(self) -> bool:
        """Tell if the model can be called.

        Raises:
            ModelNotFound: there is no such model, version or alias.
        """
        path = inference.model_path(self.name, self.reference) + "/ready"
        try:
            self._caller.call(json_request("GET", path))
        except (Unavailable, Conflict) as error:
            if error.status in (409, 503):
                return False
            raise
        return True

    @property
    def _nearby(self) -> bool:
        return self._caller.transport.address.is_loopback

    def _request(self, inputs: Any, options: Options) -> Request:
        """Return the request; read a signature again that may be outdated."""
        options = Options(
            options.outputs,
            options.classes,
            options.timeout,
            options.user,
            compress=not self._nearby,
            accept_gzip=self._gzip,
        )
        cached = self._caller.signatures.find(self.name, self.reference)
        if cached is not None:
            try:
                return inference.build(cached, self.reference, inputs, options)
            except InvalidInput:
                fresh = self.signature()
                if fresh.version == cached.version:
                    raise
        else:
            fresh = self.signature()
        return inference.build(fresh, self.reference, inputs, options)

    @staticmethod
    def _accepting_gzip(request: Request) -> Request:
        headers = {**request.headers, "accept-encoding": "gzip"}
        return Request(request.method, request.path, headers, request.body, timeout=request.timeout)
