"""Replies with text, whole and streamed, in OpenAI's and Triton's forms."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from functions.core.language.ports import Piece, Tokenizer, TokenScore
from functions.core.openai.requests import TextRequest
from functions.core.openai.tool_calls import ReplyReader
from functions.core.records import record

# OpenAI knows no reply that ended at a deadline.
FINISHES = {"stop": "stop", "length": "length", "timeout": "length"}

Document = dict[str, Any]


@record
class Facts:
    """Fields that all events of a reply share."""

    id: str
    created: int  # Unix seconds
    model: str
    version: int
    fingerprint: str


@record
class Usage:
    """Numbers of tokens of a request."""

    prompt: int
    completion: int
    cached: int = 0  # prompt tokens from the prefix cache

    def document(self) -> Document:
        """Return the numbers with all of OpenAI's fields."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


class Writer(Protocol):
    """Form of a reply; choices are numbered from 0."""

    def begin(self, choice: int) -> list[Document]:
        """Return the events before a choice's text."""

    def add(self, choice: int, piece: Piece) -> list[Document]:
        """Return the events of a piece."""

    def end(self, usage: Usage) -> list[Document]:
        """Return the events after all choices."""

    def document(self, usage: Usage) -> Document:
        """Return the whole reply."""


class _Choice:
    """Text of a reply so far, with its scores."""

    def __init__(self, reader: ReplyReader | None = None) -> None:
        self.reader = reader
        self.texts: list[str] = []
        self.scores: list[TokenScore] = []
        self.finish: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def read(self, piece: Piece) -> str:
        """Return the text that a piece adds."""
        self.scores += piece.scores
        text = piece.text if self.reader is None else self.reader.feed(piece.text)
        if piece.finish is not None:
            self.finish = FINISHES.get(piece.finish, "stop")
            if self.reader is not None:
                text += self.reader.end()
                if self.reader.calls and self.finish == "stop":
                    self.finish = "tool_calls"
        self.texts.append(text)
        return text


class ChatWriter:
    """Form of /v1/chat/completions."""

    def __init__(self, facts: Facts, request: TextRequest, tokenizer: Tokenizer) -> None:
        self._facts = facts
        self._request = request
        self._tokenizer = tokenizer
        names = [tool["function"]["name"] for tool in request.tools]
        self._choices = [
            _Choice(ReplyReader(names, forced=request.forced) if names else None)
            for _ in range(request.replies)
        ]

    def begin(self, choice: int) -> list[Document]:
        """Return the first event, which has the role."""
        return [self._event(choice, {"role": "assistant", "content": "", "refusal": None})]

    def add(self, choice: int, piece: Piece) -> list[Document]:
        """Return the events of a piece; the last has only a reason."""
        state = self._choices[choice]
        text = state.read(piece)
        events = []
        if text or piece.scores:
            events.append(self._event(choice, {"content": text}, self._logprobs(piece.scores)))
        if state.finish is not None:
            calls = self._calls(choice)
            if calls:
                numbered = [{"index": at, **call} for at, call in enumerate(calls)]
                events.append(self._event(choice, {"tool_calls": numbered}))
            events.append(self._event(choice, {}, finish=state.finish))
        return events

    def end(self, usage: Usage) -> list[Document]:
        """Return the event with the usage, if it was asked for."""
        if not self._request.include_usage:
            return []
        return [{**self._head("chat.completion.chunk"), "choices": [], "usage": usage.document()}]

    def document(self, usage: Usage) -> Document:
        """Return the whole reply."""
        choices = []
        for at, state in enumerate(self._choices):
            text, calls = state.text, self._calls(at)
            message: Document = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                message |= {"content": text or None, "tool_calls": calls}
            choices.append(
                {
                    "index": at,
                    "message": message,
                    "logprobs": self._logprobs(state.scores),
                    "finish_reason": state.finish,
                }
            )
        head = self._head("chat.completion")
        return {**head, "choices": choices, "usage": usage.document()}

    def _head(self, kind: str) -> Document:
        facts = self._facts
        return {
            "id": f"chatcmpl-{facts.id}",
            "object": kind,
            "created": facts.created,
            "model": facts.model,
            "system_fingerprint": facts.fingerprint,
        }

    def _event(
        self,
        choice: int,
        delta: Document,
        logprobs: Document | None = None,
        finish: str | None = None,
    ) -> Document:
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        event = {**self._head("chat.completion.chunk"), "choices": [entry]}
        return {**event, "usage": None} if self._request.include_usage else event

    def _calls(self, choice: int) -> list[Document]:
        reader = self._choices[choice].reader
        return [
            {
                "id": f"call_{self._facts.id}_{choice}_{at}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for at, (name, arguments) in enumerate(reader.calls if reader else ())
        ]

    def _logprobs(self, scores: Sequence[TokenScore]) -> Document | None:
        if self._request.options.logprobs is None:
            return None
        content = [
            {
                **self._token(score.token, score.logprob),
                "top_logprobs": [self._token(*pair) for pair in score.top],
            }
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> Document:
        raw = self._tokenizer.token_bytes(token)
        text = token_text(self._tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(raw or text.encode())}


class CompletionWriter:
    """Form of /v1/completions."""

    def __init__(self, facts: Facts, request: TextRequest, tokenizer: Tokenizer) -> None:
        self._facts = facts
        self._request = request
        self._tokenizer = tokenizer
        self._choices = [_Choice() for _ in range(len(request.prompts) * request.replies)]

    def begin(self, _: int) -> list[Document]:
        """Return no event: the first one has text."""
        return []

    def add(self, choice: int, piece: Piece) -> list[Document]:
        """Return the event of a piece."""
        state = self._choices[choice]
        offset = len(state.text)
        text = state.read(piece)
        logprobs = self._logprobs(piece.scores, offset)
        entry = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": state.finish}
        event = {**self._head(), "choices": [entry]}
        return [{**event, "usage": None} if self._request.include_usage else event]

    def end(self, usage: Usage) -> list[Document]:
        """Return the event with the usage, if it was asked for."""
        if not self._request.include_usage:
            return []
        return [{**self._head(), "choices": [], "usage": usage.document()}]

    def document(self, usage: Usage) -> Document:
        """Return the whole reply."""
        choices = [
            {
                "index": at,
                "text": state.text,
                "logprobs": self._logprobs(state.scores, 0),
                "finish_reason": state.finish,
            }
            for at, state in enumerate(self._choices)
        ]
        return {**self._head(), "choices": choices, "usage": usage.document()}

    def _head(self) -> Document:
        facts = self._facts
        return {
            "id": f"cmpl-{facts.id}",
            "object": "text_completion",
            "created": facts.created,
            "model": facts.model,
            "system_fingerprint": facts.fingerprint,
        }

    def _logprobs(self, scores: Sequence[TokenScore], offset: int) -> Document | None:
        if self._request.options.logprobs is None:
            return None
        tokens = [token_text(self._tokenizer, score.token) for score in scores]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [
                {token_text(self._tokenizer, token): logprob for token, logprob in score.top}
                for score in scores
            ],
            "text_offset": offsets,
        }


class TritonWriter:
    """Form of Triton's generate and generate_stream.

    Events have the Open Inference Protocol's `done`, too.
    """

    def __init__(self, facts: Facts, request: TextRequest, _: Tokenizer) -> None:
        self._head = {
            "model_name": facts.model,
            "model_version": str(facts.version),
            **request.extra,
        }
        self._texts: list[str] = []

    def begin(self, _: int) -> list[Document]:
        """Return no event."""
        return []

    def add(self, _: int, piece: Piece) -> list[Document]:
        """Return the event of a piece with text, and of the last."""
        self._texts.append(piece.text)
        done = piece.finish is not None
        event = {**self._head, "text_output": piece.text, "done": done}
        return [event] if piece.text or done else []

    def end(self, _: Usage) -> list[Document]:
        """Return no event."""
        return []

    def document(self, _: Usage) -> Document:
        """Return the whole reply."""
        return {**self._head, "text_output": "".join(self._texts)}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token's text; bytes that are no character become U+FFFD."""
    raw = tokenizer.token_bytes(token)
    return raw.decode("utf-8", "replace") if raw else tokenizer.decode([token])


def models_document(models: Sequence[Mapping[str, Any]]) -> Document:
    """Return the list of /v1/models."""
    return {"object": "list", "data": list(models)}
