"""Cross-origin resource sharing (CORS): permission for web pages of other origins.

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from collections.abc import Mapping

from functions.core.records import record

ANY = "*"
MAX_AGE_S = 7200  # the longest that Chromium caches a preflight's answer
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = (
    # OpenAI's client has a dozen of its own, x-stainless-…; "*" does not stand for authorization.
    "*, authorization, content-encoding, content-type, idempotency-key, "
    "inference-header-content-length, x-api-key, x-mayfly-user, x-model-version"
)
# Others than these and the body are hidden from pages.
REPLY_HEADERS = (
    "allow, idempotency-replayed, inference-header-content-length, retry-after, server-timing, "
    "x-cold-start, x-model-alias, x-model-residency, x-model-variant, x-model-version, "
    "x-request-id"
)


@record
class Cors:
    """Origins whose web pages may call the API, e.g. https://app.example.org, or "*"."""

    origins: frozenset[str] = frozenset()

    def headers(self, request_headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that show a reply to its page.

        Names of headers are in lower case. Empty for other callers.
        """
        origin = request_headers.get("origin")
        if origin is None or not self.origins & {origin, ANY}:
            return {}
        headers = {
            "access-control-allow-origin": ANY if ANY in self.origins else origin,
            "access-control-expose-headers": REPLY_HEADERS,
        }
        return headers if ANY in self.origins else {**headers, "vary": "origin"}

    def preflight(self, method: str, request_headers: Mapping[str, str]) -> dict[str, str]:
        """Return further headers of a preflight's reply; empty for any other request.

        A browser sends it before the request itself, without a key.
        """
        if method != "OPTIONS" or "access-control-request-method" not in request_headers:
            return {}
        if not self.headers(request_headers):
            return {}
        return {
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": REQUEST_HEADERS,
            "access-control-max-age": str(MAX_AGE_S),
        }


def add_headers(headers: dict[str, str], more: Mapping[str, str]) -> None:
    """Add CORS headers to those of a reply, which may vary already."""
    for name, value in more.items():
        varies = name == "vary" and name in headers
        headers[name] = f"{headers[name]}, {value}" if varies else value


def parse_origins(text: str) -> Cors:
    """Parse a comma-separated list of origins.

    >>> sorted(parse_origins("https://a.example, http://localhost:8000/,").origins)
    ['http://localhost:8000', 'https://a.example']
    """
    names = (name.strip().rstrip("/") for name in text.split(","))
    return Cors(frozenset(filter(None, names)))
