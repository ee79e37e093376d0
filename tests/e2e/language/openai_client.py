"""Unmodified clients: calls a stack with openai (sync, async) and langchain-openai.

Run in the environment of the group `language-tests`. Prints one JSON line.
"""

import asyncio
import json
import sys
from typing import Any

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

HI = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}


def main(url: str, key: str, decoder: str, encoder: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=url, api_key=key)
    asked: dict[str, Any] = {"model": decoder, "max_tokens": 20, "seed": 3}
    seen: dict[str, Any] = {"models": [model.id for model in client.models.list()]}
    seen["model"] = client.models.retrieve(f"{decoder}:1").id
    chat = client.chat.completions.create(messages=HI, **asked)
    seen["chat"] = [chat.choices[0].message.content, chat.choices[0].finish_reason]
    seen["usage"] = [chat.usage.prompt_tokens > 0, chat.usage.completion_tokens]
    chunks = list(
        client.chat.completions.create(
            messages=HI, stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    seen["streamed"] = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    seen["streamed_usage"] = chunks[-1].usage.completion_tokens
    parsed = client.chat.completions.create(
        messages=HI,
        **{**asked, "max_tokens": 100},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    )
    seen["json"] = json.loads(parsed.choices[0].message.content)
    tool = {**asked, "max_tokens": 300}
    called = client.chat.completions.create(
        messages=HI, tools=[TOOL], tool_choice="required", **tool
    )
    call = called.choices[0].message.tool_calls[0].function
    seen["tool"] = [call.name, json.loads(call.arguments)]
    with client.chat.completions.stream(
        messages=HI, tools=[TOOL], tool_choice="required", **tool
    ) as stream:
        final = stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0].function
    seen["streamed_tool"] = [call.name, json.loads(call.arguments)]
    logprobs = client.chat.completions.create(
        messages=HI, logprobs=True, top_logprobs=2, **{**asked, "max_tokens": 3}
    )
    seen["logprobs"] = len(logprobs.choices[0].logprobs.content)
    text = client.completions.create(prompt="Hi", **asked)
    seen["completion"] = text.usage.completion_tokens
    vectors = client.embeddings.create(model=encoder, input=["a cat", "a dog"])  # base64
    floats = client.embeddings.create(
        model=encoder, input=["a cat", "a dog"], encoding_format="float"
    )
    near = [
        abs(a - b) < 1e-6
        for first, second in zip(vectors.data, floats.data, strict=True)
        for a, b in zip(first.embedding, second.embedding, strict=True)
    ]
    seen["vectors"] = [len(vectors.data), all(near)]
    seen["short"] = len(
        client.embeddings.create(model=encoder, input="a cat", dimensions=8).data[0].embedding
    )
    seen["errors"] = errors(client, decoder, key, url)
    seen["async"] = asyncio.run(ask(url, key, asked))
    model = ChatOpenAI(base_url=url, api_key=key, model=decoder, max_tokens=20, seed=3)
    seen["langchain"] = model.invoke("Hi").content
    seen["langchain_streamed"] = "".join(part.content for part in model.stream("Hi"))
    seen["langchain_usage"] = [
        part.usage_metadata["output_tokens"]
        for part in model.stream("Hi", stream_usage=True)
        if part.usage_metadata
    ]
    longer = model.model_copy(update={"max_tokens": 300})
    seen["langchain_chosen"] = (
        longer.bind_tools([TOOL]).invoke("Hi").response_metadata["finish_reason"]
    )
    seen["langchain_tool"] = [
        [call["name"], call["args"]]
        for call in longer.bind_tools([TOOL], tool_choice="any", strict=True)
        .invoke("Hi")
        .tool_calls
    ]
    seen["langchain_structured"] = [
        longer.with_structured_output({"title": "x", **SCHEMA}, method=method).invoke("Hi")
        for method in ("json_schema", "function_calling")
    ]
    embeddings = OpenAIEmbeddings(
        base_url=url, api_key=key, model=encoder, check_embedding_ctx_length=False
    )
    seen["langchain_vectors"] = len(embeddings.embed_documents(["a", "b"]))
    return seen


def errors(client: openai.OpenAI, decoder: str, key: str, url: str) -> list[list[Any]]:
    """Return the classes and codes of errors that a client raises."""
    stranger = openai.OpenAI(base_url=url, api_key="sk-wrong")
    calls = [
        (client, {"model": decoder, "messages": HI, "max_tokens": 100_000}),
        (client, {"model": "none", "messages": HI}),
        (client, {"model": decoder, "messages": HI, "temperature": 9}),
        (stranger, {"model": decoder, "messages": HI}),
    ]
    raised = []
    for caller, fields in calls:
        try:
            caller.chat.completions.create(**fields)
        except openai.APIStatusError as error:
            raised.append([type(error).__name__, error.code, error.param])
    return raised


async def ask(url: str, key: str, asked: dict[str, Any]) -> list[str]:
    """Chat three times at once, streamed."""
    client = openai.AsyncOpenAI(base_url=url, api_key=key)

    async def stream() -> str:
        chunks = await client.chat.completions.create(messages=HI, stream=True, **asked)
        return "".join([c.choices[0].delta.content or "" async for c in chunks])

    return list(await asyncio.gather(*(stream() for _ in range(3))))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
