"""HTTP client against moto and a faulty server: errors, retries, clocks, credentials, TLS."""

import datetime
import json
import socket
import ssl
import subprocess
import sys
import threading
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
from functions.adapters.aws_http.endpoint import Trust
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
from tests.integration.authority import Authority

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}
ENVIRONMENT = {"AWS_REGION": "us-east-1", **KEYS}
FOUND = {
    "Responses": {"t": [{"pk": {"S": "P"}, "sk": {"S": "S"}, "n": {"N": "7"}}]},
    "UnprocessedKeys": {},
}
ITEM = {"pk": "P", "sk": "S", "n": 7}


class Clients:
    """Factory of clients; `waits` records their pauses instead of sleeping."""

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
            self.client("s3", url, **environment), f"/{bucket}", range_bytes=(1000, 1000)
        )


@pytest.fixture
def clients() -> Iterator[Clients]:
    clients = Clients()
    yield clients
    for client in clients.clients:
        client.close()


# --- moto


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


def test_both_clients_read_and_write_the_same_items(
    clients: Clients, moto_url: str, stack: Deployed
) -> None:
    name = stack.outputs["RegistryTableName"]
    boto = boto3.client("dynamodb", endpoint_url=moto_url)
    theirs = DynamoTable(boto, name)
    ours = clients.table(moto_url, name)
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
    for table in (clients.table(moto_url, "nowhere"), DynamoTable(boto, "nowhere")):
        with pytest.raises(
            OperationFailed, match="ResourceNotFoundException: Requested resource not found"
        ):
            table.get(keys)


def test_a_query_reads_all_pages(clients: Clients, moto_url: str, stack: Deployed) -> None:
    table = clients.table(moto_url, stack.outputs["RegistryTableName"])
    for number in range(12):
        table.transact([Put({"pk": "P", "sk": f"V#{number:02d}", "blob": "x" * 200_000}, None)])

    assert [item["sk"] for item in table.query("P", "V#")] == [
        f"V#{number:02d}" for number in range(12)
    ]


def test_the_registry_works_over_the_client(
    clients: Clients, moto_url: str, stack: Deployed
) -> None:
    registry = Registry(clients.table(moto_url, stack.outputs["RegistryTableName"]), utc_now)
    claimed = registry.claim("m", Source("up", "k", "v1"))

    assert registry.versions("m") == [claimed]
    assert registry.aliases("m") == {}
    assert [row[:2] for row in registry.listing()] == [("m", 1)]
    registry.serve("m", False)
    registry.serve("m", True)
    registry.serve("m", False)
    assert registry.unloaded_models(["m", "n"]) == {"m"}
    registry.ping()


def test_a_blob_stored_by_boto3_is_read(
    clients: Clients, moto_url: str, stack: Deployed, tmp_path: Path
) -> None:
    import hashlib

    bucket = stack.outputs["ServingBucketName"]
    (tmp_path / "model").write_bytes(b"weights" * 1000)
    blob = Blob("model", hashlib.sha256(b"weights" * 1000).hexdigest(), 7000)
    S3Blobs(boto3.client("s3", endpoint_url=moto_url), bucket).store(blob, tmp_path / "model")
    reader = clients.blobs(moto_url, bucket)

    reader.fetch(blob, tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == b"weights" * 1000
    for changed in (Blob("model", "0" * 64, 7000), Blob("model", "0" * 64, 7)):
        with pytest.raises(Unavailable) as caught:
            reader.fetch(changed, tmp_path / "other")
        assert caught.value.instance_code == "BLOB_MISSING"
    with pytest.raises(Unavailable) as caught:
        clients.blobs(moto_url, "nowhere").fetch(blob, tmp_path / "other")
    assert caught.value.instance_code == "BLOB_MISSING"


# --- faults of DynamoDB


def answer(
    line: ServerConnection, content: Mapping[str, Any], status: int = 200, **headers: str
) -> None:
    body = json.dumps(content).encode()
    line.answer(status, body, **{"x_amz_crc32": str(zlib.crc32(body)), **headers})


class Script:
    """Behaviour that gives one answer to each request, then repeats the last."""

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
def test_transient_failures_are_retried(
    clients: Clients, serve: Callable[..., FaultServer], fault: Callable[[ServerConnection], None]
) -> None:
    assert clients.table(serve(Script(fault, fault, found)).url).get([("P", "S")]) == [ITEM]
    assert clients.waits == [0.05, 0.1]

    server = serve(Script(fault))
    with pytest.raises(Unavailable, match="the registry"):
        clients.table(server.url).get([("P", "S")])
    assert len(server.seen) == RetryPolicy().attempts


@pytest.mark.parametrize(
    "code", ["ValidationException", "AccessDeniedException", "ResourceNotFoundException"]
)
def test_permanent_failures_are_not_retried(
    clients: Clients, serve: Callable[..., FaultServer], code: str
) -> None:
    server = serve(Script(failed(code)))

    with pytest.raises(OperationFailed, match=code):
        clients.table(server.url).get([("P", "S")])

    assert len(server.seen) == 1


def test_unprocessed_keys_are_requested_again(
    clients: Clients, serve: Callable[..., FaultServer]
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
    assert clients.table(server.url).get([("P", "S"), ("P", "T")]) == [ITEM, {"pk": "P", "sk": "T"}]
    assert json.loads(server.seen[1].body)["RequestItems"]["t"]["Keys"] == [
        {"pk": {"S": "P"}, "sk": {"S": "T"}}
    ]
    assert len(clients.waits) == 2

    server = serve(Script(nothing))
    with pytest.raises(Unavailable, match="throttled"):
        clients.table(server.url).get([("P", "T")])
    assert len(server.seen) == IDLE_READS


def test_a_transaction_with_a_lost_reply_is_applied_once(
    clients: Clients, serve: Callable[..., FaultServer]
) -> None:
    server = serve(Script(cut, lambda line: answer(line, {}), lambda line: answer(line, {})))
    table = clients.table(server.url)

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
def test_a_cancelled_transaction_raises_by_its_reasons(
    clients: Clients,
    serve: Callable[..., FaultServer],
    reasons: list[str],
    expected: type[Exception],
) -> None:
    cancelled = failed(
        "TransactionCanceledException", CancellationReasons=[{"Code": code} for code in reasons]
    )

    with pytest.raises(expected):
        clients.table(serve(Script(cancelled)).url).transact([Put({"pk": "P", "sk": "S"}, None)])


# --- clocks and deadlines


def theirs(seen: ReceivedRequest) -> float:
    moment = datetime.datetime.strptime(seen.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
    return moment.replace(tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize("off_s", [3600.0, -86400.0])
@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "RequestTimeTooSkewed"), (400, "InvalidSignatureException"), (400, "RequestExpired")],
)
def test_a_wrong_clock_is_corrected_once(
    clients: Clients, serve: Callable[..., FaultServer], off_s: float, status: int, code: str
) -> None:
    def strict(seen: ReceivedRequest, line: ServerConnection) -> None:
        date = datetime.datetime.fromtimestamp(clients.now + off_s, datetime.UTC).strftime(
            "%a, %d %b %Y %H:%M:%S GMT"
        )
        if abs(theirs(seen) - clients.now - off_s) > 300:
            answer(line, {"__type": code}, status, date=date)
        else:
            found(line)

    server = serve(strict)
    table = ItemTable(DynamoCalls(clients.client("dynamodb", server.url, timed=True)), "t")

    assert table.get([("P", "S")]) == [ITEM]
    assert table.get([("P", "S")]) == [ITEM]
    assert len(server.seen) == 3
    assert clients.waits == []


def test_the_clock_is_corrected_at_most_once_per_call(
    clients: Clients, serve: Callable[..., FaultServer]
) -> None:
    def never_content(seen: ReceivedRequest, line: ServerConnection) -> None:
        date = datetime.datetime.fromtimestamp(theirs(seen) + 3600, datetime.UTC).strftime(
            "%a, %d %b %Y %H:%M:%S GMT"
        )
        answer(line, {"__type": "RequestExpired"}, 400, date=date)

    server = serve(never_content)

    with pytest.raises(OperationFailed, match="RequestExpired"):
        clients.table(server.url).get([("P", "S")])

    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "date", ["Sun, 22 Nov 2026 08:15:30 GMT", "", "yesterday", "Sun, 99 Nov 2026 08:15:30 GMT"]
)
def test_a_refused_signature_without_skew_is_not_retried(
    clients: Clients, serve: Callable[..., FaultServer], date: str
) -> None:
    server = serve(
        Script(lambda line: answer(line, {"__type": "InvalidSignatureException"}, 400, date=date))
    )
    clients.now = 1795335330.0

    with pytest.raises(OperationFailed, match="InvalidSignature"):
        ItemTable(DynamoCalls(clients.client("dynamodb", server.url, timed=True)), "t").get(
            [("P", "S")]
        )

    assert len(server.seen) == 1


def test_a_call_ends_by_its_deadline(clients: Clients, serve: Callable[..., FaultServer]) -> None:
    server = serve(lambda seen, line: None)
    calls = DynamoCalls(
        clients.client("dynamodb", server.url),
        RetryPolicy(attempts=100, attempt_s=0.1, total_s=1.0),
    )

    with pytest.raises(Unavailable, match="cannot be reached"):
        calls("Query", {})

    assert 2 <= len(server.seen) <= 11


class NameServer:
    """getaddrinfo that answers for a host with an address of loopback, once allowed to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.questions = 0
        self.answers = threading.Event()
        self.addresses = ["127.0.0.1"]
        self._ask = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.ask)

    def ask(self, host: bytes, port: int, flags: int = 0, **options: Any) -> Any:
        if host != b"storage.test":
            return self._ask(host, port, flags=flags, **options)
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        self.questions += 1
        self.answers.wait(60)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return [one for address in self.addresses for one in self._ask(address, port, **options)]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer(monkeypatch)
    yield server
    server.answers.set()


def named(server: FaultServer) -> str:
    return server.url.replace("127.0.0.1", "storage.test")


def test_a_silent_name_server_holds_no_call_past_its_deadline(
    clients: Clients, serve: Callable[..., FaultServer], name_server: NameServer
) -> None:
    server = serve(Script(found))
    patience = RetryPolicy(attempts=3, attempt_s=0.05, total_s=60)
    calls = DynamoCalls(clients.client("dynamodb", named(server)), patience)

    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        calls("BatchGetItem", {})

    assert "no name server answered for storage.test" in str(caught.value.__cause__)
    assert name_server.questions == 1  # all attempts wait for one answer

    name_server.answers.set()
    assert clients.table(named(server)).get([("P", "S")]) == [ITEM]


def test_the_next_address_of_a_host_is_tried(
    clients: Clients, serve: Callable[..., FaultServer], name_server: NameServer
) -> None:
    server = serve(Script(found))
    name_server.addresses = ["::1", "127.0.0.1"]  # nothing listens at the first
    name_server.answers.set()

    assert clients.table(named(server)).get([("P", "S")]) == [ITEM]


def test_a_host_without_an_address_cannot_be_reached(
    clients: Clients, name_server: NameServer
) -> None:
    name_server.addresses = []
    name_server.answers.set()

    with pytest.raises(Unavailable, match="cannot be reached"):
        clients.table("http://storage.test:9").get([("P", "S")])


def test_waits_double_up_to_the_cap(clients: Clients, serve: Callable[..., FaultServer]) -> None:
    server = serve(Script(failed("ThrottlingException")))
    patience = RetryPolicy(attempts=6, total_s=60, base_s=0.1, cap_s=0.5)

    with pytest.raises(Unavailable):
        DynamoCalls(clients.client("dynamodb", server.url), patience)("Query", {})

    assert clients.waits == [0.1, 0.2, 0.4, 0.5, 0.5]


# --- credentials


def test_rotated_credentials_are_used(serve: Callable[..., FaultServer]) -> None:
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
    """Container credentials endpoint, which SnapStart's environments use."""

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


def test_credentials_of_the_endpoint_are_cached_until_they_expire(
    serve: Callable[..., FaultServer],
) -> None:
    keys, now = Keys(), [1_800_000_000.0]
    server = serve(keys)
    server.signed = False
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/creds?a=b",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret word",
    }
    from functions.adapters.aws_http.credentials import EnvironmentCredentials

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


# --- TLS


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_tls_with_the_authorities_of_a_file(
    clients: Clients, serve: Callable[..., FaultServer], authority: Authority, tmp_path: Path
) -> None:
    import hashlib

    content = bytes(range(256)) * 400
    trusted = {"AWS_CA_BUNDLE": str(authority.file)}
    table = serve(Script(found), authority.server_context("127.0.0.1"))
    storage = serve(StoredObject(content), authority.server_context("127.0.0.1"))

    assert clients.table(table.url, **trusted).get([("P", "S")]) == [ITEM]
    reader = clients.blobs(storage.url, "b", **trusted)
    reader.fetch(Blob("m", hashlib.sha256(content).hexdigest(), len(content)), tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == content


def test_a_certificate_that_is_not_from_amazon_is_looked_up_in_the_system(
    clients: Clients,
    serve: Callable[..., FaultServer],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))  # OpenSSL's name for the system's
    server = serve(Script(found), authority.server_context("127.0.0.1"))
    table = clients.table(server.url)

    assert [table.get([("P", "S")]) for _ in range(2)] == [[ITEM]] * 2
    assert server.connections == 2  # the first one was refused


def test_amazons_authorities_are_read_first() -> None:
    context = Trust().context()

    names = {
        dict(pair for [pair] in root["subject"])["commonName"] for root in context.get_ca_certs()
    }
    assert names == {
        *(f"Amazon Root CA {number}" for number in range(1, 5)),
        "Starfield Services Root Certificate Authority - G2",
    }
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_an_untrusted_server_gets_no_request(
    clients: Clients, serve: Callable[..., FaultServer], authority: Authority
) -> None:
    """Its authority is unknown, its certificate is for another name, or it has no TLS."""
    unknown = serve(Script(found), authority.server_context("127.0.0.1"))
    other = serve(Script(found), authority.server_context("dynamodb.us-east-1.amazonaws.com"))
    plain = serve(Script(found))

    for url, trusted in (
        (unknown.url, {}),
        (other.url, {"AWS_CA_BUNDLE": str(authority.file)}),
        (plain.url.replace("http:", "https:"), {"AWS_CA_BUNDLE": str(authority.file)}),
    ):
        with pytest.raises(Unavailable, match="cannot be reached"):
            clients.table(url, **trusted).get([("P", "S")])

    assert unknown.seen == other.seen == plain.seen == []


# --- imports


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_client_imports_nothing_heavy(scheme: str) -> None:
    script = f"""
import sys
from functions.adapters.aws_http.blobs import BlobReader
from functions.adapters.aws_http.client import Client
from functions.adapters.aws_http.dynamodb import DynamoCalls
from functions.adapters.aws_http.endpoint import Trust
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


def test_a_service_error_shows_status_and_code() -> None:
    assert str(ServiceError(403, "AccessDenied", {})) == "403 AccessDenied"
