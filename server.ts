/**
 * Items: one file, every HTTP status code, none of them faked.
 *
 *     bun server.ts      run it, then open the address that it prints
 *     bun test           start it on a free port and ask it everything
 *     /swagger           read about it and try it out, without a network
 *
 * Read it from top to bottom, as a request falls through it: the guards ask what concerns every
 * request, in the order of the protocol, and the first that applies answers; then comes the route.
 * There each outcome is a paragraph: the question, why this code and not its neighbour,
 * `set.status`, the answer. Those that routes share stand once, above them: `conditional` shows
 * what was found, `whyNot` says what is in the way. A status is a promise to the client, so it is
 * a number that stands where it is decided. A § is a section of RFC 9110, HTTP Semantics.
 */
import { swagger } from "@elysiajs/swagger";
import { SQL } from "bun";
import { Database } from "bun:sqlite";
import { type Context, Elysia, ParseError, t, type TSchema, ValidationError } from "elysia";
import { timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
// @ts-expect-error: TypeScript has no type for a file.
import icon from "swagger-ui-dist/favicon-32x32.png" with { type: "file" };
// @ts-expect-error
import script from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
// @ts-expect-error
import style from "swagger-ui-dist/swagger-ui.css" with { type: "file" };

// ── Settings ── from the environment or .env; one that makes no sense ends the start ─────────────

/** The setting `name`: its text, or `fallback` where it is absent or empty. */
function setting(name: string, fallback: string, pattern: RegExp, rule: string) {
  const text = Bun.env[name] || fallback;
  rules[name] = rule;
  return text === fallback || pattern.test(text) ? text : refuse(name, text);
}
const rules: Record<string, string> = {};

/** Ends the start with exit code 1 and one sentence on stderr, which holds no secret. */
function refuse(name: string, text: string): never {
  const shown = name.endsWith("TOKEN") ? "something else" : JSON.stringify(withoutPassword(text));
  console.error(`${name} is ${shown}, but may only be ${rules[name]}.`);
  process.exit(1);
}

const withoutPassword = (url: string) => url.replace(/.*@/s, "…@").replace(/\?.*/s, "");
const list = (text: string): string[] => text.toLowerCase().match(/[^\s,]+/g) ?? [];

const A_STORE = "one that opens: sqlite://FILE, sqlite://:memory: or postgres://USER@HOST/DATABASE";
const A_TOKEN = "visible ASCII characters without a space";
const STORES = /^(sqlite|postgres(ql)?):\/\/./;
const ORIGINS = /^((\*|https?:\/\/[^\s,/]+)( *, *|$))+$/i;

const PORT = setting("PORT", "3000", /^\d+$/, "a free port from 0 to 65535");
const HOST = setting("HOST", "127.0.0.1", /^[\w.:-]+$/, "a name or an address of this machine");
const DATABASE_URL = setting("DATABASE_URL", "sqlite://items.sqlite", STORES, A_STORE);
const TOKEN = setting("TOKEN", "", /^[!-~]+$/, A_TOKEN);
const READ_TOKEN = setting("READ_TOKEN", "", /^[!-~]+$/, `${A_TOKEN}, beside TOKEN and unlike it`);
const ALLOWED_HOSTS = list(setting("ALLOWED_HOSTS", "", /^[\w., -]+$/, "hosts without a port"));
const CORS_ORIGIN = list(setting("CORS_ORIGIN", "", ORIGINS, "* or origins like http://a.test:81"));
const RATE = +setting("RATE", "0", /^\d{1,6}$/, "a whole number up to 999999");
const DELAY = +setting("DELAY", "0", /^\d{1,5}$/, "a whole number of milliseconds up to 99999");
const REHEARSE = setting("REHEARSE", "0", /^1$/, "0 or 1") === "1";
const LOG = setting("LOG", process.stdout.isTTY ? "on" : "off", /^(on|off)$/, "on or off") === "on";
if (READ_TOKEN && (!TOKEN || READ_TOKEN === TOKEN)) refuse("READ_TOKEN", READ_TOKEN);

// ── Store ── a 2xx to a write is a promise: it is on the disk before the answer leaves ───────────
//
// The SQL is written once. `$1` comes before `$2` in it, for SQLite takes them as names, in order.
// A write is one statement that also says what it replaces: atomic on every engine, and between
// processes. One that replaces nothing has lost a race, and asks its questions again.

/** An item as the store keeps it. */
type Item = { id: string; name: string };
type Value = string | number | null;
type Query = (sql: string, ...values: Value[]) => Item[] | Promise<Item[]>;
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

const insert = ({ id, name }: Item) => store.write(INSERT, id, name);
const update = ({ id, name }: Item, old: Item) => store.write(UPDATE, name, id, old.name);
const remove = ({ id, name }: Item) => store.write(DELETE, id, name);

/** Bun's own SQLite. The writes of one turn of the event loop share a commit. */
function sqlite(file: string): Store {
  type Write = PromiseWithResolvers<Item[]> & { sql: string; values: Value[]; until: number };
  const db = new Database(file);
  db.run("pragma busy_timeout = 2000; pragma journal_mode = wal; pragma synchronous = full");
  db.run("pragma busy_timeout = 0");
  const waiting: Write[] = [];
  const read = (sql: string, ...values: Value[]) => db.query<Item, Value[]>(sql).all(...values);
  const transaction = db.transaction((writes: Write[]) =>
    writes.map(({ sql, values }) => read(sql, ...values)),
  );

  function commit(writes = waiting.splice(0)) {
    try {
      const rows = transaction.immediate(writes);
      writes.forEach(({ resolve }, index) => resolve(rows[index] ?? []));
    } catch (error) {
      // What is wrong with one does not hurt the others: each gets a commit of its own.
      if (writes.length > 1 && !isOutOfReach(error))
        return writes.forEach((each) => commit([each]));

      // Another process may hold the lock: reads go on, and each write waits for up to a second.
      for (const write of writes)
        if (!isOutOfReach(error) || Date.now() > write.until) write.reject(error);
        else if (waiting.push(write) === 1) setTimeout(commit, 5);
    }
  }

  function write(sql: string, ...values: Value[]) {
    const write = { ...Promise.withResolvers<Item[]>(), sql, values, until: Date.now() + 1000 };
    if (waiting.push(write) === 1) setImmediate(commit);
    return write.promise;
  }

  // SQLite's own order of text is that of "C", by code point.
  const script = (sql: string) => db.transaction(() => db.run(sql.replace('collate "C"', "")))();
  return { read, write, script, close: () => db.close() };
}

/** PostgreSQL, or what speaks its protocol. One that keeps silent is out of reach. */
function postgres(url: string): Store {
  const sql = new SQL(url, { max: 16, connectionTimeout: 3 });

  function query(text: string, ...values: Value[]) {
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
  const { code, errno } = Object(error);
  const TRANSIENT = /^(SQLITE_BUSY|SQLITE_LOCKED|ERR_POSTGRES_CONN|ECONN|ETIME|08|40|53|55|57)/;
  return [code, errno].some((each) => typeof each === "string" && TRANSIENT.test(each));
}

type InTheWay = (tag?: string) => { error: string } | undefined;
/**
 * Changes an item, creates it where there is none, or deletes it: one atomic step.
 * @param change the members to change; `null` deletes the item
 * @param inTheWay says what is in the way, if anything, from the entity tag of what is there
 * @returns what is in the way, or the entity tags of what was there before and of what was written
 */
async function replace(id: string, change: Partial<Item> | null, inTheWay: InTheWay) {
  for (;;) {
    const [found] = await store.read(FIND, id);
    const before = found && etag(represent(found));
    const refused = inTheWay(before);
    if (refused) return { refused };
    const item = { ...found, ...change, id } as Item;
    const [written] = await (!found ? insert(item) : change ? update(item, found) : remove(found));
    if (written) return { before, after: etag(represent(written)) };
  }
}

// ── Guards ── what is asked of every request, in the order of the protocol ───────────────────────

/** What the guards look at, read from the request once. */
type Asked = ReturnType<typeof look>;
/** A status, the sentence that goes with it, and the question whose yes leads to both. */
type Guard = [status: number, sentence: string, applies: (asked: Asked) => boolean];

const BODY_LIMIT = 65_536; // bytes
const TOO_LARGE = `The body must be at most ${BODY_LIMIT} bytes`;
const guards: Guard[] = [
  // 503, not a closed connection: the client learns that it may come back.
  [503, "The server is shutting down", () => closing.signal.aborted],
  // §7.2: without a Host, nobody knows whom the request is for.
  [400, "Host must be given once, as host or host:port", ({ host }) => host === ""],
  // 421 ends DNS rebinding: a page that gave its own name this address is still not let in.
  [421, "Host must be this machine or one of ALLOWED_HOSTS", ({ host }) => !isHere(host)],
  // 501, not 405: no path of this server has the method.
  [501, "This server does not have this method", ({ method }) => !METHODS.has(method)],
  // Decoded with loss, it would name another item than the one that was meant.
  [400, "The target must be percent-encoded UTF-8 without a fragment", ({ url }) => !isTarget(url)],
  // 429, not 503: it is this client that has to wait, not all.
  [429, "Too many requests in this second", (asked) => RATE > 0 && hit(asked) > RATE],
  // 404, not 400: the target is well-formed, but it names nothing.
  [404, "No such path", ({ methods }) => methods === undefined],
  // 405, not 404: the path is right, and Allow says what can be done with it.
  [405, "This path does not have this method", (asked) => !asked.methods?.includes(asked.method)],
  // §9.3.7: what can be done here? A preflight of CORS asks the same.
  [204, "OPTIONS on a known path", ({ method }) => method === "OPTIONS"],
  // 401, not 403: with another token the request would go through.
  [401, "A bearer token that this server knows is required", (asked) => isStranger(asked)],
  // 403, not 401: the server knows this token, and it is not enough.
  [403, "The read token may not write", (asked) => isWrite(asked) && rights(asked) === "read"],
  // JSON only: a form or text/plain is what a page of any origin sends without asking.
  [415, "Content-Type must be JSON in UTF-8", (asked) => hasBody(asked) && !isJson(asked)],
  // What is small but unpacks to something large would slip through the limit below.
  [415, "Content-Encoding must be identity", (asked) => hasBody(asked) && isEncoded(asked)],
  // A size that is said is believed, and nothing is read; a chunked body is counted further down.
  [413, TOO_LARGE, (asked) => hasBody(asked) && contentLength(asked) > BODY_LIMIT],
];

/** The fields that a status owes the client: what to send instead, or when to come back. */
const owed: Record<number, (asked: Asked) => Record<string, string>> = {
  204: ({ methods = [] }) => ({ allow: methods.join(", ") }),
  401: ({ headers }) => challenge(headers.has("authorization") ? "invalid_token" : ""),
  403: () => challenge("insufficient_scope"),
  405: ({ methods = [] }) => ({ allow: methods.join(", ") }),
  415: (asked) => ({ accept: mediaTypes(asked).join(", "), "accept-encoding": "identity" }),
  429: () => IN_A_SECOND,
  503: () => IN_A_SECOND,
};
const IN_A_SECOND = { "retry-after": "1" };
const challenge = (error: string) => ({
  "www-authenticate": `Bearer realm="items"${error && `, error="${error}"`}`,
});

const closing = new AbortController();
const HERE = new Set(["localhost", HOST.toLowerCase(), hostname().toLowerCase(), ...ALLOWED_HOSTS]);

/** The path of a target, also of one without an authority. */
const pathOf = (url: string) => /^(?:https?:\/\/[^/]*)?([^?#]*)/.exec(url)?.[1] ?? "";

function look(request: Request) {
  const { headers, method, url } = request;
  const host = /^([\w.-]+|\[[\da-f:.]+\])(:\d*)?$/i.exec(headers.get("host") ?? "")?.[1] ?? "";
  const path = pathOf(url);
  const methods = paths.find(({ pattern }) => pattern.test(path))?.methods;
  return { headers, host: host.toLowerCase(), method, methods, path, request, url };
}

const isHere = (host: string) =>
  HERE.has(host) || host.endsWith(".localhost") || isIP(host.replace(/^\[|\]$/g, "")) > 0;

function isTarget(url: string) {
  if (!/[%#]/.test(url)) return true;
  try {
    return !url.includes("#") && decodeURIComponent(url) !== "";
  } catch {
    return false;
  }
}

// How often each client came in this second.
const hits = new Map<string, number>();
if (RATE > 0) setInterval(() => hits.clear(), 1000).unref();
function hit({ request }: Asked) {
  const client = app.server?.requestIP(request)?.address ?? "";
  hits.set(client, (hits.get(client) ?? 0) + 1);
  return hits.get(client) ?? 0;
}

/** What the token of a request allows. Digests are compared, in constant time. */
function rights({ headers }: Asked) {
  const given = /^bearer +(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1] ?? "";
  const is = (token: string) => timingSafeEqual(Bun.SHA256.hash(given), Bun.SHA256.hash(token));
  if (!TOKEN || is(TOKEN)) return "write";
  return READ_TOKEN && is(READ_TOKEN) ? "read" : "none";
}

const isWrite = ({ method }: Asked) => method !== "GET" && method !== "HEAD";
const isStranger = (asked: Asked) =>
  (isWrite(asked) || (READ_TOKEN !== "" && asked.path.startsWith("/items"))) &&
  rights(asked) === "none";
const hasBody = ({ method }: Asked) => method.startsWith("P");
const contentLength = ({ headers }: Asked) => Number(headers.get("content-length"));
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

// ── Schemas ── what comes in, what goes out, and when ────────────────────────────────────────────
//
// The description of an answer says when it is given; the docs page, the README and the titles of
// the tests use it, and a refusal says it on the wire. The description of a member is its rule.

// Any characters but control characters (Cc) and halves of surrogate pairs.
const PAIR = String.raw`[\ud800-\udbff][\udc00-\udfff]`;
const TEXT = String.raw`([^\u0000-\u001f\u007f-\u009f\ud800-\udfff]|${PAIR})+$`;
const ID_RULE = "id must be 1 to 128 characters, none of them a control character, and not . or ..";
const NAME_RULE = "name must be 1 to 1024 characters, none of them a control character";
const LIMIT_RULE = "limit must be a whole number from 1 to 100";
const ONCE = "limit, after and name may be given once";
const NOT_JSON = "The body must be JSON in UTF-8";

const text = (description: string, pattern: string, maxLength: number, example: string) =>
  t.String({ description, pattern, minLength: 1, maxLength, example });
const Id = text(ID_RULE, String.raw`^(?!\.\.?$)${TEXT}`, 128, "3");
const Name = text(NAME_RULE, `^${TEXT}`, 1024, "cherry");
const isId = (id: string) => RegExp(Id.pattern ?? "").test(id) && id.length <= (Id.maxLength ?? 0);
// Unknown members are ignored, not refused: a client may know more than this server.
const OPEN = { additionalProperties: true };
const NewItem = t.Object({ id: Id, name: Name }, OPEN);
const NewName = t.Object(
  { ...NewItem.properties, id: t.Optional(Id) },
  { ...OPEN, example: { name: "cherry" } },
);
const Patch = t.Partial(NewName);
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

/** When an answer is given, and the fields that it carries. */
const when = (description: string, ...fields: string[]) => ({
  description,
  headers: Object.fromEntries(fields.map((name) => [name, { schema: { type: "string" } }])),
});

/** A refusal: the sentences that it may say, and the fields that it carries. */
const refusal = (sentences: string[], ...fields: string[]) =>
  t.Object({ error: t.String({ enum: sentences }) }, when(sentences.join("; "), ...fields));

/** What is said to a body that lacks what its schema requires. */
const missing = ({ required = ["an object"] }: { required?: string[] }) =>
  `Bad request, ${required.join(" and ")} required`;

/** What the guards say with a status. */
const said = (status: number) => guards.flatMap((guard) => (guard[0] === status ? guard[1] : []));

/** The outcomes that routes share. */
const Shared = {
  304: t.Void(when("If-None-Match names what there is", "ETag")),
  400: refusal(said(400)),
  401: refusal(said(401), "WWW-Authenticate"),
  403: refusal(said(403), "WWW-Authenticate"),
  404: refusal(["Item not found"]),
  406: refusal(["Accept must allow application/json"]),
  409: refusal(["The id of the body must be that of the path"]),
  412: refusal(["If-Match or If-None-Match does not hold"]),
  413: refusal(said(413)),
  415: refusal(said(415), "Accept", "Accept-Encoding"),
  421: refusal(said(421)),
  422: refusal([ID_RULE, NAME_RULE]),
  429: refusal(said(429), "Retry-After"),
  500: refusal(["Server error"]),
  503: refusal([...said(503), "The store is busy or out of reach"], "Retry-After"),
};
const shared = <S extends keyof typeof Shared>(...statuses: S[]) =>
  Object.fromEntries(statuses.map((status) => [status, Shared[status]])) as Pick<typeof Shared, S>;

const HIDDEN = { detail: { hide: true } };
/** The documentation of an operation. */
const about = (operationId: string, summary: string, description: string) => ({
  detail: { operationId, summary, description, tags: ["items"] },
});

// ── App ── what happens around every route: the log, the guards, the body, the errors ────────────

type Exchange = Pick<Context, "request" | "set">;

/** Whether each member of the query of a list is there once. */
function unambiguous({ request, set }: Exchange) {
  const { searchParams } = new URL(request.url);
  if (Object.keys(Page.properties).every((each) => searchParams.getAll(each).length < 2)) return;
  // 400, not the last of them: nobody knows which was meant.
  set.status = 400;
  return { error: ONCE };
}

/** Whether the client takes what the route answers; asked after the body, before the store. */
function acceptable({ request, set }: Exchange) {
  const accept = request.headers.get("accept") || "*/*";
  if (accept === "*/*") return; // as most say: the rest costs reads a twentieth
  // The most specific range decides (§12.5.1).
  const ranges = accept.toLowerCase().replace(/\s/g, "").split(",");
  const [range] = ["application/json", "application/*", "*/*"].flatMap((type) =>
    ranges.filter((each) => each.split(";")[0] === type),
  );
  if (range && !/;q=0(\.0*)?(;|$)/.test(range)) return;
  // 406, not JSON all the same: the client said that it could not use it.
  set.status = 406;
  return { error: "Accept must allow application/json" };
}

const UTF8 = new TextDecoder("utf-8", { fatal: true });

/** The body as JSON. Only now, after all guards, is it read; and counted, if it is chunked. */
async function readJson({ request, set }: Exchange): Promise<unknown> {
  // 400, not 422: what cannot be read has broken no rule of the items yet.
  set.status = 400;
  const isSized = request.headers.has("content-length");
  const bytes = isSized ? await request.bytes() : await readCounted(request);
  if (bytes) return JSON.parse(UTF8.decode(bytes));

  // 413, not 400: it may well be JSON.
  drop(request);
  set.status = 413;
  throw Error(TOO_LARGE);
}

/** The bytes of a chunked body, unless they are too many. */
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

/** Reads the rest of a body and drops it: who is cut off while sending never sees the answer. */
const drop = ({ body }: Request) => void body?.pipeTo(new WritableStream()).catch(() => {});

/** How an item is represented on the wire. */
const represent = ({ name }: Item) => ({ item: name });

/** The entity tag (§8.8.3) of a representation: a digest, so a strong validator. */
const etag = (representation: object) =>
  `"${Bun.SHA256.hash(JSON.stringify(representation), "base64")}"`;

/** The condition (§13.2.2) that fails for an entity tag, or for nothing at all. */
function failedCondition({ headers }: Request, tag?: string) {
  const [match, noneMatch] = [headers.get("if-match"), headers.get("if-none-match")];
  const names = (field: string) =>
    tag && (field === "*" || field.match(/(W\/)?"[^"]*"/g)?.includes(tag));
  if (match !== null && !names(match)) return "If-Match";
  if (noneMatch !== null && names(noneMatch.replaceAll('W/"', '"'))) return "If-None-Match";
  return undefined;
}

/** The answer if something is in the way of what the request wants to read, or to write over. */
function whyNot({ request, set }: Exchange, tag?: string, isClash = false) {
  // 404 before 412: there is nothing whose state a condition could name. PUT would create it.
  if (!tag && request.method !== "PUT") {
    set.status = 404;
    return { error: "Item not found" };
  }

  // 412, not 409: the client itself has set the condition.
  if (failedCondition(request, tag)) {
    set.status = 412;
    return { error: "If-Match or If-None-Match does not hold" };
  }

  // 409, not 422: both ids are fine, but they do not agree.
  if (isClash) {
    set.status = 409;
    return { error: "The id of the body must be that of the path" };
  }
}

/** The answer to a read: the representation and its fields, unless a condition (§13.1) fails. */
function conditional<Body>({ request, set }: Exchange, body: Body, fields: Record<string, string>) {
  const failed = failedCondition(request, fields.etag);

  // If-Match comes before If-None-Match (§13.2.2), so 412 before 304.
  if (failed === "If-Match") return whyNot({ request, set }, fields.etag);

  Object.assign(set.headers, fields);

  // 304, not 200: the client has it already.
  if (failed === "If-None-Match") {
    set.status = 304;
    return;
  }

  set.status = 200;
  return body;
}

const REHEARSED = "Rehearsed, because Prefer asks for it";

/** `Prefer: code=503` (RFC 7240): a front end may rehearse how the server fails. */
function rehearsal({ headers }: Asked): [status: number, sentence: string] | undefined {
  const code = REHEARSE && /\bcode=([45]\d\d)\b/.exec(headers.get("prefer") ?? "")?.[1];
  return code ? [Number(code), REHEARSED] : undefined;
}

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

  .onRequest(({ request, set }) => {
    // A page of another origin may read the answers, refusals too, if CORS_ORIGIN names it.
    const origin = CORS_ORIGIN.length > 0 ? request.headers.get("origin") : null;
    if (CORS_ORIGIN.length > 0) set.headers.vary = "Origin";
    if (origin && (CORS_ORIGIN.includes("*") || CORS_ORIGIN.includes(origin)))
      Object.assign(set.headers, {
        "access-control-allow-origin": origin,
        "access-control-allow-headers": "*, Authorization",
        "access-control-allow-methods": "*",
        "access-control-expose-headers": "*",
      });

    const asked = look(request);
    const [status, error] =
      guards.find(([, , applies]) => applies(asked)) ?? rehearsal(asked) ?? [];
    if (!status) return;
    drop(request);
    Object.assign(set.headers, owed[status]?.(asked));
    if (error === REHEARSED) set.headers["preference-applied"] = `code=${status}`;
    set.status = status;
    return status === 204 ? new Response(null, { status }) : { error };
  })

  .onError(({ error, request, set }) => {
    // The status was set where the body turned out to be unreadable.
    if (error instanceof ParseError) return { error: set.status === 413 ? TOO_LARGE : NOT_JSON };

    if (error instanceof ValidationError && error.type !== "response") {
      const faults = error.all as { path: string; value: unknown; schema: TSchema }[];
      const rule = faults[0]?.schema.description;

      // 400, not 422: a query is no item, nor is a body that lacks what is required.
      const isNoItem = faults.some(({ path, value }) => path === "" || value === undefined);
      if (error.type === "query" || isNoItem) {
        set.status = 400;
        return { error: isNoItem ? missing(Object(error.validator).schema) : rule };
      }

      // 422, not 400: it is an item, but for this value.
      set.status = 422;
      return { error: rule };
    }

    // 503, not 500: nothing is broken, and another try may succeed.
    if (isOutOfReach(error)) {
      Object.assign(set.headers, IN_A_SECOND);
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

  .guard({ response: shared(421, 429, 500, 503) })

  .get(
    "/",
    ({ set }) => {
      // 302, not 301: another day, something else may be found here.
      set.headers.location = "/swagger";
      set.status = 302;
    },
    {
      ...HIDDEN,
      response: { 302: t.Void(when("The docs are at /swagger", "Location")), ...shared(400) },
    },
  )

  .get(
    "/items",
    async ({ query, request, set }) => {
      const limit = Number(query.limit ?? 20);
      const found = await store.read(PAGE, query.after ?? "", query.name ?? null, limit + 1);
      const items = found.slice(0, limit);
      const next = `/items?${new URLSearchParams({ ...query, after: items.at(-1)?.id ?? "" })}`;
      const link: { link?: string } = found.length > limit ? { link: `<${next}>; rel="next"` } : {};
      return conditional({ request, set }, { items }, { etag: etag([items, link]), ...link });
    },
    {
      beforeHandle: [unambiguous, acceptable],
      query: Page,
      ...about("listItems", "List items", "Page through the items, in the order of their ids."),
      response: {
        200: t.Object(TheItems, when("The items of this page", "ETag", "Link")),
        400: refusal([LIMIT_RULE, ONCE, ...said(400)]),
        ...shared(304, 401, 406, 412),
      },
    },
  )

  .post(
    "/items",
    async ({ body, set }) => {
      const [created] = await insert(body);

      // 400, not 409: the lesson that this server keeps to says so.
      if (!created) {
        set.status = 400;
        return { error: "Item already exists" };
      }

      // 201, not 200: Location names something that was not there before.
      set.headers.location = `/items/${encodeURIComponent(body.id)}`;
      set.headers.etag = etag(represent(created));
      set.status = 201;
      return { message: "Item created" };
    },
    {
      beforeHandle: acceptable,
      parse: readJson,
      body: NewItem,
      ...about("createItem", "Create an item", "Create an item under an id that is still free."),
      response: {
        201: t.Object(Created, when("The id was free", "ETag", "Location")),
        400: refusal([NOT_JSON, missing(NewItem), "Item already exists", ...said(400)]),
        ...shared(401, 403, 406, 413, 415, 422),
      },
    },
  )

  .get(
    "/items/:id",
    async ({ params, request, set }) => {
      const [item] = await store.read(FIND, params.id);

      if (!item) return whyNot({ request, set });

      const body = represent(item);
      return conditional({ request, set }, body, { etag: etag(body) });
    },
    {
      beforeHandle: acceptable,
      params: Path,
      ...about("getItem", "Get an item", "Read one item, or ask whether it has changed."),
      response: {
        200: t.Object(TheItem, when("The item exists", "ETag")),
        ...shared(304, 400, 401, 404, 406, 412),
      },
    },
  )

  .put(
    "/items/:id",
    async ({ params, body: { id = params.id, ...change }, request, set }) => {
      // 422, not 404: on this path an item would be created.
      if (!isId(params.id)) {
        set.status = 422;
        return { error: ID_RULE };
      }

      const { refused, before, after } = await replace(params.id, change, (tag) =>
        whyNot({ request, set }, tag, id !== params.id),
      );
      if (refused) return refused;
      set.headers.etag = after;

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
        200: t.Object(Updated, when("The item existed", "ETag")),
        201: t.Object(Created, when("The item did not exist", "ETag", "Location")),
        400: refusal([NOT_JSON, missing(NewName), ...said(400)]),
        ...shared(401, 403, 406, 409, 412, 413, 415, 422),
      },
    },
  )

  .patch(
    "/items/:id",
    async ({ params, body: { id = params.id, ...change }, request, set }) => {
      const { refused, after } = await replace(params.id, change, (tag) =>
        whyNot({ request, set }, tag, id !== params.id),
      );
      if (refused) return refused;

      set.headers.etag = after;
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
        200: t.Object(Updated, when("The item existed", "ETag")),
        400: refusal([NOT_JSON, missing(Patch), ...said(400)]),
        ...shared(401, 403, 404, 406, 409, 412, 413, 415, 422),
      },
    },
  )

  .delete(
    "/items/:id",
    async ({ params, request, set }) => {
      const { refused } = await replace(params.id, null, (tag) => whyNot({ request, set }, tag));
      if (refused) return refused;

      // 204, not 200: there is nothing left to show.
      set.status = 204;
    },
    {
      params: Path,
      ...about("deleteItem", "Delete an item", "Delete an item for good."),
      response: { 204: t.Void(when("The item existed")), ...shared(400, 401, 403, 404, 412) },
    },
  );

/** The type of the app, for Elysia's client: `treaty<App>("127.0.0.1:3000")`. */
export type App = typeof app;

// ── Docs ── at /swagger, whole from this server: a classroom may have no network ────────────────

type Media = { [type: string]: unknown };
/** What the plugin cannot say: bodies are JSON, or a merge patch too; reads may be open. */
function asServed(key: string, value: { requestBody?: { content: Media } } & Media) {
  const json = "application/json";
  if (key === "content") return { [json]: value[json] };
  if (key === "get" && !READ_TOKEN) return { ...value, security: [] };
  const content = key === "patch" ? value.requestBody?.content : undefined;
  if (content) content["application/merge-patch+json"] = content[json];
  return value;
}

// The plugin's own page loads a script from elsewhere. In this one, the status of an answer can be
// read from the last row.
const DOCS_PAGE = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Items</title>
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <link rel="icon" href="/favicon.ico"><link rel="stylesheet" href="/swagger/ui.css"><style>
    .swagger-ui .response .response-col_status { font-size: clamp(24px, 4vw, 40px) }
    .swagger-ui table.responses-table td.response-col_status { min-width: 0; width: 1% }
    .swagger-ui .response-col_links { display: none }
    .swagger-ui .headers .header-col { color: inherit }
  </style><main id="ui"></main>
  <script src="/swagger/ui.js"></script><script src="/swagger/start.js"></script>`;
const DOCS_START = `SwaggerUIBundle({ url: "/swagger/json", dom_id: "#ui" });
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark-mode", isDark);`;
const ONLY_FROM_HERE =
  "default-src 'self'; img-src 'self' data:; " +
  "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";
const ABOUT = `One resource, and every HTTP status code for a real reason. What concerns every
request is asked in this order, and the first that applies is the answer:`;
const ORDER = guards.map(([status, sentence]) => `- ${status}: ${sentence}`).join("\n");

const asset = (content: string | Blob, type: string) =>
  new Response(content, {
    headers: { "content-type": type, "content-security-policy": ONLY_FROM_HERE },
  });

const docs = new Elysia()
  .onAfterHandle(({ path, response }) =>
    path === "/swagger/json" ? JSON.parse(JSON.stringify(response), asServed) : undefined,
  )
  .use(
    swagger({
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
  .get("/swagger", () => asset(DOCS_PAGE, "text/html"), HIDDEN)
  .get("/swagger/ui.js", () => asset(Bun.file(script), "text/javascript"), HIDDEN)
  .get("/swagger/start.js", () => asset(DOCS_START, "text/javascript"), HIDDEN)
  .get("/swagger/ui.css", () => asset(Bun.file(style), "text/css"), HIDDEN)
  .get("/favicon.ico", () => asset(Bun.file(icon), "image/png"), HIDDEN);

app.use(docs);

/** Which methods each path has (§10.2.1), from the routes themselves: never kept by hand. */
const paths: { pattern: RegExp; methods: string[] }[] = app.routes.map(({ path }) => {
  const own = app.routes.flatMap((route) => (route.path === path ? route.method : []));
  const methods = ["OPTIONS", ...own, ...(own.includes("GET") ? ["HEAD"] : [])].sort();
  return { pattern: RegExp(`^${path.replace(/:\w+/g, "[^/]+")}$`), methods };
});
const METHODS = new Set(paths.flatMap(({ methods }) => methods));

// ── Log ── one line a request, with the status that went out; each code seen first is collected ──

/** Every status that this server documents. */
const codes = new Set([
  ...guards.map(([status]) => status),
  ...app.routes.flatMap(({ hooks }) => Object.keys(hooks.response ?? {}).map(Number)),
]);
const seen = new Set<number>();
const isColoured = process.stdout.isTTY && !Bun.env.NO_COLOR;
const COLOURS = [31, 31, 32, 36, 33, 31];

/** Prints a line, with all that come within ten milliseconds: a write costs more than a line. */
function print(line: string) {
  if (lines.push(`${line}\n`) === 1) setTimeout(flush, 10);
}
const lines: string[] = [];
const flush = () => terminal.write(lines.splice(0).join(""));
const terminal = Bun.stdout.writer();

/** Prints the line of a request: what went out, for what, how long it took, and why. */
function log(request: Request, response: Response, milliseconds: number, why: string) {
  const { status } = response;
  // Asking has a price, so a client that went away within ten milliseconds may be missed.
  const isGone = (status >= 400 || milliseconds > 10) && request.signal.aborted;
  const isNew = codes.has(status) && !seen.has(status) && !isGone;
  const isReal = isNew && !response.headers.has("preference-applied");
  const star = isReal ? `  ★ ${seen.add(status).size} of ${codes.size}` : "";
  const code = isGone ? "gone" : status;
  const shown = isColoured ? `\x1b[${COLOURS[Math.floor(status / 100)]}m${code}\x1b[0m` : code;
  const path = pathOf(request.url).replace(/[^!-~]/g, encodeURIComponent);
  const time = Math.round(milliseconds * 10) / 10;
  const reason = why && !isGone ? `  ${why}` : "";
  print(`${shown}  ${request.method}  ${path}  ${time} ms${reason}${star}`);
}

// ── Start ── open the store, listen, say where; at the end answer what is in flight ──────────────

const file = /^sqlite:\/\/(?!:memory:)(.*)/.exec(DATABASE_URL)?.[1];
let store: Store;
try {
  store = DATABASE_URL.startsWith("sqlite") ? sqlite(file ?? ":memory:") : postgres(DATABASE_URL);
  // Where there is a table, it stays. A write that changes nothing shows whether it is ours.
  await Promise.try(() => store.script(CREATE)).catch(() => {});
  await store.write(PROBE);
} catch {
  refuse("DATABASE_URL", DATABASE_URL);
}

try {
  app.listen({
    development: false, // or the page of an error shows the source
    hostname: HOST,
    idleTimeout: 30, // seconds
    maxRequestBodySize: Infinity, // or Bun answers and cuts off; the body is counted above
    port: PORT,
    reusePort: false, // or two servers share a port, and nobody knows which one answers
  });
} catch (error) {
  const isPort = +PORT > 65_535 || Object(error).code === "EADDRINUSE";
  refuse(isPort ? "PORT" : "HOST", isPort ? PORT : HOST);
}

const name = HOST.replace(/^(0\.0\.0\.0|::)$/, "localhost").replace(/.*:.*/, "[$&]");
const address = `http://${name}:${app.server?.port}`;
print(`Items  ${address}`);
print(`Docs   ${address}/swagger`);
print(`Store  ${file ? `${file}; delete it to start over` : withoutPassword(DATABASE_URL)}`);
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
  const missing = [...codes.difference(seen)].sort().join(" ");
  if (LOG) print(missing ? `Still to be found: ${missing}` : "All were found.");
  flush();
  await terminal.end();
  process.exit(0);
}
process.on("SIGINT", stop).on("SIGTERM", stop);
