"""Costs of requests and of an idle stack, from prices.

The table is `functions/manage/prices.json`: prices by region, without free tiers, taxes and data
sent out of AWS.
"""

from collections.abc import Mapping
from typing import Any

from functions.core.records import record
from functions.core.usage.counters import Counters

MONTH_S, HOURS = 730 * 3600, 730
POLLS_MINUTE = 15  # requests of Lambda to an idle queue: 5 pollers, each waits 20 s
ALARMS = 18  # in template.yaml
DEFAULT_REGION = "us-east-1"  # for a region without prices in the table

Usd = Mapping[str, Any]  # prices of a region, in dollars


@record
class Tariff:
    """Prices of the infer function, in dollars."""

    region: str
    architecture: str
    memory_mb: int
    request_usd: float  # gateway and Lambda
    second_usd: float  # memory and /tmp
    idle_month_usd: float  # alarms, polls of the queue, environments that are kept started

    def cost_usd(self, counters: Counters) -> float:
        """Return what the counted requests cost."""
        return counters.requests * self.request_usd + counters.ms / 1000 * self.second_usd


def second_usd(usd: Usd, architecture: str, memory_mb: int, tmp_mb: int) -> float:
    """Return the price of a function's second, with its /tmp."""
    memory = memory_mb / 1024 * usd["lambda_gb_second"][architecture]
    return float(memory + (tmp_mb - 512) / 1024 * usd["lambda_tmp_gb_second"])


def request_usd(usd: Usd) -> float:
    """Return the price of a request, without its seconds."""
    return float(usd["api_request"] + usd["lambda_request"])


def polls_usd(usd: Usd) -> float:
    """Return the monthly price of Lambda's polls of the idle queue."""
    return float(POLLS_MINUTE * 60 * HOURS * usd["sqs_request"])


def started_usd(usd: Usd, architecture: str, memory_mb: int) -> float:
    """Return the monthly price of an environment that is kept started."""
    return float(memory_mb / 1024 * MONTH_S * usd["provisioned_gb_second"][architecture])


def make_tariff(
    table: Mapping[str, Any],
    region: str,
    architecture: str,
    *,
    memory_mb: int,
    tmp_mb: int,
    provisioned: int,
) -> Tariff:
    """Return the prices of an infer function with this memory and /tmp.

    `provisioned` is the number of environments that are kept started.
    """
    if region not in table["regions"]:
        region = DEFAULT_REGION
    usd = table["regions"][region]
    started = provisioned * started_usd(usd, architecture, memory_mb)
    idle = ALARMS * usd["alarm_month"] + polls_usd(usd) + started
    seconds = second_usd(usd, architecture, memory_mb, tmp_mb)
    return Tariff(region, architecture, memory_mb, request_usd(usd), seconds, idle)
