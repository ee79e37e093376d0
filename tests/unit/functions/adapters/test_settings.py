"""Addresses of AWS services, from the environment variables of the AWS SDKs."""

import pytest

from functions.adapters.aws_http.endpoint import Endpoint
from functions.adapters.aws_http.settings import Settings

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def of(**environment: str) -> Settings:
    return Settings.from_environment({**KEYS, "AWS_REGION": "eu-west-1", **environment})


@pytest.mark.parametrize(
    ("environment", "s3", "dynamodb"),
    [
        ({}, "s3.eu-west-1.amazonaws.com", "dynamodb.eu-west-1.amazonaws.com"),
        (
            {"AWS_REGION": "cn-north-1"},
            "s3.cn-north-1.amazonaws.com.cn",
            "dynamodb.cn-north-1.amazonaws.com.cn",
        ),
        (
            {"AWS_DEFAULT_REGION": "us-west-2"},
            "s3.eu-west-1.amazonaws.com",
            "dynamodb.eu-west-1.amazonaws.com",
        ),
        (
            {"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-west-2"},
            "s3.us-west-2.amazonaws.com",
            "dynamodb.us-west-2.amazonaws.com",
        ),
        ({"AWS_ENDPOINT_URL": "http://h:1"}, "h:1", "h:1"),
        ({"AWS_ENDPOINT_URL": "http://h:1", "AWS_ENDPOINT_URL_S3": "https://o"}, "o", "h:1"),
        (
            {"AWS_ENDPOINT_URL_DYNAMODB": "http://[::1]:2/x/"},
            "s3.eu-west-1.amazonaws.com",
            "[::1]:2",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://h:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "s3.eu-west-1.amazonaws.com",
            "dynamodb.eu-west-1.amazonaws.com",
        ),
    ],
)
def test_the_address_of_a_service(environment: dict[str, str], s3: str, dynamodb: str) -> None:
    settings = of(**environment)

    assert settings.endpoint("s3").authority == s3
    assert settings.endpoint("dynamodb").authority == dynamodb


@pytest.mark.parametrize(
    ("environment", "bucket", "expected"),
    [
        ({}, "models-1", (Endpoint("models-1.s3.eu-west-1.amazonaws.com", 443, tls=True), "")),
        (
            {},
            "models.example",
            (Endpoint("s3.eu-west-1.amazonaws.com", 443, tls=True), "/models.example"),
        ),
        (
            {"AWS_ENDPOINT_URL_S3": "http://h:1/p"},
            "models-1",
            (Endpoint("h", 1, tls=False, path="/p"), "/models-1"),
        ),
    ],
    ids=["in the host name", "no certificate is for a dot", "a server of one's own"],
)
def test_the_address_of_a_bucket(
    environment: dict[str, str], bucket: str, expected: object
) -> None:
    assert of(**environment).bucket(bucket) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_REGION": ""}, "neither AWS_REGION nor AWS_DEFAULT_REGION is set"),
        ({"AWS_ACCESS_KEY_ID": ""}, "no AWS credentials: AWS_ACCESS_KEY_ID is not set"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "no AWS credentials: AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_ENDPOINT_URL": "ftp://h"}, "'ftp://h' is no endpoint"),
        ({"AWS_ENDPOINT_URL_S3": "localhost:8081"}, "'localhost:8081' is no endpoint"),
        ({"AWS_ENDPOINT_URL_S3": "http://h/?a=b"}, "is no endpoint"),
        ({"AWS_ENDPOINT_URL_S3": "http://user@h"}, "is no endpoint"),
        ({"AWS_ENDPOINT_URL_S3": "http://h:port"}, "is no endpoint"),
        ({"AWS_ENDPOINT_URL_S3": "http://:80"}, "is no endpoint"),
    ],
)
def test_missing_and_malformed_settings_are_named(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(LookupError, match=message.replace("?", r"\?")):
        of(**environment)
