"""S3's events, through SQS, EventBridge or bare, become registrations; what failed goes back to the queue."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit
from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from functions.core.errors import InvalidModel, PlatformError, Unavailable
from functions.core.registration.registration import Registration
from functions.core.registry.version import Reason, State, Version
from functions.core.uploads import Upload, lacks_folder, uploads_in

RESERVE_MS = 85_000  # an upload is not begun with less time left: it goes back to the queue. Building takes up to 60 s

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


def make_handler(
    registration: Registration,
    logger: Logger,
    metrics: Metrics,
    note: Callable[[Upload, Reason], None] = lambda *_: None,
    after: Callable[[], None] = lambda: None,
) -> Handler:
    """The Lambda handler for uploads, bound to `registration`.

    `note` remembers why an upload was put off; `after` is called when one is done with, however it ended.

    SQS batches answer with `batchItemFailures`: the messages that should come again. Any other event answers with the
    versions it became, and raises when one of its uploads should come again.
    """
    processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)

    def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
        def on_message(record: SQSRecord) -> None:
            register_all(_body(record.body), record.message_id)

        def register_all(notification: Mapping[str, Any], origin: str) -> list[dict[str, Any]]:
            try:
                uploads = list(uploads_in(notification))
            except InvalidModel as error:
                logger.error("ignored: no upload event", reason=str(error), origin=origin)
                metrics.add_metric("UploadsIgnored", MetricUnit.Count, 1)
                return []
            return [told for upload in uploads if (told := register(upload))]

        def register(upload: Upload) -> dict[str, Any] | None:
            about: dict[str, Any] = {
                "bucket": upload.bucket,
                "key": upload.key[:1024],
                "object_version": upload.version_id,
            }
            if context.get_remaining_time_in_millis() < RESERVE_MS:
                raise Unavailable("too little time left to begin another upload")
            try:
                version = registration.register(upload)
            except InvalidModel as error:
                logger.error("ignored", code=error.instance_code, reason=str(error), **about)
                metrics.add_metric("UploadsIgnored", MetricUnit.Count, 1)
                return None
            except Unavailable as error:
                logger.warning(
                    "to be tried again", code=error.instance_code, reason=str(error), **about
                )
                metrics.add_metric("UploadsRetried", MetricUnit.Count, 1)
                put_off(upload, Reason(error.instance_code, str(error)))
                raise
            except Exception as error:  # a bug: told in full, and the upload comes again until it lies in the dead letters
                logger.exception("failed", **about)
                put_off(
                    upload,
                    Reason(
                        "INTERNAL", f"register failed with {type(error).__name__}; its log has more"
                    ),
                )
                raise
            finally:
                after()
            if version is None and lacks_folder(upload.key):
                logger.warning(
                    "ignored: the key names no model; upload it to models/<model>/", **about
                )
                metrics.add_metric("UploadsIgnored", MetricUnit.Count, 1)
                return None
            if version is None:
                logger.info("nothing to register", **about)
                return None
            told = _told(version)
            logger.info(
                "registered" if version.state is State.READY else "rejected", **told, **about
            )
            metrics.add_metric(
                "UploadsRegistered" if version.state is State.READY else "UploadsRejected",
                MetricUnit.Count,
                1,
            )
            return told

        def put_off(upload: Upload, reason: Reason) -> None:
            try:
                note(upload, reason)
            except PlatformError as error:
                logger.warning("no note", reason=str(error), key=upload.key[:1024])

        logger.append_keys(request_id=context.aws_request_id)
        try:
            records = event.get("Records") or [{}]
            if records[0].get("eventSource") == "aws:sqs":
                return dict(process_partial_response(event, on_message, processor, context))
            return {"versions": register_all(event, "invocation")}
        finally:
            if metrics.metric_set:
                metrics.flush_metrics()

    return lambda_handler


def _body(text: str) -> Mapping[str, Any]:
    """The notification in a message; something that is none for `uploads_in` to name."""
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _told(version: Version) -> dict[str, Any]:
    told: dict[str, Any] = {
        "model": version.model,
        "version": version.number,
        "state": version.state.value,
    }
    if version.reason:
        told |= {"code": version.reason.code, "reason": version.reason.message}
    return told
