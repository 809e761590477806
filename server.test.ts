/**
 * The contract of server.ts, over the wire: each server here is the child process that
 * `bun server.ts` starts, on a port of its own and with a store of its own.
 *
 *     bun test                                                              on SQLite
 *     TEST_DATABASE_URL=postgres://postgres@127.0.0.1/postgres bun test     on PostgreSQL
 *
 * A failure is caused for real: a table is dropped from outside, a lock is held by another
 * process, a database goes away. The words in the titles come from the server's own document.
 */
import { SQL } from "bun";
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

// The first start in a fresh clone installs what server.ts imports.
setDefaultTimeout(20_000);

const POSTGRES = Bun.env.TEST_DATABASE_URL ?? "";
const FOLDER = mkdtempSync(join(tmpdir(), "items-"));
const SETTINGS =
  "PORT HOST DATABASE_URL TOKEN READ_TOKEN ALLOWED_HOSTS CORS_ORIGIN RATE DELAY REHEARSE LOG";
/** `bun server.ts`, with the same bunfig.toml, from another folder. */
const ELSEWHERE = [
  process.execPath,
  `--config=${join(import.meta.dir, "bunfig.toml")}`,
  join(import.meta.dir, "server.ts"),
];
const admin = POSTGRES ? new SQL(POSTGRES, { max: 2 }) : undefined;
let stores = 0;

// ── A live server ──────────────────────────────────────────────────────────────────────────────

type Settings = Record<string, string>;

/** The environment of a child: every setting empty (so that no .env counts), but for these. */
const environment = (settings: Settings) => ({
  ...Bun.env,
  ...Object.fromEntries(SETTINGS.split(" ").map((name) => [name, ""])),
  NO_COLOR: "",
  PORT: "0",
  ...settings,
});

/** A store that nobody else has: a file, or a database. */
async function newStore() {
  const name = `items_test_${process.pid}_${stores++}`;
  if (!admin) return `sqlite://${join(FOLDER, name)}.sqlite`;
  await admin.unsafe(
    `create database ${name} template template0 lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'`,
  );
  return Object.assign(new URL(POSTGRES), { pathname: `/${name}` }).href;
}

/** Runs a statement on a store from outside, as another process would. */
async function outside(store: string, statement: string) {
  if (store.startsWith("sqlite")) {
    using db = new Database(store.slice("sqlite://".length));
    return db.query(statement).all() as Record<string, unknown>[];
  }
  await using sql = new SQL(store, { max: 1 });
  return (await sql.unsafe(statement)) as Record<string, unknown>[];
}

/** Reads a stream into `text`, and lets one wait for a pattern in it. */
function reader(stream: ReadableStream<Uint8Array>) {
  const output = { text: "", done: Promise.resolve(), until };
  const waiting = new Set<() => void>();
  output.done = (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      output.text += decoder.decode(chunk, { stream: true });
      for (const check of waiting) check();
    }
    for (const check of waiting) check();
  })();
  async function until(pattern: RegExp) {
    const { promise, resolve } = Promise.withResolvers<void>();
    const check = () => pattern.test(output.text) && resolve();
    waiting.add(check);
    check();
    await Promise.race([promise, output.done]);
    waiting.delete(check);
    return pattern.exec(output.text)?.[0] ?? "";
  }
  return output;
}

/** Every request that was sent, as its log line has to say: `404  GET  /items/9`. */
type Live = Awaited<ReturnType<typeof start>>;

async function start(settings: Settings = {}, cwd = import.meta.dir) {
  const store = settings.DATABASE_URL ?? (await newStore());
  const child = Bun.spawn([process.execPath, "server.ts"], {
    cwd,
    env: environment({ LOG: "on", DATABASE_URL: store, ...settings }),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = [reader(child.stdout), reader(child.stderr)];
  const url = (await stdout.until(/http:\/\/\S+(?=\n)/)) || `no address; stderr: ${stderr.text}`;
  const asked: string[] = [];
  return { asked, child, port: Number(new URL(url).port), stderr, stdout, stop, store, url };

  /** Ends the server; its log must have exactly one line for each request, with its status. */
  async function stop(signal: NodeJS.Signals = "SIGTERM") {
    child.kill(signal);
    const code = await child.exited;
    await Promise.all([stdout.done, stderr.done]);
    const lines: string[] = stdout.text.match(/^\d{3} {2}\S+ {2}\S+(?= {2}[\d.]+ ms)/gm) ?? [];
    if (signal === "SIGTERM" && settings.LOG !== "off") expect(lines.sort()).toEqual(asked.sort());
    if (admin && !settings.DATABASE_URL)
      await admin.unsafe(`drop database ${new URL(store).pathname.slice(1)} with (force)`);
    return code;
  }
}

const live = await start();
const document: Document = await (await fetch(`${live.url}/swagger/json`)).json();
live.asked.push("200  GET  /swagger/json");
afterAll(async () => {
  await live.stop();
  await admin?.close();
  rmSync(FOLDER, { recursive: true });

  // Of a part of the tests, asked for with -t, nothing follows about the whole.
  const command = Bun.spawnSync(["ps", "-o", "args=", "-p", `${process.pid}`]).stdout.toString();
  if (/ (-t|--test-name-pattern)\b/.test(command)) return;
  const documented = new Set(pairs.map(({ pair }) => pair));
  const isOperation = (pair: string) =>
    pairs.some((each) => each.route === pair.replace(/ \d+$/, ""));
  const missing = [...documented].filter((pair) => !seen.has(pair));
  const extra = [...seen].filter((pair) => isOperation(pair) && !documented.has(pair));
  expect({ missing, extra }).toEqual({ missing: [], extra: [] });
});

// ── The document ───────────────────────────────────────────────────────────────────────────────

type Answer = {
  description: string;
  headers?: object;
  content?: Record<string, { schema: Schema }>;
};
type Schema = {
  example?: unknown;
  required?: string[];
  properties: Record<string, { enum?: string[]; example?: unknown }>;
};
type Operation = {
  operationId: string;
  summary: string;
  description: string;
  parameters?: { name: string; example?: string; schema: { example?: string } }[];
  requestBody?: { content: Record<string, { schema: Schema }> };
  responses: Record<string, Answer>;
};
type Document = { paths: Record<string, Record<string, Operation>>; security: unknown[] };

/** The route of a path, as the document has it. */
const routeOf = (path: string) =>
  /^\/items\/[^/]+$/.test(path) ? "/items/{id}" : path === "/items" ? "/items" : path;

/** When an operation answers with a status, in the words of the document. */
const when = (method: string, route: string, status: number) =>
  document.paths[route]?.[method.toLowerCase()]?.responses[status]?.description ??
  "(not documented)";

/** Every answer that the document has. */
const pairs = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).flatMap(([method, { responses }]) =>
    Object.entries(responses).map(([status, { description }]) => {
      const route = `${method.toUpperCase()} ${path}`;
      return { description, pair: `${route} ${status}`, route, status: Number(status) };
    }),
  ),
);

/** Every answer that was seen on the wire in this run; in the end, the two are the same. */
const seen = new Set<string>();

// ── Asking ─────────────────────────────────────────────────────────────────────────────────────

type Ask = {
  race?: boolean;
  headers?: HeadersInit;
  body?: BodyInit | null;
  json?: unknown;
  to?: Live;
};
type Reply = { status: number; headers: Headers; text: string; json: Record<string, unknown> };

/** Sends a request such as `GET /items/1`, and checks what must hold for every answer. */
async function ask(request: string, { to = live, json, race, ...init }: Ask = {}): Promise<Reply> {
  const [method = "", target = ""] = request.split(" ");
  const headers = new Headers(init.headers);
  if (json !== undefined && !headers.has("content-type"))
    headers.set("content-type", "application/json");
  const body = json === undefined ? (init.body ?? null) : JSON.stringify(json);
  const response = await fetch(to.url + target, { method, headers, body, redirect: "manual" });
  const text = await response.text();
  return inspect(to, method, target, response.status, response.headers, text, race);
}

/** What must hold for every answer of this server. */
async function inspect(
  to: Live,
  method: string,
  target: string,
  status: number,
  headers: Headers,
  text: string,
  race = false,
) {
  const path = target.split(/[?#]/, 1)[0] ?? "";
  to.asked.push(`${status}  ${method}  ${path}`);
  if (!headers.has("preference-applied"))
    seen.add(`${method === "HEAD" ? "GET" : method} ${routeOf(path)} ${status}`);
  const isJson = headers.get("content-type")?.startsWith("application/json") ?? false;
  const reply: Reply = { status, headers, text, json: isJson && text ? JSON.parse(text) : {} };

  expect(headers.get("x-content-type-options")).toBe("nosniff");
  if (path.startsWith("/items")) expect(headers.get("cache-control")).toBe("no-cache");
  if (method === "HEAD" || [204, 304].includes(status)) expect(text).toBe("");
  if ([204, 304].includes(status)) expect(headers.get("content-type")).toBeNull();
  if (status >= 400 && method !== "HEAD") {
    expect(Object.keys(reply.json)).toEqual(["error"]);
    expect(text).not.toMatch(/select |insert |SQLITE|postgres|server\.ts|node_modules/i);
    const sentences = document.paths[routeOf(path)]?.[method.toLowerCase()]?.responses[status];
    const says = sentences?.content?.["application/json"]?.schema.properties.error?.enum;
    if (says && !headers.has("preference-applied"))
      expect(says).toContain(String(reply.json.error));
    expect(headers.get("etag")).toBeNull();
    expect(headers.get("location")).toBeNull();
  }
  if (status === 401) expect(headers.get("www-authenticate")).toStartWith("Bearer ");
  if (status === 405) expect(headers.get("allow")).not.toBeNull();
  if (status === 405 && !headers.has("preference-applied"))
    expect(headers.get("allow")?.split(", ")).not.toContain(method);
  if (status === 415) expect(headers.has("accept") && headers.has("accept-encoding")).toBe(true);
  if (status === 429 || status === 503)
    expect(Number(headers.get("retry-after"))).toBeGreaterThan(0);
  if (
    status === 304 ||
    (status < 300 && path.startsWith("/items") && !/DELETE|OPTIONS/.test(method))
  )
    expect(headers.get("etag")).toMatch(/^"[^"]+"$/);
  if (status === 201 && !race) await located(to, headers);
  return reply;
}

/** The item is at its Location, with the ETag that came with it. */
async function located(to: Live, headers: Headers) {
  const location = headers.get("location") ?? "";
  const token = to.child.exitCode === null ? tokens.get(to) : undefined;
  const there = await ask(`GET ${location}`, {
    to,
    headers: token ? { authorization: `Bearer ${token}` } : {},
  });
  expect(there.status).toBe(200);
  expect(there.headers.get("etag")).toBe(headers.get("etag"));
}
const tokens = new Map<Live, string>();

/** Sends bytes as they are, and gives back the status, the fields and the body of the answer. */
async function raw(bytes: string | Uint8Array[], { to = live, method = "GET", path = "/" } = {}) {
  const text = await exchange(bytes, to);
  const [head = "", body = ""] = text.split("\r\n\r\n");
  const [line = "", ...fields] = head.split("\r\n");
  const headers = new Headers(fields.map((each) => each.split(": ") as [string, string]));
  return inspect(to, method, path, Number(line.split(" ")[1]), headers, body);
}

/** Sends bytes, and reads until the answer is complete or the connection is closed. */
async function exchange(bytes: string | Uint8Array[], to: Live): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let text = "";
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port: to.port,
    socket: {
      data(_, chunk) {
        text += chunk.toString("latin1");
        const length = /^content-length: (\d+)/im.exec(text)?.[1];
        const body = text.split("\r\n\r\n")[1];
        if (body !== undefined && body.length >= Number(length ?? 0)) resolve(text);
      },
      close: () => resolve(text),
      error: (_, error) => reject(error),
    },
  });
  for (const part of typeof bytes === "string" ? [bytes] : bytes) socket.write(part);
  return promise.finally(() => socket.end());
}

const HOST = "Host: localhost\r\n";

/** Sends the beginning of a request; the answer is what comes when the rest has been written. */
async function begin(bytes: string, { port }: Live) {
  const answer = Promise.withResolvers<string>();
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data: (_, chunk) => answer.resolve(chunk.toString()),
      close: () => answer.resolve(""),
    },
  });
  socket.write(bytes);
  return { answer: answer.promise, socket };
}

/** The head of a POST whose body has this many bytes. */
const postOf = (length: number) =>
  `POST /items HTTP/1.1\r\n${HOST}Content-Type: application/json\r\nContent-Length: ${length}\r\n\r\n`;

/** Whether a server still takes connections. */
const isListening = ({ port }: Live) =>
  Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {} } }).then(
    (socket) => socket.terminate() === undefined,
    () => false,
  );

let names = 0;
/** Creates an item of its own for a test. */
async function item(to = live) {
  const id = `item-${names++}`;
  const { headers } = await ask("POST /items", { to, json: { id, name: "fresh" } });
  return { etag: headers.get("etag") ?? "", id, path: `/items/${id}` };
}

// ── The lesson ── five answers that nobody changes by accident ─────────────────────────────────

describe("the lesson, HTTP status codes for APIs", () => {
  const lesson: [request: string, json: unknown, status: number, body: string][] = [
    ["GET /items/1", undefined, 200, '{"item":"apple"}'],
    ["GET /items/2", undefined, 200, '{"item":"banana"}'],
    ["GET /items/9", undefined, 404, '{"error":"Item not found"}'],
    ["POST /items", { id: "3", name: "cherry" }, 201, '{"message":"Item created"}'],
    ["POST /items", { id: "3", name: "cherry" }, 400, '{"error":"Item already exists"}'],
    ["POST /items", { id: "4" }, 400, '{"error":"Bad request, id and name required"}'],
    ["POST /items", { name: "x" }, 400, '{"error":"Bad request, id and name required"}'],
    ["POST /items", {}, 400, '{"error":"Bad request, id and name required"}'],
    ["POST /items", [], 400, '{"error":"Bad request, id and name required"}'],
    ["POST /items", null, 400, '{"error":"Bad request, id and name required"}'],
    ["POST /items", "", 400, '{"error":"Bad request, id and name required"}'],
    ["POST /items", 0, 400, '{"error":"Bad request, id and name required"}'],
  ];
  test("its requests, statuses and bodies, to the letter", async () => {
    const to = await start();
    for (const [request, json, status, body] of lesson) {
      const reply = await ask(request, { to, json });
      expect([request, reply.status, reply.text]).toEqual([request, status, body]);
    }
    await to.stop();
  });
});

// ── Routes ── in the order of the file, the statuses ascending ─────────────────────────────────

const title = (request: string, status: number) => {
  const [method = "", route = ""] = request.split(" ");
  return `${status} ${when(method, route, status)}`;
};

describe("GET /", () => {
  test("302 The docs are at /swagger", async () => {
    const reply = await ask("GET /");
    expect(reply.status).toBe(302);
    expect(reply.headers.get("location")).toBe("/swagger");
  });
});

describe("GET /items", () => {
  test(title("GET /items", 200), async () => {
    const to = await start();
    // Code points, not the alphabet of a country, and not UTF-16: 😀 (U+1F600) is after U+FF5E.
    for (const id of ["b", "B", "é", "a", "😀", "\uff5e", "10", "z"])
      await ask("POST /items", { to, json: { id, name: id === "b" ? "banana" : "x" } });
    const ids = ["1", "10", "2", "B", "a", "b", "z", "é", "\uff5e", "😀"];
    const all = await ask("GET /items", { to });
    expect((all.json.items as { id: string }[]).map(({ id }) => id)).toEqual(ids);
    expect(all.headers.has("link")).toBe(false);

    // Paging by Link, three at a time, finds exactly what is there.
    const paged: string[] = [];
    for (let next: string | undefined = "/items?limit=3"; next;) {
      const page: Reply = await ask(`GET ${next}`, { to });
      paged.push(...(page.json.items as { id: string }[]).map(({ id }) => id));
      next = /^<([^>]+)>; rel="next"$/.exec(page.headers.get("link") ?? "")?.[1];
    }
    expect(paged).toEqual(ids);

    const bananas = await ask("GET /items?name=banana", { to });
    expect(bananas.json.items).toEqual([
      { id: "2", name: "banana" },
      { id: "b", name: "banana" },
    ]);
    const pageOfBananas = await ask("GET /items?name=banana&limit=1", { to });
    expect(pageOfBananas.headers.get("link")).toBe(
      '</items?name=banana&limit=1&after=2>; rel="next"',
    );
    expect((await ask("GET /items?limit=10", { to })).headers.has("link")).toBe(false);
    expect((await ask("GET /items?limit=9", { to })).headers.has("link")).toBe(true);
    await to.stop();
  });

  test.each([
    ["after something that is not there", "/items?after=%F0%9F%98%81", []],
    ["after U+0000", "/items?name=banana&after=%00", [{ id: "2", name: "banana" }]],
    ["a name with U+0000", "/items?name=banana%00", []],
    ["an empty name", "/items?name=", []],
    [
      "unknown members, even repeated",
      "/items?name=banana&x=1&x=2&limit=100",
      [{ id: "2", name: "banana" }],
    ],
    [
      "a member that JavaScript has as well",
      "/items?name=banana&__proto__=1&constructor=2",
      [{ id: "2", name: "banana" }],
    ],
  ])("200 with %s", async (_, target, items) => {
    expect((await ask(`GET ${target}`)).json).toEqual({ items });
  });

  test(title("GET /items", 304), async () => {
    const { headers } = await ask("GET /items?limit=1");
    const etag = headers.get("etag") ?? "";
    for (const field of [etag, `W/${etag}`, `"x", ${etag}`, "*"])
      expect(
        (await ask("GET /items?limit=1", { headers: { "if-none-match": field } })).status,
      ).toBe(304);
    expect((await ask("GET /items?limit=1", { headers: { "if-none-match": '"x"' } })).status).toBe(
      200,
    );
  });

  test.each([
    "limit=",
    "limit=0",
    "limit=05",
    "limit=101",
    "limit=1.0",
    "limit=-1",
    "limit=1e1",
    "limit=%2B1",
    "limit=1&limit=1",
    "name=a&name=b",
    "after=a&after=b",
  ])("400 ?%s", async (query) => {
    expect((await ask(`GET /items?${query}`)).status).toBe(400);
  });

  test(title("GET /items", 406), async () => {
    expect((await ask("GET /items", { headers: { accept: "text/html" } })).status).toBe(406);
  });

  test(title("GET /items", 412), async () => {
    const { headers } = await ask("GET /items?limit=1");
    const etag = headers.get("etag") ?? "";
    const get = async (field: string) =>
      (await ask("GET /items?limit=1", { headers: { "if-match": field } })).status;
    expect([await get(etag), await get("*"), await get(`W/${etag}`), await get('"x"')]).toEqual([
      200, 200, 412, 412,
    ]);
  });
});

describe("POST /items", () => {
  test(title("POST /items", 201), async () => {
    const { headers, status, text } = await ask("POST /items", {
      json: { id: "new", name: "kiwi", price: 1 },
    });
    expect([status, text]).toEqual([201, '{"message":"Item created"}']);
    expect(headers.get("location")).toBe("/items/new");
  });

  const edges: [string, string][] = [
    ["one character", "x"],
    ["128 characters", "x".repeat(128)],
    ["128 UTF-16 units", "😀".repeat(64)],
    ...[
      "a/b",
      "%",
      "%2F",
      "?",
      "#",
      "'",
      '"',
      "\\",
      "&=+ ;",
      "e\u0301",
      "👩‍👩‍👧‍👦",
      "__proto__",
      "constructor",
      "...",
      "..a",
      ":id",
      "*",
      "<b>",
      "\u2028",
      "\ufeff",
      "\ufffd",
    ].map((id): [string, string] => [JSON.stringify(id), id]),
  ];
  test.each(edges)("201 with an id of %s, which is found at its Location", async (_, id) => {
    const { headers, status } = await ask("POST /items", { json: { id, name: id } });
    expect(status).toBe(201);
    expect(decodeURIComponent(headers.get("location") ?? "")).toBe(`/items/${id}`);
    expect((await ask(`GET ${headers.get("location")}`)).json).toEqual({ item: id });
    expect((await ask(`DELETE ${headers.get("location")}`)).status).toBe(204);
  });

  test.each([
    ["not JSON", "{"],
    ["nothing", ""],
    ["two values", "{}{}"],
    ["not UTF-8", new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d])],
    ["very deep", "[".repeat(60_000)],
  ])("400 with a body that is %s", async (_, body) => {
    const reply = await ask("POST /items", {
      headers: { "content-type": "application/json" },
      body,
    });
    expect([reply.status, reply.json.error]).toEqual([400, "The body must be JSON in UTF-8"]);
  });

  test("400 Bad request, id and name required: a missing member comes before a bad value", async () => {
    for (const json of [{ id: 5 }, { name: "" }, { id: "\0" }, [{ id: "a", name: "b" }]])
      expect((await ask("POST /items", { json })).json.error).toBe(
        "Bad request, id and name required",
      );
  });

  test("400 Item already exists, for __proto__ as for any other", async () => {
    const body = '{"id":"__proto__x","name":"a","__proto__":{"id":"1"}}';
    const headers = { "content-type": "application/json" };
    expect((await ask("POST /items", { headers, body })).status).toBe(201);
    expect((await ask("POST /items", { headers, body })).json.error).toBe("Item already exists");
  });

  test("201 with a member given twice: the last counts", async () => {
    const body = '{"id":"twice","name":"first","name":"last"}';
    expect(
      (await ask("POST /items", { headers: { "content-type": "application/json" }, body })).status,
    ).toBe(201);
    expect((await ask("GET /items/twice")).json.item).toBe("last");
  });

  test(title("POST /items", 406), async () => {
    expect(
      (await ask("POST /items", { json: { id: "x", name: "x" }, headers: { accept: "text/html" } }))
        .status,
    ).toBe(406);
    expect((await ask("GET /items/x")).status).toBe(404);
  });

  test(title("POST /items", 413), async () => {
    const headers = { "content-type": "application/json" };
    const post = async (bytes: number) => {
      const body = `{"id":"${"x".repeat(bytes - 22)}","name":"y"}`.padEnd(bytes);
      return (await ask("POST /items", { headers, body })).status;
    };
    expect([await post(65_536), await post(65_537)]).toEqual([422, 413]);
  });

  test.each([
    ["none", undefined],
    ["a form", "application/x-www-form-urlencoded"],
    ["text", "text/plain"],
    ["multipart", "multipart/form-data; boundary=x"],
    ["application/jsonp", "application/jsonp"],
    ["merge patch", "application/merge-patch+json"],
    ["problem+json", "application/problem+json"],
    ["another charset", "application/json; charset=latin1"],
  ])("415 with a Content-Type that is %s", async (_, type) => {
    const body = new TextEncoder().encode('{"id":"415","name":"x"}');
    const reply = await ask("POST /items", { headers: type ? { "content-type": type } : {}, body });
    expect([reply.status, reply.headers.get("accept")]).toEqual([415, "application/json"]);
  });

  test.each([
    "Application/JSON",
    "application/json;charset=UTF-8",
    'application/json; charset="utf-8"',
    "application/json ; x=y",
  ])("400, so not 415, with a Content-Type of %s", async (type) => {
    expect(
      (await ask("POST /items", { headers: { "content-type": type }, body: "{}" })).status,
    ).toBe(400);
  });

  test("415 Content-Encoding must be identity", async () => {
    const headers = { "content-type": "application/json", "content-encoding": "gzip" };
    const body = Bun.gzipSync(new TextEncoder().encode('{"id":"zip","name":"x"}'));
    const reply = await ask("POST /items", { headers, body });
    expect([reply.status, reply.headers.get("accept-encoding")]).toEqual([415, "identity"]);
  });

  const bad: [string, unknown][] = [
    ["an empty id", { id: "", name: "x" }],
    ["129 characters", { id: "x".repeat(129), name: "x" }],
    ["an id that is a number", { id: 5, name: "x" }],
    ["an id that is null", { id: null, name: "x" }],
    ["an id of .", { id: ".", name: "x" }],
    ["an id of ..", { id: "..", name: "x" }],
    ["U+0000", { id: "a\0b", name: "x" }],
    ["U+0085", { id: "a\u0085b", name: "x" }],
    ["a newline", { id: "a\nb", name: "x" }],
    ["a lone surrogate", { id: "\ud800", name: "x" }],
    ["a surrogate pair the wrong way round", { id: "\udc00\ud800", name: "x" }],
    ["an empty name", { id: "x", name: "" }],
    ["a name of 1025 characters", { id: "x", name: "x".repeat(1025) }],
    ["a name that is a list", { id: "x", name: ["x"] }],
    ["U+007F in the name", { id: "x", name: "\x7f" }],
  ];
  test.each(bad)("422 with %s", async (_, json) => {
    expect((await ask("POST /items", { json })).status).toBe(422);
  });
});

describe("GET /items/{id}", () => {
  test(title("GET /items/{id}", 200), async () => {
    const reply = await ask("GET /items/1");
    expect([reply.status, reply.text]).toEqual([200, '{"item":"apple"}']);
    expect((await ask("GET /items/%31")).text).toBe('{"item":"apple"}');
  });

  test("200 to HEAD, with the fields of GET and no body", async () => {
    for (const path of [
      "/items/1",
      "/items",
      "/items?limit=1",
      "/items/9",
      "/nowhere",
      "/swagger",
    ]) {
      const [get, head] = [await ask(`GET ${path}`), await ask(`HEAD ${path}`)];
      expect(head.status).toBe(get.status);
      for (const field of ["etag", "content-type", "link"])
        expect(head.headers.get(field)).toBe(get.headers.get(field));
      expect(head.headers.get("content-length")).toBe(
        `${new TextEncoder().encode(get.text).length}`,
      );
    }
  });

  test(title("GET /items/{id}", 304), async () => {
    const { etag, path } = await item();
    const get = async (field: string) =>
      ask(`GET ${path}`, { headers: { "if-none-match": field } });
    for (const field of [etag, `W/${etag}`, `"a,b" , ${etag}`, "*"])
      expect((await get(field)).status).toBe(304);
    for (const field of ['"x"', "x", etag.slice(1, -1), ""])
      expect((await get(field)).status).toBe(200);
    expect((await get(etag)).headers.get("etag")).toBe(etag);
    await ask(`PUT ${path}`, { json: { name: "other" } });
    expect((await get(etag)).status).toBe(200);
  });

  test.each([
    "9",
    ".%2E",
    "x".repeat(129),
    "a%00b",
    "__proto__",
    "constructor",
    "%EF%BF%BD",
    "%2F",
    "'%20or%20''='",
  ])("404 Item not found: %s", async (id) => {
    const reply = await raw(`GET /items/${id} HTTP/1.1\r\nHost: localhost\r\n\r\n`, {
      path: id === ".%2E" ? "/" : `/items/${id}`,
    });
    expect(reply.status).toBe(404);
  });

  const accepts: [string, number][] = [
    ["*/*", 200],
    ["application/*", 200],
    ["application/json", 200],
    ["APPLICATION/JSON;Q=0.1", 200],
    ["text/html, */*;q=0.1", 200],
    ["", 200],
    ["text/html", 406],
    ["application/json;q=0", 406],
    ["application/json;q=0.000, */*", 406],
    ["*/*;q=0", 406],
    ["application/*;q=0, */*", 406],
    ["application/jsonp", 406],
  ];
  test.each(accepts)("with Accept: %s it is %d", async (accept, status) => {
    expect((await ask("GET /items/1", { headers: { accept } })).status).toBe(status);
  });

  test(title("GET /items/{id}", 412), async () => {
    const { etag, path } = await item();
    const get = async (headers: HeadersInit) => (await ask(`GET ${path}`, { headers })).status;
    expect([
      await get({ "if-match": etag }),
      await get({ "if-match": "*" }),
      await get({ "if-match": `"x", ${etag}` }),
    ]).toEqual([200, 200, 200]);
    expect([await get({ "if-match": `W/${etag}` }), await get({ "if-match": '"x"' })]).toEqual([
      412, 412,
    ]);
    expect(await get({ "if-match": '"x"', "if-none-match": etag })).toBe(412);
    expect((await ask("GET /items/9", { headers: { "if-match": "*" } })).status).toBe(404);
  });
});

describe("PUT /items/{id}", () => {
  test(title("PUT /items/{id}", 200), async () => {
    const { etag, id, path } = await item();
    const reply = await ask(`PUT ${path}`, {
      json: { id, name: "new" },
      headers: { "if-match": etag },
    });
    expect([reply.status, reply.text]).toEqual([200, '{"message":"Item updated"}']);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(reply.headers.get("etag"));
    expect(
      (await ask(`PUT ${path}`, { json: { name: "new" }, headers: { "if-none-match": etag } }))
        .status,
    ).toBe(200);
  });

  test(title("PUT /items/{id}", 201), async () => {
    const reply = await ask("PUT /items/a%2Fput", {
      json: { name: "new" },
      headers: { "if-none-match": "*" },
    });
    expect([reply.status, reply.text, reply.headers.get("location")]).toEqual([
      201,
      '{"message":"Item created"}',
      "/items/a%2Fput",
    ]);
  });

  test(title("PUT /items/{id}", 400), async () => {
    for (const json of [null, [], {}, "", { id: 5 }, { id: "1" }])
      expect((await ask("PUT /items/1", { json })).json.error).toBe("Bad request, name required");
    expect(
      (await ask("PUT /items/1", { headers: { "content-type": "application/json" }, body: "x" }))
        .status,
    ).toBe(400);
    // The name is missing, and the id of the path breaks a rule: what is missing comes first.
    expect((await ask(`PUT /items/${"x".repeat(129)}`, { json: {} })).status).toBe(400);
  });

  test(title("PUT /items/{id}", 406), async () => {
    expect(
      (await ask("PUT /items/1", { json: { name: "x" }, headers: { accept: "image/*" } })).status,
    ).toBe(406);
  });

  test(title("PUT /items/{id}", 409), async () => {
    expect((await ask("PUT /items/1", { json: { id: "2", name: "x" } })).status).toBe(409);
    expect((await ask("PUT /items/no-such", { json: { id: "2", name: "x" } })).status).toBe(409);
    expect((await ask("GET /items/no-such")).status).toBe(404);
  });

  test(title("PUT /items/{id}", 412), async () => {
    const { etag, path } = await item();
    const put = async (target: string, headers: HeadersInit) =>
      (await ask(`PUT ${target}`, { headers, json: { name: "x" } })).status;
    expect(await put("/items/free", { "if-match": "*" })).toBe(412);
    expect(await put("/items/free", { "if-match": etag })).toBe(412);
    expect(await put(path, { "if-none-match": "*" })).toBe(412);
    expect(await put(path, { "if-none-match": `W/${etag}` })).toBe(412);
    expect(await put(path, { "if-match": `W/${etag}` })).toBe(412);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(etag);
  });

  test("413, 415 and 422, as POST does", async () => {
    const headers = { "content-type": "application/json" };
    expect((await ask("PUT /items/1", { headers, body: " ".repeat(65_537) })).status).toBe(413);
    expect(
      (
        await ask("PUT /items/1", {
          headers: { "content-type": "application/merge-patch+json" },
          body: "{}",
        })
      ).status,
    ).toBe(415);
    expect((await ask("PUT /items/1", { json: { name: "\0" } })).status).toBe(422);
    expect((await ask("PUT /items/1", { json: { id: "", name: "x" } })).status).toBe(422);
    expect((await ask(`PUT /items/${"x".repeat(129)}`, { json: { name: "x" } })).status).toBe(422);
    expect((await ask("PUT /items/a%00b", { json: { name: "x" } })).status).toBe(422);
  });
});

describe("PATCH /items/{id}", () => {
  test(title("PATCH /items/{id}", 200), async () => {
    const { etag, id, path } = await item();
    const nothing = await ask(`PATCH ${path}`, { json: {}, headers: { "if-match": etag } });
    expect([nothing.status, nothing.text, nothing.headers.get("etag")]).toEqual([
      200,
      '{"message":"Item updated"}',
      etag,
    ]);
    const headers = { "content-type": "application/merge-patch+json" };
    const reply = await ask(`PATCH ${path}`, { headers, json: { id, name: "patched", x: null } });
    expect(reply.status).toBe(200);
    expect((await ask(`GET ${path}`)).json.item).toBe("patched");
  });

  test(title("PATCH /items/{id}", 400), async () => {
    for (const json of [null, [], "", 0])
      expect((await ask("PATCH /items/1", { json })).status).toBe(400);
    expect(
      (await ask("PATCH /items/1", { headers: { "content-type": "application/json" }, body: "{" }))
        .status,
    ).toBe(400);
  });

  test(title("PATCH /items/{id}", 404), async () => {
    for (const json of [{}, { name: "x" }, { id: "2", name: "x" }])
      expect((await ask("PATCH /items/9", { json, headers: { "if-match": '"x"' } })).status).toBe(
        404,
      );
    expect((await ask(`PATCH /items/${"x".repeat(129)}`, { json: {} })).status).toBe(404);
  });

  test("406, 409, 412, 413, 415 and 422, in the words of the document", async () => {
    const { etag, path } = await item();
    const patch = async (json: unknown, headers: HeadersInit = {}) =>
      (await ask(`PATCH ${path}`, { json, headers })).status;
    expect(await patch({ name: "x" }, { accept: "text/html" })).toBe(406);
    expect(await patch({ id: "other" })).toBe(409);
    expect(await patch({ id: "other" }, { "if-match": '"x"' })).toBe(412);
    expect(await patch({}, { "if-none-match": etag })).toBe(412);
    expect(await patch({ name: "x".repeat(65_536) })).toBe(413);
    expect(
      (
        await ask(`PATCH ${path}`, { headers: { "content-type": "text/json" }, body: "{}" })
      ).headers.get("accept"),
    ).toBe("application/merge-patch+json, application/json");
    expect(await patch({ name: null })).toBe(422);
    expect(await patch({ id: "" })).toBe(422);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(etag);
  });
});

describe("DELETE /items/{id}", () => {
  test(title("DELETE /items/{id}", 204), async () => {
    const { etag, path } = await item();
    expect(
      (await ask(`DELETE ${path}`, { headers: { "if-match": etag, accept: "text/html" } })).status,
    ).toBe(204);
    expect((await ask(`GET ${path}`)).status).toBe(404);
    const other = await item();
    expect(
      (
        await ask(`DELETE ${other.path}`, {
          headers: { "content-type": "text/plain" },
          body: "not read",
        })
      ).status,
    ).toBe(204);
  });

  test(title("DELETE /items/{id}", 404), async () => {
    expect((await ask("DELETE /items/9", { headers: { "if-match": "*" } })).status).toBe(404);
  });

  test(title("DELETE /items/{id}", 412), async () => {
    const { etag, path } = await item();
    expect((await ask(`DELETE ${path}`, { headers: { "if-match": '"x"' } })).status).toBe(412);
    expect((await ask(`DELETE ${path}`, { headers: { "if-none-match": etag } })).status).toBe(412);
    expect((await ask(`GET ${path}`)).status).toBe(200);
  });
});

// ── Anywhere ── what the guards say, and what comes first when a request has several faults ────

describe("anywhere", () => {
  test.each([
    ["/", "GET, HEAD, OPTIONS"],
    ["/items", "GET, HEAD, OPTIONS, POST"],
    ["/items/1", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"],
    ["/items/nobody", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"],
    ["/swagger", "GET, HEAD, OPTIONS"],
  ])("204 to OPTIONS %s, 405 to what it does not allow", async (path, allowed) => {
    const reply = await ask(`OPTIONS ${path}`);
    expect([reply.status, reply.headers.get("allow")]).toEqual([204, allowed]);
    for (const method of ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]) {
      if (allowed.split(", ").includes(method)) continue;
      const refused = await ask(`${method} ${path}`);
      expect([refused.status, refused.headers.get("allow")]).toEqual([405, allowed]);
    }
  });

  // Bun itself makes "/items/." into "/items/" and "/items\1" into "/items/1": see the README.
  const hostile: [status: number, why: string, request: string, method?: string, path?: string][] =
    [
      [
        400,
        "no Host, whose path would be found by mistake",
        "GET /aaaaaaaaaaa/items/1 HTTP/1.0\r\n\r\n",
        "GET",
        "/aaaaaaaaaaa/items/1",
      ],
      [400, "an empty Host", "GET /items HTTP/1.1\r\nHost:\r\n\r\n", "GET", "/items"],
      [
        400,
        "two Hosts",
        `GET /items HTTP/1.1\r\n${HOST}Host: evil.example\r\n\r\n`,
        "GET",
        "/items",
      ],
      [400, "the same Host twice", `GET /items HTTP/1.1\r\n${HOST}${HOST}\r\n`, "GET", "/items"],
      [
        400,
        "a Host with a path",
        "GET /items HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
        "GET",
        "/items",
      ],
      [
        400,
        "a Host with a user",
        "GET /items HTTP/1.1\r\nHost: a@localhost\r\n\r\n",
        "GET",
        "/items",
      ],
      [
        400,
        "a Host with a space",
        "GET /items HTTP/1.1\r\nHost: local host\r\n\r\n",
        "GET",
        "/items",
      ],
      [
        400,
        "a fragment in the target",
        `GET /items/1#x HTTP/1.1\r\n${HOST}\r\n`,
        "GET",
        "/items/1",
      ],
      [400, "% in the path", `GET /items/% HTTP/1.1\r\n${HOST}\r\n`, "GET", "/items/%"],
      [400, "%zz in the query", `GET /items?x=%zz HTTP/1.1\r\n${HOST}\r\n`, "GET", "/items"],
      [
        400,
        "half a character",
        `GET /items/%E0%A4%A HTTP/1.1\r\n${HOST}\r\n`,
        "GET",
        "/items/%E0%A4%A",
      ],
      [
        400,
        "a surrogate",
        `PUT /items/%ED%A0%80 HTTP/1.1\r\n${HOST}Content-Length: 0\r\n\r\n`,
        "PUT",
        "/items/%ED%A0%80",
      ],
      [421, "another Host", "GET /items HTTP/1.1\r\nHost: evil.example\r\n\r\n", "GET", "/items"],
      [
        421,
        "a Host that only begins like ours",
        "GET /items HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n",
        "GET",
        "/items",
      ],
      [
        421,
        "a Host that only ends like ours",
        "GET /items HTTP/1.1\r\nHost: evillocalhost\r\n\r\n",
        "GET",
        "/items",
      ],
      [
        200,
        "a subdomain of localhost",
        "GET /items/1 HTTP/1.1\r\nHost: a.LOCALHOST:9\r\n\r\n",
        "GET",
        "/items/1",
      ],
      [200, "any address", "GET /items/1 HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET", "/items/1"],
      [404, "a trailing slash", `GET /items/ HTTP/1.1\r\n${HOST}\r\n`, "GET", "/items/"],
      [404, "a double slash", `GET //items HTTP/1.1\r\n${HOST}\r\n`, "GET", "//items"],
      [404, "an encoded name of a path", `GET /%69tems HTTP/1.1\r\n${HOST}\r\n`, "GET", "/%69tems"],
      [
        404,
        "a path beneath an item",
        `GET /items/1/2 HTTP/1.1\r\n${HOST}\r\n`,
        "GET",
        "/items/1/2",
      ],
      [501, "TRACE", `TRACE /items HTTP/1.1\r\n${HOST}\r\n`, "TRACE", "/items"],
      [501, "CONNECT", `CONNECT /items HTTP/1.1\r\n${HOST}\r\n`, "CONNECT", "/items"],
      [
        501,
        "PROPFIND, even on no path",
        `PROPFIND /nowhere HTTP/1.1\r\n${HOST}\r\n`,
        "PROPFIND",
        "/nowhere",
      ],
    ];
  test.each(hostile)("%d: %s", async (status, _, request, method = "GET", path = "/") => {
    expect((await raw(request, { method, path })).status).toBe(status);
  });

  const framing: [answer: string, why: string, request: string][] = [
    ["", "an unknown method token", `BREW /items HTTP/1.1\r\n${HOST}\r\n`],
    ["HTTP/1.1 400", "no Host", "GET /items HTTP/1.1\r\n\r\n"],
    [
      "HTTP/1.1 400",
      "two lengths",
      `POST / HTTP/1.1\r\n${HOST}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n`,
    ],
    ["HTTP/1.1 431", "large fields", `GET / HTTP/1.1\r\n${HOST}X: ${"x".repeat(20_000)}\r\n\r\n`],
    ["HTTP/1.1 505", "a malformed line", `GET /items\r\n${HOST}\r\n`],
  ];
  test.each(framing)(
    "Bun itself says '%s' to %s, as the README has it",
    async (answer, _, request) => {
      expect((await exchange(request, live)).slice(0, 12)).toBe(answer);
    },
  );

  test("413 for a chunked body as soon as it is too large, and the next request is answered", async () => {
    const chunk = `8000\r\n${"x".repeat(0x8000)}\r\n`;
    const head = `POST /items HTTP/1.1\r\n${HOST}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n`;
    const bytes = [head, chunk, chunk, chunk].map((part) => new TextEncoder().encode(part));
    expect((await raw(bytes, { method: "POST", path: "/items" })).status).toBe(413);
    expect((await ask("GET /items/1")).status).toBe(200);
  });

  test("201 for a chunked body of 65,536 bytes", async () => {
    const json = JSON.stringify({ id: "chunked", name: "x" }).padEnd(65_536);
    const bytes = [
      `POST /items HTTP/1.1\r\n${HOST}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n`,
      `8000\r\n${json.slice(0, 0x8000)}\r\n`,
      `8000\r\n${json.slice(0x8000)}\r\n0\r\n\r\n`,
    ].map((part) => new TextEncoder().encode(part));
    expect((await raw(bytes, { method: "POST", path: "/items" })).status).toBe(201);
  });
});

describe("when a request has several faults, the first in the order of the protocol wins", () => {
  const form = { "content-type": "application/x-www-form-urlencoded" };
  const json = { "content-type": "application/json" };
  const big = "x".repeat(65_537);
  const guarded = start({ TOKEN: "secret", READ_TOKEN: "look" });
  const writer = { authorization: "Bearer secret" };
  const reader = { authorization: "bEaReR look" };
  const html = { accept: "text/html" };
  const stale = { "if-match": '"x"' };

  const faults: [
    status: number,
    faults: string,
    request: string,
    headers: Settings,
    body?: string,
  ][] = [
    [421, "Host, method", "PROPFIND /items", { host: "evil.example" }],
    [421, "Host, target", "GET /items/%", { host: "evil.example" }],
    [501, "method, target", "PROPFIND /items/%", {}],
    [501, "method, path", "PROPFIND /nowhere", {}],
    [400, "target, path", "GET /nowhere/%", {}],
    [400, "target, token", "POST /items/%", {}],
    [404, "path, token", "POST /nowhere", { authorization: "Bearer wrong" }],
    [405, "method of the path, token", "POST /items/1", {}],
    [204, "OPTIONS needs no token", "OPTIONS /items", {}],
    [401, "token, type", "POST /items", { ...form }, "a=b"],
    [401, "token, size", "POST /items", { ...json }, big],
    [401, "token, JSON", "PUT /items/1", { ...json, authorization: "Bearer wrong" }, "{"],
    [401, "token, item", "DELETE /items/9", { authorization: "Basic secret" }],
    [401, "read token, query", "GET /items?limit=0", {}],
    [401, "read token, Accept", "GET /items/9", html],
    [403, "token that may only read, type", "POST /items", { ...form, ...reader }, "a=b"],
    [403, "token that may only read, item", "DELETE /items/9", { ...reader, ...stale }],
    [415, "type, size", "POST /items", { ...form, ...writer }, big],
    [415, "type, JSON", "PATCH /items/9", { ...form, ...writer }, "{"],
    [413, "size, JSON", "PUT /items/9", { ...json, ...writer, ...html }, big],
    [400, "JSON, Accept", "POST /items", { ...json, ...writer, ...html }, "{"],
    [400, "JSON, item", "PATCH /items/9", { ...json, ...writer, ...stale }, "{"],
    [400, "missing name, Accept", "PUT /items/1", { ...json, ...writer, ...html }, "{}"],
    [400, "missing name, bad id", "POST /items", { ...json, ...writer }, '{"id":5}'],
    [400, "query, Accept", "GET /items?limit=0", { ...reader, ...html }],
    [400, "query twice, Accept", "GET /items?limit=1&limit=1", { ...reader, ...html }],
    [422, "value, Accept", "POST /items", { ...json, ...writer, ...html }, '{"id":"","name":"x"}'],
    [422, "value, item", "PATCH /items/9", { ...json, ...writer }, '{"name":""}'],
    [
      422,
      "value, condition, id",
      "PUT /items/1",
      { ...json, ...writer, ...stale },
      '{"id":"2","name":""}',
    ],
    [406, "Accept, item", "GET /items/9", { ...reader, ...html }],
    [
      406,
      "Accept, condition",
      "PUT /items/1",
      { ...json, ...writer, ...html, ...stale },
      '{"name":"x"}',
    ],
    [406, "Accept, taken", "POST /items", { ...json, ...writer, ...html }, '{"id":"1","name":"x"}'],
    [404, "item, condition", "DELETE /items/9", { ...writer, ...stale }],
    [404, "item, id", "PATCH /items/9", { ...json, ...writer }, '{"id":"1"}'],
    [412, "condition, id", "PATCH /items/1", { ...json, ...writer, ...stale }, '{"id":"2"}'],
    [
      412,
      "condition, id",
      "PUT /items/free",
      { ...json, ...writer, "if-match": "*" },
      '{"id":"2","name":"x"}',
    ],
    [409, "id", "PATCH /items/1", { ...json, ...writer }, '{"id":"2"}'],
  ];
  for (const [status, what, request, headers, body] of faults)
    test(`${status}: ${what}`, async () => {
      const to = await guarded;
      expect((await ask(request, { to, headers, body: body ?? null })).status).toBe(status);
    });
  afterAll(async () => void (await (await guarded).stop()));
});

// ── Who gets in ────────────────────────────────────────────────────────────────────────────────

describe("TOKEN and READ_TOKEN", () => {
  test("401 with the challenge of RFC 6750, 403 for a write with the read token; never printed", async () => {
    const to = await start({ TOKEN: "s3cret", READ_TOKEN: "l00k" });
    tokens.set(to, "l00k");
    const json = { id: "t", name: "x" };
    const post = async (authorization?: string) =>
      (await ask("POST /items", { to, json, headers: authorization ? { authorization } : {} }))
        .status;
    expect([
      await post(),
      await post("Bearer wrong"),
      await post("s3cret"),
      await post("Bearer s3cre"),
      await post("Bearer s3cret, x"),
    ]).toEqual([401, 401, 401, 401, 401]);
    expect([await post("Bearer l00k"), await post("BEARER  s3cret")]).toEqual([403, 201]);
    for (const [request, json] of operations) {
      expect((await ask(request, { to, json })).status).toBe(401);
      const authorization = "Bearer l00k";
      const isRead = request.startsWith("GET");
      expect((await ask(request, { to, json, headers: { authorization } })).status).toBe(
        isRead ? 200 : 403,
      );
    }
    const get = async (authorization: string, path = "/items/1") =>
      (await ask(`GET ${path}`, { to, headers: { authorization } })).status;
    expect([
      await get(""),
      await get("Bearer l00k"),
      await get("bearer s3cret"),
      await get("", "/swagger"),
    ]).toEqual([401, 200, 200, 200]);
    expect(await to.stop()).toBe(0);
    expect(to.stdout.text + to.stderr.text).not.toMatch(/s3cret|l00k/);
  });

  test("reads are open with TOKEN alone", async () => {
    const to = await start({ TOKEN: "s3cret" });
    expect((await ask("GET /items/1", { to })).status).toBe(200);
    expect((await ask("DELETE /items/1", { to })).status).toBe(401);
    await to.stop();
  });
});

describe.concurrent("ALLOWED_HOSTS, CORS_ORIGIN and RATE", () => {
  test("421 for a Host that is not allowed; any port of one that is", async () => {
    const to = await start({ ALLOWED_HOSTS: "items.example, Other.example" });
    const get = async (host: string) =>
      (await ask("GET /items/1", { to, headers: { host } })).status;
    expect([
      await get("items.example:99"),
      await get("other.EXAMPLE"),
      await get("evil.example"),
      await get("127.0.0.1"),
    ]).toEqual([200, 200, 421, 200]);
    await to.stop();
  });

  test("no CORS field without CORS_ORIGIN", async () => {
    const { headers } = await ask("GET /items/1", { headers: { origin: "http://page.example" } });
    expect(
      [...headers.keys()].filter((name) => name.startsWith("access-control") || name === "vary"),
    ).toEqual([]);
  });

  test("CORS_ORIGIN: right on every answer, refusals, 304 and preflights included", async () => {
    const to = await start({
      CORS_ORIGIN: "http://page.example, http://localhost:5173",
      TOKEN: "t",
    });
    const requests: [string, number, HeadersInit?][] = [
      ["GET /items/1", 200],
      ["GET /items/1", 304, { "if-none-match": "*" }],
      ["GET /items/9", 404],
      ["DELETE /items/1", 401],
      ["GET /nowhere", 404],
      ["PATCH /items", 405],
      ["OPTIONS /items/1", 204],
    ];
    for (const [request, status, headers] of requests)
      for (const [origin, allowed] of [
        ["http://page.example", true],
        ["http://evil.example", false],
        ["null", false],
      ] as const) {
        const reply = await ask(request, { to, headers: { ...headers, origin } });
        expect([reply.status, reply.headers.get("vary")]).toEqual([status, "Origin"]);
        expect(reply.headers.get("access-control-allow-origin")).toBe(allowed ? origin : null);
        expect(reply.headers.get("access-control-allow-credentials")).toBeNull();
        if (status === 204)
          expect(reply.headers.get("access-control-allow-methods")).toBe(allowed ? "*" : null);
      }
    await to.stop();
  });

  test("429 once a client is over RATE, and only that client; the next second is a new one", async () => {
    const to = await start({ RATE: "5" });
    const statuses: number[] = [];
    while (!statuses.includes(429)) statuses.push((await ask("GET /items/1", { to })).status);
    expect(statuses.length).toBeGreaterThan(5);
    const other = await fetch(`http://127.0.0.1:${to.port}/items/1`, {
      headers: { "x-forwarded-for": "10.0.0.1" },
    });
    to.asked.push(`${other.status}  GET  /items/1`);
    expect(other.status).toBe(429);
    while ((await ask("GET /items/1", { to })).status === 429);
    await to.stop();
  });
});

// ── Failures, caused for real ──────────────────────────────────────────────────────────────────

/** One request for each operation, that would succeed if nothing were broken. */
const operations: [string, unknown?][] = [
  ["GET /items"],
  ["POST /items", { id: "op", name: "x" }],
  ["GET /items/1"],
  ["PUT /items/1", { name: "x" }],
  ["PATCH /items/1", { name: "y" }],
  ["DELETE /items/1"],
];

describe("failures", () => {
  test("500 when the table is gone, with no word of it on the wire; logged whole on stderr", async () => {
    const to = await start();
    await outside(to.store, "drop table items");
    for (const [request, json] of operations) {
      const reply = await ask(request, { to, json });
      expect([reply.status, reply.json.error]).toEqual([500, "Server error"]);
    }
    await to.stop();
    expect(to.stderr.text).toMatch(/no such table: items|relation "items" does not exist/);
  });

  test("500 when an answer breaks its own schema, instead of the answer", async () => {
    const to = await start();
    await outside(to.store, `insert into items values ('0', '${"x".repeat(1025)}')`);
    const reply = await ask("GET /items", { to });
    expect([reply.status, reply.text]).toEqual([500, '{"error":"Server error"}']);
    expect((await ask("GET /items?after=0", { to })).status).toBe(200);
    await to.stop();
    expect(to.stderr.text).not.toBe("");
  });

  test("503 on each operation while the server shuts down, to those who are still asking", async () => {
    const to = await start();
    const body = '{"id":"last","name":"x"}';
    const inFlight = await begin(postOf(body.length) + body.slice(0, 9), to);
    const half = await Promise.all(
      operations.map(async ([request]) => ({ request, ...(await begin(`${request} HT`, to)) })),
    );
    await ask("GET /items/1", { to });
    to.child.kill("SIGTERM");
    while (await isListening(to));

    for (const { answer, request, socket } of half) {
      socket.write(`TP/1.1\r\n${HOST}Content-Length: 0\r\n\r\n`);
      const text = await answer;
      const [method = "", path = ""] = request.split(" ");
      const [fields = "", json = ""] = text.split("\r\n\r\n");
      const headers = new Headers(
        fields
          .split("\r\n")
          .slice(1)
          .map((each) => each.split(": ") as [string, string]),
      );
      const reply = await inspect(to, method, path, Number(text.slice(9, 12)), headers, json);
      expect([reply.status, reply.json.error]).toEqual([503, "The server is shutting down"]);
    }
    inFlight.socket.write(body.slice(9));
    expect((await inFlight.answer).slice(0, 12)).toBe("HTTP/1.1 201");
    to.asked.push("201  POST  /items");
    expect(await to.stop()).toBe(0);
  });

  test("421, 400 and 429 on each operation", async () => {
    const to = await start({ RATE: "1", REHEARSE: "1" });
    for (const [request, json] of operations) {
      expect((await ask(request, { to, json, headers: { host: "evil.example" } })).status).toBe(
        421,
      );
      const [method = "", path = ""] = request.split(" ");
      expect(
        (
          await raw(`${method} ${path}?%zz HTTP/1.1\r\n${HOST}Content-Length: 0\r\n\r\n`, {
            to,
            method,
            path,
          })
        ).status,
      ).toBe(400);
      let reply = await ask(request, { to, json });
      while (reply.status !== 429) reply = await ask(request, { to, json });
      expect(reply.json.error).toBe("Too many requests in this second");
    }
    await to.stop();
  });

  test.if(!POSTGRES)(
    "503 to a write that waited a second for a lock; not to later ones, nor to reads",
    async () => {
      const to = await start();
      const lock = new Database(to.store.slice("sqlite://".length));
      lock.run("begin exclusive");
      const writes = operations.filter(([request]) => !request.startsWith("GET"));
      const early = Promise.all(writes.map(([request, json]) => ask(request, { to, json })));
      let isOver = false;
      void early.then(() => (isOver = true));
      // A late one overtakes nobody, and has a second of its own.
      const late: Promise<Reply>[] = [];
      while (!isOver) {
        late.push(ask("DELETE /items/2", { to }));
        expect((await ask("GET /items/1", { to })).status).toBe(200);
      }
      lock.run("rollback");
      lock.close();
      expect((await early).map(({ status }) => status)).toEqual([503, 503, 503, 503]);
      const statuses = (await Promise.all(late)).map(({ status }) => status);
      expect(statuses.slice(-10)).not.toContain(503);
      expect(statuses).toContain(204);
      await to.stop();
    },
  );

  test.if(!POSTGRES)("a write waits for a short lock", async () => {
    const to = await start();
    const lock = new Database(to.store.slice("sqlite://".length));
    lock.run("begin immediate");
    const write = ask("DELETE /items/1", { to });
    expect((await ask("GET /items/1", { to })).status).toBe(200);
    lock.run("commit");
    lock.close();
    expect((await write).status).toBe(204);
    await to.stop();
  });

  test.if(!!POSTGRES)(
    "503 within five seconds while the database is away; it recovers by itself",
    async () => {
      const to = await start();
      const name = new URL(to.store).pathname.slice(1);
      expect((await ask("GET /items/1", { to })).status).toBe(200);
      await admin?.unsafe(`alter database ${name} allow_connections false`);
      await admin?.unsafe(
        `select pg_terminate_backend(pid) from pg_stat_activity where datname = '${name}'`,
      );
      for (const [request, json] of operations) {
        const begin = performance.now();
        expect((await ask(request, { to, json })).status).toBe(503);
        expect(performance.now() - begin).toBeLessThan(5000);
      }
      await admin?.unsafe(`alter database ${name} allow_connections true`);
      expect((await ask("GET /items/1", { to })).status).toBe(200);
      await to.stop();
    },
  );

  test.if(!!POSTGRES)("503 within five seconds while the database keeps silent", async () => {
    const to = await start();
    await using sql = new SQL(to.store, { max: 1 });
    const lock = Promise.withResolvers<void>();
    const held = Promise.withResolvers<void>();
    const holding = sql.begin(async (tx) => {
      await tx.unsafe("lock table items in access exclusive mode");
      held.resolve();
      await lock.promise;
    });
    await held.promise;
    expect((await ask("GET /items/1", { to })).status).toBe(503);
    lock.resolve();
    await holding;
    expect((await ask("GET /items/1", { to })).status).toBe(200);
    await to.stop();
  });
});

// ── A promise: durable and atomic ──────────────────────────────────────────────────────────────

const count = (statuses: number[]) =>
  Object.fromEntries(
    [...Map.groupBy(statuses, (status) => status)].map(([status, all]) => [status, all.length]),
  );

describe("a 2xx is a promise", () => {
  const fifty = Array.from({ length: 50 }, (_, index) => index);

  test("of fifty who create one id, one does; of fifty who hold one ETag, one wins: in one process and in two", async () => {
    const [one, two] = [await start(), await start()];
    const second = await start({ DATABASE_URL: one.store });
    for (const servers of [[two], [one, second]]) {
      const to = (index: number) => servers[index % servers.length] as Live;
      const creates = fifty.map((index) =>
        ask("POST /items", { to: to(index), json: { id: "race", name: `n${index}` } }),
      );
      expect(count((await Promise.all(creates)).map(({ status }) => status))).toEqual({
        201: 1,
        400: 49,
      });
      const etag = (await ask("GET /items/race", { to: to(0) })).headers.get("etag") ?? "";
      const headers = { "if-match": etag };
      const puts = fifty.map((index) =>
        ask("PUT /items/race", { to: to(index), headers, json: { name: `m${index}` } }),
      );
      expect(count((await Promise.all(puts)).map(({ status }) => status))).toEqual({
        200: 1,
        412: 49,
      });
      const upserts = fifty.map((index) =>
        ask("PUT /items/free", { to: to(index), race: true, json: { name: `p${index}` } }),
      );
      const statuses = await Promise.all(upserts.map(async (upsert) => (await upsert).status));
      expect(count(statuses)).toEqual({ 200: 49, 201: 1 });
      const deletes = fifty.map((index) => ask("DELETE /items/race", { to: to(index) }));
      expect(count((await Promise.all(deletes)).map(({ status }) => status))).toEqual({
        204: 1,
        404: 49,
      });
    }
    await Promise.all([second.stop(), two.stop()]);
    await one.stop();
  });

  test("a write that fails does not hurt those that share its commit", async () => {
    const to = await start();
    await outside(to.store, "create unique index one_of_a_name on items (name)");
    const writes = fifty.map((index) =>
      index % 10 === 5
        ? ask("PATCH /items/1", { to, json: { name: "banana" } })
        : ask("POST /items", { to, json: { id: `shared-${index}`, name: `${index}` } }),
    );
    const statuses = (await Promise.all(writes)).map(({ status }) => status);
    expect(count(statuses)).toEqual({ 201: 45, 500: 5 });
    await to.stop();
  });

  test("two servers that start at once on an empty store both come up, with the lesson's items", async () => {
    const store = await newStore();
    const servers = await Promise.all([1, 2, 3].map(() => start({ DATABASE_URL: store })));
    for (const to of servers) expect((await ask("GET /items", { to })).text).toContain("banana");
    await ask("DELETE /items/1", { to: servers[0] as Live });
    await Promise.all(servers.map((to) => to.stop()));
    const again = await start({ DATABASE_URL: store });
    expect((await ask("GET /items", { to: again })).json.items).toEqual([
      { id: "2", name: "banana" },
    ]);
    await again.stop();
    if (admin) await admin.unsafe(`drop database ${new URL(store).pathname.slice(1)} with (force)`);
  });

  const seed = Number(Bun.env.SEED ?? Date.now() % 1_000_000);
  test(`killed at a random moment, it has lost nothing that it acknowledged (SEED=${seed})`, async () => {
    const store = await newStore();
    const random = generator(seed);
    /** What each item is, once acknowledged; a list while it is not known which of them. */
    const known = new Map<string, (string | null)[]>();
    for (let round = 0; round < 3; round++) {
      const to = await start({ DATABASE_URL: store, LOG: "off" });
      let acknowledged = 0;
      const enough = Promise.withResolvers<void>();
      const limit = 200 + random(400);
      const clients = Array.from({ length: 32 }, async (_, client) => {
        for (let turn = 0; ; turn++) {
          const id = `c${client}-${turn % 5}`;
          const name = random(3) === 0 ? null : `r${round}-${turn}`;
          const before = known.get(id) ?? [null];
          known.set(id, [...before, name]);
          const init =
            name === null
              ? { method: "DELETE" }
              : {
                  method: "PUT",
                  body: JSON.stringify({ name }),
                  headers: { "content-type": "application/json" },
                };
          const status = await fetch(`${to.url}/items/${id}`, init).then(
            (response) => response.status,
            () => 0,
          );
          if (status === 0) return;
          expect([200, 201, 204, 404]).toContain(status);
          known.set(id, [name]);
          if (++acknowledged === limit) enough.resolve();
        }
      });
      await enough.promise;
      to.child.kill("SIGKILL");
      await Promise.all(clients);
      await to.child.exited;

      const rows = new Map(
        (await outside(store, "select id, name from items")).map(({ id, name }) => [id, name]),
      );
      for (const [id, names] of known)
        expect(names).toContain((rows.get(id) as string | undefined) ?? null);
      for (const id of known.keys()) known.set(id, [(rows.get(id) as string | undefined) ?? null]);
      if (!POSTGRES)
        expect(await outside(store, "pragma integrity_check")).toEqual([{ integrity_check: "ok" }]);
    }
    if (admin) await admin.unsafe(`drop database ${new URL(store).pathname.slice(1)} with (force)`);
  });

  test("SIGTERM under load: every write that was taken is answered and kept, exit code 0 in time", async () => {
    const store = await newStore();
    const to = await start({ DATABASE_URL: store, LOG: "off" });
    const kept: string[] = [];
    const enough = Promise.withResolvers<void>();
    const clients = Array.from({ length: 32 }, async (_, client) => {
      for (let turn = 0; ; turn++) {
        const id = `s${client}-${turn}`;
        const headers = { "content-type": "application/json" };
        const status = await fetch(`${to.url}/items`, {
          method: "POST",
          headers,
          body: JSON.stringify({ id, name: "x" }),
        }).then(
          (response) => response.status,
          () => 0,
        );
        if (status !== 201) return status;
        if (kept.push(id) === 300) enough.resolve();
      }
    });
    await enough.promise;
    const begin = performance.now();
    expect(await to.stop()).toBe(0);
    expect(performance.now() - begin).toBeLessThan(5000);
    for (const last of await Promise.all(clients)) expect([0, 503]).toContain(last);
    const rows = new Set((await outside(store, "select id from items")).map(({ id }) => id));
    for (const id of kept) expect(rows.has(id)).toBe(true);
    if (admin) await admin.unsafe(`drop database ${new URL(store).pathname.slice(1)} with (force)`);
  });
});

/** Numbers below a limit, the same for the same seed (mulberry32). */
function generator(state: number) {
  return (limit: number) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % limit;
  };
}

// ── Nobody can wear it down ────────────────────────────────────────────────────────────────────

/** The resident memory of a server, in MiB. */
const residentMemory = (to: Live) =>
  Number(Bun.spawnSync(["ps", "-o", "rss=", "-p", `${to.child.pid}`]).stdout.toString()) / 1024;

describe("nobody can wear it down", () => {
  const huge = join(FOLDER, "256-mib");
  const SIZE = 256 * 1024 * 1024;
  const curl = [
    "curl",
    "-s",
    "-o",
    "/dev/null",
    "-w",
    "%{http_code}",
    "-X",
    "POST",
    "-H",
    "Content-Type: application/json",
    "-H",
    "Expect:",
  ];
  const node = (headers: string) => `
    const request = require("node:http").request(process.argv[1], { method: "POST", headers: { "content-type": "application/json"${headers} } });
    const chunk = Buffer.alloc(65536);
    let sent = 0;
    const send = () => { while (sent < ${SIZE} && !request.destroyed) { sent += chunk.length; if (!request.write(chunk)) return request.once("drain", send); } request.end(); };
    request.on("response", (response) => { console.log(response.statusCode); process.exit(0); }).on("error", (error) => console.log(error.code));
    send();`;

  test("413 for 256 MiB, sized and chunked, arrives at curl and at Node; no memory is held", async () => {
    const to = await start();
    await Bun.$`truncate -s ${SIZE} ${huge}`;
    await ask("POST /items", {
      to,
      headers: { "content-type": "application/json" },
      body: " ".repeat(65_537),
    });
    const before = residentMemory(to);
    const clients = [
      [...curl, "-T", huge, `${to.url}/items`],
      [...curl, "-H", "Transfer-Encoding: chunked", "-T", huge, `${to.url}/items`],
      ...(Bun.which("node")
        ? [`, "content-length": ${SIZE}`, ""].map((headers) => [
            "node",
            "-e",
            node(headers),
            `${to.url}/items`,
          ])
        : []),
    ];
    for (const client of clients) {
      const { stdout } = Bun.spawnSync(client);
      expect([client[0], stdout.toString().trim()]).toEqual([client[0], "413"]);
      to.asked.push("413  POST  /items");
    }
    expect((await ask("GET /items/1", { to })).status).toBe(200);
    expect(residentMemory(to) - before).toBeLessThan(16);
    await to.stop();
  });

  test("500 connections that send half a request and stop hold up nobody", async () => {
    const to = await start();
    const time = async () => {
      const begin = performance.now();
      expect((await ask("GET /items/1", { to })).status).toBe(200);
      return performance.now() - begin;
    };
    await time();
    const alone = await time();
    const held = await Promise.all(
      Array.from({ length: 500 }, () => begin(`${postOf(100)}{"id"`, to)),
    );
    expect(await time()).toBeLessThan(alone + 100);
    for (const { socket } of held) socket.end();
    await to.child.kill("SIGKILL");
    await to.stop("SIGKILL");
  });

  test("20,000 requests, valid, almost valid and hostile: nothing outside the contract, and the items of a model", async () => {
    const seed = Number(Bun.env.SEED ?? Date.now() % 1_000_000);
    const to = await start({ LOG: "off" });
    const clients = Array.from({ length: 16 }, (_, client) => hostileClient(to, client, seed));
    const models = await Promise.all(clients);
    const expected = models.flatMap((model) => [...model]).map(([id, name]) => ({ id, name }));
    const rows = await outside(to.store, "select id, name from items");
    const byId = (a: Record<string, unknown>, b: Record<string, unknown>) =>
      `${a.id}` < `${b.id}` ? -1 : 1;
    expect([seed, rows.filter(({ id }) => id !== "1" && id !== "2").toSorted(byId)]).toEqual([
      seed,
      expected.toSorted(byId),
    ]);
    expect(await to.stop()).toBe(0);
    expect([seed, to.stderr.text]).toEqual([seed, ""]);
  });
});

/** Sends 1,250 requests about items of its own, and gives back which items there should be. */
async function hostileClient(to: Live, client: number, seed: number) {
  const random = generator(seed * 16 + client);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
  const model = new Map<string, string>();
  const ids = ["a", "b/c", "%", "é", "😀", "..x", "__proto__"].map((id) => `${client}-${id}`);
  const texts = [
    "x",
    "y",
    "",
    "\0",
    "\ud800",
    "x".repeat(1025),
    5,
    null,
    undefined,
    "ü",
    "'; drop table items; --",
  ];
  const isFine = (text: unknown) =>
    typeof text === "string" &&
    text.length > 0 &&
    text.length <= 1024 &&
    text.isWellFormed() &&
    !/\p{Cc}/u.test(text);
  const types = [
    "application/json",
    "application/json",
    "application/json",
    "application/json",
    "text/plain",
    "application/merge-patch+json",
  ];
  for (let turn = 0; turn < 1250; turn++) {
    const id = pick(ids);
    const name = pick(texts);
    const path = `/items/${encodeURIComponent(id)}`;
    const kind = random(10);
    const method = pick([
      "GET",
      "POST",
      "PUT",
      "PATCH",
      "DELETE",
      "DELETE",
      "PUT",
      "POST",
      "PUT",
      "OPTIONS",
      "HEAD",
      "PROPFIND",
    ]);
    const target =
      kind === 0
        ? pick([
            "/",
            method === "POST" ? "/x" : "/items?limit=x",
            "/items/%ff",
            "/nowhere",
            "/items/",
            "/swagger/json",
          ])
        : method === "POST"
          ? "/items"
          : path;
    const body =
      kind === 1
        ? pick(["{", "", "null", "[]", '"x"', "\xff"])
        : JSON.stringify(method === "POST" ? { id, name } : { name });
    const type = pick(types);
    const condition = pick<[string, string] | undefined>([
      undefined,
      undefined,
      undefined,
      ["if-match", "*"],
      ["if-none-match", "*"],
      ["if-match", '"x"'],
    ]);
    const headers = new Headers({
      "content-type": type,
      accept: random(20) === 0 ? "text/html" : "*/*",
    });
    if (condition) headers.set(...condition);
    const takesBody = ["POST", "PUT", "PATCH", "DELETE"].includes(method);
    const response = await fetch(to.url + target, {
      method,
      headers,
      redirect: "manual",
      body: takesBody ? body : null,
    });
    const { status } = response;
    const reply = await response.text();
    const operation =
      document.paths[routeOf(target.split("?", 1)[0] ?? "")]?.[
        method === "HEAD" ? "get" : method.toLowerCase()
      ];
    const documented = Object.keys(
      operation?.responses ?? { 200: 1, 302: 1, 400: 1, 404: 1, 405: 1 },
    );
    const allowed = [...documented.map(Number), 204, 400, 405, 501];
    if (!allowed.includes(status) || (status >= 500 && status !== 501))
      throw new Error(`${seed}: ${method} ${target} ${status}`);
    if (status >= 400 && method !== "HEAD")
      expect(Object.keys(JSON.parse(reply))).toEqual(["error"]);

    // What the model expects of a request that changes something.
    if (
      kind === 0 ||
      (kind === 1 && method !== "DELETE") ||
      !["POST", "PUT", "PATCH", "DELETE"].includes(method)
    )
      continue;
    const exists = model.has(id);
    const isJson =
      type === "application/json" ||
      (method === "PATCH" && type === "application/merge-patch+json");
    const holds =
      !condition || (condition[0] === "if-none-match" ? !exists : condition[1] === "*" && exists);
    const isMissing = name === undefined && method !== "PATCH";
    const isAcceptable = headers.get("accept") === "*/*";
    const expected =
      method === "DELETE"
        ? !exists
          ? 404
          : !holds
            ? 412
            : 204
        : !isJson
          ? 415
          : isMissing
            ? 400
            : name !== undefined && !isFine(name)
              ? 422
              : !isAcceptable
                ? 406
                : method === "POST"
                  ? exists
                    ? 400
                    : 201
                  : method === "PATCH" && !exists
                    ? 404
                    : !holds
                      ? 412
                      : method === "PUT" && !exists
                        ? 201
                        : 200;
    if (status !== expected)
      throw new Error(
        `${seed}: ${method} ${target} ${body} ${type} ${condition} gave ${status}, not ${expected}`,
      );
    if (status === 204) model.delete(id);
    if ((status === 200 || status === 201) && name !== undefined) model.set(id, name as string);
  }
  return model;
}

// ── At the terminal ────────────────────────────────────────────────────────────────────────────

/** Runs the server until it ends by itself, in an empty folder. */
async function runToItsEnd(settings: Settings) {
  const child = Bun.spawn(ELSEWHERE, {
    cwd: FOLDER,
    env: environment({ DATABASE_URL: "sqlite://:memory:", ...settings }),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, stdout, stderr };
}

describe("settings", () => {
  const foreign = join(FOLDER, "foreign");
  const bad: [name: string, value: string, mayBe: RegExp][] = [
    ["PORT", "x", /a free port from 0 to 65535/],
    ["PORT", "65536", /a free port from 0 to 65535/],
    ["PORT", "-1", /a free port/],
    ["HOST", "not a host", /an address of this machine/],
    ["HOST", "two\nlines\x1b[31m", /an address of this machine/],
    ["HOST", "192.0.2.1", /an address of this machine/],
    ["DATABASE_URL", "mysql://h/d", /sqlite:\/\/FILE, sqlite:\/\/:memory: or postgres:/],
    ["DATABASE_URL", "sqlite://", /sqlite:\/\/FILE/],
    ["DATABASE_URL", "sqlite:///no/such/folder/items.sqlite", /one that opens/],
    ["DATABASE_URL", `sqlite://${foreign}`, /one that opens/],
    ["TOKEN", "two words", /visible ASCII/],
    ["READ_TOKEN", "alone", /beside TOKEN and unlike it/],
    ["ALLOWED_HOSTS", "a.example:80", /hosts without a port/],
    ["CORS_ORIGIN", "page.example", /origins like/],
    ["RATE", "fast", /whole number/],
    ["DELAY", "1.5", /whole number of milliseconds/],
    ["REHEARSE", "yes", /0 or 1/],
    ["LOG", "true", /on or off/],
  ];
  test.concurrent.each(bad)(
    "%s=%s ends the start with one line that says what it may be",
    async (name, value, mayBe) => {
      await Bun.write(
        foreign,
        "this is not a database, but a file of somebody else's\n".repeat(99),
      );
      const { code, stdout, stderr } = await runToItsEnd({ [name]: value });
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toMatch(/^[^\n]+\n$/);
      expect(stderr).toStartWith(`${name} is `);
      expect(stderr).toMatch(mayBe);
      expect(stderr.includes(JSON.stringify(value))).toBe(!name.endsWith("TOKEN"));
    },
  );

  test("a read token that is the write token as well", async () => {
    const { code, stderr } = await runToItsEnd({ TOKEN: "same", READ_TOKEN: "same" });
    expect([code, stderr]).toEqual([
      1,
      "READ_TOKEN is something else, but may only be visible ASCII characters without a space, beside TOKEN and unlike it.\n",
    ]);
  });

  test("a store that is out of reach is named without its password", async () => {
    const { code, stderr } = await runToItsEnd({
      DATABASE_URL: "postgres://me:p4ss@127.0.0.1:1/items?password=p4ss",
    });
    expect([code, stderr.split("\n").length]).toEqual([1, 2]);
    expect(stderr).toStartWith("DATABASE_URL is ");
    expect(stderr).not.toContain("p4ss");
  });

  test("a port that is taken", async () => {
    const { code, stderr } = await runToItsEnd({ PORT: `${live.port}` });
    expect([code, stderr]).toEqual([
      1,
      `PORT is "${live.port}", but may only be a free port from 0 to 65535.\n`,
    ]);
  });

  test("the start says where, and warns when others can write; .env counts; items.sqlite is where it was started", async () => {
    const folder = mkdtempSync(join(FOLDER, "start-"));
    await Bun.write(join(folder, ".env"), "PORT=0\nHOST=0.0.0.0\n");
    const env = {
      ...Bun.env,
      ...Object.fromEntries(SETTINGS.split(" ").map((name) => [name, undefined])),
    };
    const child = Bun.spawn(ELSEWHERE, {
      cwd: folder,
      env,
      stdout: "pipe",
    });
    const stdout = reader(child.stdout);
    await stdout.until(/Warning.*\n/);
    expect(stdout.text).toMatch(
      /^Items {2}http:\/\/localhost:\d+\nDocs {3}http:\/\/localhost:\d+\/swagger\nStore {2}items\.sqlite; delete it to start over\nWarning: other machines can write here\. Set TOKEN/,
    );
    expect(await Bun.file(join(folder, "items.sqlite")).exists()).toBe(true);
    child.kill("SIGINT");
    expect(await child.exited).toBe(0);
    expect([...new Bun.Glob("items*").scanSync(folder)]).toEqual(["items.sqlite"]);
  });

  test("DELAY slows every answer down, but what is in flight at the end is answered at once", async () => {
    const to = await start({ DELAY: "300" });
    const sent = performance.now();
    const body = '{"id":"late","name":"x"}';
    const late = await begin(postOf(body.length) + body.slice(0, 1), to);
    await ask("GET /items/1", { to });
    expect(performance.now() - sent).toBeGreaterThanOrEqual(299);
    to.child.kill("SIGTERM");
    const answered = performance.now();
    late.socket.write(body.slice(1));
    expect((await late.answer).slice(0, 12)).toBe("HTTP/1.1 201");
    to.asked.push("201  POST  /items");
    expect(await to.stop()).toBe(0);
    expect(performance.now() - answered).toBeLessThan(5000);
    expect(
      await outside(to.store, "select name from items where id = 'late'").catch(() => [
        { name: "x" },
      ]),
    ).toEqual([{ name: "x" }]);
  });

  test("REHEARSE: Prefer gets the code that it asks for, with what the code owes; without the setting it does not", async () => {
    const to = await start({ REHEARSE: "1" });
    for (const code of [400, 401, 405, 415, 418, 429, 500, 503, 599]) {
      const reply = await ask("GET /items/1", {
        to,
        headers: { prefer: `respond-async, code=${code}` },
      });
      expect([reply.status, reply.headers.get("preference-applied")]).toEqual([
        code,
        `code=${code}`,
      ]);
    }
    for (const prefer of ["code=200", "code=600", "code=5030"])
      expect((await ask("GET /items/1", { to, headers: { prefer } })).status).toBe(200);
    await to.stop();
    expect(to.stdout.text).not.toContain("418  GET  /items/1  ★");
    expect((await ask("GET /items/1", { headers: { prefer: "code=503" } })).status).toBe(200);
  });
});

describe("the log", () => {
  test("the words of a refusal, the collection, the farewell; nothing of a client that went away but that it did", async () => {
    const to = await start();
    await ask("GET /items/9", { to });
    await ask("GET /items/8", { to });
    await ask("GET /items/1", { to });
    const { socket } = await begin(`${postOf(9)}{`, to);
    await ask("GET /items/7", { to });
    socket.terminate();
    await to.stdout.until(/gone {2}POST/);
    await to.stop();
    expect(to.stdout.text).toMatch(
      /404 {2}GET {2}\/items\/9 {2}[\d.]+ ms {2}Item not found {2}★ 1 of 21\n/,
    );
    expect(to.stdout.text).toMatch(/404 {2}GET {2}\/items\/8 {2}[\d.]+ ms {2}Item not found\n/);
    expect(to.stdout.text).toMatch(/200 {2}GET {2}\/items\/1 {2}[\d.]+ ms {2}★ 2 of 21\n/);
    expect(to.stdout.text).toMatch(/gone {2}POST {2}\/items {2}[\d.]+ ms\n/);
    expect(to.stdout.text).toMatch(
      /Still to be found: 201 204 302 304 400 401 403 405 406 409 412 413 415 421 422 429 500 501 503\n$/,
    );
    expect(to.stderr.text).toBe("");
  });

  test("no control character of a request reaches the terminal", async () => {
    const to = await start();
    await exchange(
      `GET /items/\x1b[31m\x07?\x1b[0m HTTP/1.1\r\n${HOST}Connection: close\r\n\r\n`,
      to,
    );
    await exchange("GET /\x1b]0;x\x07 HTTP/1.1\r\nHost: \x1b[2J\r\n\r\n", to);
    await to.stop("SIGKILL");
    // oxlint-disable-next-line no-control-regex
    expect(to.stdout.text + to.stderr.text).not.toMatch(/[\0-\x09\x0b-\x1f\x7f-\x9f]/);
  });

  const script = Bun.which("script");
  test.if(script !== null)(
    "on a terminal it is on and in colour; NO_COLOR is respected; a second SIGINT ends at once",
    async () => {
      for (const [NO_COLOR, expected] of [
        ["", "\x1b[33m404\x1b[0m  GET"],
        ["1", "404  GET"],
      ] as const) {
        const command = `exec ${process.execPath} server.ts`;
        const env = environment({ DATABASE_URL: "sqlite://:memory:", NO_COLOR });
        const child = Bun.spawn([script ?? "", "-qec", command, "/dev/null"], {
          cwd: import.meta.dir,
          env,
          stdin: "pipe",
          stdout: "pipe",
        });
        const output = reader(child.stdout);
        const url = await output.until(/http:\/\/[\d.:]+/);
        await fetch(`${url}/items/9`);
        await output.until(/404/);
        child.stdin.write("\x03");
        child.stdin.flush();
        await output.until(/Still to be found/);
        await child.exited;
        expect(output.text).toContain(expected);
        expect(output.text).toContain("★ 1 of 21");
      }
    },
  );

  test("a second SIGINT ends at once, though a request is in flight", async () => {
    const to = await start({ DELAY: "0" });
    const { socket } = await begin(`${postOf(9)}{`, to);
    await ask("GET /items/1", { to });
    to.child.kill("SIGINT");
    while (await isListening(to));
    to.child.kill("SIGINT");
    expect(await to.child.exited).toBe(130);
    socket.end();
    await to.stop("SIGKILL");
  });
});

// ── The docs page ──────────────────────────────────────────────────────────────────────────────

describe("the document", () => {
  test("has an operationId, a summary, a description and true outcomes for each operation", () => {
    const all = Object.values(document.paths).flatMap((path) => Object.values(path));
    expect(all.map(({ operationId }) => operationId)).toEqual([
      "listItems",
      "createItem",
      "getItem",
      "putItem",
      "patchItem",
      "deleteItem",
    ]);
    for (const { description, summary } of all) expect([description, summary]).not.toContain("");
    const statuses = all.map(({ responses }) => Object.keys(responses).map(Number));
    expect(statuses).toEqual([
      [200, 304, 400, 401, 406, 412, 421, 429, 500, 503],
      [201, 400, 401, 403, 406, 413, 415, 421, 422, 429, 500, 503],
      [200, 304, 400, 401, 404, 406, 412, 421, 429, 500, 503],
      [200, 201, 400, 401, 403, 406, 409, 412, 413, 415, 421, 422, 429, 500, 503],
      [200, 400, 401, 403, 404, 406, 409, 412, 413, 415, 421, 422, 429, 500, 503],
      [204, 400, 401, 403, 404, 412, 421, 429, 500, 503],
    ]);
  });

  test("has examples that are true: sent in order, each gets its first outcome", async () => {
    const to = await start();
    for (const [path, methods] of Object.entries(document.paths))
      for (const [method, operation] of Object.entries(methods)) {
        const id = operation.parameters?.find(({ name }) => name === "id");
        const target = path.replace("{id}", id?.schema.example ?? id?.example ?? "");
        for (const [type, { schema }] of Object.entries(
          operation.requestBody?.content ?? { "": { schema: { properties: {} } } },
        )) {
          const members = Object.entries(schema.properties).map(([name, { example }]) => [
            name,
            example,
          ]);
          const json = type ? (schema.example ?? Object.fromEntries(members)) : undefined;
          const headers: HeadersInit = type ? { "content-type": type } : {};
          const reply = await ask(`${method.toUpperCase()} ${target}`, { to, json, headers });
          expect([target, method, `${reply.status}`]).toEqual([
            target,
            method,
            Object.keys(operation.responses)[0] ?? "",
          ]);
          for (const field of Object.keys(operation.responses[reply.status]?.headers ?? {}))
            if (field !== "Link") expect(reply.headers.has(field)).toBe(true);
        }
      }
    await to.stop();
  });

  test("shows a lock only where a token is needed", async () => {
    const of = async (settings: Settings) => {
      const to = await start(settings);
      const reply = (await ask("GET /swagger/json", { to })).json as unknown as Document & {
        components: object;
      };
      await to.stop();
      const [list, create] = [reply.paths["/items"]?.get, reply.paths["/items"]?.post] as {
        security?: unknown[];
      }[];
      return [
        reply.security.length,
        list?.security?.length,
        create?.security?.length,
        Object.keys(reply.components),
      ];
    };
    expect(await of({})).toEqual([0, 0, undefined, ["schemas"]]);
    expect(await of({ TOKEN: "t" })).toEqual([1, 0, undefined, ["securitySchemes", "schemas"]]);
    expect(await of({ TOKEN: "t", READ_TOKEN: "r" })).toEqual([
      1,
      undefined,
      undefined,
      ["securitySchemes", "schemas"],
    ]);
  });
});

const chromium = Bun.which("chromium") ?? Bun.which("google-chrome");
if (!chromium) console.log("Skipped: the tests in a browser, for there is no Chromium here.");

describe.if(chromium !== null)("in a real browser", () => {
  const flags =
    "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update --disable-sync";

  async function open(url: string) {
    const [complaints, requests]: [string[], string[]] = [[], []];
    const view = new Bun.WebView({
      width: 1280,
      height: 900,
      backend: { type: "chrome", path: chromium ?? "", argv: flags.split(" "), url: false },
    });
    await view.navigate("about:blank");
    for (const domain of ["Network", "Runtime", "Log"]) await view.cdp(`${domain}.enable`);
    const on = (name: `${string}.${string}`, use: (data: unknown) => unknown) =>
      view.addEventListener(
        name,
        (event) => void use((event as unknown as { data: unknown }).data),
      );
    on("Network.requestWillBeSent", (data) =>
      requests.push((data as { request: Request }).request.url),
    );
    for (const name of [
      "Runtime.exceptionThrown",
      "Runtime.consoleAPICalled",
      "Log.entryAdded",
    ] as const)
      on(name, (data) => complaints.push(JSON.stringify(data)));
    await view.navigate(url);
    return { complaints, requests, view };
  }

  /** What an expression is in the page, as soon as it is something. */
  const once = (view: Bun.WebView, expression: string) =>
    view.evaluate<string>(`new Promise((resolve) => {
      const look = () => { const found = ${expression}; if (found) resolve(found); else requestAnimationFrame(look); };
      look();
    })`);

  test.concurrent(
    "the page lists each operation and tries it out, asks nobody else, and complains of nothing",
    async () => {
      const to = await start({ LOG: "off", TOKEN: "browser" });
      const { complaints, requests, view } = await open(`${to.url}/swagger`);
      const operation = (id: string) => `document.querySelector("#operations-items-${id}")`;
      for (const id of ["listItems", "createItem", "getItem", "putItem", "patchItem", "deleteItem"])
        expect(await once(view, `${operation(id)} && "${id}"`)).toBe(id);
      const fill = `(element, value) => {
      Object.getOwnPropertyDescriptor(Object.getPrototypeOf(element), "value").set.call(element, value);
      element.dispatchEvent(new Event("input", { bubbles: true }));
      element.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
    }`;
      const tryOut = async (id: string, value?: string) => {
        const root = operation(id);
        const click = (button: string) =>
          view.evaluate(`void ${root}.querySelector("${button}")?.click()`);
        const isOpen = await view.evaluate(`!!${root}.querySelector(".execute")`);
        if (!isOpen) await click(".opblock-summary-control");
        if (!isOpen) await once(view, `${root}.querySelector(".try-out__btn") && "open"`);
        if (!isOpen) await click(".try-out__btn");
        await once(view, `${root}.querySelector(".execute") && "ready"`);
        if (value)
          await view.evaluate(`void (${fill})(${root}.querySelector("input"), "${value}")`);
        await click(".btn-clear");
        await once(view, `!${root}.querySelector(".live-responses-table") && "clear"`);
        await click(".execute");
        return once(
          view,
          `${root}.querySelector(".live-responses-table .response .response-col_status")?.firstChild?.textContent`,
        );
      };
      expect(await tryOut("getItem")).toBe("200");
      expect(await tryOut("getItem", "9")).toBe("404");
      expect(await tryOut("createItem")).toBe("401");
      await view.evaluate(`void document.querySelector(".btn.authorize").click()`);
      await once(view, `document.querySelector(".auth-container input") && "asks"`);
      await view.evaluate(
        `void (${fill})(document.querySelector(".auth-container input"), "browser")`,
      );
      await view.evaluate(`void document.querySelector(".auth-btn-wrapper .authorize").click()`);
      await view.evaluate(`void document.querySelector(".auth-btn-wrapper .btn-done").click()`);
      expect(await tryOut("createItem")).toBe("201");
      expect(
        await view.evaluate<number>(
          `parseFloat(getComputedStyle(document.querySelector(".live-responses-table .response .response-col_status")).fontSize)`,
        ),
      ).toBeGreaterThanOrEqual(32);
      expect(
        requests.filter((url) => !url.startsWith(`${to.url}/`) && !/^(data|about):/.test(url)),
      ).toEqual([]);
      expect(requests).toContain(`${to.url}/favicon.ico`);
      expect(complaints.filter((each) => !/status of 40[14]/.test(each))).toEqual([]);
      // A script that got into the page some other way does not run.
      const ran = await view.evaluate(`(() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        return String(window.ran);
      })()`);
      expect(ran).toBe("undefined");
      view.close();
      await to.stop();
    },
  );

  test.concurrent(
    "a page of another origin cannot write, unless CORS_ORIGIN names it",
    async () => {
      using page = Bun.serve({
        port: 0,
        hostname: "127.0.0.1",
        fetch: () =>
          new Response("<!doctype html><iframe name=f></iframe>", {
            headers: { "content-type": "text/html" },
          }),
      });
      const origin = page.url.origin;
      const closed = await start({ LOG: "off" });
      const opened = await start({ LOG: "off", CORS_ORIGIN: origin });
      const { view } = await open(`${origin}/`);
      const body = '{"id":"cross","name":"site"}';
      const fetched = (to: Live, init: object) =>
        view.evaluate<string>(
          `fetch("${to.url}/items", ${JSON.stringify({ method: "POST", body, ...init })}).then((r) => r.type + " " + r.status, () => "refused")`,
        );
      const submitted = (to: Live) =>
        view.evaluate(`new Promise((resolve) => {
        const form = document.body.appendChild(document.createElement("form"));
        Object.assign(form, { action: "${to.url}/items", method: "post", enctype: "text/plain", target: "f" });
        form.appendChild(Object.assign(document.createElement("input"), { name: '{"id":"cross","name":"', value: '"}' }));
        document.querySelector("iframe").onload = () => resolve("loaded");
        form.submit();
      })`);
      await submitted(closed);
      expect(
        await fetched(closed, { mode: "no-cors", headers: { "content-type": "text/plain" } }),
      ).toBe("opaque 0");
      expect(await fetched(closed, { headers: { "content-type": "application/json" } })).toBe(
        "refused",
      );
      expect((await ask("GET /items/cross", { to: closed })).status).toBe(404);
      await submitted(opened);
      expect(await fetched(opened, { headers: { "content-type": "text/plain" } })).toBe("cors 415");
      expect((await ask("GET /items/cross", { to: opened })).status).toBe(404);
      expect(await fetched(opened, { headers: { "content-type": "application/json" } })).toBe(
        "cors 201",
      );
      view.close();
      await Promise.all([closed.stop(), opened.stop()]);
    },
  );
});

// ── The README ─────────────────────────────────────────────────────────────────────────────────

/** The rows of the tables of outcomes, with the operations that each stands for. */
function rowsOf(readme: string) {
  const rows = readme.match(/^\| (any|`[A-Z]+ \/).*\|$/gm) ?? [];
  return rows.map((row) => {
    const [, request = "", status = "", sentence = "", line = ""] = row.split(/(?<!\\) ?\| ?/);
    const command = line.slice(1, -1).replaceAll("\\|", "|");
    const routes = [...request.matchAll(/`(\S+) ([^`]+)`/g)].map(
      ([, method, path]) => `${method} ${path?.replace(":id", "{id}")}`,
    );
    return { command, request, routes, sentence, status: Number(status) };
  });
}

describe("the README", async () => {
  const readme = await Bun.file(join(import.meta.dir, "README.md")).text();
  const rows = rowsOf(readme);

  test("has each command run by line 9, and a real answer by line 20", async () => {
    const lines = readme.split("\n");
    expect(lines.indexOf("bun server.ts")).toBeLessThan(9);
    const to = await start();
    const [, command = "", shown = ""] = /^\$ (curl .*)\n([^`]*)```/m.exec(readme) ?? [];
    expect(readme.slice(0, readme.indexOf(command)).split("\n").length).toBeLessThanOrEqual(20);
    const printed = run(command, to, FOLDER);
    to.asked.push("200  GET  /items/1");
    for (const line of shown.trim().split("\n")) expect(printed.split("\n")).toContain(line);
    await to.stop();
  });

  test("has a line for every answer of the document, and no other", () => {
    const documented = new Set(pairs.map(({ pair }) => pair));
    const told = new Set(
      rows.flatMap(({ request, routes, sentence, status }) => {
        if (request !== "any") return routes.map((route) => `${route} ${status}`);
        return pairs
          .filter((each) => each.status === status && each.description.includes(sentence))
          .map(({ pair }) => pair);
      }),
    );
    const beside = ["GET / 302", "GET /swagger 200", "GET /swagger/json 200"];
    expect([...told].sort()).toEqual([...documented, ...beside].sort());
    const sentences = new Set(
      pairs
        .filter(({ status }) => status >= 400)
        .flatMap(({ description }) => description.split("; ")),
    );
    for (const { sentence, status } of rows) if (status >= 400) sentences.delete(sentence);
    expect([...sentences]).toEqual(["The server is shutting down"]);
    for (const { routes, sentence, status } of rows)
      for (const route of routes.filter((each) => each.includes("/items")))
        expect(
          pairs.find(({ pair }) => pair === `${route} ${status}`)?.description.split("; "),
        ).toContain(sentence);
  });

  test("has lines that do what they say, and collect all twenty-one codes", async () => {
    const folder = mkdtempSync(join(FOLDER, "readme-"));
    const codes = new Set<number>();
    const sections = [
      rows.slice(
        0,
        rows.findIndex(({ status }) => status === 401),
      ),
      rows.slice(rows.findIndex(({ status }) => status === 401)),
    ];
    const settings =
      /^((?:[A-Z_]+=\S+ )+)bun server\.ts$/m.exec(readme)?.[1]?.trim().split(" ") ?? [];
    for (const [index, section] of sections.entries()) {
      const env = index === 0 ? {} : Object.fromEntries(settings.map((each) => each.split("=")));
      if (index === 1) rmSync(join(folder, "items.sqlite"));
      const to = await start({ DATABASE_URL: `sqlite://${join(folder, "items.sqlite")}`, ...env });
      for (const { command, sentence, status } of section) {
        const printed = run(command, to, folder);
        const statuses = [...printed.matchAll(/HTTP\/1\.1 (\d{3})/g)].map(([, code]) =>
          Number(code),
        );
        expect([command, statuses]).toEqual([command, expect.arrayContaining([status])]);
        if (status !== 429) expect([command, statuses.length]).toEqual([command, 1]);
        if (status >= 400)
          expect([command, printed]).toEqual([
            command,
            expect.stringContaining(JSON.stringify({ error: sentence })),
          ]);
        codes.add(status);
      }
      to.child.kill();
      await to.stop("SIGKILL");
    }
    expect([...codes].sort()).toEqual([
      200, 201, 204, 302, 304, 400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 421, 422, 429, 500,
      501, 503,
    ]);
  });

  test("has edits that make an item with a price, and they do what it shows", async () => {
    const folder = mkdtempSync(join(FOLDER, "price-"));
    for (const name of ["server.ts", "package.json", "bunfig.toml", "bun.lock"])
      await Bun.write(join(folder, name), Bun.file(join(import.meta.dir, name)));
    const section = readme.slice(
      readme.indexOf("## Make it yours"),
      readme.indexOf("## Outgrowing"),
    );
    await Bun.write(
      join(folder, "price.diff"),
      /```diff\n([^`]*(?:`[^`]+)*?)```\n/.exec(section)?.[1] ?? "",
    );
    const { exitCode } = Bun.spawnSync(["bash", "-c", "patch -p0 < price.diff"], { cwd: folder });
    expect(exitCode).toBe(0);
    const to = await start(
      { DATABASE_URL: `sqlite://${join(folder, "items.sqlite")}`, LOG: "off" },
      folder,
    );
    const shown = [...section.matchAll(/^\$ (curl .*)\n(.*)$/gm)];
    expect(shown.length).toBe(3);
    for (const [, command = "", answer = ""] of shown)
      expect(run(command, to, folder)).toBe(answer);
    await to.stop();
  });

  test("names the settings that the server has, and the scripts of package.json", async () => {
    const code = await Bun.file(join(import.meta.dir, "server.ts")).text();
    const used = [...code.matchAll(/setting\(\s*"([A-Z_]+)"/g)].map(([, name]) => name);
    const table = readme.slice(readme.indexOf("## Settings"), readme.indexOf("## Outgrowing"));
    expect(
      [...table.matchAll(/`([A-Z_]+)`(?=.*\|.*\|.*\|)/g)]
        .map(([, name]) => name)
        .slice(0, used.length),
    ).toEqual(used);
    const { scripts } = await Bun.file(join(import.meta.dir, "package.json")).json();
    for (const [, name = ""] of readme.matchAll(/bun run (\w+)/g))
      expect(Object.keys(scripts)).toContain(name);
  });
});

/** What a line of the README prints, about this server, in this folder. */
function run(command: string, to: Live, folder: string) {
  const line = command.replaceAll("localhost:3000", `127.0.0.1:${to.port}`);
  const env = { ...Bun.env, PATH: `${dirname(process.execPath)}:${Bun.env.PATH}` };
  const { stdout } = Bun.spawnSync(["bash", "-c", line], { cwd: folder, env, stderr: "ignore" });
  return stdout.toString().replaceAll("\r", "");
}
