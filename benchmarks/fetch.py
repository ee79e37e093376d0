"""Download: time to fetch an S3 blob into a verified file.

    python -m benchmarks.fetch [--rounds N] [--sizes 1,10,100,400] [--storages s3-like,unthrottled]
                               [--no-save]

Contenders: the infer function's client with the digests that registration records (ours), the same
for a record of an earlier release, which has no digests of ranges (sha256), boto3's download_file
and boto3's get_object. Each leaves a verified file. The benchmark hashes download_file's file after
the download, and get_object's content while it arrives. A round runs every contender once, in a
rotating order. The first round is discarded. Sizes are in MB of 1,000,000 bytes.

Not measured: imports and the creation of clients and connections (see `benchmarks.cold_start`);
TLS. The storage servers, those of `benchmarks.cold_start`, run on loopback and use the same
processors.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from benchmarks.harness import measure, options
from benchmarks.harness.cloud import HOST, STORAGES
from benchmarks.harness.measure import ROOT, Spread
from functions.adapters.aws_http.blobs import BlobReader
from functions.adapters.aws_http.settings import Settings
from functions.core.records import replace
from functions.core.registration.digests import hash_files
from functions.core.registry.version import Blob

BUCKET = "models"
SIZES = ("1", "10", "100", "400")
CHUNK = 1024 * 1024
OURS, WHOLE, FILE, OBJECT = "ours", "sha256", "download_file", "get_object"
KEYS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}


@contextlib.contextmanager
def storage(folder: Path, name: str) -> Iterator[str]:
    """Start an S3-like storage server for `folder`; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.harness.storage", str(folder), *STORAGES[name]],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout
            yield f"http://{HOST}:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.kill()


class Downloads:
    """Timed downloads of one blob to a file by several S3 clients."""

    def __init__(self, url: str, blob: Blob, target: Path) -> None:
        self._blob = blob
        self._target = target
        settings = Settings.from_environment({**KEYS, "AWS_ENDPOINT_URL_S3": url})
        self._reader = BlobReader.from_settings(settings, BUCKET)
        self._s3 = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            config=Config(proxies={}, max_pool_connections=16),
        )

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Return a function per S3 client that measures one download in ms."""
        fetches: dict[str, Callable[[], str]] = {
            OURS: partial(self._ours, self._blob),
            WHOLE: partial(self._ours, replace(self._blob, range_bytes=0, range_digests=b"")),
            FILE: self._download_file,
            OBJECT: self._get_object,
        }
        return {name: partial(self._measure, fetch) for name, fetch in fetches.items()}

    def _measure(self, fetch: Callable[[], str]) -> float:
        self._target.unlink(missing_ok=True)
        started = time.perf_counter()
        digest = fetch()
        duration_ms = (time.perf_counter() - started) * 1000
        if digest != self._blob.sha256 or self._target.stat().st_size != self._blob.size_bytes:
            raise RuntimeError("the downloaded file differs from the stored one")
        return duration_ms

    def _ours(self, blob: Blob) -> str:
        self._reader.fetch(blob, self._target)  # BlobReader compares the digests
        return blob.sha256

    def _download_file(self) -> str:
        self._s3.download_file(BUCKET, self._blob.key, str(self._target))
        with self._target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _get_object(self) -> str:
        digest = hashlib.sha256()
        body = self._s3.get_object(Bucket=BUCKET, Key=self._blob.key)["Body"]
        with self._target.open("wb") as file:
            for chunk in body.iter_chunks(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()


def make_blob(folder: Path, megabytes: str) -> Blob:
    """Write a blob of random bytes below `folder`; return its description."""
    written = folder / "weights"
    folder.mkdir(exist_ok=True)
    written.write_bytes(os.urandom(int(megabytes) * 1_000_000))
    [blob] = hash_files([written])
    path = folder / BUCKET / blob.key
    path.parent.mkdir(parents=True)
    written.rename(path)
    return blob


def results(
    megabytes: str, storage_name: str, durations_ms: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Return one result entry per S3 client: download times and ratios.

    Ratios compare with our client's time of the same round.
    """
    entries = []
    for contender, values in durations_ms.items():
        entry = measure.row(
            Spread.from_values(values, 1),
            megabytes=megabytes,
            storage=storage_name,
            contender=contender,
        )
        entry["over_ours"] = measure.ratios(values, durations_ms[OURS]).to_record()
        entries.append(entry)
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format download results as a text table."""
    rows = [("MB", "storage", "contender", "n", "ms", "p90", "/ours", "p90")]
    for entry in entries:
        labels = (entry["megabytes"], entry["storage"], entry["contender"], str(entry["n"]))
        times = (f"{entry['median']:.0f}", f"{entry['p90']:.0f}")
        ratio = entry["over_ours"]
        rows.append((*labels, *times, f"{ratio['median']:.2f}", f"{ratio['p90']:.2f}"))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the download benchmark."""
    parser = options.make_parser("fetch", __doc__, rounds=10)
    storages = list(STORAGES)
    parser.add_argument("--sizes", type=options.choice_of(SIZES), default=list(SIZES))
    parser.add_argument("--storages", type=options.choice_of(storages), default=storages)
    return parser.parse_args(words)


def main() -> None:
    chosen = arguments()
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-") as name:
        folder = Path(name)
        blobs = {size: make_blob(folder / "objects", size) for size in chosen.sizes}
        for storage_name in chosen.storages:
            with storage(folder / "objects", storage_name) as url:
                for size, blob in blobs.items():
                    contenders = Downloads(url, blob, folder / "copy").contenders()
                    durations_ms = measure.interleave(contenders, chosen.rounds, label=f"{size} MB")
                    entries += results(size, storage_name, durations_ms)
    print(table(entries))
    measure.finish(measure.result_line("fetch", "ms", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
