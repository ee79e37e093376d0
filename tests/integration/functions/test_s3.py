"""S3 adapters: exact versions, retries, concurrent changes and errors."""

import hashlib
import itertools
from datetime import datetime, timedelta
from pathlib import Path

import boto3
import moto.s3.models
import pytest
from botocore.exceptions import ClientError

from functions.adapters.aws import s3 as s3_adapter
from functions.adapters.aws.s3 import S3Blobs, S3Uploads
from functions.core.errors import Unavailable
from functions.core.registration.uploaded_files import ObjectGone, PinnedObject
from functions.core.registry.version import Blob, Source
from local.aws.provision import Deployed

KEY = "models/demo/a b+c(ü).onnx"


@pytest.fixture
def bucket(deployed: Deployed) -> str:
    return deployed.outputs["ArtifactsBucketName"]


@pytest.fixture
def blobs(deployed: Deployed) -> S3Blobs:
    return S3Blobs(boto3.client("s3"), deployed.outputs["ServingBucketName"])


def fetch(uploads: S3Uploads, pinned: PinnedObject, path: Path) -> bytes:
    uploads.fetch(pinned, path)
    return path.read_bytes()


def stored_content(bucket: str, blob: Blob) -> bytes:
    return boto3.client("s3").get_object(Bucket=bucket, Key=blob.key)["Body"].read()


def test_the_named_version_is_read_and_not_the_newest(bucket: str, tmp_path: Path) -> None:
    s3 = boto3.client("s3")
    first = s3.put_object(Bucket=bucket, Key=KEY, Body=b"first")["VersionId"]
    second = s3.put_object(Bucket=bucket, Key=KEY, Body=b"second")["VersionId"]
    uploads = S3Uploads(s3)

    old, current = uploads.pin(bucket, KEY, first), uploads.pin(bucket, KEY, None)

    assert (old.version_id, old.size_bytes) == (first, 5)
    assert (current.version_id, current.size_bytes) == (second, 6)
    assert fetch(uploads, old, tmp_path / "m") == b"first"


@pytest.mark.parametrize("size", [10, 16, 17, 95])
def test_a_large_upload_comes_in_parts(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3_adapter, "PART", 8)
    s3, content = boto3.client("s3"), bytes(range(size))
    first = s3.put_object(Bucket=bucket, Key=KEY, Body=content)["VersionId"]
    s3.put_object(Bucket=bucket, Key=KEY, Body=b"x" * size)
    uploads = S3Uploads(s3)

    assert fetch(uploads, uploads.pin(bucket, KEY, first), tmp_path / "m") == content


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
    assert fetch(uploads, pinned, tmp_path / "m") == b"first"

    s3.put_object(Bucket="plain", Key=KEY, Body=b"other")

    with pytest.raises(ObjectGone):
        uploads.fetch(pinned, tmp_path / "m")


def test_a_deleted_version_is_gone(bucket: str, tmp_path: Path) -> None:
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
    with pytest.raises(ObjectGone):  # the whole bucket; S3's HEAD reply has no code for it
        uploads.fetch(PinnedObject(Source("gone", KEY, "v"), "v", 0), tmp_path / "m")


def test_a_deleted_object_still_gives_its_named_version(bucket: str, tmp_path: Path) -> None:
    s3 = boto3.client("s3")
    version = s3.put_object(Bucket=bucket, Key=KEY, Body=b"first")["VersionId"]
    s3.delete_object(Bucket=bucket, Key=KEY)  # a delete marker
    uploads = S3Uploads(s3)

    assert fetch(uploads, uploads.pin(bucket, KEY, version), tmp_path / "m") == b"first"
    with pytest.raises(ObjectGone):
        uploads.pin(bucket, KEY, None)


def stored_versions(bucket: str, keys: str) -> list[Source]:
    """Store objects at the given keys in order, 0.1 seconds apart."""
    ticks = itertools.count()
    with pytest.MonkeyPatch.context() as patched:
        second = datetime(2026, 11, 22, 8, 15, 30)  # naive, as moto's clock
        tick = lambda: second + timedelta(milliseconds=100 * next(ticks))  # noqa: E731
        patched.setattr(moto.s3.models, "utcnow", tick)
        s3 = boto3.client("s3")
        return [
            Source(bucket, key, s3.put_object(Bucket=bucket, Key=key, Body=b"m")["VersionId"])
            for key in keys.split()
        ]


def test_a_pinned_object_says_when_it_was_written_in_seconds(bucket: str) -> None:
    *_, source = stored_versions(bucket, "k k k")

    pinned = S3Uploads(boto3.client("s3")).pin(bucket, "k", source.object_version)

    assert pinned.written_at == "2026-11-22T08:15:30.000Z"


def test_the_listing_orders_versions_of_one_second(bucket: str) -> None:
    s3 = boto3.client("s3")
    s3.meta.events.register(  # two versions a page
        "provide-client-params.s3.ListObjectVersions", lambda params, **_: {**params, "MaxKeys": 2}
    )
    uploads = S3Uploads(s3)
    sources = stored_versions(bucket, "k k-2 k k/3 k k j k")
    versions = [source for source in sources if source.key == "k"]

    for (older, source), (newer, rival) in itertools.combinations(enumerate(versions), 2):
        assert older < newer
        assert uploads.is_newer(rival, source) is True
        assert uploads.is_newer(source, rival) is False


def test_a_version_that_is_gone_counts_as_older(bucket: str) -> None:
    s3 = boto3.client("s3")
    uploads = S3Uploads(s3)
    first, second, _ = stored_versions(bucket, "k k k-2")
    s3.delete_object(Bucket=bucket, Key="k", VersionId=second.object_version)
    assert uploads.is_newer(first, second) is True
    assert uploads.is_newer(second, first) is False

    s3.delete_object(Bucket=bucket, Key="k", VersionId=first.object_version)
    assert uploads.is_newer(first, second) is None


def test_an_overwritten_object_counts_as_older_without_versioning(deployed: Deployed) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="plain")
    uploads = S3Uploads(s3)
    sources = []
    for content in (b"first", b"other"):
        s3.put_object(Bucket="plain", Key=KEY, Body=content)
        sources.append(uploads.pin("plain", KEY, None).source)

    assert uploads.is_newer(sources[1], sources[0]) is True
    assert uploads.is_newer(sources[0], sources[1]) is False


def test_the_history_of_an_object_has_its_newest_two_versions(bucket: str) -> None:
    s3 = boto3.client("s3")
    uploads = S3Uploads(s3)
    first, _, second, third, *_ = stored_versions(bucket, "k k-2 k k k.data k/3")
    assert uploads.history(bucket, "j") == []

    assert uploads.history(bucket, "k.data") == [uploads.pin(bucket, "k.data", None)]
    assert [pinned.source for pinned in uploads.history(bucket, "k")] == [third, second]
    s3.delete_object(Bucket=bucket, Key="k-2")
    assert uploads.history(bucket, "k-2").count(None) == 1
    assert len(uploads.history(bucket, "k-2")) == 2
    assert first not in [pinned.source for pinned in uploads.history(bucket, "k")]


def test_an_order_that_storage_does_not_tell_is_unavailable(bucket: str) -> None:
    s3 = boto3.client("s3")
    source, rival = stored_versions(bucket, "k k")

    def denied(**_: object) -> None:
        raise ClientError(
            {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}},
            "ListObjectVersions",
        )

    s3.meta.events.register("before-send.s3", denied)

    with pytest.raises(Unavailable, match="denied"):
        S3Uploads(s3).is_newer(source, rival)


def test_a_blob_is_stored_once(blobs: S3Blobs, tmp_path: Path, deployed: Deployed) -> None:
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

    assert again["LastModified"] == written["LastModified"]
    assert stored_content(deployed.outputs["ServingBucketName"], blob) == b"weights"


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

    parts = [
        "HeadObject",
        "CreateMultipartUpload",
        "UploadPart",
        "UploadPart",
        "CompleteMultipartUpload",
    ]
    assert calls == (["PutObject"] if size <= s3_adapter.PART else parts)
    assert stored_content(deployed.outputs["ServingBucketName"], blob) == content[:size]


@pytest.mark.parametrize(
    ("code", "status"), [("PreconditionFailed", 412), ("ConditionalRequestConflict", 409)]
)
def test_a_blob_that_is_put_concurrently_is_checked_and_put_again(
    blobs: S3Blobs, tmp_path: Path, deployed: Deployed, code: str, status: int
) -> None:
    """The other blob may have been collected since, or its upload may fail."""
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

    assert refused == [code]
    assert stored_content(deployed.outputs["ServingBucketName"], blob) == b"weights"


def test_a_missing_serving_bucket_is_unavailable(deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")

    with pytest.raises(Unavailable, match="nowhere"):
        S3Blobs(boto3.client("s3"), "nowhere").store(
            Blob("model.onnx", "0" * 64, 7), tmp_path / "model"
        )


def test_a_denied_bucket_is_unavailable(deployed: Deployed, tmp_path: Path) -> None:
    s3 = boto3.client("s3")

    def denied(**_: object) -> None:
        raise ClientError(
            {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "HeadObject"
        )

    s3.meta.events.register("before-send.s3", denied)

    with pytest.raises(Unavailable, match="denied"):
        S3Uploads(s3).pin("up", KEY, None)


def test_every_request_names_the_account_that_owns_the_bucket(
    deployed: Deployed, tmp_path: Path
) -> None:
    s3 = s3_adapter.expect_owner(boto3.client("s3"), "123456789012")
    owners: list[str] = []
    s3.meta.events.register(
        "before-send.s3",
        lambda request, **_: owners.append(request.headers["x-amz-expected-bucket-owner"]),
    )
    bucket = deployed.outputs["ArtifactsBucketName"]
    boto3.client("s3").put_object(Bucket=bucket, Key=KEY, Body=b"graph")
    (tmp_path / "large").write_bytes(bytes(s3_adapter.PART + 1))

    uploads = S3Uploads(s3)
    uploads.fetch(uploads.pin(bucket, KEY, None), tmp_path / "model")
    uploads.history(bucket, KEY)
    S3Blobs(s3, deployed.outputs["ServingBucketName"]).store(
        Blob("weights", "0" * 64, s3_adapter.PART + 1), tmp_path / "large"
    )

    assert len(owners) >= 6  # head, get, list; head, parts of a multipart upload
    assert set(owners) == {b"123456789012"}
