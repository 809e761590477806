/**
 * How fast is server.ts, beside a bare Bun.serve on the same machine, in the same minutes?
 *
 *     bun server.bench.ts            about three minutes; needs wrk
 *     bun server.bench.ts --growth   what a list costs in a table of 1,000 and of 1,000,000 items
 *     bun server.bench.ts --peers    other servers that do the same work: how fast, and how right
 *
 * Whole processes, the server on one core and wrk, with fifty clients, on another. The rounds of
 * two servers alternate, and the first is the warm-up. The ratio is the median of those of the
 * rounds; the least and the most of them stand beside it, for they are the noise. `by CPU` is that
 * of GETs for a second of processor time, which other work on the machine hardly touches: an aim is
 * met if both reach it.
 */
import { Database } from "bun:sqlite";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";

const ROUNDS = 5;
const SECONDS = 1; // of a round

async function figures() {
  const [ours, bare, normal] = [
    await items(),
    await bareServer(),
    await bareServer({ SYNCHRONOUS: "normal" }),
  ];
  await addItems(ours, bare);
  const same = await sameBytes(ours, bare);

  for (const path of PATHS) {
    const measure = (server: Server) => gets(server, path);
    await compare(`GET ${path}`, [ours, bare], measure, ">= 0.80");
    await compare(`GET ${path}, bare sends the same bytes`, [ours, same], measure, ">= 0.88");
  }

  await compare("POST, bare: a full commit each", [ours, bare], posts, ">= 6");
  await compare("POST, bare: synchronous = normal", [ours, normal], posts, ">= 1.0");
  await compare("latency of a lone POST", [ours, bare], lonePost, "<= 1.3", "ms");

  const logging = await items({ LOG: "on" });
  await compare("GET /items/1, LOG=on beside off", [logging, ours], gets, ">= 0.90");

  const before = await alternate([ours, bare], memoryInUse);
  for (const server of [ours, bare]) await million(server);
  const after = await alternate([ours, bare], memoryInUse);
  row("memory after a million GETs", after, "<= 2.0", "MiB");
  const grown = after.map(([mine], round): Pair => [mine, before[round]?.[0] ?? mine]);
  row("memory after them, beside before", grown, "<= 1.10", "MiB");

  const starting = async (begin: typeof items) => {
    const [began, server] = [performance.now(), await begin()];
    const value = performance.now() - began;
    await server.stop();
    return { value };
  };
  await compare("start to first answer", [items, bareServer], starting, "<= 90 ms more", "ms");
}

/** A bare server: the same queries, one commit a write, and nothing else. */
const BARE = `
  const { Database } = require("bun:sqlite");
  const { FIELDS = "{}", FILE, PORT, SYNCHRONOUS = "full" } = process.env;
  const db = new Database(FILE);
  db.run("pragma journal_mode = wal; pragma synchronous = " + SYNCHRONOUS);
  db.run("create table items (id text primary key, name text not null)");
  db.run("insert into items values ('1', 'apple'), ('2', 'banana')");
  const find = db.query("select id, name from items where id = ?1");
  const page = db.query("select id, name from items where id > ?1 order by id limit ?2");
  const insert = db.query("insert into items values (?1, ?2)");
  const { "/items/1": one, "/items": list } = JSON.parse(FIELDS);
  Bun.serve({ port: PORT, hostname: "127.0.0.1", routes: {
    "/items/:id": { GET: ({ params }) => {
      const [item] = find.all(params.id);
      return item ? Response.json({ item: item.name }, one) : new Response("", { status: 404 });
    } },
    "/items": {
      GET: () => Response.json({ items: page.all("", 21).slice(0, 20) }, list),
      POST: async (request) => {
        const { id, name } = await request.json();
        insert.run(id, name);
        return Response.json({ message: "Item created" }, { status: 201 });
      },
    },
  } });`;
const PATHS = ["/items/1", "/items"];

const items = (env = {}) => start("exec bun server.ts", env);
const bareServer = (env = {}) => start(`exec bun -e "$BARE"`, { BARE, ...env });

/** More than a page of items, so that the list says where it goes on. */
async function addItems(...servers: Server[]) {
  for (const { url } of servers)
    for (let id = 100; id < 150; id++) {
      const body = JSON.stringify({ id: `${id}`, name: `item ${id}` });
      await fetch(`${url}/items`, { method: "POST", headers: JSON_TYPE, body });
    }
}

/** A bare server whose answers are those of ours, with every field that the bare ones lack. */
async function sameBytes(ours: Server, bare: Server) {
  const init = async (path: string) => [path, { headers: await extraFields(path, ours, bare) }];
  const FIELDS = JSON.stringify(Object.fromEntries(await Promise.all(PATHS.map(init))));
  const same = await bareServer({ FIELDS });
  await addItems(same);
  for (const path of PATHS)
    for (const fields of [await extraFields(path, ours, same), await extraFields(path, same, ours)])
      if (Object.keys(fields).length > 0) throw new Error(`GET ${path}: other fields`);
  return same;
}

/** The fields of an answer that the other's lacks; the bodies must be the same. */
async function extraFields(path: string, one: Server, other: Server) {
  const [a, b] = [await fetch(one.url + path), await fetch(other.url + path)];
  if ((await a.text()) !== (await b.text())) throw new Error(`GET ${path}: other bodies`);
  const differs = ([name, text]: [string, string]) => b.headers.get(name) !== text;
  return Object.fromEntries([...a.headers].filter(differs).filter(([name]) => name !== "date"));
}

// ── Growth ── the cost of a list does not grow with the table ────────────────────────────────────

const LISTS: [what: string, query: (size: number) => string, length: number][] = [
  ["first page", () => "", 20],
  ["last page", (size) => `?after=${idOf(size - 20)}`, 20],
  ["name found", (size) => `?name=name-${size / 2}`, 1],
  ["name not found", () => "?name=nobody", 0],
  ["name common", () => "?name=common", 20],
];
const idOf = (n: number) => `item-${`${10_000_000 + n}`.slice(1)}`;

/** The second half is called `common`, so that no walk in the order of ids meets it soon. */
const fill = (size: number) => `
  with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < ${size})
  insert into items (id, name) select 'item-' || substr(cast(10000000 + n as text), 2),
    case when n > ${size / 2} then 'common' else 'name-' || n end from numbers`;

type Filled = Server & { size: number };

async function growth() {
  for (const [engine, filled] of [
    ["SQLite", filledSqlite],
    ["PostgreSQL", filledPostgres],
  ] as const)
    try {
      const both: [Filled, Filled] = [await filled(1_000_000), await filled(1_000)];
      for (const [what, query, length] of LISTS)
        await compare(
          `${engine}, ${what}: 1,000,000 items beside 1,000`,
          both,
          ({ url, size }) => latency(`${url}/items${query(size)}`, length),
          "<= 3.0",
          "ms",
        );
    } catch (error) {
      if (!(error instanceof OutOfReach)) throw error;
      console.log(error.message);
    }
}

async function filledSqlite(size: number): Promise<Filled> {
  const server = await items();
  using db = new Database(server.file);
  db.run(fill(size));
  db.run("pragma wal_checkpoint(truncate)");
  return { ...server, size };
}

class OutOfReach extends Error {}

/** A database of its own, dropped at the end. */
async function filledPostgres(size: number): Promise<Filled> {
  const url = new URL(Bun.env.BENCH_DATABASE_URL ?? "postgres://postgres@127.0.0.1:5432/postgres");
  const name = `items_bench_${process.pid}_${size}`;
  const admin = new Bun.SQL(url.href, { connectionTimeout: 3 });
  await admin.unsafe(`create database ${name}`).catch(({ message }) => {
    throw new OutOfReach(`PostgreSQL at ${url.host} is not measured: ${message}.`);
  });
  undo.push(() => admin.unsafe(`drop database ${name} with (force)`));

  url.pathname = name;
  const server = await items({ DATABASE_URL: url.href });
  await using sql = new Bun.SQL(url.href);
  await sql.unsafe(fill(size));
  await sql.unsafe("vacuum analyze items"); // as its autovacuum does, sooner or later
  return { ...server, size };
}

/** The median of sequential requests in milliseconds; more than two seconds count as missed. */
async function latency(url: string, length: number) {
  const times: number[] = [];
  const end = performance.now() + SECONDS * 1000;
  while (times.length < 100 && performance.now() < end) {
    const began = performance.now();
    const answer = await ask(url);
    if (answer?.status !== 200) return { value: Infinity };
    times.push(performance.now() - began);
    const found = JSON.parse(answer.text).items.length;
    if (found !== length) throw new Error(`${url}: ${found} items, not ${length}`);
  }
  return { value: median(times) };
}

// ── Peers ── the same work, as the documentation of each would have it ───────────────────────────

const JSON_TYPE = { "content-type": "application/json" };
const FORM = { "content-type": "application/x-www-form-urlencoded" };
const TEXT = { "content-type": "text/plain" };
const STALE = { ...JSON_TYPE, "if-match": '"old"' };
const FRESH = { ...JSON_TYPE, "if-none-match": "*" };
const cherry = (id: number, name = "cherry") => JSON.stringify({ id: `${id}`, name });
const MEBI = 2 ** 20;

/**
 * Twenty everyday requests of a client that takes JSON, sent in this order, with every status that
 * RFC 9110 has for them. A refusal has to change nothing, and HEAD may not contradict GET.
 */
const EVERYDAY: [what: string, line: string, right: string, fields?: object, body?: string][] = [
  ["an item", "GET /items/1", "200 with ETag"],
  ["it, without the body", "HEAD /items/1", "200"],
  ["it, if it has changed", "GET /items/1", "304", { "if-none-match": "ITS ETAG" }],
  ["an item that is not there", "GET /items/9", "404"],
  ["a path that is not there", "GET /nowhere", "404 in JSON"],
  ["a path that is no UTF-8", "GET /items/%E0%A4%A", "400"],
  ["a new item", "POST /items", "201 with Location", JSON_TYPE, cherry(3)],
  ["an id that is taken", "POST /items", "400 or 409", JSON_TYPE, cherry(3)],
  ["no name", "POST /items", "400 or 422", JSON_TYPE, '{"id":"4"}'],
  ["a number for a name", "POST /items", "400 or 422", JSON_TYPE, '{"id":"5","name":5}'],
  ["broken JSON", "POST /items", "400", JSON_TYPE, '{"id":"6",'],
  ["a form", "POST /items", "415", FORM, "id=7&name=cherry"],
  ["JSON that says it is text", "POST /items", "415", TEXT, cherry(8)],
  ["a body of 2 MiB", "POST /items", "413", JSON_TYPE, cherry(10, "x".repeat(2 * MEBI))],
  ["over a version that is gone", "PUT /items/1", "412", STALE, cherry(1)],
  ["only where nothing is", "PUT /items/1", "412", FRESH, cherry(1, "date")],
  ["what can be done", "OPTIONS /items/1", "200 or 204 with Allow"],
  ["what cannot", "DELETE /items", "405 with Allow"],
  ["an item's end", "DELETE /items/2", "200 or 204"],
  ["the same again", "DELETE /items/2", "404 or 410"],
];

async function peers() {
  const judged: Record<string, string>[] = [];
  const wrong: string[] = [];
  const tryPosts: typeof posts = (server) => posts(server).catch(() => ({ value: NaN }));
  const ours = await items();
  for (const { packages, run, program = "" } of PEERS) {
    const [name = ""] = packages;
    const cwd = mkdtempSync(join(FOLDER, "peer-"));
    await Bun.write(join(cwd, "package.json"), '{"type":"module"}');
    await Bun.write(join(cwd, "server.js"), program);
    try {
      await Bun.$`${process.execPath} add --exact --trust ${packages}`.cwd(cwd).quiet();
      const theirs = await start(run, {}, cwd);
      await compare(`GET /items/1, beside ${name}`, [ours, theirs], gets, ">= 1.0");
      await compare(`POST, beside ${name}`, [ours, theirs], tryPosts, ">= 1.0");
      await judge(name, theirs, await start(run, {}, cwd));
    } catch (error) {
      judged.push({ server: name, right: `not measured: ${error}` });
    }
  }
  await judge("items", ours, await items());
  console.table(judged);
  console.log(wrong.join("\n"));

  async function judge(server: string, used: Server, fresh: Server) {
    const found = await faults(fresh);
    wrong.push(...found.map((each) => `${server}: ${each}`));
    const right = `${EVERYDAY.length - found.length} of ${EVERYDAY.length}`;
    judged.push({ server, right, "memory after the load": `${Math.round(memory(used))} MiB` });
    await Promise.all([fresh.stop(), server === "items" || used.stop()]);
  }
}

/** What a server gets wrong of them. */
async function faults({ url }: Server) {
  const found: string[] = [];
  const item = await ask(`${url}/items/1`);
  const etag = item?.headers.get("etag") ?? '"none"';
  for (const [what, line, right, fields, body] of EVERYDAY) {
    const [method = "", path] = line.split(" ");
    const headers = new Headers({ accept: "application/json", ...fields });
    if (headers.get("if-none-match") === "ITS ETAG") headers.set("if-none-match", etag);
    const before = await ask(`${url}/items`);
    const answer = await ask(url + path, { method, headers, body });
    const after = await ask(`${url}/items`);

    const { status = 0, headers: got = new Headers() } = answer ?? {};
    const field = / with (\w+)/.exec(right)?.[1];
    const contradicts = (name: string) =>
      got.has(name) && got.get(name) !== item?.headers.get(name);
    const fault =
      (!answer && "has no answer") ||
      (!right.includes(`${status}`) && `is ${status}`) ||
      (field && !got.has(field) && `has no ${field}`) ||
      (right.includes("JSON") && !got.get("content-type")?.includes("json") && "is no JSON") ||
      (method === "HEAD" && contradicts("etag") && "has another ETag than GET") ||
      (method === "HEAD" && contradicts("content-length") && "has another length than GET") ||
      (status >= 400 && before?.text !== after?.text && "changes something all the same");
    if (fault) found.push(`${what}, ${line}: ${fault}, right is ${right}`);
  }
  return found;
}

/** What the four share: an SQLite file that keeps what it has acknowledged. */
const STORE = `
  const db = new Database(process.env.FILE);
  db.exec("pragma journal_mode = wal; pragma synchronous = full");
  db.exec("create table if not exists items (id text primary key, name text not null)");
  db.exec("insert or ignore into items values ('1', 'apple'), ('2', 'banana')");
  const list = db.prepare("select * from items order by id limit 20");
  const find = db.prepare("select * from items where id = ?");
  const insert = db.prepare("insert into items values (?, ?) on conflict do nothing");
  const update = db.prepare("update items set name = ? where id = ?");
  const remove = db.prepare("delete from items where id = ?");
  const at = (id) => "/items/" + encodeURIComponent(id);`;
const ON_BUN = `import { Database } from "bun:sqlite";${STORE}`;
const ON_NODE = `import Database from "better-sqlite3";${STORE}`;
const NODE = "node@26.10.0"; // better-sqlite3 and json-server want a newer one than many have
const BETTER_SQLITE = "better-sqlite3@13.2.0";

type Peer = { packages: string[]; run: string; program?: string };
const PEERS: Peer[] = [
  {
    packages: ["hono@4.13.19"],
    run: "exec bun server.js",
    program: `${ON_BUN}
      import { Hono } from "hono";
      import { etag } from "hono/etag";
      import { validator } from "hono/validator";

      const body = (...members) => validator("json", (value, c) =>
        members.every((each) => typeof value[each] === "string") ? value : c.text("Invalid!", 400));

      const app = new Hono();
      app.use("/items/*", etag());
      app.get("/items", (c) => c.json(list.all()));
      app.get("/items/:id", (c) => {
        const item = find.get(c.req.param("id"));
        return item ? c.json(item) : c.notFound();
      });
      app.post("/items", body("id", "name"), (c) => {
        const { id, name } = c.req.valid("json");
        if (!insert.run(id, name).changes) return c.json({ error: "Taken" }, 409);
        return c.json({ message: "Created!" }, 201, { Location: at(id) });
      });
      app.put("/items/:id", body("name"), (c) => {
        const { changes } = update.run(c.req.valid("json").name, c.req.param("id"));
        return changes ? c.json({ message: "Updated!" }) : c.notFound();
      });
      app.delete("/items/:id", (c) =>
        remove.run(c.req.param("id")).changes ? c.body(null, 204) : c.notFound());
      export default { fetch: app.fetch, hostname: "127.0.0.1", port: process.env.PORT };`,
  },
  {
    packages: ["fastify@5.12.8", "@fastify/etag@6.2.0", BETTER_SQLITE, NODE],
    run: "exec node server.js",
    program: `${ON_NODE}
      import Fastify from "fastify";
      import etag from "@fastify/etag";

      const body = (...required) => ({ schema: { body: { type: "object", required,
        properties: { id: { type: "string" }, name: { type: "string" } } } } });

      const fastify = Fastify();
      await fastify.register(etag);
      fastify.get("/items", () => list.all());
      fastify.get("/items/:id", (request, reply) =>
        find.get(request.params.id) ?? reply.callNotFound());
      fastify.post("/items", body("id", "name"), (request, reply) => {
        const { id, name } = request.body;
        if (!insert.run(id, name).changes) return reply.code(409).send({ error: "Taken" });
        return reply.code(201).header("Location", at(id)).send({ message: "Created" });
      });
      fastify.put("/items/:id", body("name"), (request, reply) => {
        const { changes } = update.run(request.body.name, request.params.id);
        return changes ? { message: "Updated" } : reply.callNotFound();
      });
      fastify.delete("/items/:id", (request, reply) =>
        remove.run(request.params.id).changes ? reply.code(204).send() : reply.callNotFound());
      await fastify.listen({ port: process.env.PORT });`,
  },
  {
    packages: ["express@5.3.0", BETTER_SQLITE, NODE],
    run: "exec node server.js",
    program: `${ON_NODE}
      import express from "express";

      const body = (...members) => (req, res, next) =>
        members.every((each) => typeof req.body?.[each] === "string") ? next() : res.sendStatus(400);

      const app = express();
      app.use(express.json());
      app.get("/items", (req, res) => res.json(list.all()));
      app.get("/items/:id", (req, res) => {
        const item = find.get(req.params.id);
        return item ? res.json(item) : res.sendStatus(404);
      });
      app.post("/items", body("id", "name"), (req, res) => {
        const { id, name } = req.body;
        if (!insert.run(id, name).changes) return res.sendStatus(409);
        res.status(201).location(at(id)).json({ message: "Created" });
      });
      app.put("/items/:id", body("name"), (req, res) =>
        res.sendStatus(update.run(req.body.name, req.params.id).changes ? 200 : 404));
      app.delete("/items/:id", (req, res) =>
        res.sendStatus(remove.run(req.params.id).changes ? 204 : 404));
      app.listen(process.env.PORT, "127.0.0.1");`,
  },
  {
    packages: ["elysia@1.4.30"],
    run: "exec bun server.js",
    program: `${ON_BUN}
      import { Elysia, t } from "elysia";

      new Elysia()
        .get("/items", () => list.all())
        .get("/items/:id", ({ params, status }) => find.get(params.id) ?? status(404))
        .post("/items", ({ body: { id, name }, set, status }) => {
          if (!insert.run(id, name).changes) return status(409);
          set.headers.location = at(id);
          return status(201, { message: "Created" });
        }, { body: t.Object({ id: t.String(), name: t.String() }) })
        .put("/items/:id", ({ body, params, status }) =>
          update.run(body.name, params.id).changes ? { message: "Updated" } : status(404),
          { body: t.Object({ name: t.String() }) })
        .delete("/items/:id", ({ params, status }) =>
          status(remove.run(params.id).changes ? 204 : 404))
        .listen({ hostname: "127.0.0.1", port: process.env.PORT });`,
  },
  ...["json-server@0.17.4", "json-server@1.0.0-beta.15"].map((version) => ({
    packages: [version, NODE],
    run: `echo '{"items":[{"id":"1","name":"apple"},{"id":"2","name":"banana"}]}' > "$FILE.json"
      exec json-server "$FILE.json" --port "$PORT" --host 127.0.0.1`,
  })),
];

// ── Rounds ── two servers in turn, and the row that comes of it ──────────────────────────────────

type Figure = { value: number; perCpu?: number };
type Pair = [ours: Figure, beside: Figure];
type Measure<Each> = (each: Each) => Promise<Figure>;
const table: Record<string, string>[] = [];

async function compare<Each>(
  what: string,
  both: [Each, Each],
  measure: Measure<Each>,
  aim: string,
  unit = "/s",
) {
  console.error(`… ${what}`);
  row(what, await alternate(both, measure), aim, unit);
}

async function alternate<Each>([a, b]: [Each, Each], measure: Measure<Each>) {
  const pairs: Pair[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    if (undone) throw new Error("Interrupted");
    pairs.push([await measure(a), await measure(b)]);
  }
  return pairs.slice(1); // the first is the warm-up
}

/** One row of the table. An aim is a ratio, or with `more` a difference. */
function row(what: string, pairs: Pair[], aim: string, unit: string) {
  const isMore = aim.endsWith("more");
  const ratios = pairs.map(([{ value: ours }, { value: beside }]) =>
    isMore ? ours - beside : ours / beside,
  );
  const [ratio, byCpu] = [
    median(ratios),
    median(pairs.map(([ours, beside]) => Number(ours.perCpu) / Number(beside.perCpu))),
  ];
  const [sign, bound] = aim.split(" ");
  const isAsAimed = (value: number) =>
    sign === "<=" ? value <= Number(bound) : value >= Number(bound);
  const isMissed = !pairs.flat().every(({ value }) => Number.isFinite(value));
  const shown = (value: number) =>
    Number.isFinite(value) ? value.toFixed(value < 100 ? 2 : 0) : "missed";
  table.push({
    what,
    ours: `${shown(median(pairs.map(([{ value }]) => value)))} ${unit}`,
    beside: `${shown(median(pairs.map(([, { value }]) => value)))} ${unit}`,
    ratio: isMore ? `+${shown(ratio)} ${unit}` : shown(ratio),
    least: shown(Math.min(...ratios)),
    most: shown(Math.max(...ratios)),
    "by CPU": byCpu ? shown(byCpu) : "",
    aim,
    met: !isMissed && isAsAimed(ratio) && isAsAimed(byCpu || ratio) ? "yes" : "no",
  });
}

const median = (numbers: number[]) =>
  numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? NaN;

// ── Load ── from wrk, or one request at a time ───────────────────────────────────────────────────

async function gets(server: Server, path = "/items/1"): Promise<Figure> {
  const { perCpu, rate } = await load(server, { path });
  return { perCpu, value: rate };
}

async function posts(server: Server): Promise<Figure> {
  return { value: (await load(server, { post: true })).rate };
}

async function lonePost(server: Server): Promise<Figure> {
  return { value: (await load(server, { clients: 1, post: true })).latency };
}

async function million(server: Server) {
  for (let sent = 0; sent < 1_000_000;) sent += (await load(server, { seconds: 5 })).requests;
}

/** Resident memory in MiB, after a round. */
async function memoryInUse(server: Server): Promise<Figure> {
  await load(server);
  return { value: memory(server) };
}
const memory = ({ pid }: Server) =>
  Number(Bun.spawnSync(["ps", "-o", "rss=", "-p", `${pid}`]).stdout.toString()) / 1024;

/** What wrk finds: requests a second, all of them, and the median latency in milliseconds. */
async function load(
  { pid, url }: Server,
  { clients = 50, path = "/items/1", post = false, seconds = SECONDS } = {},
) {
  const command = ["wrk", "-t1", `-c${clients}`, `-d${seconds}`, "--latency"];
  const target = post ? ["-s", POST, `${url}/items`, "--", `${loads++}`] : [url + path];
  const before = processorTime(pid);
  const child = Bun.spawn([...onCore(1), ...command, ...target], { stdout: "pipe" });
  const text = await new Response(child.stdout).text();
  if (!text.includes("Requests/sec") || /Non-2xx|Socket errors/.test(text))
    throw new Error(`Requests to ${url} failed:\n${text}`);

  const found = (pattern: RegExp) => pattern.exec(text)?.[1] ?? "";
  const unit = { us: 0.001, ms: 1, s: 1000 }[found(/50%\s+[\d.]+(us|ms|s)/)] ?? NaN;
  const requests = Number(found(/(\d+) requests in/));
  return {
    latency: Number(found(/50%\s+([\d.]+)/)) * unit,
    perCpu: requests / (processorTime(pid) - before),
    rate: Number(found(/Requests\/sec:\s+([\d.]+)/)),
    requests,
  };
}
let loads = 0;

/** The seconds of processor time that a process has used; unknown where there is no /proc. */
function processorTime(pid: number) {
  if (!existsSync(`/proc/${pid}/stat`)) return NaN;
  const [, fields = ""] = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ");
  const [user, system] = fields.split(" ").slice(11);
  return (Number(user) + Number(system)) / 100;
}

/** One request, or nothing where no answer came within two seconds. */
async function ask(url: string, init: RequestInit = {}) {
  try {
    const answer = await fetch(url, { signal: AbortSignal.timeout(2000), ...init });
    return { headers: answer.headers, status: answer.status, text: await answer.text() };
  } catch {
    return undefined;
  }
}

// ── Processes ── each on a free port, with a file of its own; nothing is left at the end ─────────

type Server = { file: string; pid: number; stop: () => Promise<number>; url: string };

/** Starts a server and waits for its first answer. */
async function start(command: string, env: Record<string, string> = {}, cwd = import.meta.dir) {
  const [file, port] = [join(FOLDER, `${files++}.sqlite`), freePort()];
  const child = Bun.spawn([...onCore(0), "sh", "-c", command], {
    cwd,
    env: {
      ...Bun.env,
      DATABASE_URL: `sqlite://${file}`,
      FILE: file,
      HOST: "127.0.0.1",
      LOG: "off",
      PATH: `${cwd}/node_modules/.bin:${dirname(process.execPath)}:${Bun.env.PATH}`,
      PORT: `${port}`,
      ...env,
    },
    stdout: Bun.file(`${file}.out`),
    stderr: Bun.file(`${file}.err`),
  });
  const stop = () => {
    child.kill("SIGKILL");
    return child.exited;
  };
  undo.push(stop);

  const url = `http://127.0.0.1:${port}`;
  const end = performance.now() + 15_000;
  while (!(await ask(`${url}/items/1`))) {
    if (child.exitCode !== null || performance.now() > end)
      throw new Error(`${command} does not answer: ${await Bun.file(`${file}.err`).text()}`);
    await Bun.sleep(1);
  }
  return { file, pid: child.pid, stop, url };
}
let files = 0;

function freePort() {
  using server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  return server.port;
}

/** The server has one core, the load another. */
const onCore = (core: number) =>
  Bun.which("taskset") && availableParallelism() > 1 ? ["taskset", "-c", `${core}`] : [];

const undo: (() => unknown)[] = [];
let undone: Promise<void> | undefined;
async function undoAll() {
  for (let last = undo.pop(); last; last = undo.pop()) await last();
}

const FOLDER = mkdtempSync(join(tmpdir(), "items-bench-"));
undo.push(() => rmSync(FOLDER, { recursive: true, force: true }));
process.on("SIGINT", stop).on("SIGTERM", stop);
async function stop() {
  await (undone ??= undoAll());
  process.exit(130);
}

const POST = join(FOLDER, "post.lua");
await Bun.write(
  POST,
  `local run, n = "", 0
  function init(args) run = args[1] end
  function request()
    n = n + 1
    local body = '{"id":"' .. run .. "-" .. n .. '","name":"bench"}'
    return wrk.format("POST", nil, { ["content-type"] = "application/json" }, body)
  end`,
);

try {
  const [, , mode = ""] = Bun.argv;
  const measure = { "": figures, "--growth": growth, "--peers": peers }[mode];
  if (!measure) refuse(`${mode} is neither --growth nor --peers.`);
  else if (measure !== growth && !Bun.which("wrk"))
    refuse("wrk is missing; install it with `apt-get install wrk` or `brew install wrk`.");
  else {
    await measure();
    console.table(table);
  }
} finally {
  await (undone ??= undoAll());
}

function refuse(sentence: string) {
  console.error(sentence);
  process.exitCode = 1;
}
