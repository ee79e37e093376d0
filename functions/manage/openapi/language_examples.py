"""Example requests to language models, which together send every field."""

from typing import Any

_QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
}
_SAMPLING = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "seed": 7,
    "stop": ["\n\n"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {"5": -1},
    "ignore_eos": False,
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {
        "question": {"model": "smollm", "messages": _QUESTION, "max_tokens": 40},
        "stream": {
            "model": "smollm:prod",
            "messages": [{"role": "system", "content": "Answer in one sentence."}, *_QUESTION],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 40,
            "user": "u-17",
        },
        "sampling": {
            "model": "smollm",
            "messages": _QUESTION,
            "max_tokens": 20,
            "n": 2,
            "logprobs": True,
            "top_logprobs": 2,
            **_SAMPLING,
        },
        "json": {
            "model": "smollm",
            "messages": _QUESTION,
            "max_tokens": 40,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": _CITY_SCHEMA},
            },
        },
        "tools": {
            "model": "smollm",
            "messages": [
                {"role": "user", "name": "ada", "content": [{"type": "text", "text": "In Rome?"}]},
                {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
            ],
            "tools": [_WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "max_tokens": 40,
        },
    },
    "CompletionRequest": {
        "text": {"model": "smollm", "prompt": "Once upon a time", "max_tokens": 20},
        "sampling": {
            "model": "smollm",
            "prompt": ["One", [3, 4, 5]],
            "max_tokens": 10,
            "n": 2,
            "logprobs": 1,
            "user": "u-17",
            **_SAMPLING,
        },
        "stream": {
            "model": "smollm",
            "prompt": [3, 4, 5],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        "json": {
            "model": "smollm",
            "prompt": "A city:",
            "max_tokens": 20,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": _CITY_SCHEMA},
            },
        },
    },
    "EmbeddingsRequest": {
        "text": {"model": "minilm", "input": "A man is eating."},
        "several": {
            "model": "minilm",
            "input": ["A man is eating.", [3, 4, 5]],
            "encoding_format": "base64",
            "dimensions": 2,
            "user": "u-17",
        },
    },
    "RerankRequest": {
        "texts": {
            "model": "minilm",
            "query": "food",
            "documents": ["A man is eating.", {"text": "It rains."}],
            "top_n": 1,
            "return_documents": True,
            "user": "u-17",
        }
    },
    "GenerateRequest": {
        "text": {"id": "42", "text_input": "Once", "parameters": {"max_tokens": 8, **_SAMPLING}},
        "beside": {"text_input": "Once", "max_tokens": 8, **_SAMPLING},
    },
}
