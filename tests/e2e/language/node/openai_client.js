// Unmodified client: calls a stack with openai for Node.js; prints one JSON line.
// Arguments: address with /v1, access key, decoder, encoder, as of ../openai_client.py.
const OpenAI = require("openai");

const messages = [{ role: "user", content: "Hi" }];
const schema = {
  type: "object",
  properties: { yes: { type: "boolean" } },
  required: ["yes"],
  additionalProperties: false,
};
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { city: { enum: ["Rome", "Paris"] } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];

async function list(events) {
  const all = [];
  for await (const event of events) all.push(event);
  return all;
}

// Return class, status, code and param of the error that a call ends with.
async function refusal(call) {
  try {
    await call;
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param];
  }
  return null;
}

async function chats(client, asked) {
  const chat = await client.chat.completions.create(asked);
  const include = { stream: true, stream_options: { include_usage: true } };
  const chunks = await list(await client.chat.completions.create({ ...asked, ...include }));
  const parsed = await client.chat.completions.parse({
    ...asked,
    max_tokens: 100,
    response_format: { type: "json_schema", json_schema: { name: "x", strict: true, schema } },
  });
  const tool = { ...asked, tools, tool_choice: "required", max_tokens: 300 };
  const parts = await list(await client.chat.completions.create({ ...tool, stream: true }));
  const final = await client.chat.completions.stream(tool).finalChatCompletion();
  return {
    chat: chat.choices[0].message.content,
    finish: chat.choices[0].finish_reason,
    usage: chat.usage,
    chunks,
    several: await client.chat.completions.create({ ...asked, n: 2, logprobs: true, top_logprobs: 2 }),
    json: JSON.parse(parsed.choices[0].message.content),
    tool_parts: parts.flatMap((part) => part.choices[0].delta.tool_calls ?? []),
    tool_finish: parts.at(-1).choices[0].finish_reason,
    tool: final.choices[0].message.tool_calls[0].function,
  };
}

// Stop reading a long stream after its second event; return how much came, and how it ended.
async function abort(client, asked) {
  const stream = await client.chat.completions.create({
    ...asked,
    stream: true,
    max_tokens: 900,
    ignore_eos: true,
  });
  let events = 0;
  let last = null;
  for await (const event of stream) {
    last = event.choices[0].finish_reason;
    if (++events === 2) stream.controller.abort();
  }
  return { aborted: stream.controller.signal.aborted, events, last };
}

async function main(baseURL, apiKey, decoder, encoder) {
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  const stranger = new OpenAI({ baseURL, apiKey: "sk-wrong", maxRetries: 0 });
  const asked = { model: decoder, messages, max_tokens: 20, seed: 3 };
  const completion = { model: decoder, prompt: ["Hi", "Ho"], max_tokens: 5, seed: 3 };
  const input = ["a cat", "a dog"];
  const create = (fields, other = client) =>
    refusal(other.chat.completions.create({ ...asked, ...fields }));
  return {
    models: (await list(client.models.list())).map((model) => model.id),
    model: (await client.models.retrieve(`${decoder}:1`)).id,
    ...(await chats(client, asked)),
    completion: await client.completions.create(completion),
    completion_chunks: await list(await client.completions.create({ ...completion, stream: true })),
    vectors: await client.embeddings.create({ model: encoder, input }), // base64 by default
    floats: await client.embeddings.create({ model: encoder, input, encoding_format: "float" }),
    tokens: await client.embeddings.create({ model: encoder, input: [[5, 6], [7]], dimensions: 8 }),
    errors: {
      key: await create({}, stranger),
      model: await create({ model: "none" }),
      value: await create({ temperature: 9 }),
      unsupported: await create({ reasoning_effort: "low" }),
      context: await create({ max_tokens: 100000 }),
      streamed: await create({ max_tokens: 100000, stream: true }),
    },
    abort: await abort(client, asked),
  };
}

main(...process.argv.slice(2)).then((seen) => console.log(JSON.stringify(seen)));
