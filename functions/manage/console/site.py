"""Web console under /console: one page and one script.

Both are made from the files in `web`. The page needs no key: it asks for one, and the API decides.
Nothing comes from another host.
"""

import base64
import gzip
import hashlib
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path

from functions.core.errors import MethodNotAllowed, PathNotFound, shown
from functions.core.serving.http import HttpRequest, HttpResponse
from functions.manage.console.linker import link

ROOT = "/console"
WEB = Path(__file__).parent / "web"
# Modules by the names in imports; all others are paths below WEB, without their ending.
VENDORED = {"preact": "preact.mjs", "preact/hooks": "hooks.mjs", "htm": "htm.mjs"}
SAFE = {
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "vary": "accept-encoding",
    "cache-control": "no-cache",  # asked again each time, and answered 304
}


def read_module(name: str) -> str:
    """Return the text of a module by the name in its import."""
    vendored = VENDORED.get(name)
    path = WEB / "vendor" / vendored if vendored else WEB / f"{name}.js"
    return path.read_text()


@cache
def script() -> bytes:
    """Return the console's script: every module, joined."""
    return link("main", read_module).encode()


class Console:
    """Pages of the console; `upload_origin` names where signed uploads go."""

    def __init__(self, upload_origin: Callable[[], str]) -> None:
        self._upload_origin = upload_origin

    @staticmethod
    def has(path: str) -> bool:
        """Return True for a path at or below ROOT."""
        return f"{path}/".startswith(f"{ROOT}/")

    def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the reply to a request below ROOT.

        Raises:
            PathNotFound, MethodNotAllowed: there is no such page.
        """
        name = request.path.removeprefix(ROOT)
        if name not in ("", "/", "/console.js"):
            raise PathNotFound(
                f"there is nothing at {shown(request.path)}; the console is at {ROOT}/"
            )
        if request.method not in ("GET", "HEAD"):
            text = f"this path takes GET or HEAD, not {shown(request.method)}"
            raise MethodNotAllowed(text, allow=("GET", "HEAD"))
        if not name:  # relative, because the API's stage may come before it
            return HttpResponse(308, b"", {"location": "console/"})
        if name == "/":
            return _reply(
                request, "text/html", self._page, {"content-security-policy": self.policy}
            )
        return _reply(request, "text/javascript", script(), {})

    @cached_property
    def policy(self) -> str:
        """Content-Security-Policy of the page."""
        digest = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode()
        return (
            f"default-src 'none'; script-src 'self'; style-src 'sha256-{digest}'; "
            f"img-src 'self' data: blob:; connect-src 'self' {self._upload_origin()}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    @cached_property
    def _style(self) -> str:
        return (WEB / "style.css").read_text()

    @cached_property
    def _page(self) -> bytes:
        page = (WEB / "index.html").read_text()
        return page.replace("/*STYLE*/", self._style).encode()


def _reply(request: HttpRequest, kind: str, body: bytes, headers: dict[str, str]) -> HttpResponse:
    """Return a file, packed with gzip, or 304 to whoever has it."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = SAFE | headers | {"etag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return HttpResponse(304, b"", headers)
    headers["content-type"] = f"{kind}; charset=utf-8"
    packs = "gzip" in request.headers.get("accept-encoding", "")
    if packs:
        headers["content-encoding"] = "gzip"
        body = _packed(body)
    response = HttpResponse(200, b"" if request.method == "HEAD" else body, headers)
    response.binary = packs
    return response


@cache
def _packed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)
