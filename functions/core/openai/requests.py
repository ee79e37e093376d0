"""Requests for text: chats, completions, and Triton's generate."""

from collections.abc import Mapping, Sequence
from typing import Any

from functions.core.errors import InvalidRequest, shown
from functions.core.language.ports import Calls, Options, Template
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.openai.errors import InvalidParameter, unsupported
from functions.core.openai.fields import Fields
from functions.core.openai.messages import Message, parse_messages, parse_tools, strict_tools
from functions.core.openai.sampling import (
    N_MAX,
    REPLIES_MAX,
    TOKENS_DEFAULT,
    TOKENS_MAX,
    TOP_LOGPROBS_MAX,
    parse_options,
)
from functions.core.openai.tool_calls import (
    ANY_OBJECT,
    FORCED,
    callable_functions,
    with_instructions,
)
from functions.core.records import field, record

IDENTITY_CHARACTERS_MAX = 128  # Triton's `id`, which each event repeats
COMPLETION_TOKENS = 16  # OpenAI's default for completions, and Triton's
LOGPROBS_MAX = 5  # alternatives of a completion's token
UNSUPPORTED_IN_CHATS: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
UNSUPPORTED_IN_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {"echo": (False,), "suffix": ("",)}
# Fields of Triton's backends for vLLM and TensorRT-LLM
UNSUPPORTED_IN_GENERATE: Mapping[str, tuple[Any, ...]] = {
    "bad_words": ("", []),
    "exclude_input_in_output": (True,),
    "sampling_parameters": ("", "{}"),
    "stop_words": ("", []),
}

Prompt = str | Sequence[int]


@record
class TextRequest:
    """Parsed request for text.

    It is parsed before the model is loaded, so prompts are not tokenized yet and `options` has no
    final `max_tokens`. A completion has `prompts` (texts or token ids), a chat has `messages`.

    `source` is the name of the field with the prompt, `limit` that of the field with the reply's
    length, both for error messages. `requested` is the length asked for, in tokens; without it the
    reply has at most `usual` tokens. With a `schema`, the reply is JSON that it allows. `calls` are
    what it may call: the first that the model supports. `replies` is the number of replies to each
    prompt. `extra` is copied into the reply.
    """

    options: Options
    source: str
    limit: str
    requested: int | None
    usual: int = TOKENS_DEFAULT
    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    forced: bool = False  # the reply is the call of a tool
    calls: tuple[Calls, ...] = ()
    schema: Mapping[str, Any] | None = None
    replies: int = 1
    stream: bool = False
    include_usage: bool = False
    user: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def require_decoder(spec: LanguageSpec, model: str) -> None:
    """Check that a model writes text.

    Raises:
        InvalidParameter: it makes vectors.
    """
    if spec.kind is not Kind.DECODER:
        raise InvalidParameter(
            "model", f"{shown(model)} is an encoder, which writes no text: use /v1/embeddings"
        )


def parse_chat(fields: Fields, spec: LanguageSpec) -> TextRequest:
    """Parse the body of /v1/chat/completions.

    Raises:
        InvalidParameter: a field is wrong, or known and unsupported.
    """
    if not spec.chat:
        raise InvalidParameter(
            "model", "its package has no chat template: use /v1/completions, or upload one"
        )
    fields.refuse(UNSUPPORTED_IN_CHATS)
    name = "max_completion_tokens"
    if fields.get(name) is None:
        name = "max_tokens"
    requested = fields.optional_integer(name, 1, TOKENS_MAX)
    tools, choice = parse_tools(fields), fields.get("tool_choice")
    chosen, forced = _choose(fields, tools, choice)
    several = fields.flag("parallel_tool_calls", True)
    calls = callable_functions(chosen, strict_tools(fields), demanded=forced, several=several)
    schema = _response_format(fields)
    stream = fields.flag("stream")
    return TextRequest(
        options=parse_options(fields, spec, requested, _chat_logprobs(fields)),
        source="messages",
        limit=name,
        requested=requested,
        messages=tuple(parse_messages(fields)),
        tools=tuple(chosen),
        forced=forced,
        calls=calls if chosen else (),
        schema=schema,
        replies=fields.integer("n", 1, 1, N_MAX),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        user=fields.text("user"),
    )


def parse_completion(fields: Fields, spec: LanguageSpec) -> TextRequest:
    """Parse the body of /v1/completions.

    Raises:
        InvalidParameter: a field is wrong, or known and unsupported.
    """
    fields.refuse(UNSUPPORTED_IN_COMPLETIONS)
    stream = fields.flag("stream")
    requested = fields.optional_integer("max_tokens", 1, TOKENS_MAX)
    logprobs = fields.optional_integer("logprobs", 0, LOGPROBS_MAX)
    prompts = tuple(parse_prompts(fields, "prompt", spec, REPLIES_MAX))
    schema = _response_format(fields)
    return TextRequest(
        options=parse_options(fields, spec, requested, logprobs),
        source="prompt",
        limit="max_tokens",
        requested=requested,
        usual=COMPLETION_TOKENS,
        prompts=prompts,
        schema=schema,
        replies=_replies(fields, len(prompts)),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        user=fields.text("user"),
    )


def parse_triton(fields: Fields, spec: LanguageSpec, stream: bool) -> TextRequest:
    """Parse the body of Triton's generate and generate_stream.

    Parameters lie in `parameters`, or beside `text_input`.

    Raises:
        InvalidParameter: a field is wrong, or known and unsupported.
    """
    text = fields.text("text_input")
    if text is None:
        raise InvalidParameter("text_input", "missing; send the prompt")
    names = fields.with_inner("parameters")
    names.refuse(UNSUPPORTED_IN_GENERATE)
    if names.flag("stream") and not stream:
        raise InvalidParameter("stream", "this path sends one reply; use generate_stream")
    requested = names.optional_integer("max_tokens", 1, TOKENS_MAX)
    identity = fields.text("id")
    if identity is not None and len(identity) > IDENTITY_CHARACTERS_MAX:
        raise InvalidParameter("id", f"must have at most {IDENTITY_CHARACTERS_MAX} characters")
    return TextRequest(
        options=parse_options(names, spec, requested, None),
        source="text_input",
        limit="max_tokens",
        requested=requested,
        usual=COMPLETION_TOKENS,
        prompts=(text,),
        stream=stream,
        extra={} if identity is None else {"id": identity},
    )


def parse_prompts(fields: Fields, name: str, spec: LanguageSpec, most: int) -> list[Prompt]:
    """Return prompts: a text, tokens, or an array of either.

    Raises:
        InvalidParameter: it is nothing of these, empty, or too many.
    """
    value = fields.required(name)
    if type(value) is str:
        return [value]
    if type(value) is not list:
        raise fields.wrong(name, "a text, tokens, or an array of either")
    if not value:
        raise InvalidParameter(fields.param(name), "is empty; send a text, or tokens")
    if type(value[0]) is int:
        return [_tokens(fields.param(name), value, spec)]
    if len(value) > most:
        raise InvalidParameter(fields.param(name), f"{len(value)} inputs; send at most {most}")
    return [
        entry if type(entry) is str else _tokens(f"{fields.param(name)}[{at}]", entry, spec)
        for at, entry in enumerate(value)
    ]


def chat_prompt(template: Template, request: TextRequest) -> str:
    """Render a chat's prompt; describe tools if the template does not.

    Raises:
        InvalidRequest: the template refuses the messages.
    """
    try:
        prompt = template.render(request.messages, request.tools)
        if request.tools and prompt == template.render(request.messages):
            prompt = template.render(with_instructions(request.messages, request.tools))
    except InvalidRequest as error:
        text, code = str(error).removeprefix("messages: "), error.instance_code
        raise InvalidParameter("messages", text, code=code) from error
    return prompt + FORCED if request.forced else prompt


def _tokens(param: str, value: Any, spec: LanguageSpec) -> Sequence[int]:
    if type(value) is not list or not value or any(type(token) is not int for token in value):
        raise InvalidParameter(param, "must be a text or a non-empty array of tokens")
    for token in value:
        if not 0 <= token < spec.vocabulary:
            raise InvalidParameter(
                param, f"has the token {token}; this model's are 0 to {spec.vocabulary - 1}"
            )
    return value


def _replies(fields: Fields, prompts: int) -> int:
    """Return the number of replies to each prompt."""
    replies = fields.integer("n", 1, 1, N_MAX)
    if prompts * replies > REPLIES_MAX:
        raise InvalidParameter(
            fields.param("n"),
            f"{prompts} prompts with {replies} replies each are {prompts * replies} replies; a "
            f"request may have at most {REPLIES_MAX}: send fewer prompts, or a smaller n",
        )
    return replies


def _choose(
    fields: Fields, tools: list[Mapping[str, Any]], choice: Any
) -> tuple[list[Mapping[str, Any]], bool]:
    """Return the tools that may be called, and if one must."""
    if choice is None:
        return tools, False
    if not tools:
        raise InvalidParameter("tool_choice", "there are no tools to choose from; send tools")
    if choice == "none":
        return [], False
    if choice in ("auto", "required"):
        return tools, choice == "required"
    chosen = fields.object("tool_choice")
    function = chosen.object("function") if chosen else None
    name = function.text("name") if function else None
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise InvalidParameter(
            "tool_choice", "must be none, auto, required, or name a function of tools"
        )
    return named, True


def _response_format(fields: Fields) -> Mapping[str, Any] | None:
    """Return the JSON schema of a reply, None for a text."""
    form = fields.object("response_format")
    if form is None:
        return None
    kind = form.required("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        raise unsupported(form.param("type"), "choose from text, json_object and json_schema")
    named = form.object("json_schema")
    if named is None:
        raise InvalidParameter(form.param("json_schema"), "missing; send name and schema")
    if named.object("schema") is None:
        raise InvalidParameter(named.param("schema"), "missing; send a JSON schema")
    schema: Mapping[str, Any] = named.get("schema")
    return schema


def _chat_logprobs(fields: Fields) -> int | None:
    top = fields.optional_integer("top_logprobs", 0, TOP_LOGPROBS_MAX)
    if fields.flag("logprobs"):
        return top or 0
    if top:
        raise InvalidParameter("top_logprobs", "needs logprobs: true")
    return None


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        raise InvalidParameter("stream_options", "needs stream: true")
    return options.flag("include_usage")
