"""Lambda handler that registers uploaded models from S3 or SQS events.

Events arrive through SQS, through EventBridge, or by a direct invocation.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

RESERVE_MS = 85_000  # ms; with less time left an upload goes back to the queue
STORE_S = 15  # s of the time left, to store the files of a checked model and to commit
KEY_CHARACTERS = 1024  # longest object key that S3 allows

Summary = dict[str, Any]  # model, version, state; code and reason of a rejected version


@dataclass(frozen=True, slots=True)
class RegisterHandler:
    """Lambda handler that registers each uploaded model of an event.

    An SQS batch is answered with `batchItemFailures`: the messages to deliver again. Any other
    event is answered with the versions it became, and raises if an upload has to be retried.
    """

    registration: Registration
    logger: Logger
    metrics: Metrics
    note_failure: Callable[[Upload, Reason], None] = lambda *_: None
    before_upload: Callable[[float], None] = lambda _: None  # gets the seconds to check it in
    after_upload: Callable[[], None] = lambda: None
    before_reply: Callable[[dict[str, Any], str], None] = lambda *_: None  # reply, request id

    def __call__(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Register the uploaded models of a Lambda event; flush the metrics."""
        self.logger.append_keys(request_id=context.aws_request_id)
        try:
            reply = self.register_event(event, context)
        finally:
            if self.metrics.metric_set:
                self.metrics.flush_metrics()
        self.before_reply(reply, context.aws_request_id)
        return reply

    def register_event(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Register the uploaded models of an SQS batch or a single event."""
        if _is_sqs_batch(event):
            return self.register_batch(event, context)
        return {"versions": self.register_uploads(event, "invocation", context)}

    def register_batch(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Register an SQS batch of uploads; return failures for redelivery."""
        processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)
        return dict(process_partial_response(event, self.register_message, processor, context))

    def register_message(self, record: SQSRecord, lambda_context: Any) -> None:
        """Register the uploaded models of one SQS message.

        The batch processor of Powertools requires these parameter names.
        """
        self.register_uploads(_parse_body(record.body), record.message_id, lambda_context)

    def register_uploads(
        self, notification: Mapping[str, Any], origin: str, context: Any
    ) -> list[Summary]:
        """Register the uploads of an S3 event; return the versions' summaries."""
        try:
            uploads = list(uploads_in(notification))
        except InvalidModel as error:
            self.logger.error("ignored: no upload event", reason=str(error), origin=origin)
            self.count("UploadsIgnored")
            return []
        summaries = [self.register_upload(upload, context) for upload in uploads]
        return [summary for summary in summaries if summary]

    def register_upload(self, upload: Upload, context: Any) -> Summary | None:
        """Register one uploaded model and log the outcome.

        Return the version's summary; None if it became no version.

        Raises:
            Unavailable: too little time is left, or a dependency failed; to be retried.
        """
        left_ms = context.get_remaining_time_in_millis()
        if left_ms < RESERVE_MS:
            raise Unavailable("too little time left to begin another upload")
        self.before_upload(left_ms / 1000 - STORE_S)
        try:
            version = self.registration.register(upload)
        except InvalidModel as error:
            self.log_ignored(upload, error)
            return None
        except Unavailable as error:
            self.log_retry(upload, error)
            raise
        except Exception as error:  # a bug: the queue retries, then moves it to the dead letters
            self.log_bug(upload, error)
            raise
        finally:
            self.after_upload()
        return self.log_outcome(upload, version)

    def log_outcome(self, upload: Upload, version: Version | None) -> Summary | None:
        """Log a finished registration; return the version's summary, if any."""
        if version is None:
            self.log_no_version(upload)
            return None
        summary = _summary(version)
        is_ready = version.state is State.READY
        self.logger.info("registered" if is_ready else "rejected", **summary, **_log_fields(upload))
        self.count("UploadsRegistered" if is_ready else "UploadsRejected")
        return summary

    def log_no_version(self, upload: Upload) -> None:
        """Log an uploaded object that became no model version.

        It is no model, or lies in no model's folder.
        """
        if not lacks_folder(upload.key):
            self.logger.info("nothing to register", **_log_fields(upload))
            return
        message = "ignored: the key names no model; upload it to models/<model>/"
        self.logger.warning(message, **_log_fields(upload))
        self.count("UploadsIgnored")

    def log_ignored(self, upload: Upload, error: InvalidModel) -> None:
        """Log an ignored upload whose key is no valid model path."""
        reason = Reason(error.instance_code, str(error))
        self.logger.error("ignored", code=reason.code, reason=reason.message, **_log_fields(upload))
        self.count("UploadsIgnored")

    def log_retry(self, upload: Upload, error: Unavailable) -> None:
        """Log and record a failed registration that SQS will retry."""
        reason = Reason(error.instance_code, str(error))
        self.logger.warning(
            "to be tried again", code=reason.code, reason=reason.message, **_log_fields(upload)
        )
        self.count("UploadsRetried")
        self.record_failure(upload, reason)

    def log_bug(self, upload: Upload, error: Exception) -> None:
        """Log a registration's unexpected error with traceback, and record it."""
        self.logger.exception("failed", **_log_fields(upload))
        message = f"register failed with {type(error).__name__}; its log has more"
        self.record_failure(upload, Reason("INTERNAL", message))

    def record_failure(self, upload: Upload, reason: Reason) -> None:
        """Record in the registry why an upload has to be retried.

        The dead letters show it. An unreachable registry is only logged: it must not hide the
        failure itself.
        """
        try:
            self.note_failure(upload, reason)
        except PlatformError as error:
            key = upload.key[:KEY_CHARACTERS]
            self.logger.warning("no note", reason=str(error), key=key)

    def count(self, metric: str) -> None:
        """Add one to a CloudWatch metric."""
        self.metrics.add_metric(metric, MetricUnit.Count, 1)


def _is_sqs_batch(event: Mapping[str, Any]) -> bool:
    records = event.get("Records") or [{}]
    return bool(records[0].get("eventSource") == "aws:sqs")


def _parse_body(text: str) -> Mapping[str, Any]:
    """Parse an SQS message's JSON; return {} if malformed.

    {} is no upload event, so that it is ignored.
    """
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _log_fields(upload: Upload) -> dict[str, Any]:
    return {
        "bucket": upload.bucket,
        "key": upload.key[:KEY_CHARACTERS],
        "object_version": upload.version_id,
    }


def _summary(version: Version) -> Summary:
    summary: Summary = {
        "model": version.model,
        "version": version.number,
        "state": version.state.value,
    }
    if version.reason:
        summary |= {"code": version.reason.code, "reason": version.reason.message}
    return summary
