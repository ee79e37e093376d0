"""AWS Signature Version 4, in the `Authorization` header

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
NO_PAYLOAD = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; `token` comes with the temporary ones of a role."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a signature holds, e.g. Scope("eu-west-1", "s3")."""

    region: str
    service: str


def encoded(text: str, safe: str = "") -> str:
    """`text` in UTF-8 with everything percent-encoded but `A-Za-z0-9-_.~` and `safe`.

    >>> encoded("a b/ü", safe="/")
    'a%20b/%C3%BC'
    """
    return quote(text, safe=safe)


def signed(
    method: str,
    path: str,
    headers: Mapping[str, str],
    payload_hash: str,
    *,
    scope: Scope,
    credentials: Credentials,
    now: float,
    query: str = "",
) -> dict[str, str]:
    """`headers` and what makes them signed. `path` and `query` are as they are sent, encoded once.

    The names of `headers` are lower case, `host` is among them, and every one is signed. `now` is Unix time.
    """
    moment = time.gmtime(now)
    date, stamp = time.strftime("%Y%m%d", moment), time.strftime("%Y%m%dT%H%M%SZ", moment)
    every = {**headers, "x-amz-date": stamp}
    if scope.service == "s3":
        every["x-amz-content-sha256"] = payload_hash
    if credentials.token is not None:
        every["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(every))
    canonical = "\n".join(f"{name}:{' '.join(every[name].split())}" for name in sorted(every))
    request = f"{method}\n{path}\n{query}\n{canonical}\n\n{names}\n{payload_hash}"
    place = f"{date}/{scope.region}/{scope.service}/aws4_request"
    text = f"{ALGORITHM}\n{stamp}\n{place}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = _signing_key(credentials.secret_key, date, scope)
    every["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{place}, SignedHeaders={names}, "
        f"Signature={_hmac(key, text).hex()}"
    )
    return every


@lru_cache(maxsize=4)  # the same all day, for each service
def _signing_key(secret: str, date: str, scope: Scope) -> bytes:
    key = ("AWS4" + secret).encode()
    for part in (date, scope.region, scope.service, "aws4_request"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
