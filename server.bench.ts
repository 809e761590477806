/**
 * How fast is server.ts, beside a bare Bun.serve on the same machine, in the same minute?
 *
 *     bun server.bench.ts            under three minutes; needs wrk
 *     bun server.bench.ts --peers    the same requests to other servers, from their own docs
 *
 * The load comes from another process (wrk), the rounds of the two alternate, and only medians of
 * their ratios count: these figures are about the code, not about the machine.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const wrk = Bun.which("wrk");
if (!wrk) {
  console.error("wrk is missing; install it with `apt-get install wrk` or `brew install wrk`.");
  process.exit(1);
}
const FOLDER = mkdtempSync(join(tmpdir(), "items-bench-"));
process.on("exit", () => rmSync(FOLDER, { recursive: true, force: true }));

// ── The servers ────────────────────────────────────────────────────────────────────────────────

/** A bare server: the same query, or one commit a write, and nothing else. */
const bare = (synchronous: "full" | "normal", isSameAnswer = false) => `
  const { Database } = require("bun:sqlite");
  const db = new Database(process.env.FILE);
  db.run("pragma journal_mode = wal"); db.run("pragma synchronous = ${synchronous}");
  db.run("create table items (id text primary key, name text not null)");
  db.run("insert into items values ('1', 'apple')");
  const find = db.query("select id, name from items where id = $1");
  const insert = db.query("insert into items values (?1, ?2)");
  const fields = (item) => (${isSameAnswer} ? { headers: {
    "cache-control": "no-cache", "x-content-type-options": "nosniff",
    etag: '"' + Bun.SHA256.hash(JSON.stringify({ item: item.name }), "base64") + '"' } } : {});
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", routes: {
    "/items/:id": { GET: (request) => {
      const [item] = find.all(request.params.id);
      return item ? Response.json({ item: item.name }, fields(item)) : new Response("", { status: 404 });
    } },
    "/items": { POST: async (request) => {
      const { id, name } = await request.json();
      insert.run(id, name);
      return Response.json({ message: "Item created" }, { status: 201 });
    } },
  } });
  console.log(server.url.origin);`;

type Running = { pid: number; stop: () => Promise<number>; url: string; startup: number };
let files = 0;

/** Starts a server and waits for its first answer; \`startup\` is how long that took, in ms. */
async function start(
  command: string[],
  env: Record<string, string> = {},
  path = "/items/1",
): Promise<Running> {
  const file = join(FOLDER, `${files++}.sqlite`);
  const begin = performance.now();
  const output = Bun.file(`${file}.log`);
  const child = Bun.spawn(command, {
    cwd: import.meta.dir,
    env: {
      ...Bun.env,
      FILE: file,
      DATABASE_URL: `sqlite://${file}`,
      PORT: "0",
      LOG: "off",
      ...env,
    },
    stdout: output,
    stderr: "inherit",
  });
  let found: RegExpExecArray | null = null;
  while (!found) {
    await Bun.sleep(1);
    found = /http:\/\/([^\s/]+)(?=[\s/])/.exec(await output.text());
  }
  const url = found[0].replace("localhost", "127.0.0.1");
  await fetch(url + path);
  const startup = performance.now() - begin;
  const stop = () => {
    child.kill();
    return child.exited;
  };
  return { pid: child.pid, startup, stop, url };
}

const items = (env = {}) => start([process.execPath, "server.ts"], env);
const bareServer = (...kind: Parameters<typeof bare>) =>
  start([process.execPath, "-e", bare(...kind)]);

// ── The load ───────────────────────────────────────────────────────────────────────────────────

const POST = join(FOLDER, "post.lua");
await Bun.write(
  POST,
  `
  local n, run = 0, tostring(os.time()) .. tostring(math.random(1e9))
  function setup(thread) end
  function init() math.randomseed(os.time()); run = run .. tostring({}):sub(8) end
  function request()
    n = n + 1
    local body = '{"id":"' .. run .. "-" .. n .. '","name":"bench"}'
    return wrk.format("POST", "/items", { ["content-type"] = "application/json" }, body)
  end`,
);

/** Requests a second, and the median latency in milliseconds. */
async function load(
  url: string,
  { clients = 50, path = "/items/1", post = false, seconds = 2 } = {},
) {
  const script = post ? ["-s", POST] : [];
  const command = [
    wrk ?? "",
    "-t1",
    `-c${clients}`,
    `-d${seconds}`,
    "--latency",
    ...script,
    url + (post ? "/items" : path),
  ];
  const text = await new Response(Bun.spawn(command, { stdout: "pipe" }).stdout).text();
  const failures = Number(/Non-2xx or 3xx responses: (\d+)/.exec(text)?.[1] ?? 0);
  if (failures > 0) throw new Error(`${failures} requests to ${url} failed:\n${text}`);
  const [, latency = "0", unit = "ms"] = /50%\s+([\d.]+)(us|ms|s)/.exec(text) ?? [];
  const milliseconds = Number(latency) * ({ us: 0.001, ms: 1, s: 1000 }[unit] ?? 1);
  return { milliseconds, rate: Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]) };
}

const median = (numbers: number[]) =>
  numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? NaN;
const memory = ({ pid }: Running) =>
  Number(Bun.spawnSync(["ps", "-o", "rss=", "-p", `${pid}`]).stdout.toString()) / 1024;
const progress = (text: string) => console.error(`… ${text}`);

/** Alternates rounds of two servers; gives the medians and that of the ratio of each pair. */
async function compare(
  ours: Running,
  theirs: Running,
  options: Parameters<typeof load>[1],
  of: "rate" | "milliseconds" = "rate",
  rounds = 5,
) {
  const pairs: [number, number][] = [];
  for (let round = 0; round <= rounds; round++) {
    const pair: [number, number] = [
      (await load(ours.url, options))[of],
      (await load(theirs.url, options))[of],
    ];
    if (round > 0) pairs.push(pair); // the first is the warm-up
  }
  return [
    median(pairs.map(([a]) => a)),
    median(pairs.map(([, b]) => b)),
    median(pairs.map(([a, b]) => a / b)),
  ] as const;
}

// ── The figures ────────────────────────────────────────────────────────────────────────────────

const table: Record<string, string>[] = [];
function row(
  what: string,
  [ours, theirs, ratio]: readonly [number, number, number],
  unit: string,
  aim: string,
  isMet: boolean,
) {
  const shown = (value: number) => `${value >= 100 ? Math.round(value) : value.toFixed(2)} ${unit}`;
  table.push({
    what,
    ours: shown(ours),
    bare: shown(theirs),
    ratio: ratio.toFixed(2),
    aim,
    met: isMet ? "yes" : "no",
  });
}

async function figures() {
  const ours = await items();
  const [full, normal, same] = [
    await bareServer("full"),
    await bareServer("normal"),
    await bareServer("full", true),
  ];

  progress("GET /items/1, fifty clients");
  const get = await compare(ours, full, { seconds: 1 });
  row("GET /items/1", get, "/s", ">= 0.90", get[2] >= 0.9);
  const alike = await compare(ours, same, { seconds: 1 });
  row("GET /items/1, bare sends the same bytes", alike, "/s", ">= 0.90", alike[2] >= 0.9);

  progress("POST /items, durable, fifty clients");
  const durable = await compare(ours, full, { post: true }, "rate", 3);
  row("POST, a full commit each", durable, "/s", ">= 10", durable[2] >= 10);
  const relaxed = await compare(ours, normal, { post: true }, "rate", 3);
  row("POST, bare with synchronous = normal", relaxed, "/s", ">= 1", relaxed[2] >= 1);

  progress("a lone durable write");
  const lone = await compare(ours, full, { clients: 1, post: true, seconds: 1 }, "milliseconds");
  row("latency of a lone write", lone, "ms", "<= 1.3", lone[2] <= 1.3);

  progress("the cost of the log");
  const logging = await items({ LOG: "on" });
  const logged = await compare(logging, ours, { seconds: 1 });
  row("GET with LOG=on, beside LOG=off", logged, "/s", ">= 0.90", logged[2] >= 0.9);

  progress("memory over a million requests");
  const early = memory(ours);
  const { rate } = await load(ours.url, { seconds: 2 });
  await load(ours.url, { seconds: Math.min(25, Math.ceil(1_000_000 / rate)) });
  await load(full.url, { seconds: 5 });
  const late = memory(ours);
  row(
    "resident memory after a million GETs",
    [late, memory(full), late / memory(full)],
    "MiB",
    "<= 2",
    late <= 2 * memory(full),
  );
  row(
    "the same, beside before them",
    [late, early, late / early],
    "MiB",
    "<= 1.10",
    late <= 1.1 * early,
  );
  await Promise.all([ours, full, normal, same, logging].map(({ stop }) => stop()));

  progress("start to first answer");
  const starts: [number, number][] = [];
  for (let round = 0; round < 5; round++) {
    const [a, b] = [await items(), await bareServer("full")];
    starts.push([a.startup, b.startup]);
    await Promise.all([a.stop(), b.stop()]);
  }
  const [a, b] = [
    median(starts.map(([first]) => first)),
    median(starts.map(([, second]) => second)),
  ];
  row("start to first answer", [a, b, a / b], "ms", "<= 100 ms more", a - b <= 100);
  console.table(table);
}

// ── The peers ── each as its own documentation would have it ────────────────────────────────────

const PEERS: Record<
  string,
  { packages: string[]; code: string; run: (file: string) => string[]; path?: string }
> = {
  "Hono on Bun": {
    packages: ["hono@4.10.4"],
    code: `import { Hono } from "hono";
      const items = new Map([["1", "apple"]]);
      const app = new Hono();
      app.get("/items/:id", (c) => items.has(c.req.param("id")) ? c.json({ item: items.get(c.req.param("id")) }) : c.json({ error: "Item not found" }, 404));
      app.post("/items", async (c) => { const { id, name } = await c.req.json(); items.set(id, name); return c.json({ message: "Item created" }, 201); });
      const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: app.fetch });
      console.log(server.url.origin);`,
    run: (file) => [process.execPath, file],
  },
  Fastify: {
    packages: ["fastify@5.6.1"],
    code: `import Fastify from "fastify";
      const items = new Map([["1", "apple"]]);
      const app = Fastify();
      app.get("/items/:id", (request, reply) => items.has(request.params.id) ? { item: items.get(request.params.id) } : reply.code(404).send({ error: "Item not found" }));
      app.post("/items", (request, reply) => { items.set(request.body.id, request.body.name); reply.code(201).send({ message: "Item created" }); });
      console.log(await app.listen({ port: 0, host: "127.0.0.1" }));`,
    run: (file) => ["node", file],
  },
  Express: {
    packages: ["express@5.1.0"],
    code: `import express from "express";
      const items = new Map([["1", "apple"]]);
      const app = express();
      app.use(express.json());
      app.get("/items/:id", (req, res) => items.has(req.params.id) ? res.json({ item: items.get(req.params.id) }) : res.status(404).json({ error: "Item not found" }));
      app.post("/items", (req, res) => { items.set(req.body.id, req.body.name); res.status(201).json({ message: "Item created" }); });
      const server = app.listen(0, "127.0.0.1", () => console.log("http://127.0.0.1:" + server.address().port));`,
    run: (file) => ["node", file],
  },
  "json-server": {
    packages: ["json-server@0.17.4"],
    code: `import jsonServer from "json-server";
      const app = jsonServer.create();
      app.use(jsonServer.defaults({ logger: false }), jsonServer.router(process.env.FILE + ".json"));
      const server = app.listen(0, "127.0.0.1", () => console.log("http://127.0.0.1:" + server.address().port));`,
    run: (file) => ["node", file],
  },
};

async function peers() {
  const rows: Record<string, string>[] = [];
  const measure = async (name: string, server: Running) => {
    progress(name);
    await load(server.url, { seconds: 1 });
    const get = await load(server.url);
    const post = await load(server.url, { post: true }).catch(() => ({ rate: NaN }));
    rows.push({
      name,
      "GET /items/1": `${Math.round(get.rate)} /s`,
      "POST /items": `${Math.round(post.rate)} /s`,
      memory: `${Math.round(memory(server))} MiB`,
    });
    await server.stop();
  };
  await measure("items (durable)", await items());
  for (const [name, { code, packages, run }] of Object.entries(PEERS)) {
    const folder = mkdtempSync(join(FOLDER, "peer-"));
    await Bun.write(join(folder, "package.json"), '{"type":"module"}');
    const installed = Bun.spawnSync([process.execPath, "add", "--silent", ...packages], {
      cwd: folder,
    });
    if (installed.exitCode !== 0) {
      rows.push({ name, "GET /items/1": `not installed: ${packages}` });
      continue;
    }
    await Bun.write(join(folder, "server.js"), code);
    await Bun.write(join(FOLDER, `${files}.sqlite.json`), '{"items":[{"id":"1","name":"apple"}]}');
    await measure(`${name} (${packages})`, await start(run(join(folder, "server.js"))));
  }
  console.table(rows);
}

await (Bun.argv.includes("--peers") ? peers() : figures());
