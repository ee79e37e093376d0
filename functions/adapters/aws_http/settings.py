"""Where the services are and who asks, by the variables that Lambda and the AWS SDKs share"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from functions.adapters.aws_http.connection import Endpoint, Trust
from functions.adapters.aws_http.credentials import EnvironmentCredentials
from functions.adapters.aws_http.sigv4 import Credentials

_SUFFIXES = {"cn-": "amazonaws.com.cn"}  # by the beginning of a region
_SERVICES = {"s3": "AWS_ENDPOINT_URL_S3", "dynamodb": "AWS_ENDPOINT_URL_DYNAMODB"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What all clients of one process share. `credentials` are asked for at each signature, because they rotate."""

    region: str
    configured: Mapping[str, str]  # service → URL of an endpoint that is not AWS's own
    credentials: Callable[[], Credentials]
    trust: Trust

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Settings":
        """
        >>> Settings.of({"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"}).region
        'eu-west-1'

        Raises:
            LookupError: a variable is missing or wrong.
        """
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        if not region:
            raise LookupError("neither AWS_REGION nor AWS_DEFAULT_REGION is set; Lambda sets both")

        ignored = environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        urls = {
            name: environment.get(own) or environment.get("AWS_ENDPOINT_URL")
            for name, own in _SERVICES.items()
        }
        configured = {} if ignored else {name: url for name, url in urls.items() if url}
        for url in configured.values():
            Endpoint.of(url)
        trust = Trust(environment.get("AWS_CA_BUNDLE") or None)
        return cls(region, configured, EnvironmentCredentials(environment, trust), trust)

    def endpoint(self, service: str) -> Endpoint:
        return Endpoint.of(
            self.configured.get(service) or f"https://{service}.{self.region}.{self._suffix}"
        )

    def bucket(self, name: str) -> tuple[Endpoint, str]:
        """Where a bucket is, and what comes before its keys: in the host name where certificates and AWS allow it."""
        if "s3" in self.configured or "." in name:
            return self.endpoint("s3"), f"/{name}"
        return Endpoint.of(f"https://{name}.s3.{self.region}.{self._suffix}"), ""

    @property
    def _suffix(self) -> str:
        return next(
            (suffix for start, suffix in _SUFFIXES.items() if self.region.startswith(start)),
            "amazonaws.com",
        )
