"""Scopes and model-name patterns of access keys."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.core.access.grants import UNLIMITED, Grant, Scope, check_grant, matches
from functions.core.errors import InvalidRequest

NAMES = st.text("ab.-", min_size=1, max_size=12)


@given(st.text("ab.-*", min_size=1, max_size=8), NAMES)
def test_a_star_matches_any_characters(pattern: str, name: str) -> None:
    expression = re.escape(pattern).replace(r"\*", ".*")

    assert matches(pattern, name) == bool(re.fullmatch(expression, name))


def test_a_pattern_of_many_stars_takes_no_exponential_time() -> None:
    assert not matches("*a" * 64, "a" * 63 + "b" * 65)


@pytest.mark.parametrize(
    ("scopes", "permitted"),
    [
        ({Scope.READ}, {Scope.READ}),
        ({Scope.INFER}, {Scope.INFER, Scope.READ}),
        ({Scope.DEPLOY}, {Scope.DEPLOY, Scope.READ}),
        ({Scope.INFER, Scope.DEPLOY}, {Scope.INFER, Scope.DEPLOY, Scope.READ}),
        ({Scope.ADMIN}, set(Scope)),
    ],
)
def test_each_scope_includes_read_and_admin_includes_all(
    scopes: set[Scope], permitted: set[Scope]
) -> None:
    grant = Grant("id", frozenset(scopes), ("*",))

    assert {scope for scope in Scope if grant.allows(scope)} == permitted


def test_a_model_is_seen_by_any_of_the_patterns() -> None:
    grant = Grant("id", frozenset({Scope.READ}), ("digits", "fraud-*"))

    names = ["digits", "digits2", "fraud-eu", "fraud", "Digits"]
    assert [name for name in names if grant.sees(name)] == ["digits", "fraud-eu"]


def test_without_keys_everything_is_permitted() -> None:
    assert all(UNLIMITED.allows(scope) for scope in Scope)
    assert UNLIMITED.sees("any")


@pytest.mark.parametrize(
    ("scopes", "models", "text"),
    [
        (set(), ["*"], "scopes: empty"),
        ({Scope.READ}, [], "models: 0 patterns"),
        ({Scope.READ}, ["m"] * 51, "models: 51 patterns"),
        ({Scope.READ}, ["m", "a/b"], "models: 'a/b'"),
        ({Scope.READ}, [""], "models: ''"),
        ({Scope.READ}, ["m" * 129], "models: 'mmm"),
        ({Scope.READ}, ["m\n"], "models: 'm"),
        ({Scope.READ}, ["é"], "models: 'é'"),
        ({Scope.ADMIN}, ["m-*"], "models: a key with the scope admin"),
    ],
)
def test_a_wrong_grant_is_refused_with_its_field(
    scopes: set[Scope], models: list[str], text: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(text)):
        check_grant(frozenset(scopes), tuple(models))
