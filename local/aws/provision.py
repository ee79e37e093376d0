"""Create the template's buckets, queues, tables and state machines with boto3."""

import json
import re
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from local.cloudformation import REGION
from local.template import Template

TABLE_KEYS = (
    "AttributeDefinitions", "KeySchema", "BillingMode", "ProvisionedThroughput",
    "GlobalSecondaryIndexes", "LocalSecondaryIndexes", "StreamSpecification",
)  # fmt: skip
QUEUE_KEYS = (
    "VisibilityTimeout", "MessageRetentionPeriod", "MaximumMessageSize",
    "DelaySeconds", "ReceiveMessageWaitTimeSeconds", "SqsManagedSseEnabled",
)  # fmt: skip


def local_session() -> Any:
    """Return a boto3 session with placeholder credentials, for moto."""
    return boto3.Session(
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 (a placeholder)
        region_name=REGION,
    )


@dataclass(frozen=True, slots=True)
class Deployed:
    """Provisioned stack: template with resolved references, outputs and function variables."""

    template: Template
    outputs: dict[str, str]
    environment: dict[str, dict[str, str]]  # variables by function


def provision(
    template: Template, session: Any, endpoint_url: str | None = None, api_origin: str | None = None
) -> Deployed:
    """Create the template's queues, tables, buckets and state machines; return its outputs.

    `session` is a boto3.Session. `api_origin`, e.g. http://127.0.0.1:8080, replaces the API's host
    in the outputs. Bucket policies, encryption, lifecycles and alarms are skipped; moto ignores
    them.
    """
    # No proxies: HTTP_PROXY is not for loopback.
    config = Config(proxies={}, retries={"total_max_attempts": 2})

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=endpoint_url, config=config)

    queue_urls = make_queues(template, client("sqs"))
    template = template.with_references(queue_urls)
    make_tables(template, client("dynamodb"))
    make_buckets(template, client("s3"))
    make_state_machines(template, client("stepfunctions"))
    outputs = dict(template.outputs)
    if api_origin is not None and template.api is not None:
        pattern = rf"^https://{re.escape(template.api.id)}\.execute-api\.[^/]+"
        outputs = {name: re.sub(pattern, api_origin, value) for name, value in outputs.items()}
    return Deployed(
        template,
        outputs,
        {name: dict(function.environment) for name, function in template.functions.items()},
    )


def make_queues(template: Template, sqs: Any) -> dict[str, str]:
    """Create the template's SQS queues; return their URLs by logical id."""
    urls = {}
    for name in template.resources("AWS::SQS::Queue"):
        properties = template.properties(name)
        attributes = {key: _attribute(properties[key]) for key in QUEUE_KEYS if key in properties}
        queue = sqs.create_queue(QueueName=template.physical_name(name), Attributes=attributes)
        urls[name] = str(queue["QueueUrl"])
    for name, url in urls.items():  # last, because the dead-letter queue has to exist
        if "RedrivePolicy" in (properties := template.properties(name)):
            sqs.set_queue_attributes(
                QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(properties["RedrivePolicy"])}
            )
    return urls


def make_tables(template: Template, dynamodb: Any) -> None:
    """Create the template's DynamoDB tables."""
    for name in template.resources("AWS::DynamoDB::Table"):
        properties = template.properties(name)
        table = template.physical_name(name)
        arguments = {key: properties[key] for key in TABLE_KEYS if key in properties}
        if "StreamSpecification" in arguments:
            arguments["StreamSpecification"] = {
                "StreamEnabled": True,
                **arguments["StreamSpecification"],
            }
        dynamodb.create_table(TableName=table, **arguments)
        if "TimeToLiveSpecification" in properties:
            dynamodb.update_time_to_live(
                TableName=table, TimeToLiveSpecification=properties["TimeToLiveSpecification"]
            )


def make_buckets(template: Template, s3: Any) -> None:
    """Create the template's S3 buckets with versioning and notifications."""
    for name in template.resources("AWS::S3::Bucket"):
        properties = template.properties(name)
        bucket = template.physical_name(name)
        s3.create_bucket(Bucket=bucket)
        if "VersioningConfiguration" in properties:
            s3.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration=properties["VersioningConfiguration"]
            )
        if "PublicAccessBlockConfiguration" in properties:
            s3.put_public_access_block(
                Bucket=bucket,
                PublicAccessBlockConfiguration=properties["PublicAccessBlockConfiguration"],
            )
        if notifications := queue_notifications(properties):
            s3.put_bucket_notification_configuration(
                Bucket=bucket, NotificationConfiguration={"QueueConfigurations": notifications}
            )


def make_state_machines(template: Template, stepfunctions: Any) -> None:
    """Create the template's Step Functions state machines."""
    for name in template.resources("AWS::Serverless::StateMachine"):
        properties = template.properties(name)
        stepfunctions.create_state_machine(
            name=template.physical_name(name),
            definition=json.dumps(properties["Definition"]),
            roleArn=properties["Role"],
            type=properties.get("Type", "STANDARD"),
        )


def queue_notifications(bucket_properties: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert CloudFormation's bucket notifications to the S3 API's format."""
    configurations = (bucket_properties.get("NotificationConfiguration") or {}).get(
        "QueueConfigurations"
    ) or ()
    notifications = []
    for configuration in configurations:
        notification = {"QueueArn": configuration["Queue"], "Events": [configuration["Event"]]}
        if rules := configuration.get("Filter", {}).get("S3Key", {}).get("Rules"):
            notification["Filter"] = {"Key": {"FilterRules": rules}}
        notifications.append(notification)
    return notifications


def _attribute(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
