"""Lambda handler that registers uploaded models from S3 or SQS events.

Events arrive through SQS, through EventBridge, or by a direct invocation.
"""

import json
from collections.abc import Callable, Mapping, Sequence
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
from functions.core.intake.announcement import is_part
from functions.core.registration.registration import Registration
from functions.core.registry.version import Reason, Source, State, Version
from functions.core.upload_record import package_of
from functions.core.uploads import Upload, single_events, uploads_in

RESERVE_MS = 85_000  # ms; with less time left an upload goes back to the queue
STORE_S = 15  # s of the time left, to store the files of a checked model and to commit
KEY_CHARACTERS = 1024  # longest object key that S3 allows

# model, version, state; code and reason of a rejected version; key of an upload not begun
Summary = dict[str, Any]
Announced = tuple[Upload, Mapping[str, Any]]  # upload with the event that announces it alone


def _no_queue(_: Sequence[Mapping[str, Any]]) -> None:
    raise Unavailable("too little time left to begin another upload")


@dataclass(frozen=True, slots=True)
class RegisterHandler:
    """Lambda handler that registers each uploaded model of an event.

    An SQS batch is answered with `batchItemFailures`: the messages to deliver again. Any other
    event is answered with the versions it became, and raises if an upload has to be retried.
    Uploads for which too little time is left go to the queue, each as a message of its own: they
    wait for no neighbour, and their receives are counted anew.
    """

    registration: Registration
    logger: Logger
    metrics: Metrics
    bucket: str  # the only one whose uploads are registered
    note_failure: Callable[[Upload, Reason], None] = lambda *_: None
    note_ignored: Callable[[str, Reason, Source], None] = lambda *_: None
    note_part: Callable[[Source], None] = lambda _: None
    send: Callable[[Sequence[Mapping[str, Any]]], None] = _no_queue  # events to the queue
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
        """Register the uploads of an S3 event; return the versions' summaries.

        One that fails keeps none of the others from being registered.

        Raises:
            Exception: the first failure of an upload that is to be retried.
        """
        announced = self.announced_by(notification, origin)
        summaries: list[Summary] = []
        failures: list[Exception] = []
        for position, (upload, _) in enumerate(announced):
            left_ms = context.get_remaining_time_in_millis()
            if left_ms < RESERVE_MS:
                summaries += self.put_off(announced[position:])
                break
            self.before_upload(left_ms / 1000 - STORE_S)
            try:
                summary = self.register_upload(upload)
                summaries += [summary] if summary else []
            except Exception as error:  # logged by register_upload, and raised below
                failures.append(error)
        if failures:
            raise failures[0]
        return summaries

    def announced_by(self, notification: Mapping[str, Any], origin: str) -> list[Announced]:
        """Return the uploads that an S3 event announces; log malformed records."""
        announced: list[Announced] = []
        for event in single_events(notification):
            try:
                announced += [(upload, event) for upload in uploads_in(event)]
            except InvalidModel as error:
                self.logger.error("ignored: no upload event", reason=str(error), origin=origin)
                self.count("UploadsIgnored")
        return announced

    def put_off(self, announced: Sequence[Announced]) -> list[Summary]:
        """Requeue unstarted uploads to SQS, one message each.

        Return their keys as summaries.

        Raises:
            Unavailable: SQS failed; the uploads' own message has to be redelivered.
        """
        try:
            self.send([event for _, event in announced])
        except Unavailable as error:
            for upload, _ in announced:
                self.log_retry(upload, error)
            raise
        for upload, _ in announced:
            self.logger.info("not begun: queued again", **_log_fields(upload))
        return [{"key": upload.key, "state": "QUEUED"} for upload, _ in announced]

    def register_upload(self, upload: Upload) -> Summary | None:
        """Register one uploaded model and log the outcome.

        Return the version's summary; None if it became no version.

        Raises:
            Unavailable: a dependency failed; to be retried.
        """
        try:
            version = self.register_or_ignore(upload)
        except Unavailable as error:
            self.log_retry(upload, error)
            raise
        except Exception as error:  # a bug: the queue retries, then moves it to the dead letters
            self.log_bug(upload, error)
            raise
        finally:
            self.after_upload()
        return self.log_outcome(upload, version) if version else None

    def register_or_ignore(self, upload: Upload) -> Version | None:
        """Register an upload, or record the reason for ignoring it."""
        if upload.bucket != self.bucket:
            self.logger.error(
                "ignored: another bucket",
                reason=f"upload to {self.bucket}",
                **_log_fields(upload),
            )
            self.count("UploadsIgnored")
            return None
        if package_of(upload.key) and is_part(upload.key):
            self.note_part(_source(upload))
        try:
            version = self.registration.register(upload)
        except InvalidModel as error:
            reason = Reason(error.instance_code, str(error))
            self.note_ignored(upload.key, reason, _source(upload))
            fields = _log_fields(upload)
            self.logger.warning("ignored", code=reason.code, reason=reason.message, **fields)
            self.count("UploadsIgnored")
            return None
        if version is None:
            self.logger.info("nothing to register", **_log_fields(upload))
        return version

    def log_outcome(self, upload: Upload, version: Version) -> Summary:
        """Log a finished registration; return a summary of the model version."""
        summary = _summary(version)
        is_ready = version.state is State.READY
        self.logger.info("registered" if is_ready else "rejected", **summary, **_log_fields(upload))
        self.count("UploadsRegistered" if is_ready else "UploadsRejected")
        return summary

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


def _source(upload: Upload) -> Source:
    return Source(upload.bucket, upload.key, upload.version_id or "")


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
