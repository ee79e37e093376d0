"""Classification of AWS errors."""

import pytest

from functions.adapters.aws_errors import ErrorKind, classify, classify_response


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", ErrorKind.GONE),
        (404, "NoSuchBucket", ErrorKind.GONE),
        (404, "NoSuchVersion", ErrorKind.GONE),
        (404, "404", ErrorKind.GONE),
        (405, "MethodNotAllowed", ErrorKind.GONE),
        (412, "PreconditionFailed", ErrorKind.CHANGED),
        (412, "412", ErrorKind.CHANGED),
        (409, "ConditionalRequestConflict", ErrorKind.CHANGED),
        (403, "AccessDenied", ErrorKind.DENIED),
        (403, "403", ErrorKind.DENIED),
        (400, "AccessDeniedException", ErrorKind.DENIED),
        (500, "InternalServerError", ErrorKind.TRANSIENT),
        (503, "SlowDown", ErrorKind.TRANSIENT),
        (503, "503", ErrorKind.TRANSIENT),
        (400, "RequestTimeout", ErrorKind.TRANSIENT),
        (400, "ThrottlingException", ErrorKind.TRANSIENT),
        (429, "TooManyRequestsException", ErrorKind.TRANSIENT),
        (400, "ProvisionedThroughputExceededException", ErrorKind.TRANSIENT),
        (400, "RequestLimitExceeded", ErrorKind.TRANSIENT),
        (403, "RequestThrottled", ErrorKind.TRANSIENT),
        (400, "ValidationException", ErrorKind.OTHER),
        (400, "ResourceNotFoundException", ErrorKind.OTHER),
        (400, "TransactionCanceledException", ErrorKind.OTHER),
        (403, "SignatureDoesNotMatch", ErrorKind.OTHER),
        (416, "InvalidRange", ErrorKind.OTHER),
    ],
)
def test_an_error_has_one_kind(status: int, code: str, kind: ErrorKind) -> None:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    assert classify(status, code) is kind
    assert classify_response(response) is kind
