"""Costs of a month: pages as computed from today's template, and what changes them."""

from dataclasses import replace
from pathlib import Path

import pytest

from functions.core.usage.prices import ALARMS
from local.template import Template
from scripts.costs import PAGE, README, USAGES, Tariff, sentence, tariff, written

IDLE, SOME, MANY = USAGES


@pytest.fixture
def prices() -> Tariff:
    return tariff()


def test_the_idle_stack_has_the_alarms_of_the_template(prices: Tariff) -> None:
    assert prices.alarms() == ALARMS


def test_the_pages_have_the_costs_of_todays_template(prices: Tariff) -> None:
    assert written(PAGE.read_text(), prices) == PAGE.read_text(), "run `make costs`"
    assert sentence(prices) in README.read_text(), "run `make costs`"


def test_an_idle_stack_costs_neither_requests_nor_metrics(prices: Tariff) -> None:
    month = prices.month(IDLE)

    assert {item for item, cost in month.items() if not cost} == {
        *("API Gateway", "Lambda: infer", "logs", "metrics in total")
    }
    alarms = len(prices.template.resources("AWS::CloudWatch::Alarm"))
    assert month[f"{alarms} alarms"] == pytest.approx(0.10 * alarms)


def test_a_hundred_thousand_requests_cost_what_the_price_pages_say(prices: Tariff) -> None:
    month = prices.month(SOME)

    assert month["API Gateway"] == pytest.approx(0.35)
    # 100,000 warm ones of 10 ms, 2,000 cold ones of 1 s, at 3,008 MB
    seconds = 100_000 * 0.01 + 2_000
    gb_seconds = seconds * 3008 / 1024
    assert month["Lambda: infer"] == pytest.approx(gb_seconds * 1.66667e-5 + 0.02, rel=0.01)


def test_each_kind_of_usage_costs_more_than_the_one_before(prices: Tariff) -> None:
    idle, some, many = (prices.month(usage) for usage in USAGES)

    for item in idle:
        assert idle[item] <= some[item] <= many[item], item


def test_reading_blobs_again_is_bounded(prices: Tariff) -> None:
    a_tenth, all_of_them = (
        prices.upkeep(replace(IDLE, models=models)) for models in (1_000, 10_000)
    )

    assert a_tenth == all_of_them


def test_arm_costs_a_fifth_less_by_the_second(prices: Tariff) -> None:
    arm = Tariff(Template.load("template.yaml", {"Architecture": "arm64"}), prices.usd)

    ratio = arm.function_second("InferFunction") / prices.function_second("InferFunction")
    assert ratio == pytest.approx(0.8, abs=0.01)


def test_metrics_by_model_cost_more_than_all_else(prices: Tariff) -> None:
    # the reason why they are off by default
    assert prices.model_metrics(SOME) > sum(prices.month(SOME).values())


def test_the_page_is_written_between_its_marks(prices: Tariff) -> None:
    page = "a\n<!-- begin: make costs -->\nold\n<!-- end: make costs -->\nb\n"

    text = written(page, prices)

    assert text.startswith("a\n<!-- begin")
    assert text.endswith("make costs -->\nb\n")
    assert "old" not in text
    assert Path("functions/manage/prices.json").is_file()
