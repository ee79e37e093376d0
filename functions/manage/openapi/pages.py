"""Pages under /docs: Swagger UI from Powertools' bundled files, and its documents.

Nothing comes from another host. The pages hold no secret and need no key; the reader types one
into the page, which sends it with its requests.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

from functions.core.errors import MethodNotAllowed, PathNotFound, shown
from functions.core.serving.http import HttpRequest, HttpResponse

ROOT = "/docs"
MAX_AGE_S = 3600  # s that browsers cache files, which change with a deployment
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mayfly API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{base}swagger-ui.css">
</head>
<body>
<nav>
<a href="?plane=control">Control plane, /api/v1</a>
<a href="?plane=data">Data plane, /v2</a>
<a href="?plane=language">Language models, /v1</a>
</nav>
<div id="swagger-ui"></div>
<script src="{base}swagger-ui.js"></script>
<script src="{base}start.js"></script>
</body>
</html>
"""
# The documents lie relative to this script: the page is at /docs or /docs/, below any stage.
START = """const folder = new URL(".", document.currentScript.src);
const plane = new URLSearchParams(location.search).get("plane");
const paths = { control: "../api/v1/openapi.json", data: "v2.json", language: "v1.json" };
SwaggerUIBundle({
  url: new URL(paths[plane] || paths.control, folder).href,
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  docExpansion: "none",
  validatorUrl: null,
});
"""


def is_page(path: str) -> bool:
    """Return True for a path at or below ROOT."""
    return f"{path}/".startswith(f"{ROOT}/")


def answer_page(request: HttpRequest) -> HttpResponse:
    """Return the reply to a request below ROOT.

    Raises:
        PathNotFound, MethodNotAllowed: there is no such page.
    """
    name = request.path.removeprefix(ROOT).strip("/")
    if name not in FILES:
        raise PathNotFound(f"there is nothing at {shown(request.path)}; the pages are at {ROOT}")
    if request.method not in ("GET", "HEAD"):
        text = f"this path takes GET or HEAD, not {shown(request.method)}"
        raise MethodNotAllowed(text, allow=("GET", "HEAD"))
    if not name:
        base = "" if request.path.endswith("/") else "docs/"
        return _reply(request, "text/html; charset=utf-8", PAGE.format(base=base).encode())
    kind, read = FILES[name]
    return _file(request, kind, read)


def _file(request: HttpRequest, kind: str, read: Callable[[], bytes]) -> HttpResponse:
    """Return a file, packed if the caller takes gzip, or 304."""
    tag = _tag(read)
    cached = f"public, max-age={MAX_AGE_S}"
    headers = {"etag": tag, "cache-control": cached, "vary": "accept-encoding"}
    if tag in request.headers.get("if-none-match", ""):
        return HttpResponse(304, b"", SAFE | headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return _reply(request, kind, read(), headers)
    response = _reply(request, kind, _packed(read), headers | {"content-encoding": "gzip"})
    response.binary = True
    return response


def _reply(
    request: HttpRequest, kind: str, body: bytes, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    body = b"" if request.method == "HEAD" else body
    return HttpResponse(200, body, SAFE | {"content-type": kind, **(headers or {})})


@cache
def _packed(read: Callable[[], bytes]) -> bytes:
    return gzip.compress(read(), mtime=0)


@cache
def _tag(read: Callable[[], bytes]) -> str:
    return f'"{hashlib.sha256(read()).hexdigest()[:32]}"'


@cache
def _script() -> bytes:
    return _bundled("swagger-ui-bundle.min.js")


@cache
def _style() -> bytes:
    return _bundled("swagger-ui.min.css")


def _start() -> bytes:
    return START.encode()


@cache
def _data_plane() -> bytes:
    # Not at the top: it takes the data plane's modules with it, and few starts need them.
    from functions.manage.openapi.data_plane import data_plane_document

    return json.dumps(data_plane_document(), separators=(",", ":")).encode()


@cache
def _language() -> bytes:
    from functions.manage.openapi.language import language_document  # as above

    return json.dumps(language_document(), separators=(",", ":")).encode()


def _bundled(name: str) -> bytes:
    folder = files("aws_lambda_powertools.event_handler.openapi.swagger_ui")
    return (folder / name).read_bytes()


def _page() -> bytes:
    return PAGE.encode()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "": ("text/html; charset=utf-8", _page),
    "swagger-ui.js": ("text/javascript; charset=utf-8", _script),
    "swagger-ui.css": ("text/css; charset=utf-8", _style),
    "start.js": ("text/javascript; charset=utf-8", _start),
    "v1.json": ("application/json", _language),
    "v2.json": ("application/json", _data_plane),
}
