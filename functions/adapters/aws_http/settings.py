"""AWS region, endpoints and credentials from the SDKs' standard environment variables."""

from collections.abc import Callable, Mapping

from functions.adapters.aws_http.credentials import EnvironmentCredentials
from functions.adapters.aws_http.endpoint import Endpoint, Trust
from functions.adapters.aws_http.sigv4 import Credentials
from functions.core.records import record

_DOMAINS = {"cn-": "amazonaws.com.cn"}  # by a region's first letters; default: amazonaws.com
_SERVICES = {"s3": "AWS_ENDPOINT_URL_S3", "dynamodb": "AWS_ENDPOINT_URL_DYNAMODB"}


@record
class Settings:
    """AWS settings of a process: region, endpoints, credentials, certificate authorities."""

    region: str
    configured: Mapping[str, str]  # service → URL that replaces AWS's own endpoint
    credentials: Callable[[], Credentials]  # called for each signature, because they rotate
    trust: Trust

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read AWS region, endpoints and credentials from environment variables.

        >>> keys = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"}
        >>> Settings.from_environment({"AWS_REGION": "eu-west-1", **keys}).region
        'eu-west-1'

        Raises:
            LookupError: a variable is missing or wrong.
        """
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        if not region:
            raise LookupError("neither AWS_REGION nor AWS_DEFAULT_REGION is set; Lambda sets both")
        trust = Trust(environment.get("AWS_CA_BUNDLE") or None)
        credentials = EnvironmentCredentials(environment, trust)
        return cls(region, _configured_endpoints(environment), credentials, trust)

    def endpoint(self, service: str) -> Endpoint:
        """Return the endpoint of an AWS service such as DynamoDB."""
        url = self.configured.get(service) or f"https://{service}.{self.region}.{self._domain}"
        return Endpoint.parse(url)

    def bucket(self, name: str) -> tuple[Endpoint, str]:
        """Return an S3 bucket's endpoint and the path before its keys.

        The bucket is part of the host name unless the endpoint is configured or, because of a
        dot, AWS's certificate would not match.
        """
        if "s3" in self.configured or "." in name:
            return self.endpoint("s3"), f"/{name}"
        return Endpoint.parse(f"https://{name}.s3.{self.region}.{self._domain}"), ""

    @property
    def _domain(self) -> str:
        for start, domain in _DOMAINS.items():
            if self.region.startswith(start):
                return domain
        return "amazonaws.com"


def _configured_endpoints(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the configured endpoint URLs by AWS service, checked for validity.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
    """
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return {}
    configured = {}
    for service, variable in _SERVICES.items():
        url = environment.get(variable) or environment.get("AWS_ENDPOINT_URL")
        if url:
            Endpoint.parse(url)
            configured[service] = url
    return configured
