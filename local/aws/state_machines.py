"""Step Functions executed by moto, with Lambda tasks in our environments.

moto interprets the states by itself, but hands a Lambda task to its own Lambda, which needs Docker.

`install()` is called once in moto's process. Then a task invokes the function of this stack through
the Invoke API (`local.execution.control`) at $MAYFLY_LAMBDA_URL.
"""

import os
from functools import lru_cache
from typing import Any

TASK_TIMEOUT_S = 900  # Lambda's own limit


def install(lambda_url: str | None = None) -> None:
    """Patch moto's Step Functions to execute state machines.

    `lambda_url` defaults to $MAYFLY_LAMBDA_URL; without both, Lambda tasks fail.
    """
    from moto.core.config import default_user_config
    from moto.stepfunctions.parser.asl.component.state.exec.state_task import lambda_eval_utils

    default_user_config["stepfunctions"] = {"execute_state_machine": True}
    url = lambda_url or os.environ.get("MAYFLY_LAMBDA_URL", "")

    moto_tasks: Any = lambda_eval_utils
    moto_tasks.boto_client_for = lambda region, **_: _lambda_client(url, region)


@lru_cache(maxsize=1)
def _lambda_client(url: str, region: str) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        proxies={},  # HTTP_PROXY is not for loopback
        retries={"total_max_attempts": 1},  # the state machine says how often
        read_timeout=TASK_TIMEOUT_S,
        parameter_validation=False,
    )
    return boto3.client(
        "lambda",
        endpoint_url=url or "http://127.0.0.1:9",  # the port of nothing
        region_name=region,
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 (a placeholder)
        config=config,
    )
