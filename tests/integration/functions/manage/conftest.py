"""Manage function as Lambda starts it, over moto."""

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.data_plane import Client, Context


@pytest.fixture
def manage(
    function_environment: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """Import functions.manage.main anew."""
    sys.modules.pop("functions.manage.main", None)
    for name, value in function_environment["ManageFunction"].items():
        monkeypatch.setenv(name, value)
    yield importlib.import_module("functions.manage.main")
    sys.modules.pop("functions.manage.main", None)
    # Powertools' logger keeps the stream of its first test otherwise.
    logging.Logger.manager.loggerDict.pop("manage", None)


@pytest.fixture
def client(manage: ModuleType) -> Client:
    return Client(manage.lambda_handler)


@pytest.fixture
def admin(manage: ModuleType) -> dict[str, str]:
    """Return the headers of an administrator."""
    event = {"operation": "create-key", "name": "admin", "scopes": ["admin"]}
    return {"x-api-key": manage.lambda_handler(event, Context())["key"]}
