"""Language models: chats that stream, embeddings."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from mayfly.client.aio.caller import AsyncCaller
from mayfly.client.aio.releases import AsyncReleases
from mayfly.client.http1.messages import Request, json_request, listed
from mayfly.client.signature_cache import Reference

REPLY_S = 900.0  # the longest run of a function


class AsyncChat:
    """Reply of a chat, as pieces of text while they are made.

    Leaving the loop closes the connection. Lambda still makes the reply to its end and bills it:
    `max_tokens` limits that.

    After the last piece, `finish` says why it ended ("stop" or "length"), `usage` counts tokens,
    and `text` is the whole reply.
    """

    def __init__(self, caller: AsyncCaller, request: Request) -> None:
        self._caller, self._request = caller, request
        self.text = ""
        self.finish = ""
        self.usage: Mapping[str, int] = {}

    async def __aiter__(self) -> AsyncIterator[str]:
        self.text = ""
        async for event in self._caller.events(self._request):
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices", ()):
                self.finish = choice.get("finish_reason") or self.finish
                piece = (choice.get("delta") or {}).get("content")
                if piece:
                    self.text += piece
                    yield piece


class AsyncLanguage(AsyncReleases):
    """Chats and embeddings of one model, through OpenAI's API."""

    def __init__(self, caller: AsyncCaller, name: str, version: Reference = None) -> None:
        super().__init__(caller, name)
        self.reference = version

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        system: str = "",
        timeout: float = REPLY_S,
        **options: Any,
    ) -> AsyncChat:
        """Return the streamed reply to a question or to messages.

        Messages have `role` and `content`.

        `options` are those of OpenAI's API: temperature, max_tokens, top_p, seed, stop, …

        Raises:
            MayflyError: while the reply is read.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if system:
            messages = [{"role": "system", "content": system}, *messages]
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        document = {"model": self._model, "messages": list(messages), **streamed, **options}
        request = json_request(
            "POST", "/v1/chat/completions", document, safe=False, timeout=timeout
        )
        return AsyncChat(self._caller, request)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
    ) -> list[list[float]]:
        """Return one vector for each text; `dimensions` shortens them.

        Raises:
            InvalidInput: the model makes no vectors, or a text is too long for it.
        """
        document: dict[str, Any] = {"model": self._model, "encoding_format": "float"}
        document["input"] = list(texts)
        if dimensions is not None:
            document["dimensions"] = dimensions
        request = json_request("POST", "/v1/embeddings", document, timeout=timeout)
        reply = (await self._caller.call(request)).json()
        rows = sorted(listed(reply, "data"), key=lambda row: int(row["index"]))
        return [row["embedding"] for row in rows]

    @property
    def _model(self) -> str:
        return self.name if self.reference is None else f"{self.name}:{self.reference}"
