"""Command line: `python -m mayfly keys …` manages a stack's access keys.

It invokes the stack's manage function with the credentials of the AWS CLI, which need the
permissions cloudformation:DescribeStacks and lambda:InvokeFunction. A new key is the only text on
standard output, e.g. for `export MAYFLY_KEY=$(python -m mayfly keys create --scope infer)`.
"""

import argparse
import getpass
import json
import sys
from collections.abc import Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from mayfly.invocation import Failed, find_function, invoke
from mayfly.times import parse_seconds, time_after

SCOPES = ("infer", "read", "deploy", "admin")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = parse(arguments)
    try:
        options.run(options)
    except NoRegionError:
        return _fail("no AWS region is set: export AWS_DEFAULT_REGION, e.g. us-east-1")
    except NoCredentialsError:
        return _fail("there are no AWS credentials: run aws configure, or export AWS_PROFILE")
    except (Failed, BotoCoreError, ClientError) as error:
        return _fail(str(error))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m mayfly", description="Manage a Mayfly stack.")
    keys = parser.add_subparsers(required=True).add_parser("keys", help="manage access keys")
    commands = keys.add_subparsers(required=True)
    stack = argparse.ArgumentParser(add_help=False)
    stack.add_argument("--stack", default="mayfly", help="name of the stack [mayfly]")
    stack.add_argument("--function", help="name of its manage function, instead of --stack")

    create = commands.add_parser("create", parents=[stack], help="create a key and print it")
    create.add_argument("--name", default="key", help="name for people [key]")
    create.add_argument(
        "--scope", action="append", choices=SCOPES, help="permission, may be repeated [infer]"
    )
    create.add_argument(
        "--model", action="append", help="pattern of model names, e.g. 'fraud-*', may be repeated"
    )
    create.add_argument(
        "--expires", type=parse_seconds, metavar="TIME", help="lifetime, e.g. 12h or 90d [none]"
    )
    create.set_defaults(run=create_key)
    listing = commands.add_parser("list", parents=[stack], help="list the keys")
    listing.set_defaults(run=list_keys)
    rotate = commands.add_parser("rotate", parents=[stack], help="print a new text of a key")
    rotate.add_argument("id", help="id of the key: its second part, between the underscores")
    rotate.add_argument(
        "--overlap",
        type=parse_seconds,
        default=parse_seconds("1d"),
        metavar="TIME",
        help="for how long the old text stays valid, e.g. 0s or 7d [1d]",
    )
    rotate.set_defaults(run=rotate_key)
    revoke = commands.add_parser("revoke", parents=[stack], help="end a key for good")
    revoke.add_argument("id", help="id of the key")
    revoke.set_defaults(run=revoke_key)
    return parser.parse_args(arguments)


def create_key(options: argparse.Namespace) -> None:
    """Create an access key and print it."""
    fields: dict[str, Any] = {"name": options.name, "scopes": options.scope or ["infer"]}
    if options.model:
        fields["models"] = options.model
    if options.expires is not None:
        fields["expires_at"] = time_after(options.expires)
    _show_once(_run(options, "create-key", fields))


def list_keys(options: argparse.Namespace) -> None:
    """Print one line of JSON for each access key."""
    fields: dict[str, Any] = {}
    while True:
        page = _run(options, "list-keys", fields)
        for key in page["keys"]:
            print(json.dumps(key))
        if page["next_cursor"] is None:
            return
        fields = {"cursor": page["next_cursor"]}


def rotate_key(options: argparse.Namespace) -> None:
    """Print a new text of an access key."""
    fields = {"id": options.id, "overlap_seconds": options.overlap}
    _show_once(_run(options, "rotate-key", fields))


def revoke_key(options: argparse.Namespace) -> None:
    """End an access key and print its state."""
    print(json.dumps(_run(options, "revoke-key", {"id": options.id})))
    print("It may still be accepted for KeyCacheSeconds (60 s by default).", file=sys.stderr)


def _run(options: argparse.Namespace, operation: str, fields: dict[str, Any]) -> Any:
    function = options.function or find_function(options.stack)
    return invoke(function, {"operation": operation, "actor": getpass.getuser(), **fields})


def _fail(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 1


def _show_once(reply: dict[str, Any]) -> None:
    text = reply.pop("key")
    print(json.dumps(reply), file=sys.stderr)
    print("The key is not shown again:", file=sys.stderr, flush=True)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
