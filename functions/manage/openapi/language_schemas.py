"""JSON schemas of OpenAI's API, of /v1/rerank and of Triton's generate.

Bounds come from the modules that read requests. tests/unit/functions/manage/openapi compares every
field, its type and its bounds with what these modules read. null stands for a missing field.
"""

from collections.abc import Mapping
from typing import Any

from functions.core.openai.messages import MESSAGES_MAX, ROLES, TOOL_NAME, TOOLS_MAX
from functions.core.openai.requests import (
    IDENTITY_CHARACTERS_MAX,
    LOGPROBS_MAX,
    UNSUPPORTED_IN_CHATS,
    UNSUPPORTED_IN_COMPLETIONS,
    UNSUPPORTED_IN_GENERATE,
)
from functions.core.openai.sampling import (
    BIASES_MAX,
    DIGITS_MAX,
    N_MAX,
    REPLIES_MAX,
    SEEDS,
    STOP_CHARACTERS_MAX,
    STOPS_MAX,
    TOKENS_MAX,
    TOP_LOGPROBS_MAX,
    UNSUPPORTED,
)
from functions.core.openai.vectors import DOCUMENTS_MAX, FORMATS, INPUTS_MAX, TOP_MAX
from functions.manage.openapi.tensors import INTEGER, SCHEMAS, TEXT, fields, ref, rows

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}
_NUMBER: Schema = {"type": "number"}
_OPTIONAL_TEXT: Schema = {"type": ["string", "null"]}
_SWITCH: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": "object"}
_TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _within(kind: str, low: float, high: float, description: str = "") -> Schema:
    """Return the schema of an optional number with bounds."""
    bounds = {"type": [kind, "null"], "minimum": low, "maximum": high}
    return {**bounds, "description": description} if description else bounds


def _integer(low: int, high: int, description: str = "") -> Schema:
    return _within("integer", low, high, description)


def _one_of(*values: str, description: str = "") -> Schema:
    """Return the schema of an optional text of a choice."""
    choice: Schema = {"enum": [*values, None]}
    return {**choice, "description": description} if description else choice


def _either(*schemas: Schema, description: str = "") -> Schema:
    choice: Schema = {"anyOf": list(schemas)}
    return {**choice, "description": description} if description else choice


def _constant(value: str) -> Schema:
    return {"type": "string", "const": value}


def _refused(neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Schema]:
    """Return schemas of unsupported fields: null and the values that change nothing."""
    text = "Not supported: leave it out."
    return {
        name: {"enum": [*values, None], "description": text} for name, values in neutral.items()
    }


def _texts_or_tokens(most: int, description: str) -> Schema:
    several = {
        "type": "array",
        "items": _either(TEXT, _TOKENS),
        "minItems": 1,
        "maxItems": most,
    }
    return _either(TEXT, _TOKENS, several, description=description)


_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": STOP_CHARACTERS_MAX}
_MAX_TOKENS = _integer(1, TOKENS_MAX, "Longest reply; the key may permit less.")
# The model's own defaults apply to what a request leaves out.
SAMPLING: dict[str, Schema] = {
    "temperature": _within("number", 0, 2, "0: always the likeliest token."),
    "top_p": _within("number", 0, 1),
    "top_k": _integer(-1, TOKENS_MAX, "0 and -1: off."),
    "min_p": _within("number", 0, 1),
    "seed": _integer(-SEEDS, SEEDS - 1, "The same seed and request give the same text."),
    "stop": _either(
        _STOP,
        {"type": "array", "items": _STOP, "maxItems": STOPS_MAX},
        _NULL,
        description="Strings before which the reply ends.",
    ),
    "presence_penalty": _within("number", -2, 2),
    "frequency_penalty": _within("number", -2, 2),
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": f"^[0-9]{{1,{DIGITS_MAX}}}$"},
        "additionalProperties": _within("number", -100, 100),
        "maxProperties": BIASES_MAX,
        "description": "Added to the logits of tokens, by number.",
    },
    "ignore_eos": _SWITCH,
    **_refused(UNSUPPORTED),
}
_MODEL = {**TEXT, "description": "Name, alone or with an alias or version: smollm, smollm:3."}
_USER = {**_OPTIONAL_TEXT, "description": "Keeps a caller on one side of a split of traffic."}
_FORMAT = _either(
    fields({"type": {"enum": ["text", "json_object"]}}),
    fields(
        {
            "type": _constant("json_schema"),
            "json_schema": fields({"schema": {**_OBJECT, "description": "A JSON schema."}}),
        }
    ),
    _NULL,
    description="json_object and json_schema: the reply is JSON, of this schema.",
)
_SHARED: dict[str, Schema] = {
    "n": _integer(1, N_MAX, "Replies to each prompt."),
    "stream": {**_SWITCH, "description": "Send events while the reply is made."},
    "stream_options": {
        "anyOf": [fields({}, include_usage=_SWITCH), _NULL],
        "description": "Only with `stream`.",
    },
    "response_format": _FORMAT,
    "max_tokens": _MAX_TOKENS,
    "user": _USER,
    **SAMPLING,
}
_PARAMETERS: dict[str, Schema] = {
    "max_tokens": _MAX_TOKENS,
    "stream": {**_SWITCH, "description": "Only at generate_stream."},
    **SAMPLING,
    **_refused(UNSUPPORTED_IN_GENERATE),
}
_CONTENT = _either(TEXT, rows("TextPart"))
_MESSAGE = {"name": _OPTIONAL_TEXT, "tool_call_id": _OPTIONAL_TEXT}
_OTHERS = [role for role in ROLES if role != "assistant"]
_ASSISTANT = {"role": _constant("assistant")}
_CALL = fields({"name": TEXT}, arguments={**_OPTIONAL_TEXT, "description": "JSON."})
REQUESTS: dict[str, Schema] = {
    "ChatRequest": fields(
        {
            "model": _MODEL,
            "messages": {**rows("Message"), "minItems": 1, "maxItems": MESSAGES_MAX},
        },
        max_completion_tokens={**_MAX_TOKENS, "description": "Counts before `max_tokens`."},
        tools={"type": ["array", "null"], "items": ref("Tool"), "maxItems": TOOLS_MAX},
        tool_choice=_either(
            {"enum": ["none", "auto", "required", None]},
            fields({"function": fields({"name": TEXT})}),
            description="Only with `tools`.",
        ),
        parallel_tool_calls={**_SWITCH, "description": "False: the reply ends after one call."},
        logprobs=_SWITCH,
        top_logprobs=_integer(0, TOP_LOGPROBS_MAX, "Only with `logprobs`."),
        **_SHARED,
        **_refused(UNSUPPORTED_IN_CHATS),
    ),
    "Message": _either(
        fields({"role": {"enum": _OTHERS}, "content": _CONTENT}, **_MESSAGE),
        fields(
            {**_ASSISTANT, "content": _CONTENT},
            tool_calls={"type": ["array", "null"], "items": ref("MessageCall")},
            **_MESSAGE,
        ),
        fields(
            {**_ASSISTANT, "tool_calls": {**rows("MessageCall"), "minItems": 1}},
            content={"anyOf": [*_CONTENT["anyOf"], _NULL]},
            **_MESSAGE,
        ),
    ),
    "TextPart": fields({"type": _constant("text"), "text": TEXT}),
    "MessageCall": fields({"function": _CALL}, id=_OPTIONAL_TEXT),
    "Tool": fields(
        {
            "function": fields(
                {"name": {"type": "string", "pattern": TOOL_NAME}},
                description=_OPTIONAL_TEXT,
                parameters={
                    "anyOf": [fields({}, type=_one_of("object")), _NULL],
                    "description": "A JSON schema.",
                },
                strict={**_SWITCH, "description": "Refuse a schema that cannot be followed."},
            )
        },
        type=_one_of("function"),
    ),
    "CompletionRequest": fields(
        {
            "model": _MODEL,
            "prompt": _texts_or_tokens(REPLIES_MAX, "Texts, or tokens of this model."),
        },
        logprobs=_integer(0, LOGPROBS_MAX),
        **_SHARED,
        **_refused(UNSUPPORTED_IN_COMPLETIONS),
    ),
    "EmbeddingsRequest": fields(
        {
            "model": _MODEL,
            "input": _texts_or_tokens(INPUTS_MAX, "Texts, or tokens of this model."),
        },
        encoding_format=_one_of(*FORMATS),
        dimensions={
            "type": ["integer", "null"],
            "minimum": 1,
            "description": "First numbers to keep, at most the model's.",
        },
        user=_USER,
    ),
    "RerankRequest": fields(
        {
            "model": _MODEL,
            "query": {"type": "string", "minLength": 1},
            "documents": {
                "type": "array",
                "items": _either(
                    {"type": "string", "minLength": 1},
                    fields({"text": {"type": "string", "minLength": 1}}),
                ),
                "minItems": 1,
                "maxItems": DOCUMENTS_MAX,
            },
        },
        top_n=_integer(1, TOP_MAX),
        return_documents=_SWITCH,
        user=_USER,
    ),
    "GenerateRequest": fields(
        {"text_input": TEXT},
        id={"type": ["string", "null"], "maxLength": IDENTITY_CHARACTERS_MAX},
        parameters={
            "anyOf": [fields({}, **_PARAMETERS), _NULL],
            "description": "The fields below may be here, too, and count before those beside it.",
        },
        **_PARAMETERS,
    ),
}

_FINISH = {"enum": ["stop", "length", "tool_calls"]}
_OPTIONAL_FINISH = {"enum": [*_FINISH["enum"], None]}
_TOKEN_SCORE = {"token": TEXT, "logprob": _NUMBER, "bytes": {"type": "array", "items": INTEGER}}
_FUNCTION = fields({"name": TEXT, "arguments": TEXT})
_MADE_CALL = {"id": TEXT, "type": _constant("function"), "function": _FUNCTION}

_GENERATED = {"model_name": TEXT, "model_version": TEXT, "text_output": TEXT}


def _head(kind: str) -> dict[str, Schema]:
    return {
        "id": TEXT,
        "object": _constant(kind),
        "created": INTEGER,
        "model": TEXT,
        "system_fingerprint": TEXT,
    }


def _optional(schema: Schema) -> Schema:
    return _either(schema, _NULL)


REPLIES: dict[str, Schema] = {
    "ChatCompletion": fields(
        {**_head("chat.completion"), "choices": rows("ChatChoice"), "usage": ref("TextUsage")}
    ),
    "ChatChoice": fields(
        {
            "index": INTEGER,
            "message": fields(
                {"role": _constant("assistant"), "content": _OPTIONAL_TEXT, "refusal": _NULL},
                tool_calls={"type": "array", "items": fields(_MADE_CALL)},
            ),
            "logprobs": _optional(ref("ChatLogprobs")),
            "finish_reason": _FINISH,
        }
    ),
    "ChatLogprobs": fields(
        {
            "content": {
                "type": "array",
                "items": fields(
                    {
                        **_TOKEN_SCORE,
                        "top_logprobs": {"type": "array", "items": fields(_TOKEN_SCORE)},
                    }
                ),
            },
            "refusal": _NULL,
        }
    ),
    "ChatCompletionChunk": fields(
        {**_head("chat.completion.chunk"), "choices": rows("ChatDelta")},
        usage=_optional(ref("TextUsage")),
    ),
    "ChatDelta": fields(
        {
            "index": INTEGER,
            "delta": fields(
                {},
                role=_constant("assistant"),
                content=TEXT,
                refusal=_NULL,
                tool_calls={"type": "array", "items": fields({"index": INTEGER, **_MADE_CALL})},
            ),
            "logprobs": _optional(ref("ChatLogprobs")),
            "finish_reason": _OPTIONAL_FINISH,
        }
    ),
    "Completion": fields(
        {**_head("text_completion"), "choices": rows("CompletionChoice"), "usage": ref("TextUsage")}
    ),
    "CompletionChunk": fields(
        {**_head("text_completion"), "choices": rows("CompletionChoice")},
        usage=_optional(ref("TextUsage")),
    ),
    "CompletionChoice": fields(
        {
            "index": INTEGER,
            "text": TEXT,
            "logprobs": _optional(ref("CompletionLogprobs")),
            "finish_reason": {**_OPTIONAL_FINISH, "description": "null before a stream's end."},
        }
    ),
    "CompletionLogprobs": fields(
        {
            "tokens": {"type": "array", "items": TEXT},
            "token_logprobs": {"type": "array", "items": _NUMBER},
            "top_logprobs": {
                "type": "array",
                "items": {"type": "object", "additionalProperties": _NUMBER},
            },
            "text_offset": {"type": "array", "items": INTEGER},
        }
    ),
    "TextUsage": fields(
        {
            "prompt_tokens": INTEGER,
            "completion_tokens": INTEGER,
            "total_tokens": INTEGER,
            "prompt_tokens_details": {"type": "object", "additionalProperties": INTEGER},
            "completion_tokens_details": {"type": "object", "additionalProperties": INTEGER},
        }
    ),
    "Embeddings": fields(
        {
            "object": _constant("list"),
            "data": rows("Embedding"),
            "model": TEXT,
            "usage": ref("VectorUsage"),
        }
    ),
    "Embedding": fields(
        {
            "object": _constant("embedding"),
            "index": INTEGER,
            "embedding": _either(
                {"type": "array", "items": _NUMBER},
                {**TEXT, "description": "Base64 of floats of 32 bits, little-endian."},
            ),
        }
    ),
    "Ranking": fields(
        {
            "id": TEXT,
            "object": _constant("list"),
            "model": TEXT,
            "results": {
                "type": "array",
                "items": fields(
                    {"index": INTEGER, "relevance_score": _NUMBER}, document=fields({"text": TEXT})
                ),
            },
            "usage": ref("VectorUsage"),
        }
    ),
    "VectorUsage": fields({"prompt_tokens": INTEGER, "total_tokens": INTEGER}),
    "LanguageModels": fields({"object": _constant("list"), "data": rows("LanguageModel")}),
    "LanguageModel": fields(
        {
            "id": TEXT,
            "object": _constant("model"),
            "created": INTEGER,
            "owned_by": TEXT,
            "version": TEXT,
            "kind": {"enum": ["decoder", "encoder", "reranker"]},
            "max_model_len": {**INTEGER, "description": "Context, in tokens."},
        }
    ),
    "Generated": fields(_GENERATED, id=TEXT),
    "GeneratedEvent": fields({**_GENERATED, "done": {"type": "boolean"}}, id=TEXT),
    "OpenAIError": fields(
        {
            "error": fields(
                {
                    "message": {**TEXT, "description": "One sentence for people."},
                    "type": TEXT,
                    "param": {**_OPTIONAL_TEXT, "description": "Name of the field at fault."},
                    "code": {**TEXT, "description": "Stable code for programs."},
                }
            )
        }
    ),
    "ErrorDocument": SCHEMAS["ErrorDocument"],
}
LANGUAGE_SCHEMAS = REQUESTS | REPLIES
