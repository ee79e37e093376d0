"""Presigned S3 PUT requests, with which callers upload a file themselves."""

import base64
from typing import Any
from urllib.parse import urlsplit

from functions.adapters.aws.s3 import S3Uploads
from functions.core.registration.uploaded_files import ObjectGone

URL_S = 900  # a PUT has to begin within this time; the role's credentials may end it earlier
# curl and urllib call a body a form otherwise, and an emulator of S3 reads it as one.
CONTENT_TYPE = "application/octet-stream"


class S3PresignedPuts:
    """Signer of PUT requests, each for one key, size and SHA-256.

    S3 checks what is signed: the key, `content-length`, `x-amz-checksum-sha256` and
    `if-none-match`, which refuses an object that exists.
    """

    def __init__(self, client: Any, bucket: str, owner: str) -> None:
        self._client = client
        self._bucket = bucket
        self._owner = owner

    def sign(self, key: str, size_bytes: int, sha256: str) -> tuple[str, dict[str, str]]:
        """Return a PUT request's URL and the headers it needs."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        parameters = {
            "Bucket": self._bucket,
            "Key": key,
            "ContentLength": size_bytes,
            "ContentType": CONTENT_TYPE,
            "ChecksumSHA256": checksum,
            "IfNoneMatch": "*",
            "ExpectedBucketOwner": self._owner,
        }
        url = self._client.generate_presigned_url("put_object", parameters, ExpiresIn=URL_S)
        headers = {
            "content-length": str(size_bytes),
            "content-type": CONTENT_TYPE,
            "if-none-match": "*",
            "x-amz-checksum-sha256": checksum,
            "x-amz-expected-bucket-owner": self._owner,
        }
        return str(url), headers

    def origin(self) -> str:
        """Return scheme and host of the URLs."""
        url, _ = self.sign("models/", 1, "00" * 32)
        return "{0.scheme}://{0.netloc}".format(urlsplit(url))

    def is_stored(self, key: str) -> bool:
        """Return True if the bucket has an object of this key.

        Raises:
            Unavailable: S3 failed; try again.
        """
        try:
            S3Uploads(self._client).pin(self._bucket, key, None)
        except ObjectGone:
            return False
        return True
