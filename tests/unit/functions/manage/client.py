"""Administrator of a control plane in memory."""

from typing import Any

from functions.manage.route import ROOT
from tests.control_plane import ControlPlane, error
from tests.data_plane import Reply


class Admin:
    """Caller with the scope admin; paths are below /api/v1."""

    def __init__(self, plane: ControlPlane | None = None) -> None:
        self.plane = plane or ControlPlane()
        created = self.plane.create("admin")
        self.key_id = created["id"]
        self.headers = {"x-api-key": created["key"]}

    def send(self, method: str, path: str, body: Any = b"", **query: Any) -> Reply:
        texts = {name.strip("_"): str(value) for name, value in query.items()}
        return self.plane.client.send(
            method, ROOT + path, body, headers=self.headers, query=texts or None
        )

    def get(self, path: str, **query: Any) -> Any:
        """Return the document of a successful GET."""
        reply = self.send("GET", path, **query)
        assert reply.status == 200, reply.body
        return reply.json

    def change(self, method: str, path: str, body: Any = b"", **query: Any) -> Any:
        """Return the document of a successful change."""
        reply = self.send(method, path, body, **query)
        assert reply.status in (200, 201), reply.body
        return reply.json

    def refusal(self, method: str, path: str, body: Any = b"", **query: Any) -> tuple[int, str]:
        """Return status and text of a refusal, which leaves the registry as it was."""
        items = dict(self.plane.table.items)
        status, _, text = error(self.send(method, path, body, **query))
        assert self.plane.table.items == items
        return status, text

    def pages(self, path: str, name: str, **query: Any) -> list[Any]:
        """Return the rows of all pages of a list."""
        rows: list[Any] = []
        cursor = ""
        for _ in range(1000):
            page = self.get(path, **query, **({"cursor": cursor} if cursor else {}))
            rows += page[name]
            if (cursor := page["next_cursor"]) is None:
                return rows
        raise AssertionError("the list has no end")
