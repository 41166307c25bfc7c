// Checks, compiles and calls the helper of docs/invalidation.md.
//
//   node invalidate.mjs INPUT
//
// INPUT is a JSON file: {"package", "code", "redis": {"host", "port"}, "calls": [{"tenant", "keys"}]}. `code` is the
// helper's TypeScript; it is checked against the package's own types and called with its real client. What is
// wrong with its types is printed, one JSON string a line; the last line says how many calls were made.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { Redis as IoRedis } from "ioredis";
import { Redis as UpstashRedis } from "@upstash/redis";
import ts from "typescript";

const input = JSON.parse(readFileSync(process.argv[2], "utf8"));
const print = (value) => console.log(JSON.stringify(value));

/// What is wrong with the types of a file that stands beside this one, in memory only.
function problems(code) {
  const options = {
    strict: true,
    noEmit: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    types: ["node"],
    skipLibCheck: true,
  };
  const file = fileURLToPath(new URL("./helper.ts", import.meta.url));
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists } = host;
  host.fileExists = (name) => name === file || fileExists(name);
  host.getSourceFile = (name, ...rest) =>
    name === file ? ts.createSourceFile(name, code, ts.ScriptTarget.ES2022) : getSourceFile(name, ...rest);
  const program = ts.createProgram([file], options, host);
  return ts
    .getPreEmitDiagnostics(program)
    .map((found) => ts.flattenDiagnosticMessageText(found.messageText, "\n"));
}

/// What stands between `@upstash/redis` and a Redis: a transaction or a pipeline of commands over HTTP.
async function upstash(redis) {
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    const commands = JSON.parse(body);
    const batch = request.url === "/multi-exec" ? redis.multi(commands) : redis.pipeline(commands);
    const replies = await batch.exec();
    const answers = replies.map(([error, result]) => (error ? { error: error.message } : { result }));
    response.setHeader("content-type", "application/json").end(JSON.stringify(answers));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const url = `http://127.0.0.1:${server.address().port}`;
  const client = new UpstashRedis({ url, token: "none", responseEncoding: false, enableTelemetry: false });
  return { client, close: () => server.close() };
}

problems(input.code).forEach(print);
const { outputText } = ts.transpileModule(input.code, {
  compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
});
const { invalidate } = await import(`data:text/javascript,${encodeURIComponent(outputText)}`);

const redis = new IoRedis(input.redis);
const clients = {
  ioredis: async () => ({ client: redis, close: () => {} }),
  "@upstash/redis": () => upstash(redis),
};
const { client, close } = await clients[input.package]();
for (const { tenant, keys } of input.calls) await invalidate(client, tenant, keys);
close();
await redis.quit();
print({ calls: input.calls.length });
