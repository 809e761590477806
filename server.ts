/**
 * Items: one file, every HTTP status code, none of them faked.
 *
 *     bun server.ts      run it, then open the address that it prints
 *     bun test           start it on a free port and ask it everything
 *     /swagger           read about it and try it out, without a network
 *
 * What matters most stands first: what an item is, the routes, the answers that they share. In a
 * route each outcome is a paragraph: the question, why this code and not its neighbour,
 * `set.status`, the answer. A status is a promise to the client, so it is a number that stands
 * where it is decided. The rest are notes to that chapter, and Start, at the very end, puts all
 * together. A § is a section of RFC 9110, HTTP Semantics.
 */
import { swagger } from "@elysiajs/swagger";
import { SQL } from "bun";
import { Database } from "bun:sqlite";
import { type Context, Elysia, ParseError, t, type TSchema, ValidationError } from "elysia";
import { timingSafeEqual } from "node:crypto";
import { write } from "node:fs";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";

// ── Item ── what is kept, the rule of each member, and how an item looks on the wire ─────────────

const ANY = String.raw`[^\x00-\x1f\x7f-\x9f]`; // any character except a control character (Cc)
const Item = t.Object({
  id: t.String({
    ...rule("id must be 1 to 128 characters, none of them a control character, and not . or .."),
    pattern: String.raw`^(\.?[^.\x00-\x1f\x7f-\x9f]|\.\.${ANY})${ANY}*$`,
    maxLength: 128,
    example: "3",
  }),
  name: t.String({
    ...rule("name must be 1 to 1024 characters, none of them a control character"),
    pattern: `^${ANY}+$`,
    maxLength: 1024,
    example: "cherry",
  }),
});
type Item = typeof Item.static;

/** What is there at the beginning. */
const seed: Item[] = [
  { id: "1", name: "apple" },
  { id: "2", name: "banana" },
];

/** One item on the wire: the lesson wants the name itself. A list shows all members. */
const represent = ({ name }: Item) => ({ item: name });
const Representation = { item: Item.properties.name };

// ── Routes ── the question, why this code and not its neighbour, set.status, the answer ──────────

function routes() {
  return new Elysia({ normalize: false })
    .guard({ response: shared(421, 429, 500, 503) })

    .get(
      "/items",
      async ({ query: { after = "", name, ...query }, request, set }) => {
        const limit = Number(query.limit ?? 20);
        const found = await store.read(page(after, limit + 1, name));
        const items = found.slice(0, limit);
        const next = found.length > limit ? linkAfter(items.at(-1), request) : "";
        const tag = etag([items, next]);
        const refused = whyNot({ request, set }, tag);
        if (refused) return refused;

        set.status = 200;
        set.headers.etag = tag;
        if (next) set.headers.link = next;
        return { items };
      },
      {
        beforeHandle: [unambiguous, acceptable],
        query: Page,
        ...about("listItems", "List items", "Page through the items by id, 20 or limit a page."),
        response: {
          200: t.Object({ items: t.Array(Item) }, when("The items of this page", "ETag", "Link")),
          400: refusal([LIMIT_RULE, QUERY_RULE, ...said(400)]),
          ...shared(304, 401, 406, 412),
        },
      },
    )

    .post(
      "/items",
      async ({ body, path, request, set }) => {
        const { before, after } = await replace({ request, set }, body.id, body);

        // 400, not 409: the lesson that this server keeps to says so.
        if (before) {
          set.status = 400;
          return { error: "Item already exists" };
        }

        // 201, not 200: Location names something that was not there before.
        set.status = 201;
        set.headers.location = `${path}/${encodeURIComponent(body.id)}`;
        set.headers.etag = after;
        return { message: "Item created" };
      },
      {
        ...TAKES_JSON,
        body: NewItem,
        ...about("createItem", "Create an item", "Create an item under an id that is still free."),
        response: {
          201: t.Object(Created, when("The id was free", "ETag", "Location")),
          400: refusal([NOT_JSON, ruleOf(NewItem), "Item already exists", ...said(400)]),
          ...shared(401, 403, 406, 413, 415, 422),
        },
      },
    )

    .guard({ params: Path })
    .get(
      "/items/:id",
      async ({ params, request, set }) => {
        const [item] = await store.read(find(params.id));
        const tag = item && etag(represent(item));
        const refused = whyNot({ request, set }, tag);
        if (refused || !item) return refused;

        set.status = 200;
        set.headers.etag = tag;
        return represent(item);
      },
      {
        beforeHandle: acceptable,
        ...about("getItem", "Get an item", "Read one item, or ask whether it has changed."),
        response: {
          200: t.Object(Representation, when("The item exists", "ETag")),
          ...shared(304, 400, 401, 404, 406, 412),
        },
      },
    )

    .put(
      "/items/:id",
      async ({ body, params, path, request, set }) => {
        // 422, not 404: on this path an item would be created.
        if (!isId(params.id)) {
          set.status = 422;
          return { error: ruleOf(Item.properties.id) };
        }

        const { refused, before, after } = await replace({ request, set }, params.id, body);
        if (refused) return refused;

        set.headers.etag = after;

        // 201: PUT creates what is not there yet (§9.3.4).
        if (!before) {
          set.status = 201;
          set.headers.location = path;
          return { message: "Item created" };
        }

        set.status = 200;
        return { message: "Item updated" };
      },
      {
        ...TAKES_JSON,
        body: WholeItem,
        ...about("putItem", "Replace an item", "Put an item in its place, or create it there."),
        response: {
          200: t.Object(Updated, when("The item existed", "ETag")),
          201: t.Object(Created, when("The item did not exist", "ETag", "Location")),
          400: refusal([NOT_JSON, ruleOf(WholeItem), ...said(400)]),
          ...shared(401, 403, 406, 409, 412, 413, 415, 422),
        },
      },
    )

    .patch(
      "/items/:id",
      async ({ body, params, request, set }) => {
        const { refused, after } = await replace({ request, set }, params.id, body);
        if (refused) return refused;

        set.status = 200;
        set.headers.etag = after;
        return { message: "Item updated" };
      },
      {
        ...TAKES_JSON,
        body: Patch,
        ...about("patchItem", "Change an item", "Change what the merge patch (RFC 7396) names."),
        response: {
          200: t.Object(Updated, when("The item existed", "ETag")),
          400: refusal([NOT_JSON, ruleOf(Patch), ...said(400)]),
          ...shared(401, 403, 404, 406, 409, 412, 413, 415, 422),
        },
      },
    )

    .delete(
      "/items/:id",
      async ({ params, request, set }) => {
        const { refused } = await replace({ request, set }, params.id);
        if (refused) return refused;

        // 204, not 200: there is nothing left to show.
        set.status = 204;
      },
      {
        ...about("deleteItem", "Delete an item", "Delete an item for good."),
        response: { 204: t.Void(when("The item existed")), ...shared(400, 401, 403, 404, 412) },
      },
    );
}

// ── Shared answers ── 404, 304, 412 and 409 mean the same on every route ─────────────────────────

type Exchange = Pick<Context, "request" | "set">;

/** The answer if something is in the way; `tag` is the entity tag of what is there, if anything. */
function whyNot({ request, set }: Exchange, tag?: string, isClash = false) {
  // 404 before 412: there is nothing whose state a condition could name. PUT would create it.
  if (!tag && request.method !== "PUT") {
    set.status = 404;
    return { error: "Item not found" };
  }

  const failed = failedCondition(request, tag);

  // 304, not 412: nothing went wrong, the client has it already (§13.1.2).
  if (failed === "If-None-Match" && !isWrite(request)) {
    set.status = 304;
    set.headers.etag = tag;
    return new Response(null, { status: 304 }) as never; // without a body, it has no schema
  }

  // 412, not 409: the client itself has set the condition.
  if (failed) {
    set.status = 412;
    return { error: "If-Match or If-None-Match does not hold" };
  }

  // 409, not 422: both ids are fine, but they do not agree.
  if (isClash) {
    set.status = 409;
    return { error: "The id of the body must be that of the path" };
  }
}

/** The condition (§13.2.2) that fails for an entity tag, or for nothing at all. */
function failedCondition({ headers }: Request, tag?: string) {
  const [match, noneMatch] = [headers.get("if-match"), headers.get("if-none-match")];
  const names = (all: string) => tag && (all === "*" || listed(all).includes(tag));
  if (match !== null && !names(match)) return "If-Match";
  if (noneMatch !== null && names(noneMatch.replaceAll('W/"', '"'))) return "If-None-Match";
}

/** The entity tags of a list; none where it is malformed, so that nothing is written. */
function listed(all: string): string[] {
  const rest = all.replace(TAGS, "\0").replace(/\s/g, "");
  return /^,*\0(,+\0)*,*$/.test(rest) ? (all.match(TAGS) ?? []) : [];
}
const TAGS = /(W\/)?"[^"]*"/g;

/** The entity tag (§8.8.3) of a representation: a digest, so a strong validator. */
const etag = (content: object) => `"${Bun.SHA256.hash(JSON.stringify(content), "base64")}"`;

function linkAfter(item: Item | undefined, { url }: Request) {
  const next = new URL(url);
  next.searchParams.set("after", item?.id ?? "");
  return `<${next.pathname}${next.search}>; rel="next"`;
}

// Creates an item, changes it (PATCH), puts `body` in its place, or deletes it (no `body`). If
// another write came first, nothing is written and all is asked again. Gives the refusal, or the
// entity tags of what was there before and of what is there after.
async function replace({ request, set }: Exchange, id: string, body?: Partial<Item>) {
  const isClash = body?.id !== undefined && body.id !== id;
  const isNew = request.method === "POST";
  for (let tries: string[] = []; ;) {
    // What is new is written without a look: mostly, nothing is there.
    const [found] = isNew && tries.length === 0 ? [] : await store.read(find(id));
    const before = found && etag(represent(found));
    if (found && isNew) return { before };
    const refused = isNew ? undefined : whyNot({ request, set }, before, isClash);
    if (refused) return { refused };

    const item = { ...(request.method === "PATCH" && found), ...body, id } as Item;
    const write = !found ? insert(item) : body ? update(item, found) : remove(found);
    const [written] = await store.write(write);
    if (written) return { before, after: etag(represent(written)) };

    // Found the same four times, it is no race: something is in the way of the write.
    const same = JSON.stringify(found ?? id);
    tries = tries[0] === same ? [...tries, same] : [same];
    if (tries.length === 4) throw Error(`${same} cannot be written: look for ${OBSTACLE}`);
  }
}
const OBSTACLE = "a trigger, a policy, another unique index, or text that is not UTF-8";

// ── Guards ── what is asked of every request, in the order of the protocol ───────────────────────

/** What guards look at: `path` is the router's own, `host` undefined without Host or with two. */
type Asked = ReturnType<typeof look>;
type Guard = [status: number, sentence: string, applies: (asked: Asked) => boolean];

const BODY_LIMIT = 65_536; // bytes
const TOO_LARGE = `The body must be at most ${BODY_LIMIT} bytes`;
const guards: Guard[] = [
  // 503, not a closed connection: the client learns that it may come back.
  [503, "The server is shutting down", () => closing.signal.aborted],
  // §7.2: without a Host, nobody knows whom the request is for.
  [400, "Host must be given once, as host or host:port", ({ host }) => host === undefined],
  // 421 ends DNS rebinding: a page that gave its own name this address is still not let in.
  [421, "Host must be this machine or one of ALLOWED_HOSTS", ({ host }) => !isHere(host ?? "")],
  // 501, not 405: no path of this server has the method.
  [501, "This server does not have this method", ({ method }) => !METHODS.has(method)],
  // Decoded with loss, it would name another item than the one that was meant.
  [400, "The target must be percent-encoded UTF-8 without a fragment", ({ url }) => !isTarget(url)],
  // 429, not 503: it is this client that has to wait, not all.
  [429, "Too many requests in this second", (asked) => RATE > 0 && hit(asked) > RATE],
  // 404, not 400: the target is well-formed, but it names nothing.
  [404, "No such path", (asked) => !isRouted(asked) && allowed(asked).length === 1],
  // 405, not 404: the path is right, and Allow says what can be done with it.
  [405, "This path does not have this method", (asked) => !isRouted(asked) && !isOptions(asked)],
  // §9.3.7: what can be done here? A preflight of CORS asks the same.
  [204, "OPTIONS on a known path", (asked) => isOptions(asked)],
  // 401, not 403: with another token the request would go through.
  [401, "A bearer token that this server knows is required", (asked) => isStranger(asked)],
  // 403, not 401: the server knows this token, and it is not enough.
  [403, "The read token may not write", (asked) => isWrite(asked) && rights(asked) === "read"],
  // JSON only: a form or text/plain is what a page of any origin sends without asking.
  [415, "Content-Type must be JSON in UTF-8", (asked) => hasBody(asked) && !isJson(asked)],
  // What is small but unpacks to something large would slip through the limit below.
  [415, "Content-Encoding must be identity", (asked) => hasBody(asked) && isEncoded(asked)],
  // A size that is said is believed, and nothing is read; a chunked body is counted further down.
  [413, TOO_LARGE, (asked) => hasBody(asked) && sizeOf(asked) > BODY_LIMIT],
];

/** The fields that a status owes the client: what to send instead, or when to come back. */
const owed: Record<number, (asked: Asked) => Record<string, string>> = {
  204: (asked) => ({ allow: allowed(asked).join(", ") }),
  401: ({ headers }) => challenge(headers.has("authorization") ? ', error="invalid_token"' : ""),
  403: () => challenge(', error="insufficient_scope"'),
  405: (asked) => ({ allow: allowed(asked).join(", ") }),
  415: (asked) => ({ accept: mediaTypes(asked).join(", "), "accept-encoding": "identity" }),
  429: () => IN_A_SECOND,
  503: () => IN_A_SECOND,
};
const IN_A_SECOND = { "retry-after": "1" };
const challenge = (error: string) => ({ "www-authenticate": `Bearer realm="items"${error}` });

function guarded({ path = "", request, set }: Exchange & { path?: string }) {
  const asked = look(request, path);
  letIn({ request, set });
  const first = guards.find(([, , applies]) => applies(asked));
  const [status = toRehearse(asked), error = REHEARSED] = first ?? [];
  if (!status) return;
  drop(request);
  Object.assign(set.headers, owed[status]?.(asked));
  if (!first) set.headers["preference-applied"] = `code=${status}`;
  set.status = status;
  return status === 204 ? new Response(null, { status }) : { error };
}

function look(request: Request, path: string) {
  const { headers, method, url } = request;
  const host = headers.get("host")?.includes(",") ? undefined : URL.parse(url)?.hostname;
  return { headers, host, method, path, request, url };
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

function hit({ request }: Asked) {
  const client = app.server?.requestIP(request)?.address ?? "";
  return hits.set(client, (hits.get(client) ?? 0) + 1).get(client) ?? 0;
}
const hits = new Map<string, number>(); // in this second
// The router itself is asked, so that it and the guards cannot differ about a path (§10.2.1).
const has = (path: string, method: string) =>
  app.router.static[path]?.[method] !== undefined || app.router.http.find(method, path) !== null;
const isRouted = ({ method, path }: Asked) => has(path, method === "HEAD" ? "GET" : method);
const isOptions = ({ method }: Asked) => method === "OPTIONS";
const allowed = (asked: Asked) =>
  [...METHODS].filter((method) => method === "OPTIONS" || isRouted({ ...asked, method }));

/** What the token of a request allows. Digests are compared, in constant time. */
function rights({ headers }: Asked) {
  const given = /^bearer +(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1] ?? "";
  const is = (token: string) => timingSafeEqual(Bun.SHA256.hash(given), Bun.SHA256.hash(token));
  if (!TOKEN || is(TOKEN)) return "write";
  return READ_TOKEN && is(READ_TOKEN) ? "read" : "none";
}

const isWrite = ({ method }: Asked | Request) => method !== "GET" && method !== "HEAD";
// The docs are open. What is not one of them is guarded, whatever its path.
const isStranger = (asked: Asked) =>
  (isWrite(asked) || (READ_TOKEN !== "" && !OPEN.has(asked.path))) && rights(asked) === "none";
const hasBody = ({ method }: Asked) => method.startsWith("P");
const sizeOf = ({ headers }: Asked | Request) => Number(headers.get("content-length") ?? NaN);
const isEncoded = ({ headers }: Asked) =>
  !/^(identity)?$/i.test(headers.get("content-encoding") ?? "");
const mediaTypes = ({ method }: Asked) =>
  method === "PATCH" ? ["application/merge-patch+json", "application/json"] : ["application/json"];

function isJson(asked: Asked) {
  const field = asked.headers.get("content-type")?.toLowerCase() ?? "";
  const [type = "", ...parameters] = field.split(";").map((each) => each.trim());
  const isUtf8 = parameters.every((each) => /^(?!charset\s*=)|^charset="?utf-8"?$/.test(each));
  return mediaTypes(asked).includes(type) && isUtf8;
}

/** Lets pages of this machine, and of CORS_ORIGIN, read the answer, a refusal too. */
function letIn({ request, set }: Exchange) {
  const origin = request.headers.get("origin");
  if (!origin || CORS_ORIGIN.includes("*")) return;
  if (CORS_ORIGIN.includes(origin) || LOCAL_PAGE.test(origin))
    Object.assign(set.headers, CORS, { "access-control-allow-origin": origin });
}
const LOCAL_PAGE = /^https?:\/\/(([\w-]+\.)*localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/;
const CORS = {
  "access-control-allow-origin": "*",
  "access-control-allow-headers": "*, Authorization",
  "access-control-allow-methods": "*",
  "access-control-expose-headers": "*",
};

/** `Prefer: code=503` (RFC 7240): a front end may rehearse how the server fails. */
const toRehearse = ({ headers }: Asked) =>
  REHEARSE && Number(/(?:^|[,;])\s*code="?([45]\d\d)\b/i.exec(headers.get("prefer") ?? "")?.[1]);
const REHEARSED = "Rehearsed, because Prefer asks for it";

// ── Body and errors ── a body is read after all guards, and an exception never says itself ───────

const UTF8 = new TextDecoder("utf-8", { fatal: true });
const NOT_JSON = "The body must be JSON in UTF-8";
const TAKES_JSON = { beforeHandle: acceptable, parse: readJson };

async function readJson({ request, set }: Exchange): Promise<unknown> {
  // 400, not 422: what cannot be read has broken no rule of the items yet.
  set.status = 400;
  const isSmall = sizeOf(request) <= BODY_LIMIT;
  const bytes = isSmall ? await request.bytes() : await readCounted(request);
  if (bytes) return parsed(UTF8.decode(bytes));

  // 413, not 400: it may well be JSON.
  drop(request);
  set.status = 413;
  throw Error(TOO_LARGE);
}

/** The bytes of a body whose length is not said, or is said twice; nothing if they are too many. */
async function readCounted({ body }: Request) {
  const bytes = new Bun.ArrayBufferSink();
  let size = 0;
  for await (const chunk of body?.values({ preventCancel: true }) ?? []) {
    size += bytes.write(chunk);
    if (size > BODY_LIMIT) return undefined;
  }
  return bytes.end();
}

/** Reads the rest of a body and drops it: who is cut off while sending never sees the answer. */
const drop = ({ body }: Request) => void body?.pipeTo(new WritableStream()).catch(() => {});

/** What a text is as JSON. A lone surrogate becomes U+0000, which no rule allows in a text. */
const parsed = (text: string): unknown =>
  JSON.parse(text.replace(ESCAPES, (escape, half) => (half ? "\\u0000" : escape)));
const ESCAPES = /\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)/g;

/** Whether each member of the query of a list is there once. */
function unambiguous({ request, set }: Exchange) {
  if (!request.url.includes("&")) return;
  const { searchParams } = new URL(request.url);
  if (new Set(searchParams.keys()).size === searchParams.size) return;
  // 400, not the last of them: nobody knows which was meant.
  set.status = 400;
  return { error: QUERY_RULE };
}

/** Whether the client takes what the route answers; asked after the body, before the store. */
function acceptable({ request, set }: Exchange) {
  const accept = request.headers.get("accept") || "*/*";
  if (accept === "*/*") return; // as most say: the rest costs reads a twentieth
  // The most specific range decides (§12.5.1).
  const ranges = accept.toLowerCase().replace(/\s/g, "").split(",");
  const byType = (type: string) => ranges.find((each) => each.split(";")[0] === type);
  const range = byType("application/json") ?? byType("application/*") ?? byType("*/*");
  if (range && !/;q=0(\.0*)?(;|$)/.test(range)) return;
  // 406, not JSON all the same: the client said that it could not use it.
  set.status = 406;
  return { error: "Accept must allow application/json" };
}

/** The answer to what was thrown: a body that cannot be read or breaks a rule, or a failure. */
function failed({ error, path, request, set }: Exchange & { error: unknown; path: string }) {
  // The status was set where the body was read.
  if (error instanceof ParseError) return { error: set.status === 413 ? TOO_LARGE : NOT_JSON };

  const isInvalid = error instanceof ValidationError;
  const { message, path: at = "", schema, value } = (isInvalid && error.valueError) || {};
  if (isInvalid && error.type !== "response") {
    const whole: TSchema = Object(error.validator).schema ?? schema;
    const members = new Map(Object.entries<TSchema>(whole.properties ?? {}));
    const rule = ruleOf(members.get(at.split("/")[1] ?? "") ?? schema ?? whole);

    // 400, not 422: a query is no item, nor is a body that lacks what is required.
    const isNoItem = at === "" || value === undefined;
    if (error.type !== "body" || isNoItem) {
      set.status = 400;
      return { error: isNoItem ? ruleOf(whole) : rule };
    }

    // 422, not 400: it is an item, but for this value.
    set.status = 422;
    return { error: rule };
  }

  // 503, not 500: nothing is broken, and another try may succeed.
  if (isOutOfReach(error)) {
    set.status = 503;
    Object.assign(set.headers, IN_A_SECOND);
    return { error: "The store is busy or out of reach" };
  }

  // What happened is for those who run the server, not for those who use it.
  const what = isInvalid ? `represent and its schema disagree at ${at}: ${message}` : undefined;
  errors.print(`${request.method} ${shown(path)}: ${what ?? Object(error).stack ?? error}`);
  for (const field of ["etag", "link", "location"]) delete set.headers[field];
  set.status = 500;
  return { error: "Server error" };
}

// ── Schemas ── what comes in, what goes out, and when ────────────────────────────────────────────

// In a query all is text: Elysia looks at the pattern, and the document says that it is a number.
const ONE_TO_100 = { pattern: "^([1-9][0-9]?|100)$", multipleOf: 1, minimum: 1, maximum: 100 };
const LIMIT_RULE = "limit must be a whole number from 1 to 100";
const QUERY_RULE = "The query may have limit, after and name, each once";
type Members = Record<string, TSchema>;
const NewItem = bodyOf(Item.properties);
const WholeItem = bodyOf({ ...Item.properties, id: t.Optional(Item.properties.id) });
const Patch = bodyOf(t.Partial(Item).properties);
// What a PATCH leaves out stays as it is, also where a new item would get a default.
for (const member of Object.values<TSchema>(Patch.properties)) delete member.default;
const Path = t.Object({ id: t.String({ description: "the id of the item", example: "1" }) });
const Page = t.Object(
  {
    limit: t.Optional(t.Unsafe<number>(t.String({ ...rule(LIMIT_RULE), ...ONE_TO_100 }))),
    after: t.Optional(t.String({ description: "only items after this id" })),
    name: t.Optional(t.String({ description: "only items with exactly this name" })),
  },
  { additionalProperties: false, error: QUERY_RULE },
);
const Created = { message: t.String({ enum: ["Item created"], example: "Item created" }) };
const Updated = { message: t.String({ enum: ["Item updated"], example: "Item updated" }) };

/** The rule of a member, which the document shows, and a refusal says. */
function rule(error: string) {
  return { description: error, error };
}
const ruleOf = ({ error }: TSchema) => String(error);
const { maxLength = Infinity, pattern = "" } = Item.properties.id;
const isId = (id: string) => id.length <= maxLength && RegExp(pattern).test(id);

/** A body: unknown members are ignored, and the required ones are named where one is missing. */
function bodyOf<Own extends Members>(members: Own) {
  const { required = ["an object"] } = t.Object<Members>(members);
  const named = Object.entries(members).map(([name, { example }]) => [name, example]);
  const { id, ...others } = Object.fromEntries(named);
  const example = required.includes("id") ? { id, ...others } : others;
  const error = `Bad request, ${required.join(" and ")} required`;
  return t.Object(members, { additionalProperties: true, error, example });
}

/** When an answer is given, for the docs, the README and the tests; and the fields it carries. */
function when(description: string, ...fields: string[]) {
  const schemas = fields.map((name) => [name, { schema: { type: "string", ...examples[name] } }]);
  return { description, headers: Object.fromEntries(schemas) };
}
const examples: Record<string, { example: string }> = {
  ETag: { example: etag(represent(NewItem.example)) },
  Link: { example: '</items?limit=1&after=1>; rel="next"' },
  Location: { example: "/items/3" },
};
const refusal = (sentences: string[], ...fields: string[]) =>
  t.Object({ error: t.String({ enum: sentences }) }, when(sentences.join("; "), ...fields));
const said = (status: number) => guards.flatMap((guard) => (guard[0] === status ? guard[1] : []));
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
  422: refusal(Object.values(Item.properties).map(ruleOf)),
  429: refusal(said(429), "Retry-After"),
  500: refusal(["Server error"]),
  503: refusal([...said(503), "The store is busy or out of reach"], "Retry-After"),
};

/** The outcomes that routes share, without those that these settings rule out. */
function shared<Status extends keyof typeof Shared>(...statuses: Status[]) {
  const possible = statuses.filter(isPossible).map((status) => [status, Shared[status]]);
  return Object.fromEntries(possible) as Pick<typeof Shared, Status>;
}
const isPossible = (status: number) =>
  Boolean({ 401: TOKEN, 403: READ_TOKEN, 429: RATE }[status] ?? true);
const about = (operationId: string, summary: string, description: string) => ({
  detail: { operationId, summary, description, tags: ["items"] },
});

// ── Store ── a 2xx to a write is a promise: it is on the disk before the answer leaves ───────────

// A read is never older than the last write that any process acknowledged. A write is on the disk
// whole or not at all, also where it throws; and it says what it replaces, so it is atomic on every
// engine and between processes. In the SQL, $1 comes before $2: SQLite takes them in order.
type Row = Record<string, unknown>;
type Value = string | number | null;
type Statement = [text: string, ...values: Value[]];

const MEMBERS = Object.entries<TSchema>(Item.properties);
const COLUMNS = MEMBERS.map(([name]) => `"${name}"`);
const places = (first = 1) => COLUMNS.map((_, index) => `$${first + index}`);
const UNCHANGED = (first: number) =>
  `(${COLUMNS}) is not distinct from (${places(first)}) and id = $${first + COLUMNS.length}`;

const CREATE = MEMBERS.map(([name, { type }]) => {
  const constraint = (Item.required as string[]).includes(name) ? "not null" : "";
  const key = name === "id" ? 'collate "C" primary key' : constraint;
  return `"${name}" ${type === "number" ? "double precision" : "text"} ${key}`;
});
// A row of an index of PostgreSQL has at most 2,704 bytes, hence 600 characters of a name. As `id`
// and `name = $2`, it would walk through all ids, or sort all that are alike, without the index.
const INDEX = "create index if not exists items_name on items (substr(name, 1, 600), (id || ''))";
const FIND = `select ${COLUMNS} from items where id = $1`;
const TRIED = `select ${COLUMNS} from items where id in ($1, $2, $3, $4) order by id`;
const PAGE = `select ${COLUMNS} from items where id > $1 order by id limit $2`;
const NAMED = `select ${COLUMNS} from items where substr(name, 1, 600) = substr($1, 1, 600)
  and coalesce(name = $2, false) and id || '' > $3 order by id || '' limit $4`;
const INSERT = `insert into items (${COLUMNS}) values (${places()})
  on conflict (id) do nothing returning ${COLUMNS}`;
const UPDATE = `update items set (${COLUMNS}) = (${places()})
  where ${UNCHANGED(COLUMNS.length + 1)} returning ${COLUMNS}`;
const DELETE = `delete from items where ${UNCHANGED(1)} returning ${COLUMNS}`;

const find = (id: string): Statement => [FIND, id];
const page = (after: string, limit: number, name?: string): Statement =>
  name === undefined ? [PAGE, after, limit] : [NAMED, name, name, after, limit];
const insert = (item: Item): Statement => [INSERT, ...kept(item)];
const update = (item: Item, old: Item): Statement => [UPDATE, ...kept(item), ...kept(old), old.id];
const remove = (item: Item): Statement => [DELETE, ...kept(item), item.id];

/** The members of an item as columns keep them: text and numbers as such, all else as JSON. */
const kept = (item: Row) => MEMBERS.map(([name, { type }]) => column(type, item[name] ?? null));
const column = (type: string, value: unknown) =>
  (value === null || isPlain(type) ? value : JSON.stringify(value)) as Value;

function revived(rows: Row[]) {
  for (const row of rows)
    for (const [name, { type }] of MEMBERS)
      if (row[name] === null) delete row[name];
      else if (!isPlain(type)) row[name] = JSON.parse(String(row[name]));
  return rows as Item[];
}
const isPlain = (type: string) => type === "string" || type === "number";

/** Bun's SQLite. What is asked in one turn of the event loop shares a snapshot, or a commit. */
function sqlite(file: string) {
  type Answer = Omit<PromiseWithResolvers<Item[]>, "promise">;
  type Asked = Answer & { statements: Statement[]; until: number };
  const db = new Database(file);
  db.run("pragma busy_timeout = 2000; pragma journal_mode = wal; pragma synchronous = full");
  db.run("pragma busy_timeout = 0");
  const run = ([text, ...values]: Statement) => revived(db.query(text).all(...values) as Row[]);

  // It begins when all that share it have come: a snapshot from before may miss what they know of.
  function together(begin: string) {
    const waiting: Asked[] = [];
    function transact(asked = waiting.splice(0)) {
      try {
        db.query(begin).run();
        const rows = asked.map(({ statements }) => statements.flatMap(run));
        db.query("commit").run();
        asked.forEach(({ resolve }, index) => resolve(rows[index] ?? []));
      } catch (error) {
        if (db.inTransaction) db.query("rollback").run();
        const isLocked = /BUSY|LOCKED/.test(codeOf(error));
        // What is wrong with one does not hurt the others: each gets a transaction of its own.
        if (!isLocked && asked.length > 1) return asked.forEach((each) => transact([each]));

        // Another process may hold the lock: then each of them waits for up to a second.
        for (const each of asked)
          if (!isLocked || performance.now() > each.until) each.reject(error);
          else if (waiting.push(each) === 1) setTimeout(transact, 5);
      }
    }
    return (...statements: Statement[]) =>
      new Promise<Item[]>((resolve, reject) => {
        const until = performance.now() + 1000;
        if (waiting.push({ statements, until, resolve, reject }) === 1) setImmediate(transact);
      });
  }

  // A turn that has begun is ended first.
  const close = () => new Promise<void>((resolve) => setImmediate(() => resolve(db.close())));
  return { read: together("begin"), write: together("begin immediate"), close };
}

/** PostgreSQL, or what speaks its protocol, also behind a pooler: nothing is prepared by name. */
function postgres(url: string) {
  const options = { max: 8, connectionTimeout: 3, idleTimeout: 10, prepare: false };
  // Two pools: where writes wait for a lock, reads go on.
  const pools = [new SQL(url, options), new SQL(url, options)] as const;

  // Who gives up sends no commit, so a write that is answered with 503 is never made; to cancel may
  // come too late behind a pooler. A commit on its way is not cancelled, for it may wait for a
  // replica; what becomes of one that is cut off, nobody knows.
  async function run(sql: SQL, ...statements: Statement[]) {
    const limit = AbortSignal.any([AbortSignal.timeout(3500), leaving.signal]);
    const connection = await sql.reserve({ signal: limit });
    const rows: Item[] = [];
    try {
      for (const [text, ...values] of statements) {
        limit.throwIfAborted();
        const running = connection.unsafe(text, values.map(withoutNul));
        limit.onabort = () => {
          if (text !== "commit") running.cancel();
          void connection.close({ timeout: 1 });
        };
        rows.push(...revived(await running));
      }
      return rows;
    } finally {
      limit.onabort = null;
      connection.release(); // an open transaction is rolled back
    }
  }

  // U+0000 is unknown there. No item has a control character, so U+0001 finds and sorts alike.
  const withoutNul = (text: Value) =>
    typeof text === "string" ? text.replaceAll("\0", "\x01") : text;
  const read = (statement: Statement) => run(pools[0], statement);
  const write = (...statements: Statement[]) => run(pools[1], ["begin"], ...statements, ["commit"]);
  return { read, write, close: () => Promise.all(pools.map((sql) => sql.close({ timeout: 1 }))) };
}

/** Whether another try may succeed: the store is locked, starting, full, read-only or away. */
const isOutOfReach = (error: unknown) => OUT_OF_REACH.test(codeOf(error));
const OUT_OF_REACH =
  /SQLITE_(BUSY|LOCKED|FULL|IOERR|READONLY)|POSTGRES_(CONN|QUERY_C)|ABORT|\b(08|25006|40|53|55|57)/;
const codeOf = (error: unknown) =>
  error instanceof DOMException ? "ABORT" : `${Object(error).code} ${Object(error).errno}`;

/** Opens the store, makes the table where there is none, and tries what a write does. */
async function opened() {
  const store = file ? sqlite(file) : postgres(DATABASE_URL);

  // A table that is there stays, for then none can be made. SQLite's own order is that of "C".
  const table = `create table items (${file ? CREATE.join().replace('collate "C"', "") : CREATE})`;
  const making = store.write([table], [INDEX], ...seed.map(insert));
  const notMade = await making.catch((error) => error);
  try {
    // What a column cuts off, converts, pads or folds is not what was written to it.
    const number = `0${crypto.randomUUID().replace(/\D/g, "").slice(0, 12)}`; // no client's, so far
    const long = "\u{1f34e}A".padEnd(128, number);
    const ids = [number, `${number} `, long, long.toLowerCase()];
    const items = ids.map((id) => ({ ...(seed[0] as Item), id, name: id.padEnd(1024, "a") }));
    const [first, changed] = [items[0] as Item, { ...(items[0] as Item), name: number }];
    const all: Statement = [TRIED, ...ids.toReversed()];
    const trial = [...items.map(insert), all, update(changed, first), remove(changed)];
    const now: Statement[] = file ? [] : [["set constraints all immediate"]];
    const rows = await store.write(["savepoint trial"], ...now, ...trial, ["rollback to trial"]);
    const isKept = Bun.deepEquals(rows, [...items, ...items, changed, changed]);
    if (!isKept) throw Error("its table items does not keep what is written");
    await store.write([INDEX]).catch(() => print("Warning: ?name= has no index."));
  } catch (error) {
    if (/no such table|42P01/.test(`${error} ${codeOf(error)}`)) throw notMade;
    if (!/FULL|READONLY|25006|53100/.test(codeOf(error))) throw error;
    await store.read(find("")); // a replica, or a full disk, can still be read
    print("Warning: the store takes no writes now. They are answered with 503.");
  }
  return store;
}

// ── Docs ── at /swagger, whole from this server: a classroom may have no network ────────────────

// @ts-expect-error: TypeScript has no type for a file.
import icon from "swagger-ui-dist/favicon-32x32.png" with { type: "file" };
// @ts-expect-error
import js from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
// @ts-expect-error
import css from "swagger-ui-dist/swagger-ui.css" with { type: "file" };

function docs() {
  const order = guards.flatMap(([code, why]) => (isPossible(code) ? `1. ${code}: ${why}` : []));
  const info = {
    title: "Items",
    version: "1.0.0",
    description: `One resource, and every HTTP status code for a real reason. Of every request this
      is asked, in this order, and the first that applies is the answer:\n\n${order.join("\n")}`,
    contact: { name: "Whoever runs this server" },
    license: { name: "MIT", url: "https://opensource.org/license/mit" },
  };
  const tags = [{ name: "items", description: "The items, and the way to them" }];
  const securitySchemes = { bearer: { type: "http" as const, scheme: "bearer" } };
  const secured = { security: [{ bearer: [] }], components: { securitySchemes } };
  return new Elysia({ detail: { hide: true } })
    .onAfterHandle(asServed)
    .use(swagger({ documentation: { info, tags, ...(TOKEN ? secured : { security: [] }) } }))
    .get(
      "/",
      ({ set }) => {
        // 302, not 301: another day, something else may be found here.
        set.status = 302;
        set.headers.location = "/swagger";
      },
      { response: { 302: t.Void() } },
    )
    .get("/swagger", () => part("text/html", HTML))
    .get("/swagger/ui.js", async () => part("text/javascript", await whole(js, SCRIPT)))
    .get("/swagger/ui.css", async () => part("text/css", await whole(css, STYLE)))
    .get("/favicon.ico", async () => part("image/png", await Bun.file(icon).bytes()));
}

/** A file and what is added to it: read once, so a thousand slow clients share one copy. */
const whole = async (file: string, more: string) =>
  (copies[file] ??= (await Bun.file(file).text()) + more);
const copies: Record<string, string> = {};

/** A part of the page, read before: on a file Bun would answer Range, beyond every hook. */
const part = (type: string, content: string | Uint8Array<ArrayBuffer>) =>
  new Response(content, { headers: { "content-type": type, "content-security-policy": POLICY } });
const POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'";

// The plugin's own page loads a script from elsewhere. In this one, a status can be read from the
// last row, all else in any light and on a telephone, and what offers a single choice is not there.
const HTML = `<!doctype html><html lang=en><meta charset=utf-8><title>Items</title>
  <meta name=viewport content="width=device-width"><link rel=icon href=/favicon.ico>
  <link rel=stylesheet href=/swagger/ui.css><div id=ui></div><script src=/swagger/ui.js></script>`;
const SCRIPT = `\n  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark-mode", isDark);
  const named = (name) => (Base, { React }) => (props) =>
    React.createElement(Base, { ...props, "aria-label": name });
  const wrapComponents = { Button: named(), TextArea: named("Request body") };
  SwaggerUIBundle({ url: "/swagger/json", dom_id: "#ui", plugins: [{ wrapComponents }] });`;
const STYLE = `.swagger-ui {
  .response .response-col_status { font-size: min(40px, 7vw); min-width: 0; padding-right: 12px }
  h4, .authorize, .cancel, .parameter__in, .headers *, .property { color: CanvasText !important }
  .info a { color: LinkText !important }
  .opblock-summary .opblock-summary-method, .btn.execute { color: #000; text-shadow: none }
  .renderedMarkdown, .header-col, pre { overflow-wrap: anywhere }
  pre code { white-space: pre-wrap !important; word-break: normal !important }
  .response-col_links, .response-controls, .schemes-server-container, .title small,
  .scheme-container:not(:has(.authorize)), .content-type-wrapper:has(option:only-child),
  .highlight-code :is(button, .copy-to-clipboard), .header-col:nth-child(2), .close-modal,
  .tab-item span::after, .model-box-control[aria-expanded=true] { display: none !important } }`;

/** The document, with what the plugin cannot say, and without what concerns only this server. */
function asServed({ path, request, responseValue }: Context & { responseValue: unknown }) {
  if (path !== "/swagger/json") return undefined;
  const [json, patch] = ["application/json", "application/merge-patch+json"];
  const field = { in: "header", schema: { type: "string" } };
  const causes = [
    [412, "If-Match", "what ETag said, or * for whatever is there"],
    [412, "If-None-Match", "what ETag said, or * for whatever is there"],
    [415, "Content-Encoding", "identity, which is the same as none"],
    [REHEARSE ? 500 : 0, "Prefer", "the answer to rehearse, like code=503"],
  ] as const;
  const servers = [{ url: new URL(request.url).origin }];
  return JSON.parse(JSON.stringify({ ...Object(responseValue), servers }), (key, value) => {
    // In turn: what only this server needs, a choice of one, a number, fields that no schema has.
    if (key === "additionalProperties" || (key === "error" && !value.type)) return undefined;
    if (key === "content" && value[json]) return { [json]: value[json] };
    if (value?.multipleOf === 1) Object.assign(value, { type: "integer", pattern: undefined });
    for (const [status, name, description] of causes)
      if (value?.responses?.[status])
        (value.parameters ??= []).push({ ...field, name, description });
    if (key === "patch") value.requestBody.content[patch] = value.requestBody.content[json];
    if (key !== "get" || READ_TOKEN) return value;
    return { ...value, security: [], responses: { ...value.responses, 401: undefined } };
  });
}

// ── Log ── one line a request, with the status that went out; each code seen first is collected ──

/** The one place that sees every answer on its way out. */
function observed(next: (request: Request) => unknown) {
  const answer = next as (request: Request) => Promise<Response>;
  if (!LOG && DELAY === 0) return answer;
  return async (request: Request) => {
    const start = performance.now();
    const response = await answer(request);
    if (DELAY > 0) await sleep(DELAY, null, { signal: closing.signal }).catch(() => {});
    if (LOG) void log(request, response, performance.now() - start);
    return response;
  };
}

const seen = new Set<number>();
let isTold = false;

async function log(request: Request, response: Response, milliseconds: number) {
  const { status } = response;
  // Asking has a price, so a client that went away within ten milliseconds may be missed.
  const isGone = (status >= 400 || milliseconds > 10) && request.signal.aborted;
  const code = isGone ? "gone" : `${status}`;
  const colour = [31, 31, 32, 36, 33, 31][Math.floor(status / 100)];
  const coloured = isTerminal && !Bun.env.NO_COLOR ? `\x1b[${colour}m${code}\x1b[0m` : code;
  const path = shown(request.url.replace(/^https?:\/\/[^/]*|[?#].*/gs, ""));
  const hasReason = status >= 400 && !isGone && request.method !== "HEAD";
  const body = hasReason ? await response.clone().text() : "";
  const reason = body.replace(/^\{"error":"(.*)"\}$/s, "  $1");
  const isNew =
    codes.has(status) && !seen.has(status) && !response.headers.has("preference-applied");
  const star = isNew && !isGone ? `  ★ ${seen.add(status).size} of ${codes.size}` : "";
  const time = Math.round(milliseconds * 10) / 10;
  print(`${coloured}  ${request.method}  ${path}  ${time} ms${reason}${star}`);

  // A page that may not read an answer learns nothing but "Failed to fetch".
  const origin = request.headers.get("origin") ?? "";
  const isOwn = origin === "" || request.url.startsWith(`${origin}/`);
  if (isOwn || isTold || response.headers.has("access-control-allow-origin")) return;
  isTold = true;
  print(`     Its page may not read that; CORS_ORIGIN=${shown(origin)} would let it.`);
}

/** A text of a client's as a terminal may have it: printable ASCII, and not too long. */
function shown(text: string) {
  const printable = text.toWellFormed().replace(/[^!-~]/gu, encodeURIComponent);
  return printable.slice(0, 1200);
}

/** Prints lines to a file descriptor; a reader that does not read them holds up nobody. */
function printer(descriptor: number) {
  let [lines, lost, written] = [[] as string[], 0, Promise.resolve()];
  const flush = () => (written = written.then(writeAll));

  function print(line: string) {
    if (lines.length === 1000) lost++;
    else if (lines.push(`${line}\n`) === 1) setTimeout(flush, 10); // a write costs more than a line
  }

  function writeAll() {
    if (lost > 0) lines.push(`… and ${lost} lines more\n`);
    return send(descriptor, Buffer.from(lines.splice((lost = 0)).join("")));
  }
  return { flush, print };
}

/** Writes on a thread, for a terminal may make it wait; a pipe that is full says to come again. */
async function send(descriptor: number, bytes: Buffer): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  write(descriptor, bytes, (error, sent = 0) => {
    if (error?.code === "EAGAIN") setTimeout(() => resolve(send(descriptor, bytes)), 10);
    else
      resolve(error || sent === bytes.length ? undefined : send(descriptor, bytes.subarray(sent)));
  });
  return promise;
}
const [{ flush, print }, errors] = [printer(1), printer(2)];

// ── Settings ── from the environment or .env; one that makes no sense ends the start ─────────────

type Test = (text: string) => boolean;
const like = (pattern: RegExp) => (text: string) => pattern.test(text);
const upTo = (most: number) => (text: string) => /^\d{1,6}$/.test(text) && Number(text) <= most;
const each = (isFine: Test) => (text: string) =>
  listOf(text).length > 0 && listOf(text).every(isFine);
const listOf = (text: string): string[] => text.toLowerCase().match(/[^\s,]+/g) ?? [];
const isName = (text: string) =>
  URL.parse(`http://${text}`)?.hostname === text && /^(\w[\w-]{0,62}(\.|$))+$|^\[/.test(text);
const isOrigin = (text: string) => {
  const { hostname = "", origin, port } = URL.parse(text) ?? {};
  return text === "*" || (origin === text && isName(hostname) && port !== "0");
};

const rules: Record<string, string> = {};
const STORE = "one that opens: sqlite://FILE, sqlite://:memory: or postgres://USER@HOST/DATABASE";
const WORD = "visible ASCII characters without a space";
const ORIGINS = "* or origins like http://a.test:81";
// What is no file's name, or could hide a password from those who print it, is refused.
const FILE = /^sqlite:\/\/(:memory:|(?!file:|:|\s)[^?#]*[^?#\s])$/;
const ADDRESS =
  /^(\w+:\/\/)(?:(?:[\w.+-]|%40)+(?::[^@/?#\s]*)?@)?([\w.:[\]-]*\/[\w.-]*)(?:\?[\w=&.,%/+:-]*)?$/;
const isStore = (text: string) =>
  FILE.test(text) || (/^postgres(ql)?:/.test(text) && ADDRESS.test(text));
const isWord = like(/^[!-~]+$/);
const isTerminal = process.stdout.isTTY;

const PORT = setting("PORT", "3000", upTo(65_535), "a free port from 0 to 65535");
const HOST = setting("HOST", "127.0.0.1", like(/^[\w.:-]+$/), "an address of this machine");
const DATABASE_URL = setting("DATABASE_URL", "sqlite://items.sqlite", isStore, STORE);
const TOKEN = setting("TOKEN", "", isWord, WORD);
const READ_TOKEN = setting("READ_TOKEN", "", isWord, `${WORD}, beside TOKEN and unlike it`);
const ALLOWED_HOSTS = listOf(setting("ALLOWED_HOSTS", "", each(isName), "hosts without a port"));
const CORS_ORIGIN = listOf(setting("CORS_ORIGIN", "", each(isOrigin), ORIGINS));
const RATE = +setting("RATE", "0", upTo(999_999), "a whole number up to 999999");
const DELAY = +setting("DELAY", "0", upTo(25_000), "a whole number of milliseconds up to 25000");
const REHEARSE = setting("REHEARSE", "0", like(/^1$/), "0 or 1") === "1";
const LOG = setting("LOG", isTerminal ? "on" : "off", like(/^(on|off)$/), "on or off") === "on";
if (READ_TOKEN && (!TOKEN || READ_TOKEN === TOKEN)) refuse("READ_TOKEN", READ_TOKEN);

// Who knows other servers may try an option, and is shown the setting.
const [option = "", value = ""] = process.argv.slice(2).filter(Boolean).join("=").split("=");
if (option) {
  const word = option.replace(/^-+/, "").replaceAll("-", "_").toUpperCase();
  const name = Object.keys(rules).find((each) => each.startsWith(word)) ?? "DATABASE_URL";
  const line = `${name}=${name === "PORT" && /^\d+$/.test(value) ? value : "…"} bun server.ts`;
  const what = /^[\w.-]*/.exec(option)?.[0]; // no more: the rest may be a password
  console.error(`${what} is no option; settings are in the environment: ${line}`);
  process.exit(1);
}

function setting(name: string, fallback: string, isFine: Test, rule: string) {
  const text = Bun.env[name] || fallback; // an empty one is none
  rules[name] = rule;
  return text === fallback || isFine(text) ? text : refuse(name, text);
}

/** Ends the start with exit code 1 and one sentence on stderr, which holds no secret. */
function refuse(name: string, text: string, cause = ""): never {
  const isAddress = name === "DATABASE_URL";
  const value = name.endsWith("TOKEN")
    ? "something else"
    : JSON.stringify(isAddress ? withoutSecret(text) : text.replace(/.*@/s, "…@"));
  const why = cause && ` (${cause.replace(/\s+/g, " ")})`;
  console.error(`${name} is ${value}, but may only be ${rules[name]}${why}.`);
  process.exit(1);
}

/** What of a store's address may be shown. */
function withoutSecret(text: string) {
  if (text.startsWith("sqlite:")) return text.replace(/:\/\/.*@/s, "://…@");
  const [, protocol, place] = ADDRESS.exec(text) ?? [];
  return place ? `${protocol}${place}` : "something else";
}

// ── Start ── open the store, listen, say where; at the end answer what is in flight ──────────────

const [closing, leaving] = [new AbortController(), new AbortController()];
const HERE = new Set(["localhost", HOST.toLowerCase(), hostname().toLowerCase(), ...ALLOWED_HOSTS]);
if (RATE > 0) setInterval(() => hits.clear(), 1000).unref();

const file = FILE.exec(DATABASE_URL)?.[1];
const store = await opened().catch((error) => refuse("DATABASE_URL", DATABASE_URL, error.message));
const pages = docs();
const app = new Elysia({
  normalize: false,
  strictPath: true,
  systemRouter: false, // or two routers look at a path
  handler: { standardHostname: false }, // or they do not see it behind a short Host
})
  .headers({ "cache-control": "no-cache", "x-content-type-options": "nosniff" })
  .headers(CORS_ORIGIN.includes("*") ? CORS : { vary: "Origin" })
  .wrap(observed)
  .onRequest(guarded)
  .onError(failed)
  .use(routes())
  .use(pages);

/** The type of the app, for Elysia's client: `treaty<App>("127.0.0.1:3000")`. */
export type App = typeof app;

const METHODS = new Set(["HEAD", "OPTIONS", ...app.routes.map(({ method }) => method)].sort());
const OPEN = new Set(pages.routes.map(({ path }) => path));
const documented = app.routes.flatMap(({ hooks }) => Object.keys(hooks.response ?? {}).map(Number));
const codes = new Set([...guards.map(([status]) => status), ...documented].filter(isPossible));

try {
  app.listen({
    development: false, // or the page of an error shows the source
    error: () => Response.json({ error: "Server error" }, { status: 500 }), // what no hook caught
    hostname: HOST,
    idleTimeout: 30, // seconds
    maxRequestBodySize: Infinity, // or Bun answers and cuts off; the body is counted above
    port: PORT,
    reusePort: false, // or two servers share a port, and nobody knows which one answers
  });
} catch (error) {
  if (/ADDRNOTAVAIL|NOTFOUND|INVAL/.test(codeOf(error))) refuse("HOST", HOST);
  refuse("PORT", PORT, /ACCES/.test(codeOf(error)) ? "only root may take it" : "it is in use");
}

const name = HOST.replace(/^(0\.0\.0\.0|::)$/, "localhost").replace(/.*:.*/, "[$&]");
const address = `http://${name}:${app.server?.port}`;
const isFile = file && file !== ":memory:";
const place = isFile ? `${file}; to start over, stop and delete it` : withoutSecret(DATABASE_URL);
print(`Items  ${address}\nDocs   ${address}/swagger\nStore  ${place}`);
if (!/^(127\.|localhost$|::1$)/i.test(HOST) && !TOKEN)
  print("Warning: other machines can write here. Set TOKEN to keep them out.");

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
  const missing = [...codes.difference(seen)].sort().join(" ");
  if (LOG) print(missing ? `Still to be found: ${missing}` : "All were found.");
  await Promise.all([flush(), errors.flush()]);
  process.exit(0);
}
process.on("SIGINT", stop).on("SIGTERM", stop);
