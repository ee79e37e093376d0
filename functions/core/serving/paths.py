"""URL path patterns of the API, and choice of the requested version.

Apart from routing.py because prefetch.py needs them before the rest of the service is imported.
"""

import re
from collections.abc import Mapping
from functools import cache

from functions.core.names import parse_reference

ROOT = "/v2"
INFER = "/v2/models/{model}[/versions/{version}]/infer"
VERSION_HEADER = "x-model-version"
USER_HEADER = "x-mayfly-user"  # keeps a caller's user on one side of a split

_SYMBOLS = (("{", "(?P<"), ("}", ">[^/]+)"), ("[", "(?:"), ("]", ")?"), ("*", ".*"))


@cache  # compiled at first use: all routes together take 2 ms of a cold start
def compile_path(pattern: str) -> re.Pattern[str]:
    """Compile a URL path pattern such as /v2/models/{model} to a regex.

    {name} is one segment, [...] is optional, * is anything. A trailing slash is allowed.

    >>> compile_path(INFER).fullmatch("/v2/models/digits/versions/prod/infer")["version"]
    'prod'
    """
    expression = re.escape(pattern)
    for symbol, replacement in _SYMBOLS:
        expression = expression.replace(re.escape(symbol), replacement)
    return re.compile(expression + "/?", re.DOTALL)


def requested_version(
    path_version: str | None, headers: Mapping[str, str], query: Mapping[str, str]
) -> int | str | None:
    """Read the requested version number or alias from path, header or query.

    None stands for the default alias. The path comes before the header x-model-version, and that
    before the query ?version=; all that are given have to be right.

    Raises:
        InvalidRequest: one is neither a number nor an alias.
    """
    reference = None
    for text in (query.get("version"), headers.get(VERSION_HEADER), path_version):
        if text:
            reference = parse_reference(text)
    return reference
