"""Another Lambda function of the stack, called with IAM."""

import json
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from functions.adapters.aws_errors import ErrorKind, classify_response
from functions.core.errors import StateConflict, Unavailable


class LambdaFunction:
    """Lambda function that this one may invoke."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name

    def call(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Run the function with an event and return its reply.

        Raises:
            StateConflict: it refused the event for its state.
            Unavailable: it failed or could not be reached; its log says why.
        """
        reply = self._invoke("RequestResponse", event)
        answer: dict[str, Any] = json.loads(reply["Payload"].read())
        if "FunctionError" not in reply:
            return answer
        match answer.get("errorType"):
            case "StateConflict":
                raise StateConflict(str(answer.get("errorMessage")))
            case "Unavailable":
                raise Unavailable(str(answer.get("errorMessage")))
        raise Unavailable(f"the function {self._name} failed; its log says why")

    def start(self, event: Mapping[str, Any]) -> None:
        """Run the function with an event without waiting for its end.

        Raises:
            Unavailable: it could not be reached.
        """
        self._invoke("Event", event)

    def _invoke(self, kind: str, event: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(
                self._client.invoke(
                    FunctionName=self._name, InvocationType=kind, Payload=json.dumps(event).encode()
                )
            )
        except ClientError as error:
            if classify_response(error.response) is not ErrorKind.TRANSIENT:
                raise
            raise Unavailable(f"the function {self._name} does not answer; try again") from error
        except ParamValidationError:  # a bug, which no repetition mends
            raise
        except BotoCoreError as error:
            raise Unavailable(f"the function {self._name} cannot be reached; try again") from error
