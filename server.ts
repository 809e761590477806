/**
 * Items: one file, every HTTP status code, none of them faked.
 *
 *     bun server.ts      run it, then open the address that it prints
 *     bun test           start it on a free port and ask it everything
 *     /swagger           read about it and try it out, without a network
 *
 * A request passes, in this order: the guards, the body, its schema, Accept, the route, its
 * conditions, the store. The first that finds a fault answers. `answerError` answers what was
 * thrown, and `send` sees every answer. Only the chapters Item and Routes know what an item is.
 *
 * In a route each outcome is a paragraph: the question, `set.status`, the answer. The table
 * `why` says why a code is this one and not its neighbour. A § is a section of RFC 9110.
 */
import { swagger } from "@elysiajs/swagger";
import { FormatRegistry, type TObject, type TSchema } from "@sinclair/typebox";
import { type BunFile, SQL } from "bun";
import { constants, Database } from "bun:sqlite";
import { type Context, Elysia, ElysiaCustomStatusResponse, getSchemaValidator } from "elysia";
import { ParseError, status as refuseWith, t, ValidationError } from "elysia";
import { isUtf8 } from "node:buffer";
import { timingSafeEqual } from "node:crypto";
import { lookup } from "node:dns/promises";
import { existsSync } from "node:fs";
import { isIP } from "node:net";
import { hostname, networkInterfaces } from "node:os";
import { basename } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

// ── Item ── what is kept, the rule of each member, and how an item looks on the wire ─────────────

const Item = t.Object({
  id: t.String({
    description: "id must be 1 to 128 characters, no slash, backslash or control, not . or ..",
    pattern: segmentPattern(),
    maxLength: 128,
    example: "3",
  }),
  name: t.String({
    description: "name must be 1 to 1024 characters, none of them a control character",
    pattern: textPattern(),
    maxLength: 1024,
    example: "cherry",
  }),
});
type Item = typeof Item.static;

/** What is there when the table is made, and only then. */
const firstItems: Item[] = [
  { id: "1", name: "apple" },
  { id: "2", name: "banana" },
];

/** One item on the wire: the lesson wants the name itself. A list shows all members. */
const showItem = ({ name }: Item) => ({ item: name });
const ShownItem = { item: Item.properties.name };

// ── Routes ── the question, set.status, the answer; below each route the legend of its answers ───

async function routesOfItems() {
  const items = await openCollection("items", Item, firstItems, showItem, "name");
  const [NewItem, WholeItem, ItemPatch] = [bodyOf(Item), bodyOf(Item, "id"), patchOf(Item)];
  const members = {
    limit: t.Optional(LIMIT),
    after: t.Optional(t.String({ description: "only what comes after this id" })),
    name: t.Optional(t.String({ description: "only what has exactly this name" })),
  };
  const description = "The query may have limit, after and name, each once";
  const ItemsQuery = t.Object(members, { additionalProperties: false, description });
  const NoSuchItem = refusal("Item not found");
  const ItemPath = t.Object({ id: t.String({ description: "the id of the item", example: "1" }) });

  return new Elysia({ prefix: "/items", normalize: false })
    .guard({ detail: { tags: ["items"] }, response: shared(421, 429, 500, 503) })

    .get(
      "",
      async ({ query: { after = "", limit = 20, name }, request, set }) => {
        const page = await items.list(after, Number(limit), name); // it is text: see LIMIT
        const next = page.last ? linkAfter(page.last, request) : "";
        const tag = entityTag([page.found, next]);
        const early = checkConditions({ request, set }, tag);
        if (early) return early;

        set.status = 200;
        set.headers.etag = tag;
        if (next) set.headers.link = next;
        return { items: page.found };
      },
      {
        ...takesQuery(ItemsQuery),
        ...about("listItems", "List items", "Page through the items by id."),
        response: {
          200: t.Object({ items: t.Array(Item) }, when("The items of this page", "ETag", "Link")),
          400: badRequest(ruleOf(LIMIT), ruleOf(ItemsQuery)),
          ...shared(304, 401, 406, 412),
        },
      },
    )

    .post(
      "",
      async ({ body, path, set }) =>
        items.change(body.id, ({ found, put }) => {
          // 400, not 409: the lesson that this server keeps to says so.
          if (found) {
            set.status = 400;
            return { error: "Item already exists" };
          }

          set.status = 201;
          set.headers.etag = put(body);
          set.headers.location = `${path}/${encodeURIComponent(body.id)}`;
          return { message: "Item created" };
        }),
      {
        ...takesJson(NewItem),
        ...about("createItem", "Create an item", "Create one under an id that is free."),
        response: {
          201: t.Object(says("Item created"), when("The id was free", "ETag", "Location")),
          400: badRequest(NOT_JSON, ruleOf(NewItem), "Item already exists"),
          422: brokenRule(Item),
          ...shared(401, 403, 406, 413, 415),
        },
      },
    )

    .guard({ params: ItemPath })
    .get(
      "/:id",
      async ({ params: { id }, request, set }) => {
        const item = await items.find(id);
        if (!item) {
          set.status = 404;
          return { error: "Item not found" };
        }

        const tag = entityTag(showItem(item));
        const early = checkConditions({ request, set }, tag);
        if (early) return early;

        set.status = 200;
        set.headers.etag = tag;
        return showItem(item);
      },
      {
        beforeHandle: checkAccept,
        ...about("getItem", "Get an item", "Read one, or ask whether it has changed."),
        response: {
          200: t.Object(ShownItem, when("The item exists", "ETag")),
          404: NoSuchItem,
          ...shared(304, 400, 401, 406, 412),
        },
      },
    )

    .put(
      "/:id",
      async ({ body, params: { id }, path, request, set }) => {
        // 422, not 404: here an item would be created, under an id that breaks the rule.
        if (!items.isId(id)) {
          set.status = 422;
          return { error: ruleOf(Item.properties.id) };
        }

        return items.change(id, ({ found, tag, put }) => {
          const early = checkConditions({ request, set }, tag) ?? checkId({ set }, body, id);
          if (early) return early;

          set.headers.etag = put({ ...body, id });
          if (!found) {
            set.status = 201;
            set.headers.location = path;
            return { message: "Item created" };
          }

          set.status = 200;
          return { message: "Item updated" };
        });
      },
      {
        ...takesJson(WholeItem),
        ...about("putItem", "Replace an item", "Put one in its place, or create it there."),
        response: {
          200: t.Object(says("Item updated"), when("The item existed", "ETag")),
          201: t.Object(says("Item created"), when("The item did not exist", "ETag", "Location")),
          400: badRequest(NOT_JSON, ruleOf(WholeItem)),
          422: brokenRule(Item),
          ...shared(401, 403, 406, 409, 412, 413, 415),
        },
      },
    )

    .patch(
      "/:id",
      async ({ body, params: { id }, request, set }) =>
        items.change(id, ({ found, tag, merge }) => {
          if (!found) {
            set.status = 404;
            return { error: "Item not found" };
          }

          const early = checkConditions({ request, set }, tag) ?? checkId({ set }, body, id);
          if (early) return early;

          set.status = 200;
          set.headers.etag = merge(body);
          return { message: "Item updated" };
        }),
      {
        ...takesJson(ItemPatch),
        ...about("patchItem", "Change an item", "Change what the patch (RFC 7396) names."),
        response: {
          200: t.Object(says("Item updated"), when("The item existed", "ETag")),
          400: badRequest(NOT_JSON, ruleOf(ItemPatch)),
          404: NoSuchItem,
          422: brokenRule(Item),
          ...shared(401, 403, 406, 409, 412, 413, 415),
        },
      },
    )

    .delete(
      "/:id",
      async ({ params: { id }, request, set }) =>
        items.change(id, ({ found, tag, remove }) => {
          if (!found) {
            set.status = 404;
            return { error: "Item not found" };
          }

          const early = checkConditions({ request, set }, tag);
          if (early) return early;

          remove();
          set.status = 204;
        }),
      {
        ...about("deleteItem", "Delete an item", "Delete one for good."),
        response: {
          204: t.Void(when("The item existed")),
          404: NoSuchItem,
          ...shared(400, 401, 403, 412),
        },
      },
    );
}

// ── Shared answers ── why each code is not its neighbour, and what several routes decide alike ───

/** The reason for each code, for the reader, the docs page and the README. */
const why: Record<number, string> = {
  200: "200, not 204: there is something to show",
  201: "201, not 200: Location names something that was not there before",
  204: "204, not 200: there is nothing to show",
  302: "302, not 301: another day, something else may be found here",
  304: "304, not 412: nothing went wrong, the client has it already",
  400: "400, not 422: it cannot be read, or is not at all what is asked for here",
  401: "401, not 403: with another token, the request would go through",
  403: "403, not 401: this token is known, and it is not enough",
  404: "404, not 400: the request is well-formed, but it names nothing",
  405: "405, not 404: the path is there, and Allow says what can be done with it",
  406: "406, not JSON all the same: the client said that it cannot use it",
  409: "409, not 422: both ids are fine, but they do not agree",
  412: "412, not 409: the client itself set the condition that does not hold",
  413: "413, not 400: it may well be right, but nobody reads that much",
  415: "415, not 400: nobody has tried to read it",
  421: "421, not 404: it is another host that is asked",
  422: "422, not 400: it was read and is complete, but a value breaks its rule",
  429: "429, not 503: it is this client that has to wait, not all",
  500: "500, not 503: something is broken, and another try will not help",
  501: "501, not 405: no path of this server has the method",
  503: "503, not 500: nothing is broken, and another try may succeed",
};

type Exchange = Pick<Context, "request" | "set">;

/** Answers 304 or 412 (§13.2.2); `tag` is the entity tag of what is there, if anything is. */
function checkConditions({ request, set }: Exchange, tag?: string) {
  const { headers } = request;
  const [match, noneMatch] = [headers.get("if-match"), headers.get("if-none-match")];
  const isNamed = (list: string) => tag && (list === "*" || tagsIn(list).includes(tag));
  const isStale = match !== null && !isNamed(match);
  const isKnown = noneMatch !== null && isNamed(noneMatch.replaceAll('W/"', '"'));

  if (isKnown && !isStale && !isWrite(request)) {
    set.status = 304;
    set.headers.etag = tag;
    return new Response(null, { status: 304 }) as never; // without a body, it has no schema
  }

  if (isStale || isKnown) {
    set.status = 412;
    return { error: STALE };
  }
}

const STALE = "If-Match or If-None-Match does not hold";

/** The entity tags of a list. A malformed one names none, so If-Match does not hold. */
function tagsIn(list: string): string[] {
  const tag = /(W\/)?"[^"]*"/g; // "a" or W/"a"
  const rest = list.replace(tag, "\0").replace(/\s/g, "");
  return /^,*\0(,+\0)*,*$/.test(rest) ? (list.match(tag) ?? []) : []; // of two tags, \0,\0 is left
}

/** The answer where a body names another id than the path. */
function checkId({ set }: Pick<Context, "set">, body: { id?: string }, id: string) {
  if (body.id === undefined || body.id === id) return undefined;

  set.status = 409;
  return { error: OTHER_ID };
}
const OTHER_ID = "The id of the body must be that of the path";

/** The entity tag (§8.8.3) of a representation: a digest, so a strong validator. */
function entityTag(content: unknown) {
  return `"${Bun.SHA256.hash(JSON.stringify(content), "base64")}"`;
}

/** The link (RFC 8288) to the next page of a list: the same query, after this id. */
function linkAfter(id: string, { url }: Request) {
  const next = new URL(url);
  next.searchParams.set("after", id);
  return `<${next.pathname}${next.search}>; rel="next"`;
}

// ── Guards ── what is asked of every request, in the order of the protocol ───────────────────────

type Guard = [status: number, sentence: string, applies: (asked: Asked) => boolean];
type Asked = ReturnType<typeof lookAt>;

const guards: Guard[] = [
  [503, "The server is shutting down", () => closing.signal.aborted],
  [400, "Host must be given once, as host or host:port", ({ host }) => host === undefined],
  // It ends DNS rebinding: a page that gave its own name this address is still not let in.
  [421, "Host must be this machine or one of ALLOWED_HOSTS", (asked) => !isHere(asked)],
  [501, "This server does not have this method", ({ method }) => !METHODS.includes(method)],
  [204, "The preflight of a page that is let in", ({ request }) => isPreflight(request)],
  // Read with loss, it would name something else than what was meant.
  [400, "The target must be percent-encoded UTF-8 without a fragment", ({ url }) => !isTarget(url)],
  [429, "Too many requests in this second", ({ request }) => isOverRate(request)],
  [404, "No such path", ({ allowed, isRouted }) => !isRouted && allowed().length === 1],
  [204, "OPTIONS on a known path", ({ method }) => method === "OPTIONS"],
  [405, "This path does not have this method", ({ isRouted }) => !isRouted],
  [401, "A bearer token that this server knows is required", (asked) => isStranger(asked)],
  [403, "The read token may not write", ({ request }) => isWrite(request) && !mayWrite(request)],
];

/** The fields that a status owes the client, also one that is only rehearsed: 407, 416, 426. */
const owed: Record<number, (asked: Asked) => Record<string, string>> = {
  204: ({ allowed }) => ({ allow: allowed().join(", "), ...patchTypes(allowed()) }),
  401: ({ request }) => challenge(bearerOf(request) ? ', error="invalid_token"' : ""),
  403: () => challenge(', error="insufficient_scope"'),
  405: ({ allowed }) => ({ allow: allowed().join(", ") }),
  407: () => ({ "proxy-authenticate": 'Basic realm="api"' }),
  415: ({ allowed, method }) => ({ accept: mediaTypes(method), ...patchTypes(allowed()) }),
  416: () => ({ "content-range": "bytes */0" }),
  426: () => ({ connection: "upgrade", upgrade: "HTTP/2.0" }),
  429: () => ({ "retry-after": "1" }), // seconds
  503: () => ({ "retry-after": "1" }),
};
const challenge = (error: string) => ({ "www-authenticate": `Bearer realm="api"${error}` });

function checkGuards({ path = "", request, set }: Exchange & { path?: string }) {
  const asked = lookAt(request, path);
  if (isLetIn(request)) allowOrigin({ request, set });
  const first = guards.find(([, , applies]) => applies(asked));
  const status = first?.[0] ?? codeRehearsed(request);
  if (status === undefined) return;

  set.status = status;
  Object.assign(set.headers, owed[status]?.(asked));
  if (!first) set.headers["preference-applied"] = `code=${status}`;
  if (status === 204) return new Response(null, { status });
  return { error: first?.[1] ?? "Rehearsed, because Prefer asks for it" };
}

/** The router says what a path has, so it and the guards cannot differ; every path has OPTIONS. */
function lookAt(request: Request, path: string) {
  const { method, url } = request;
  const has = (name: string): boolean =>
    app.router.static[path]?.[name] !== undefined || app.router.http.find(name, path) !== null;
  const isRouted = has(method === "HEAD" ? "GET" : method);
  const allowed = () =>
    METHODS.filter((name) => name === "OPTIONS" || has(name.replace("HEAD", "GET")));
  return { allowed, host: hostOf(request), isRouted, method, path, request, url };
}

/** The name in Host; undefined where the field is malformed, or given twice. */
function hostOf({ headers, method, url }: Request) {
  const field = headers.get("host");
  if (field === null) return "localhost"; // HTTP/1.0 may leave it out, and health checks do
  if (method === "CONNECT") return "localhost"; // its Host is where it wants to go
  return field.includes(",") ? undefined : URL.parse(url)?.hostname; // Bun has put it there
}

function isHere({ host = "" }: Asked) {
  if (HERE.has(host) || host.endsWith(".localhost")) return true;
  return isIP(host.replace(/^\[|\]$/g, "")) !== 0; // 127.0.0.1, [::1]
}

function isTarget(url: string) {
  if (!/[%#]/.test(url)) return true;
  try {
    return !url.includes("#") && !decodeURIComponent(url).includes("\ufffd");
  } catch {
    return false;
  }
}

function isOverRate(request: Request) {
  if (RATE === 0) return false;
  const count = (counts.get(addressOf(request)) ?? 0) + 1;
  counts.set(addressOf(request), count);
  return count > RATE;
}
const counts = new Map<string, number>(); // of each client, in this second
const addressOf = (request: Request) => app.server?.requestIP(request)?.address ?? "";

// A write needs a token, and where there is a READ_TOKEN, so does a read of all but the docs.
const isStranger = ({ path, request }: Asked) =>
  (isWrite(request) || (READ_TOKEN !== "" && !OPEN.has(path))) && !mayRead(request);
const isWrite = ({ method }: Request) => method !== "GET" && method !== "HEAD";
const mayWrite = (request: Request) => TOKEN === "" || isToken(TOKEN, bearerOf(request));
const mayRead = (request: Request) => mayWrite(request) || isToken(READ_TOKEN, bearerOf(request));
const bearerOf = ({ headers }: Request) =>
  /^bearer +(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1]; // Bearer s3cret

/** Digests have one length, so they can be compared in constant time. */
function isToken(token: string, given = "") {
  return token !== "" && timingSafeEqual(Bun.SHA256.hash(token), Bun.SHA256.hash(given));
}

/** Pages of this machine, and of CORS_ORIGIN, may read the answer, a refusal too. */
function allowOrigin({ request, set }: Exchange) {
  const origin = request.headers.get("origin") ?? "*";
  set.headers["access-control-allow-origin"] = EVERY_PAGE ? "*" : origin;
  set.headers["access-control-expose-headers"] = "*";
  if (!isPreflight(request)) return;
  set.headers["access-control-allow-headers"] = "*, Authorization";
  set.headers["access-control-allow-methods"] = "*";
  set.headers["access-control-max-age"] = "7200"; // seconds; no browser keeps it longer
}

function isLetIn({ headers }: Request) {
  if (EVERY_PAGE) return true;
  const origin = headers.get("origin");
  return origin !== null && (CORS_ORIGIN.includes(origin) || LOCAL_PAGE.test(origin));
}
// http://localhost:5173, https://app.localhost, http://127.0.0.1, http://[::1]:80
const LOCAL_PAGE = /^https?:\/\/(([\w-]+\.)*localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/;
const isPreflight = (request: Request) =>
  request.method === "OPTIONS" &&
  request.headers.has("access-control-request-method") &&
  isLetIn(request);

/** The 4xx or 5xx in `Prefer: code=503` (RFC 7240), by which a front end rehearses it. */
function codeRehearsed({ headers }: Request) {
  const code = /(?:^|[,;])\s*code="?([45]\d\d)\b/i.exec(headers.get("prefer") ?? "")?.[1];
  return REHEARSE && code !== undefined ? Number(code) : undefined;
}

// ── Body and errors ── a body is read after all guards, and an exception never says itself ───────

const BODY_LIMIT = 65_536; // bytes
const BODY_TIME = 30; // seconds that a body may take to arrive
const TOO_LARGE = `The body must be at most ${BODY_LIMIT} bytes`;
const NOT_JSON = "The body must be JSON in UTF-8";
const NOT_TYPED = "Content-Type must be JSON in UTF-8";
const NOT_PLAIN = "Content-Encoding must be identity";

/** The hooks of a route that takes a body. No other route reads one, or asks for its type. */
function takesJson<Schema extends TSchema>(body: Schema) {
  return { beforeHandle: checkAccept, body, parse: readJson };
}

async function readJson({ path, request, set }: Exchange & { path: string }): Promise<unknown> {
  const { headers } = request;
  // JSON only: a form or text/plain is what a page of any origin sends without asking.
  if (!isJson(request)) {
    Object.assign(set.headers, owed[415]?.(lookAt(request, path)));
    throw refuseWith(415, { error: NOT_TYPED });
  }

  // What is small but unpacks to something large would slip through the limit.
  if (!/^(identity)?$/i.test(headers.get("content-encoding") ?? "")) {
    set.headers["accept-encoding"] = "identity";
    throw refuseWith(415, { error: NOT_PLAIN });
  }

  try {
    // A size that is said is believed, and nothing is read; what is chunked is counted.
    const size = Number(headers.get("content-length") ?? NaN);
    if (size > BODY_LIMIT) throw refuseWith(413, { error: TOO_LARGE });
    const bytes = size <= BODY_LIMIT ? await request.bytes() : await readCounted(request);
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return HALF.test(text) ? JSON.parse(text, makeWellFormed) : JSON.parse(text);
  } catch (error) {
    if (error instanceof ElysiaCustomStatusResponse) throw error;
    throw refuseWith(400, { error: NOT_JSON }); // it is none, or the client went away
  }
}

// Half a surrogate pair is no character. It becomes U+FFFD, as anywhere; a rule refuses that.
const HALF = /\\ud[89a-f]/i; // \ud83d, in a whole pair too; only then is the slow reviver used
const makeWellFormed = (_: string, value: unknown) =>
  typeof value === "string" ? value.toWellFormed() : value;

/** The bytes of a body whose length is not said, or is said twice. */
async function readCounted({ body }: Request) {
  const bytes = new Bun.ArrayBufferSink();
  let size = 0;
  for await (const chunk of body?.values({ preventCancel: true }) ?? []) {
    size += bytes.write(chunk);
    if (size > BODY_LIMIT) throw refuseWith(413, { error: TOO_LARGE });
  }
  return bytes.end() as Uint8Array<ArrayBuffer>;
}

function isJson({ headers, method }: Request) {
  const field = headers.get("content-type")?.toLowerCase() ?? "";
  const [type = "", ...parameters] = field.split(";").map((part) => part.trim());
  const isCharsetFine = parameters.every((parameter) =>
    /^(?!charset\s*=)|^charset="?utf-8"?$/.test(parameter),
  );
  return mediaTypes(method).split(", ").includes(type) && isCharsetFine;
}
const mediaTypes = (method: string) =>
  method === "PATCH" ? "application/merge-patch+json, application/json" : "application/json";
/** RFC 5789, §3.1: a path that has PATCH says what a patch may be. */
const patchTypes = (allowed: string[]): Record<string, string> =>
  allowed.includes("PATCH") ? { "accept-patch": mediaTypes("PATCH") } : {};

/** The hooks of a route that takes a query. A member given twice is refused: which is meant? */
function takesQuery<Schema extends TSchema>(query: Schema) {
  function checkTwice({ request, set }: Exchange) {
    if (!request.url.includes("&")) return undefined;
    const { searchParams } = new URL(request.url);
    if (new Set(searchParams.keys()).size === searchParams.size) return undefined;

    set.status = 400;
    return { error: ruleOf(query) };
  }
  return { beforeHandle: [checkTwice, checkAccept], query };
}

/** Answers 406 where Accept has no JSON (§12.5.1); its most specific ranges decide. */
function checkAccept({ request, set }: Exchange) {
  const accept = request.headers.get("accept") || "*/*";
  if (accept === "*/*") return undefined; // as most say: the rest costs reads a twentieth
  const ranges = accept.toLowerCase().replace(/\s/g, "").split(",");
  const of = (type: string) => ranges.filter((range) => range.split(";")[0] === type);
  const best = [of("application/json"), of("application/*"), of("*/*")].find((all) => all.length);
  if (best?.some((range) => !/;q=0(\.0*)?(;|$)/.test(range))) return undefined; // ;q=0, ;q=0.00

  set.status = 406;
  return { error: NOT_ACCEPTED };
}
const NOT_ACCEPTED = "Accept must allow application/json";

/** The answer to what was thrown, also after a route has set its fields. */
function answerError({ error, path, request, set }: Exchange & { error: unknown; path: string }) {
  for (const field of ["etag", "link", "location"]) delete set.headers[field];

  // Of what is thrown while a body is read, Elysia makes the cause of an error of its own.
  const refusal = error instanceof ParseError ? error.cause : error;
  if (refusal instanceof ElysiaCustomStatusResponse) {
    set.status = refusal.code;
    return refusal.response;
  }

  if (error instanceof ValidationError && error.type !== "response") {
    const { path: at = "", schema, value } = error.valueError ?? {};
    const whole = (error.validator as { schema: TSchema }).schema;
    // There is no object, or one of its members is missing; both come before a value.
    const isIncomplete = at === "" || (value === undefined && at.lastIndexOf("/") === 0);
    if (error.type === "body" && isIncomplete) {
      set.status = 400;
      return { error: ruleOf(whole) };
    }

    set.status = error.type === "body" ? 422 : 400;
    return { error: ruleOf(schema ?? whole) };
  }

  if (isPassing(error)) {
    reportOutage(request, error);
    set.status = 503;
    set.headers["retry-after"] = "1";
    return { error: OUT_OF_REACH };
  }

  // What happened is for those who run the server, not for those who use it.
  logError(request, path, error);
  set.status = 500;
  return { error: BROKEN };
}
const OUT_OF_REACH = "The store is busy or out of reach";
const BROKEN = "Server error";

/** The one way in and out: whatever happens, there is an answer, and it reaches the client. */
function send(next: (request: Request) => unknown) {
  return async (arrived: Request) => {
    const start = performance.now();
    const client = LOG ? addressOf(arrived) : "";
    // Without Host the URL has no origin, and the router would take a part of the path for it.
    const isWhole = arrived.headers.has("host") || arrived.url.startsWith("http");
    const request = isWhole ? arrived : new Request(`http://localhost${arrived.url}`, arrived);
    const { headers, method } = request;
    const hasBody =
      !/^0?$/.test(headers.get("content-length") ?? "") || headers.has("transfer-encoding");
    if (hasBody) app.server?.timeout(arrived, BODY_TIME);

    let response: Response;
    try {
      response = (await next(request)) as Response;
    } catch (error) {
      logError(request, arrived.url, error);
      response = Response.json({ error: BROKEN }, { status: 500 });
    }
    if (outages.size > 0) reportRecovery(request, response);
    if (hasBody) await dropBody(request, response.status);
    if (hasBody) app.server?.timeout(arrived, IDLE_TIME);
    if (method === "HEAD") response.headers.set("date", new Date().toUTCString()); // Bun has none
    if (response.status === 304) response.headers.delete("content-length"); // Elysia says 0
    if (/\bclose\b/i.test(headers.get("connection") ?? ""))
      response.headers.append("connection", "close");
    if (DELAY > 0 && !isPreflight(request))
      await sleep(DELAY, null, { signal: closing.signal }).catch(() => {});
    if (LOG) void logAnswer(request, response, client, performance.now() - start);
    return response;
  };
}

/** Reads the rest of a body and drops it: a client that is cut off never sees the answer. */
async function dropBody(request: Request, status: number) {
  if (request.bodyUsed && status !== 413) return; // a 413 leaves off half-way
  // Bun shows nobody the body of a GET; it drops that itself, as long as there is no answer.
  const dropping = request.body?.pipeTo(new WritableStream()).catch(() => {}) ?? sleep(100);
  // A connection that is kept survives the answer; any other is closed with it. Who waits for a
  // 100 that Bun does not send (it knows `100-continue` alone) never sends the rest.
  const isKept = /keep-alive/i.test(request.headers.get("connection") ?? "");
  const isMute = /100-C/.test(request.headers.get("expect") ?? "");
  if (!isKept && !isMute) await dropping;
}

// ── Schemas ── what comes in, what goes out, and when ────────────────────────────────────────────

type Members = Record<string, TSchema>;
/** A schema that is put together at run time, for something of this type. */
type SchemaOf<Type> = ReturnType<typeof t.Unsafe<Type>>;

// Elysia's own formats take the 30th of February.
const isDay = (text: string) =>
  /^\d{4}-\d\d-\d\d$/.test(text) && new Date(text).toJSON()?.startsWith(text);
const isTime = (text: string) =>
  /^T([01]\d|2[0-3])(:[0-5]\d){2}(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$/.test(text);
FormatRegistry.Set("date", isDay);
FormatRegistry.Set("date-time", (text) => isDay(text.slice(0, 10)) && isTime(text.slice(10)));

function textPattern() {
  return `^${character()}+$`;
}

/** A segment of a path: no / or \, which proxies rewrite; no . or .., which URLs resolve. */
function segmentPattern() {
  const [some, noDot] = [character(String.raw`/\\`), character(String.raw`./\\`)];
  return String.raw`^(\.?${noDot}|\.\.${some})${some}*$`; // a, .a, ..a, ...
}

/** One character: no control character (Cc), not U+FFFD (read with loss), none of `except`. */
function character(except = "") {
  return String.raw`[^\x00-\x1f\x7f-\x9f\ufffd${except}]`;
}

/** A body with these members. May be absent: `left`, and what has a default. */
function bodyOf<Schema extends TObject, Left extends keyof Schema["static"] = never>(
  { properties }: Schema,
  left?: Left,
) {
  const isOptional = (name: string) => name === left || "default" in (properties[name] ?? {});
  const members = mapMembers(properties, (one, name) => (isOptional(name) ? t.Optional(one) : one));
  const example = mapMembers(properties, (one, name) => (name === left ? undefined : one.example));
  const isShown = Object.values(properties).every((one) => one.example !== undefined);
  const body = t.Object<Members>(members, isShown ? { example } : {});
  giveRules(body, `Bad request, ${(body.required ?? ["an object"]).join(" and ")} required`);
  type Whole = Schema["static"];
  return body as unknown as SchemaOf<Omit<Whole, Left> & Partial<Pick<Whole, Left>>>;
}

/** A merge patch (RFC 7396): each member may be absent, and null if the item may lack it. */
function patchOf<Schema extends TObject>(whole: Schema) {
  const patch = { ...partsOf(whole), example: bodyOf(whole, "id").example };
  giveRules(patch, "Bad request, an object required");
  return patch as unknown as SchemaOf<Partial<Schema["static"]>>;
}

function partsOf({ description, properties, required = [] }: TObject): TObject {
  const members = mapMembers(properties, (member, name) => {
    // What a patch leaves out stays as it is, also where a new one would get a default.
    const { default: _, ...rest } = besideNull(member);
    const own = isObject(rest) ? partsOf(rest) : (rest as TSchema);
    const mayGo = member.nullable || !required.includes(name);
    return t.Optional(mayGo ? t.Nullable(own, { description: member.description }) : own);
  });
  return t.Object(members, { description });
}
const isObject = (schema: object): schema is TObject => "properties" in schema;
const besideNull = (schema: TSchema): TSchema => (schema.nullable ? schema.anyOf[0] : schema);
const mapMembers = <To>(members: Members, to: (member: TSchema, name: string) => To) =>
  Object.fromEntries(Object.entries(members).map(([name, member]) => [name, to(member, name)]));

// In a query all is text; the document and the types say that a limit is a number.
const LIMIT = t.String({
  description: "limit must be a whole number from 1 to 100",
  pattern: "^([1-9][0-9]?|100)$",
  minimum: 1,
  maximum: 100,
  example: 20,
}) as unknown as SchemaOf<number>;

/**
 * Gives each part of a schema the sentence that refuses it (Elysia's `error`): its description, or
 * that of the part around it; lists them. Unknown members pass. The document shows neither.
 */
function giveRules(schema: TSchema, rule: string): string[] {
  Object.defineProperty(schema, "error", { value: rule, configurable: true });
  Object.defineProperty(schema, "additionalProperties", { value: true, configurable: true });
  const { anyOf = [], items = [], properties = {} } = schema;
  const members = Object.entries<TSchema>(properties).flatMap(([name, member]) =>
    giveRules(member, member.description ?? `${name} must be as the document says`),
  );
  const parts: TSchema[] = [items, anyOf].flat();
  return [rule, ...members, ...parts.flatMap((part) => giveRules(part, part.description ?? rule))];
}
const ruleOf = (schema: TSchema) => String(schema.error ?? schema.description);

/** Says when an answer is given, and which fields it carries. Docs and tests read it. */
function when(description: string, ...fields: string[]) {
  const headers = fields.map((name) => [name, { schema: { type: "string" } }]);
  return { description, headers: Object.fromEntries(headers) };
}

/** The body of a refusal, which says one of these sentences. */
function refusal(sentences: string | string[], ...fields: string[]) {
  const all = [...new Set([sentences].flat())];
  return t.Object({ error: t.String({ enum: all }) }, when(all.join("; "), ...fields));
}
const says = (message: string) => ({ message: t.String({ enum: [message], example: message }) });
const sentencesOf = (code: number) =>
  guards.flatMap(([status, sentence]) => (status === code ? sentence : []));
const badRequest = (...sentences: string[]) => refusal([...sentences, ...sentencesOf(400)]);
const brokenRule = (schema: TObject) => refusal(giveRules(schema, ruleOf(schema)).slice(1));

const legend = {
  304: t.Void(when("If-None-Match names what there is", "ETag")),
  400: badRequest(),
  401: refusal(sentencesOf(401), "WWW-Authenticate"),
  403: refusal(sentencesOf(403), "WWW-Authenticate"),
  406: refusal(NOT_ACCEPTED),
  409: refusal(OTHER_ID),
  412: refusal(STALE),
  413: refusal(TOO_LARGE),
  415: refusal([NOT_TYPED, NOT_PLAIN], "Accept", "Accept-Encoding"),
  421: refusal(sentencesOf(421)),
  429: refusal(sentencesOf(429), "Retry-After"),
  500: refusal(BROKEN),
  503: refusal([...sentencesOf(503), OUT_OF_REACH], "Retry-After"),
};

/** The outcomes that routes share, without those that these settings rule out. */
function shared<Status extends keyof typeof legend>(...statuses: Status[]) {
  const possible = statuses.filter(isPossible).map((status) => [status, legend[status]]);
  return Object.fromEntries(possible) as Pick<typeof legend, Status>;
}
const isPossible = (status: number) =>
  Boolean({ 401: TOKEN, 403: READ_TOKEN, 429: RATE }[status] ?? true);
const about = (operationId: string, summary: string, description: string) => ({
  detail: { operationId, summary, description },
});

// ── Collections ── find one, list a page, change one; a row is an id and the document as JSON ────

type Row = { document: string };
type Document = Record<string, unknown>;
type Statement = [sql: string, ...values: (string | number)[]];

/** What a decision is given. Its last put, merge or remove is written once it returns. */
type Change<One> = {
  found?: One; // what is there, under the lock
  tag?: string; // its entity tag
  put: (whole: One) => string; // gives the entity tag of what is there then
  merge: (patch: Partial<One>) => string;
  remove: () => void;
};

/** Opens a table for things of this schema, with a filter by one of their members. */
async function openCollection<Schema extends TObject>(
  table: string,
  schema: Schema,
  first: Schema["static"][],
  show: (one: Schema["static"]) => object,
  filter: string & keyof Schema["static"],
) {
  type One = Schema["static"];
  giveRules(schema, `${table} must be objects`);
  for (const [name, member] of Object.entries(schema.properties))
    if (name in {} || !isUsable(member)) quit(`${table} cannot have ${name} as it is: see README.`);
  for (const name of ["id", filter])
    if (schema.properties[name]?.type !== "string") quit(`${name} of ${table} must be a t.String.`);
  const validator = validatorOf(schema);
  const [isId, isFilter] = [testFor(schema, "id"), testFor(schema, filter)];

  const [member, short] = [`(${store.member(filter)})`, store.short];
  const sql = {
    find: `select document from ${table} where id = $1`,
    page: `select document from ${table} where id > $1 order by id limit $2`,
    // `id || ''` is what the index holds; with plain `id` neither engine would use it.
    filtered: `select document from ${table} where ${short(member)} = ${short("$1")}
      and ${member} = $1 and id || '' > $2 order by id || '' limit $3`,
    index: `create index if not exists ${table}_by_${filter}
      on ${table} (${short(member)}, (id || ''))`,
    put: `insert into ${table} (id, document) values ($1, $2)
      on conflict (id) do update set document = excluded.document`,
    remove: `delete from ${table} where id = $1`,
  };
  const rows = first.map((one): Statement => {
    const { document, rule } = serialize(one);
    if (rule) quit(`What ${table} begin with breaks a rule: ${rule}.`);
    return [sql.put, String(one.id), document];
  });
  await openTable(table, sql, rows);

  /** The document of one, and the rule that it breaks, if it does. */
  function serialize(one: One) {
    const document = JSON.stringify(one);
    const fault = validator.Check(one) ? undefined : validator.Errors(one).First();
    const rule = fault ? ruleOf(fault.schema) : NUL.test(document) ? "No text may hold U+0000" : "";
    return { document, rule };
  }
  const parse = ({ document }: Row): One => mergePatch(schema, {}, JSON.parse(document));
  const read = (...statement: Statement) => store.read(statement).then((rows) => rows.map(parse));

  async function find(id: string) {
    if (!isId(id)) return undefined; // nothing can have it
    const [row] = await store.read([sql.find, id]);
    return row && parse(row);
  }

  /** A page after an id; `last` is its last id, if there are more. */
  async function list(after: string, limit: number, value?: string) {
    if (value !== undefined && !isFilter(value)) return { found: [] }; // nothing can have it
    const from = after.replaceAll("\0", "\x01"); // PostgreSQL has no U+0000; no id has it
    const rows =
      value === undefined
        ? await read(sql.page, from, limit + 1)
        : await read(sql.filtered, value, from, limit + 1);
    const found = rows.slice(0, limit);
    return { found, last: rows.length > limit ? String(found.at(-1)?.id) : undefined };
  }

  /** Decides once, inside the transaction; gives what the decision returns. */
  async function change<Answer>(id: string, decide: (change: Change<One>) => Answer) {
    function decideOn(rows: Row[]) {
      const [found] = rows.map(parse);
      let write: Statement | undefined;
      function put(whole: One) {
        const one = mergePatch(schema, {}, whole);
        const { document, rule } = serialize(one);
        if (rule) throw refuseWith(422, { error: rule });
        write = [sql.put, id, document];
        return entityTag(show(one));
      }
      function remove() {
        write = [sql.remove, id];
      }
      const merge = (patch: Partial<One>) => put(mergePatch(schema, { ...found }, patch));
      const tag = found && entityTag(show(found));
      const answer = decide({ found, tag, put, merge, remove });
      return { answer, write };
    }
    if (!isId(id)) return decideOn([]).answer; // nothing can have it
    return store.change(table, id, decideOn);
  }

  return { change, find, isId, list };
}
const NUL = /(?<!\\)(\\\\)*\\u0000/; // in JSON, \u0000 and not \\u0000

const validatorOf = (schema: TSchema) =>
  getSchemaValidator(schema) as NonNullable<ReturnType<typeof getSchemaValidator>>;

/** A test whether a text could be this member of something. */
function testFor({ properties }: TObject, name: string) {
  const validator = validatorOf(properties[name] as TSchema);
  return (text: string) => validator.Check(text) && !text.includes("\0");
}

/** What a merge patch (RFC 7396) makes of an object; of {}, the patch without unknown members. */
function mergePatch({ properties }: TObject, target: Document, patch: Document) {
  for (const name of Object.keys(properties)) {
    const member = properties[name] as TSchema;
    const inner = besideNull(member);
    const value = patch[name];
    if (value === null && !member.nullable) delete target[name];
    else if (isObject(inner) && value instanceof Object)
      target[name] = mergePatch(inner, { ...(target[name] as Document) }, value as Document);
    else if (value !== undefined) target[name] = value;
  }
  return target;
}

/** Whether a member can be kept as JSON, checked and documented, and takes its own example. */
function isUsable(member: TSchema): boolean {
  const own = besideNull(member);
  const { enum: choice, example, format, items, type } = own;
  const takes = (value: unknown) => validatorOf(own).Check(value);
  if (format && !FormatRegistry.Has(format)) return false;
  if (choice && takes("none of them")) return false; // a t.String does not look at it
  if (example !== undefined && !takes(example)) return false; // 19.99 is no multiple of 0.01
  if (type === "array") return !Array.isArray(items) && isUsable(items);
  if (type === "object") return isObject(own) && Object.values(own.properties).every(isUsable);
  return ["boolean", "number", "string"].includes(type);
}

/** Tries a write and undoes it. Where there is no table, makes it and fills it. */
async function openTable(
  table: string,
  sql: Record<"find" | "index" | "put", string>,
  first: Statement[],
) {
  const create = `create table ${table} (id ${store.idType} primary key, document text not null)`;
  const trial: Statement = [sql.put, `🍎 ${crypto.randomUUID()}`, "{}"]; // LATIN1 has no 🍎
  const tryWrite = () => store.run(["savepoint trial"], trial, ["rollback to trial"]);
  try {
    await tryWrite().catch(async (error) => {
      if (!/no such table|42P01/.test(`${codeOf(error)} ${error}`)) throw error;
      // It fails where another process is faster; then the second trial succeeds.
      const fault = await store.run([create], [sql.index], ...first).catch((cause: Error) => cause);
      await tryWrite().catch((cause) => Promise.reject(fault instanceof Error ? fault : cause));
    });
  } catch (error) {
    if (!isUnwritable(error)) refuse("DATABASE_URL", "", causeOf(error));
    await store.read([sql.find, ""]).catch(() => refuse("DATABASE_URL", "", causeOf(error)));
    out.print(`Warning: writes get 503 now: ${causeOf(error)}.`);
  }
}

// ── Engines ── a 2xx to a write is a promise: it is on the disk before the answer leaves ─────────

type Decide<Answer> = (rows: Row[]) => { answer: Answer; write?: Statement };
type Engine = {
  read: (statement: Statement) => Promise<Row[]>;
  /** Finds a row, decides and writes in one transaction, alone with this id. */
  change: <Answer>(table: string, id: string, decide: Decide<Answer>) => Promise<Answer>;
  /** Runs statements in one transaction. */
  run: (...statements: Statement[]) => Promise<unknown>;
  close: () => unknown;
  /** SQL: the type of an id, a member of the document, and what an index can hold of it. */
  idType: string;
  member: (name: string) => string;
  short: (text: string) => string;
};
const REQUEST_TIME = 3500; // milliseconds that a request may wait for the store
const COMMIT_TIME = 20_000; // milliseconds for a commit on its way: it may wait for a replica
const NO_ROW = "a write changed no row: look for a trigger, a rule or a policy on the table";

/** Bun's SQLite. What is asked in one turn of the event loop shares a snapshot, or a commit. */
function openSqlite(file: string): Engine {
  type Job = { work: () => unknown; until: number } & PromiseWithResolvers<unknown>;
  const db = openDatabase(file);
  const rows = ([text, ...values]: Statement) => db.query(text).all(...values) as Row[];
  const run = ([text, ...values]: Statement) => db.query(text).run(...values).changes;
  let readOnly: unknown; // the error of the first write, where the file was opened so

  /** Begins once all that share it have come, so that its snapshot is newer than each of them. */
  function share(begin: string) {
    let waiting: Job[] = [];
    function transact() {
      const jobs = waiting;
      waiting = [];
      try {
        run([begin]);
      } catch (error) {
        return postpone(jobs, error);
      }
      try {
        const answers = jobs.map(attempt);
        run(["commit"]);
        jobs.forEach(({ resolve }, index) => resolve(answers[index])); // a no-op if rejected
      } catch (error) {
        if (db.inTransaction) run(["rollback"]);
        for (const { reject } of jobs) reject(error);
      }
    }

    /** Another process has the lock: each job waits for it as long as its request may. */
    function postpone(jobs: Job[], error: unknown) {
      for (const job of jobs)
        if (isLocked(error) && performance.now() < job.until) waiting.push(job);
        else job.reject(error);
      if (waiting.length > 0) setTimeout(transact, 5);
    }

    return <Result>(work: () => Result) => {
      const until = performance.now() + REQUEST_TIME;
      const job: Job = { work, until, ...Promise.withResolvers() };
      if (waiting.push(job) === 1) setImmediate(transact);
      return job.promise as Promise<Result>;
    };
  }

  /** A statement that fails undoes itself, and so it hurts none that share its commit. */
  function attempt({ work, reject }: Job) {
    try {
      return work();
    } catch (error) {
      if (!db.inTransaction) throw error; // SQLite itself has undone all of them
      if (codeOf(error) === "SQLITE_READONLY") readOnly = error;
      return reject(error);
    }
  }

  const [reading, writing] = [share("begin"), share("begin immediate")];
  return {
    read: (statement) => reading(() => rows(statement)),
    change: (table, id, decide) =>
      writing(() => {
        if (readOnly) throw readOnly; // before a decision, which would be 404 or 412
        const { answer, write } = decide(rows([`select document from ${table} where id = $1`, id]));
        if (write && run(write) !== 1) throw Error(NO_ROW);
        return answer;
      }),
    run: (...statements) => writing(() => db.transaction(() => statements.map(run))()),
    close: () => new Promise((resolve) => setImmediate(() => resolve(db.close()))), // after a turn
    idType: "text",
    member: (name) => `document ->> '$."${name}"'`,
    short: (text) => text,
  };
}

function openDatabase(file: string) {
  try {
    const db = new Database(file);
    const until = performance.now() + REQUEST_TIME;
    while (true)
      try {
        db.run("pragma journal_mode = wal; pragma synchronous = full");
        db.run("pragma fullfsync = 1"); // macOS does not wait for the disk without it
        return db;
      } catch (error) {
        // Of two that start at once on a new file, each may hold what the other needs.
        if (!isLocked(error) || performance.now() > until) throw error;
        Bun.sleepSync(5);
      }
  } catch (error) {
    if (!/CANTOPEN|READONLY/.test(codeOf(error))) throw error;
    // In a folder that takes no files there can be no log. What nobody writes can be read without.
    if (existsSync(`${file}-wal`)) throw error;
    const { SQLITE_OPEN_READONLY, SQLITE_OPEN_URI } = constants;
    const url = `${Bun.pathToFileURL(file).href}?immutable=1`;
    return new Database(url, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI);
  }
}

/** PostgreSQL. Behind a pooler too, so no statement is prepared by name. */
function openPostgres(url: string): Engine {
  type Ask = (statement: Statement, until?: AbortSignal) => Promise<Row[] & { count: number }>;
  const max = Number(new URL(url).searchParams.get("max") ?? 8);
  const sql = new SQL(url, { max, connectionTimeout: 3, idleTimeout: 1, prepare: false });
  let renewal = 0; // when the next connection is due to be closed
  const within = (time: number) => AbortSignal.any([AbortSignal.timeout(time), leaving.signal]);

  /** Lends a connection. At the deadline it is closed, with what was asked on it. */
  async function lend<Result>(deadline: AbortSignal, work: (ask: Ask) => Promise<Result>) {
    const connection = await sql.reserve({ signal: deadline });
    const ask: Ask = async ([text, ...values], until = deadline) => {
      until.throwIfAborted();
      const running = connection.unsafe(text, values);
      until.onabort = () => {
        // A commit on its way is not cancelled: it may wait for a replica, and be made.
        if (text !== "commit") running.cancel();
        void connection.close({ timeout: 1 });
      };
      return running.finally(() => (until.onabort = null));
    };
    try {
      return await work(ask);
    } finally {
      // Now and then one is closed, so that processes can share a role with few connections.
      const isDue = performance.now() > renewal;
      if (isDue) renewal = performance.now() + 250;
      if (isDue) void connection.close({ timeout: 1 });
      connection.release(); // what is open is rolled back
    }
  }

  let isAway = false; // one has tried in vain until its deadline: the next ones try once

  /** Tries again what failed by a brief cause before it decided, until the deadline. */
  async function persist<Result>(
    work: (ask: Ask, markDecided: () => void) => Promise<Result>,
  ): Promise<Result> {
    const deadline = within(REQUEST_TIME);
    let isDecided = false;
    let cause: unknown; // of the try before: it says more than that the time is over
    while (true) {
      try {
        const answer = await lend(deadline, (ask) => work(ask, () => (isDecided = true)));
        isAway = false;
        return answer;
      } catch (error) {
        if (deadline.aborted) isAway = cause !== undefined;
        if (deadline.aborted) throw cause ?? error;
        if (isDecided || isAway || !isBrief(error)) throw error;
        cause = error;
      }
      await sleep(20);
    }
  }

  return {
    read: (statement) => persist((ask) => ask(statement)),
    change: (table, id, decide) =>
      persist(async (ask, markDecided) => {
        // One round trip, so the id stands in the text, as hex digits. A row that is not there
        // cannot be locked, so the lock is that of a number made of table and id.
        const lock = BigInt.asIntN(64, BigInt(Bun.hash(`${table} ${id}`)));
        const text = `convert_from(decode('${Buffer.from(id).toString("hex")}', 'hex'), 'UTF8')`;
        const look = `begin isolation level read committed; select pg_advisory_xact_lock(${lock});
          select document from ${table} where id = ${text} for update`;
        const [, , rows = []] = (await ask([look])) as unknown as Row[][];
        markDecided();
        const { answer, write } = decide(rows);
        if (write && (await ask(write)).count !== 1) throw Error(NO_ROW);
        await ask([write ? "commit" : "rollback"], within(COMMIT_TIME));
        return answer;
      }),
    run: (...statements) =>
      persist(async (ask) => {
        for (const statement of [["begin"], ...statements, ["commit"]] as Statement[])
          await ask(statement);
      }),
    close: () => sql.close({ timeout: 1 }),
    idType: 'text collate "C"',
    member: (name) => `document::json ->> '${name}'`,
    short: (text) => `md5(${text})`, // a row of an index has at most 2,704 bytes
  };
}

// What passes by itself gets 503. SQLSTATE: 08 a connection, 25006 read only, 25P an operator's
// time limit, 40 a conflict, 53 resources, 55 a lock, 57 an operator. What is brief is tried again:
// 40001 a conflict, 40P01 a deadlock, 53300 connections, 57P a stop or a start.
const isBrief = (error: unknown) =>
  /^(08|40001|40P01|53300|57P|ERR_POSTGRES_CONNECTION)/.test(codeOf(error));
const isUnwritable = (error: unknown) =>
  /^(25006|53100|SQLITE_(CANTOPEN|FULL|READONLY))/.test(codeOf(error));
/** Another process has the lock. SQLite could wait for it, and the whole process with it. */
const isLocked = (error: unknown) => /^SQLITE_(BUSY|LOCKED)/.test(codeOf(error));
/** PostgreSQL's word for an error that ends a session, or lets none begin. */
const isFatal = (error: unknown) =>
  (error as { severity?: string } | undefined)?.severity === "FATAL";
const isPassing = (error: unknown) =>
  isFatal(error) ||
  isBrief(error) ||
  isUnwritable(error) ||
  isLocked(error) ||
  /^(25P|40|53|55|57|ABORT|SQLITE_IOERR)/.test(codeOf(error));

function codeOf(error: unknown) {
  if (error instanceof DOMException) return "ABORT";
  const { code, errno } = (error ?? {}) as { code?: string; errno?: number | string };
  return typeof errno === "string" ? errno : `${code}`; // PostgreSQL has its SQLSTATE in errno
}

/** What an error of the store says, without the values that could be parts of its address. */
function causeOf(error: unknown) {
  const message = error instanceof Error ? error.message : String(error);
  // Where there is no session, the message has the names of the role and the database.
  const shown = isFatal(error)
    ? message.replace(/"[^"]*"/g, "…")
    : message.replace(/ Received .*/s, "");
  return shown.replace(/\s+/g, " ").replace(/\.$/, "");
}

/** Says once on stderr that the store is out of reach, and why. */
function reportOutage(request: Request, error: unknown) {
  const access = accessOf(request);
  if (outages.has(access) || closing.signal.aborted) return;
  outages.add(access);
  errors.print(`${access} get 503: ${causeOf(error)}.`);
}

function reportRecovery(request: Request, { status }: Response) {
  const isServed = status < 300 && request.method !== "OPTIONS";
  if (!isServed || OPEN.has(new URL(request.url).pathname)) return;
  if (outages.delete(accessOf(request))) errors.print(`${accessOf(request)} are served again.`);
}
type Access = "Reads" | "Writes";
const accessOf = (request: Request): Access => (isWrite(request) ? "Writes" : "Reads");
const outages = new Set<Access>();

// ── Docs ── at /swagger, whole from this server: a classroom may have no network ─────────────────

// @ts-expect-error: TypeScript has no type for a file.
import icon from "swagger-ui-dist/favicon-32x32.png" with { type: "file" };
// @ts-expect-error
import script from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
// @ts-expect-error
import style from "swagger-ui-dist/swagger-ui.css" with { type: "file" };

async function docs() {
  const order = guards.flatMap(([code, words]) => (isPossible(code) ? `1. ${code}: ${words}` : []));
  const info = {
    title: "Items",
    version: "1.0.0",
    description: `One resource, and every HTTP status code for a real reason. Of every request this
      is asked, in this order, and the first that applies is the answer:\n\n${order.join("\n")}`,
    contact: { name: "Whoever runs this server" },
    license: { name: "MIT", url: "https://opensource.org/license/mit" },
  };
  const securitySchemes = { bearer: { type: "http" as const, scheme: "bearer" } };
  const secured = { security: [{ bearer: [] }], components: { securitySchemes } };
  const read = (file: string) => Bun.file(file).text();
  return new Elysia({ detail: { hide: true } })
    .onAfterHandle(completeDocument)
    .use(
      swagger({
        excludeStaticFile: false,
        documentation: { info, ...(TOKEN ? secured : { security: [] }) },
      }),
    )
    .get(
      "/",
      ({ set }) => {
        set.status = 302;
        set.headers.location = "swagger"; // relative, and so right behind any prefix
      },
      { response: { 302: t.Void() } },
    )
    .get("/swagger", part("text/html", HTML))
    .get("/swagger/ui.js", part("text/javascript", (await read(script)) + SCRIPT))
    .get("/swagger/ui.css", part("text/css", (await read(style)) + STYLE))
    .get("/favicon.ico", part("image/png", await Bun.file(icon).bytes()));
}

/** A part of the page, read before: of a file as the answer, Bun would serve a Range. */
function part(type: string, content: string | Uint8Array<ArrayBuffer>) {
  const tag = entityTag(content);
  return ({ request, set }: Exchange) => {
    const early = checkConditions({ request, set }, tag);
    if (early) return early;

    set.status = 200;
    set.headers.etag = tag;
    set.headers["content-security-policy"] = POLICY;
    return new Response(content, { headers: { "content-type": type } });
  };
}
const POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'";

// The plugin's own page loads a script from elsewhere. This one asks only where it came from,
// also behind a proxy, and can be read from the last row, in any light and on a telephone.
const HTML = `<!doctype html><html lang=en><meta charset=utf-8><title>Items</title>
  <meta name=viewport content="width=device-width"><link rel=icon href=favicon.ico>
  <link rel=stylesheet href=swagger/ui.css><div id=ui></div><script src=swagger/ui.js></script>`;
const SCRIPT = `\n  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark-mode", isDark);
  const named = (name) => (Base, { React }) => (props) =>
    React.createElement(Base, { ...props, "aria-label": name });
  const wrapComponents = { Button: named(), TextArea: named("Request body") };
  const components = { ServersContainer: () => null }; // there is one
  const servers = [{ url: new URL(".", location).href.slice(0, -1) }];
  fetch("swagger/json").then((answer) => answer.json()).then((document) => SwaggerUIBundle(
    { spec: { ...document, servers }, dom_id: "#ui", plugins: [{ components, wrapComponents }] }));`;
const STYLE = `.swagger-ui {
  .response .response-col_status { font-size: min(40px, 7vw); min-width: 0; padding-right: 12px }
  h4, .authorize, .cancel, .parameter__in, .headers *, .property { color: CanvasText !important }
  .info a { color: LinkText !important }
  .title small, .download-contents { background: #333 !important }
  .model-box-control[aria-expanded=true], .close-modal { display: none } /* they have no name */
  .opblock-summary .opblock-summary-method, .btn.execute { color: #000; text-shadow: none }
  .renderedMarkdown, .header-col, pre { overflow-wrap: anywhere }
  pre code { white-space: pre-wrap !important; word-break: normal !important } }`;

type Content = Record<string, { schema: TSchema }>;
type Operation = {
  parameters?: { in: string; name: string; description: string; schema: object }[];
  requestBody?: { content: Content };
  responses: Record<string, { content?: Content; description: string }>;
  security?: object[];
  tags: string[];
};
type Paths = Record<string, Record<string, Operation>>;

/** Adds what the plugin cannot say, and the address at which the document was asked for. */
function completeDocument(context: Context & { responseValue: unknown }) {
  const { path, request, responseValue, set } = context;
  if (path !== "/swagger/json") return undefined;

  const document = structuredClone(responseValue) as { paths: Paths };
  const operations = Object.values(document.paths).flatMap((methods) => Object.entries(methods));
  for (const [method, operation] of operations) completeOperation(method, operation);
  const groups = [...new Set(operations.flatMap(([, { tags }]) => tags))];
  const tags = groups.map((name) => ({ name, description: `The ${name}, and the way to them` }));
  const whole = { ...document, tags, servers: [{ url: new URL(request.url).origin }] };
  const early = checkConditions({ request, set }, entityTag(whole));
  if (early) return early;

  set.status = 200;
  set.headers.etag = entityTag(whole);
  return whole;
}

function completeOperation(method: string, operation: Operation) {
  const { parameters = [], requestBody, responses } = operation;
  const fields = [
    [412 in responses, "If-Match", "what ETag said, or * for whatever is there"],
    [412 in responses, "If-None-Match", "what ETag said, or * for whatever is there"],
    [REHEARSE, "Prefer", "the answer to rehearse, like code=503"],
  ] as const;
  for (const { schema } of parameters)
    // in a query, a number is a text that has a minimum
    if ("minimum" in schema) Object.assign(schema, { type: "integer", pattern: undefined });
  for (const [isUsed, name, description] of fields)
    if (isUsed) parameters.push({ in: "header", name, description, schema: { type: "string" } });
  operation.parameters = parameters;

  if (requestBody)
    keepJson(requestBody, method === "patch" ? ["application/merge-patch+json"] : []);
  if (method === "get" && !READ_TOKEN) {
    operation.security = [];
    delete responses[401];
  }
  for (const [status, response] of Object.entries(responses)) {
    response.description += `\n\n${why[Number(status)]}`;
    keepJson(response);
  }
}

/** Leaves JSON of the media types that the plugin names, and adds these. */
function keepJson(part: { content?: Content }, others: string[] = []) {
  const json = part.content?.["application/json"];
  if (!json) return;
  sayNullable(json.schema);
  const types = ["application/json", ...others];
  part.content = Object.fromEntries(types.map((type) => [type, json]));
}

/** In OpenAPI 3.0, null is no type: what may also be null is nullable. */
function sayNullable(schema: TSchema) {
  Object.assign(schema, besideNull(schema));
  delete schema.anyOf;
  for (const part of [schema.items ?? [], Object.values(schema.properties ?? {})].flat())
    sayNullable(part as TSchema);
}

// ── Log ── one line a request, with the status that went out; each code seen first is collected ──

const collected = new Set<number>();
const causes = new Set<string>(); // that were printed whole

async function logAnswer(request: Request, response: Response, client: string, time: number) {
  const { headers, status } = response;
  // Asking has a price, so a client that went away within ten milliseconds may be missed.
  const isGone = (status >= 400 || time > 10) && request.signal.aborted;
  const code = isGone ? "gone" : `${status}`;
  const path = printable(request.url.replace(/^https?:\/\/[^/]*|[?#].*/gs, ""));
  const asked = `${request.method}  ${path}  ${time.toFixed(1)} ms`;
  const hasReason = status >= 400 && !isGone && request.method !== "HEAD";
  const body = hasReason ? await response.clone().text() : "";
  const reason = body.replace(/^\{"error":"(.*)"\}$/, "  $1");
  if (!isTerminal)
    return out.print(`${new Date().toISOString()}  ${client}  ${code}  ${asked}${reason}`);

  const colour = [32, 36, 33, 31][Math.floor(status / 100) - 2]; // green, cyan, yellow, red
  const shown = Bun.env.NO_COLOR ? code : `\x1b[${colour}m${code}\x1b[0m`;
  const isReal = !isGone && !headers.has("preference-applied");
  const isFirst = isReal && codes.has(status) && !collected.has(status);
  const star = isFirst ? `  ★ ${collected.add(status).size} of ${codes.size}` : "";
  out.print(`${shown}  ${asked}${star}${reason}`);
}

/** Prints what nobody expected: whole where it is new. */
function logError({ method }: Request, path: string, error: unknown) {
  const fault = error instanceof ValidationError ? error.valueError : undefined;
  const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
  const cause = fault ? `the answer breaks its schema at ${fault.path}: ${fault.message}` : stack;
  const [line = ""] = cause.split("\n");
  errors.print(`${method} ${printable(path)}: ${causes.has(cause) ? line : cause}`);
  if (causes.size < 100) causes.add(cause);
}

/** A text of a client's as a terminal may have it: visible ASCII, and not too long. */
function printable(text: string) {
  return text
    .toWellFormed()
    .replace(/[^!-~]/gu, encodeURIComponent)
    .slice(0, 1200);
}

/** Prints lines together; where nobody reads them, it keeps a thousand and counts the others. */
function openPrinter(file: BunFile) {
  const writer = file.writer();
  const lines: string[] = [];
  let lost = 0;
  let written = Promise.resolve();

  async function write() {
    if (lost > 0) lines.push(`… and ${lost} lines more\n`);
    lost = 0;
    await writer.write(lines.splice(0).join(""));
    await writer.flush();
  }
  function flush() {
    written = written.then(write).catch(() => {}); // nobody reads any more
    return written;
  }
  function print(line: string) {
    if (lines.length === 1000) lost += 1;
    else if (lines.push(`${line}\n`) === 1) setTimeout(flush, 10); // a write costs more than a line
  }
  return { flush, print };
}
const [out, errors] = [openPrinter(Bun.stdout), openPrinter(Bun.stderr)];

// ── Settings ── from the environment or .env; one that makes no sense ends the start ─────────────

type Test = (text: string) => boolean;
const isWord: Test = (text) => /^[!-~]+$/.test(text);
const isSecond: Test = (text) => isWord(text) && TOKEN !== "" && text !== TOKEN;
const isHost: Test = (text) => /^[\w.:-]+$|^\[[\w:.]+\]$/.test(text); // 127.0.0.1, localhost, [::1]
const like = (pattern: RegExp) => (text: string) => pattern.test(text);
const upTo = (most: number) => (text: string) => /^\d{1,6}$/.test(text) && Number(text) <= most;
const listOf = (text: string): string[] => text.toLowerCase().match(/[^\s,]+/g) ?? [];
const eachOf = (isFine: Test) => (text: string) =>
  listOf(text).length > 0 && listOf(text).every(isFine);
const isName: Test = (text) =>
  URL.parse(`http://${text}`)?.hostname === text && /^(\w[\w-]{0,62}(\.|$))+$|^\[/.test(text);

function isOrigin(text: string) {
  // capacitor://localhost, chrome-extension://abc: the origins of pages that an app brings along
  if (/^(?!https?:)[a-z][\w+.-]*:\/\/[\w.-]+$/.test(text)) return true;
  const { hostname: name = "", origin, port } = URL.parse(text) ?? {};
  return text === "*" || (origin === text && isName(name) && port !== "0");
}

const isStore: Test = (text) =>
  SQLITE.test(text) || (/^postgres(ql)?:\/\/[^/\s]/.test(text) && URL.canParse(text));
const SQLITE = /^sqlite:\/\/(:memory:|(?!file:|:|\s)[^?#]*[^?#\s])$/; // sqlite://items.sqlite

const wordRule = "visible ASCII characters without a space";
const storeRule =
  "one that opens: sqlite://FILE, sqlite://:memory: or postgres://USER@HOST/DATABASE";
const originRule = "* or origins like http://a.test:81";
const delayRule = "a whole number of milliseconds up to 25000";
const mayBe: Record<string, string> = {}; // what each setting may be
const defaults: Record<string, string> = {}; // what it is where it is not set
const isTerminal = process.stdout.isTTY;

await checkEnvFile();
const PORT = setting("PORT", "3000", "a free port from 0 to 65535", upTo(65_535));
const HOST = setting("HOST", "127.0.0.1", "an address of this machine", isHost);
const DATABASE_URL = setting("DATABASE_URL", "sqlite://items.sqlite", storeRule, isStore);
const TOKEN = setting("TOKEN", "", wordRule, isWord);
const READ_TOKEN = setting("READ_TOKEN", "", `${wordRule}, beside TOKEN and unlike it`, isSecond);
const ALLOWED_HOSTS = listOf(setting("ALLOWED_HOSTS", "", "hosts without a port", eachOf(isName)));
const CORS_ORIGIN = listOf(setting("CORS_ORIGIN", "", originRule, eachOf(isOrigin)));
const RATE = Number(setting("RATE", "0", "a whole number up to 999999", upTo(999_999)));
const DELAY = Number(setting("DELAY", "0", delayRule, upTo(25_000)));
const REHEARSE = setting("REHEARSE", "0", "0 or 1", like(/^[01]$/)) === "1";
const LOG = setting("LOG", isTerminal ? "on" : "off", "on or off", like(/^(on|off)$/)) === "on";
if (import.meta.main && process.argv.length > 2) printSettings();

/** The text of a setting. Empty means not set, but an empty token is refused. */
function setting(name: string, fallback: string, what: string, isFine: Test) {
  mayBe[name] = what;
  defaults[name] = fallback;
  const text = Bun.env[name];
  if (text === undefined || (text === "" && !name.endsWith("TOKEN"))) return fallback;
  return isFine(text) ? text : refuse(name, text, text === "" ? "it is set, but empty" : "");
}

/** Ends the start with exit code 1 and one sentence on stderr, which holds no secret. */
function refuse(name: string, text: string, cause: string): never {
  const is = isSecret(name) ? "" : `is ${JSON.stringify(text)}, but `;
  return quit(`${name} ${is}may only be ${mayBe[name]}${cause && ` (${cause})`}.`);
}

function isSecret(name: string) {
  return /TOKEN$|^DATABASE_URL$/.test(name);
}

function quit(sentence: string): never {
  console.error(sentence);
  process.exit(1);
}

/** Bun passes over a .env that is no UTF-8, such as PowerShell's > writes, without a word. */
async function checkEnvFile() {
  const file = Bun.file(".env");
  if (!(await file.exists())) return;
  const bytes = await file.bytes().catch(() => [0]); // what nobody may read is refused below
  const text = Buffer.from(bytes);
  if (!isUtf8(text) || text.includes(0)) quit(".env may only be a file of UTF-8 text.");
}

/** There are no options. Every argument prints the settings, what each may be, and is. */
function printSettings(): never {
  const isCompiled = /\$bunfs|~BUN/.test(Bun.main);
  const program = isCompiled ? `./${basename(process.execPath)}` : `bun ${basename(Bun.main)}`;
  const rest = (name: string) => defaults[name] && ` (default: ${defaults[name]})`;
  const lines = Object.entries(mayBe).map(
    ([name, what]) => `  ${name.padEnd(14)}${what}${rest(name)}`,
  );
  console.log(`Settings are in the environment or in .env: PORT=3001 ${program}\n`);
  console.log(lines.join("\n"));
  process.exit(/^(-h|--help)$/.test(process.argv[2] ?? "") ? 0 : 1);
}

// ── Start ── open the store, listen, say where; at the end answer what is in flight ──────────────

const [closing, leaving] = [new AbortController(), new AbortController()]; // a stop; 2 s later
const IDLE_TIME = 150; // seconds; proxies keep a connection for 60 to 120
const NAME = hostname().toLowerCase();
const HERE = new Set(["localhost", NAME, `${NAME}.local`, HOST.toLowerCase(), ...ALLOWED_HOSTS]);
const EVERY_PAGE = CORS_ORIGIN.includes("*");
const VARY = ["Accept", EVERY_PAGE ? "" : "Origin", REHEARSE ? "Prefer" : ""].filter(Boolean);
if (RATE > 0) setInterval(() => counts.clear(), 1000).unref();

const store = openStore();
const pages = await docs();
export const app = new Elysia({
  normalize: false,
  strictPath: true,
  systemRouter: false, // or two routers look at a path
  handler: { standardHostname: false }, // or they do not see it behind a short Host
})
  .headers({ "cache-control": "no-cache", "x-content-type-options": "nosniff" })
  .headers({ vary: VARY.join(", ") })
  .wrap(send)
  .onRequest(checkGuards)
  .onError(answerError)
  .use(await routesOfItems())
  .use(pages);

/** The type of the app, for Elysia's client: `treaty<App>("127.0.0.1:3000")`. */
export type App = typeof app;

const routed = app.routes.map(({ method }) => method);
const METHODS = [...new Set(["HEAD", "OPTIONS", ...routed])].sort();
const OPEN = new Set(pages.routes.map(({ path }) => path));
const documented = app.routes.flatMap(({ hooks }) => Object.keys(hooks.response ?? {}).map(Number));
const codes = new Set([...guards.map(([status]) => status), ...documented].filter(isPossible));
if (import.meta.main) await listen();

function openStore() {
  try {
    const file = SQLITE.exec(DATABASE_URL)?.[1];
    return file ? openSqlite(file) : openPostgres(DATABASE_URL);
  } catch (error) {
    return refuse("DATABASE_URL", DATABASE_URL, causeOf(error));
  }
}

async function listen() {
  const host = HOST.replace(/^\[|\]$/g, ""); // [::1]
  // Of a name that is none, the error below would say anything.
  await lookup(host).catch(() => refuse("HOST", HOST, "nobody knows it"));
  try {
    app.listen({
      development: false, // or the page of an error shows the source
      hostname: host,
      idleTimeout: IDLE_TIME,
      maxRequestBodySize: Infinity, // or Bun answers and cuts off; the body is counted above
      port: PORT,
      reusePort: false, // or two servers share a port, and nobody knows which one answers
    });
  } catch (error) {
    if (codeOf(error) === "EADDRNOTAVAIL") refuse("HOST", HOST, "this machine does not have it");
    const cause = codeOf(error) === "EACCES" ? "only root may take it" : "it is in use";
    refuse("PORT", PORT, cause);
  }

  const address = `http://${reachableName(host)}:${app.server?.port}`;
  const own = "items.sqlite; to start over, stop and delete it";
  const place = DATABASE_URL === "sqlite://items.sqlite" ? own : "as DATABASE_URL says";
  out.print(`Items  ${address}\nDocs   ${address}/swagger\nStore  ${place}`);
  const inForce = Object.keys(mayBe).filter((name) => Bun.env[name]);
  const shown = inForce.map((name) => (isSecret(name) ? name : `${name}=${Bun.env[name]}`));
  if (shown.length > 0) out.print(`With   ${shown.join(" ")}`);
  if (!/^(127\.|localhost$|::1$)/i.test(host) && !TOKEN)
    out.print("Warning: other machines can write here. Set TOKEN to keep them out.");
  process.on("SIGINT", stop).on("SIGTERM", stop);
  process.on("disconnect", stop); // a parent that has opened a channel (IPC) is gone
}

/** The host to print: for all interfaces, the first address that other machines see. */
function reachableName(host: string) {
  if (!/^(0(\.0\.0\.0)?|::)$/.test(host)) return host.includes(":") ? `[${host}]` : host;
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  const outer = all.find(({ family, internal }) => family === "IPv4" && !internal);
  return outer?.address ?? "localhost";
}

/** Answers what is in flight, then closes the store. A second signal ends at once. */
async function stop() {
  // `bun run` repeats the signal that the terminal has sent already.
  if (closing.signal.aborted && performance.now() - closing.signal.reason < 500) return;
  if (closing.signal.aborted) process.exit(130);
  closing.abort(performance.now());
  setTimeout(() => leaving.abort(), 2000);
  setTimeout(() => app.server?.stop(true), 3500);
  setTimeout(() => process.exit(0), 4500);
  await app.server?.stop();
  await store.close();
  const missing = [...codes.difference(collected)].sort().join(" ");
  if (LOG && isTerminal) out.print(missing ? `Still to be found: ${missing}` : "All were found.");
  await Promise.all([out.flush(), errors.flush()]);
  process.exit(0);
}
