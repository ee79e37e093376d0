"""Execution environments against the behaviour of Lambda's Runtime API."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local.execution.logs import FunctionLog
from local.execution.pool import FunctionPool
from local.execution.processes import Janitor
from local.execution.runtime_api import Place
from local.template import Template

pytestmark = pytest.mark.timeout(120)

TEMPLATE = """
Resources:
  Wrapped:
    Type: AWS::Serverless::Function
    Properties:
      Handler: code.facts
      Timeout: 60
      Environment: {Variables: {AWS_LAMBDA_EXEC_WRAPPER: /var/task/bin/start}}
"""
CODE = """
import os
def facts(event, context):
    return dict(os.environ)
"""
WRAPPER = """#!/bin/sh
export GIVEN="$*"
python=$1
shift
exec "$python" -X utf8 "$@"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A template with the code of its functions and a wrapper script."""
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "start").write_text(WRAPPER)
    (tmp_path / "bin" / "start").chmod(0o755)
    return tmp_path


@pytest.fixture
def janitor() -> Iterator[Janitor]:
    """The process that ends what a failed test leaves behind."""
    janitor = Janitor()
    yield janitor
    janitor.close()


def run(
    project: Path, janitor: Janitor, function: str, work: Callable[[FunctionPool], Awaitable[Any]]
) -> Any:
    """Await `work` on a pool of a function of the project's template."""

    async def with_pool() -> Any:
        place = Place("http://127.0.0.1:9", project, janitor, project)
        log = FunctionLog(project, function)
        functions = Template.load(project / "template.yaml").functions
        pool = FunctionPool(functions[function], place, log)
        try:
            return await work(pool)
        finally:
            await pool.stop()
            log.close()

    return asyncio.run(with_pool())


def test_a_wrapper_script_starts_the_function(project: Path, janitor: Janitor) -> None:
    async def facts(pool: FunctionPool) -> Any:
        return json.loads((await pool.invoke(b"{}")).payload)

    variables = run(project, janitor, "Wrapped", facts)

    assert variables["GIVEN"].endswith("python -m awslambdaric code.facts")
    assert variables["PYTHONPATH"].split(":")[0] == variables["LAMBDA_TASK_ROOT"] == str(project)
    assert "awslambdaric" in {
        each.name for path in variables["PYTHONPATH"].split(":") for each in Path(path).iterdir()
    }
