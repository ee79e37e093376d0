"""Routes of requests, and the versions that they name."""

import pytest

from functions.core.errors import InvalidRequest, MethodNotAllowed, PathNotFound
from functions.core.serving.paths import requested_version
from functions.core.serving.routing import match


@pytest.mark.parametrize(
    ("method", "path", "name", "model", "version"),
    [
        ("GET", "/v2", "server_metadata", "", None),
        ("HEAD", "/v2", "server_metadata", "", None),
        ("HEAD", "/v2/health/live", "live", "", None),
        ("HEAD", "/v2/models/digits/versions/7/ready", "model_ready", "digits", "7"),
        ("GET", "/v2/", "server_metadata", "", None),
        ("GET", "/v2/health/live", "live", "", None),
        ("GET", "/v2/health/ready", "ready", "", None),
        ("GET", "/v2/models", "models", "", None),
        ("GET", "/v2/models/", "models", "", None),
        ("GET", "/v2/models/digits", "model_metadata", "digits", None),
        ("GET", "/v2/models/digits/", "model_metadata", "digits", None),
        ("GET", "/v2/models/digits/versions/7", "model_metadata", "digits", "7"),
        ("GET", "/v2/models/digits/versions/prod/", "model_metadata", "digits", "prod"),
        ("GET", "/v2/models/digits/ready", "model_ready", "digits", None),
        ("GET", "/v2/models/digits/versions/7/ready", "model_ready", "digits", "7"),
        ("GET", "/v2/models/digits/config", "model_config", "digits", None),
        ("GET", "/v2/models/digits/versions/7/config", "model_config", "digits", "7"),
        ("GET", "/v2/models/digits/stats", "model_statistics", "digits", None),
        ("GET", "/v2/models/digits/versions/7/stats", "model_statistics", "digits", "7"),
        ("GET", "/v2/models/stats", "statistics", "", None),
        ("POST", "/v2/models/digits/infer", "infer", "digits", None),
        ("POST", "/v2/models/digits/versions/prod/infer", "infer", "digits", "prod"),
        ("POST", "/v2/repository/index", "index", "", None),
        ("POST", "/v2/repository/models/digits/load", "load", "digits", None),
        ("POST", "/v2/repository/models/digits/unload", "unload", "digits", None),
        ("POST", "/v2/models/digits/generate", "not_offered", "digits", None),
        ("POST", "/v2/models/digits/versions/1/generate_stream", "not_offered", "digits", "1"),
        ("GET", "/v2/systemsharedmemory/status", "not_offered", "", None),
        ("POST", "/v2/cudasharedmemory/region/r/register", "not_offered", "", None),
        ("GET", "/v2/trace/setting", "not_offered", "", None),
        ("POST", "/v2/models/digits/trace/setting", "not_offered", "digits", None),
        ("GET", "/v2/logging", "not_offered", "", None),
    ],
)
def test_a_path_has_one_route(
    method: str, path: str, name: str, model: str, version: str | None
) -> None:
    route = match(method, path)

    assert (route.name, route.model, route.version) == (name, model, version)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/nothing", "/v2/models//infer", "/v2/models/a/b", "/v20", "/v2//", ""]
)
def test_any_other_path_is_not_found(path: str) -> None:
    with pytest.raises(PathNotFound, match="the API is under /v2"):
        match("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v2/models/digits", ("GET", "HEAD")),
        ("GET", "/v2/models/digits/infer", ("POST",)),
        ("HEAD", "/v2/models/digits/infer", ("POST",)),
        ("DELETE", "/v2/repository/models/digits/load", ("POST",)),
        ("PUT", "/v2/models/stats", ("GET", "HEAD")),
    ],
)
def test_a_wrong_method_is_refused_with_the_allowed_ones(
    method: str, path: str, allow: tuple[str, ...]
) -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        match(method, path)

    assert refused.value.allow == allow


def test_a_model_called_stats_has_all_paths_but_one() -> None:
    assert match("GET", "/v2/models/stats").name == "statistics"
    assert match("GET", "/v2/models/stats/versions/prod").model == "stats"
    assert match("GET", "/v2/models/stats/ready").model == "stats"
    assert match("GET", "/v2/models/stats/stats").name == "model_statistics"
    assert match("POST", "/v2/models/stats/infer").model == "stats"


def test_a_model_may_have_the_name_of_a_path_segment() -> None:
    for name in ("versions", "infer", "ready", "config", "models"):
        assert match("POST", f"/v2/models/{name}/infer").model == name
        assert match("GET", f"/v2/models/{name}/versions/{name}/ready").version == name


@pytest.mark.parametrize(
    ("path", "header", "query", "expected"),
    [
        ("/v2/models/m/versions/1/infer", "2", "3", 1),
        ("/v2/models/m/infer", "2", "3", 2),
        ("/v2/models/m/infer", None, "staging", "staging"),
        ("/v2/models/m/infer", None, None, None),
        ("/v2/models/m/infer", "", "", None),
    ],
)
def test_a_version_in_the_path_precedes_header_and_query(
    path: str, header: str | None, query: str | None, expected: int | str | None
) -> None:
    headers = {} if header is None else {"x-model-version": header}
    query_parameters = {} if query is None else {"version": query}

    version = match("POST", path).version
    assert requested_version(version, headers, query_parameters) == expected


@pytest.mark.parametrize("text", ["0", "07", "-1", "1.0", "Prod", "a b", "\u0667"])
def test_a_version_is_a_number_or_an_alias(text: str) -> None:
    with pytest.raises(InvalidRequest, match="neither a number"):
        requested_version(match("POST", f"/v2/models/m/versions/{text}/infer").version, {}, {})
    for version, header in (("1", {}), (None, {"x-model-version": "1"})):  # one that does not count
        with pytest.raises(InvalidRequest, match="neither a number"):
            requested_version(version, header, {"version": text})
