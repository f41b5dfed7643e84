// Asks a model on the market with OpenAI's own client: npm install openai
//
// Run `infernet proxy` first; then: node chat.mjs MODEL "PROMPT"

import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import OpenAI from "openai";

const [model, prompt] = process.argv.slice(2);
const key = () => readFileSync(`${homedir()}/.config/infernet/proxy.key`, "utf8").trim();
const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8434/v1",
  apiKey: process.env.OPENAI_API_KEY ?? key(),
});

const stream = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: prompt }],
  max_tokens: 200,
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
process.stdout.write("\n");
