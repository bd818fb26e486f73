// Checks a running server with OpenAI's client for Node:
//     node openai_client.mjs MODULE URL MODEL < messages.json
// MODULE is the client's file. Prints one JSON object with what the client returned.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, url, model] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(module).href);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model, messages: JSON.parse(readFileSync(0, "utf8")) };

const whole = await client.chat.completions.create(asked);
let streamed = "";
const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
let usage = null;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
// A stream that is left must not disturb the next request.
const left = await client.chat.completions.create({ ...asked, stream: true, max_tokens: 400, ignore_eos: true });
for await (const chunk of left) {
  if (chunk.choices[0]?.delta?.content) break;
}
let refused = null;
try {
  await client.chat.completions.create({ ...asked, top_p: 9 });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, param: error.param };
}
const models = [];
for await (const one of client.models.list()) models.push(one.id);
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, streamed, tokens: usage.completion_tokens,
  wholeTokens: whole.usage.completion_tokens, refused, models,
}));
