"""DescribeStacks of CloudFormation for the local stack, in front of moto.

moto's own CloudFormation would take the template anew, and imports every service that it knows.
The stack's outputs are in the JSON file $MAYFLY_STACK_FILE, which the local stack writes when it
has created its resources.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

FILE_VARIABLE = "MAYFLY_STACK_FILE"
CREATED = "2026-01-01T00:00:00.000Z"  # a time has to be there; nobody asks for it
NAMESPACE = "http://cloudformation.amazonaws.com/doc/2010-05-15/"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def write_description(path: Path, name: str, outputs: Mapping[str, str]) -> None:
    """Store a stack's name and outputs for `StackDescriptions`."""
    path.write_text(json.dumps({"name": name, "outputs": dict(outputs)}))


class StackDescriptions:
    """WSGI application that answers DescribeStacks and passes other requests on."""

    def __init__(self, application: Application, path: Path | None = None) -> None:
        """Describe the stack in the file `path`, by default $MAYFLY_STACK_FILE."""
        self._application = application
        self._path = path or Path(os.environ.get(FILE_VARIABLE) or os.devnull)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer one request."""
        if "/cloudformation/" not in environ.get("HTTP_AUTHORIZATION", ""):
            return self._application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        fields = parse_qs(body.decode(errors="replace"))
        if fields.get("Action") != ["DescribeStacks"]:
            environ["wsgi.input"] = io.BytesIO(body)
            return self._application(environ, start_response)
        status, text = describe(self._stack(), *fields.get("StackName", []))
        start_response(status, [("content-type", "text/xml")])
        return [text.encode()]

    def _stack(self) -> Mapping[str, Any] | None:
        try:
            text = self._path.read_text()
        except FileNotFoundError:  # its resources are being created
            return None
        return dict(json.loads(text)) if text else None


def describe(stack: Mapping[str, Any] | None, name: str | None = None) -> tuple[str, str]:
    """Return status and XML of the reply to DescribeStacks.

    `stack` has `name` and `outputs`; None while there is none. `name` is that of the request.
    """
    if name is not None and (stack is None or stack["name"] != name):
        message = escape(f"Stack with id {name} does not exist")
        error = f"<Type>Sender</Type><Code>ValidationError</Code><Message>{message}</Message>"
        return "400 Bad Request", (
            f'<ErrorResponse xmlns="{NAMESPACE}"><Error>{error}</Error></ErrorResponse>'
        )
    return "200 OK", (
        f'<DescribeStacksResponse xmlns="{NAMESPACE}"><DescribeStacksResult><Stacks>'
        f"{_member(stack) if stack else ''}"
        "</Stacks></DescribeStacksResult></DescribeStacksResponse>"
    )


def _member(stack: Mapping[str, Any]) -> str:
    name = escape(stack["name"])
    outputs = "".join(
        f"<member><OutputKey>{escape(key)}</OutputKey>"
        f"<OutputValue>{escape(value)}</OutputValue></member>"
        for key, value in stack["outputs"].items()
    )
    return (
        f"<member><StackName>{name}</StackName><StackId>{name}</StackId>"
        f"<CreationTime>{CREATED}</CreationTime><StackStatus>CREATE_COMPLETE</StackStatus>"
        f"<Outputs>{outputs}</Outputs></member>"
    )
