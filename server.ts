/**
 * Items: one file, every HTTP status code, none of them faked.
 *
 *     bun server.ts      run it, then open the address that it prints
 *     bun test           start it on a free port and ask it everything
 *     /swagger           read about it and try it out, without a network
 *
 * The way of a request, which is also the order of its faults: the guards, the body, its schema,
 * Accept, the route, its conditions, the store. What throws ends in `answerError`, and every
 * answer leaves through `send`.
 *
 * Item and Routes hold all about items; below them, nothing knows what an item is. In a route each
 * outcome is a paragraph: the question, `set.status`, the answer. A status is a promise to the
 * client, so it is a number that stands where it is decided. Why it is this code and not its
 * neighbour stands in the table `why`. A § is a section of RFC 9110, HTTP Semantics.
 */
import { swagger } from "@elysiajs/swagger";
import { type BunFile, SQL } from "bun";
import { Database } from "bun:sqlite";
import {
  type Context,
  Elysia,
  getSchemaValidator,
  ParseError,
  type Static,
  t,
  type TSchema,
  ValidationError,
} from "elysia";
import { timingSafeEqual } from "node:crypto";
import { lookup } from "node:dns/promises";
import { isUtf8 } from "node:buffer";
import { isIP } from "node:net";
import { hostname, networkInterfaces } from "node:os";
import { basename } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

// ── Item ── what is kept, the rule of each member, and how an item looks on the wire ─────────────

const Item = t.Object({
  id: t.String({
    description: "id must be 1 to 128 characters, not . or .., no control character, / or \\",
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
type Item = Static<typeof Item>;

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
  const options = { first: firstItems, show: showItem, filter: "name" } as const;
  const items = await openCollection("items", Item, options);
  const [NewItem, WholeItem, ItemPatch] = [bodyOf(Item), bodyOf(Item, "id"), patchOf(Item)];
  const PageOfItems = pageOf("name");
  const NoSuchItem = refusal("Item not found");

  return new Elysia({ prefix: "/items", normalize: false })
    .guard({ response: shared(421, 429, 500, 503) })

    .get(
      "",
      async ({ query: { after = "", limit = 20, name }, request, set }) => {
        const page = await items.list(after, Number(limit), name);
        const next = page.next ? linkAfter(page.next, request) : "";
        const tag = entityTag([page.found, next]);
        const refused = checkConditions({ request, set }, tag);
        if (refused) return refused;

        set.status = 200;
        set.headers.etag = tag;
        if (next) set.headers.link = next;
        return { items: page.found };
      },
      {
        ...takesQuery(PageOfItems),
        ...about("items", "listItems", "List items", "Page through the items by id."),
        response: {
          200: t.Object({ items: t.Array(Item) }, when("The items of this page", "ETag", "Link")),
          400: badRequest(LIMIT_RULE, ruleOf(PageOfItems)),
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
        ...about("items", "createItem", "Create an item", "Create one under an id that is free."),
        response: {
          201: t.Object(says("Item created"), when("The id was free", "ETag", "Location")),
          400: badRequest(NOT_JSON, ruleOf(NewItem), "Item already exists"),
          422: brokenRule(Item),
          ...shared(401, 403, 406, 413, 415),
        },
      },
    )

    .guard({
      params: t.Object({ id: t.String({ description: "the id of the item", example: "1" }) }),
    })
    .get(
      "/:id",
      async ({ params: { id }, request, set }) => {
        const item = await items.find(id);
        if (!item) {
          set.status = 404;
          return { error: "Item not found" };
        }

        const tag = entityTag(showItem(item));
        const refused = checkConditions({ request, set }, tag);
        if (refused) return refused;

        set.status = 200;
        set.headers.etag = tag;
        return showItem(item);
      },
      {
        beforeHandle: checkAccept,
        ...about("items", "getItem", "Get an item", "Read one, or ask whether it has changed."),
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
          const refused = checkConditions({ request, set }, tag) ?? checkId({ set }, body, id);
          if (refused) return refused;

          // 201, not 200: PUT creates what is not there yet (§9.3.4).
          if (!found) {
            set.status = 201;
            set.headers.etag = put({ ...body, id });
            set.headers.location = path;
            return { message: "Item created" };
          }

          set.status = 200;
          set.headers.etag = put({ ...body, id });
          return { message: "Item updated" };
        });
      },
      {
        ...takesJson(WholeItem),
        ...about(
          "items",
          "putItem",
          "Replace an item",
          "Put one in its place, or create it there.",
        ),
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

          const refused = checkConditions({ request, set }, tag) ?? checkId({ set }, body, id);
          if (refused) return refused;

          set.status = 200;
          set.headers.etag = merge(body);
          return { message: "Item updated" };
        }),
      {
        ...takesJson(ItemPatch),
        ...about("items", "patchItem", "Change an item", "Change what the patch (RFC 7396) names."),
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

          const refused = checkConditions({ request, set }, tag);
          if (refused) return refused;

          remove();
          set.status = 204;
        }),
      {
        ...about("items", "deleteItem", "Delete an item", "Delete one for good."),
        response: {
          204: t.Void(when("The item existed")),
          404: NoSuchItem,
          ...shared(400, 401, 403, 412),
        },
      },
    );
}

// ── Shared answers ── why each code is not its neighbour, and what several routes decide alike ───

/** One reason for each code: for the reader, the docs page and the README. */
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

/** The answer where a condition (§13.2.2) fails; `tag` is that of what is there, if anything is. */
function checkConditions({ request, set }: Exchange, tag?: string) {
  const [match, noneMatch] = [
    request.headers.get("if-match"),
    request.headers.get("if-none-match"),
  ];
  const names = (list: string) => tag && (list === "*" || listTags(list).includes(tag));
  const isStale = match !== null && !names(match);
  const isKnown = noneMatch !== null && names(noneMatch.replaceAll('W/"', '"'));

  if (isKnown && !isStale && !isWrite(request)) {
    set.status = 304;
    set.headers.etag = tag;
    return new Response(null, { status: 304 }) as never; // without a body, it has no schema
  }

  if (isStale || isKnown) {
    set.status = 412;
    return { error: "If-Match or If-None-Match does not hold" };
  }
}

/** The entity tags of a list; none where it is malformed, so that nothing is written. */
function listTags(list: string): string[] {
  const rest = list.replace(TAG, "\0").replace(/\s/g, "");
  return /^,*\0(,+\0)*,*$/.test(rest) ? (list.match(TAG) ?? []) : []; // two tags: \0,\0
}
const TAG = /(W\/)?"[^"]*"/g; // "a" or W/"a"

/** The answer where the body names another id than the path. */
function checkId({ set }: Pick<Context, "set">, body: { id?: string }, id: string) {
  if (body.id === undefined || body.id === id) return undefined;
  set.status = 409;
  return { error: "The id of the body must be that of the path" };
}

/** The entity tag (§8.8.3) of a representation: a digest, so a strong validator. */
function entityTag(content: unknown) {
  return `"${Bun.SHA256.hash(JSON.stringify(content), "base64")}"`;
}

/** A link (RFC 8288) to the next page of a list: the same query, but after this id. */
function linkAfter(id: string, { url }: Request) {
  const next = new URL(url);
  next.searchParams.set("after", id);
  return `<${next.pathname}${next.search}>; rel="next"`;
}

// ── Guards ── what is asked of every request, in the order of the protocol ───────────────────────

/** What guards look at; `host` is undefined where the field is malformed or given twice. */
type Asked = ReturnType<typeof lookAt>;
type Guard = [status: number, sentence: string, applies: (asked: Asked) => boolean];

const guards: Guard[] = [
  [503, "The server is shutting down", () => closing.signal.aborted],
  [400, "Host must be given once, as host or host:port", ({ host }) => host === undefined],
  // It ends DNS rebinding: a page that gave its own name this address is still not let in.
  [421, "Host must be this machine or one of ALLOWED_HOSTS", (asked) => !isHere(asked)],
  [501, "This server does not have this method", ({ method }) => !METHODS.has(method)],
  [204, "The preflight of a page that is let in", (asked) => isPreflight(asked)],
  // Read with loss, it would name something else than what was meant.
  [400, "The target must be percent-encoded UTF-8 without a fragment", ({ url }) => !isTarget(url)],
  [429, "Too many requests in this second", (asked) => RATE > 0 && countRequest(asked) > RATE],
  [404, "No such path", (asked) => !isRouted(asked) && allowedMethods(asked).length === 1],
  [405, "This path does not have this method", (asked) => !isRouted(asked) && !isOptions(asked)],
  [204, "OPTIONS on a known path", (asked) => isOptions(asked)],
  [401, "A bearer token that this server knows is required", (asked) => isStranger(asked)],
  [403, "The read token may not write", (asked) => isWrite(asked) && rightOf(asked) === "read"],
];

/** The fields that a status owes the client: what to send instead, or when to come back. */
const owed: Record<number, (asked: Asked) => Record<string, string | undefined>> = {
  204: (asked) => ({ allow: allowedMethods(asked).join(", "), ...acceptPatch(asked) }),
  401: (asked) => challenge(bearerOf(asked) === undefined ? "" : ', error="invalid_token"'),
  403: () => challenge(', error="insufficient_scope"'),
  405: (asked) => ({ allow: allowedMethods(asked).join(", ") }),
  407: () => ({ "proxy-authenticate": 'Basic realm="api"' }),
  415: (asked) => ({ accept: mediaTypes(asked).join(", "), ...acceptPatch(asked) }),
  416: () => ({ "content-range": "bytes */0" }),
  426: () => ({ connection: "upgrade", upgrade: "HTTP/2.0" }),
  429: () => IN_A_SECOND,
  503: () => IN_A_SECOND,
};
const IN_A_SECOND = { "retry-after": "1" };
const challenge = (error: string) => ({ "www-authenticate": `Bearer realm="api"${error}` });

function checkGuards({ path = "", request, set }: Exchange & { path?: string }) {
  const asked = lookAt(request, path);
  if (isLetIn(asked)) Object.assign(set.headers, corsFields(asked));
  const [status, error] = guards.find(([, , applies]) => applies(asked)) ?? [];
  if (status) {
    set.status = status;
    Object.assign(set.headers, owed[status]?.(asked));
    return status === 204 ? new Response(null, { status }) : { error };
  }

  const rehearsed = REHEARSE ? codePreferred(asked) : 0;
  if (rehearsed > 0) {
    set.status = rehearsed;
    Object.assign(set.headers, owed[rehearsed]?.(asked));
    set.headers["preference-applied"] = `code=${rehearsed}`;
    return { error: "Rehearsed, because Prefer asks for it" };
  }
}

function lookAt(request: Request, path: string) {
  const { headers, method, url } = request;
  return { headers, host: hostOf(request), method, path, request, url };
}

/** The name in Host. HTTP/1.0 may leave the field out, as health checks do; Bun refuses the rest. */
function hostOf({ headers, url }: Request) {
  const field = headers.get("host");
  if (field === null) return "localhost";
  return field.includes(",") ? undefined : URL.parse(url)?.hostname;
}

// What CONNECT has in Host is where it wants to go.
const isHere = ({ host = "", method }: Asked) =>
  HERE.has(host) ||
  host.endsWith(".localhost") ||
  isIP(host.replace(/^\[|\]$/g, "")) > 0 ||
  method === "CONNECT";

function isTarget(url: string) {
  if (!/[%#]/.test(url)) return true;
  try {
    return !url.includes("#") && !decodeURIComponent(url).includes("\ufffd");
  } catch {
    return false;
  }
}

function countRequest({ request }: Asked) {
  const count = (counts.get(addressOf(request)) ?? 0) + 1;
  counts.set(addressOf(request), count);
  return count;
}
const counts = new Map<string, number>(); // of each client, in this second
const addressOf = (request: Request) => app.server?.requestIP(request)?.address ?? "";

// The router itself is asked, so that it and the guards cannot differ about a path (§10.2.1).
const hasRoute = (path: string, method: string) =>
  app.router.static[path]?.[method] !== undefined || app.router.http.find(method, path) !== null;
const isRouted = ({ method, path }: Asked) => hasRoute(path, method === "HEAD" ? "GET" : method);
const isOptions = ({ method }: Pick<Request, "method">) => method === "OPTIONS";
const allowedMethods = (asked: Asked) =>
  [...METHODS].filter((method) => method === "OPTIONS" || isRouted({ ...asked, method }));

/** What the token of a request allows. Digests are compared, in constant time. */
function rightOf(asked: Asked) {
  const digest = Bun.SHA256.hash(bearerOf(asked) ?? "");
  const is = (token: string) => timingSafeEqual(digest, Bun.SHA256.hash(token));
  if (!TOKEN || is(TOKEN)) return "write";
  return READ_TOKEN && is(READ_TOKEN) ? "read" : "none";
}
const bearerOf = ({ headers }: Asked) =>
  /^bearer +(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1]; // Bearer s3cret

const isWrite = ({ method }: { method: string }) => method !== "GET" && method !== "HEAD";
// The docs are open. What is not one of them is guarded, whatever its path.
const isStranger = (asked: Asked) =>
  (isWrite(asked) || (READ_TOKEN !== "" && !OPEN.has(asked.path))) && rightOf(asked) === "none";

/** Pages of this machine, and of CORS_ORIGIN, may read the answer, a refusal too. */
function isLetIn({ headers }: Pick<Request, "headers">) {
  const origin = headers.get("origin");
  if (origin === null) return false;
  return CORS_ORIGIN.includes("*") || CORS_ORIGIN.includes(origin) || LOCAL_PAGE.test(origin);
}
// http://localhost:5173, https://app.localhost, http://127.0.0.1, http://[::1]:80
const LOCAL_PAGE = /^https?:\/\/(([\w-]+\.)*localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/;
const isPreflight = (request: Pick<Request, "headers" | "method">) =>
  isOptions(request) &&
  request.headers.has("access-control-request-method") &&
  isLetIn(request);
const corsFields = (asked: Asked) => ({
  "access-control-allow-origin": asked.headers.get("origin") ?? "*",
  "access-control-expose-headers": "*",
  ...(isPreflight(asked) && PREFLIGHT),
});
const PREFLIGHT = {
  "access-control-allow-headers": "*, Authorization",
  "access-control-allow-methods": "*",
  "access-control-max-age": "7200", // seconds; no browser keeps it longer
};

/** The code in `Prefer: code=503` (RFC 7240): a front end may rehearse how the server fails. */
const codePreferred = ({ headers }: Asked) =>
  Number(/(?:^|[,;])\s*code="?([45]\d\d)\b/i.exec(headers.get("prefer") ?? "")?.[1] ?? 0);

// ── Body and errors ── a body is read after all guards, and an exception never says itself ───────

const BODY_LIMIT = 65_536; // bytes
const BODY_TIME = 30; // seconds that a body may take to arrive
const TOO_LARGE = `The body must be at most ${BODY_LIMIT} bytes`;
const NOT_JSON = "The body must be JSON in UTF-8";
const NOT_TYPED = "Content-Type must be JSON in UTF-8";
const NOT_PLAIN = "Content-Encoding must be identity";
const UTF8 = new TextDecoder("utf-8", { fatal: true });

/** A refusal from where no answer can be returned; `answerError` makes one of it. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    sentence: string,
    readonly fields = {},
  ) {
    super(sentence);
  }
}

/** What a route needs that takes a body: only there is a type asked for, and anything read. */
function takesJson<Schema extends TSchema>(body: Schema) {
  return { beforeHandle: checkAccept, body, parse: readJson };
}

async function readJson({ path = "", request }: Exchange & { path?: string }): Promise<unknown> {
  const { headers } = request;
  const asked = lookAt(request, path);
  // JSON only: a form or text/plain is what a page of any origin sends without asking.
  if (!isJson(asked)) throw new Refusal(415, NOT_TYPED, owed[415]?.(asked));
  // What is small but unpacks to something large would slip through the limit.
  if (!/^(identity)?$/i.test(headers.get("content-encoding") ?? ""))
    throw new Refusal(415, NOT_PLAIN, { "accept-encoding": "identity" });

  // A size that is said is believed, and nothing is read; what is chunked is counted.
  const size = Number(headers.get("content-length") ?? NaN);
  if (size > BODY_LIMIT) throw new Refusal(413, TOO_LARGE);
  const bytes = size <= BODY_LIMIT ? await request.bytes() : await readCounted(request);
  try {
    const text = UTF8.decode(bytes);
    return HALF.test(text) ? JSON.parse(text, makeWellFormed) : JSON.parse(text);
  } catch {
    throw new Refusal(400, NOT_JSON);
  }
}

function isJson(asked: Asked) {
  const field = asked.headers.get("content-type")?.toLowerCase() ?? "";
  const [type = "", ...parameters] = field.split(";").map((part) => part.trim());
  const isUtf8 = parameters.every((part) => /^(?!charset\s*=)|^charset="?utf-8"?$/.test(part));
  return mediaTypes(asked).includes(type) && isUtf8;
}
const mediaTypes = ({ method }: Pick<Request, "method">) =>
  method === "PATCH" ? ["application/merge-patch+json", "application/json"] : ["application/json"];
/** RFC 5789 §3.1: where a path has PATCH, it says what a patch may be. */
const acceptPatch = (asked: Asked) =>
  isRouted({ ...asked, method: "PATCH" })
    ? { "accept-patch": mediaTypes({ method: "PATCH" }).join(", ") }
    : undefined;

/** The bytes of a body whose length is not said, or is said twice. */
async function readCounted({ body }: Request) {
  const bytes = new Bun.ArrayBufferSink();
  let size = 0;
  for await (const chunk of body?.values({ preventCancel: true }) ?? []) {
    size += chunk.length;
    if (size > BODY_LIMIT) throw new Refusal(413, TOO_LARGE);
    bytes.write(chunk);
  }
  return bytes.end() as Uint8Array<ArrayBuffer>;
}

// Half a surrogate pair is no character. It becomes U+FFFD, as everywhere; rules refuse that.
const HALF = /\\ud[89a-f]/i; // the escape \ud83d, of a pair as well
const makeWellFormed = (_: string, value: unknown) =>
  typeof value === "string" ? value.toWellFormed() : value;

/** What a route needs that takes a query: each member once, for of two nobody knows which is meant. */
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

/** The answer where the client does not take JSON (§12.5.1): the most specific range decides. */
function checkAccept({ request, set }: Exchange) {
  const accept = request.headers.get("accept") || "*/*";
  if (accept === "*/*") return undefined; // as most say: the rest costs reads a twentieth
  const ranges = accept.toLowerCase().replace(/\s/g, "").split(",");
  const ofType = (type: string) => ranges.filter((range) => range.split(";")[0] === type);
  const decisive = ["application/json", "application/*", "*/*"]
    .map(ofType)
    .find(({ length }) => length);
  if (decisive?.some((range) => !/;q=0(\.0*)?(;|$)/.test(range))) return undefined; // ;q=0, ;q=0.00
  set.status = 406;
  return { error: "Accept must allow application/json" };
}

/** The answer to what was thrown. */
function answerError({ error, path, request, set }: Exchange & { error: unknown; path: string }) {
  for (const field of ["etag", "link", "location"]) delete set.headers[field];

  // What is thrown while a body is read arrives as the cause of another error.
  const refusal = error instanceof ParseError ? error.cause : error;
  if (refusal instanceof Refusal) {
    set.status = refusal.status;
    Object.assign(set.headers, refusal.fields);
    return { error: refusal.message };
  }

  const isInvalid = error instanceof ValidationError;
  const fault = isInvalid ? error.valueError : undefined;
  if (isInvalid && fault && error.type !== "response") {
    // Members that are missing come first; those of the whole are named together.
    const isMissing = fault.value === undefined && fault.path.lastIndexOf("/") <= 0;
    if (error.type !== "body" || isMissing || fault.path === "") {
      set.status = 400;
      return { error: ruleOf(isMissing && error.type === "body" ? rootOf(error) : fault.schema) };
    }

    set.status = 422;
    return { error: ruleOf(fault.schema) };
  }

  if (isOutOfReach(error)) {
    set.status = 503;
    Object.assign(set.headers, IN_A_SECOND);
    return { error: "The store is busy or out of reach" };
  }

  // What happened is for those who run the server, not for those who use it.
  logError(
    request,
    path,
    fault ? `an answer breaks its schema at ${fault.path}: ${fault.message}` : error,
  );
  set.status = 500;
  return { error: "Server error" };
}
const rootOf = ({ validator }: ValidationError) => (validator as { schema: TSchema }).schema;

/** The one way in and out: whatever happens, there is an answer, and it reaches the client. */
function send(next: (request: Request) => unknown) {
  const answer = next as (request: Request) => Promise<Response>;
  return async (arrived: Request) => {
    const start = performance.now();
    // Without Host there is no origin, and the router would take part of a path for it.
    const hasOrigin = arrived.url.startsWith("http");
    const request = hasOrigin ? arrived : new Request(`http://localhost${arrived.url}`, arrived);
    const isSent = !["content-length", "transfer-encoding"].some((name) =>
      arrived.headers.has(name),
    );
    if (!isSent) app.server?.timeout(arrived, BODY_TIME);

    const response = await answer(request).catch((error) => {
      logError(request, arrived.url, error);
      return Response.json({ error: "Server error" }, { status: 500 });
    });
    const { headers, status } = response;
    if (!isSent) {
      await dropBody(request, status);
      app.server?.timeout(arrived, IDLE_TIME);
    }
    if (request.method === "HEAD") headers.set("date", new Date().toUTCString()); // not set by Bun
    if (status === 304) headers.delete("content-length"); // it would be that of nothing (§8.6)
    if (/\bclose\b/i.test(request.headers.get("connection") ?? ""))
      headers.set("connection", "close");
    if (DELAY > 0 && !isPreflight(request))
      await sleep(DELAY, null, { signal: closing.signal }).catch(() => {});
    if (LOG) void logAnswer(request, addressOf(arrived), response, performance.now() - start);
    return response;
  };
}

/** Reads what is left of a body and drops it: who is cut off while sending never sees the answer. */
async function dropBody(request: Request, status: number) {
  if (request.bodyUsed && status !== 413) return;
  // Bun shows nobody the body of a GET; it drops that itself while there is no answer yet.
  const dropped = request.body?.pipeTo(new WritableStream()) ?? sleep(100);
  // A connection that is not kept is closed with the answer. Others are answered at once.
  const isKept = /keep-alive/i.test(request.headers.get("connection") ?? "");
  const done = dropped.catch(() => {});
  if (!isKept) await done;
}

// ── Schemas ── what comes in, what goes out, and when ────────────────────────────────────────────

type Members = Record<string, TSchema>;
type ObjectSchema = ReturnType<typeof t.Object<Members>>;
/** A schema whose type is known, though it is put together at run time. */
type Typed<Content> = ReturnType<typeof t.Unsafe<Content>>;

/** One character of a text: none that controls (Cc), not U+FFFD (read with loss), none of these. */
function character(except = "") {
  return String.raw`[^\x00-\x1f\x7f-\x9f\ufffd${except}]`;
}

function textPattern() {
  return `^${character()}+$`;
}

/** What can be a segment of a path: no / and \, which proxies rewrite; . and .. no URL can name. */
function segmentPattern() {
  const [any, dotless] = [character(String.raw`/\\`), character(String.raw`./\\`)];
  return String.raw`^(\.?${dotless}|\.\.${any})${any}*$`; // a, .a, ..a, ...
}

/** A body that has these members, but for `left`, which may be left out; unknown ones are ignored. */
function bodyOf<Schema extends ObjectSchema, Left extends keyof Static<Schema> = never>(
  { properties }: Schema,
  left?: Left,
) {
  const members = Object.entries(properties).map(([name, member]) => {
    const isOptional = name === left || member.default !== undefined;
    return [name, isOptional ? t.Optional(member) : member];
  });
  const body = t.Object<Members>(Object.fromEntries(members));
  const { required = ["an object"] } = body;
  const shown = Object.entries(properties).filter(([name]) => name !== left);
  body.example = Object.fromEntries(shown.map(([name, { example }]) => [name, example]));
  giveRules(body, `Bad request, ${required.join(" and ")} required`);
  return body as unknown as Typed<Omit<Static<Schema>, Left> & Partial<Pick<Static<Schema>, Left>>>;
}

/** A merge patch (RFC 7396) of such a body: each member as it is, and null where it is optional. */
function patchOf<Schema extends ObjectSchema>(whole: Schema) {
  const patch = patchSchema(whole);
  patch.example = bodyOf(whole, "id").example;
  giveRules(patch, "Bad request, an object required");
  return patch as unknown as Typed<Partial<Static<Schema>>>;
}

function patchSchema({ properties, required = [] }: ObjectSchema): ObjectSchema {
  const members = Object.entries(properties).map(([name, member]) => {
    // What a patch leaves out stays as it is, also where a new one would get a default.
    const { default: _, ...same } = member;
    const own = isObject(member) ? patchSchema(member) : (same as TSchema);
    const { description } = member;
    return [name, t.Optional(required.includes(name) ? own : t.Nullable(own, { description }))];
  });
  return t.Object(Object.fromEntries(members));
}
const isObject = (schema: TSchema): schema is ObjectSchema => schema.properties !== undefined;

/** The query of a list. In it all is text; the document says that a limit is a number. */
function pageOf<Member extends string>(filter: Member) {
  const limit = { description: LIMIT_RULE, pattern: "^([1-9][0-9]?|100)$", example: 20 };
  const members = {
    limit: t.Optional(t.String({ ...limit, minimum: 1, maximum: 100 })),
    after: t.Optional(t.String({ description: "only what comes after this id" })),
    [filter]: t.Optional(t.String({ description: `only what has exactly this ${filter}` })),
  };
  const description = `The query may have limit, after and ${filter}, each once`;
  const query = t.Object<Members>(members, { additionalProperties: false, description });
  return query as unknown as Typed<{ limit?: number; after?: string } & { [M in Member]?: string }>;
}
const LIMIT_RULE = "limit must be a whole number from 1 to 100";

/**
 * Gives each part of a schema the sentence that refuses it: its own description, or that of what it
 * is part of. Elysia takes an `error` for the answer; hidden, it stays out of the document.
 */
function giveRules(schema: TSchema, rule: string) {
  Object.defineProperty(schema, "error", { value: rule, configurable: true });
  for (const [name, member] of Object.entries<TSchema>(schema.properties ?? {}))
    giveRules(member, member.description ?? `${name} must be as the document says`);
  for (const part of [schema.items, schema.anyOf].flat())
    if (part) giveRules(part, part.description ?? rule);
}
const ruleOf = (schema: TSchema) => String(schema.error ?? schema.description);

/** When an answer is given, for the docs, the README and the tests; and the fields it carries. */
function when(description: string, ...fields: string[]) {
  const schemas = fields.map((name) => [name, { schema: { type: "string", ...examples[name] } }]);
  return { description, headers: Object.fromEntries(schemas) };
}
const examples: Record<string, { example: string }> = {
  ETag: { example: entityTag({ example: true }) },
  Link: { example: '<?limit=1&after=1>; rel="next"' },
  Location: { example: "3" },
};
const says = (message: string) => ({ message: t.String({ enum: [message], example: message }) });
const refusal = (sentences: string | string[], ...fields: string[]) =>
  t.Object(
    { error: t.String({ enum: [sentences].flat() }) },
    when([sentences].flat().join("; "), ...fields),
  );
const said = (code: number) => guards.flatMap(([status, words]) => (status === code ? words : []));
const badRequest = (...sentences: string[]) => refusal([...sentences, ...said(400)]);
const brokenRule = ({ properties }: ObjectSchema) => refusal(Object.values(properties).map(ruleOf));

/** The outcomes that routes share, without those that these settings rule out. */
function shared<Status extends keyof typeof Shared>(...statuses: Status[]) {
  const possible = statuses.filter(isPossible).map((status) => [status, Shared[status]]);
  return Object.fromEntries(possible) as Pick<typeof Shared, Status>;
}
const isPossible = (status: number) =>
  Boolean({ 401: TOKEN, 403: READ_TOKEN, 429: RATE }[status] ?? true);
const Shared = {
  304: t.Void(when("If-None-Match names what there is", "ETag")),
  400: refusal(said(400)),
  401: refusal(said(401), "WWW-Authenticate"),
  403: refusal(said(403), "WWW-Authenticate"),
  406: refusal("Accept must allow application/json"),
  409: refusal("The id of the body must be that of the path"),
  412: refusal("If-Match or If-None-Match does not hold"),
  413: refusal(TOO_LARGE),
  415: refusal([NOT_TYPED, NOT_PLAIN], "Accept", "Accept-Encoding"),
  421: refusal(said(421)),
  429: refusal(said(429), "Retry-After"),
  500: refusal("Server error"),
  503: refusal([...said(503), "The store is busy or out of reach"], "Retry-After"),
};
const about = (tag: string, operationId: string, summary: string, description: string) => ({
  detail: { operationId, summary, description, tags: [tag] },
});

// ── Collections ── find one, list a page, change one; an id, and the document as JSON ────────────

type Row = { document: string };
type Statement = [sql: string, ...values: (string | number)[]];
type Options<Content, Member> = {
  first: Content[];
  show: (one: Content) => object;
  filter: Member;
};

/** What a change may do; nothing happens before it has decided, and then all or nothing. */
type Turn<Content> = {
  /** What is there, under the lock, and its entity tag. */
  found?: Content;
  tag?: string;
  /** Puts this in its place, or merges a patch into it; gives the entity tag of what is there then. */
  put: (content: Content) => string;
  merge: (patch: Partial<Content>) => string;
  remove: () => void;
};

async function openCollection<
  Schema extends ObjectSchema,
  Member extends keyof Static<Schema> & string,
>(table: string, schema: Schema, { first, show, filter }: Options<Static<Schema>, Member>) {
  type Content = Static<Schema> & { id: string };
  const [key, member] = ["id", filter].map((name) => schema.properties[name] as TSchema) as [
    TSchema,
    TSchema,
  ];
  giveRules(schema, `${table} must be objects`);
  const [whole, ids, values] = [validatorOf(schema), validatorOf(key), validatorOf(member)];
  const isId = (id: string) => ids.Check(id) && !id.includes("\0");

  const filterBy = `(${store.member(filter)})`;
  const PUT = `insert into ${table} values ($1, $2)
    on conflict (id) do update set document = excluded.document`;
  const FIND = `select document from ${table} where id = $1`;
  const PAGE = `select document from ${table} where id > $1 order by id limit $2`;
  // As plain id, it would walk through all of them, or sort all that are alike, without the index.
  const FILTERED = `select document from ${table} where ${store.short(filterBy)} = ${store.short("$1")}
    and ${filterBy} = $1 and id || '' > $2 order by id || '' limit $3`;
  const INDEX = `create index if not exists ${table}_by_${filter}
    on ${table} (${store.short(filterBy)}, (id || ''))`;

  function serialize(content: Static<Schema>) {
    const fault = whole.Errors(content).First();
    if (fault) throw new Refusal(422, ruleOf(fault.schema));
    const document = JSON.stringify(content);
    if (NUL.test(document)) throw new Refusal(422, "No text may hold U+0000");
    return document;
  }
  const rows = first.map((one): Statement => [PUT, String(one.id), serialize(one)]);
  await openTable(table, [INDEX], rows).catch((error) =>
    refuse("DATABASE_URL", "", causeOf(error)),
  );

  const parse = ({ document }: Row) => JSON.parse(document) as Content;
  const read = async (...statement: Statement) =>
    (await watch("Reads", store.read(statement))).map(parse);

  async function find(id: string) {
    return isId(id) ? (await read(FIND, id))[0] : undefined;
  }

  /** A page of at most `limit` after an id; `next` is its last id, if there are more. */
  async function list(after: string, limit: number, value?: string) {
    // No store needs to be asked for what nothing can be.
    if (value !== undefined && !(values.Check(value) && !value.includes("\0")))
      return { found: [] };
    const from = after.replaceAll("\0", "\x01"); // PostgreSQL has no U+0000; no id has either
    const most = limit + 1;
    const rows = await (value === undefined
      ? read(PAGE, from, most)
      : read(FILTERED, value, from, most));
    const found = rows.slice(0, limit);
    return { found, next: rows.length > limit ? found.at(-1)?.id : undefined };
  }

  /** Decides once, inside the transaction, on what is there; gives what the decision returns. */
  async function change<Answer>(id: string, decide: (turn: Turn<Content>) => Answer) {
    const decideOn = (rows: Row[]) => {
      const found = rows.map(parse)[0];
      let write: Statement | undefined;
      function put(content: Content) {
        const kept = merged(schema, {}, content) as Content;
        write = [PUT, id, serialize(kept)];
        return entityTag(show(kept));
      }
      const merge = (patch: Partial<Content>) =>
        put(merged(schema, { ...found }, patch) as Content);
      const remove = () => void (write = [`delete from ${table} where id = $1`, id]);
      const tag = found && entityTag(show(found));
      return { answer: decide({ found, tag, put, merge, remove }), write };
    };
    if (!isId(id)) return decideOn([]).answer;
    return watch("Writes", store.change(table, id, decideOn));
  }

  return { change, find, isId, list };
}
const validatorOf = (schema: TSchema) =>
  getSchemaValidator(schema) as NonNullable<ReturnType<typeof getSchemaValidator>>;
const NUL = /(?<!\\)(\\\\)*\\u0000/; // in JSON: \u0000, and not \\u0000

/** What a merge patch (RFC 7396) makes of an object; null removes, save where it is a value. */
function merged({ properties }: ObjectSchema, target: Record<string, unknown>, patch: object) {
  const values = new Map(Object.entries(patch));
  for (const [name, member] of Object.entries(properties)) {
    const value: unknown = values.get(name);
    if (value === null && !member.nullable) delete target[name];
    else if (isObject(member) && value instanceof Object)
      target[name] = merged(member, { ...(target[name] as object) }, value);
    else if (value !== undefined) target[name] = value;
  }
  return target;
}

/** Makes the table where there is none, with what is first in it; tries one write, and undoes it. */
async function openTable(table: string, index: Statement, first: Statement[]) {
  const create = `create table ${table} (id ${store.idType} primary key, document text not null)`;
  const making = await store.run([create], index, ...first).catch((error: unknown) => error);
  const trial = `insert into ${table} values ($1, '{}')`;
  try {
    await store.run(
      ["savepoint trial"],
      [trial, `🍎 ${crypto.randomUUID()}`],
      ["rollback to trial"],
    );
  } catch (error) {
    if (/no such table|42P01/.test(`${codeOf(error)} ${error}`)) throw making;
    if (!isReadOnly(error)) throw error;
    await store.read([`select document from ${table} limit 1`]);
    out.print(`Warning: writes get 503 now: ${causeOf(error)}.`);
  }
  await store.run(index).catch(() => {}); // only the owner can; without it, a filter is slow
}

// ── Engines ── a 2xx to a write is a promise: it is on the disk before the answer leaves ─────────

/** How each engine keeps rows. `change` looks, decides and writes in one transaction, under a lock. */
type Engine = {
  read: (statement: Statement) => Promise<Row[]>;
  change: <Answer>(
    table: string,
    id: string,
    decide: (rows: Row[]) => { answer: Answer; write?: Statement },
  ) => Promise<Answer>;
  run: (...statements: Statement[]) => Promise<unknown>;
  close: () => unknown;
  /** SQL for the type of an id, in the order of code points; for a member; for a short form of it. */
  idType: string;
  member: (name: string) => string;
  short: (text: string) => string;
};
const REQUEST_TIME = 3500; // milliseconds that one request may wait for the store
const COMMIT_TIME = 20_000; // milliseconds that a commit may take, for it may wait for a replica
const NO_ROW = "a write has changed no row: look for a trigger, a rule or a policy on the table";

/** Bun's SQLite. What is asked in one turn of the event loop shares a snapshot, or a commit. */
function openSqlite(file: string): Engine {
  type Job = { work: () => unknown; until: number } & PromiseWithResolvers<unknown>;
  const db = openDatabase(file);
  const rows = ([sql, ...values]: Statement) => db.query(sql).all(...values) as Row[];
  const count = ([sql, ...values]: Statement) => db.query(sql).run(...values).changes;

  /** It begins when all that share it have come: a snapshot from before may miss what they know. */
  function share(begin: string) {
    const waiting: Job[] = [];
    function transact() {
      const jobs = waiting.splice(0);
      try {
        db.query(begin).run();
      } catch (error) {
        // Another process holds the lock, and nothing is decided yet: they wait, each to its end.
        const isLocked = /BUSY|LOCKED/.test(codeOf(error));
        for (const job of jobs)
          if (isLocked && performance.now() < job.until) waiting.push(job);
          else job.reject(error);
        if (waiting.length > 0) setTimeout(transact, 5);
        return;
      }
      try {
        const results = jobs.map(attempt);
        db.query("commit").run();
        jobs.forEach(({ resolve }, index) => resolve(results[index]));
      } catch (error) {
        if (db.inTransaction) db.query("rollback").run();
        for (const { reject } of jobs) reject(error);
      }
    }
    return <Result>(work: () => Result) => {
      const job = {
        work,
        until: performance.now() + REQUEST_TIME,
        ...Promise.withResolvers<Result>(),
      };
      if (waiting.push(job as unknown as Job) === 1) setImmediate(transact);
      return job.promise;
    };
  }

  /** A statement that fails undoes itself, so it hurts none that share its commit. */
  function attempt({ work, reject }: Job) {
    try {
      return work();
    } catch (error) {
      if (!db.inTransaction) throw error; // SQLite itself has rolled all of it back
      return reject(error);
    }
  }

  const [reading, writing] = [share("begin"), share("begin immediate")];
  return {
    read: (statement) => reading(() => rows(statement)),
    change: (table, id, decide) =>
      writing(() => {
        const { answer, write } = decide(rows([`select document from ${table} where id = ?`, id]));
        if (write && count(write) !== 1) throw Error(NO_ROW);
        return answer;
      }),
    run: (...statements) => writing(() => db.transaction(() => statements.map(count))()),
    close: () => new Promise((resolve) => setImmediate(() => resolve(db.close()))),
    idType: "text",
    member: (name) => `document ->> '$."${name}"'`,
    short: (text) => text,
  };
}

function openDatabase(file: string) {
  try {
    const db = new Database(file);
    db.run("pragma busy_timeout = 2000; pragma journal_mode = wal; pragma synchronous = full");
    db.run("pragma busy_timeout = 0");
    return db;
  } catch (error) {
    if (!/CANTOPEN|READONLY/.test(codeOf(error))) throw error;
    // In a folder that takes no files, a database that nobody writes can still be read.
    return new Database(`${pathToFileURL(file).href}?immutable=1`, { readonly: true });
  }
}

/** PostgreSQL, or what speaks its protocol, also behind a pooler: nothing is prepared by name. */
function openPostgres(url: string): Engine {
  type Ask = (
    text: string,
    values?: unknown[],
    until?: AbortSignal,
  ) => Promise<Row[] & { count: number }>;
  const few = new URL(url).searchParams.has("max") ? {} : { max: 4 };
  const sql = new SQL(url, { ...few, connectionTimeout: 3, idleTimeout: 10, prepare: false });
  const within = (time: number) => AbortSignal.any([AbortSignal.timeout(time), leaving.signal]);

  /** Lends a connection; what is asked on it is cancelled at the limit, and it is closed then. */
  async function lend<Result>(limit: AbortSignal, work: (ask: Ask) => Promise<Result>) {
    const connection = await sql.reserve({ signal: limit });
    const ask: Ask = async (text, values = [], until = limit) => {
      until.throwIfAborted();
      const running = connection.unsafe(text, values);
      until.onabort = () => {
        if (text !== "commit") running.cancel();
        void connection.close({ timeout: 1 });
      };
      return running.finally(() => (until.onabort = null));
    };
    try {
      return await work(ask);
    } finally {
      connection.release(); // what is open is rolled back
    }
  }

  /** Tries again, within the time of the request, what failed for a cause that passes by itself. */
  async function persist<Result>(
    kind: Kind,
    work: (ask: Ask) => Promise<Result>,
    isDecided = () => false,
    limit = within(REQUEST_TIME),
  ): Promise<Result> {
    try {
      return await lend(limit, work);
    } catch (error) {
      if (isDecided() || limit.aborted || outages.has(kind) || !isBrief(error)) throw error;
      await sleep(20, null, { signal: limit }).catch(() => Promise.reject(error));
      return persist(kind, work, isDecided, limit);
    }
  }

  return {
    read: ([text, ...values]) => persist("Reads", (ask) => ask(text, values)),
    async change(table, id, decide) {
      let isDecided = false;
      const lock = BigInt.asIntN(64, BigInt(Bun.hash(`${table} ${id}`)));
      // In one go, and so the id as hexadecimal digits. No row is there to be locked before it is made.
      const look = `begin isolation level read committed; select pg_advisory_xact_lock(${lock});
        select document from ${table} where id = convert_from('\\x${Buffer.from(id).toString("hex")}', 'UTF8')
        for update`;
      const work = async (ask: Ask) => {
        const [, , rows = []] = (await ask(look)) as unknown as Row[][];
        isDecided = true;
        const { answer, write } = decide(rows);
        if (!write) return ask("rollback").then(() => answer);

        const [text, ...values] = write;
        const { count } = await ask(text, values);
        if (count !== 1) throw Error(NO_ROW);
        // A commit on its way is not cancelled: it may wait for a replica, and be made.
        await ask("commit", [], within(COMMIT_TIME));
        return answer;
      };
      return persist("Writes", work, () => isDecided);
    },
    run: (...statements) =>
      persist("Writes", async (ask) => {
        await ask("begin");
        for (const [text, ...values] of statements) await ask(text, values);
        await ask("commit");
      }),
    close: () => sql.close({ timeout: 1 }),
    idType: 'text collate "C"',
    member: (name) => `document::json ->> '${name}'`,
    short: (text) => `md5(${text})`, // a row of an index has at most 2,704 bytes
  };
}

// What passes by itself, and so gets 503: result codes of SQLite and of Bun, or classes of SQLSTATE.
// A brief cause is gone in a moment, and where nothing was decided yet, the request may try again.
const BRIEF = [
  "08", // connection exception
  "40001", // serialization failure
  "40P01", // deadlock
  "53300", // too many connections
  "57P", // a shutdown, a crash, a start
  "ERR_POSTGRES_CONNECTION",
];
const OUT_OF_REACH = [
  ...BRIEF,
  "25006", // read-only transaction: a replica
  "25P", // a transaction was idle, or open, for too long
  "40", // transaction rollback
  "53", // insufficient resources: the disk, memory
  "55", // not in the state for it: locked
  "57", // an operator's intervention: cancelled, timed out
  "ABORT", // the time of the request is over
  "SQLITE_BUSY",
  "SQLITE_FULL",
  "SQLITE_IOERR",
  "SQLITE_LOCKED",
  "SQLITE_READONLY",
];
const isOneOf = (prefixes: string[], error: unknown) =>
  prefixes.some((prefix) => codeOf(error).startsWith(prefix));
const isBrief = (error: unknown) => isOneOf(BRIEF, error);
const isOutOfReach = (error: unknown) => isOneOf(OUT_OF_REACH, error);
const isReadOnly = (error: unknown) =>
  isOneOf(["25006", "53100", "SQLITE_FULL", "SQLITE_READONLY"], error);

function codeOf(error: unknown) {
  if (error instanceof DOMException) return "ABORT";
  const { code, errno } = (error ?? {}) as { code?: string; errno?: number | string };
  return typeof errno === "string" ? errno : `${code}`; // PostgreSQL has a SQLSTATE in errno
}

/** What an error of the store says, without the names that could be parts of its address. */
function causeOf(error: unknown) {
  const { message } = error as Error;
  const said = /^(28|3D)/.test(codeOf(error)) ? message.replace(/"[^"]*"/g, "…") : message;
  return said.replace(/\s+/g, " ").replace(/\.$/, "");
}

/** Says on stderr when the store gets out of reach, with the cause, and when it is back. */
async function watch<Result>(kind: Kind, asked: Promise<Result>) {
  try {
    const answer = await asked;
    if (outages.delete(kind)) errors.print(`${kind} are served again.`);
    return answer;
  } catch (error) {
    if (isOutOfReach(error) && !outages.has(kind) && !closing.signal.aborted) {
      outages.add(kind);
      errors.print(`${kind} get 503: ${causeOf(error)}.`);
    }
    throw error;
  }
}
type Kind = "Reads" | "Writes";
const outages = new Set<Kind>();

// ── Docs ── at /swagger, whole from this server: a classroom may have no network ─────────────────

// @ts-expect-error: TypeScript has no type for a file.
import icon from "swagger-ui-dist/favicon-32x32.png" with { type: "file" };
// @ts-expect-error
import script from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
// @ts-expect-error
import style from "swagger-ui-dist/swagger-ui.css" with { type: "file" };

function docs() {
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
  const documentation = {
    info,
    ...(TOKEN ? secured : { security: [] }),
  };
  return new Elysia({ detail: { hide: true } })
    .onAfterHandle(completeDocument)
    .use(swagger({ documentation }))
    .get(
      "/",
      ({ set }) => {
        set.status = 302;
        set.headers.location = "swagger"; // relative, so that it holds under a prefix
      },
      { response: { 302: t.Void() } },
    )
    .get(
      "/swagger",
      partOf("text/html", () => HTML),
    )
    .get(
      "/swagger/ui.js",
      partOf("text/javascript", async () => (await read(script)) + SCRIPT),
    )
    .get(
      "/swagger/ui.css",
      partOf("text/css", async () => (await read(style)) + STYLE),
    )
    .get(
      "/favicon.ico",
      partOf("image/png", () => Bun.file(icon).bytes()),
    );
}
const read = (file: string) => Bun.file(file).text();

/** A part of the page: made at its first use, and kept, so that a thousand slow clients share it. */
function partOf(type: string, make: () => Content | Promise<Content>) {
  let made: Promise<{ content: Content; tag: string }> | undefined;
  return async ({ request, set }: Exchange) => {
    made ??= (async () => {
      const content = await make();
      return { content, tag: entityTag(content) };
    })();
    const { content, tag } = await made;
    const refused = checkConditions({ request, set }, tag);
    if (refused) return refused;

    set.status = 200;
    set.headers.etag = tag;
    set.headers["content-security-policy"] = POLICY;
    return new Response(content, { headers: { "content-type": type } });
  };
}
type Content = string | Uint8Array<ArrayBuffer>; // not a file: of that, Bun would serve a Range
const POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'";

// The plugin's own page loads a script from elsewhere. This one asks only where it was loaded from,
// also behind a proxy, and can be read from the last row, in any light and on a telephone.
const HTML = `<!doctype html><html lang=en><meta charset=utf-8><title>Items</title>
  <meta name=viewport content="width=device-width"><link rel=icon href=favicon.ico>
  <link rel=stylesheet href=swagger/ui.css><div id=ui></div><script src=swagger/ui.js></script>`;
const SCRIPT = `\n  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark-mode", isDark);
  const named = (name) => (Base, { React }) => (props) =>
    React.createElement(Base, { ...props, "aria-label": name });
  const wrapComponents = { Button: named(), TextArea: named("Request body") };
  const here = new URL(".", location).href.replace(/\\/$/, "");
  fetch("swagger/json").then((answer) => answer.json()).then((document) => SwaggerUIBundle({
    spec: { ...document, servers: [{ url: here }] },
    dom_id: "#ui",
    plugins: [{ wrapComponents }],
  }));`;
const STYLE = `.swagger-ui {
  .response .response-col_status { font-size: min(40px, 7vw); min-width: 0; padding-right: 12px }
  h4, .authorize, .cancel, .parameter__in, .headers *, .property { color: CanvasText !important }
  .info a { color: LinkText !important }
  .opblock-summary .opblock-summary-method, .btn.execute { color: #000; text-shadow: none }
  .renderedMarkdown, .header-col, pre { overflow-wrap: anywhere }
  pre code { white-space: pre-wrap !important; word-break: normal !important } }`;

type Operation = {
  parameters?: { in: string; name: string; description?: string; schema: object }[];
  requestBody?: { content: Record<string, unknown> };
  responses: Record<string, { content?: Record<string, unknown>; description: string }>;
  security?: unknown[];
};
type Document = { paths: Record<string, Record<string, Operation>> };

/** The document, with what the plugin cannot say; its address is the one that it was asked at. */
function completeDocument({
  path,
  request,
  responseValue,
  set,
}: Context & { responseValue: unknown }) {
  if (path !== "/swagger/json") return undefined;
  const servers = [{ url: new URL(request.url).origin }];
  const document = { ...structuredClone(responseValue as Document), servers };
  for (const methods of Object.values(document.paths))
    for (const [method, operation] of Object.entries(methods)) complete(method, operation);
  const tag = entityTag(document);
  const refused = checkConditions({ request, set }, tag);
  if (refused) return refused;

  set.status = 200;
  set.headers.etag = tag;
  return document;
}

function complete(method: string, operation: Operation) {
  const json = "application/json";
  const fields = [
    [412, "If-Match", "what ETag said, or * for whatever is there"],
    [412, "If-None-Match", "what ETag said, or * for whatever is there"],
    [REHEARSE ? 500 : 0, "Prefer", "the answer to rehearse, like code=503"],
  ] as const;
  operation.parameters ??= [];
  for (const { name, schema } of operation.parameters)
    if (name === "limit") Object.assign(schema, { type: "integer", pattern: undefined });
  for (const [status, name, description] of fields)
    if (operation.responses[status])
      operation.parameters.push({ in: "header", name, description, schema: { type: "string" } });

  const { requestBody } = operation;
  if (requestBody) requestBody.content = { [json]: requestBody.content[json] };
  if (requestBody && method === "patch")
    requestBody.content["application/merge-patch+json"] = requestBody.content[json];

  if (method === "get" && !READ_TOKEN) {
    operation.security = [];
    delete operation.responses[401];
  }
  for (const [status, response] of Object.entries(operation.responses)) {
    response.description += `\n\n${why[Number(status)]}`;
    if (response.content) response.content = { [json]: response.content[json] };
  }
}

// ── Log ── one line a request, with the status that went out; each code seen first is collected ──

const found = new Set<number>();
let lastCause = "";

async function logAnswer(request: Request, address: string, response: Response, time: number) {
  const { headers, status } = response;
  // Asking has a price, so a client that went away within ten milliseconds may be missed.
  const isGone = (status >= 400 || time > 10) && request.signal.aborted;
  const code = isGone ? "gone" : `${status}`;
  const colour = [31, 31, 32, 36, 33, 31][Math.floor(status / 100)];
  const isNew = codes.has(status) && !found.has(status) && !headers.has("preference-applied");
  const star =
    isTerminal && isNew && !isGone ? `  ★ ${found.add(status).size} of ${codes.size}` : "";
  const hasReason = status >= 400 && !isGone && request.method !== "HEAD";
  const body = hasReason ? await response.clone().text() : "";
  const reason = body.replace(/^\{"error":"(.*)"\}$/s, "  $1");
  const coloured = isTerminal && !Bun.env.NO_COLOR ? `\x1b[${colour}m${code}\x1b[0m` : code;
  const path = printable(request.url.replace(/^https?:\/\/[^/]*|[?#].*/gs, ""));
  const line = `${coloured}  ${request.method}  ${path}  ${time.toFixed(1)} ms${star}${reason}`;
  out.print(isTerminal ? line : `${new Date().toISOString()}  ${address}  ${line}`);
}

/** Prints what was not expected: whole, but only a line where it is the same as the last one. */
function logError(request: Request, path: string, error: unknown) {
  const cause = error instanceof Error ? (error.stack ?? error.message) : String(error);
  const isSame = cause === lastCause;
  lastCause = cause;
  errors.print(`${request.method} ${printable(path)}: ${isSame ? "the same once more" : cause}`);
}

/** A text of a client's as a terminal may have it: visible ASCII, and not too long. */
function printable(text: string) {
  return text
    .toWellFormed()
    .replace(/[^!-~]/gu, encodeURIComponent)
    .slice(0, 1200);
}

/** Prints lines to a file, together; where nobody reads them it keeps some, and counts the others. */
function openPrinter(file: BunFile) {
  const writer = file.writer();
  const lines: string[] = [];
  let [lost, written] = [0, Promise.resolve()];

  async function write() {
    const all = lines.splice(0);
    if (lost > 0) all.push(`… and ${lost} lines more\n`);
    lost = 0;
    writer.write(all.join(""));
    await writer.flush();
  }
  const flush = () => (written = written.then(write));
  function print(line: string) {
    if (lines.length === 1000) lost += 1;
    else if (lines.push(`${line}\n`) === 1) setTimeout(flush, 10); // a write costs more than a line
  }
  return { flush, print };
}
const [out, errors] = [openPrinter(Bun.stdout), openPrinter(Bun.stderr)];

// ── Settings ── from the environment or .env; one that makes no sense ends the start ─────────────

type Test = (text: string) => boolean;
const rules: Record<string, string> = {};
const isLike = (pattern: RegExp) => (text: string) => pattern.test(text);
const isUpTo = (most: number) => (text: string) => /^\d{1,6}$/.test(text) && Number(text) <= most;
const isListOf = (isOne: Test) => (text: string) =>
  listOf(text).length > 0 && listOf(text).every(isOne);
const listOf = (text: string): string[] => text.toLowerCase().match(/[^\s,]+/g) ?? [];
const isHostName = (text: string) =>
  URL.parse(`http://${text}`)?.hostname === text && /^(\w[\w-]{0,62}(\.|$))+$|^\[/.test(text);
const isOrigin = (text: string) => {
  const { hostname = "", origin, port } = URL.parse(text) ?? {};
  return text === "*" || (origin === text && isHostName(hostname) && port !== "0");
};
// What SQLite takes for something else than a file's name is none.
const FILE = /^sqlite:\/\/(:memory:|(?!file:|:|\s)[^?#]*[^?#\s])$/; // sqlite://items.sqlite
function isStore(text: string) {
  if (!/^postgres(ql)?:/.test(text)) return FILE.test(text);
  try {
    return new SQL(text) !== undefined; // which connects to nothing yet
  } catch {
    return false;
  }
}
const isWord = isLike(/^[!-~]+$/);
const WORD = "visible ASCII characters without a space";
const STORE = "one that opens: sqlite://FILE, sqlite://:memory: or postgres://USER@HOST/DATABASE";
const isTerminal = process.stdout.isTTY;

await checkEnvFiles();
const PORT = setting("PORT", "3000", "a free port from 0 to 65535", isUpTo(65_535));
const HOST = setting(
  "HOST",
  "127.0.0.1",
  "an address of this machine",
  isLike(/^[\w.:-]+$|^\[[\w:.]+\]$/),
);
const DATABASE_URL = setting("DATABASE_URL", "sqlite://items.sqlite", STORE, isStore);
const TOKEN = setting("TOKEN", "", WORD, isWord);
const READ_TOKEN = setting(
  "READ_TOKEN",
  "",
  `${WORD}, beside TOKEN and unlike it`,
  (text) => isWord(text) && TOKEN !== "" && text !== TOKEN,
);
const ALLOWED_HOSTS = listOf(
  setting("ALLOWED_HOSTS", "", "hosts without a port", isListOf(isHostName)),
);
const CORS_ORIGIN = listOf(
  setting("CORS_ORIGIN", "", "* or origins like http://a.test:81", isListOf(isOrigin)),
);
const RATE = Number(setting("RATE", "0", "a whole number up to 999999", isUpTo(999_999)));
const DELAY = Number(
  setting("DELAY", "0", "a whole number of milliseconds up to 25000", isUpTo(25_000)),
);
const REHEARSE = setting("REHEARSE", "0", "0 or 1", isLike(/^[01]$/)) === "1";
const LOG = setting("LOG", isTerminal ? "on" : "off", "on or off", isLike(/^(on|off)$/)) === "on";
if (import.meta.main && process.argv.length > 2) printSettings();

/** The text of a setting; an empty one is none, but for a token: whoever sets it wants a lock. */
function setting(name: string, fallback: string, rule: string, isFine: Test) {
  rules[name] = rule;
  const text = Bun.env[name];
  if (text === undefined || (text === "" && !name.endsWith("TOKEN"))) return fallback;
  return isFine(text) ? text : refuse(name, text);
}
const isSecret = (name: string) => /TOKEN$|^DATABASE_URL$/.test(name);

/** Ends the start with exit code 1 and one sentence on stderr, which holds no secret. */
function refuse(
  name: string,
  text: string,
  cause = text === "" ? "it is set, but empty" : "",
): never {
  const is = isSecret(name) ? "" : `is ${JSON.stringify(text)}, but `;
  return quit(`${name} ${is}may only be ${rules[name]}${cause && ` (${cause})`}.`);
}

function quit(sentence: string): never {
  console.error(sentence);
  process.exit(1);
}

/** Bun passes over a .env that is no UTF-8, such as PowerShell's > writes, without a word. */
async function checkEnvFiles() {
  for (const name of [".env", ".env.local", `.env.${Bun.env.NODE_ENV ?? "development"}`]) {
    const isThere = await Bun.file(name).exists();
    const text = isThere ? Buffer.from(await Bun.file(name).bytes()) : Buffer.from("");
    if (!isUtf8(text) || text.includes(0)) quit(`${name} may only be text in UTF-8.`);
  }
}

/** There are no options: any argument prints the settings and what each may be. */
function printSettings(): never {
  const isCompiled = /\$bunfs|~BUN/.test(Bun.main);
  const program = isCompiled ? `./${basename(process.execPath)}` : `bun ${basename(Bun.main)}`;
  const lines = Object.entries(rules).map(([name, rule]) => `  ${name.padEnd(14)}${rule}`);
  console.log(
    `Settings are in the environment or in .env: PORT=3001 ${program}\n\n${lines.join("\n")}`,
  );
  process.exit(/^(-h|--help)$/.test(process.argv[2] ?? "") ? 0 : 1);
}

// ── Start ── open the store, listen, say where; at the end answer what is in flight ──────────────

const [closing, leaving] = [new AbortController(), new AbortController()];
const NAME = hostname().toLowerCase();
const HERE = new Set(["localhost", HOST.toLowerCase(), NAME, `${NAME}.local`, ...ALLOWED_HOSTS]);
const IDLE_TIME = 150; // seconds; proxies keep a connection for 60 to 120
if (RATE > 0) setInterval(() => counts.clear(), 1000).unref();

const file = FILE.exec(DATABASE_URL)?.[1];
const store = openStore();
const pages = docs();
const VARY = ["Accept", ...(CORS_ORIGIN.includes("*") ? [] : ["Origin"]), ...(REHEARSE ? ["Prefer"] : [])];
export const app = new Elysia({
  normalize: false,
  strictPath: true,
  systemRouter: false, // or two routers look at a path
  handler: { standardHostname: false }, // or they do not see it behind a short Host
})
  .headers({ "cache-control": "no-cache", "x-content-type-options": "nosniff", vary: VARY.join(", ") })
  .wrap(send)
  .onRequest(checkGuards)
  .onError(answerError)
  .use(await routesOfItems())
  .use(pages);

/** The type of the app, for Elysia's client: `treaty<App>("127.0.0.1:3000")`. */
export type App = typeof app;

const METHODS = new Set(["HEAD", "OPTIONS", ...app.routes.map(({ method }) => method)].sort());
const OPEN = new Set(pages.routes.map(({ path }) => path));
const documented = app.routes.flatMap(({ hooks }) => Object.keys(hooks.response ?? {}).map(Number));
const codes = new Set([...guards.map(([status]) => status), ...documented].filter(isPossible));
if (import.meta.main) await listen();

function openStore() {
  try {
    return file ? openSqlite(file) : openPostgres(DATABASE_URL);
  } catch (error) {
    return refuse("DATABASE_URL", DATABASE_URL, causeOf(error));
  }
}

async function listen() {
  const host = HOST.replace(/^\[|\]$/g, "");
  // A name that is none has an error of its own only here.
  await lookup(host).catch(() => refuse("HOST", HOST));
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
    if (/ADDRNOTAVAIL|NOTFOUND|INVAL/.test(codeOf(error))) refuse("HOST", HOST);
    refuse("PORT", PORT, /ACCES/.test(codeOf(error)) ? "only root may take it" : "it is in use");
  }

  const address = `http://${reachableName(host)}:${app.server?.port}`;
  const kept = Bun.env.DATABASE_URL
    ? "as DATABASE_URL has it"
    : `${file}; to start over, stop and delete it`;
  const names = Object.keys(rules).filter((name) => Bun.env[name]);
  const set = names.map((name) => (isSecret(name) ? name : `${name}=${Bun.env[name]}`));
  out.print(`Items  ${address}\nDocs   ${address}/swagger\nStore  ${kept}`);
  if (set.length > 0) out.print(`With   ${set.join(" ")}`);
  if (!/^(127\.|localhost$|::1$)/i.test(host) && !TOKEN)
    out.print("Warning: other machines can write here. Set TOKEN to keep them out.");
  process.on("SIGINT", stop).on("SIGTERM", stop);
  process.on("disconnect", stop); // where a parent has opened a channel, it ends with the parent
}

/** An address that a person can open: of all interfaces, one that others in the room can reach. */
function reachableName(host: string) {
  if (!/^(0\.0\.0\.0|::)$/.test(host)) return host.replace(/.*:.*/, "[$&]");
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  return all.find(({ family, internal }) => family === "IPv4" && !internal)?.address ?? "localhost";
}

/** Takes nothing new, answers what is in flight, closes the store. A second signal ends at once. */
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
  const missing = [...codes.difference(found)].sort().join(" ");
  if (LOG && isTerminal) out.print(missing ? `Still to be found: ${missing}` : "All were found.");
  await Promise.all([out.flush(), errors.flush()]);
  process.exit(0);
}
