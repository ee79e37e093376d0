"""AWS Signature Version 4 for HTTP requests, in the `Authorization` header.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import lru_cache

from functions.core.records import field, record

ALGORITHM = "AWS4-HMAC-SHA256"
NO_PAYLOAD = hashlib.sha256(b"").hexdigest()


@record
class Credentials:
    """AWS access key and secret; a role's temporary keys have a `token`."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@record
class Scope:
    """Region and service that a signature is valid for, e.g. Scope("eu-west-1", "s3")."""

    region: str
    service: str


def sign(
    method: str,
    path: str,
    headers: Mapping[str, str],
    payload_hash: str,
    *,
    scope: Scope,
    credentials: Credentials,
    now: float,
) -> dict[str, str]:
    """Return `headers` plus the AWS signature headers of an HTTP request.

    The request has no query string.

    `path` is percent-encoded. The names in `headers` are lower case and include `host`; all of
    them are signed. `now` is Unix time.
    """
    moment = time.gmtime(now)
    date, timestamp = time.strftime("%Y%m%d", moment), time.strftime("%Y%m%dT%H%M%SZ", moment)
    signed = {**headers, "x-amz-date": timestamp}
    if scope.service == "s3":
        signed["x-amz-content-sha256"] = payload_hash
    if credentials.token is not None:
        signed["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(signed))
    lines = "\n".join(f"{name}:{' '.join(signed[name].split())}" for name in sorted(signed))
    no_query = ""
    request = f"{method}\n{path}\n{no_query}\n{lines}\n\n{names}\n{payload_hash}"
    credential_scope = f"{date}/{scope.region}/{scope.service}/aws4_request"
    request_hash = hashlib.sha256(request.encode()).hexdigest()
    text = f"{ALGORITHM}\n{timestamp}\n{credential_scope}\n{request_hash}"
    signature = _hmac(_signing_key(credentials.secret_key, date, scope), text).hex()
    signed["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{credential_scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return signed


@lru_cache(maxsize=4)  # one key for each service and day
def _signing_key(secret: str, date: str, scope: Scope) -> bytes:
    key = ("AWS4" + secret).encode()
    for part in (date, scope.region, scope.service, "aws4_request"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
