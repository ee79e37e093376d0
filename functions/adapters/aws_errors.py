"""Classification of AWS errors, e.g. as missing, denied or worth a retry.

Without boto3, because infer imports this module during its cold start.
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

DENIED = frozenset({"403", "AccessDenied", "AccessDeniedException"})
CHANGED = frozenset({"412", "ConditionalRequestConflict", "PreconditionFailed"})
TRANSIENT = frozenset(
    {
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingError",
        "ThrottlingException",
    }
)


class ErrorKind(Enum):
    """Kind of an AWS error: gone, changed, denied, transient or other."""

    GONE = auto()  # no such object or bucket, or a delete marker
    CHANGED = auto()  # a condition on the stored object does not hold
    DENIED = auto()  # forbidden by a policy
    TRANSIENT = auto()  # the same request may succeed a moment later
    OTHER = auto()


def classify(status: int, code: str) -> ErrorKind:
    """Classify an AWS error by its HTTP status and error code.

    >>> classify(404, "NoSuchKey"), classify(429, "TooManyRequestsException")
    (<ErrorKind.GONE: 1>, <ErrorKind.TRANSIENT: 4>)
    """
    if status >= 500 or status == 429 or code in TRANSIENT:  # 429: Lambda's throttling
        return ErrorKind.TRANSIENT
    if status in (404, 405):
        return ErrorKind.GONE
    if code in CHANGED:
        return ErrorKind.CHANGED
    if code in DENIED:
        return ErrorKind.DENIED
    return ErrorKind.OTHER


def classify_response(response: Mapping[str, Any]) -> ErrorKind:
    """Classify an AWS error from the response in botocore's ClientError."""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    return classify(status, str(response["Error"]["Code"]))
