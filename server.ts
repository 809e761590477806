/**
 * Items: one file, every HTTP status code, none of them faked.
 *
 *     bun server.ts      run it, then open the address that it prints
 *     bun test           start it on a free port and ask it everything
 *     /swagger           read about it and try it out, without a network
 *
 * Read it from top to bottom, as a request falls through it: the guards ask what concerns every
 * request, in the order of the protocol, and the first that objects answers; then comes the route.
 * There each outcome is a paragraph: the question, why this code and not its neighbour,
 * `set.status`, the answer. A status is a promise to the client, so it is a number that stands
 * where it is decided: in the table of the guards, and in the column of `set.status` below it.
 * A § is a section of RFC 9110, HTTP Semantics.
 */
import { swagger } from "@elysiajs/swagger";
import { SQL } from "bun";
import { Database } from "bun:sqlite";
import { type Context, Elysia, ParseError, t, ValidationError } from "elysia";
import { timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
// The docs page comes from here: a classroom may have no network.
// @ts-expect-error: TypeScript has no type for a file.
import icon from "swagger-ui-dist/favicon-32x32.png" with { type: "file" };
// @ts-expect-error
import script from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
// @ts-expect-error
import style from "swagger-ui-dist/swagger-ui.css" with { type: "file" };

// ── Settings ── from the environment or .env; one that makes no sense ends the start ─────────────

/** Ends the start with one sentence on stderr and exit code 1. */
function refuseToStart(sentence: string): never {
  console.error(sentence);
  process.exit(1);
}

/** The setting `name`, or `fallback` where it is absent or empty. */
function setting(name: string, fallback: string, makesSense: RegExp, mayBe: string): string {
  const text = Bun.env[name] || fallback;
  if (text === fallback || makesSense.test(text)) return text;
  const shown = name.endsWith("TOKEN") ? "something else" : JSON.stringify(withoutPassword(text));
  return refuseToStart(`${name} is ${shown}, but may only be ${mayBe}.`);
}

const withoutPassword = (url: string) => url.replace(/.*@/s, "…@").replace(/\?.*/s, "");
const split = (text: string): string[] => text.toLowerCase().match(/[^\s,]+/g) ?? [];

const PORTS = /^([0-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])$/;
const STORE = /^(sqlite|postgres(ql)?):\/\/./;
const STORES = "sqlite://FILE, sqlite://:memory: or postgres://USER:PASSWORD@HOST:PORT/DATABASE";
const HOSTS = /^[\w.-]+(\s*,\s*[\w.-]+)*$/;
const ORIGINS = /^(\*|https?:\/\/[\w.:[\]-]+)(\s*,\s*(\*|https?:\/\/[\w.:[\]-]+))*$/i;
const ASCII = "visible ASCII characters without a space";

const PORT = setting("PORT", "3000", PORTS, "a free port from 0 to 65535");
const HOST = setting("HOST", "127.0.0.1", /^[\w.:-]+$/, "a name or an address of this machine");
const DATABASE_URL = setting("DATABASE_URL", "sqlite://items.sqlite", STORE, STORES);
const TOKEN = setting("TOKEN", "", /^[!-~]+$/, ASCII);
const READ_TOKEN = setting(
  "READ_TOKEN",
  "",
  TOKEN ? /^[!-~]+$/ : /^$/,
  `${ASCII}, and a TOKEN set`,
);
if (READ_TOKEN !== "" && READ_TOKEN === TOKEN)
  refuseToStart("READ_TOKEN is the same as TOKEN, but may only be another one.");
const ALLOWED_HOSTS = split(setting("ALLOWED_HOSTS", "", HOSTS, "names of hosts without a port"));
const CORS_ORIGIN = split(
  setting("CORS_ORIGIN", "", ORIGINS, "* or origins like http://a.test:81"),
);
const RATE = +setting("RATE", "0", /^\d{1,6}$/, "a whole number up to 999999");
const DELAY = +setting("DELAY", "0", /^\d{1,5}$/, "a whole number of milliseconds up to 99999");
const REHEARSE = setting("REHEARSE", "0", /^1$/, "0 or 1") === "1";
const LOG = setting("LOG", process.stdout.isTTY ? "on" : "off", /^(on|off)$/, "on or off") === "on";
const BODY_LIMIT = 65_536; // bytes

// ── Store ── a 2xx to a write is a promise: it is on the disk before the answer leaves ───────────
//
// The SQL is written once. `$1` comes before `$2` in it, for SQLite takes them as names, in order.
// A write is one statement that also says what it replaces: atomic on every engine, and between
// processes. One that replaces nothing has lost a race, and asks its questions again.

/** An item as the store keeps it. */
type Item = { id: string; name: string };
/** The members that a client may change. */
type Change = Partial<Item>;
type Query = (sql: string, ...values: (string | number | null)[]) => Item[] | Promise<Item[]>;
type Store = { read: Query; write: Query; script: (sql: string) => unknown; close: () => unknown };

const CREATE = `create table items (id text collate "C" primary key, name text not null);
  insert into items values ('1', 'apple'), ('2', 'banana')`;
const FIND = "select * from items where id = $1";
const PAGE = `select * from items where id > $1 and name = coalesce($2, name)
  order by id limit $3`;
const INSERT = "insert into items values ($1, $2) on conflict do nothing returning *";
const UPDATE = "update items set name = $1 where id = $2 and name = $3 returning *";
const DELETE = "delete from items where id = $1 and name = $2 returning *";
const PROBE = "update items set name = name where id = '' returning *";

/** Bun's own SQLite. The writes of one turn of the event loop share a commit: all or none. */
function sqlite(file: string): Store {
  const db = new Database(file);
  db.run("pragma busy_timeout = 2000; pragma journal_mode = wal; pragma busy_timeout = 0");
  db.run("pragma synchronous = full");
  const query = (sql: string, values: unknown[]) =>
    db.query<Item, never[]>(sql).all(...(values as never[]));
  type Write = PromiseWithResolvers<Item[]> & { sql: string; values: unknown[]; until: number };
  const waiting: Write[] = [];
  const transaction = db.transaction((writes: Write[]) =>
    writes.map(({ sql, values }) => query(sql, values)),
  );

  function commit() {
    const writes = waiting.splice(0);
    try {
      const rows = transaction.immediate(writes);
      writes.forEach(({ resolve }, index) => resolve(rows[index] ?? []));
    } catch (error) {
      // Another process may hold the lock: reads go on, and each write waits for up to a second.
      const early = writes.filter(({ until }) => isOutOfReach(error) && Date.now() < until);
      waiting.unshift(...early);
      if (early.length > 0) setTimeout(commit, 5);
      for (const write of writes) if (!early.includes(write)) write.reject(error);
    }
  }

  function write(sql: string, ...values: unknown[]) {
    const write = { ...Promise.withResolvers<Item[]>(), sql, values, until: Date.now() + 1000 };
    if (waiting.push(write) === 1) setImmediate(commit);
    return write.promise;
  }

  // SQLite's own order of text is that of "C", by code point.
  const script = (sql: string) => db.transaction(() => db.run(sql.replace('collate "C"', "")))();
  return { read: (sql, ...values) => query(sql, values), write, script, close: () => db.close() };
}

/** PostgreSQL, or what speaks its protocol. One that keeps silent is out of reach. */
function postgres(url: string): Store {
  const sql = new SQL(url, { max: 16, connectionTimeout: 3 });

  function query(text: string, ...values: unknown[]) {
    // U+0000 is unknown there. No item has a control character, so U+0001 finds and sorts alike.
    const sent = values.map((each) =>
      typeof each === "string" ? each.replaceAll("\0", "\x01") : each,
    );
    const { promise, reject } = Promise.withResolvers<never>();
    const timer = setTimeout(reject, 4000, { code: "ETIMEDOUT" });
    return Promise.race([sql.unsafe(text, sent), promise]).finally(() => clearTimeout(timer));
  }

  const script = (text: string) => sql.unsafe(text).simple();
  return { read: query, write: query, script, close: () => sql.close({ timeout: 1 }) };
}

/** Whether another try may succeed: the store is locked, starting, full or not to be reached. */
function isOutOfReach(error: unknown) {
  const { code, errno } = Object(error) as { code?: unknown; errno?: unknown };
  const isTransient = /^(SQLITE_BUSY|SQLITE_LOCKED|ERR_POSTGRES_CONN|ECONN|ETIME|08|40|53|55|57)/;
  return isTransient.test(`${code}`) || (typeof errno === "string" && isTransient.test(errno));
}

/**
 * Changes an item, creates it where there is none, or deletes it, if `may` agrees with what is
 * there: one atomic step.
 * @param change the members to change; `null` deletes the item
 * @returns the item as it was before, and as it was written, if `may` agreed
 */
async function replace(id: string, change: Change | null, may: (now?: Item) => boolean) {
  for (;;) {
    const [before] = await store.read(FIND, id);
    if (!may(before)) return { before };
    const { name = "" } = { ...before, ...change };
    const [after] = before
      ? change
        ? await store.write(UPDATE, name, id, before.name)
        : await store.write(DELETE, id, before.name)
      : await store.write(INSERT, id, name);
    if (after) return { before, after };
  }
}

// ── Guards ── what is asked of every request, in the order of the protocol ───────────────────────

/** What the guards look at, read from the request once. */
type Asked = ReturnType<typeof look>;
/** A status, the sentence that goes with it, and the question whose yes leads to both. */
type Guard = [status: number, sentence: string, objects: (asked: Asked) => boolean];

const TOO_LARGE = `The body must be at most ${BODY_LIMIT} bytes`;
const guards: Guard[] = [
  // 503, not a closed connection: the client learns that it may come back.
  [503, "The server is shutting down", () => closing.signal.aborted],
  // §7.2: without a Host, nobody knows whom the request is for.
  [400, "Host must be given once, as host or host:port", ({ host }) => host === ""],
  // 421 ends DNS rebinding: a page that gave its own name this address is still not let in.
  [421, "Host must be this machine or one of ALLOWED_HOSTS", ({ host }) => !isHere(host)],
  // 501, not 405: no path of this server has the method.
  [501, "This server does not have this method", ({ method }) => !isOurs(method)],
  // Decoded with loss, it would name another item than the one that was meant.
  [400, "The target must be percent-encoded UTF-8 without a fragment", ({ url }) => !isTarget(url)],
  [429, "Too many requests in this second", ({ request }) => RATE > 0 && isOverRate(request)],
  [404, "No such path", ({ methods }) => methods === undefined],
  // 405, not 404: the path is right, and Allow says what can be done with it.
  [405, "This path does not have this method", (asked) => !asked.methods?.includes(asked.method)],
  // 401, not 403: with another token the request would go through.
  [401, "A bearer token that this server knows is required", (asked) => !mayRead(asked)],
  // 403, not 401: the server knows this token, and it is not enough.
  [403, "The read token may not write", (asked) => !mayWrite(asked)],
  // JSON only: a form or text/plain is what a page of any origin sends without asking.
  [415, "Content-Type must be JSON in UTF-8", (asked) => hasBody(asked) && !isJson(asked)],
  // What is small but unpacks to something large would slip through the limit below.
  [415, "Content-Encoding must be identity", (asked) => hasBody(asked) && isEncoded(asked)],
];

/** The fields that a status owes the client: what to send instead, or when to come back. */
const owed: Record<number, (asked: Asked) => Record<string, string>> = {
  401: ({ headers }) => ({
    "www-authenticate": headers.has("authorization")
      ? 'Bearer realm="items", error="invalid_token"'
      : 'Bearer realm="items"',
  }),
  403: () => ({ "www-authenticate": 'Bearer realm="items", error="insufficient_scope"' }),
  405: ({ methods = [] }) => ({ allow: methods.join(", ") }),
  415: (asked) => ({ accept: mediaTypes(asked).join(", "), "accept-encoding": "identity" }),
  429: () => ({ "retry-after": "1" }),
  503: () => ({ "retry-after": "1" }),
};

const closing = new AbortController();
const HERE = new Set(["localhost", HOST.toLowerCase(), hostname().toLowerCase(), ...ALLOWED_HOSTS]);

/** The path of a target, also of one without an authority. */
function pathOf(url: string) {
  const [start, end] = [url.indexOf("/", url[0] === "/" ? 0 : 8), url.search(/[?#]/)];
  return url.slice(start, end < 0 ? undefined : end);
}

function look(request: Request) {
  const { headers, method, url } = request;
  const host = /^([\w.-]+|\[[\da-f:.]+\])(:\d*)?$/i.exec(headers.get("host") ?? "")?.[1] ?? "";
  const path = pathOf(url);
  const methods = paths.find(({ pattern }) => pattern.test(path))?.methods;
  return { request, headers, host: host.toLowerCase(), method, methods, path, url };
}

const isHere = (host: string) =>
  HERE.has(host) || host.endsWith(".localhost") || isIP(host.replace(/^\[|\]$/g, "")) > 0;
const isOurs = (method: string) => paths.some(({ methods }) => methods.includes(method));

function isTarget(url: string) {
  if (!/[%#]/.test(url)) return true;
  try {
    return !url.includes("#") && decodeURIComponent(url) !== "";
  } catch {
    return false;
  }
}

// Counted in a table of fixed size: two clients may share a slot, but no number of them fills it.
const hits = { second: 0, slots: new Uint32Array(4096) };
function isOverRate(request: Request) {
  const client = app.server?.requestIP(request)?.address ?? "";
  const second = Math.floor(Date.now() / 1000);
  if (hits.second !== second) hits.slots.fill(0);
  hits.second = second;
  const slot = Bun.hash.xxHash32(client) % hits.slots.length;
  return (hits.slots[slot] = (hits.slots[slot] ?? 0) + 1) > RATE;
}

const isSafe = ({ method }: Asked) => /^(GET|HEAD|OPTIONS)$/.test(method);
const isOpen = (asked: Asked) =>
  !TOKEN ||
  (isSafe(asked) &&
    (!READ_TOKEN || !asked.path.startsWith("/items") || asked.method === "OPTIONS"));
const mayRead = (asked: Asked) =>
  isOpen(asked) || carries(asked, TOKEN) || carries(asked, READ_TOKEN);
const mayWrite = (asked: Asked) => isOpen(asked) || isSafe(asked) || carries(asked, TOKEN);

// Digests, compared in constant time: how long it takes tells nothing about the token.
function carries({ headers }: Asked, token: string) {
  const given = /^bearer +(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1] ?? "";
  return timingSafeEqual(Bun.SHA256.hash(given), Bun.SHA256.hash(token)) && token !== "";
}

const hasBody = ({ method }: Asked) => method.startsWith("P");
const isEncoded = ({ headers }: Asked) =>
  !/^(identity)?$/i.test(headers.get("content-encoding") ?? "");
const mediaTypes = ({ method }: Asked) =>
  method === "PATCH" ? ["application/merge-patch+json", "application/json"] : ["application/json"];

function isJson(asked: Asked) {
  const field = asked.headers.get("content-type") ?? "";
  const [type = "", ...parameters] = field.toLowerCase().split(/\s*;\s*/);
  const isUtf8 = parameters.every((each) => /^(?!charset=)|^charset="?utf-8"?$/.test(each));
  return mediaTypes(asked).includes(type) && isUtf8;
}

/** Whether Accept (§12.5.1) lets application/json through: the most specific range decides. */
function acceptsJson(accept: string | null) {
  if (!accept) return true;
  const ranges = accept
    .toLowerCase()
    .split(",")
    .map((range): [string, number] => {
      const [type = "", ...parameters] = range.trim().split(/\s*;\s*/);
      return [type, Number(parameters.find((each) => each.startsWith("q="))?.slice(2) ?? 1)];
    });
  const weights = new Map(ranges);
  const matching = ["application/json", "application/*", "*/*"].find((range) => weights.has(range));
  return matching !== undefined && weights.get(matching) !== 0;
}

/** The entity tag (§8.8.3) of a representation: a digest, so a strong validator. */
const etag = (representation: object) =>
  `"${Bun.SHA256.hash(JSON.stringify(representation), "base64")}"`;

/** The condition (§13.2.2) that does not hold for this entity tag, if there is one. */
function failedCondition({ headers }: Request, tag: string | undefined) {
  const [match, noneMatch] = [headers.get("if-match"), headers.get("if-none-match")];
  if (match !== null && !names(match, tag, "strongly")) return "If-Match";
  if (noneMatch !== null && names(noneMatch, tag, "weakly")) return "If-None-Match";
  return undefined;
}

/** Whether a list of entity tags names this one; `*` names any that there is. */
function names(field: string, tag: string | undefined, compared: "strongly" | "weakly") {
  if (field === "*") return tag !== undefined;
  const tags = field.match(/(W\/)?"[^"]*"/g) ?? [];
  return tags.some((each) => (compared === "weakly" ? each.replace("W/", "") : each) === tag);
}

/** How an item is represented on the wire. */
const represent = ({ name }: Item) => ({ item: name });

/** Whether the conditions of a write hold for what is there now. */
const holds = (request: Request, now: Item | undefined) =>
  !failedCondition(request, now && etag(represent(now)));

// ── Schemas ── what comes in, what goes out, and when ────────────────────────────────────────────
//
// The description of an answer says when it is given; the docs page, the README and the titles of
// the tests use it, and a refusal says it on the wire. The description of a member is its rule.

// Any character but a control character (Cc) or half of a surrogate pair.
const PAIR = String.raw`[\ud800-\udbff][\udc00-\udfff]`;
const CHARACTER = String.raw`([^\u0000-\u001f\u007f-\u009f\ud800-\udfff]|${PAIR})`;
const ID_RULE = "id must be 1 to 128 characters, none of them a control character, and not . or ..";
const NAME_RULE = "name must be 1 to 1024 characters, none of them a control character";
const LIMIT_RULE = "limit must be a whole number from 1 to 100";
const ONCE = "limit, after and name may be given once";
const NOT_JSON = "The body must be JSON in UTF-8";

const ID = { pattern: String.raw`^(?!\.\.?$)${CHARACTER}+$`, minLength: 1, maxLength: 128 };
const NAME = { pattern: `^${CHARACTER}+$`, minLength: 1, maxLength: 1024 };
const Id = t.String({ description: ID_RULE, ...ID, example: "3" });
const Name = t.String({ description: NAME_RULE, ...NAME, example: "cherry" });
const isId = (text: string) => RegExp(ID.pattern).test(text) && text.length <= ID.maxLength;
// Unknown members are ignored, not refused: a client may know more than this server.
const OPEN = { additionalProperties: true };
const NewItem = t.Object({ id: Id, name: Name }, OPEN);
const NewName = t.Object(
  { id: t.Optional(Id), name: Name },
  { ...OPEN, example: { name: "cherry" } },
);
const Patch = t.Partial(NewName, { ...OPEN, example: { name: "cherry" } });
const Path = t.Object({ id: t.String({ description: "the id of the item", example: "1" }) });
const Page = t.Object(
  {
    limit: t.Optional(t.String({ description: LIMIT_RULE, pattern: "^([1-9][0-9]?|100)$" })),
    after: t.Optional(t.String({ description: "only items after this id" })),
    name: t.Optional(t.String({ description: "only items with exactly this name" })),
  },
  OPEN,
);
const TheItem = { item: t.String({ example: "apple" }) };
const TheItems = { items: t.Array(NewItem) };
const Created = { message: t.String({ enum: ["Item created"] }) };
const Updated = { message: t.String({ enum: ["Item updated"] }) };

/** The fields that answers carry, and what each is for. */
const FIELDS = {
  Accept: "the media types to send",
  "Accept-Encoding": "the encoding to send",
  ETag: "names this state of the representation",
  Link: "the next page, if there is one",
  Location: "where it is",
  "Retry-After": "the seconds to wait",
  "WWW-Authenticate": "how to ask again",
};
type Field = keyof typeof FIELDS;
const documented = (fields: Field[]) =>
  Object.fromEntries(
    fields.map((name) => [name, { description: FIELDS[name], schema: { type: "string" } }]),
  );

/** An answer: when it is given, its members and its fields. */
const answer = <Members extends Parameters<typeof t.Object>[0]>(
  when: string,
  members: Members,
  ...fields: Field[]
) => t.Object(members, { description: when, headers: documented(fields) });

/** An answer without a body. */
const empty = (when: string, ...fields: Field[]) =>
  t.Void({ description: when, headers: documented(fields) });

/** A refusal: the sentences that it may say, and its fields. */
const refusal = (sentences: string[], ...fields: Field[]) =>
  answer(sentences.join("; "), { error: t.String({ enum: sentences }) }, ...fields);

/** What is said to a body that lacks what its schema requires. */
const missing = ({ required = ["an object"] }: { required?: string[] }) =>
  `Bad request, ${required.join(" and ")} required`;

/** What the guards say with a status. */
const said = (status: number): string[] =>
  guards.flatMap((guard) => (guard[0] === status ? guard[1] : []));

/** The outcomes that routes share. */
const Shared = {
  304: empty("If-None-Match names what there is", "ETag"),
  400: refusal(said(400)),
  401: refusal(said(401), "WWW-Authenticate"),
  403: refusal(said(403), "WWW-Authenticate"),
  404: refusal(["Item not found"]),
  406: refusal(["Accept must allow application/json"]),
  409: refusal(["The id of the body must be that of the path"]),
  412: refusal(["If-Match or If-None-Match does not hold"]),
  413: refusal([TOO_LARGE]),
  415: refusal(said(415), "Accept", "Accept-Encoding"),
  421: refusal(said(421)),
  422: refusal(Object.values(NewItem.properties).map(({ description }) => `${description}`)),
  429: refusal(said(429), "Retry-After"),
  500: refusal(["Server error"]),
  503: refusal([...said(503), "The store is busy or out of reach"], "Retry-After"),
};

/** Those of the shared outcomes that a route has; four are everywhere. */
const shared = <Status extends keyof typeof Shared>(...statuses: Status[]) => {
  const all = [...statuses, 421, 429, 500, 503] as const;
  return Object.fromEntries(all.map((status) => [status, Shared[status]])) as {
    [Each in (typeof all)[number]]: (typeof Shared)[Each];
  };
};

/** The documentation of an operation. */
const about = (operationId: string, summary: string, description: string) => ({
  detail: { operationId, summary, description, tags: ["items"] },
});

// ── Docs ── at /swagger, whole from this server: a classroom may have no network ────────────────

const HIDDEN = { detail: { hide: true } };
const asset = (body: Blob | string, type: string) =>
  new Response(body, { headers: { "content-type": type } });

/** What the plugin cannot say: bodies are JSON, or a merge patch too; reads may be open. */
function asServed(
  key: string,
  value: { [member: string]: unknown; requestBody?: { content: object } },
) {
  if (key === "content") return { "application/json": value["application/json"] };
  if (key === "get" && !READ_TOKEN) return { ...value, security: [] };
  if (key !== "patch" || !value.requestBody) return value;
  const [schema] = Object.values(value.requestBody.content);
  Object.assign(value.requestBody.content, { "application/merge-patch+json": schema });
  return value;
}

// Swagger UI in the place of Scalar, whose page the plugin writes: it needs no network.
const PAGE_SCRIPT = `
  const add = (tag, members) =>
    document.head.append(Object.assign(document.createElement(tag), members));
  const domNode = document.body.appendChild(document.createElement("main"));
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.lang = "en";
  document.documentElement.classList.toggle("dark-mode", isDark);
  add("link", { rel: "icon", href: "/favicon.ico" });
  add("link", { rel: "stylesheet", href: "/swagger/ui.css" });
  const show = () => SwaggerUIBundle({ url: "/swagger/json", domNode });
  add("script", { src: "/swagger/ui.js", onload: show });`;
const PAGE_STYLE = `
  .swagger-ui .live-responses-table .response .response-col_status {
    font-size: clamp(24px, 4vw, 40px);
    min-width: 0;
    padding-right: 12px;
    width: 1%;
  }
  .swagger-ui .response-col_links { display: none }
  .swagger-ui .headers .header-col { color: inherit }`;

// Nothing comes from elsewhere, and nobody may frame a page that can write. The digest is that of
// an empty script, in which the plugin keeps its settings.
const ONLY_FROM_HERE = [
  "default-src 'self' 'sha256-TcUB1mzXiQO4GxpTRZ0EMpOXKMU3u+n/q1WrgVIcs1I='",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "frame-ancestors 'none'",
].join("; ");

const ABOUT =
  "One resource, and every HTTP status code for a real reason. What concerns every request is " +
  "asked in this order, and the first objection is the answer:";
const ORDER = guards.map(([status, sentence]) => `- ${status}: ${sentence}`).join("\n");

const docs = new Elysia()
  .onAfterHandle(({ response, set }) => {
    set.headers["content-security-policy"] = ONLY_FROM_HERE;
    if (Object(response).openapi) return JSON.parse(JSON.stringify(response), asServed);
  })
  .use(
    swagger({
      scalarCDN: "/swagger/page.js",
      scalarConfig: { customCss: PAGE_STYLE },
      documentation: {
        info: {
          title: "Items",
          version: "1.0.0",
          description: `${ABOUT}\n\n${ORDER}`,
          contact: { name: "Whoever runs this server" },
          license: { name: "MIT", url: "https://opensource.org/license/mit" },
        },
        servers: [{ url: "/", description: "this server" }],
        tags: [{ name: "items", description: "The items, and the way to them" }],
        security: TOKEN ? [{ bearer: [] }] : [],
        components: TOKEN
          ? { securitySchemes: { bearer: { type: "http", scheme: "bearer" } } }
          : {},
      },
    }),
  )
  .get("/swagger/page.js", () => asset(PAGE_SCRIPT, "text/javascript"), HIDDEN)
  .get("/swagger/ui.js", () => asset(Bun.file(script), "text/javascript"), HIDDEN)
  .get("/swagger/ui.css", () => asset(Bun.file(style), "text/css"), HIDDEN)
  .get("/favicon.ico", () => asset(Bun.file(icon), "image/png"), HIDDEN);

// ── App ── what happens around every route: the log, the guards, the body, the errors ────────────

/** What a validator has to say of one value. */
type ValueError = { path: string; value: unknown; schema: { description?: string } };

/** An error whose message is for the client. */
class Refused extends Error {}

/** Whether each member of the query of a list is there once. */
function unambiguous({ request, set }: Pick<Context, "request" | "set">) {
  const { searchParams } = new URL(request.url);
  if (Object.keys(Page.properties).every((each) => searchParams.getAll(each).length < 2)) return;
  set.status = 400;
  return { error: ONCE };
}

/** Whether the client takes what the route answers; asked after the body, before the store. */
function acceptable({ request, set }: Pick<Context, "request" | "set">) {
  if (acceptsJson(request.headers.get("accept"))) return;
  set.status = 406;
  return { error: "Accept must allow application/json" };
}

/** The bytes of a body that is large, or chunked and so of unknown size; undefined if too many. */
async function readCounted({ body }: Request) {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of body?.values({ preventCancel: true }) ?? []) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > BODY_LIMIT) return undefined;
  }
  return Buffer.concat(chunks);
}

const UTF8 = new TextDecoder("utf-8", { fatal: true });

/** The body as JSON; only now, after all guards, is it read. */
async function readJson({ request, set }: Pick<Context, "request" | "set">): Promise<unknown> {
  const isSmall = Number(request.headers.get("content-length") ?? Infinity) <= BODY_LIMIT;
  const bytes = isSmall ? await request.bytes() : await readCounted(request);
  if (bytes === undefined) {
    drop(request);
    set.status = 413;
    throw new Refused(TOO_LARGE);
  }

  try {
    return JSON.parse(UTF8.decode(bytes));
  } catch {
    // 400, not 422: what cannot be read has broken no rule of the items yet.
    set.status = 400;
    throw new Refused(NOT_JSON);
  }
}

/** Reads the rest of a body and drops it: who is cut off while sending never sees the answer. */
const drop = ({ body }: Request) => void body?.pipeTo(new WritableStream()).catch(() => {});

const app = new Elysia({ normalize: false, strictPath: true })
  .headers({ "cache-control": "no-cache", "x-content-type-options": "nosniff" })
  // The one place that sees every answer on its way out.
  .wrap((next) =>
    !LOG && DELAY === 0
      ? next
      : async (request: Request) => {
          const start = performance.now();
          const response = (await next(request)) as unknown as Response;
          if (DELAY > 0) await sleep(DELAY, null, { signal: closing.signal }).catch(() => {});
          const isRefusal = response.status >= 400 && request.method !== "HEAD";
          const why = LOG && isRefusal ? (await response.clone().json()).error : "";
          if (LOG) log(request, response, performance.now() - start, why);
          return response;
        },
  )

  // A page of another origin may read the answers, refusals too, if CORS_ORIGIN names it.
  .onRequest(({ request, set }) => {
    if (CORS_ORIGIN.length === 0) return;
    const origin = request.headers.get("origin") ?? "";
    const mayRead = CORS_ORIGIN.includes("*") || CORS_ORIGIN.includes(origin);
    set.headers.vary = "Origin";
    if (mayRead && origin) set.headers["access-control-allow-origin"] = origin;
    set.headers["access-control-expose-headers"] =
      `Allow, Preference-Applied, ${Object.keys(FIELDS)}`;
  })

  .onRequest(({ request, set }) => {
    const asked = look(request);
    for (const [status, sentence, objects] of guards) {
      if (!objects(asked)) continue;
      drop(request);
      Object.assign(set.headers, owed[status]?.(asked));
      set.status = status;
      return { error: sentence };
    }

    // §9.3.7: what can be done here? A preflight of CORS asks the same.
    if (request.method === "OPTIONS") {
      const methods = asked.methods?.join(", ") ?? "";
      set.headers.allow = methods;
      if (set.headers["access-control-allow-origin"]) {
        set.headers["access-control-allow-methods"] = methods;
        set.headers["access-control-allow-headers"] =
          "*, Authorization, Content-Type, If-Match, If-None-Match, Prefer";
      }
      set.status = 204;
      return new Response(null, { status: 204 });
    }

    // `Prefer: code=503` (RFC 7240): a front end may rehearse how the server fails.
    const rehearsed = REHEARSE && /\bcode=([45]\d\d)\b/.exec(request.headers.get("prefer") ?? "");
    if (rehearsed) {
      Object.assign(set.headers, owed[Number(rehearsed[1])]?.(asked));
      set.headers["preference-applied"] = rehearsed[0];
      set.status = Number(rehearsed[1]);
      return { error: "Rehearsed, because Prefer asks for it" };
    }
  })

  .onError(({ error, request, set }) => {
    // The status was set where the body turned out to be unreadable.
    if (error instanceof ParseError && error.cause instanceof Refused)
      return { error: error.cause.message };

    if (error instanceof ValidationError && error.type !== "response") {
      const faults = error.all as ValueError[];
      const rule = faults[0]?.schema.description;

      // 400, not 422: a query is not an item.
      if (error.type === "query") {
        set.status = 400;
        return { error: rule };
      }

      // 400, not 422: without what is required, or not even an object, it is no item.
      if (faults.some(({ path, value }) => path === "" || value === undefined)) {
        set.status = 400;
        return { error: missing(Object(error.validator).schema) };
      }

      // 422, not 400: it is an item, but for this value.
      set.status = 422;
      return { error: rule };
    }

    // 503, not 500: nothing is broken, and another try may succeed.
    if (isOutOfReach(error)) {
      Object.assign(set.headers, owed[503]?.(look(request)));
      set.status = 503;
      return { error: "The store is busy or out of reach" };
    }

    // What happened is for those who run the server, not for those who use it.
    if (!request.signal.aborted) console.error(error);
    for (const field of ["etag", "link", "location"]) delete set.headers[field];
    set.status = 500;
    return { error: "Server error" };
  })

  // ── Routes ── the question, why this code and not its neighbour, set.status, the answer ────────

  .get(
    "/",
    ({ set }) => {
      // 302, not 301: another day, something else may be found here.
      set.headers.location = "/swagger";
      set.status = 302;
    },
    { ...HIDDEN, response: { 302: empty("The docs are at /swagger", "Location"), ...shared(400) } },
  )

  .get(
    "/items",
    async ({ query, request, set }) => {
      const limit = Number(query.limit ?? 20);
      const found = await store.read(PAGE, query.after ?? "", query.name ?? null, limit + 1);
      const items = found.slice(0, limit);
      const isLast = found.length <= limit;
      const next = `/items?${new URLSearchParams({ ...query, after: items.at(-1)?.id ?? "" })}`;
      const tag = etag(isLast ? items : [items, next]);
      const failed = failedCondition(request, tag);

      // 412 before 304: If-Match is asked first (§13.2.2).
      if (failed === "If-Match") {
        set.status = 412;
        return { error: "If-Match or If-None-Match does not hold" };
      }

      set.headers.etag = tag;
      if (!isLast) set.headers.link = `<${next}>; rel="next"`;

      // The client has this page already.
      if (failed === "If-None-Match") {
        set.status = 304;
        return;
      }

      set.status = 200;
      return { items };
    },
    {
      beforeHandle: [unambiguous, acceptable],
      query: Page,
      ...about("listItems", "List items", "Page through the items, in the order of their ids."),
      response: {
        200: answer("The items of this page", TheItems, "ETag", "Link"),
        400: refusal([LIMIT_RULE, ONCE, ...said(400)]),
        ...shared(304, 401, 406, 412),
      },
    },
  )

  .post(
    "/items",
    async ({ body: { id, ...change }, set }) => {
      const { after } = await replace(id, change, (now) => !now);

      // 400, not 409: the lesson that this server keeps to says so.
      if (!after) {
        set.status = 400;
        return { error: "Item already exists" };
      }

      // 201, not 200: Location names something that was not there before.
      set.headers.location = `/items/${encodeURIComponent(id)}`;
      set.headers.etag = etag(represent(after));
      set.status = 201;
      return { message: "Item created" };
    },
    {
      beforeHandle: acceptable,
      parse: readJson,
      body: NewItem,
      ...about("createItem", "Create an item", "Create an item under an id that is still free."),
      response: {
        201: answer("The id was free", Created, "ETag", "Location"),
        400: refusal([NOT_JSON, missing(NewItem), "Item already exists", ...said(400)]),
        ...shared(401, 403, 406, 413, 415, 422),
      },
    },
  )

  .get(
    "/items/:id",
    async ({ params, request, set }) => {
      const [item] = await store.read(FIND, params.id);

      // 404 before 412: there is nothing whose state a condition could name.
      if (!item) {
        set.status = 404;
        return { error: "Item not found" };
      }

      const tag = etag(represent(item));
      const failed = failedCondition(request, tag);
      if (failed === "If-Match") {
        set.status = 412;
        return { error: "If-Match or If-None-Match does not hold" };
      }

      // The client has it already.
      set.headers.etag = tag;
      if (failed === "If-None-Match") {
        set.status = 304;
        return;
      }

      set.status = 200;
      return represent(item);
    },
    {
      beforeHandle: acceptable,
      params: Path,
      ...about("getItem", "Get an item", "Read one item, or ask whether it has changed."),
      response: {
        200: answer("The item exists", TheItem, "ETag"),
        ...shared(304, 400, 401, 404, 406, 412),
      },
    },
  )

  .put(
    "/items/:id",
    async ({ body: { id, ...change }, params, request, set }) => {
      // 422, not 404: on this path an item would be created.
      if (!isId(params.id)) {
        set.status = 422;
        return { error: ID_RULE };
      }

      const isItself = id === undefined || id === params.id;
      const may = (now?: Item) => isItself && holds(request, now);
      const { after, before } = await replace(params.id, change, may);

      // 412, not 409: the client itself has set the condition.
      if (!holds(request, before)) {
        set.status = 412;
        return { error: "If-Match or If-None-Match does not hold" };
      }

      // 409, not 422: both ids are fine, but they do not agree. Nothing else is in the way.
      if (!after) {
        set.status = 409;
        return { error: "The id of the body must be that of the path" };
      }

      set.headers.etag = etag(represent(after));

      // 201: PUT creates what is not there yet (§9.3.4).
      if (!before) {
        set.headers.location = `/items/${encodeURIComponent(params.id)}`;
        set.status = 201;
        return { message: "Item created" };
      }

      set.status = 200;
      return { message: "Item updated" };
    },
    {
      beforeHandle: acceptable,
      params: Path,
      parse: readJson,
      body: NewName,
      ...about("putItem", "Replace an item", "Put an item in its place, or create it there."),
      response: {
        200: answer("The item existed", Updated, "ETag"),
        201: answer("The item did not exist", Created, "ETag", "Location"),
        400: refusal([NOT_JSON, missing(NewName), ...said(400)]),
        ...shared(401, 403, 406, 409, 412, 413, 415, 422),
      },
    },
  )

  .patch(
    "/items/:id",
    async ({ body: { id, ...change }, params, request, set }) => {
      const isItself = id === undefined || id === params.id;
      const may = (now?: Item) => !!now && isItself && holds(request, now);
      const { after, before } = await replace(params.id, change, may);

      // 404, not 201: a patch needs something to change.
      if (!before) {
        set.status = 404;
        return { error: "Item not found" };
      }

      if (!holds(request, before)) {
        set.status = 412;
        return { error: "If-Match or If-None-Match does not hold" };
      }

      if (!after) {
        set.status = 409;
        return { error: "The id of the body must be that of the path" };
      }

      set.headers.etag = etag(represent(after));
      set.status = 200;
      return { message: "Item updated" };
    },
    {
      beforeHandle: acceptable,
      params: Path,
      parse: readJson,
      body: Patch,
      ...about("patchItem", "Change an item", "Change what the merge patch (RFC 7396) names."),
      response: {
        200: answer("The item existed", Updated, "ETag"),
        400: refusal([NOT_JSON, missing(Patch), ...said(400)]),
        ...shared(401, 403, 404, 406, 409, 412, 413, 415, 422),
      },
    },
  )

  .delete(
    "/items/:id",
    async ({ params, request, set }) => {
      const may = (now?: Item) => !!now && holds(request, now);
      const { before } = await replace(params.id, null, may);

      // 404, not 204: the client learns that it was gone before.
      if (!before) {
        set.status = 404;
        return { error: "Item not found" };
      }

      if (!holds(request, before)) {
        set.status = 412;
        return { error: "If-Match or If-None-Match does not hold" };
      }

      // 204, not 200: there is nothing left to show.
      set.status = 204;
    },
    {
      params: Path,
      ...about("deleteItem", "Delete an item", "Delete an item for good."),
      response: { 204: empty("The item existed"), ...shared(400, 401, 403, 404, 412) },
    },
  )

  .use(docs);

/** The type of the app, for Elysia's client: `treaty<App>("127.0.0.1:3000")`. */
export type App = typeof app;

// ── Start ── open the store, listen, say where; at the end answer what is in flight ──────────────

/** Which methods each path has (§10.2.1), from the routes themselves: never kept by hand. */
const paths = [...Map.groupBy(app.routes, ({ path }) => path)].map(([path, routes]) => ({
  pattern: RegExp(`^${path.replace(/:\w+/g, "[^/]+")}$`),
  methods: [
    "OPTIONS",
    ...routes.flatMap(({ method }) => (method === "GET" ? ["GET", "HEAD"] : method)),
  ].sort(),
}));

/** Every status that this server documents: what there is to collect. */
const codes = new Set([
  204,
  ...guards.map(([status]) => status),
  ...app.routes.flatMap(({ hooks }) => Object.keys(hooks.response ?? {}).map(Number)),
]);
const seen = new Set<number>();

const terminal = Bun.stdout.writer();
let lines = "";

/** Prints a line, with all that come within ten milliseconds: a write costs more than a line. */
function print(line: string) {
  if (lines === "") setTimeout(flush, 10);
  lines += `${line}\n`;
}

function flush() {
  terminal.write(lines);
  lines = "";
}

const isColoured = process.stdout.isTTY && !Bun.env.NO_COLOR;
const COLOURS = [31, 31, 32, 36, 33, 31];

/** Prints the line of a request: what went out, for what, how long it took, and why. */
function log(request: Request, response: Response, milliseconds: number, why = "") {
  const { status } = response;
  // Asking has a price, so a client that went away within ten milliseconds may be missed.
  const isGone = (status >= 400 || milliseconds > 10) && request.signal.aborted;
  const isNew = !seen.has(status) && codes.has(status) && !isGone;
  const isReal = isNew && !response.headers.has("preference-applied");
  const star = isReal ? `  ★ ${seen.add(status).size} of ${codes.size}` : "";
  const code = isGone ? "gone" : status;
  const shown = isColoured ? `\x1b[${COLOURS[Math.floor(status / 100)]}m${code}\x1b[0m` : code;
  const time = Math.round(milliseconds * 10) / 10;
  const path = pathOf(request.url);
  const visible = /^[!-~]*$/.test(path) ? path : path.replace(/[^!-~]/g, encodeURIComponent);
  const reason = why && !isGone ? `  ${why}` : "";
  print(`${shown}  ${request.method}  ${visible}  ${time} ms${reason}${star}`);
}

const file = /^sqlite:\/\/(?!:memory:)(.*)/.exec(DATABASE_URL)?.[1];
const shown = JSON.stringify(withoutPassword(DATABASE_URL));
let store: Store;
try {
  const isSqlite = DATABASE_URL.startsWith("sqlite:");
  store = isSqlite ? sqlite(file ?? ":memory:") : postgres(DATABASE_URL);
  // Where there is a table, it stays. A write that changes nothing shows whether it is ours.
  await Promise.try(() => store.script(CREATE)).catch(() => {});
  await store.write(PROBE);
} catch {
  refuseToStart(
    `DATABASE_URL is ${shown}, but that store cannot be opened and written. It may be ${STORES}.`,
  );
}

try {
  app.listen({
    development: false, // or the page of an error shows the source
    error(error) {
      console.error(error); // It escaped the app: no field could be set, but no word of it leaves.
      return Response.json({ error: "Server error" }, { status: 500 });
    },
    hostname: HOST,
    idleTimeout: 30, // seconds
    maxRequestBodySize: Infinity, // or Bun answers and cuts off; the body is counted above
    port: PORT,
    reusePort: false, // or two servers share a port, and nobody knows which one answers
  });
} catch (error) {
  if (Object(error).code === "EADDRINUSE")
    refuseToStart(`PORT is ${PORT}, but may only be a free port from 0 to 65535.`);
  refuseToStart(`HOST is "${HOST}", but may only be a name or an address of this machine.`);
}

const name = HOST.replace(/^(0\.0\.0\.0|::)$/, "localhost").replace(/.*:.*/, "[$&]");
const address = `http://${name}:${app.server?.port}`;
print(`Items  ${address}`);
print(`Docs   ${address}/swagger`);
print(`Store  ${file ? `${file}; delete it to start over` : shown}`);
if (!/^(127\.|localhost$|::1$)/.test(HOST) && !TOKEN)
  print("Warning: other machines can write here. Set TOKEN to keep them out.");

/** Takes nothing new, answers what is in flight, closes the store. A second signal ends at once. */
async function stop() {
  if (closing.signal.aborted) process.exit(130);
  closing.abort();
  setTimeout(() => app.server?.stop(true), 3500);
  setTimeout(() => process.exit(0), 4500);
  await app.server?.stop();
  await store.close();
  const missing = [...codes].filter((code) => !seen.has(code)).sort();
  if (LOG)
    print(missing.length > 0 ? `Still to be found: ${missing.join(" ")}` : "All were found.");
  flush();
  await terminal.end();
  process.exit(0);
}
process.on("SIGINT", stop).on("SIGTERM", stop);
