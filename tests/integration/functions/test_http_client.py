"""The lean client against moto, TLS, clocks and everything else that DynamoDB's calls may meet."""

import datetime
import ipaddress
import json
import ssl
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs
from functions.adapters.aws_http.blobs import BlobReader
from functions.adapters.aws_http.client import Client, RetryPolicy, ServiceError
from functions.adapters.aws_http.connection import BrokenConnection
from functions.adapters.aws_http.dynamodb import DynamoCalls
from functions.adapters.aws_http.settings import Settings
from functions.adapters.clock import utc_now
from functions.adapters.dynamodb_table import IDLE_READS, ItemTable, OperationFailed
from functions.core.errors import Unavailable
from functions.core.registry.registry import Registry
from functions.core.registry.table import Conflict, Put
from functions.core.registry.version import Blob, Source
from local.aws.provision import Deployed, provision
from local.template import Template
from tests.fault_server import (
    Behaviour,
    FaultServer,
    ReceivedRequest,
    ServerConnection,
    StoredObject,
    fault_server,
)

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}
ENVIRONMENT = {"AWS_REGION": "us-east-1", **KEYS}
FOUND = {
    "Responses": {"t": [{"pk": {"S": "P"}, "sk": {"S": "S"}, "n": {"N": "7"}}]},
    "UnprocessedKeys": {},
}
ITEM = {"pk": "P", "sk": "S", "n": 7}


class Made:
    """Clients that never wait between attempts, but note how long they would have; closed at the end of the test."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.clients: list[Client] = []
        self.now = 1_800_000_000.0

    def client(self, service: str, url: str, *, timed: bool = False, **environment: str) -> Client:
        settings = Settings.from_environment(
            {**ENVIRONMENT, "AWS_ENDPOINT_URL": url, **environment}
        )
        clock = {"clock": lambda: self.now} if timed else {}
        client = Client(
            settings, service, pause=self.waits.append, chance=lambda: 1.0, connect_s=10, **clock
        )
        self.clients.append(client)
        return client

    def table(self, url: str, name: str = "t", **environment: str) -> ItemTable:
        return ItemTable(
            DynamoCalls(self.client("dynamodb", url, **environment)), name, self.waits.append
        )

    def blobs(self, url: str, bucket: str, **environment: str) -> BlobReader:
        return BlobReader(
            self.client("s3", url, **environment), bucket, f"/{bucket}", range_bytes=(1000, 1000)
        )


@pytest.fixture
def made() -> Iterator[Made]:
    found = Made()
    yield found
    for client in found.clients:
        client.close()


# --- moto -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def stack(moto_url: str) -> Iterator[Deployed]:
    session = boto3.Session(region_name="us-east-1")
    reset(moto_url)
    yield provision(Template.load("template.yaml"), session, moto_url)
    reset(moto_url)


def reset(url: str) -> None:
    import urllib.request

    urllib.request.urlopen(
        urllib.request.Request(f"{url}/moto-api/reset", method="POST"), timeout=10
    ).close()


def test_the_table_is_the_same_through_both_clients(
    made: Made, moto_url: str, stack: Deployed
) -> None:
    name = stack.outputs["RegistryTableName"]
    boto = boto3.client("dynamodb", endpoint_url=moto_url)
    theirs = DynamoTable(boto, name)
    ours = made.table(moto_url, name)
    item = {
        "pk": "P",
        "sk": "s#ü",
        "a": None,
        "b": True,
        "c": -7,
        "d": 1.5e-9,
        "e": ["x", {"f": 2**40}],
        "g": "",
    }

    ours.transact([Put(item, None)])
    theirs.transact([Put({**item, "sk": "s#z"}, None)])

    keys = [("P", "s#ü"), ("P", "s#z"), ("P", "missing")]
    assert ours.get(keys) == theirs.get(keys) == [item, {**item, "sk": "s#z"}, None]
    assert (
        list(ours.query("P", "s#"))
        == list(theirs.query("P", "s#"))
        == [{**item, "sk": "s#z"}, item]
    )
    for table in (ours, theirs):
        with pytest.raises(Conflict, match="ConditionalCheckFailed"):
            table.transact([Put(item, {"c": 8})])
    for table in (made.table(moto_url, "nowhere"), DynamoTable(boto, "nowhere")):
        with pytest.raises(
            OperationFailed, match="ResourceNotFoundException: Requested resource not found"
        ):
            table.get(keys)


def test_a_query_goes_on_from_page_to_page(made: Made, moto_url: str, stack: Deployed) -> None:
    table = made.table(moto_url, stack.outputs["RegistryTableName"])
    for number in range(12):
        table.transact([Put({"pk": "P", "sk": f"V#{number:02d}", "blob": "x" * 200_000}, None)])

    assert [item["sk"] for item in table.query("P", "V#")] == [
        f"V#{number:02d}" for number in range(12)
    ]


def test_what_infer_asks_of_the_registry(made: Made, moto_url: str, stack: Deployed) -> None:
    registry = Registry(made.table(moto_url, stack.outputs["RegistryTableName"]), utc_now)
    claimed = registry.claim("m", Source("up", "k", "v1"))

    assert registry.versions("m") == [claimed]
    assert registry.aliases("m") == {}
    assert [row[:2] for row in registry.listing()] == [("m", 1)]
    registry.serve("m", False)
    registry.serve("m", True)
    registry.serve("m", False)
    assert registry.unloaded_models(["m", "n"]) == {"m"}
    registry.ping()


def test_a_blob_that_boto3_stored(
    made: Made, moto_url: str, stack: Deployed, tmp_path: Path
) -> None:
    import hashlib

    bucket = stack.outputs["ServingBucketName"]
    (tmp_path / "model").write_bytes(b"weights" * 1000)
    blob = Blob("model", hashlib.sha256(b"weights" * 1000).hexdigest(), 7000)
    S3Blobs(boto3.client("s3", endpoint_url=moto_url), bucket).store(blob, tmp_path / "model")
    reader = made.blobs(moto_url, bucket)

    reader.fetch(blob, tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == b"weights" * 1000
    for changed in (Blob("model", "0" * 64, 7000), Blob("model", "0" * 64, 7)):
        with pytest.raises(Unavailable) as caught:
            reader.fetch(changed, tmp_path / "other")
        assert caught.value.instance_code == "BLOB_MISSING"
    with pytest.raises(Unavailable) as caught:
        made.blobs(moto_url, "nowhere").fetch(blob, tmp_path / "other")
    assert caught.value.instance_code == "BLOB_MISSING"


# --- DynamoDB's faults ----------------------------------------------------------------------------------------------


def answer(
    line: ServerConnection, content: Mapping[str, Any], status: int = 200, **headers: str
) -> None:
    body = json.dumps(content).encode()
    line.answer(status, body, **{"x_amz_crc32": str(zlib.crc32(body)), **headers})


class Script:
    """Answers the requests in their order, the last one for ever."""

    def __init__(self, *answers: Callable[[ServerConnection], None]) -> None:
        self.answers = answers

    def __call__(self, seen: ReceivedRequest, line: ServerConnection) -> None:
        self.answers[min(seen.number, len(self.answers)) - 1](line)


def failed(code: str, status: int = 400, **details: Any) -> Callable[[ServerConnection], None]:
    return lambda line: answer(
        line, {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", **details}, status
    )


def found(line: ServerConnection) -> None:
    answer(line, FOUND)


def garbled(line: ServerConnection) -> None:
    answer(line, FOUND, x_amz_crc32="1")


def cut(line: ServerConnection) -> None:
    line.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    line.hang_up()


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultServer]]:
    running: list[Any] = []

    def start(behave: Behaviour, context: ssl.SSLContext | None = None) -> FaultServer:
        running.append(fault_server(behave, context))
        server: FaultServer = running[-1].__enter__()
        return server

    yield start
    for one in running:
        one.__exit__(None, None, None)


@pytest.mark.parametrize(
    "fault",
    [
        failed("ProvisionedThroughputExceededException"),
        failed("ThrottlingException"),
        failed("RequestLimitExceeded"),
        failed("InternalServerError", 500),
        lambda line: line.answer(503, b"<html>"),
        garbled,
        cut,
        ServerConnection.reset,
        lambda line: line.answer(200, b"[]"),
        lambda line: line.answer(200, b"{"),
    ],
)  # fmt: skip
def test_what_a_second_try_can_mend_is_tried_again(
    made: Made, serve: Callable[..., FaultServer], fault: Callable[[ServerConnection], None]
) -> None:
    assert made.table(serve(Script(fault, fault, found)).url).get([("P", "S")]) == [ITEM]
    assert made.waits == [0.05, 0.1]

    server = serve(Script(fault))
    with pytest.raises(Unavailable, match="the registry"):
        made.table(server.url).get([("P", "S")])
    assert len(server.seen) == RetryPolicy().attempts


@pytest.mark.parametrize(
    "code", ["ValidationException", "AccessDeniedException", "ResourceNotFoundException"]
)
def test_what_no_second_try_mends_is_said_at_once(
    made: Made, serve: Callable[..., FaultServer], code: str
) -> None:
    server = serve(Script(failed(code)))

    with pytest.raises(OperationFailed, match=code):
        made.table(server.url).get([("P", "S")])

    assert len(server.seen) == 1


def test_keys_that_were_not_processed_are_asked_for_again(
    made: Made, serve: Callable[..., FaultServer]
) -> None:
    def half(line: ServerConnection) -> None:
        left = {"t": {"Keys": [{"pk": {"S": "P"}, "sk": {"S": "T"}}], "ConsistentRead": True}}
        answer(line, {"Responses": FOUND["Responses"], "UnprocessedKeys": left})

    def nothing(line: ServerConnection) -> None:
        left = {"t": {"Keys": [{"pk": {"S": "P"}, "sk": {"S": "T"}}], "ConsistentRead": True}}
        answer(line, {"Responses": {}, "UnprocessedKeys": left})

    def rest(line: ServerConnection) -> None:
        answer(
            line,
            {"Responses": {"t": [{"pk": {"S": "P"}, "sk": {"S": "T"}}]}, "UnprocessedKeys": {}},
        )

    server = serve(Script(half, nothing, nothing, rest))
    assert made.table(server.url).get([("P", "S"), ("P", "T")]) == [ITEM, {"pk": "P", "sk": "T"}]
    assert json.loads(server.seen[1].body)["RequestItems"]["t"]["Keys"] == [
        {"pk": {"S": "P"}, "sk": {"S": "T"}}
    ]
    assert len(made.waits) == 2

    server = serve(Script(nothing))
    with pytest.raises(Unavailable, match="throttled"):
        made.table(server.url).get([("P", "T")])
    assert len(server.seen) == IDLE_READS


def test_a_transaction_whose_answer_was_lost_is_applied_once(
    made: Made, serve: Callable[..., FaultServer]
) -> None:
    server = serve(Script(cut, lambda line: answer(line, {}), lambda line: answer(line, {})))
    table = made.table(server.url)

    table.transact([Put({"pk": "P", "sk": "S"}, None)])
    table.transact([Put({"pk": "P", "sk": "T"}, None)])

    tokens = [json.loads(seen.body)["ClientRequestToken"] for seen in server.seen]
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["None", "ConditionalCheckFailed"], Conflict),
        (["TransactionConflict", "ThrottlingError"], Conflict),
        (["ProvisionedThroughputExceeded"], Unavailable),
        (["ValidationError"], OperationFailed),
    ],
)
def test_a_cancelled_transaction(
    made: Made, serve: Callable[..., FaultServer], reasons: list[str], expected: type[Exception]
) -> None:
    cancelled = failed(
        "TransactionCanceledException", CancellationReasons=[{"Code": code} for code in reasons]
    )

    with pytest.raises(expected):
        made.table(serve(Script(cancelled)).url).transact([Put({"pk": "P", "sk": "S"}, None)])


# --- time -----------------------------------------------------------------------------------------------------------


def theirs(seen: ReceivedRequest) -> float:
    moment = datetime.datetime.strptime(seen.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
    return moment.replace(tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize("off_s", [3600.0, -86400.0])
@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "RequestTimeTooSkewed"), (400, "InvalidSignatureException"), (400, "RequestExpired")],
)
def test_a_wrong_clock_is_set_by_the_service_once(
    made: Made, serve: Callable[..., FaultServer], off_s: float, status: int, code: str
) -> None:
    def strict(seen: ReceivedRequest, line: ServerConnection) -> None:
        date = datetime.datetime.fromtimestamp(made.now + off_s, datetime.UTC).strftime(
            "%a, %d %b %Y %H:%M:%S GMT"
        )
        if abs(theirs(seen) - made.now - off_s) > 300:
            answer(line, {"__type": code}, status, date=date)
        else:
            found(line)

    server = serve(strict)
    table = ItemTable(DynamoCalls(made.client("dynamodb", server.url, timed=True)), "t")

    assert table.get([("P", "S")]) == [ITEM]
    assert table.get([("P", "S")]) == [ITEM]
    assert len(server.seen) == 3
    assert made.waits == []


def test_a_service_whose_clock_runs_away_is_followed_once(
    made: Made, serve: Callable[..., FaultServer]
) -> None:
    def never_content(seen: ReceivedRequest, line: ServerConnection) -> None:
        date = datetime.datetime.fromtimestamp(theirs(seen) + 3600, datetime.UTC).strftime(
            "%a, %d %b %Y %H:%M:%S GMT"
        )
        answer(line, {"__type": "RequestExpired"}, 400, date=date)

    server = serve(never_content)

    with pytest.raises(OperationFailed, match="RequestExpired"):
        made.table(server.url).get([("P", "S")])

    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "date", ["Sun, 22 Nov 2026 08:15:30 GMT", "", "yesterday", "Sun, 99 Nov 2026 08:15:30 GMT"]
)
def test_a_signature_that_is_refused_for_another_reason_is_no_clock(
    made: Made, serve: Callable[..., FaultServer], date: str
) -> None:
    server = serve(
        Script(lambda line: answer(line, {"__type": "InvalidSignatureException"}, 400, date=date))
    )
    made.now = 1795335330.0

    with pytest.raises(OperationFailed, match="InvalidSignature"):
        ItemTable(DynamoCalls(made.client("dynamodb", server.url, timed=True)), "t").get(
            [("P", "S")]
        )

    assert len(server.seen) == 1


def test_a_call_ends_by_its_deadline(made: Made, serve: Callable[..., FaultServer]) -> None:
    server = serve(lambda seen, line: None)
    calls = DynamoCalls(
        made.client("dynamodb", server.url), RetryPolicy(attempts=100, attempt_s=0.1, total_s=1.0)
    )

    with pytest.raises(Unavailable, match="cannot be reached"):
        calls("Query", {})

    assert 2 <= len(server.seen) <= 11


def test_waits_are_a_random_part_of_what_doubles_up_to_a_cap(
    made: Made, serve: Callable[..., FaultServer]
) -> None:
    server = serve(Script(failed("ThrottlingException")))
    patience = RetryPolicy(attempts=6, total_s=60, base_s=0.1, cap_s=0.5)

    with pytest.raises(Unavailable):
        DynamoCalls(made.client("dynamodb", server.url), patience)("Query", {})

    assert made.waits == [0.1, 0.2, 0.4, 0.5, 0.5]


# --- who and where --------------------------------------------------------------------------------------------------


def test_credentials_that_rotate_are_seen(serve: Callable[..., FaultServer]) -> None:
    server = serve(Script(found))
    environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL_DYNAMODB": server.url}
    client = Client(Settings.from_environment(environment), "dynamodb")
    table = ItemTable(DynamoCalls(client), "t")
    table.get([("P", "S")])
    environment |= {"AWS_ACCESS_KEY_ID": "other", "AWS_SESSION_TOKEN": "new"}
    table.get([("P", "S")])
    client.close()

    assert [seen.headers["x-amz-security-token"] for seen in server.seen] == ["token", "new"]
    assert "Credential=other/" in server.seen[1].headers["authorization"]


class Keys:
    """The address where an environment restored by SnapStart finds its credentials."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.lives_s = 3600.0
        self.status = 200

    def __call__(self, seen: ReceivedRequest, line: ServerConnection) -> None:
        self.asked.append(seen.headers["authorization"])
        at = datetime.datetime.fromtimestamp(1_800_000_000 + self.lives_s, datetime.UTC)
        answer(
            line,
            {"AccessKeyId": f"key{len(self.asked)}", "SecretAccessKey": "secret", "Token": "t",
             "Expiration": at.strftime("%Y-%m-%dT%H:%M:%SZ")},
            self.status,
        )  # fmt: skip


def test_credentials_of_a_restored_environment(serve: Callable[..., FaultServer]) -> None:
    keys, now = Keys(), [1_800_000_000.0]
    server = serve(keys)
    server.signed = False
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/creds?a=b",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret word",
    }
    from functions.adapters.aws_http.credentials import EnvironmentCredentials
    from functions.adapters.aws_http.endpoint import Trust

    credentials = EnvironmentCredentials(environment, Trust(), clock=lambda: now[0])

    assert [credentials().access_key for _ in range(3)] == ["key1"] * 3
    assert server.seen[0].path == "/creds?a=b"
    assert keys.asked == ["secret word"]
    now[0] += 3400
    keys.status = 500
    assert credentials().access_key == "key1"  # which hold for 200 s more
    keys.status, keys.lives_s = 200, 7200
    assert credentials().access_key == "key3"
    now[0] += 7200
    keys.status = 500
    with pytest.raises(BrokenConnection, match="no credentials at"):
        credentials()
    environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = "http://example.com/"
    with pytest.raises(LookupError, match="neither https nor local"):
        credentials()


# --- TLS ------------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of this test's own, in `folder`."""

    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / "ca.pem"
        self.file.write_bytes(
            self._pem(self._certificate("authority", self.key.public_key(), None))
        )

    def server_context(self, name: str) -> ssl.SSLContext:
        """A server's side of TLS, with a certificate for `name`."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        file = self.folder / f"{name}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(secret + self._pem(self._certificate("server", key.public_key(), name)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _certificate(self, subject: str, key: Any, host: str | None) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is None:
            made = made.add_extension(
                x509.KeyUsage(False, False, False, False, False, True, True, False, False),
                critical=True,
            )
        else:
            ip = (
                x509.IPAddress(ipaddress.ip_address(host))
                if host[0].isdigit()
                else x509.DNSName(host)
            )
            made = made.add_extension(x509.SubjectAlternativeName([ip]), critical=False)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
            critical=False,
        ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def _pem(self, certificate: Any) -> bytes:
        from cryptography.hazmat.primitives import serialization

        pem: bytes = certificate.public_bytes(serialization.Encoding.PEM)
        return pem


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_tls_with_the_authorities_of_a_file(
    made: Made, serve: Callable[..., FaultServer], authority: Authority, tmp_path: Path
) -> None:
    import hashlib

    content = bytes(range(256)) * 400
    trusted = {"AWS_CA_BUNDLE": str(authority.file)}
    table = serve(Script(found), authority.server_context("127.0.0.1"))
    storage = serve(StoredObject(content), authority.server_context("127.0.0.1"))

    assert made.table(table.url, **trusted).get([("P", "S")]) == [ITEM]
    reader = made.blobs(storage.url, "b", **trusted)
    reader.fetch(Blob("m", hashlib.sha256(content).hexdigest(), len(content)), tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == content


def test_a_stranger_is_told_nothing(
    made: Made, serve: Callable[..., FaultServer], authority: Authority
) -> None:
    """Neither one whose authority is unknown, nor one with a certificate for another name, nor one without TLS."""
    unknown = serve(Script(found), authority.server_context("127.0.0.1"))
    other = serve(Script(found), authority.server_context("dynamodb.us-east-1.amazonaws.com"))
    plain = serve(Script(found))

    for url, trusted in (
        (unknown.url, {}),
        (other.url, {"AWS_CA_BUNDLE": str(authority.file)}),
        (plain.url.replace("http:", "https:"), {"AWS_CA_BUNDLE": str(authority.file)}),
    ):
        with pytest.raises(Unavailable, match="cannot be reached"):
            made.table(url, **trusted).get([("P", "S")])

    assert unknown.seen == other.seen == plain.seen == []


# --- imports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_the_client_imports(scheme: str) -> None:
    script = f"""
import sys
from functions.adapters.aws_http.blobs import BlobReader
from functions.adapters.aws_http.client import Client
from functions.adapters.aws_http.dynamodb import DynamoCalls
from functions.adapters.aws_http.settings import Settings
from functions.adapters.dynamodb_table import ItemTable
settings = Settings.from_environment({ENVIRONMENT | {"AWS_ENDPOINT_URL": f"{scheme}://127.0.0.1:9"}!r})
ItemTable(DynamoCalls(Client(settings, "dynamodb")), "t")
BlobReader.from_settings(settings, "b")
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": "."},
    )

    heavy = {
        "boto3",
        "botocore",
        "urllib3",
        "requests",
        "http.client",
        "email",
        "ssl",
        "asyncio",
        "concurrent.futures",
    }
    assert not heavy & set(done.stdout.split())


def test_a_refusal_says_what_it_is() -> None:
    assert str(ServiceError(403, "AccessDenied", {})) == "403 AccessDenied"
