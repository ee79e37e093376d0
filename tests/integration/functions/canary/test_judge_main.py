"""The judge's main.py over moto, with the event that the state machine sends."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data_plane import Context

EVENT = json.loads(Path("events/states_judge_canary.json").read_text())


@pytest.mark.usefixtures("function_environment")
def test_a_canary_that_is_over_ends_its_execution() -> None:
    handler: Any = importlib.import_module("functions.judge.main").lambda_handler

    assert handler(EVENT, Context()) == {
        **EVENT,
        "continues": False,
        "verdict": "it is not stored yet, or over",
        "lost_since": "",
    }
