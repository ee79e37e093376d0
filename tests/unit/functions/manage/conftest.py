"""Control plane in memory, with an administrator's key."""

import pytest

from tests.unit.functions.manage.client import Admin


@pytest.fixture
def admin() -> Admin:
    return Admin()
