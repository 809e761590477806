/**
 * How fast is server.ts, beside a bare Bun.serve on the same machine, in the same minutes?
 *
 *     bun server.bench.ts             about five minutes; needs wrk
 *     bun server.bench.ts --growth    what a list costs in a table of 1,000 and of 1,000,000 items
 *     bun server.bench.ts --hostile   what a request costs that was made to cost much
 *     bun server.bench.ts --peers     other servers that do the same work: how fast, and how right
 *
 * PostgreSQL is at BENCH_DATABASE_URL, or on this machine; without it, its rows are left out.
 *
 * Whole processes, the server on one core and wrk, with fifty clients, on another. The rounds of
 * two servers alternate, and the first is the warm-up. The ratio is the median of those of the
 * rounds; the least and the most of them stand beside it, for they are the noise. `by CPU` is that
 * of GETs for a second of processor time, which other work on the machine hardly touches: an aim is
 * met if both reach it.
 */
import { Database } from "bun:sqlite";
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
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
  await compare("800 PUTs of one item, beside 800 of 800", [1, 800], puts(ours), "<= 3.0", "ms");

  const both: [Server, Server] = [ours, await unguarded()];
  await compare("CPU of a GET, beside one without guards", both, cpuOfGet, "<= 1 µs more", "µs");

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

  await onPostgres(async (database) => {
    const shared = await items({ DATABASE_URL: await database("ours") });
    const plain = await bareServer({ BARE: BARE_SQL, DATABASE_URL: await database("bare") });
    await compare("PostgreSQL, GET /items/1, beside Bun.SQL", [shared, plain], gets, ">= 0.5");
    await compare("PostgreSQL, POST, beside Bun.SQL", [shared, plain], posts, ">= 0.5");
    const what = "PostgreSQL, 800 PUTs of one item, beside 800 of 800";
    await compare(what, [1, 800], puts(shared), "<= 3.0", "ms");
  });
}

/** A bare server: the same queries, one commit a write, and nothing else. */
const BARE = `
  const { Database } = require("bun:sqlite");
  const { FIELDS = "{}", FILE, PORT, SYNCHRONOUS = "full" } = process.env;
  const db = new Database(FILE);
  db.run("pragma journal_mode = wal; pragma synchronous = " + SYNCHRONOUS);
  db.run("create table items (id text primary key, document text not null)");
  const find = db.query("select document from items where id = ?1");
  const page = db.query("select document from items where id > ?1 order by id limit ?2");
  const insert = db.query("insert into items values (?1, ?2)");
  insert.run("1", '{"id":"1","name":"apple"}');
  insert.run("2", '{"id":"2","name":"banana"}');
  const { "/items/1": one, "/items": list } = JSON.parse(FIELDS);
  const parse = ({ document }) => JSON.parse(document);
  Bun.serve({ port: PORT, hostname: "127.0.0.1", routes: {
    "/items/:id": { GET: ({ params }) => {
      const [row] = find.all(params.id);
      if (!row) return new Response("", { status: 404 });
      return Response.json({ item: parse(row).name }, one);
    } },
    "/items": {
      GET: () => Response.json({ items: page.all("", 21).slice(0, 20).map(parse) }, list),
      POST: async (request) => {
        const item = await request.json();
        insert.run(item.id, JSON.stringify(item));
        return Response.json({ message: "Item created" }, { status: 201 });
      },
    },
  } });`;
const BARE_SQL = `
  const sql = new Bun.SQL(process.env.DATABASE_URL);
  await sql.unsafe("create table items (id text primary key, document text not null)");
  await sql.unsafe("insert into items values ('1', '{\\"name\\":\\"apple\\"}')");
  Bun.serve({ port: process.env.PORT, hostname: "127.0.0.1", routes: {
    "/items/:id": { GET: async ({ params }) => {
      const [row] = await sql\`select document from items where id = \${params.id}\`;
      return Response.json({ item: JSON.parse(row.document).name });
    } },
    "/items": { POST: async (request) => {
      const item = await request.json();
      await sql\`insert into items values (\${item.id}, \${JSON.stringify(item)})\`;
      return Response.json({ message: "Item created" }, { status: 201 });
    } },
  } });`;
const PATHS = ["/items/1", "/items"];

const items = (env = {}, cwd?: string) => start("exec bun server.ts", env, cwd);
const bareServer = (env = {}) => start(`exec bun -e "$BARE"`, { BARE, ...env });

/** Our server without the one line that asks its guards. */
async function unguarded() {
  const [cwd, line] = [mkdtempSync(join(FOLDER, "unguarded-")), "  .onRequest(checkGuards)\n"];
  const source = readFileSync(join(import.meta.dir, "server.ts"), "utf8");
  if (!source.includes(line)) throw new Error(`There is no line ${line.trim()} in server.ts.`);
  symlinkSync(join(import.meta.dir, "node_modules"), join(cwd, "node_modules"));
  await Bun.write(join(cwd, "server.ts"), source.replace(line, ""));
  return items({}, cwd);
}

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
  with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < ${size}),
    named(id, name) as (select 'item-' || substr(cast(10000000 + n as text), 2),
      case when n > ${size / 2} then 'common' else 'name-' || n end from numbers)
  insert into items (id, document)
    select id, '{"id":"' || id || '","name":"' || name || '"}' from named`;

type Filled = Server & { size: number };

async function growth() {
  await compareLists("SQLite", await filledSqlite(1_000_000), await filledSqlite(1_000));
  await onPostgres(async (database) => {
    const large = await filledPostgres(await database("large"), 1_000_000);
    await compareLists("PostgreSQL", large, await filledPostgres(await database("small"), 1_000));
  });
}

async function compareLists(engine: string, large: Filled, small: Filled) {
  for (const [what, query, length] of LISTS)
    await compare(
      `${engine}, ${what}: 1,000,000 items beside 1,000`,
      [large, small],
      ({ url, size }) => latency(`${url}/items${query(size)}`, length),
      "<= 3.0",
      "ms",
    );
}

async function filledSqlite(size: number): Promise<Filled> {
  const server = await items();
  using db = new Database(server.file);
  db.run(fill(size));
  db.run("pragma wal_checkpoint(truncate)");
  return { ...server, size };
}

async function filledPostgres(url: string, size: number): Promise<Filled> {
  const server = await items({ DATABASE_URL: url });
  await using sql = new Bun.SQL(url);
  await sql.unsafe(fill(size));
  await sql.unsafe("vacuum analyze items"); // as its autovacuum does, sooner or later
  return { ...server, size };
}

/** Measures with databases of its own, which are dropped at the end; without PostgreSQL, nothing. */
async function onPostgres(measure: (database: (name: string) => Promise<string>) => Promise<void>) {
  const url = new URL(Bun.env.BENCH_DATABASE_URL ?? "postgres://postgres@127.0.0.1:5432/postgres");
  const admin = new Bun.SQL(url.href, { connectionTimeout: 3, max: 1 });
  const fault = await admin`select 1`.then(
    () => "",
    ({ message }) => message,
  );
  if (fault) return console.log(`PostgreSQL at ${url.host} is not measured: ${fault}.`);
  await measure(async (name) => {
    const own = `items_bench_${process.pid}_${name}`;
    await admin.unsafe(`create database ${own}`);
    undo.push(() => admin.unsafe(`drop database ${own} with (force)`));
    return Object.assign(new URL(url), { pathname: own }).href;
  });
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

// ── Hostile ── what was made to cost much, beside what is plain and as long ─────────────────────

type Asked = { what: string; line: string; fields?: Record<string, string>; body?: string };

async function hostile() {
  const settings = { TOKEN: "write", REHEARSE: "1", CORS_ORIGIN: "http://page.example" };
  const server = await items(settings);
  const text = "x".repeat(60_000);
  const peaceful = `{"id":"1","name":"x","text":"${text}"}`;
  for (const [what, body] of Object.entries(bodies()))
    await beside(
      { what, line: "POST /items", body },
      { what, line: "POST /items", body: peaceful },
    );
  for (const [line, name, value] of fields()) {
    const body = line.startsWith("P") ? '{"id":"1","name":"x"}' : undefined;
    const what = `${line.slice(0, 20)} ${name}: ${value.slice(0, 20)}…`;
    const plain = {
      what,
      line: line.slice(0, 12).trim(),
      body,
      fields: { "x-plain": "x".repeat(15_000) },
    };
    await beside({ what, line, body, fields: { [name]: value } }, plain);
  }

  async function beside(asked: Asked, plain: Asked) {
    const measure = (each: Asked) => cpuOf(server, each);
    await compare(asked.what, [asked, plain], measure, "<= 20", "µs");
  }
}

/** Bodies of 60 kB. */
function bodies() {
  const nest = (before: string, open: string, close: string, after = "", inside = "") => {
    const depth = Math.floor(60_000 / (open.length + close.length));
    return before + open.repeat(depth) + inside + close.repeat(depth) + after;
  };
  const many = (one: (index: number) => string, count: number) =>
    Array.from({ length: count }, (_, index) => one(index)).join(",");
  const [item, name] = ['{"id":"1","name":"x",', '{"id":"5","name":'];
  return {
    arrays: nest("", "[", "]"),
    "arrays without an end": "[".repeat(60_000),
    objects: nest("", '{"a":', "}", "", "1"),
    "objects, each an item": nest("", `${item}"a":`, "}", "", "1"),
    "objects below an unknown member": nest(`${item}"x":`, '{"a":', "}", "}", "1"),
    "half a pair below arrays": nest(`${item}"x":`, "[", "]", "}", '"\\ud800"'),
    "halves in an array": `${item}"x":[${many(() => '"\\ud800"', 6000)}]}`,
    "a half among numbers": `${item}"x":["\\ud800",${many(() => "1", 29_000)}]}`,
    "many members": `{${many((index) => `"${index}":0`, 6500)}}`,
    "one member many times": `{${many(() => '"id":"1"', 6500)}}`,
    "many items": `[${many(() => '{"id":"1","name":"x"}', 2700)}]`,
    "backslashes without an end": `"${"\\".repeat(60_001)}`,
    digits: "1".repeat(60_000),
    "arrays below the name": nest(name, "[", "]", "}"),
    "objects below the name": nest(name, '{"a":', "}", "}", "1"),
    "a long name": `${name}"${"x".repeat(60_000)}"}`,
    "a name of halves": `${name}"${"\\ud800".repeat(10_000)}"}`,
    "a name that ends badly": `${name}"${"x".repeat(60_000)}\\u0000"}`,
    "an id of dots": `{"name":"x","id":"${".".repeat(60_000)}"}`,
    "a name of members": `${name}{${many((index) => `"${index}":0`, 6500)}}}`,
  };
}

/** Fields and targets of 15 kB. */
function fields(): [line: string, name: string, value: string][] {
  const long = (text: string) => text.repeat(Math.floor(15_000 / text.length));
  const spaces = long(" ");
  return [
    ["POST /items", "content-type", `application/json;${spaces}x`],
    ["POST /items", "content-type", `application/json${long(";charset=utf-8")}x`],
    ["POST /items", "content-encoding", `identity${spaces}x`],
    ["POST /items", "authorization", `bearer${spaces}x y`],
    ["POST /items", "authorization", `bearer ${long("x")}`],
    ["GET /items/1", "accept", long("*/*;q=0,")],
    ["GET /items/1", "accept", `*/*;q=0.${long("0")}1`],
    ["GET /items/1", "accept", `application/json${long(";")}q=1`],
    ["GET /items/1", "if-none-match", long('"')],
    ["GET /items/1", "if-none-match", long('"x",')],
    ["GET /items/1", "if-none-match", long("W/")],
    ["GET /items/1", "if-match", `"${spaces}x`],
    ["PUT /items/1", "if-match", long('W/""')],
    ["GET /items/1", "prefer", long("code=")],
    ["GET /items/1", "prefer", `code=50${spaces}3`],
    ["GET /items/1", "origin", `http://${long("a.")}localhos`],
    ["GET /items/1", "origin", `http://127${long(".1")}x`],
    ["GET /items/1", "host", `${long("a.")}localhost`],
    ["GET /items/1", "host", `[${long(":")}]`],
    [`GET /items?${long("a=b&")}`, "x-x", "many members"],
    [`GET /items?name=${long("%41")}`, "x-x", "a long member"],
    [`GET /items?limit=${long("1")}`, "x-x", "a large limit"],
    [`GET /items/${long("%41")}`, "x-x", "a long id"],
    [`GET ${long("/")}`, "x-x", "slashes"],
    [`GET ${long("/..")}/items`, "x-x", "upwards"],
  ];
}

/** Microseconds of processor time that each of many such requests costs, sent one by one. */
async function cpuOf({ pid, url }: Server, { line, fields = {}, body }: Asked): Promise<Figure> {
  const [method = "", target = ""] = line.split(" ");
  const headers = { authorization: "Bearer write", ...JSON_TYPE, ...fields };
  const [before, end] = [processorTime(pid), performance.now() + 300];
  let sent = 0;
  for (; performance.now() < end; sent++) {
    const answer = await fetch(url + target, { method, headers, body });
    if (answer.status >= 500)
      throw new Error(`${line.slice(0, 20)} was answered ${answer.status}.`);
    await answer.text();
  }
  return { value: ((processorTime(pid) - before) * 1_000_000) / sent };
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
  const { PEERS } = await import("./.ci/peers");
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
  if (!hasRules) console.log("The rules of HTTP are not asked: there is no .ci/conformance.ts.");
  console.log(wrong.join("\n"));

  async function judge(server: string, used: Server, fresh: Server) {
    const found = await faults(fresh);
    wrong.push(...found.map((each) => `${server}: ${each}`));
    const right = `${EVERYDAY.length - found.length} of ${EVERYDAY.length}`;
    const load = `${Math.round(memory(used))} MiB`;
    const [rules = "", broken = "none"] = hasRules ? await rulesOf(fresh) : [];
    if (hasRules) wrong.push(`${server}: rules of HTTP that it breaks: ${broken}`);
    judged.push({ server, right, "rules of HTTP": rules, "memory after the load": load });
    await Promise.all([fresh.stop(), server === "items" || used.stop()]);
  }
}

/** What .ci/conformance.ts says of a server: `33 of 33, 4 rules broken`, and which. */
async function rulesOf({ url }: Server) {
  const { checkConformance, summaryOf } = await import(RULES);
  const conformance = await checkConformance(url, ["/items", "/items/1", "/items/9", "/nowhere"]);
  return String(summaryOf(conformance)).split(": ");
}
const RULES = join(import.meta.dir, ".ci", "conformance.ts");
const hasRules = existsSync(RULES);

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

/** Microseconds of processor time, of each. */
async function cpuOfGet(server: Server): Promise<Figure> {
  return { value: 1_000_000 / (await load(server)).perCpu };
}

/** The milliseconds that 800 PUTs take that are sent at once, to so many items. */
const puts =
  ({ url }: Server) =>
  async (among: number) => {
    const began = performance.now();
    const put = async (_: unknown, index: number) => {
      const body = `{"name":"${index}"}`;
      const init = { method: "PUT", headers: JSON_TYPE, body };
      const answer = await fetch(`${url}/items/put-${index % among}`, init);
      if (!answer.ok) throw new Error(`A PUT was answered ${answer.status}.`);
      await answer.text();
    };
    await Promise.all(Array.from({ length: 800 }, put));
    return { value: performance.now() - began };
  };

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
  const measure = { "": figures, "--growth": growth, "--hostile": hostile, "--peers": peers }[mode];
  if (!measure) refuse(`${mode} is none of --growth, --hostile and --peers.`);
  else if ([figures, peers].includes(measure) && !Bun.which("wrk"))
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
