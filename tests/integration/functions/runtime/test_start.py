"""Start of a function: the wrapper script, the search path, imports and the framed log."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.runtime.conventions.search_path import extend
from tests.runtime_api import AWS, MAYFLY, ROOT, Event, FakeRuntimeApi, play, started

HANDLERS = "tests.integration.functions.runtime.handlers"
START = ROOT / "functions/runtime/start"
PRINT_ARGUMENTS = '#!/bin/sh\nfor argument; do echo "$argument"; done\n'
ORIGINAL = ["-m", "awslambdaric", "module.handler"]


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """Return an interpreter that prints its arguments."""
    path = tmp_path / "python with spaces"
    path.write_text(PRINT_ARGUMENTS)
    path.chmod(0o755)
    return path


def arguments(interpreter: Path, **variables: str) -> list[str]:
    done = subprocess.run(
        [START, interpreter, *ORIGINAL],
        env={"LAMBDA_TASK_ROOT": "/var/task", "PATH": os.environ["PATH"], **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RUNTIME_CLIENT": "mayfly"},
        {"RUNTIME_CLIENT": ""},
        {"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"},
        {"AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency"},
    ],
)
def test_a_function_starts_under_our_client(interpreter: Path, variables: dict[str, str]) -> None:
    *flags, program = arguments(interpreter, **variables)

    assert program == "/var/task/functions/runtime/__main__.py"
    assert {"-I", "-S", "-u"} <= set(flags)


@pytest.mark.parametrize(
    "variables",
    [
        {"RUNTIME_CLIENT": "aws"},
        {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"},
        {"AWS_LAMBDA_MAX_CONCURRENCY": "8"},
        {"AWS_LAMBDA_MAX_CONCURRENCY": ""},
    ],
)
def test_the_original_command_stays_where_it_has_to(
    interpreter: Path, variables: dict[str, str]
) -> None:
    assert arguments(interpreter, **variables) == ORIGINAL


def test_awss_client_runs_under_the_wrapper_too() -> None:
    api, _ = play(MAYFLY, f"{HANDLERS}.echo", [Event(b"1")], RUNTIME_CLIENT="aws")

    assert api.posts[0].json == 1
    assert all(agent.startswith("aws-lambda-python/") for agent in api.user_agents)


def test_a_handler_finds_the_modules_of_code_layers_and_library(tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    search_path = os.pathsep.join((str(more), "/no/such/folder", str(ROOT), str(more)))

    api, _ = play(MAYFLY, f"{HANDLERS}.search_path", [Event()], PYTHONPATH=search_path)

    path: Any = api.posts[0].json
    assert path[:2] == [str(ROOT), str(more)]
    assert len(path) == len(set(path))
    assert "/no/such/folder" not in path
    assert "" not in path


def test_packages_of_the_runtime_come_last(tmp_path: Path) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = tmp_path / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    code = tmp_path / "code"
    code.mkdir()
    path = [str(code), "/library"]

    extend(path, {"LAMBDA_TASK_ROOT": str(code), "PYTHONPATH": ""}, str(tmp_path))

    assert path == [str(code), "/library", str(packages)]


def test_the_interpreter_is_isolated() -> None:
    api, _ = play(MAYFLY, f"{HANDLERS}.flags", [Event()])

    assert api.posts[0].json == {"isolated": 1, "no_site": 1}


def test_the_client_imports_little_before_the_handler(tmp_path: Path) -> None:
    """No argument is parsed, no class generated, no regular expression compiled."""
    source = (
        "import sys\nseen = list(sys.modules)\n\ndef handler(event, context):\n    return seen\n"
    )
    (tmp_path / "bare.py").write_text(source)

    api, _ = play(MAYFLY, "bare.handler", [Event()], root=tmp_path)

    modules: Any = api.posts[0].json
    heavy = {
        "argparse", "asyncio", "dataclasses", "decimal", "email", "http", "inspect", "json",
        "logging", "pathlib", "ssl", "tempfile", "traceback", "urllib",
    }  # fmt: skip
    assert not heavy & set(modules)


def frames(stream: bytes) -> Iterator[tuple[int, str]]:
    """Yield type and text of each frame of Lambda's log."""
    while stream:
        kind, length, microseconds = struct.unpack(">IIQ", stream[:16])
        assert microseconds > 1_700_000_000_000_000
        yield kind, stream[16 : 16 + length].decode()
        stream = stream[16 + length :]


@pytest.mark.parametrize("form", ["Text", "JSON"])
@pytest.mark.parametrize("handler", ["fail", "log"])
def test_lambdas_log_descriptor_gets_framed_messages(
    handler: str, form: str, tmp_path: Path
) -> None:
    event = Event(b'{"type": "Own", "message": "of the function"}')
    logs = []
    for client in (AWS, MAYFLY):
        file = tmp_path / client
        with file.open("wb") as log:
            os.set_inheritable(log.fileno(), True)
            api = FakeRuntimeApi([event])
            more = {"_LAMBDA_TELEMETRY_LOG_FD": str(log.fileno()), "AWS_LAMBDA_LOG_FORMAT": form}
            with started(
                client, api, f"{HANDLERS}.{handler}", descriptors=(log.fileno(),), **more
            ) as function:
                assert not function.has_ended(api.idle)
        logs.append([(kind, without_time(text)) for kind, text in frames(file.read_bytes())])

    assert logs[0] == logs[1] != []


@pytest.mark.parametrize("client", [AWS, MAYFLY])
def test_child_processes_do_not_learn_of_the_log_descriptor(client: str) -> None:
    read_end, write_end = os.pipe()
    try:
        api = FakeRuntimeApi([Event()])
        more = {"_LAMBDA_TELEMETRY_LOG_FD": str(write_end)}
        with started(
            client, api, f"{HANDLERS}.variables", descriptors=(write_end,), **more
        ) as function:
            assert not function.has_ended(api.idle)
    finally:
        os.close(read_end)
        os.close(write_end)

    assert api.posts[0].json == []


def without_time(text: str) -> str:
    """Return a log record without its time: the second field, or a key of JSON."""
    if text.startswith("{"):
        return str({**json.loads(text), "timestamp": ""})
    fields = text.split("\t")
    return "\t".join(fields[:1] + fields[2:])
