"""HTTP/1.1 server connection with request trailers, on h11.

aiohttp's server drops trailers, in which the Runtime API reports the error of a stream.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

import h11

READ_SIZE = 256 << 10  # bytes read from the socket at a time
HEADER_LIMIT = 2 << 20  # bytes of headers or trailers; error bodies travel in them

Headers = dict[str, str]


class Connection:
    """HTTP/1.1 connection of a client, one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        self.trailers: Headers = {}

    async def request(self) -> h11.Request | None:
        """Return the next request, or None when the client sends no more."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        if self._http.our_state is not h11.IDLE:
            return None
        event = await self._event()
        return event if isinstance(event, h11.Request) else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the request's body as it arrives, then store its trailers.

        Raises:
            h11.RemoteProtocolError: the client sent no valid or no complete body.
        """
        if self._http.they_are_waiting_for_100_continue:
            informational = h11.InformationalResponse(status_code=100, headers=[])
            self._writer.write(self._http.send(informational) or b"")
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self.trailers = headers_of(event)

    async def respond(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a response, after the rest of the request was read."""
        if self._http.their_state is h11.SEND_BODY:
            async for _ in self.chunks():
                pass
        head = {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        response = h11.Response(status_code=status, headers=list(head.items()))
        parts = [self._http.send(response), *self._body(body)]
        self._http.send(h11.EndOfMessage())
        self._writer.writelines([part for part in parts if part])
        await self._writer.drain()

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    def _body(self, body: bytes) -> list[bytes]:
        return self._http.send_with_data_passthrough(h11.Data(data=body)) or []

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ_SIZE))
        return event


def headers_of(event: h11.Request | h11.EndOfMessage) -> Headers:
    """Return a request's headers or trailers; names are lower case."""
    return {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
