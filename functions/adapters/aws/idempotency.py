"""Replies of finished changes in the registry's table, by Powertools' idempotency."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
)
from aws_lambda_powertools.utilities.idempotency.base import IdempotencyHandler
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyInconsistentStateError,
    IdempotencyPersistenceLayerError,
    IdempotencyValidationError,
)
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from functions.adapters.aws_errors import ErrorKind, classify_response
from functions.core.errors import Unavailable
from functions.core.idempotency import KeyReused, StillRunning, StoredReply

PARTITION = "IDEMPOTENCY"
KEPT_S = 86_400  # a day: longer than any client repeats a request by itself


@dataclass(frozen=True, slots=True)
class _Deadline:
    """Lambda context as far as Powertools reads it."""

    remaining_ms: int

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


class DynamoReplies:
    """Stored replies in the partition IDEMPOTENCY, for a day.

    The sort key is a SHA-256 of caller and key, so that neither is stored in clear.
    """

    def __init__(self, client: Any, table: str) -> None:
        self._store = DynamoDBPersistenceLayer(
            table_name=table,
            key_attr="pk",
            sort_key_attr="sk",
            static_pk_value=PARTITION,
            expiry_attr="expires_at",
            boto3_client=client,
        )

    def once(
        self,
        key: tuple[str, str],
        request: str,
        action: Callable[[], StoredReply],
        remaining_ms: int,
    ) -> StoredReply:
        """Return the reply stored under a key, or run `action`.

        `key` is the caller and its text, `request` a digest. A failed action leaves nothing, and
        that of one whose reply cannot be stored is returned. If the function dies meanwhile, the
        key is free again after `remaining_ms`.

        Raises:
            KeyReused: the key was sent with another request.
            StillRunning: the first request with this key has not ended.
            Unavailable: the table failed before the action was run.
        """
        config = IdempotencyConfig(
            event_key_jmespath="key",
            payload_validation_jmespath="request",
            expires_after_seconds=KEPT_S,
            hash_function="sha256",
            lambda_context=_Deadline(remaining_ms),  # type: ignore[arg-type]
        )
        replies: list[StoredReply] = []

        def run() -> dict[str, Any]:
            replies.append(action())
            return asdict(replies[0])

        data = {"key": list(key), "request": request}
        handler = IdempotencyHandler(
            run, data, config, self._store, key_prefix="reply", function_args=(), function_kwargs={}
        )
        try:
            return StoredReply(**handler.handle())
        except IdempotencyValidationError as error:
            raise KeyReused from error
        except (IdempotencyAlreadyInProgressError, IdempotencyInconsistentStateError) as error:
            raise StillRunning from error
        except IdempotencyPersistenceLayerError as error:
            if not replies:
                if (failure := _unavailable(error)) is None:
                    raise
                raise failure from error
            logging.getLogger(__name__).warning("a change was made whose reply was not stored")
            return replies[0]  # the change is made


def _unavailable(error: IdempotencyPersistenceLayerError) -> Unavailable | None:
    """Return the error of a table that failed, None for a bug."""
    cause = error.__cause__
    is_bug = isinstance(cause, ParamValidationError)
    if isinstance(cause, ClientError) and not _is_transient(cause):
        is_bug = True
    if is_bug or not isinstance(cause, ClientError | BotoCoreError):
        return None
    return Unavailable("the registry does not answer; try again")


def _is_transient(error: ClientError) -> bool:
    return classify_response(error.response) is ErrorKind.TRANSIENT
