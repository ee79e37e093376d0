"""Signatures of generated requests, compared with those of botocore."""

import datetime
import hashlib
import string
from unittest import mock
from urllib.parse import quote

import botocore.auth
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as TheirCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.adapters.aws_http.sigv4 import NO_PAYLOAD, Credentials, Scope, sign

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"

keys = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"),
    min_size=1,
    max_size=60,
)
ascii_words = st.text(string.ascii_letters + string.digits + "+/=", min_size=1, max_size=40)
regions = st.sampled_from(["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1"])
times = st.integers(1_500_000_000, 4_000_000_000)
header_names = st.from_regex(r"x-amz-[a-z]{1,10}|range|if-match", fullmatch=True)
header_values = st.text(string.printable.strip() + "  ", max_size=30)


def theirs(
    auth: type[SigV4Auth],
    method: str,
    url: str,
    headers: dict[str, str],
    body: bytes,
    credentials: Credentials,
    scope: Scope,
    now: float,
    **context: object,
) -> dict[str, str]:
    """Return the headers of a request signed by botocore, by lower-case name."""
    request = AWSRequest(method, url, headers=headers, data=body)
    request.context.update(context)
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(tzinfo=None)
    with mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment):
        auth(
            TheirCredentials(credentials.access_key, credentials.secret_key, credentials.token),
            scope.service,
            scope.region,
        ).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


credentials = st.builds(Credentials, ascii_words, ascii_words, st.none() | ascii_words)


@settings(max_examples=300, deadline=None)
@given(
    key=keys,
    headers=st.dictionaries(header_names, header_values, max_size=4),
    credentials=credentials,
    region=regions,
    now=times,
    hashed=st.booleans(),
)
def test_a_request_to_s3_is_signed_as_botocore_signs_it(
    key: str,
    headers: dict[str, str],
    credentials: Credentials,
    region: str,
    now: int,
    hashed: bool,
) -> None:
    path = "/bucket/" + quote(key, safe="/")
    headers = {
        name: value for name, value in headers.items() if not name.startswith("x-amz-security")
    }
    scope = Scope(region, "s3")
    host = "h.example:8080"
    url = f"https://{host}{path}"

    ours = sign(
        "GET",
        path,
        {"host": host, **headers},
        NO_PAYLOAD if hashed else UNSIGNED_PAYLOAD,
        scope=scope,
        credentials=credentials,
        now=now,
    )

    config = mock.Mock(s3={"payload_signing_enabled": hashed})
    found = theirs(
        S3SigV4Auth, "GET", url, dict(headers), b"", credentials, scope, now,
        client_config=config, payload_signing_enabled=hashed, has_streaming_input=not hashed,
    )  # fmt: skip
    assert ours == {"host": host, **found}


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), credentials=credentials, region=regions, now=times)
def test_a_request_to_dynamodb_is_signed_as_botocore_signs_it(
    body: bytes, credentials: Credentials, region: str, now: int
) -> None:
    headers = {
        "content-type": "application/x-amz-json-1.0",
        "x-amz-target": "DynamoDB_20120810.Query",
    }
    host, scope = f"dynamodb.{region}.amazonaws.com", Scope(region, "dynamodb")

    ours = sign(
        "POST", "/", {"host": host, **headers}, hashlib.sha256(body).hexdigest(),
        scope=scope, credentials=credentials, now=now,
    )  # fmt: skip

    assert ours == {
        "host": host,
        **theirs(
            SigV4Auth, "POST", f"https://{host}/", dict(headers), body, credentials, scope, now
        ),
    }


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Credentials("AKIA", "secret", "secret too"))
