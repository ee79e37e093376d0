"""Pages of models, versions and aliases from the registry's table.

A page of models costs one query of the index and one read of their META items, however many models
there are. The positions of pages are texts: "" is the first page, and the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from functions.core.catalog.summaries import ModelSummary, summary_from_item
from functions.core.registry.items import (
    alias_from_item,
    alias_sk,
    model_pk,
    switch_pk,
    version_from_item,
    version_sk,
)
from functions.core.registry.table import Item, Table
from functions.core.registry.transactions import unknown_model, unknown_version
from functions.core.registry.version import Alias, State, Version

CHUNK = 1000  # names in one query of the index, where not all of them are shown
SCANNED_MAX = 10_000  # names looked through for one page, which may be short for that reason


@dataclass(frozen=True, slots=True)
class Search:
    """Filter of model names, by text and by what callers see."""

    text: str = ""  # in any case
    prefix: str = ""
    archived: bool = False
    sees: Callable[[str], bool] | None = None  # None for every model

    @property
    def takes_all(self) -> bool:
        """True if every name with the prefix is shown."""
        return not self.text and self.sees is None

    def matches(self, name: str) -> bool:
        """Return True if a model's name is shown."""
        text_fits = self.text.lower() in name.lower()
        return text_fits and (self.sees is None or self.sees(name))


class Catalog:
    """Reads of the control plane.

    Every method raises `Unavailable` if the table fails.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def models(self, search: Search, after: str, limit: int) -> tuple[list[ModelSummary], str]:
        """Return a page of models by name, and the next page's position.

        A page may be short, even empty, although others follow: where a search has to look through
        many names.
        """
        names, position = self._names(search, after, limit)
        items = self._table.get([(model_pk(name), "META") for name in names])
        return [summary_from_item(item) for item in items if item], position

    def _names(self, search: Search, after: str, limit: int) -> tuple[list[str], str]:
        kind = "ARCHIVED" if search.archived else "MODEL"
        chunk = limit + 1 if search.takes_all else CHUNK
        names: list[str] = []
        for _ in range(SCANNED_MAX // CHUNK):
            rows = list(self._table.listed(kind, after, chunk, search.prefix))
            for row in rows:
                if search.matches(row["listed"]):
                    if len(names) == limit:
                        return names, after
                    names.append(row["listed"])
                after = row["listed"]
            if len(rows) < chunk:
                return names, ""
        return names, after

    def model(self, model: str) -> tuple[ModelSummary, bool]:
        """Return a model, and True if it is served, i.e. not unloaded.

        Raises:
            ModelNotFound: there is no such model.
        """
        keys = [(model_pk(model), "META"), (switch_pk(model), "SWITCH")]
        meta, switch = self._table.get(keys)
        if meta is None:
            raise unknown_model(model)
        return summary_from_item(meta), switch is None or bool(switch["serving"])

    def versions(
        self, model: str, state: State | None, before: int | None, limit: int
    ) -> tuple[list[Version], int | None]:
        """Return a page of versions, newest first, and the next position.

        It begins below the number `before`; None is the newest version, and the end.

        Raises:
            ModelNotFound: there is no such model.
        """
        if state is None:
            versions = self._newest(model, before, limit + 1)
        else:
            versions = self._newest_in_state(model, state, before, limit + 1)
        if not versions and before is None:
            self.model(model)
        position = versions[limit - 1].number if len(versions) > limit else None
        return versions[:limit], position

    def _newest(self, model: str, before: int | None, limit: int) -> list[Version]:
        below = version_sk(before) if before else ""
        items = self._table.last(model_pk(model), "VERSION#", below, limit)
        return [version_from_item(item) for item in items]

    def _newest_in_state(
        self, model: str, state: State, before: int | None, limit: int
    ) -> list[Version]:
        """Return versions in a state, which the index holds."""
        rows = self._table.listed("VERSION", "", SCANNED_MAX, f"{model}#")
        numbers = [
            int(row["listed"].rpartition("#")[2]) for row in rows if row["state"] == state.value
        ]
        numbers = [number for number in reversed(numbers) if before is None or number < before]
        keys = [(model_pk(model), version_sk(number)) for number in numbers[:limit]]
        items = [item for at in (0, 100) for item in self._table.get(keys[at : at + 100])]
        return [version_from_item(item) for item in items if item]

    def version(self, model: str, number: int) -> tuple[Version, ModelSummary]:
        """Return a version and its model.

        Raises:
            ModelNotFound: there is no such model or version.
        """
        [version], summary = self._read(model, number)
        return version, summary

    def pair(self, model: str, first: int, second: int) -> tuple[Version, Version]:
        """Return two versions of a model.

        Raises:
            ModelNotFound: there is no such model or version.
        """
        [older, newer], _ = self._read(model, first, second)
        return older, newer

    def _read(self, model: str, *numbers: int) -> tuple[list[Version], ModelSummary]:
        pk = model_pk(model)
        distinct = list(dict.fromkeys(numbers))
        keys = [(pk, "META"), *((pk, version_sk(number)) for number in distinct)]
        meta, *items = self._table.get(keys)
        if meta is None:
            raise unknown_model(model)
        versions = {}
        for number, item in zip(distinct, items, strict=True):
            if item is None:
                raise unknown_version(model, number)
            versions[number] = version_from_item(item)
        return [versions[number] for number in numbers], summary_from_item(meta)

    def aliases(self, model: str) -> list[Alias]:
        """Return a model's aliases by name.

        Raises:
            ModelNotFound: there is no such model.
        """
        aliases = [alias_from_item(item) for item in self._alias_items(model)]
        if not aliases:
            self.model(model)
        return aliases

    def alias(self, model: str, name: str) -> Alias | None:
        """Return an alias, or None if missing.

        Raises:
            ModelNotFound: there is no such model.
        """
        pk = model_pk(model)
        meta, item = self._table.get([(pk, "META"), (pk, alias_sk(name))])
        if meta is None:
            raise unknown_model(model)
        return alias_from_item(item) if item else None

    def _alias_items(self, model: str) -> list[Item]:
        return list(self._table.query(model_pk(model), alias_sk("")))
