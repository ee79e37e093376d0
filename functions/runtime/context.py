"""Context that a handler gets: the attributes of AWS's client, and `after`."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from functions.runtime.errors import CONTEXT_ERROR, Fault
from functions.runtime.log import Log

W3C_FIELDS = ("traceparent", "tracestate", "baggage")
_SHOWN = (  # attributes of the context's representation, in awslambdaric's order
    "aws_request_id",
    "log_group_name",
    "log_stream_name",
    "function_name",
    "memory_limit_in_mb",
    "function_version",
    "invoked_function_arn",
    "client_context",
    "identity",
    "tenant_id",
)


class EndEnvironment(Exception):
    """End of the process after the reply, raised by work of `after`.

    The message is the reason, which is logged. Raised by the handler, it is an error like others.
    """


class _Fields:
    """Attributes from the fields of a JSON object; None for missing ones."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, values: Mapping[str, Any]) -> None:
        for name in self.__slots__:
            setattr(self, name, values.get(name))

    def __repr__(self) -> str:
        return _shown(self, self.__slots__)


class CognitoIdentity(_Fields):
    """Cognito identity of the caller, if it has one."""

    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")


class Client(_Fields):
    """Description of the calling mobile application."""

    __slots__ = (  # noqa: RUF023 (the order of the representation)
        "installation_id",
        "app_title",
        "app_version_name",
        "app_version_code",
        "app_package_name",
    )


class ClientContext(_Fields):
    """Context that the caller sent with a direct invocation."""

    __slots__ = ("custom", "env", "client")  # noqa: RUF023 (the order of the representation)
    client: Any

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        if self.client is not None:
            self.client = Client(self.client)


class Environment:
    """Values of the context that are the same for every invocation."""

    def __init__(self, environ: Mapping[str, str], log: Log) -> None:
        self._log = log
        get = environ.get
        self.function_name = get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = get("AWS_LAMBDA_LOG_STREAM_NAME")


class LambdaContext:
    """Context of one invocation.

    https://docs.aws.amazon.com/lambda/latest/dg/python-context.html
    """

    _log: Log

    def __init__(
        self,
        environment: Environment,
        request_id: str,
        deadline_ms: int,
        function_arn: str | None,
        tenant_id: str | None = None,
    ) -> None:
        self.__dict__.update(environment.__dict__)
        self.aws_request_id = request_id
        self.invoked_function_arn = function_arn
        self.tenant_id = tenant_id
        self.client_context: ClientContext | None = None
        self.identity = _NO_IDENTITY
        self._deadline_ms = deadline_ms
        self._w3c: dict[str, str] = {}
        self._work: list[Callable[[], object]] | None = None

    def __repr__(self) -> str:
        return _shown(self, _SHOWN)

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds left before Lambda ends the invocation."""
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def after(self, work: Callable[[], object]) -> None:
        """Call `work` after the reply is posted, before the next event.

        The caller does not wait for it, but the invocation is billed until it returns. Several are
        called in the order of their registration, also those that they register. An exception is
        logged, EndEnvironment ends the process after the last. So does overtime, at once: together
        they have nine tenths of the time left before the deadline.

        Call it while the invocation lasts: later, the work is never called.
        """
        if self._work is None:
            self._work = []
        self._work.append(work)

    @property
    def has_work(self) -> bool:
        """True if `after` was called."""
        return self._work is not None

    def take_work(self) -> list[Callable[[], object]]:
        """Return the callables of `after`, once."""
        work, self._work = self._work, None
        return work or []

    def w3c(self) -> dict[str, str]:
        """Return the W3C trace context that the caller sent."""
        return dict(self._w3c)

    def log(self, message: object) -> None:
        """Write a message to the function's log, without a line end."""
        self._log.write(str(message))

    def read_client_context(self, text: str) -> None:
        """Set the client context from its JSON.

        Raises:
            Fault: it is malformed.
        """
        values = _parse(text, "Client Context")
        if isinstance(values, dict):
            w3c = values.pop("w3c", None)
            if isinstance(w3c, dict):
                self._w3c = {
                    name: w3c[name] for name in W3C_FIELDS if isinstance(w3c.get(name), str)
                }
        self.client_context = None if values is None else ClientContext(values)

    def read_identity(self, text: str) -> None:
        """Set the Cognito identity from its JSON.

        Raises:
            Fault: it is malformed.
        """
        values = _parse(text, "Cognito Identity")
        if values is not None:
            self.identity = CognitoIdentity(
                {
                    "cognito_identity_id": values.get("cognitoIdentityId"),
                    "cognito_identity_pool_id": values.get("cognitoIdentityPoolId"),
                }
            )


_NO_IDENTITY = CognitoIdentity({})


def _shown(value: object, names: Sequence[str]) -> str:
    fields = ",".join(f"{name}={getattr(value, name)}" for name in names)
    return f"{type(value).__name__}([{fields}])"


def _parse(text: str, name: str) -> Any:
    import json  # not at the top: few invocations have either header

    try:
        return json.loads(text)
    except ValueError as error:
        raise Fault(CONTEXT_ERROR, f"Unable to parse {name} JSON: {error}") from None
