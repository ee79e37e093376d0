"""Fixture of the tests of OpenAI's API: an environment with a decoder named `tiny`."""

from pathlib import Path

import pytest

from tests.unit.functions.openai.plane import LanguagePlane


@pytest.fixture
def plane(tmp_path: Path) -> LanguagePlane:
    plane = LanguagePlane(tmp_path)
    plane.add("tiny")
    return plane
