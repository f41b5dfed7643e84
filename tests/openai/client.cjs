// Asks the proxy with OpenAI's client from npm and says what came back, as JSON.
// Environment: as client.py, and NODE_PATH with the client in it.

const OpenAI = require("openai").default;

const model = process.env.MODEL;
const messages = [{ role: "user", content: "Say something." }];
const tools = [{
  type: "function",
  function: {
    name: "note",
    parameters: { type: "object", properties: { words: { type: "string", maxLength: 8 } } },
  },
}];
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });

async function failure(ask) {
  try {
    await ask();
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return { class: error.constructor.name, status: error.status, code: error.code };
  }
  return null;
}

async function main() {
  const seen = { models: [] };
  for await (const one of client.models.list()) seen.models.push(one.id);
  seen.model = (await client.models.retrieve(model)).id;

  const whole = await client.chat.completions.create({ model, messages, max_tokens: 5, temperature: 0, seed: 1 });
  const { prompt_tokens, completion_tokens, total_tokens } = whole.usage;
  seen.chat = {
    text: whole.choices[0].message.content,
    finish: whole.choices[0].finish_reason,
    usage: { prompt_tokens, completion_tokens, total_tokens },
    request: Boolean(whole._request_id) && whole.id.endsWith(whole._request_id),
  };

  seen.stream = { text: "", finish: null, tokens: null, pieces: 0 };
  const stream = await client.chat.completions.create({
    model, messages, max_completion_tokens: 5, temperature: 0, seed: 1, stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    if (chunk.usage) seen.stream.tokens = chunk.usage.completion_tokens;
    for (const choice of chunk.choices) {
      if (choice.delta.content) {
        seen.stream.text += choice.delta.content;
        seen.stream.pieces += 1;
      }
      seen.stream.finish = choice.finish_reason ?? seen.stream.finish;
    }
  }

  const several = await client.chat.completions.create({ model, messages, max_tokens: 4, n: 3 });
  seen.n = several.choices.map((choice) => [choice.index, Boolean(choice.message.content)]);

  seen.completions = ["", ""];
  const texts = await client.completions.create({ model, prompt: ["one", "two"], max_tokens: 4, stream: true });
  for await (const chunk of texts) {
    for (const choice of chunk.choices) seen.completions[choice.index] += choice.text;
  }
  seen.completion = (await client.completions.create({ model, prompt: "one", max_tokens: 4 })).choices[0].text;

  if (process.env.TOOLS) {
    const called = await client.chat.completions.create({ model, messages, tools, tool_choice: "required", max_tokens: 64 });
    const calls = called.choices[0].message.tool_calls ?? [];
    seen.tools = {
      finish: called.choices[0].finish_reason,
      names: calls.map((call) => call.function.name),
      arguments: calls.map((call) => JSON.parse(call.function.arguments)),
    };
    const final = await client.chat.completions
      .stream({ model, messages, tools, tool_choice: "required", max_tokens: 64 })
      .finalChatCompletion();
    const streamed = final.choices[0].message;
    seen.streamed_tools = (streamed.tool_calls ?? []).map((call) => call.function.name);
    const { role, content, tool_calls } = streamed;
    const answered = await client.chat.completions.create({
      model, max_tokens: 4,
      messages: [
        ...messages, { role, content, tool_calls },
        ...(tool_calls ?? []).map((call) => ({ role: "tool", tool_call_id: call.id, content: "noted" })),
      ],
    });
    seen.after_tools = Boolean(answered.choices[0].message.content);
  }

  if (process.env.RESPONSE_FORMAT) {
    const schema = { type: "object", properties: { n: { type: "integer" } }, required: ["n"], additionalProperties: false };
    const formatted = await client.chat.completions.create({
      model, messages, max_tokens: 32, temperature: 0,
      response_format: { type: "json_schema", json_schema: { name: "n", schema, strict: true } },
    });
    seen.format = JSON.parse(formatted.choices[0].message.content);
  }

  if (process.env.EMBEDDINGS) {
    const vectors = async (options) => (await client.embeddings.create({ model: process.env.EMBEDDINGS, ...options })).data.map((one) => one.embedding);
    seen.embeddings_float = await vectors({ input: ["a", "b"], encoding_format: "float" });
    // Without a format the client asks for base64 and decodes it.
    seen.embeddings_base64 = await vectors({ input: ["a", "b"] });
    seen.embeddings = await vectors({ input: "a" });
  }

  seen.wrong_key = await failure(() => new OpenAI({ apiKey: "sk-wrong", maxRetries: 0 }).models.list());
  seen.wrong_model = await failure(() => client.chat.completions.create({ model: "no-such", messages }));
  seen.wrong_key_of_request = await failure(() => client.chat.completions.create({ model, messages, tomperature: 1 }));
  seen.logprobs = await failure(() => client.chat.completions.create({ model, messages, logprobs: true }));
  console.log(JSON.stringify(seen));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
