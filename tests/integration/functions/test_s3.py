"""Uploads and blobs on S3, with the faults that it has."""

import hashlib
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from functions.adapters.aws import s3 as s3_adapter
from functions.adapters.aws.s3 import S3Blobs, S3Uploads
from functions.core.errors import Unavailable
from functions.core.registration.registration import ObjectGone, Pinned
from functions.core.registry.version import Blob
from local.aws.provision import Deployed

KEY = "models/demo/a b+c(ü).onnx"


@pytest.fixture
def bucket(deployed: Deployed) -> str:
    return deployed.outputs["ArtifactsBucketName"]


@pytest.fixture
def blobs(deployed: Deployed) -> S3Blobs:
    return S3Blobs(boto3.client("s3"), deployed.outputs["ServingBucketName"])


def fetched(uploads: S3Uploads, pinned: Pinned, path: Path) -> str:
    digest = hashlib.sha256()
    uploads.fetch(pinned, path, digest)
    return digest.hexdigest()


def test_the_named_version_is_read_and_not_the_newest(bucket: str, tmp_path: Path) -> None:
    s3 = boto3.client("s3")
    first = s3.put_object(Bucket=bucket, Key=KEY, Body=b"first")["VersionId"]
    second = s3.put_object(Bucket=bucket, Key=KEY, Body=b"second")["VersionId"]
    uploads = S3Uploads(s3)

    old, current = uploads.pin(bucket, KEY, first), uploads.pin(bucket, KEY, None)

    assert (old.version_id, old.size_bytes) == (first, 5)
    assert (current.version_id, current.size_bytes) == (second, 6)
    assert fetched(uploads, old, tmp_path / "m") == hashlib.sha256(b"first").hexdigest()
    assert (tmp_path / "m").read_bytes() == b"first"


@pytest.mark.parametrize("size", [10, 16, 17, 95])
def test_a_large_upload_comes_in_parts(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3_adapter, "PART", 8)
    s3, content = boto3.client("s3"), bytes(range(size))
    first = s3.put_object(Bucket=bucket, Key=KEY, Body=content)["VersionId"]
    s3.put_object(Bucket=bucket, Key=KEY, Body=b"x" * size)
    uploads = S3Uploads(s3)

    digest = fetched(uploads, uploads.pin(bucket, KEY, first), tmp_path / "m")

    assert digest == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "m").read_bytes() == content


def test_a_large_upload_that_changes_meanwhile_is_gone(
    tmp_path: Path, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_adapter, "PART", 8)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="plain-parts")
    s3.put_object(Bucket="plain-parts", Key=KEY, Body=b"a" * 40)
    uploads = S3Uploads(s3)
    pinned = uploads.pin("plain-parts", KEY, None)

    s3.put_object(Bucket="plain-parts", Key=KEY, Body=b"b" * 40)

    with pytest.raises(ObjectGone):
        uploads.fetch(pinned, tmp_path / "m")


def test_a_bucket_without_versions_is_pinned_by_etag(tmp_path: Path, deployed: Deployed) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="plain")
    s3.put_object(Bucket="plain", Key=KEY, Body=b"first")
    uploads = S3Uploads(s3)
    pinned = uploads.pin("plain", KEY, None)
    assert pinned.version_id is None
    assert fetched(uploads, pinned, tmp_path / "m")

    s3.put_object(Bucket="plain", Key=KEY, Body=b"other")

    with pytest.raises(ObjectGone):
        uploads.fetch(pinned, tmp_path / "m")


def test_what_is_gone_is_gone(bucket: str, tmp_path: Path) -> None:
    s3 = boto3.client("s3")
    uploads = S3Uploads(s3)
    version = s3.put_object(Bucket=bucket, Key=KEY, Body=b"first")["VersionId"]
    pinned = uploads.pin(bucket, KEY, version)
    s3.delete_object(Bucket=bucket, Key=KEY, VersionId=version)

    with pytest.raises(ObjectGone):
        uploads.fetch(pinned, tmp_path / "m")
    with pytest.raises(ObjectGone):
        uploads.pin(bucket, KEY, version)
    with pytest.raises(ObjectGone):
        uploads.pin(bucket, "models/demo/never", None)
    with pytest.raises(ObjectGone):  # with its whole bucket; S3 answers HEAD without saying so
        uploads.fetch(Pinned("gone", KEY, "v", "v", 0), tmp_path / "m")


def test_a_deleted_object_still_gives_its_named_version(bucket: str, tmp_path: Path) -> None:
    s3 = boto3.client("s3")
    version = s3.put_object(Bucket=bucket, Key=KEY, Body=b"first")["VersionId"]
    s3.delete_object(Bucket=bucket, Key=KEY)  # a delete marker
    uploads = S3Uploads(s3)

    assert fetched(uploads, uploads.pin(bucket, KEY, version), tmp_path / "m")
    with pytest.raises(ObjectGone):
        uploads.pin(bucket, KEY, None)


def test_a_blob_is_stored_once_and_comes_back_verified(
    blobs: S3Blobs, tmp_path: Path, deployed: Deployed
) -> None:
    source = tmp_path / "model"
    source.write_bytes(b"weights")
    blob = Blob("model.onnx", hashlib.sha256(b"weights").hexdigest(), 7)

    blobs.store(blob, source)
    written = boto3.client("s3").head_object(
        Bucket=deployed.outputs["ServingBucketName"], Key=blob.key
    )
    blobs.store(blob, source)
    again = boto3.client("s3").head_object(
        Bucket=deployed.outputs["ServingBucketName"], Key=blob.key
    )
    blobs.fetch(blob, tmp_path / "copy")

    assert again["LastModified"] == written["LastModified"]
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "model"]


@pytest.mark.parametrize(
    "size", [7, s3_adapter.PART, s3_adapter.PART + 1, 2 * s3_adapter.PART + 9], ids=str
)
def test_a_blob_of_any_size_is_stored_whole_in_few_requests(
    tmp_path: Path, deployed: Deployed, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "model").write_bytes(content[:size])
    blob = Blob("model.onnx", hashlib.sha256(content[:size]).hexdigest(), size)
    s3, calls = boto3.client("s3"), []
    s3.meta.events.register(
        "before-send", lambda event_name, **_: calls.append(event_name.rpartition(".")[2])
    )
    monkeypatch.setattr(s3_adapter, "CONNECTIONS", 2)
    blobs = S3Blobs(s3, deployed.outputs["ServingBucketName"])

    blobs.store(blob, tmp_path / "model")
    stored = list(calls)
    blobs.fetch(blob, tmp_path / "copy")

    parts = [
        "HeadObject",
        "CreateMultipartUpload",
        "UploadPart",
        "UploadPart",
        "CompleteMultipartUpload",
    ]
    assert stored == (["PutObject"] if size <= s3_adapter.PART else parts)
    assert (tmp_path / "copy").read_bytes() == content[:size]


@pytest.mark.parametrize(
    ("code", "status"), [("PreconditionFailed", 412), ("ConditionalRequestConflict", 409)]
)
def test_a_blob_that_somebody_else_puts_is_asked_for(
    blobs: S3Blobs, tmp_path: Path, deployed: Deployed, code: str, status: int
) -> None:
    """It may have been collected since, or its put may fail."""
    (tmp_path / "model").write_bytes(b"weights")
    blob = Blob("model.onnx", hashlib.sha256(b"weights").hexdigest(), 7)
    refused: list[str] = []

    def refuse(params: dict[str, object], **_: object) -> None:
        if "IfNoneMatch" in params:
            refused.append(code)
            error = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(error, "PutObject")  # type: ignore[arg-type]

    blobs._client.meta.events.register("before-parameter-build.s3.PutObject", refuse)

    blobs.store(blob, tmp_path / "model")
    blobs.fetch(blob, tmp_path / "copy")

    assert refused == [code]


def test_a_blob_that_cannot_be_written_is_tried_again(deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")

    with pytest.raises(Unavailable, match="nowhere"):
        S3Blobs(boto3.client("s3"), "nowhere").store(
            Blob("model.onnx", "0" * 64, 7), tmp_path / "model"
        )


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"weighed", "BLOB_CORRUPTED"), (None, "BLOB_MISSING"), (b"we", "UNAVAILABLE")],
)
def test_a_blob_that_is_not_what_it_should_be_is_never_served(
    blobs: S3Blobs, tmp_path: Path, deployed: Deployed, content: bytes | None, code: str
) -> None:
    blob = Blob("model.onnx", hashlib.sha256(b"weights").hexdigest(), 7)
    if content is not None:
        boto3.client("s3").put_object(
            Bucket=deployed.outputs["ServingBucketName"], Key=blob.key, Body=content
        )

    with pytest.raises(Unavailable) as caught:
        blobs.fetch(blob, tmp_path / "copy")

    assert caught.value.instance_code == code
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_may_not_be_read_is_tried_again(deployed: Deployed, tmp_path: Path) -> None:
    s3 = boto3.client("s3")

    def denied(**_: object) -> None:
        raise ClientError(
            {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "HeadObject"
        )

    s3.meta.events.register("before-send.s3", denied)

    with pytest.raises(Unavailable, match="denied"):
        S3Uploads(s3).pin("up", KEY, None)
