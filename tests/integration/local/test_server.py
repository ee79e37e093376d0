"""Local AWS server as a process of its own: how much memory uploads take."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.config import Config

MB = 1024 * 1024
OBJECT_MB = 4  # moto keeps up to 5 MB of an object in memory


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[psutil.Process, str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "local.aws.server"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout
        port = json.loads(process.stdout.readline())["port"]
        yield psutil.Process(process.pid), f"http://127.0.0.1:{port}"
        process.terminate()


def test_every_version_of_an_object_is_kept_and_none_in_memory(
    server: tuple[psutil.Process, str],
) -> None:
    process, url = server
    s3 = boto3.client("s3", endpoint_url=url, config=Config(proxies={}))
    s3.create_bucket(Bucket="models")
    s3.put_bucket_versioning(Bucket="models", VersioningConfiguration={"Status": "Enabled"})
    contents = [bytes([number]) * (OBJECT_MB * MB) for number in range(50)]
    put = {"Bucket": "models", "Key": "m.onnx"}
    first = s3.put_object(**put, Body=contents[0])["VersionId"]
    before = process.memory_info().rss

    for content in contents[1:]:
        s3.put_object(**put, Body=content)

    assert (process.memory_info().rss - before) / MB < 100  # of 196 MB
    old = s3.get_object(**put, VersionId=first)["Body"].read()
    assert (old, s3.get_object(**put)["Body"].read()) == (contents[0], contents[-1])
