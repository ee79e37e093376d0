"""Write what a month costs into docs/operations.md and README.md.

    python -m scripts.costs

From functions/manage/prices.json, the template's resources and parameters, and three kinds of
usage.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functions.core.registry.reconciler import Limits
from functions.core.usage.prices import (
    DEFAULT_REGION,
    HOURS,
    MONTH_S,
    polls_usd,
    second_usd,
    started_usd,
)
from local.template import Template

PRICES, PAGE, README = (
    Path("functions/manage/prices.json"),
    Path("docs/operations.md"),
    Path("README.md"),
)
BEGIN, END = "<!-- begin: make costs -->\n", "<!-- end: make costs -->\n"
SENTENCE = re.compile(r"A month costs .*?(?= \(\[more\])")
GB = 1e9
LOG_BYTES = 1000  # bytes of log for a request: our line, and Lambda's START, END and REPORT
READ_BYTES_S = 70e6  # bytes a second that the reconciler reads and hashes
RECONCILE_S = 1.0  # s of a reconciler's run, without reading
REGISTER_S = 6.0  # s to register a model of 50 MB
COUNT_WRITES = 2  # write units for a request's counts, if each is written on its own
UPLOAD_WRITES = 30  # write units of the registry for an upload: records, indexes, audit
METRICS_OF_MODEL = 4  # by model and alias; see core/serving/request_log.py
SERVER = 45  # dollars a month of a small server with two CPUs
TOTAL_METRICS = 4  # the same in total, in hours with requests

Costs = dict[str, float]  # dollars a month by item


@dataclass(frozen=True)
class Usage:
    """Use of a stack in a month: models, uploads and requests."""

    title: str
    models: int
    requests: int = 0
    model_mb: int = 50
    uploads: int = 0
    warm_s: float = 0.010  # s of Lambda for a request
    cold_share: float = 0.02  # share of requests that start an environment
    cold_s: float = 1.0

    @property
    def stored_gb(self) -> float:
        """Size of uploads and compiled models together."""
        return 2 * self.models * self.model_mb / 1000


USAGES = (
    Usage("no requests", models=20),
    Usage("20 models, 100,000 requests", models=20, requests=100_000, uploads=20),
    Usage("200 models, 1,000,000 requests", models=200, requests=1_000_000, uploads=200),
)


@dataclass(frozen=True)
class Tariff:
    """Prices of AWS for a stack's template."""

    template: Template
    usd: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Processor of the stack's functions."""
        return str(self.template.parameters["Architecture"])

    def function_second(self, name: str) -> float:
        """Return what a second of a function costs, with its /tmp."""
        function = self.template.functions[name]
        return second_usd(self.usd, self.architecture, function.memory_mb, function.ephemeral_mb)

    def month(self, usage: Usage) -> Costs:
        """Return the cost of each item in a month."""
        return {
            "API Gateway": usage.requests * self.usd["api_request"],
            "Lambda: infer": self.infer(usage),
            "Lambda: register, reconcile": self.upkeep(usage),
            "S3": usage.stored_gb * self.usd["s3_gb_month"] + self.blob_reads(usage),
            "DynamoDB": self.registry(usage),
            "SQS: Lambda asks for uploads": polls_usd(self.usd),
            "logs": usage.requests * LOG_BYTES / GB * self.usd["log_gb"],
            f"{self.alarms()} alarms": self.alarms() * self.usd["alarm_month"],
            "metrics in total": (usage.requests > 0) * TOTAL_METRICS * self.usd["metric_month"],
        }

    def infer(self, usage: Usage) -> float:
        """Return the cost of requests and cold starts."""
        seconds = usage.requests * (usage.warm_s + usage.cold_share * usage.cold_s)
        calls = usage.requests * self.usd["lambda_request"]
        return float(calls + seconds * self.function_second("InferFunction"))

    def upkeep(self, usage: Usage) -> float:
        """Return the cost of registering uploads and of hourly reconciliation."""
        read_s = min(Limits().digest_bytes, usage.stored_gb / 2 * GB) / READ_BYTES_S
        reconcile_s = HOURS * (RECONCILE_S + read_s)
        registered = usage.uploads * REGISTER_S * self.function_second("RegisterFunction")
        return registered + reconcile_s * self.function_second("ReconcileFunction")

    def blob_reads(self, usage: Usage) -> float:
        """Return the cost of reading blobs from S3, 4 MB a request."""
        pieces = max(1, usage.model_mb / 4)
        loads = usage.requests * usage.cold_share * pieces + HOURS * usage.models
        return float(loads * self.usd["s3_get"] + usage.uploads * pieces * self.usd["s3_put"])

    def registry(self, usage: Usage) -> float:
        """Return the cost of the registry, with each request read and counted."""
        stored = usage.models * 20e3 / GB  # 20 KB of records for a model
        monthly = self.usd["dynamodb_gb_month"] + self.usd["dynamodb_recovery_gb_month"]
        reads = usage.requests + HOURS * usage.models
        writes = usage.uploads * UPLOAD_WRITES + usage.requests * COUNT_WRITES
        traffic = reads * self.usd["dynamodb_read"] + writes * self.usd["dynamodb_write"]
        return float(stored * monthly + traffic)

    def alarms(self) -> int:
        """Return the number of the stack's alarms."""
        return len(self.template.resources("AWS::CloudWatch::Alarm"))

    def model_metrics(self, usage: Usage) -> float:
        """Return the cost of own metrics for each model, called every hour."""
        return float(usage.models * METRICS_OF_MODEL * self.usd["metric_month"])

    def flood(self) -> float:
        """Return what requests at the throttle's rate cost all month, all refused."""
        requests = self.template.parameters["ThrottleRate"] * MONTH_S
        refused = Usage("", models=0, requests=requests, warm_s=0.002, cold_share=0.0)
        return sum(self.month(refused).values()) - sum(self.month(Usage("", models=0)).values())

    def request_million(self) -> float:
        """Return what a million warm requests cost."""
        usage = Usage("", models=0, requests=1_000_000, cold_share=0.0)
        return usage.requests * self.usd["api_request"] + self.infer(usage)

    def provisioned(self) -> float:
        """Return the cost of an environment of infer that is kept started."""
        memory_mb = self.template.functions["InferFunction"].memory_mb
        return started_usd(self.usd, self.architecture, memory_mb)

    def restores(self, starts: int) -> float:
        """Return what starts of infer from a snapshot cost."""
        gb = self.template.functions["InferFunction"].memory_mb / 1024
        return float(starts * gb * self.usd["snapshot_restored_gb"])

    def snapshot(self) -> float:
        """Return the cost of one version's snapshot for a month."""
        gb = self.template.functions["InferFunction"].memory_mb / 1024
        return float(gb * MONTH_S * self.usd["snapshot_gb_second"])


def tariff() -> Tariff:
    """Return the prices for the template with its defaults."""
    return Tariff(
        Template.load("template.yaml"), json.loads(PRICES.read_text())["regions"][DEFAULT_REGION]
    )


def dollars(amount: float) -> str:
    """Format dollars with two places, from ten on with none.

    >>> dollars(1.234), dollars(12.5), dollars(0.001), dollars(0)
    ('$1.23', '$12', '< $0.01', '0')
    """
    if not amount:
        return "0"
    if amount < 0.005:
        return "< $0.01"
    return f"${amount:.2f}" if amount < 10 else f"${amount:,.0f}"


def table(prices: Tariff) -> str:
    """Return the table of costs and the sentences below it, in Markdown."""
    months = [prices.month(usage) for usage in USAGES]
    rows = [[item, *(dollars(month[item]) for month in months)] for item in months[0]]
    total = ["**a month**", *(f"**{dollars(sum(month.values()))}**" for month in months)]
    metrics = [dollars(prices.model_metrics(usage)) for usage in USAGES]
    extra = ["metrics of every model (`ModelMetrics`), on top", "0", *metrics[1:]]
    head = ["", *(usage.title for usage in USAGES)]
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, [*rows, total, extra])]
    return "\n".join([*lines, "", sentences(prices)]) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sentences(prices: Tariff) -> str:
    """Return what the table does not show, as a list in Markdown."""
    million = prices.request_million()
    cheaper_from = SERVER / million * 1e6 / MONTH_S
    rate = prices.template.parameters["ThrottleRate"]
    flood, started = dollars(prices.flood()), dollars(prices.provisioned())
    snapshot, restores = dollars(prices.snapshot()), dollars(prices.restores(1000))
    return "\n".join(
        [
            f"- A million warm requests of 10 ms cost {dollars(million)}. A server for ${SERVER} a",
            f"  month is cheaper from {cheaper_from:.0f} requests per second on.",
            f"- {rate} requests a second (`ThrottleRate`) that the function refuses all month cost",
            f"  {flood}. With `Auth=iam`, API Gateway refuses unsigned ones free of charge.",
            "- An environment that is kept started (`ProvisionedConcurrency`) costs",
            f"  {started} a month. SnapStart costs {snapshot} a month for each kept version of",
            f"  infer, and {restores} for 1,000 starts.",
        ]
    )


def sentence(prices: Tariff) -> str:
    """Return README's sentence about costs."""
    idle, some, _ = (dollars(sum(prices.month(usage).values())) for usage in USAGES)
    return f"A month costs {idle} without requests, {some} with 20 models and 100,000 requests"


def written(page: str, prices: Tariff) -> str:
    """Return docs/operations.md with the costs of today's template."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table(prices) + END + rest.split(END)[1]


def main() -> None:
    """Write both pages."""
    prices = tariff()
    PAGE.write_text(written(PAGE.read_text(), prices))
    README.write_text(SENTENCE.sub(sentence(prices), README.read_text()))


if __name__ == "__main__":
    main()
