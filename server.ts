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
 * `set.status`, the answer. Nothing derives a status from elsewhere, so what is promised to a
 * client stands where it is decided. A § is a section of RFC 9110, HTTP Semantics.
 */
import { cors } from "@elysiajs/cors";
import { swagger } from "@elysiajs/swagger";
import { SQL } from "bun";
import { Database } from "bun:sqlite";
import { type Context, Elysia, ParseError, t, ValidationError } from "elysia";
import { timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
// The docs page is served from here, because a classroom may have no network.
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
const split = (text: string) =>
  text
    .toLowerCase()
    .split(/\s*,\s*/)
    .filter(Boolean);

const PORTS = /^([0-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])$/;
const STORES = "sqlite://FILE, sqlite://:memory: or postgres://USER:PASSWORD@HOST:PORT/DATABASE";
const ORIGINS = /^(\*|https?:\/\/[\w.:[\]-]+)(\s*,\s*(\*|https?:\/\/[\w.:[\]-]+))*$/i;
const ASCII = "visible ASCII characters without a space";

const PORT = Number(setting("PORT", "3000", PORTS, "a free port from 0 to 65535"));
const HOST = setting("HOST", "127.0.0.1", /^[\w.:-]+$/, "a name or an address of this machine");
const DATABASE_URL = setting(
  "DATABASE_URL",
  "sqlite://items.sqlite",
  /^(sqlite|postgres(ql)?):\/\/./,
  STORES,
);
const TOKEN = setting("TOKEN", "", /^[!-~]+$/, ASCII);
const READ_TOKEN = setting("READ_TOKEN", "", TOKEN ? /^[!-~]+$/ : /^$/, `${ASCII}, beside a TOKEN`);
const ALLOWED_HOSTS = split(
  setting("ALLOWED_HOSTS", "", /^[\w.,\s-]+$/, "host names, without ports, and commas"),
);
const CORS_ORIGIN = split(
  setting("CORS_ORIGIN", "", ORIGINS, "* or origins like http://localhost:5173, and commas"),
);
const RATE = Number(setting("RATE", "0", /^[1-9]\d{0,5}$/, "a whole number from 1 to 999999"));
const DELAY = Number(
  setting("DELAY", "0", /^\d{1,5}$/, "a whole number of milliseconds, up to 99999"),
);
const REHEARSE = setting("REHEARSE", "0", /^1$/, "0 or 1") === "1";
const LOG = setting("LOG", process.stdout.isTTY ? "on" : "off", /^(on|off)$/, "on or off") === "on";
const BODY_LIMIT = 65_536; // bytes

// ── Store ── a 2xx to a write is a promise: it is on the disk before the answer leaves ───────────
//
// The SQL is written once, in PostgreSQL's words; SQLite gets the two that it spells otherwise.
// A write is one statement that also says what it replaces: atomic on every engine, and between
// processes. One that replaces nothing has lost a race, and asks its questions again.

/** An item as the store keeps it. */
type Item = { id: string; name: string };
type Query = (sql: string, ...values: (string | number | null)[]) => Promise<Item[]>;
type Store = { read: Query; write: Query; script: (sql: string) => unknown; close: () => unknown };

const CREATE = `create table items (id text collate "C" primary key, name text not null);
  insert into items (id, name) values ('1', 'apple'), ('2', 'banana')`;
const FIND = "select id, name from items where id = $1";
const PAGE = `select id, name from items where id > $1 and name = coalesce($2, name)
  order by id limit $3`;
const INSERT = `insert into items (id, name) values ($1, $2) on conflict do nothing returning *`;
const UPDATE = "update items set name = $2 where id = $1 and name = $3 returning *";
const DELETE = "delete from items where id = $1 and name = $2 returning *";

/** Bun's own SQLite: the writes of one turn of the event loop share one commit, all or none. */
function sqlite(file: string): Store {
  type Write = PromiseWithResolvers<Item[]> & { sql: string; values: never[]; until: number };
  const db = new Database(file);
  db.run("pragma busy_timeout = 2000; pragma journal_mode = wal; pragma synchronous = full");
  const spell = (sql: string) => sql.replaceAll("$", "?").replace('collate "C"', "");
  const query = (sql: string, values: never[]) =>
    db.query<Item, never[]>(spell(sql)).all(...values);
  const transaction = db.transaction((writes: Write[]) =>
    writes.map(({ sql, values }) => query(sql, values)),
  );
  const waiting: Write[] = [];

  function commit() {
    const writes = waiting.splice(0);
    try {
      const rows = transaction.immediate(writes);
      writes.forEach(({ resolve }, index) => resolve(rows[index] ?? []));
    } catch (error) {
      // While another process holds the lock, reads go on and the writes wait for a second.
      const isEarly = isOutOfReach(error) && writes.every(({ until }) => Date.now() < until);
      if (isEarly) setTimeout(commit, 5, waiting.unshift(...writes));
      else writes.forEach(({ reject }) => reject(error));
    }
  }

  return {
    read: async (sql, ...values) => query(sql, values as never[]),
    write(sql, ...values) {
      const write = {
        ...Promise.withResolvers<Item[]>(),
        sql,
        values: values as never[],
        until: Date.now() + 1000,
      };
      if (waiting.push(write) === 1) setImmediate(commit);
      return write.promise;
    },
    script: (sql) => db.transaction(() => db.run(spell(sql))).immediate(),
    close: () => db.close(),
  };
}

/** PostgreSQL, or what speaks its protocol. One that keeps silent is out of reach. */
function postgres(url: string): Store {
  const sql = new SQL(url, { max: 16, connectionTimeout: 3 });
  const query: Query = async (text, ...values) => {
    // It has no U+0000. No item has a control character, so U+0001 finds and sorts the same.
    const sent = values.map((value) =>
      typeof value === "string" ? value.replaceAll("\0", "\x01") : value,
    );
    const { promise, reject } = Promise.withResolvers<never>();
    const timer = setTimeout(reject, 4000, { code: "ETIMEDOUT" });
    return Promise.race([sql.unsafe(text, sent), promise]).finally(() => clearTimeout(timer));
  };
  return {
    read: query,
    write: query,
    script: (text) => sql.unsafe(text).simple(),
    close: () => sql.close({ timeout: 1 }),
  };
}

/** Whether another try may succeed: the store is locked, starting, full, or not to be reached. */
function isOutOfReach(error: unknown) {
  const { code, errno } = Object(error) as { code?: string; errno?: string };
  return /^(SQLITE_BUSY|SQLITE_LOCKED|ERR_POSTGRES_CONN|E(CONN|TIMEDOUT)|08|40|53|57)/.test(
    `${errno ?? code}`,
  );
}

/** The item with this id, if there is one. */
const find = async (id: string): Promise<Item | undefined> => (await store.read(FIND, id))[0];

/**
 * Puts `name` in the place of what is there, if `may` agrees to that, in one atomic step.
 * @param name the new name; `null` deletes the item, `undefined` leaves it as it is
 * @returns what was there before, whether or not it was replaced
 */
async function replace(id: string, name: string | null | undefined, may: (now?: Item) => boolean) {
  for (;;) {
    const now = await find(id);
    if (name === undefined || !may(now)) return now;
    const done = !now
      ? await store.write(INSERT, id, name)
      : name === null
        ? await store.write(DELETE, id, now.name)
        : await store.write(UPDATE, id, name, now.name);
    if (done.length > 0) return now;
  }
}

// ── Guards ── what is asked of every request, in the order of the protocol ───────────────────────

/** A status, the sentence that goes with it, and the question whose yes leads to both. */
type Guard = [status: number, sentence: string, objects: (r: Request, client: string) => boolean];

const TOO_LARGE = "The body must be at most 65536 bytes";
const guards: Guard[] = [
  // 503, not a closed connection: the client learns that it may come back.
  [503, "The server is shutting down", () => closing.signal.aborted],
  // §7.2: without a Host, nobody knows whom the request is for.
  [400, "Host must be given once, as host or host:port", (r) => hostOf(r) === ""],
  // 421 ends DNS rebinding: a page that gave its own name this address is still not let in.
  [421, "Host must be this machine or one of ALLOWED_HOSTS", (r) => !isHere(hostOf(r))],
  // 501, not 405: no path of this server has the method.
  [
    501,
    "This server does not have this method",
    (r) => !paths.some((p) => p.methods.includes(r.method)),
  ],
  // Decoded with loss, it would name another item than the one that was meant.
  [400, "The target must be percent-encoded UTF-8 without a fragment", (r) => !isTarget(r.url)],
  [429, "Too many requests in this second", (_, client) => RATE > 0 && isOverRate(client)],
  [404, "No such path", (r) => allow(r).length === 0],
  // 405, not 404: the path is right, and Allow says what can be done with it.
  [405, "This path does not have this method", (r) => !allow(r).includes(r.method)],
  // 401, not 403: with another token the request would go through.
  [401, "A bearer token that this server knows is required", (r) => !mayRead(r)],
  // 403, not 401: the server knows this token, which is not enough.
  [403, "The read token may not write", (r) => !mayWrite(r)],
  // JSON only: a form or text/plain is what a page of any origin sends without asking.
  [415, "Content-Type must be JSON in UTF-8", (r) => hasBody(r) && !isJson(r)],
  // What is small but unpacks to something large would slip through the limit below.
  [415, "Content-Encoding must be identity", (r) => hasBody(r) && isEncoded(r)],
  // The size is announced, so none of it needs to be read.
  [413, TOO_LARGE, (r) => hasBody(r) && Number(r.headers.get("content-length")) > BODY_LIMIT],
];

/** The fields that a status owes the client: what to send instead, or when to come back. */
const owed: Record<number, (r: Request) => Record<string, string>> = {
  401: () => ({ "www-authenticate": 'Bearer realm="items"' }),
  403: () => ({ "www-authenticate": 'Bearer realm="items", error="insufficient_scope"' }),
  405: (r) => ({ allow: allow(r).join(", ") }),
  415: (r) => ({ accept: mediaTypes(r).join(", "), "accept-encoding": "identity" }),
  429: () => ({ "retry-after": "1" }),
  503: () => ({ "retry-after": "1" }),
};

const closing = new AbortController();
const HERE = new Set(["localhost", HOST, hostname(), ...ALLOWED_HOSTS]);
const HOST_FIELD = /^([\w.-]+|\[[\da-f:.]+\])(:\d*)?$/i;
const hostOf = (r: Request) =>
  HOST_FIELD.exec(r.headers.get("host") ?? "")?.[1]?.toLowerCase() ?? "";
const isHere = (host: string) =>
  HERE.has(host) || host.endsWith(".localhost") || isIP(host.replace(/^\[|\]$/g, "")) > 0;

const pathOf = (r: Request) => r.url.slice(r.url.indexOf("/", 8)).split("?", 1)[0] ?? "";
const allow = (r: Request) => paths.find(({ pattern }) => pattern.test(pathOf(r)))?.methods ?? [];

function isTarget(url: string) {
  try {
    return !url.includes("#") && decodeURIComponent(url) !== "";
  } catch {
    return false;
  }
}

// Counted in a table of fixed size: two clients may share a slot, but no number of them fills it.
const hits = { second: 0, slots: new Uint32Array(4096) };
function isOverRate(client: string) {
  const second = Math.floor(Date.now() / 1000);
  if (hits.second !== second) hits.slots.fill(0);
  hits.second = second;
  const slot = Bun.hash.xxHash32(client) % hits.slots.length;
  return (hits.slots[slot] = (hits.slots[slot] ?? 0) + 1) > RATE;
}

const isSafe = ({ method }: Request) => /^(GET|HEAD|OPTIONS)$/.test(method);
const isOpen = (r: Request) =>
  TOKEN === "" || (isSafe(r) && (READ_TOKEN === "" || !pathOf(r).startsWith("/items")));
const mayRead = (r: Request) => isOpen(r) || carries(r, TOKEN) || carries(r, READ_TOKEN);
const mayWrite = (r: Request) => isOpen(r) || isSafe(r) || carries(r, TOKEN);

// Digests are compared, in constant time, so that the time tells nothing about the token.
function carries(r: Request, token: string) {
  const given = /^bearer +(\S+)$/i.exec(r.headers.get("authorization") ?? "")?.[1] ?? "";
  return timingSafeEqual(Bun.SHA256.hash(given), Bun.SHA256.hash(token)) && token !== "";
}

const hasBody = ({ method }: Request) => method.startsWith("P");
const isEncoded = (r: Request) => !/^(identity)?$/i.test(r.headers.get("content-encoding") ?? "");
const mediaTypes = ({ method }: Request) => [
  ...(method === "PATCH" ? ["application/merge-patch+json"] : []),
  "application/json",
];
function isJson(r: Request) {
  const [type = "", ...parameters] = (r.headers.get("content-type") ?? "")
    .toLowerCase()
    .split(/\s*;\s*/);
  return (
    mediaTypes(r).includes(type) &&
    parameters.every((each) => /^(?!charset=)|="?utf-8"?$/.test(each))
  );
}

/** Whether Accept (§12.5.1) lets application/json through: the most specific range decides. */
function acceptsJson(accept: string) {
  const ranges = accept
    .toLowerCase()
    .split(",")
    .map((range): [string, number] => {
      const [type = "", ...parameters] = range.trim().split(/\s*;\s*/);
      return [type, Number(parameters.find((each) => each.startsWith("q="))?.slice(2) ?? 1)];
    });
  const weights = new Map(ranges);
  return (
    (weights.get("application/json") ?? weights.get("application/*") ?? weights.get("*/*") ?? 0) !==
    0
  );
}

/** The entity tag (§8.8.3) of a representation: a digest, so a strong validator. */
const etag = (representation: object) =>
  `"${Bun.SHA256.hash(JSON.stringify(representation), "base64")}"`;

/** The first condition (§13.2.2) that does not hold for this entity tag. */
function failedCondition({ headers }: Request, tag: string | undefined) {
  const names = (field: string, prefix: RegExp) =>
    field === "*"
      ? tag !== undefined
      : field.match(/(W\/)?"[^"]*"/g)?.some((each) => each.replace(prefix, "") === tag);
  const [match, noneMatch] = [headers.get("if-match"), headers.get("if-none-match")];
  if (match !== null && !names(match, /^$/)) return "If-Match";
  if (noneMatch !== null && names(noneMatch, /^W\//)) return "If-None-Match";
  return undefined;
}

/** Whether a write may replace this item: its conditions hold. */
const holds = (r: Request, now?: Item) => !failedCondition(r, now && etag({ item: now.name }));

// ── Schemas ── what comes in, what goes out, and when ────────────────────────────────────────────
//
// The description of an answer says when it is given; the docs page, the README and the titles of
// the tests use it, and a refusal says it on the wire. The description of a member is its rule.

// Any character but a control character (Cc) or half of a surrogate pair.
const CHARACTER = String.raw`([^\u0000-\u001f\u007f-\u009f\ud800-\udfff]|[\ud800-\udbff][\udc00-\udfff])`;

const ID_RULE =
  "id must be a string of 1 to 128 characters, none of them a control character, not . or ..";
const NAME_RULE = "name must be a string of 1 to 1024 characters, none of them a control character";
const LIMIT_RULE = "limit must be a whole number from 1 to 100";
const Id = t.String({
  description: ID_RULE,
  minLength: 1,
  maxLength: 128,
  pattern: String.raw`^(?!\.\.?$)${CHARACTER}+$`,
});
const Name = t.String({
  description: NAME_RULE,
  minLength: 1,
  maxLength: 1024,
  pattern: `^${CHARACTER}+$`,
});
const IS_ID = RegExp(Id.pattern ?? "");
const NewItem = t.Object({ id: Id, name: Name }, { example: { id: "3", name: "cherry" } });
const NewName = t.Object({ id: t.Optional(Id), name: Name }, { example: { name: "cherry" } });
const Patch = t.Partial(NewName, { example: { name: "cherry" } });
const Path = t.Object({ id: t.String({ description: "the id, percent-encoded", example: "1" }) });
const Page = t.Object({
  limit: t.Optional(
    t.String({
      description: LIMIT_RULE,
      pattern: "^([1-9][0-9]?|100)$",
      example: "20",
    }),
  ),
  after: t.Optional(t.String({ description: "only items after this id", example: "1" })),
  name: t.Optional(t.String({ description: "only items with this name", example: "banana" })),
});

const field = (name: string, description: string, example: string) => ({
  [name]: { description, schema: { type: "string", example } },
});
const ETAG = field("ETag", "names this state of the representation", '"6sPk8w="');
const LOCATION = field("Location", "where the item is", "/items/3");
const LINK = field("Link", "the next page, if there is one", '</items?after=2>; rel="next"');
const CHALLENGE = field("WWW-Authenticate", "how to ask again", 'Bearer realm="items"');
const RETRY = field("Retry-After", "the seconds to wait", "1");
const ACCEPTED = {
  ...field("Accept", "the media types to send", "application/json"),
  ...field("Accept-Encoding", "the encoding to send", "identity"),
};

/** An answer, with when it is given and the fields that come with it. */
const answer = <Members extends Parameters<typeof t.Object>[0]>(
  when: string,
  members: Members,
  fields = {},
) => t.Object(members, { description: when, headers: fields });

/** An answer without a body. */
const empty = (when: string, fields = {}) => t.Void({ description: when, headers: fields });

/** A refusal, with the sentences that it may say. */
const refusal = (sentences: string[], fields = {}) =>
  answer(sentences.join("; "), { error: t.String({ enum: sentences }) }, fields);

/** What the guards say with a status. */
const said = (status: number): string[] =>
  guards.flatMap((guard) => (guard[0] === status ? guard[1] : []));

const NOT_JSON = "The body must be JSON in UTF-8";
const ONCE = "limit, after and name may be given once";
const Created = { message: t.String({ enum: ["Item created"] }) };
const Updated = { message: t.String({ enum: ["Item updated"] }) };
const NoSuchItem = refusal(["Item not found"]);
const OtherItem = refusal(["The id of the body must be that of the path"]);
const Changed = refusal(["If-Match or If-None-Match does not hold"]);
const Unchanged = empty("If-None-Match names what there is", ETAG);

const Anywhere = {
  400: refusal(said(400)),
  421: refusal(said(421)),
  429: refusal(said(429), RETRY),
  500: refusal(["Server error"]),
  503: refusal([...said(503), "The store is busy or out of reach"], RETRY),
};
const Read = {
  ...Anywhere,
  401: refusal(said(401), CHALLENGE),
  406: refusal(["Accept must allow application/json"]),
};
const Write = {
  ...Read,
  403: refusal(said(403), CHALLENGE),
  413: refusal(said(413)),
  415: refusal(said(415), ACCEPTED),
  422: refusal([ID_RULE, NAME_RULE]),
};
const { 406: _, 413: __, 415: ___, 422: ____, ...Delete } = Write;

/** The documentation of an operation. */
const about = (operationId: string, summary: string, description: string) =>
  ({
    detail: { operationId, summary, description, tags: ["items"] },
  }).detail;

const asset = (body: Blob | string, type: string) =>
  new Response(body, { headers: { "content-type": type } });
const PAGE_SCRIPT = ``;

// ── App ── what happens around every route: the log, the guards, the body, the errors ────────────

/** What a validator has to say of one value. */
type ValueError = { path: string; value: unknown; schema: { description?: string } };

/** An error whose message is for the client. */
class Refused extends Error {}

/** Whether the client takes what the route answers; asked after the body, before the store. */
function acceptable({ request, set }: Pick<Context, "request" | "set">) {
  if (acceptsJson(request.headers.get("accept") || "*/*")) return;
  set.status = 406;
  return { error: "Accept must allow application/json" };
}

const app = new Elysia({ strictPath: true })
  .headers({ "cache-control": "no-cache", "x-content-type-options": "nosniff" })
  .use(
    CORS_ORIGIN.length > 0
      ? cors({
          origin: CORS_ORIGIN.includes("*") ? () => true : CORS_ORIGIN,
          preflight: false,
          credentials: false,
          methods: ["GET", "POST", "PUT", "PATCH", "DELETE"],
          allowedHeaders: ["Authorization"],
          exposeHeaders: ["ETag"],
        })
      : new Elysia(),
  )

  // The one place that sees every answer on its way out.
  .wrap((next) => async (request: Request) => {
    const start = performance.now();
    const response = (await next(request)) as unknown as Response;
    if (DELAY > 0) await sleep(DELAY, null, { signal: closing.signal }).catch(() => {});
    if (LOG) await log(request, response, performance.now() - start);
    return response;
  })

  .onRequest(({ request, server, set }) => {
    const client = (RATE > 0 && server?.requestIP(request)?.address) || "";
    for (const [status, sentence, objects] of guards) {
      if (!objects(request, client)) continue;
      Object.assign(set.headers, owed[status]?.(request));
      set.status = status;
      return { error: sentence };
    }

    // §9.3.7: what can be done here? A preflight of CORS asks the same.
    if (request.method === "OPTIONS") {
      set.headers.allow = allow(request).join(", ");
      set.status = 204;
      return new Response(null, { status: 204 });
    }

    // `Prefer: code=503` (RFC 7240): a front end may rehearse how the server fails.
    const rehearsed = REHEARSE && /\bcode=([45]\d\d)\b/.exec(request.headers.get("prefer") ?? "");
    if (rehearsed) {
      Object.assign(set.headers, owed[Number(rehearsed[1])]?.(request));
      set.headers["preference-applied"] = rehearsed[0];
      set.status = Number(rehearsed[1]);
      return { error: "Rehearsed, because Prefer asks for it" };
    }
  })

  .onParse(async ({ request, set }) => {
    // §9.3.5: the content of a DELETE means nothing. `null` keeps it from being parsed.
    if (request.method === "DELETE") return null;

    // A chunked body announces no size, so it is counted as it comes.
    const chunks: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of request.body ?? []) {
      chunks.push(chunk);
      size += chunk.length;
      if (size <= BODY_LIMIT) continue;
      set.status = 413;
      throw new Refused(TOO_LARGE);
    }

    try {
      return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks)));
    } catch {
      // 400, not 422: what cannot be read has broken no rule of the items yet.
      set.status = 400;
      throw new Refused(NOT_JSON);
    }
  })

  .onError(({ error, request, set }) => {
    // The status was set where the body turned out to be unreadable.
    if (error instanceof ParseError && error.cause instanceof Refused)
      return { error: error.cause.message };

    if (error instanceof ValidationError && error.type !== "response") {
      const { required = ["an object"] } = Object(error.validator).schema as {
        required?: string[];
      };
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
        return { error: `Bad request, ${required.join(" and ")} required` };
      }

      // 422, not 400: it is an item, but for this value.
      set.status = 422;
      return { error: rule };
    }

    // 503, not 500: nothing is broken, and another try may succeed.
    if (isOutOfReach(error)) {
      Object.assign(set.headers, owed[503]?.(request));
      set.status = 503;
      return { error: "The store is busy or out of reach" };
    }

    // What happened is for those who run the server, not for those who use it.
    console.error(error);
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
    {
      detail: about("start", "Start here", "Leads a browser to the docs."),
      response: {
        ...Anywhere,
        302: empty("The docs are at /swagger", field("Location", "where the docs are", "/swagger")),
      },
    },
  )

  .get(
    "/items",
    async ({ query, request, set }) => {
      // A member that comes twice leaves open which one is meant.
      const members = [...new URL(request.url).searchParams.keys()].filter(
        (key) => key in Page.properties,
      );
      if (members.length !== new Set(members).size) {
        set.status = 400;
        return { error: ONCE };
      }

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
      beforeHandle: acceptable,
      query: Page,
      detail: about(
        "listItems",
        "List items",
        "Page through the items, in the order of their ids.",
      ),
      response: {
        ...Read,
        200: answer(
          "The items of this page",
          { items: t.Array(t.Object({ id: t.String(), name: t.String() })) },
          { ...ETAG, ...LINK },
        ),
        304: Unchanged,
        400: refusal([LIMIT_RULE, ONCE, ...said(400)]),
        412: Changed,
      },
    },
  )

  .post(
    "/items",
    async ({ body: { id, name }, set }) => {
      const before = await replace(id, name, (now) => now === undefined);

      // 400, not 409: the lesson that this server keeps to says so.
      if (before) {
        set.status = 400;
        return { error: "Item already exists" };
      }

      // 201, not 200: Location names something that was not there before.
      set.headers.location = `/items/${encodeURIComponent(id)}`;
      set.headers.etag = etag({ item: name });
      set.status = 201;
      return { message: "Item created" };
    },
    {
      beforeHandle: acceptable,
      body: NewItem,
      detail: about(
        "createItem",
        "Create an item",
        "Create an item under an id that is still free.",
      ),
      response: {
        ...Write,
        201: answer("The id was free", Created, { ...ETAG, ...LOCATION }),
        400: refusal([
          NOT_JSON,
          "Bad request, id and name required",
          "Item already exists",
          ...said(400),
        ]),
      },
    },
  )

  .get(
    "/items/:id",
    async ({ params, request, set }) => {
      const item = await find(params.id);

      // 404 before 412: there is nothing whose state a condition could name.
      if (!item) {
        set.status = 404;
        return { error: "Item not found" };
      }

      const tag = etag({ item: item.name });
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
      return { item: item.name };
    },
    {
      beforeHandle: acceptable,
      params: Path,
      detail: about("getItem", "Get an item", "Read one item, or ask whether it has changed."),
      response: {
        ...Read,
        200: answer("The item exists", { item: t.String({ example: "apple" }) }, ETAG),
        304: Unchanged,
        404: NoSuchItem,
        412: Changed,
      },
    },
  )

  .put(
    "/items/:id",
    async ({ body: { id, name }, params, request, set }) => {
      // 422, not 404: on this path an item would be created.
      if (!IS_ID.test(params.id) || params.id.length > 128) {
        set.status = 422;
        return { error: ID_RULE };
      }

      const isItself = id === undefined || id === params.id;
      const before = await replace(params.id, name, (now) => isItself && holds(request, now));

      // 412, not 409: the client itself has set the condition.
      if (!holds(request, before)) {
        set.status = 412;
        return { error: "If-Match or If-None-Match does not hold" };
      }

      // 409, not 422: both ids are fine, but they do not agree.
      if (!isItself) {
        set.status = 409;
        return { error: "The id of the body must be that of the path" };
      }

      set.headers.etag = etag({ item: name });

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
      body: NewName,
      detail: about("putItem", "Replace an item", "Put an item in its place, or create it there."),
      response: {
        ...Write,
        200: answer("The item existed", Updated, ETAG),
        201: answer("The item did not exist", Created, { ...ETAG, ...LOCATION }),
        400: refusal([NOT_JSON, "Bad request, name required", ...said(400)]),
        409: OtherItem,
        412: Changed,
      },
    },
  )

  .patch(
    "/items/:id",
    async ({ body: { id, name }, params, request, set }) => {
      const isItself = id === undefined || id === params.id;
      const before = await replace(
        params.id,
        name,
        (now) => !!now && isItself && holds(request, now),
      );

      // 404, not 201: a patch needs something to change.
      if (!before) {
        set.status = 404;
        return { error: "Item not found" };
      }

      if (!holds(request, before)) {
        set.status = 412;
        return { error: "If-Match or If-None-Match does not hold" };
      }

      if (!isItself) {
        set.status = 409;
        return { error: "The id of the body must be that of the path" };
      }

      set.headers.etag = etag({ item: name ?? before.name });
      set.status = 200;
      return { message: "Item updated" };
    },
    {
      beforeHandle: acceptable,
      params: Path,
      body: Patch,
      detail: about("patchItem", "Change an item", "Change what the merge patch (RFC 7396) names."),
      response: {
        ...Write,
        200: answer("The item existed", Updated, ETAG),
        400: refusal([NOT_JSON, "Bad request, an object required", ...said(400)]),
        404: NoSuchItem,
        409: OtherItem,
        412: Changed,
      },
    },
  )

  .delete(
    "/items/:id",
    async ({ params, request, set }) => {
      const before = await replace(params.id, null, (now) => !!now && holds(request, now));

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
      detail: about("deleteItem", "Delete an item", "Delete an item for good."),
      response: {
        ...Delete,
        204: empty("The item existed"),
        404: NoSuchItem,
        412: Changed,
      },
    },
  )

  // ── Docs ── at /swagger, whole from this file and two files of swagger-ui-dist ─────────────────

  .use(
    swagger({
      scalarCDN: "/swagger/page.js",
      excludeStaticFile: true,
      documentation: {
        info: {
          title: "Items",
          version: "1.0.0",
          description: "One resource, and every HTTP status code for a real reason.",
          contact: { name: "Whoever runs this server" },
          license: { name: "MIT", url: "https://opensource.org/license/mit" },
        },
        servers: [{ url: "/", description: "this server" }],
        tags: [{ name: "items", description: "The items and the way to them" }],
        ...(TOKEN && {
          security: [{ bearer: [] }],
          components: { securitySchemes: { bearer: { type: "http", scheme: "bearer" } } },
        }),
        ...(!TOKEN && { security: [] }),
      },
    }),
  )
  .get("/swagger/page.js", () => asset(PAGE_SCRIPT, "text/javascript"), { detail: { hide: true } })
  .get("/swagger/ui.js", () => asset(Bun.file(script), "text/javascript"), {
    detail: { hide: true },
  })
  .get("/swagger/ui.css", () => asset(Bun.file(style), "text/css"), { detail: { hide: true } })
  .get("/favicon.ico", () => asset(Bun.file(icon), "image/png"), { detail: { hide: true } });

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
const isColoured = process.stdout.isTTY && !Bun.env.NO_COLOR;
let isPrinting = false;

/** Prints a line; the lines of one turn of the event loop go out together. */
function print(line: string) {
  terminal.write(`${line}\n`);
  if (!isPrinting) setImmediate(() => void (isPrinting = !terminal.flush()));
  isPrinting = true;
}

/** Prints the line of one request: what went out, for what, how long it took, and why. */
async function log(request: Request, response: Response, milliseconds: number) {
  const { status } = response;
  const isGone = request.signal.aborted;
  const isRehearsed = response.headers.has("preference-applied");
  const why =
    status < 400
      ? ""
      : ((
          await response
            .clone()
            .json()
            .catch(() => ({}))
        ).error ?? "");
  const isNew = !isGone && !isRehearsed && codes.has(status) && seen.size < seen.add(status).size;
  const star = isNew ? `★ ${seen.size} of ${codes.size}` : "";
  const colour = isColoured
    ? `\x1b[${["", "", "32", "36", "33", "31"][Math.floor(status / 100)]}m`
    : "";
  const path = pathOf(request).replace(/[^!-~]/g, encodeURIComponent);
  const time = `${milliseconds.toFixed(1)} ms`;
  const shown = `${colour}${isGone ? "gone" : status}${colour && "\x1b[0m"}`;
  print([shown, request.method, path, time, why, star].filter(Boolean).join("  "));
}

const isSqlite = DATABASE_URL.startsWith("sqlite");
let store: Store;
try {
  store = isSqlite ? sqlite(DATABASE_URL.slice("sqlite://".length)) : postgres(DATABASE_URL);
  // It fails where the table exists, and leaves that as it is; the write shows whether it is ours.
  await Promise.try(() => store.script(CREATE)).catch(() => {});
  await store.write(UPDATE, "", "", "");
} catch {
  refuseToStart(
    `DATABASE_URL is ${JSON.stringify(withoutPassword(DATABASE_URL))}, but may only be ${STORES} that can be opened and written.`,
  );
}

try {
  app.listen({ port: PORT, hostname: HOST, reusePort: false, development: false, idleTimeout: 30 });
} catch (error) {
  const isTaken = Object(error).code === "EADDRINUSE";
  refuseToStart(
    isTaken
      ? `PORT is ${PORT}, but may only be a free port from 0 to 65535.`
      : `HOST is "${HOST}", but may only be a name or an address of this machine.`,
  );
}

const address = app.server!.url.origin;
print(`Items  ${address}`);
print(`Docs   ${address}/swagger`);

async function stop() {
  if (closing.signal.aborted) process.exit(130);
  closing.abort();
  setTimeout(() => app.server?.stop(true), 4000);
  await app.server?.stop();
  await store.close();
  process.exit(0);
}
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, stop);
