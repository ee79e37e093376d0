"""Serve template.yaml on loopback until Ctrl-C: `python -m local up`."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import cast

from local.cloudformation import TemplateError
from local.execution.pool import CONCURRENCY
from local.execution.processes import ROOT
from local.screen import Screen
from local.stack import Settings, Stack, StackError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line of `python -m local`."""
    parser = argparse.ArgumentParser(
        prog="python -m local", description="template.yaml on loopback."
    )
    up = parser.add_subparsers(required=True, metavar="up").add_parser(
        "up", help="serve until Ctrl-C"
    )
    up.add_argument("--template", type=Path, default=ROOT / "template.yaml")
    up.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="repeatable"
    )
    up.add_argument(
        "--api-port",
        type=_port,
        default=0,
        help="port of the API with its stage [a free one]",
    )
    up.add_argument(
        "--root-port",
        type=_port,
        default=0,
        help="port of the API without a stage [a free one]",
    )
    up.add_argument(
        "--aws-port",
        type=_port,
        default=0,
        help="port of S3, SQS, DynamoDB, SageMaker [a free one]",
    )
    up.add_argument(
        "--control-port", type=_port, default=0, help="port of the Lambda Invoke API [a free one]"
    )
    up.add_argument(
        "--concurrency",
        type=int,
        default=CONCURRENCY,
        help="environments per function [%(default)s]",
    )
    up.add_argument(
        "--api-timeout",
        type=float,
        default=29.0,
        help="seconds the API waits for a function [%(default)s]",
    )
    up.add_argument(
        "--state-dir", type=Path, default=ROOT / ".local", help="folder for the logs [%(default)s]"
    )
    up.add_argument("--code-root", type=Path, default=ROOT, help="folder that holds `functions`")
    up.add_argument(
        "--built", type=Path, metavar="DIR", help="run the output of sam build, e.g. .aws-sam/build"
    )
    up.add_argument(
        "--python", default=sys.executable, help="interpreter of the functions; needs awslambdaric"
    )
    up.add_argument(
        "--function-endpoint-url",
        metavar="URL",
        help="AWS endpoint for the functions alone, e.g. a proxy",
    )
    up.add_argument("--logs", action="store_true", help="print the functions' logs")
    up.add_argument(
        "--json", action="store_true", help="print one line of JSON when the stack is up"
    )
    up.add_argument("--with-parent", action="store_true", help="stop when standard input ends")
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if not 0 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 65535")
    return number


def settings(arguments: argparse.Namespace) -> Settings:
    """Convert command-line arguments to settings of the local stack."""
    parameters = {}
    for pair in arguments.parameter:
        name, separator, value = pair.partition("=")
        if not separator:
            raise TemplateError(f"--parameter {pair}: write Name=Value")
        parameters[name] = value
    return Settings(
        template=arguments.template,
        parameters=parameters,
        state_dir=arguments.state_dir,
        api_port=arguments.api_port,
        root_port=arguments.root_port,
        aws_port=arguments.aws_port,
        control_port=arguments.control_port,
        concurrency=arguments.concurrency,
        api_timeout_s=arguments.api_timeout,
        python=interpreter(arguments.python),
        code_root=arguments.code_root.absolute(),
        built=arguments.built,
        function_endpoint_url=arguments.function_endpoint_url,
        echo=(lambda function, line: print(f"{function} │ {line}", flush=True))
        if arguments.logs
        else None,
    )


def interpreter(name: str) -> str:
    """Return the absolute path of a Python interpreter.

    Links are not followed, because a virtual environment's interpreter is one.
    """
    path = shutil.which(name)
    if path is None:
        raise StackError(f"--python {name}: there is no such interpreter")
    return str(Path(path).absolute())


def screen(stack: Stack, key: str) -> Screen:
    """Return the text screen shown when the local stack is up."""
    return Screen(
        api_url=stack.api_url,
        root_url=stack.root_url,
        endpoint_url=stack.endpoint_url,
        lambda_url=stack.lambda_url,
        log_dir=stack.log_dir,
        bucket=stack.deployed.outputs.get("ArtifactsBucketName", "<bucket>"),
        table=stack.deployed.outputs.get("RegistryTableName", "<table>"),
        functions=list(stack.pools),
        outputs=stack.deployed.outputs,
        key=key,
    )


async def up(arguments: argparse.Namespace) -> None:
    """Run the local stack until a signal, end of input, or failure."""
    loop = asyncio.get_running_loop()
    this = cast("asyncio.Task[None]", asyncio.current_task())

    def read_parent() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin)
            this.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, this.cancel)
    if arguments.with_parent:
        loop.add_reader(sys.stdin, read_parent)
    async with Stack(settings(arguments)) as stack:
        if arguments.json:
            print(json.dumps(stack.describe()), flush=True)
        else:
            print(screen(stack, await stack.create_key()).text(), flush=True)
        raise StackError(await stack.failed)


def main() -> int:
    """Run `python -m local` and return its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C
            asyncio.run(up(parse()))
    except (StackError, TemplateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
