"""JSON documents about usage."""

from pydantic import Field

from functions.manage.documents.base import ReplyDocument


class LatencyDocument(ReplyDocument):
    """Quantiles of latency, from event to reply; at most 25 % off."""

    p50: float | None
    p90: float | None
    p99: float | None


class CountsDocument(ReplyDocument):
    """Sums over requests that came to a version."""

    requests: int
    errors: int = Field(description="Requests with a status of 5xx.")
    refused: int = Field(description="Requests with a status of 4xx.")
    inferences: int = Field(description="Rows of the requests that were answered.")
    shadowed: int = Field(description="Copies of requests that a shadow version ran.")
    cold_starts: int = Field(description="Requests that waited for an environment or a model.")
    ms: int = Field(description="Milliseconds of Lambda, starts of environments included.")
    bytes_in: int
    bytes_out: int
    tokens_in: int
    tokens_out: int
    latency_ms: LatencyDocument
    cost_usd: float = Field(description="Gateway, requests and seconds, by list prices.")
    cost_usd_per_1000: float | None = Field(description="Cost of a thousand requests.")


class UsageRow(CountsDocument):
    """Sums of one group; the fields of other groups are null."""

    model: str | None = None
    version: int | None = None
    alias: str | None = Field(default=None, description="Empty for requests by version.")
    key: str | None = Field(default=None, description="Id of a key; empty for requests without.")
    hour: str | None = Field(default=None, description="Hour in UTC, e.g. 2026-11-22T08.")
    day: str | None = Field(default=None, description="Day in UTC, e.g. 2026-11-22.")


class PricesDocument(ReplyDocument):
    """Prices that the costs were computed with, in dollars."""

    region: str = Field(description="Region of the prices; us-east-1 if yours is not in the table.")
    architecture: str
    memory_mb: int
    request_usd: float
    second_usd: float
    idle_month_usd: float = Field(
        description="A month without requests: alarms, polls of the queue, started environments."
    )


class UsageDocument(ReplyDocument):
    """Usage from a first to a last day, both included, in UTC."""

    from_day: str
    to_day: str
    by: str
    rows: list[UsageRow]
    total: CountsDocument
    prices: PricesDocument
    delay_seconds: float = Field(
        description="Seconds between an environment's writes: what it counted since its last one "
        "follows with its next request, and is lost if there is none."
    )
