"""Model of a stack: predictions, signature, readiness, uploads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mayfly.client import inference
from mayfly.client.aio import uploads
from mayfly.client.aio.caller import AsyncCaller
from mayfly.client.aio.language import AsyncLanguage
from mayfly.client.aio.uploads import WAIT_S, Step
from mayfly.client.errors import Conflict, InvalidInput, TooLarge, Unavailable
from mayfly.client.files import Progress, silent
from mayfly.client.http1.messages import Request, json_request
from mayfly.client.inference import REPLY_BYTES, Options
from mayfly.client.prediction import Prediction
from mayfly.client.records import UploadRecord
from mayfly.client.signature_cache import Reference
from mayfly.client.tensors.signature import Signature, read_signature


class AsyncModel(AsyncLanguage):
    """Model of a stack: one version or alias of it, or `prod`."""

    def __init__(self, caller: AsyncCaller, name: str, version: Reference = None) -> None:
        super().__init__(caller, name, version)
        self._gzip = False  # the last replies were large enough

    def __repr__(self) -> str:
        reference = "" if self.reference is None else f":{self.reference}"
        return f"<{type(self).__name__} {self.name}{reference} at {self._caller.transport.address}>"

    async def predict(
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
        request = await self._request(inputs, options)
        try:
            reply = await self._caller.call(request)
        except TooLarge:
            if "accept-encoding" in request.headers:
                raise
            reply = await self._caller.call(self._accepting_gzip(request))
        self._gzip = len(reply.body) >= REPLY_BYTES and not self._nearby
        answer = inference.read(self.name, reply)
        self._caller.signatures.answered(self.name, self.reference, answer.version)
        return answer

    async def signature(self) -> Signature:
        """Return the inputs and outputs of the version that answers now."""
        path = inference.model_path(self.name, self.reference)
        signature = read_signature(await self._caller.get(path))
        self._caller.signatures.keep(signature, self.reference)
        return signature

    async def ready(self) -> bool:
        """Tell if the model can be called.

        Raises:
            ModelNotFound: there is no such model, version or alias.
        """
        path = inference.model_path(self.name, self.reference) + "/ready"
        try:
            await self._caller.call(json_request("GET", path))
        except (Unavailable, Conflict) as error:
            if error.status in (409, 503):
                return False
            raise
        return True

    async def upload(
        self,
        path: str | Path,
        *,
        wait: bool = True,
        timeout: float = WAIT_S,
        progress: Progress = silent,
        step: Step = lambda _: None,
    ) -> UploadRecord:
        """Upload a model as the next version; wait until READY.

        `path` is an .onnx (with weights of its name beside it), an archive, or a folder.
        `progress` gets bytes sent and bytes in all, `step` each new state of the registration.

        Raises:
            InvalidInput: there is no model at `path`.
            Rejected: the file cannot be served; the text is the reason.
            TimedOut: the registration has not ended within `timeout` seconds.
        """
        record = await uploads.upload(self._caller, self.name, path, progress)
        return await uploads.wait(self._caller, record.id, timeout, step) if wait else record

    @property
    def _nearby(self) -> bool:
        return self._caller.transport.address.is_loopback

    async def _request(self, inputs: Any, options: Options) -> Request:
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
                fresh = await self.signature()
                if fresh.version == cached.version:
                    raise
        else:
            fresh = await self.signature()
        return inference.build(fresh, self.reference, inputs, options)

    @staticmethod
    def _accepting_gzip(request: Request) -> Request:
        headers = {**request.headers, "accept-encoding": "gzip"}
        return Request(request.method, request.path, headers, request.body, timeout=request.timeout)
