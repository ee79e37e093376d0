"""Uploads through signed URLs: what is signed, and the way to READY over moto."""

import base64
import hashlib
import json
from datetime import datetime
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from functions.adapters.aws.presigned import URL_S, S3PresignedPuts
from local.aws.provision import Deployed
from tests.data_plane import Client

UPLOADS = "/live/api/v1/uploads"
CONTENT = b"no model"
DIGEST = hashlib.sha256(CONTENT)
FILE = {
    "model": "digits",
    "file": "model.onnx",
    "size_bytes": len(CONTENT),
    "sha256": DIGEST.hexdigest(),
}
SIGNED = [
    "content-length",
    "content-type",
    "host",
    "if-none-match",
    "x-amz-checksum-sha256",
    "x-amz-expected-bucket-owner",
]


def test_a_url_is_bound_to_key_size_checksum_and_one_use(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
    s3 = boto3.client(
        "s3",
        region_name="eu-central-1",
        aws_access_key_id="AKIAEXAMPLE",
        aws_secret_access_key="secret",
        config=config,
    )
    key = "models/digits/up-0123456789abcdef0123/parts/w é.bin"
    url, headers = S3PresignedPuts(s3, "uploads", "123456789012").sign(key, 4, "ab" * 32)

    split = urlsplit(url)
    query = {name: value for name, [value] in parse_qs(split.query).items()}
    assert split.netloc == "uploads.s3.eu-central-1.amazonaws.com"
    assert split.path == "/models/digits/up-0123456789abcdef0123/parts/w%20%C3%A9.bin"
    assert query["X-Amz-SignedHeaders"].split(";") == SIGNED == sorted(["host", *headers])
    assert query["X-Amz-Expires"] == str(URL_S)
    assert headers["x-amz-checksum-sha256"] == base64.b64encode(bytes.fromhex("ab" * 32)).decode()

    def signature(size: str) -> str:
        request = AWSRequest("PUT", url.partition("?")[0])
        for name, value in {**headers, "content-length": size}.items():
            request.headers[name] = value
        auth = S3SigV4QueryAuth(Credentials("AKIAEXAMPLE", "secret"), "s3", "eu-central-1", URL_S)
        signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: signed_at)
        auth.add_auth(request)
        return parse_qs(urlsplit(request.url).query)["X-Amz-Signature"][0]

    assert signature("4") == query["X-Amz-Signature"] != signature("5")


def test_an_upload_is_announced_stored_and_received(
    manage: ModuleType, client: Client, admin: dict[str, str], deployed: Deployed
) -> None:
    created = client.post(UPLOADS, FILE, headers=admin)
    assert created.status == 201, created.body
    upload = created.json

    def state() -> str:
        return str(client.get(f"{UPLOADS}/{upload['id']}", headers=admin).json["state"])

    assert state() == "waiting"
    bucket = deployed.outputs["ArtifactsBucketName"]
    boto3.client("s3").put_object(Bucket=bucket, Key=upload["key"], Body=CONTENT)
    assert state() == "received"
    again = client.post(UPLOADS, {**FILE, "package": upload["package"]}, headers=admin)
    assert (again.status, again.json["code"]) == (409, "STATE_CONFLICT")
    listed = client.get(UPLOADS, headers=admin).json["uploads"]
    assert [row["id"] for row in listed] == [upload["id"]]


@pytest.mark.parametrize("count", [3, 120])
def test_a_page_costs_a_constant_number_of_calls(
    manage: ModuleType, client: Client, admin: dict[str, str], count: int
) -> None:
    for n in range(count):
        client.post(UPLOADS, {**FILE, "model": f"m-{n}"}, headers=admin)
    client.get(UPLOADS, headers=admin)
    calls: list[str] = []
    manage.dynamodb.meta.events.register(
        "before-call.dynamodb", lambda model, **_: calls.append(model.name)
    )

    page = client.get(UPLOADS, headers=admin, query={"limit": "100"}).json
    assert len(page["uploads"]) == min(count, 100)
    # The index, the records, and their versions and notes on failures, 100 keys at once.
    assert calls == ["Query", "BatchGetItem", *["BatchGetItem"] * (1 if count == 3 else 2)]


def test_the_recorded_event_is_answered_after_a_start(
    manage: ModuleType, client: Client, admin: dict[str, str]
) -> None:
    event = json.loads(Path("events/apigw_create_upload.json").read_text())
    event["headers"] |= admin

    first, again = client.deliver(event), client.deliver(event)
    assert (first.status, again.status, again.headers["idempotency-replayed"]) == (201, 201, "true")
    renewed = {name: again.json[name] for name in ("url", "expires_at")}
    assert again.json == {**first.json, **renewed}
    assert again.json["url"].startswith(first.json["url"].partition("?")[0])
    upload = client.get(f"{UPLOADS}/{first.json['id']}", headers=admin).json
    assert upload["expires_at"] == again.json["expires_at"]
