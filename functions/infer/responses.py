"""HTTP responses of /v2: status, headers and body of replies and errors."""

from functools import cache
from http import HTTPStatus

from functions.core.access import cors
from functions.core.errors import PayloadTooLarge, PlatformError
from functions.core.protocol.infer_reply import BINARY_BYTES_MAX, REPLY_BYTES_MAX, InferReply
from functions.core.protocol.infer_request import HEADER
from functions.core.serving.compression import compress
from functions.core.serving.http import HttpResponse, json_response
from functions.core.serving.service import Reply
from functions.infer.exchange import Exchange

OK = int(HTTPStatus.OK)
HEADER_LOWER = HEADER.lower()


def success(reply: Reply, accept_encoding: str | None) -> HttpResponse:
    """Convert a reply to HTTP 200; compress only inference results.

    tritonclient.aio cannot decompress anything else.
    """
    if not isinstance(reply, InferReply):
        return json_response(OK, reply)
    body, encoding = reply.body, None
    if accept_encoding:
        body, encoding = compress(body, accept_encoding, BINARY_BYTES_MAX)
    response = HttpResponse(OK, body, {"content-type": "application/json"})
    if reply.header_length is not None:
        response.binary = True
        response.headers["content-type"] = "application/octet-stream"
        response.headers[HEADER_LOWER] = str(reply.header_length)
    if encoding is not None:
        response.binary = True
        response.headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
    return response


def check_size(response: HttpResponse) -> None:
    """Check an HTTP response, with all its headers, against Lambda's size limit.

    Raises:
        PayloadTooLarge: its JSON text is longer.
    """
    if 4 * len(response.body) < REPLY_BYTES_MAX:  # fits in any case
        return
    size = response.event_size()
    if size > REPLY_BYTES_MAX:
        compressed = ", compressed," if "content-encoding" in response.headers else ""
        form = "in base64" if response.binary else "with its quotes escaped"
        raise PayloadTooLarge(
            f"the reply{compressed} takes {size} bytes {form}, and Lambda's limit is "
            f"{REPLY_BYTES_MAX}: send fewer rows, or ask for less at once"
        )


def refusal(error: PlatformError, exchange: Exchange) -> HttpResponse:
    """Convert an error to an HTTP response with its status' headers."""
    response = failure(error.status, str(error), error.instance_code, exchange)
    response.headers |= error.headers
    return response


def failure(status: int, text: str, code: str, exchange: Exchange) -> HttpResponse:
    """Return an error's HTTP response; record the code in the exchange."""
    exchange.code = code
    return json_response(status, {"error": text, "code": code, "request_id": exchange.request_id})


def add_headers(response: HttpResponse, exchange: Exchange, cold: bool) -> None:
    """Add request id, timing, cold-start and model headers to a response.

    x-cold-start is 1 if the request waited for a model or is the environment's first.
    """
    stages_ns = exchange.stages_ns
    timing = _timing(tuple(stages_ns)) % tuple([ns / 1e6 for ns in stages_ns.values()])
    headers = response.headers
    if exchange.headers:
        headers |= exchange.headers
    if exchange.cors_headers:
        cors.add_headers(headers, exchange.cors_headers)
    headers["x-request-id"] = exchange.request_id
    headers["x-cold-start"] = "1" if cold else "0"
    headers["server-timing"] = timing or "receive;dur=0"
    if (resolved := exchange.resolved) is not None:
        headers["x-model-version"] = str(resolved.version.number)
        if resolved.alias is not None:
            headers["x-model-alias"] = resolved.alias
            if resolved.variant:
                headers["x-model-variant"] = resolved.variant


@cache
def _timing(stages: tuple[str, ...]) -> str:
    """Return a server-timing header template with one placeholder per stage."""
    return ", ".join(f"{stage};dur=%.3f" for stage in stages)
