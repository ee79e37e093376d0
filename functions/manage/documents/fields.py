"""Types of parameters and fields that the documents of many resources share."""

from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from pydantic import Field

from functions.manage.documents.base import Limit

NOTE_LENGTH = 1000  # characters of a person's remark
VERSION_MAX = 9_999_999_999  # ten digits in the registry's keys

ModelName = Annotated[
    str,
    Path(
        description="Model, e.g. digits.",
        pattern="^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$",
    ),
]
AliasName = Annotated[
    str,
    Path(description="Alias, e.g. prod.", pattern="^[a-z]([a-z0-9._-]{0,126}[a-z0-9])?$"),
]
Number = Annotated[int, Field(ge=1, le=VERSION_MAX, description="Version, e.g. 7.")]
PathNumber = Annotated[int, Path(ge=1, le=VERSION_MAX, description="Version, e.g. 7.")]
PageLimit = Annotated[Limit, Query(description="Items in the reply.")]
Cursor = Annotated[str, Query(description="next_cursor of the page before.", max_length=2000)]
ExpectedRevision = Annotated[
    int | None,
    Field(ge=0, description="Revision that the caller saw: another one is answered 409."),
]
Note = Annotated[str, Field(max_length=NOTE_LENGTH, description="Remark for people.")]
