"""Local stack against the behaviour of Lambda, SQS and API Gateway."""

import asyncio
import base64
import contextlib
import http.client
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import client
from local.client import RunningStack, start_stack
from local.execution import pool as pools
from local.execution.environment import Place
from local.execution.logs import FunctionLog
from local.execution.pool import FunctionPool
from local.execution.processes import ROOT, Janitor
from local.template import Template

pytestmark = pytest.mark.timeout(240)

HANDLER = '''
import base64, json, os, pathlib, signal, sys, time
print("loaded")

def act(event, context):
    """Do what the event says and return the process's facts."""
    do = event.get("do", "echo")
    print("doing", do)
    if do == "sleep":
        time.sleep(event["seconds"])
    elif do == "wait":
        while not pathlib.Path(event["path"]).exists():
            time.sleep(0.05)
    elif do == "allocate":
        memory = bytearray(b"x" * (event["mb"] << 20))
        time.sleep(60)
    elif do == "exit":
        os._exit(3)
    elif do == "answer and exit":
        sys.path.append(event["root"])
        from functions.adapters.last_answer import answer_and_exit
        api = os.environ["AWS_LAMBDA_RUNTIME_API"]
        answer_and_exit(api, {"pid": os.getpid()}, context.aws_request_id)
    elif do == "raise":
        raise KeyError("the message")
    elif do == "big":
        return "x" * event["bytes"]
    elif do == "write":
        (pathlib.Path(os.environ["TMPDIR"]) / "file").write_text("x")
    facts = {"pid": os.getpid(), "cwd": os.getcwd(), "environment": dict(os.environ)}
    return facts | {"event": event, "left_ms": context.get_remaining_time_in_millis()}

def api(event, context):
    """Answer as the header x-do says; by default echo the body, with the event in a header."""
    do = {name.lower(): value for name, value in event["headers"].items()}.get("x-do")
    if do == "malformed":
        return {"status": 200}
    if do == "raise":
        raise ValueError("secret")
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "sleep":
        time.sleep(6)
    if do == "text":
        return {"statusCode": 201, "body": "\\u00e9", "headers": {"Content-Type": "text/plain"}}
    keys = ("path", "pathParameters", "queryStringParameters", "httpMethod", "resource")
    parts = {key: event[key] for key in keys}
    headers = {"x-event": json.dumps(parts), "x-stage-path": event["requestContext"]["path"]}
    answer = {"statusCode": 200, "body": event["body"] or "", "headers": headers}
    return answer | {"isBase64Encoded": event["isBase64Encoded"]}

def consume(event, context):
    """Fail the messages whose body is bad."""
    for record in event["Records"]:
        print("got", record["body"], record["attributes"]["ApproximateReceiveCount"])
    bad = [record["messageId"] for record in event["Records"] if record["body"] == "bad"]
    return {"batchItemFailures": [{"itemIdentifier": message} for message in bad]}
'''

TEMPLATE = """
Parameters: {Seconds: {Type: Number, Default: 60}}
Globals:
  Function:
    Runtime: python3.13
    Timeout: !Ref Seconds
    MemorySize: 192
    Environment: {Variables: {MINE: 1}}
Resources:
  Act: {Type: "AWS::Serverless::Function", Properties: {Handler: code.act}}
  Short: {Type: "AWS::Serverless::Function", Properties: {Handler: code.act, Timeout: 2}}
  Broken: {Type: "AWS::Serverless::Function", Properties: {Handler: broken.f}}
  Web:
    Type: AWS::Serverless::Function
    Properties:
      Handler: code.api
      Events:
        Any: {Type: Api, Properties: {RestApiId: !Ref Api, Path: "/v2/{path+}", Method: ANY}}
  Consume:
    Type: AWS::Serverless::Function
    Properties:
      Handler: code.consume
      Events:
        Q:
          Type: SQS
          Properties:
            Queue: !GetAtt Queue.Arn
            BatchSize: 5
            FunctionResponseTypes: [ReportBatchItemFailures]
  Api:
    Type: AWS::Serverless::Api
    Properties:
      StageName: live
      BinaryMediaTypes: ["*/*"]
      GatewayResponses:
        DEFAULT_4XX:
          ResponseTemplates: {application/json: '{"error": $context.error.messageString}'}
        MISSING_AUTHENTICATION_TOKEN:
          StatusCode: "404"
          ResponseTemplates: {application/json: '{"error": "no"}'}
  Queue:
    Type: AWS::SQS::Queue
    Properties:
      VisibilityTimeout: 3
      RedrivePolicy: {deadLetterTargetArn: !GetAtt Dead.Arn, maxReceiveCount: 2}
  Dead: {Type: "AWS::SQS::Queue"}
  Bucket:
    Type: AWS::S3::Bucket
    Properties:
      VersioningConfiguration: {Status: Enabled}
      NotificationConfiguration:
        QueueConfigurations:
          - Event: "s3:ObjectCreated:*"
            Queue: !GetAtt Uploads.Arn
            Filter: {S3Key: {Rules: [{Name: suffix, Value: .onnx}]}}
  Uploads: {Type: "AWS::SQS::Queue"}
  Table:
    Type: AWS::DynamoDB::Table
    Properties:
      BillingMode: PAY_PER_REQUEST
      AttributeDefinitions: [{AttributeName: pk, AttributeType: S}]
      KeySchema: [{AttributeName: pk, KeyType: HASH}]
Outputs:
  TableName: {Value: !Ref Table}
  QueueUrl: {Value: !Ref Queue}
  DeadUrl: {Value: !Ref Dead}
  UploadsUrl: {Value: !Ref Uploads}
  BucketName: {Value: !Ref Bucket}
  ApiUrl: {Value: !Sub "https://${Api}.execute-api.${AWS::Region}.amazonaws.com/live"}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template and the code of its functions."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "template.yaml").write_text(TEMPLATE)
    (folder / "code.py").write_text(HANDLER)
    (folder / "broken.py").write_text("raise RuntimeError('cannot be loaded')\n")
    return folder


@pytest.fixture(scope="module")
def stack(project: Path) -> Iterator[RunningStack]:
    arguments = ("--code-root", str(project), "--concurrency", "2", "--api-timeout", "5")
    with start_stack(
        project / "template.yaml", state_dir=project / "state", arguments=arguments
    ) as running:
        yield running


def invoke(stack: RunningStack, function: str = "Act", **event: Any) -> tuple[Any, str | None]:
    answer = stack.client("lambda").invoke(
        FunctionName=function, Payload=json.dumps(event).encode()
    )
    return json.loads(answer["Payload"].read()), answer.get("FunctionError")


def request(
    stack: RunningStack, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(stack.api_url.split("/")[2], timeout=90)
    with contextlib.closing(connection):
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(),
        )


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll ten times a second and return the first true value of `condition`."""
    for _ in range(int(seconds * 10)):
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {condition}")


# --- Lambda ---


def test_a_warm_call_uses_the_same_process_and_logs_like_lambda(stack: RunningStack) -> None:
    stack.recycle("Act")
    before = len(stack.log("Act"))
    first, second = invoke(stack)[0], invoke(stack)[0]

    assert first["pid"] == second["pid"] == stack.environments("Act")[-1]["pid"]
    until(lambda: stack.log("Act").count("REPORT", before) == 2)
    lines = stack.log("Act")[before:].splitlines()
    assert lines[0] == "loaded"
    kinds = [line.split(" ")[0] for line in lines[1:]]
    assert kinds == ["START", "doing", "END", "REPORT"] * 2
    assert "Init Duration: " in lines[4]
    assert "Init Duration: " not in lines[8]
    assert "Memory Size: 192 MB\tMax Memory Used: " in lines[8]


def test_the_environment_is_lambdas_and_nothing_of_the_developers(
    project: Path, stack: RunningStack
) -> None:
    facts = invoke(stack, "Act", do="write")[0]
    variables = facts["environment"]

    assert facts["cwd"] == variables["LAMBDA_TASK_ROOT"] == str(project)
    assert 0 < facts["left_ms"] <= 60_000
    assert variables["MINE"] == "1"
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == "Act"
    assert variables["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "192"
    assert variables["AWS_ENDPOINT_URL"] == stack.endpoint_url
    assert variables["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
    assert not {"HOME", "USER", "PYTEST_CURRENT_TEST", "VIRTUAL_ENV", "HTTP_PROXY"} & set(variables)
    tmp = Path(variables["TMPDIR"])
    assert (tmp / "file").exists()
    stack.recycle("Act")
    assert not tmp.exists()


def test_concurrent_calls_get_processes_of_their_own_up_to_the_limit(
    stack: RunningStack, tmp_path: Path
) -> None:
    client = stack.client("lambda")
    signal_path = tmp_path / "go"
    with ThreadPoolExecutor(2) as threads:
        wait = {"do": "wait", "path": str(signal_path)}
        calls = [threads.submit(invoke, stack, "Act", **wait) for _ in range(2)]
        until(lambda: [each["state"] for each in stack.environments("Act")] == ["busy"] * 2)
        with pytest.raises(client.exceptions.TooManyRequestsException):
            client.invoke(FunctionName="Act", Payload=b"{}")
        signal_path.touch()
        assert len({call.result()[0]["pid"] for call in calls}) == 2


def test_a_timeout_kills_the_process(stack: RunningStack) -> None:
    pid = invoke(stack, "Short")[0]["pid"]
    error, kind = invoke(stack, "Short", do="sleep", seconds=60)

    assert kind == "Unhandled"
    assert error["errorType"] == "Sandbox.Timedout"
    assert error["errorMessage"].endswith(" Error: Task timed out after 2.00 seconds")
    assert not psutil.pid_exists(pid)
    assert "Status: timeout" in stack.log("Short").splitlines()[-1]
    assert invoke(stack, "Short")[0]["pid"] != pid


def test_too_much_memory_kills_the_process(stack: RunningStack) -> None:
    error, kind = invoke(stack, do="allocate", mb=300)

    assert kind == "Unhandled"
    assert error["errorType"] == "Runtime.ExitError"
    assert error["errorMessage"].endswith("Runtime exited with error: signal: killed")
    assert invoke(stack)[1] is None


def test_a_process_that_ends_is_replaced(stack: RunningStack) -> None:
    error, kind = invoke(stack, do="exit")

    assert (error["errorType"], kind) == ("Runtime.ExitError", "Unhandled")
    assert error["errorMessage"].endswith("Runtime exited with error: exit status 3")
    assert invoke(stack)[1] is None


def test_a_process_may_answer_and_then_end(stack: RunningStack) -> None:
    answers = [invoke(stack, do="answer and exit", root=str(ROOT)) for _ in range(3)]

    assert [kind for _, kind in answers] == [None] * 3
    pids = {answer["pid"] for answer, _ in answers}
    assert len(pids) == 3
    until(lambda: not any(map(psutil.pid_exists, pids)))


def test_an_idle_process_found_dead_is_replaced_unnoticed(stack: RunningStack) -> None:
    invoke(stack)
    for environment in stack.environments("Act"):
        os.kill(environment["pid"], signal.SIGKILL)

    assert invoke(stack)[1] is None


def test_an_exception_is_the_answer(stack: RunningStack) -> None:
    error, kind = invoke(stack, do="raise")

    assert kind == "Unhandled"
    assert (error["errorType"], error["errorMessage"]) == ("KeyError", "'the message'")
    assert error["stackTrace"]


def test_a_module_that_cannot_be_loaded_is_the_answer(stack: RunningStack) -> None:
    error, kind = invoke(stack, "Broken")

    assert (error["errorType"], error["errorMessage"], kind) == (
        "RuntimeError",
        "cannot be loaded",
        "Unhandled",
    )
    assert stack.environments("Broken") == []


def test_payload_limits(stack: RunningStack) -> None:
    client = stack.client("lambda")
    with pytest.raises(client.exceptions.RequestTooLargeException):
        client.invoke(FunctionName="Act", Payload=b'"' + b"x" * 6_291_456 + b'"')
    error, kind = invoke(stack, do="big", bytes=6_300_000)
    assert (error["errorType"], kind) == ("Function.ResponseSizeTooLarge", "Unhandled")
    assert len(invoke(stack, do="big", bytes=6_000_000)[0]) == 6_000_000


def test_event_invocations_answer_at_once_and_logs_can_be_asked_for(stack: RunningStack) -> None:
    client = stack.client("lambda")
    answer = client.invoke(
        FunctionName="Act", InvocationType="Event", Payload=b'{"do": "asynchronously"}'
    )
    assert answer["StatusCode"] == 202
    until(lambda: "doing asynchronously" in stack.log("Act"))
    answer = client.invoke(FunctionName="Act", LogType="Tail", Payload=b"{}")
    assert b"doing echo" in base64.b64decode(answer["LogResult"])
    with pytest.raises(
        client.exceptions.ResourceNotFoundException,
        match=r"There are: Act, Short, Broken, Web, Consume",
    ):
        client.invoke(FunctionName="Nobody")


SLOW = """
import pathlib, time
mark = pathlib.Path(__file__).with_suffix(".mark")
if not mark.exists():
    mark.touch()
    time.sleep(120)
def f(event, context):
    return context.get_remaining_time_in_millis()
"""


def test_a_slow_init_runs_again_inside_the_invocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    properties = "{Handler: slow.f, Timeout: 90}"
    text = f'Resources: {{F: {{Type: "AWS::Serverless::Function", Properties: {properties}}}}}'
    (tmp_path / "t.yaml").write_text(text)
    monkeypatch.setattr(pools, "INIT_LIMIT_S", 0.5)

    async def call() -> tuple[int, float]:
        janitor = Janitor()
        place = Place("http://127.0.0.1:9", tmp_path, janitor, tmp_path)
        log = FunctionLog(tmp_path, "F")
        pool = FunctionPool(Template.load(tmp_path / "t.yaml").functions["F"], place, log)
        try:
            left_ms = int((await pool.invoke(b"{}")).payload)
            [environment] = pool._environments
            return left_ms, environment.init_ms
        finally:
            await pool.stop()
            janitor.close()
            log.close()

    left_ms, init_ms = asyncio.run(call())

    assert 0 < left_ms <= math.ceil(90_000 - init_ms)
    assert "Phase: init\tStatus: timeout" in (tmp_path / "F.log").read_text()


# --- API Gateway ---


def test_bodies_go_both_ways_unchanged(stack: RunningStack) -> None:
    body = bytes(range(256)) * 100
    status, headers, answer = request(
        stack, "POST", "/live/v2/a%20b/c?q=1&q=2", body, Content_Encoding="gzip"
    )

    assert (status, answer) == (200, body)
    assert json.loads(headers["x-event"]) == {
        "path": "/v2/a%20b/c",
        "pathParameters": {"path": "a b/c"},
        "queryStringParameters": {"q": "2"},
        "httpMethod": "POST",
        "resource": "/v2/{path+}",
    }
    assert headers["x-stage-path"] == "/live/v2/a%20b/c"
    assert {"x-amzn-requestid", "x-amz-apigw-id"} <= set(headers)


def test_chunked_bodies_and_text_answers(stack: RunningStack) -> None:
    connection = http.client.HTTPConnection(stack.api_url.split("/")[2], timeout=90)
    with contextlib.closing(connection):
        for _ in range(2):  # on one connection
            connection.request("PUT", "/live/v2/x", iter([b"ab", b"cd"]), encode_chunked=True)
            assert connection.getresponse().read() == b"abcd"
        connection.request("HEAD", "/live/v2/x")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    status, headers, body = request(stack, "GET", "/live/v2/x", x_do="text")
    assert (status, headers["content-type"], body) == (201, "text/plain", "é".encode())


def test_the_same_api_without_a_stage(stack: RunningStack) -> None:
    connection = http.client.HTTPConnection(stack.root_url.split("/")[2], timeout=90)
    with contextlib.closing(connection):
        connection.request("GET", "/v2/x")
        assert connection.getresponse().status == 200


@pytest.mark.parametrize(
    ("path", "do", "status", "body"),
    [
        ("/live/v1", "", 404, {"error": "no"}),
        ("/v2/x", "", 404, {"error": "no"}),
        ("/livelihood/v2/x", "", 404, {"error": "no"}),
        ("/live/v2/x", "malformed", 502, {"message": "Internal server error"}),
        ("/live/v2/x", "raise", 502, {"message": "Internal server error"}),
        ("/live/v2/x", "die", 502, {"message": "Internal server error"}),
        ("/live/v2/x", "sleep", 504, {"message": "Endpoint request timed out"}),
    ],
    ids=["no path", "no stage", "almost the stage", "malformed", "raised", "killed", "slow"],
)
def test_the_gateways_own_replies(
    stack: RunningStack, path: str, do: str, status: int, body: dict[str, str]
) -> None:
    answered, headers, text = request(stack, "GET", path, x_do=do)

    assert (answered, json.loads(text)) == (status, body)
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "size", [5_000_000, 11_000_000], ids=["over Lambda's limit as base64", "over 10 MB"]
)
def test_large_requests_are_refused(stack: RunningStack, size: int) -> None:
    status, _, body = request(stack, "POST", "/live/v2/x", b"x" * size)

    assert (status, json.loads(body)) == (413, {"error": "Request Too Long"})


# --- SQS and S3 ---


def test_failed_messages_come_back_and_end_among_the_dead_letters(stack: RunningStack) -> None:
    sqs = stack.client("sqs")
    invoke(stack, "Consume", Records=[])  # warm: no cold start within the visibility timeout
    entries = [{"Id": body, "MessageBody": body} for body in ("good", "bad")]
    sqs.send_message_batch(QueueUrl=stack.outputs["QueueUrl"], Entries=entries)

    def dead_letters() -> Any:
        return sqs.receive_message(QueueUrl=stack.outputs["DeadUrl"]).get("Messages")

    (message,) = until(dead_letters)
    assert message["Body"] == "bad"
    log = stack.log("Consume")
    lines = ("got good 1\n", "got good 2", "got bad 1\n", "got bad 2\n", "got bad 3")
    assert [log.count(line) for line in lines] == [1, 0, 1, 1, 0]


def test_uploads_are_notified_as_aws_does(stack: RunningStack) -> None:
    s3, sqs, bucket = stack.client("s3"), stack.client("sqs"), stack.outputs["BucketName"]
    url = stack.outputs["UploadsUrl"]
    versions = [
        s3.put_object(Bucket=bucket, Key="a b/ü+.onnx", Body=b"1")["VersionId"] for _ in range(2)
    ]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m.onnx")["UploadId"]
    part = {"Bucket": bucket, "Key": "m.onnx", "UploadId": upload}
    etag = s3.upload_part(**part, PartNumber=1, Body=b"x")["ETag"]
    s3.complete_multipart_upload(
        **part, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}
    )
    s3.put_object(Bucket=bucket, Key="other.txt", Body=b"")

    messages = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    test_event, *bodies = [json.loads(message["Body"]) for message in messages]
    assert test_event["Event"] == "s3:TestEvent"
    records = [body["Records"][0] for body in bodies]
    assert [record["eventName"].split(":")[1] for record in records] == [
        "Put",
        "Put",
        "CompleteMultipartUpload",
    ]
    objects = [record["s3"]["object"] for record in records]
    assert [item["key"] for item in objects] == ["a+b/%C3%BC%2B.onnx"] * 2 + ["m.onnx"]
    assert [item["versionId"] for item in objects[:2]] == versions
    sequencers = [item["sequencer"] for item in objects]
    assert sequencers == sorted(set(sequencers))
    assert "multipart" not in objects[2]


def test_transactions_that_fail_take_nothing_back_of_others(stack: RunningStack) -> None:
    table, client = stack.outputs["TableName"], stack.client("dynamodb")
    for start in range(0, 500, 25):  # restoring a large table takes moto a while
        fill = [
            {"PutRequest": {"Item": {"pk": {"S": f"filler-{number}"}}}}
            for number in range(start, start + 25)
        ]
        client.batch_write_item(RequestItems={table: fill})

    def write(number: int, dynamodb: Any) -> None:
        for at in range(20):
            put: dict[str, Any] = {"TableName": table, "Item": {"pk": {"S": f"{number}-{at}"}}}
            if number % 2:
                put["ConditionExpression"] = "attribute_exists(pk)"
            with contextlib.suppress(dynamodb.exceptions.TransactionCanceledException):
                dynamodb.transact_write_items(TransactItems=[{"Put": put}])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8), [stack.client("dynamodb") for _ in range(8)]))

    written = {item["pk"]["S"] for item in client.scan(TableName=table)["Items"]}
    assert written - {f"filler-{at}" for at in range(500)} == {
        f"{number}-{at}" for number in range(0, 8, 2) for at in range(20)
    }


# --- the end ---


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_no_process_is_left_behind(project: Path, tmp_path: Path, number: int) -> None:
    command = [
        sys.executable,
        "-m",
        "local",
        "up",
        "--json",
        "--template",
        str(project / "template.yaml"),
    ]
    command += ["--code-root", str(project), "--state-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        description = json.loads(supervisor.stdout.readline())
        description["log_dir"] = Path(description["log_dir"])
        stack = RunningStack(**description)
        tmp = Path(invoke(stack, "Act")[0]["environment"]["TMPDIR"])
        children = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(children) >= 3  # moto, the janitor, the function
        supervisor.send_signal(number)
        supervisor.wait(timeout=90)

    assert supervisor.returncode == (0 if number == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not any(map(is_alive, children)))
    until(lambda: not tmp.parent.exists())


def test_a_port_in_use_is_reported(stack: RunningStack, project: Path, tmp_path: Path) -> None:
    port = stack.api_url.split("/")[2].split(":")[1]
    with (
        pytest.raises(
            RuntimeError, match=rf"port {port} is not free .*: choose another --api-port"
        ),
        start_stack(project / "template.yaml", state_dir=tmp_path, arguments=("--api-port", port)),
    ):
        pass


def test_a_stack_that_does_not_serve_in_time_is_ended(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "START_S", 0)

    with (
        pytest.raises(RuntimeError, match=r"did not serve within 0 s, .*; see .*stack\.log"),
        start_stack(project / "template.yaml", state_dir=tmp_path),
    ):
        pass


def test_a_wrong_parameter_is_reported(project: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(
            RuntimeError,
            match="did not start: parameter Colour: unknown; the template has Seconds",
        ),
        start_stack(project / "template.yaml", parameters={"Colour": 1}, state_dir=tmp_path),
    ):
        pass
