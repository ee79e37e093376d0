"""State machine of canaries in Step Functions, through boto3."""

import json
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from functions.adapters.aws_errors import ErrorKind, classify_response
from functions.core.errors import Unavailable


class StateMachine:
    """Step Functions state machine that executions are started of."""

    def __init__(self, client: Any, arn: str) -> None:
        self._client = client
        self._arn = arn

    def start(self, name: str, execution_input: Mapping[str, Any]) -> None:
        """Start the execution of this name, unless it has been started before.

        Raises:
            Unavailable: Step Functions failed; try again.
        """
        try:
            self._client.start_execution(
                stateMachineArn=self._arn, name=name, input=json.dumps(execution_input)
            )
        except ClientError as error:
            if error.response["Error"]["Code"] == "ExecutionAlreadyExists":
                return
            if classify_response(error.response) is ErrorKind.TRANSIENT:
                raise Unavailable("the state machine does not answer; try again") from error
            raise
        except ParamValidationError:  # a bug, which no repetition mends
            raise
        except BotoCoreError as error:
            raise Unavailable("the state machine cannot be reached; try again") from error
