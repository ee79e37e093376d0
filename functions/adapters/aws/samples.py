"""Sample requests of models, read from the serving bucket with boto3."""

import json
from collections.abc import Mapping
from typing import Any

from functions.core.registry.version import Blob


class S3Samples:
    """Sample requests with their replies, as registration stored them."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def read(self, blob: Blob) -> Mapping[str, Any]:
        """Return a stored sample: `request`, `response` and `synthetic`.

        Raises:
            ObjectGone: the blob is missing.
            Unavailable: S3 failed; try again.
        """
        # not at the top: it brings boto3's transfers, which no other route needs
        from functions.adapters.aws.s3 import translate_errors

        with translate_errors(self._bucket):
            body = self._client.get_object(Bucket=self._bucket, Key=blob.key)["Body"].read()
        sample: Mapping[str, Any] = json.loads(body)
        return sample
