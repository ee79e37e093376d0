"""How fast does a blob become a verified file: by our client, by boto3's download_file, by boto3's get_object?

    python -m benchmarks.fetch [--rounds N] [--sizes 1,10,100] [--storages s3-like,unthrottled] [--no-save]

All in one process with clients that exist already, over connections of their own that stay open: imports and clients
are cold_start's question. Each contender leaves a file whose SHA-256 it has checked; boto3's two are hashed here, the
one after its download, the other while it reads. One round runs each once, in a rotating order; the first round does
not count. Sizes are in MB of 1,000,000 bytes. Storages are those of `benchmarks.cold_start`: on loopback, so that their
server takes a part of the same processors, and without TLS.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from benchmarks.harness import measure
from benchmarks.harness.cloud import HOST, STORAGES
from benchmarks.harness.measure import ROOT, Spread
from functions.adapters.aws_http.blobs import BlobReader
from functions.adapters.aws_http.settings import Settings
from functions.core.registry.version import Blob

BUCKET = "models"
SIZES = ("1", "10", "100")
CHUNK = 1024 * 1024
OURS, FILE, OBJECT = "ours", "download_file", "get_object"
KEYS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}


@contextlib.contextmanager
def storage(folder: Path, name: str) -> Iterator[str]:
    """The address of a storage with the objects of `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.harness.storage", str(folder), *STORAGES[name]],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout
            yield f"http://{HOST}:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.kill()


def contenders(url: str, blob: Blob, target: Path) -> dict[str, Callable[[], float]]:
    """Name to what fetches once, in ms."""
    reader = BlobReader.from_settings(Settings.from_environment({**KEYS, "AWS_ENDPOINT_URL_S3": url}), BUCKET)
    s3 = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="local", aws_secret_access_key="local",  # noqa: S106
        config=Config(proxies={}, max_pool_connections=16),
    )  # fmt: skip

    def get_object() -> str:
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for chunk in s3.get_object(Bucket=BUCKET, Key=blob.key)["Body"].iter_chunks(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def download_file() -> str:
        s3.download_file(BUCKET, blob.key, str(target))
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def ours() -> str:
        reader.fetch(blob, target)
        return blob.sha256

    def timed(fetch: Callable[[], str]) -> Callable[[], float]:
        def once() -> float:
            target.unlink(missing_ok=True)
            began = time.perf_counter()
            digest = fetch()
            taken = time.perf_counter() - began
            if digest != blob.sha256 or target.stat().st_size != blob.size_bytes:
                raise RuntimeError("what was fetched is not what is stored")
            return taken * 1000

        return once

    return {OURS: timed(ours), FILE: timed(download_file), OBJECT: timed(get_object)}


def make_blob(folder: Path, megabytes: str) -> Blob:
    content = os.urandom(int(megabytes) * 1_000_000)
    blob = Blob("weights", hashlib.sha256(content).hexdigest(), len(content))
    path = folder / BUCKET / blob.key
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return blob


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fetch", description=(__doc__ or "").splitlines()[0]
    )
    measure.add_arguments(parser, rounds=10)
    parser.add_argument("--sizes", type=measure.one_of(SIZES), default=list(SIZES))
    parser.add_argument("--storages", type=measure.one_of(STORAGES), default=list(STORAGES))
    return parser.parse_args(words)


def main() -> None:
    wanted = arguments()
    found: list[dict[str, Any]] = []
    rows = [("MB", "storage", "contender", "n", "ms", "p90", "/ours", "p90")]
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-") as name:
        folder = Path(name)
        blobs = {size: make_blob(folder / "objects", size) for size in wanted.sizes}
        for kind in wanted.storages:
            with storage(folder / "objects", kind) as url:
                for size, blob in blobs.items():
                    taken = measure.interleave(
                        contenders(url, blob, folder / "copy"), wanted.rounds, what=f"{size} MB"
                    )
                    for contender, values in taken.items():
                        entry = measure.row(
                            Spread.of(values, 1), megabytes=size, storage=kind, contender=contender
                        )
                        entry["over_ours"] = measure.ratios(values, taken[OURS]).to_record()
                        found.append(entry)
                        ratio = entry["over_ours"]
                        rows.append(
                            (size, kind, contender, str(entry["n"]), f"{entry['median']:.0f}", f"{entry['p90']:.0f}",
                             f"{ratio['median']:.2f}", f"{ratio['p90']:.2f}")
                        )  # fmt: skip
    print(measure.table(rows))
    measure.finish(measure.result_line("fetch", "ms", wanted.rounds, found), wanted.save)


if __name__ == "__main__":
    main()
