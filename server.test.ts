/**
 * The contract of server.ts, over the wire: each server here is the child process that
 * `bun server.ts` starts, on a port of its own and with a store of its own.
 *
 *     bun test                                                              on SQLite
 *     TEST_DATABASE_URL=postgres://postgres@127.0.0.1/postgres bun test     on PostgreSQL
 *
 * First the lesson, then the resource route by route, then what holds anywhere; how a server is
 * started and asked stands at the end. A failure is caused for real: a table is dropped from
 * outside, another process holds a lock. The titles have the words of the server's own document.
 */
import { SQL, type Subprocess } from "bun";
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** The path of the resource: one line here, and one in server.ts. */
export const ITEMS = "/items";
export const POSTGRES = Bun.env.TEST_DATABASE_URL ?? "";
export const FOLDER = mkdtempSync(join(tmpdir(), "items-"));
export const HOST = "Host: localhost";
export const JSON_TYPE = "Content-Type: application/json";
export const CHUNKED = "Transfer-Encoding: chunked";
export const GUARDS = { TOKEN: "write", READ_TOKEN: "look", RATE: "999999" };
export const PAGE = { origin: "http://localhost:5173", "access-control-request-method": "PUT" };
const SETTINGS =
  "PORT HOST DATABASE_URL TOKEN READ_TOKEN ALLOWED_HOSTS CORS_ORIGIN RATE DELAY REHEARSE LOG";
const PATCH_TYPES = "application/merge-patch+json, application/json";
const fifty = Array.from({ length: 50 }, (_, index) => index);
const admin = POSTGRES ? new SQL(POSTGRES, { max: 4 }) : undefined;
const databases: string[] = [];
const running = new Set<Live>();
const seen = new Set<string>(); // every answer: `GET /items/{id} 404`
const cores = Array.from({ length: availableParallelism() }, async () => {});
let starts = 0;
let contract: Document | undefined;
let documentIsThere: Promise<void> | undefined;
export let guarded: Live; // the server with all GUARDS
let live: Live; // the one without a setting
setDefaultTimeout(600_000); // ends what hangs, and decides nothing else

/** Tests are declared only where this file is the one that runs: others import its helpers. */
const chapter = import.meta.main ? describe.concurrent : () => {};
const route = (request: string, tests: (words: ReturnType<typeof wordsOf>) => void) =>
  chapter(request, () => tests(wordsOf(request)));
if (import.meta.main) live = await start();
const ask: Live["ask"] = (request, asks) => live.ask(request, asks);
const status: Live["status"] = (request, asks) => live.status(request, asks);
const answer: Live["answer"] = (request, asks) => live.answer(request, asks);

// ── The lesson ── five answers that nobody changes by accident ─────────────────────────────────

chapter("the lesson, HTTP status codes for APIs, to the letter", () => {
  test("200 to GET of an item that exists", async () => {
    expect(await answer(`GET ${ITEMS}/1`)).toBe('200 {"item":"apple"}');
    expect(await answer(`GET ${ITEMS}/2`)).toBe('200 {"item":"banana"}');
  });

  test("404 to GET of one that does not", async () => {
    expect(await answer(`GET ${ITEMS}/9`)).toBe('404 {"error":"Item not found"}');
  });

  test("201 to POST of a new id and a name, 400 to the same once more", async () => {
    const json = { id: "3", name: "cherry" };
    expect(await answer(`POST ${ITEMS}`, { json })).toBe('201 {"message":"Item created"}');
    expect(await answer(`POST ${ITEMS}`, { json })).toBe('400 {"error":"Item already exists"}');
  });

  test("400 to POST without an id or a name", async () => {
    const required = '400 {"error":"Bad request, id and name required"}';
    for (const json of [{ id: "4" }, { name: "x" }, {}, [], null, "", 0])
      expect(await answer(`POST ${ITEMS}`, { json })).toBe(required);
  });
});

// ── Routes ── in the order of the file, the statuses ascending ─────────────────────────────────

route(`GET ${ITEMS}`, ({ title }) => {
  test(title(200), async () => {
    const to = await start();
    const get = (target: string) => to.ask(`GET ${target}`);
    // Code points, not the alphabet of a country, and not UTF-16: 😀 (U+1F600) is after U+FF5E.
    for (const id of ["b", "B", "é", "a", "😀", "\uff5e", "10", "z"])
      await to.ask(`POST ${ITEMS}`, { json: fresh({ id, name: id === "b" ? "banana" : "x" }) });
    const ids = ["1", "10", "2", "B", "a", "b", "z", "é", "\uff5e", "😀"];
    expect(idsOf(await get(ITEMS))).toEqual(ids);

    // Paging by Link, three at a time, finds exactly what is there.
    const paged: string[] = [];
    for (let next: string | undefined = `${ITEMS}?limit=3`; next;) {
      const page: Reply = await get(next);
      paged.push(...idsOf(page));
      next = /^<([^>]+)>; rel="next"$/.exec(page.headers.get("link") ?? "")?.[1];
    }
    expect(paged).toEqual(ids);

    const link = async (query: string) => (await get(`${ITEMS}?${query}`)).headers.get("link");
    const next = `<${ITEMS}?name=banana&limit=1&after=2>; rel="next"`;
    expect(await link("name=banana&limit=1")).toBe(next);
    expect([await link(""), await link("limit=10")]).toEqual([null, null]);
    expect(idsOf(await get(`${ITEMS}?name=banana`))).toEqual(["2", "b"]);

    // The next page is a part of the representation. Left out, the limit is 20; 100 is the most.
    const { headers } = await get(`${ITEMS}?limit=10`);
    await to.ask(`POST ${ITEMS}`, { json: fresh({ id: "😁" }) });
    expect((await get(`${ITEMS}?limit=10`)).headers.get("etag")).not.toBe(headers.get("etag"));
    const more = Array.from({ length: 95 }, (_, index) => fresh({ id: `more-${index}` }));
    await Promise.all(more.map((json) => to.ask(`POST ${ITEMS}`, { json })));
    expect(idsOf(await get(ITEMS)).length).toBe(20);
    expect(idsOf(await get(`${ITEMS}?limit=100`)).length).toBe(100);
    await to.stop();
  });

  test.each([
    ["after U+0000", "name=banana&after=%00", ["2"]],
    ["a name with U+0000", "name=banana%00", []],
    ["all three members", "limit=100&after=+&name=ban%61na", ["2"]],
  ])("200 with %s", async (_, query, ids) => {
    expect(idsOf(await ask(`GET ${ITEMS}?${query}`))).toEqual(ids);
  });

  const limits = "limit= limit=0 limit=05 limit=101 limit=1.0 limit=-1 limit=1e1 limit=%2B1";
  const others = "limit=1&limit=1 name=a&name=b after=a&after=b nmae=x x=1&x=2 Limit=1 __proto__=1";
  test.each([
    ["limit must be a whole number from 1 to 100", limits],
    ["The query may have limit, after and name, each once", others],
  ])("400 %s", async (error, queries) => {
    for (const query of queries.split(" "))
      expect((await ask(`GET ${ITEMS}?${query}`)).json).toEqual({ error });
  });
});

route(`POST ${ITEMS}`, ({ says, title }) => {
  const post = (json: unknown) => ask(`POST ${ITEMS}`, { json });

  const long = ["new", "x".repeat(128), "😀".repeat(64)]; // 128 UTF-16 units
  const odd = `x % %2F ? # ' " &=+; ... ..a .a :id * <b> __proto__ constructor`.split(" ");
  const far = ["a b", "e\u0301", "👩‍👩‍👧‍👦", "\u2028", "\ufeff", "\ufffc"];
  test.each([...long, ...odd, ...far])(`${title(201)}: %j`, async (id) => {
    const reply = await post(fresh({ id, name: id.repeat(8), unheard: "of" }));
    expect([reply.status, reply.text]).toEqual([201, '{"message":"Item created"}']);
    const location = reply.headers.get("location") ?? "";
    expect(decodeURIComponent(location)).toBe(`${ITEMS}/${id}`);
    expect((await ask(`GET ${location}`)).json.item).toBe(id.repeat(8));
    expect(await status(`DELETE ${location}`)).toBe(204);
  });

  test("400 what is required: a missing member comes before a bad value", async () => {
    for (const json of [{ id: 5 }, { name: "" }, { id: "\0" }, [fresh({ id: "a" })]])
      expect((await post(json)).json).toEqual(says(400, "required"));
  });

  // Of slashes, proxies and clients make others; U+FFFD is the mark of what was read with loss.
  const controls = ["a\0b", "a\x7f", "a\u0085b", "a\nb"];
  const halves = ["\ud800", "\udc00\ud800", "a\ufffd"];
  const ids = ["", "x".repeat(129), 5, null, ".", "..", "a/../b", "a\\b", { toString: 1 }];
  test.each([...ids, ...controls, ...halves])("422 with an id of %j", async (id) => {
    expect((await post(fresh({ id }))).json).toEqual(says(422, "id must"));
  });
  const names = ["", "x".repeat(1025), 5, null, { toString: 1 }];
  test.each([...names, ...controls, ...halves])("422 with a name of %j", async (name) => {
    expect((await post(fresh({ id: "422", name }))).json).toEqual(says(422, "name must"));
  });
});

route(`GET ${ITEMS}/{id}`, ({ title }) => {
  test(title(200), async () => {
    const { id, path } = await item();
    const { text } = await ask(`GET ${path}`);
    // An id may be encoded; a query is ignored, on all routes but the list.
    const encoded = `%69${id.slice(1)}?x=1&x=2&limit=0`;
    expect(await answer(`GET ${ITEMS}/${encoded}`)).toBe(`200 ${text}`);
    expect(await status(`DELETE ${ITEMS}/${encoded}`)).toBe(204);
  });

  test(title(404), async () => {
    const odd = "9 a%00b a%2Fb a%5Cb 1%2F __defineGetter__ valueOf '%20or%20''='".split(" ");
    for (const id of [...odd, "x".repeat(129), "x".repeat(1300)])
      expect(await answer(`GET ${ITEMS}/${id}`)).toBe('404 {"error":"Item not found"}');
  });
});

route(`PUT ${ITEMS}/{id}`, ({ says, title }) => {
  test(title(200), async () => {
    const { etag, id, path } = await item();
    const json = fresh({ id, name: "new", unheard: "of" });
    const reply = await ask(`PUT ${path}`, { json, "if-match": etag });
    expect([reply.status, reply.text]).toEqual([200, '{"message":"Item updated"}']);
    const there = await ask(`GET ${path}`);
    expect(there.json.item).toBe("new");
    expect(there.headers.get("etag")).toBe(reply.headers.get("etag"));
    expect(await status(`GET ${path}`, { "if-none-match": etag })).toBe(200);
    expect(await status(`PUT ${path}`, { json, "if-none-match": etag })).toBe(200);
  });

  test(title(201), async () => {
    const path = `${ITEMS}/a%20put`;
    const reply = await ask(`PUT ${path}`, { json: fresh({ name: "new" }), "if-none-match": "*" });
    expect([reply.status, reply.text]).toEqual([201, '{"message":"Item created"}']);
    expect(reply.headers.get("location")).toBe(path);
    expect((await ask(`GET ${path}`)).json.item).toBe("new");
  });

  test(title(400), async () => {
    for (const json of [null, [], {}, "", { id: 5 }, { id: "1" }])
      expect((await ask(`PUT ${ITEMS}/1`, { json })).json).toEqual(says(400, "required"));
    // The name is missing, and the id of the path breaks a rule: what is missing comes first.
    expect(await status(`PUT ${ITEMS}/${"x".repeat(129)}`, { json: {} })).toBe(400);
  });

  test(title(409), async () => {
    for (const id of ["1", "no-such"])
      expect(await status(`PUT ${ITEMS}/${id}`, { json: fresh({ id: "2" }) })).toBe(409);
    expect(await status(`GET ${ITEMS}/no-such`)).toBe(404);
  });

  test(title(412), async () => {
    const { etag, path } = await item();
    const json = fresh({ name: "x" });
    const put = (fields: Asks, to = path) => status(`PUT ${to}`, { json, ...fields });
    // What is not a list of entity tags names none of them.
    const lists = [`x${etag}`, `${etag}x`, `w/${etag}`, `W/ ${etag}`, `"x" ${etag}`, `*, ${etag}`];
    for (const list of [...lists, `W/${etag}`]) expect(await put({ "if-match": list })).toBe(412);
    for (const list of ["*", `W/${etag}`]) expect(await put({ "if-none-match": list })).toBe(412);
    for (const list of ["*", etag])
      expect(await put({ "if-match": list }, `${ITEMS}/free`)).toBe(412);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(etag);
    expect(await put({ "if-match": ` ,W/"x", ,${etag} ,` })).toBe(200);
  });

  test(title(422), async () => {
    for (const members of [{ name: "\0" }, { id: "" }, { name: { toString: 1 } }])
      expect(await status(`PUT ${ITEMS}/1`, { json: fresh(members) })).toBe(422);
    const rule = says(422, "id must");
    for (const id of ["x".repeat(129), "a%00b", "a%2Fb", "a%5Cb"])
      expect((await ask(`PUT ${ITEMS}/${id}`, { json: fresh({}) })).json).toEqual(rule);
  });
});

route(`PATCH ${ITEMS}/{id}`, ({ says, title }) => {
  const patch = (json: unknown) => ask(`PATCH ${ITEMS}/1`, { json });

  test(title(200), async () => {
    const { etag, id, path } = await item();
    const nothing = await ask(`PATCH ${path}`, { json: {}, "if-match": etag });
    expect([nothing.status, nothing.text]).toEqual([200, '{"message":"Item updated"}']);
    expect(nothing.headers.get("etag")).toBe(etag);
    const merge = { "content-type": "application/merge-patch+json" };
    const json = { id, name: "new", unheard: null };
    const { headers } = await ask(`PATCH ${path}`, { ...merge, json });
    const there = await ask(`GET ${path}`);
    expect([there.json.item, there.headers.get("etag")]).toEqual(["new", headers.get("etag")]);
  });

  test(title(400), async () => {
    for (const json of [null, [], "", 0])
      expect((await patch(json)).json).toEqual(says(400, "object"));
  });

  test(title(404), async () => {
    const json = { id: "2", name: "x" };
    for (const id of ["9", "x".repeat(129)])
      expect(await status(`PATCH ${ITEMS}/${id}`, { json, "if-match": '"x"' })).toBe(404);
  });

  test(title(409), async () => {
    expect((await patch({ id: "other" })).status).toBe(409);
  });

  test(title(412), async () => {
    const { etag, path } = await item();
    const json = { name: "x" };
    expect(await status(`PATCH ${path}`, { json, "if-match": '"x"' })).toBe(412);
    expect(await status(`PATCH ${path}`, { json, "if-none-match": etag })).toBe(412);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(etag);
  });

  test(title(422), async () => {
    for (const name of [null, "", { toString: 1 }])
      expect((await patch({ name })).json).toEqual(says(422, "name must"));
    expect((await patch({ id: "" })).json).toEqual(says(422, "id must"));
  });
});

route(`DELETE ${ITEMS}/{id}`, ({ title }) => {
  test(title(204), async () => {
    const { etag, path } = await item();
    const fields = { "if-match": etag, accept: "text/html", body: "not read" };
    expect(await status(`DELETE ${path}`, { ...fields, "content-type": "text/plain" })).toBe(204);
    expect(await status(`GET ${path}`)).toBe(404);
  });

  test(title(404), async () => {
    for (const id of ["9", "a%2Fb"])
      expect(await status(`DELETE ${ITEMS}/${id}`, { "if-match": "*" })).toBe(404);
  });

  test(title(412), async () => {
    const { etag, path } = await item();
    for (const fields of [{ "if-match": '"x"' }, { "if-none-match": etag }])
      expect(await status(`DELETE ${path}`, fields)).toBe(412);
    expect(await status(`GET ${path}`)).toBe(200);
  });
});

// ── What routes share ── bodies, Accept and conditions are the same wherever there are any ──────

chapter("a body, where one is taken", () => {
  const takers = [`POST ${ITEMS}`, `PUT ${ITEMS}/1`, `PATCH ${ITEMS}/1`];

  const broken: [what: string, body: Asks["body"]][] = [
    ["not JSON", "{"],
    ["nothing", ""],
    ["two values", "{}{}"],
    ["not UTF-8", Uint8Array.from('{"name":"\xff"}', (letter) => letter.charCodeAt(0))],
    ["very deep", "[".repeat(60_000)],
    ["ended by the escape of half a pair", '{"id":"x","name":"\\ud8"}"}'],
  ];
  test.each(broken)("400 where it is %s", async (_, body) => {
    for (const request of takers)
      expect((await ask(request, { body })).json).toEqual(says(request, 400, "JSON"));
  });

  test("413 where it is over 65,536 bytes, sized or in chunks", async () => {
    const body = JSON.stringify(fresh({ id: "large" })).padEnd(65_536);
    const head = wire(`POST ${ITEMS}`, HOST, JSON_TYPE, CHUNKED);
    expect((await raw([head, chunked(body, " ")])).status).toBe(413);
    expect((await raw([head, chunked(body.slice(0, 99), body.slice(99))])).status).toBe(201);
    expect(await status(`PUT ${ITEMS}/large`, { body })).toBe(200);
    for (const request of takers) expect(await status(request, { body: `${body} ` })).toBe(413);
  });

  test("415 where its type is another: Accept says what may be, Accept-Patch for a patch", async () => {
    const json = "application/json";
    const types = `text/plain ${json}p ${json};charset=latin1 application/problem+json`;
    const forms = "application/x-www-form-urlencoded multipart/form-data";
    for (const type of ["", ...`${types} ${forms}`.split(" ")]) {
      const fields: (string | null)[] = [];
      for (const request of takers) {
        const { headers, status } = await ask(request, { "content-type": type, body: "{}" });
        expect([type, status]).toEqual([type, 415]);
        fields.push(headers.get("accept"), headers.get("accept-patch"));
      }
      expect(fields).toEqual([json, null, json, PATCH_TYPES, PATCH_TYPES, PATCH_TYPES]);
    }
  });

  test("415 where it is coded: Accept-Encoding says what may be, and no other field", async () => {
    for (const request of takers) {
      const { headers, status } = await ask(request, { "content-encoding": "gzip", body: "{}" });
      expect([status, headers.get("accept-encoding")]).toEqual([415, "identity"]);
      expect(headers.has("accept-patch")).toBe(false);
    }
    const identity = { "content-encoding": "Identity", json: {} };
    expect(await status(`PATCH ${ITEMS}/1`, identity)).toBe(200);
  });
});

chapter("Accept, where JSON is answered", () => {
  const broad =
    "*/*|application/*|application/json|APPLICATION/JSON;Q=0.1|text/html , */* ; q=0.1|";
  test.each(broad.split("|"))("200 with %s", async (accept) => {
    expect(await status(`GET ${ITEMS}/1`, { accept })).toBe(200);
  });

  const none = "application/json;q=0|application/json;q=0.000, */*|*/*;q=0|application/*;q=0, */*";
  test.each(`${none}|text/html|application/jsonp`.split("|"))("406 with %s", async (accept) => {
    for (const [request, asks] of operations().slice(0, -1))
      expect(await status(request, { ...asks, accept })).toBe(406);
  });
});

chapter("conditions of a read, of the docs too", () => {
  const json = [`${ITEMS}?name=banana`, `${ITEMS}/1`, "/swagger/json"];
  const page = "/swagger text/html|/swagger/ui.js text/javascript|/swagger/ui.css text/css";
  const all = [...json.map((each) => `${each} application/json`), ...page.split("|")];
  test.each([...all, "/favicon.ico image/png"])("GET %s", async (part) => {
    const [target = "", type = ""] = part.split(" ");
    const { headers, status: code, text } = await ask(`GET ${target}`, { range: "bytes=0-3" });
    expect([code, text.length > 4]).toEqual([200, true]); // the whole, whatever part is asked for
    expect(headers.get("content-type")?.split(";")[0]).toBe(type);
    const policy = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'";
    if (!type.endsWith("json")) expect(headers.get("content-security-policy")).toBe(policy);
    const etag = headers.get("etag") ?? "";
    const get = (fields: Asks) => status(`GET ${target}`, fields);
    for (const list of [etag, `W/${etag}`, `"a,b" , ${etag}`, "*"])
      expect(await get({ "if-none-match": list })).toBe(304);
    for (const list of ['"x"', "x", etag.slice(1, -1), ""])
      expect(await get({ "if-none-match": list })).toBe(200);
    for (const list of [etag, "*", `"x", ${etag}`])
      expect(await get({ "if-match": list })).toBe(200);
    for (const list of [`W/${etag}`, '"x"']) expect(await get({ "if-match": list })).toBe(412);
    expect(await get({ "if-match": '"x"', "if-none-match": etag })).toBe(412);
    expect(await get({ "if-match": etag, "if-none-match": etag })).toBe(304);
  });
});

// ── Anywhere ── what the guards say, and what comes first when a request has several faults ────

chapter("anywhere", () => {
  test("302 to GET / is relative, so that it holds under a prefix", async () => {
    const { headers, status } = await ask("GET /");
    expect([status, headers.get("location")]).toEqual([302, "swagger"]);
  });

  const all = "DELETE, GET, HEAD, OPTIONS, PATCH, PUT";
  test.each([
    ["/", "GET, HEAD, OPTIONS", null],
    [ITEMS, "GET, HEAD, OPTIONS, POST", null],
    [`${ITEMS}/1`, all, PATCH_TYPES],
  ])("204 to OPTIONS %s, 405 to what it does not allow", async (path, allowed, types) => {
    const { headers, status } = await ask(`OPTIONS ${path}`);
    expect([status, headers.get("allow")]).toEqual([204, allowed]);
    expect(headers.get("accept-patch")).toBe(types);
    for (const method of [...all.split(", "), "POST"].filter((each) => !allowed.includes(each))) {
      const refused = await ask(`${method} ${path}`);
      expect([refused.status, refused.headers.get("allow")]).toEqual([405, allowed]);
    }
  });

  const paths = [`${ITEMS}?name=apple`, `${ITEMS}/1`, `${ITEMS}/9`, "/nowhere", "/swagger", "/"];
  test.each(paths)("HEAD %s has the status and the fields of GET", async (path) => {
    const fieldsOf = ({ headers }: Reply) => ({ ...headers.toJSON(), date: "" });
    for (const fields of [{}, { "if-none-match": "*" }]) {
      const [get, head] = [await ask(`GET ${path}`, fields), await ask(`HEAD ${path}`, fields)];
      expect([head.status, fieldsOf(head)]).toEqual([get.status, fieldsOf(get)]);
    }
  });

  const malformed = ["", " localhost/x", " a@localhost", " local host", " localhost:99999"];
  const twice = [" localhost\r\nHost: evil.example", " localhost\r\nHost: localhost"];
  test.each([...malformed, ...twice, " xn--a.localhost"])("400 with Host:%j", async (host) => {
    expect((await raw(wire(`GET ${ITEMS}`, `Host:${host}`))).status).toBe(400);
  });

  const targets = "/1#x /% ?x=%zz /%E0%A4%A /%EF%BF%BD /%ED%A0%80".split(" ");
  test.each(targets)("400 to a target that is malformed: %s", async (rest) => {
    for (const method of ["GET", "PUT", "PATCH", "DELETE"])
      expect((await raw(wire(`${method} ${ITEMS}${rest}`, HOST))).status).toBe(400);
  });

  test("421 to a Host that only looks like ours, 200 to any that is, or is an address", async () => {
    for (const [request, asks] of operations())
      for (const host of ["localhost.evil.example:80", "evillocalhost", "1.2.3.4.example"])
        expect([host, await status(request, { ...asks, host })]).toEqual([host, 421]);
    for (const host of ["LOCALHOST", "a.localhost:9", "[::1]:80", "10.0.0.9"])
      expect([host, await status(`GET ${ITEMS}/1`, { host })]).toEqual([host, 200]);
  });

  test("200 in HTTP/1.0 without Host, as health checks ask", async () => {
    expect((await raw(wire(`GET ${ITEMS}/1 HTTP/1.0`))).status).toBe(200);
    expect((await raw(wire(`GET /aaaaaaaaaaa${ITEMS}/1 HTTP/1.0`))).status).toBe(404);
  });

  const near = "/items/ //items /items/1/2 /ITEMS /x?/items /.* /:id /faviconXico /swagger/ui/js";
  const nowhere = near.replaceAll("/items", ITEMS).replace("/ITEMS", ITEMS.toUpperCase());
  test.each(nowhere.split(" "))("404 No such path: %s", async (path) => {
    const { json, status } = await raw(wire(`GET ${path}`, HOST));
    expect([status, json.error]).toEqual([404, "No such path"]);
  });

  test("404 arrives though its client sends on, and says close", async () => {
    const piece = "x".repeat(50_000);
    const head = wire("POST /nowhere", HOST, "Connection: close", "Content-Length: 150000");
    const { answer, socket } = await open(live, head, piece);
    for (const each of [piece, piece]) {
      await ask(`GET ${ITEMS}/9`); // so the server has seen what came before
      expect(socket.write(each)).toBe(each.length);
    }
    expect((await inspect(live, "POST /nowhere", parse(await answer))).status).toBe(404);
  });

  test("501 to a method that no path has, and to CONNECT whatever its Host", async () => {
    for (const request of [`TRACE ${ITEMS}`, `CONNECT ${ITEMS}`, "PROPFIND /nowhere"])
      expect((await raw(wire(request, HOST))).status).toBe(501);
    expect((await raw(wire("CONNECT a.example:443", "Host: a.example:443"))).status).toBe(501);
  });
});

chapter("when a request has several faults, the first in the order of the protocol wins", () => {
  const form = { "content-type": "application/x-www-form-urlencoded" };
  const merge = { "content-type": "application/merge-patch+json" };
  const writer = { authorization: "Bearer write" };
  const reader = { authorization: "bEaReR look" };
  const html = { accept: "text/html" };
  const stale = { "if-match": '"x"' };
  const big = { body: "x".repeat(65_537) };
  const evil = { host: "evil.example" };
  const worse = fresh({ id: "2", name: "" });
  const [one, none] = [`${ITEMS}/1`, `${ITEMS}/9`];

  const faults: [status: number, faults: string, request: string, asks: Asks][] = [
    [421, "Host, method", `PROPFIND ${ITEMS}`, evil],
    [404, "path, token", "POST /nowhere", { authorization: "Bearer wrong" }],
    [405, "method of the path, token", `POST ${one}`, {}],
    [204, "OPTIONS needs no token", `OPTIONS ${ITEMS}`, {}],
    [401, "token, type", `POST ${ITEMS}`, { ...form, body: "a=b" }],
    [403, "token that may only read, type", `POST ${ITEMS}`, { ...form, ...reader, body: "a=b" }],
    [415, "type, size", `POST ${ITEMS}`, { ...merge, ...writer, ...big }],
    [413, "size, JSON", `PUT ${none}`, { ...writer, ...html, ...big }],
    [400, "missing name, Accept", `PUT ${one}`, { ...writer, ...html, json: {} }],
    [400, "query, Accept", `GET ${ITEMS}?limit=0`, { ...reader, ...html }],
    [422, "value, Accept", `POST ${ITEMS}`, { ...writer, ...html, json: fresh({ id: "" }) }],
    [422, "value, condition, id", `PUT ${one}`, { ...writer, ...stale, json: worse }],
    [406, "Accept, item", `GET ${none}`, { ...reader, ...html }],
    [406, "Accept, condition", `PUT ${one}`, { ...writer, ...html, ...stale, json: fresh({}) }],
    [412, "condition, id", `PATCH ${one}`, { ...writer, ...stale, json: { id: "2" } }],
  ];
  test.each(faults)("%d: %s", async (expected, _, request, asks) => {
    expect(await guarded.status(request, asks)).toBe(expected);
  });
});

// ── Who gets in ── tokens, hosts, pages, and how often ─────────────────────────────────────────

chapter("TOKEN and READ_TOKEN", () => {
  const unknown = '401 Bearer realm="api"';
  async function challenge(request: string, authorization?: string) {
    const { headers, status } = await guarded.ask(request, authorization ? { authorization } : {});
    return `${status} ${headers.get("www-authenticate")}`;
  }

  test("401 and 403 to each operation, with the challenge of RFC 6750", async () => {
    const few = '403 Bearer realm="api", error="insufficient_scope"';
    for (const [request] of operations()) {
      expect(await challenge(request)).toBe(unknown);
      if (!request.startsWith("GET")) expect(await challenge(request, "Bearer look")).toBe(few);
    }
  });

  test("401 has an error only where a bearer token was given", async () => {
    for (const other of ["Basic write", "write", "Bearer", "Bearer write, x"])
      expect(await challenge(`POST ${ITEMS}`, other)).toBe(unknown);
    for (const wrong of ["Bearer wrong", "Bearer writ", "bearer writes"])
      expect(await challenge(`POST ${ITEMS}`, wrong)).toBe(`${unknown}, error="invalid_token"`);
  });

  test("both tokens read, one writes, in any case of Bearer; the docs are open", async () => {
    const asks = { json: fresh({ id: "token" }), authorization: "BEARER  write" };
    expect(await guarded.status(`POST ${ITEMS}`, asks)).toBe(201);
    for (const authorization of ["Bearer look", "bearer write"])
      expect(await guarded.status(`GET ${ITEMS}/1`, { authorization })).toBe(200);
    for (const path of ["/swagger", "/swagger/json", "/favicon.ico"])
      expect(await guarded.status(`GET ${path}`)).toBe(200);
  });
});

chapter("TOKEN alone, ALLOWED_HOSTS and CORS_ORIGIN", () => {
  const pages = ["http://page.example", "http://b.example:81"];
  const hosts = "items.example, Other.example, a";
  const settings = { ALLOWED_HOSTS: hosts, CORS_ORIGIN: pages.join(", "), TOKEN: "s3cret" };
  const started = start(settings);

  test("reads are open, writes need the token, which is printed nowhere", async () => {
    const { status, stderr, stdout } = await started;
    expect(await status(`GET ${ITEMS}/1`)).toBe(200);
    expect(await status(`DELETE ${ITEMS}/1`)).toBe(401);
    expect(await status(`DELETE ${ITEMS}/9`, { authorization: "Bearer s3cret" })).toBe(404);
    await stdout.until(/404 {2}DELETE/); // the log is there while the server runs
    expect(stdout.text + stderr.text).not.toContain("s3cret");
  });

  test("421 to a Host that is not allowed, 200 to one that is, with any port", async () => {
    const { status } = await started;
    for (const host of ["items.example:99", "other.EXAMPLE", "127.0.0.1", "a"])
      expect(await status(`GET ${ITEMS}/1`, { host })).toBe(200);
    expect(await status(`GET ${ITEMS}/1`, { host: "evil.example" })).toBe(421);
  });

  const known = [`GET ${ITEMS}/1`, "GET /swagger", `OPTIONS ${ITEMS}`, `DELETE ${ITEMS}/1`];
  const unknown = [`GET ${ITEMS}/%`, `PROPFIND ${ITEMS}`, "GET /nowhere"];
  test.each([...known, ...unknown])("a page that is let in may read all of %s", async (request) => {
    const open = [...pages, "http://localhost:5173"];
    for (const asks of [{}, { "if-none-match": "*" }, { host: "evil.example" }])
      for (const origin of [...open, "http://evil.example", "http://page.example:81", "null"]) {
        const { headers } = await (await started).ask(request, { ...asks, origin });
        expect(headers.get("vary")).toBe("Accept, Origin");
        const [allowed, exposed] = open.includes(origin) ? [origin, "*"] : [null, null];
        expect(headers.get("access-control-allow-origin")).toBe(allowed);
        expect(headers.get("access-control-expose-headers")).toBe(exposed);
        expect(headers.has("access-control-max-age")).toBe(false);
        expect(headers.has("access-control-allow-credentials")).toBe(false);
      }
  });

  test("the document has a lock on reads only where they need a token", async () => {
    const lockOf = async (to: Live) => {
      const { responses, security } = (await documentOf(to)).paths[ITEMS]?.get ?? {};
      return [security, Object.keys(responses ?? {}).includes("401")];
    };
    const locks = await Promise.all([live, await started, guarded].map(lockOf));
    const isOpen = [[], false]; // where security is not said, what holds for all counts
    expect(locks).toEqual([isOpen, isOpen, [undefined, true]]);
    const text = JSON.stringify(await documentOf(guarded));
    expect(text).toMatch(/"security":\[\{"bearer":\[\]\}\].*"scheme":"bearer"/);
  });
});

chapter("CORS_ORIGIN=* and REHEARSE", () => {
  const started = start({ CORS_ORIGIN: "*", REHEARSE: "1" });

  test("every page is let in, and no cache gives one the answer of another", async () => {
    const { headers } = await (await started).ask(`GET ${ITEMS}/9`, { origin: "http://a.example" });
    expect(headers.get("access-control-allow-origin")).toBe("*");
    expect(headers.get("vary")).toBe("Accept, Prefer");
  });

  test.each([
    [407, "proxy-authenticate", /realm=/],
    [416, "content-range", /^bytes \*\/0$/],
    [418, "preference-applied", /^code=418$/],
    [426, "connection", /^upgrade/],
    [426, "upgrade", /^HTTP/],
    [503, "retry-after", /^1$/],
  ])("Prefer: code=%d gets it, with %s", async (code, field, value) => {
    const { status: statusOf } = await started;
    const request = wire(`GET ${ITEMS}/1`, HOST, `Prefer: wait=1, code=${code}`);
    const { headers, status } = await raw(request, await started);
    expect([status, headers.get("preference-applied")]).toEqual([code, `code=${code}`]);
    expect(headers.get(field)).toMatch(value);
    // No success can be rehearsed, nor anything without the setting.
    for (const other of [code - 200, code * 10])
      expect(await statusOf(`GET ${ITEMS}/1`, { prefer: `code=${other}` })).toBe(200);
    expect(await live.status(`GET ${ITEMS}/1`, { prefer: `code=${code}` })).toBe(200);
  });

  test("the document says where each parameter goes; all that is taken and given is JSON", async () => {
    const { info, paths } = await documentOf(await started);
    const license = { name: "MIT", url: "https://opensource.org/license/mit" };
    const contact = { name: "Whoever runs this server" };
    expect(info).toMatchObject({ title: "Items", version: "1.0.0", contact, license });
    const [prefer, json] = ["header Prefer", "application/json"];
    const fields = `header If-Match, header If-None-Match, ${prefer}`;
    const lines = Object.entries(paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => {
        const { operationId, parameters = [], requestBody, responses } = operation;
        expect(`${operation.summary}: ${operation.description}`).toMatch(/^[A-Z][a-z ]+: .+\.$/);
        const all = parameters.map((each) => `${each.in} ${each.name}`).join(", ");
        const taken = Object.keys(requestBody?.content ?? {}).join(", ");
        const given = Object.values(responses).flatMap(({ content = {} }) => Object.keys(content));
        return [`${method} ${path} ${operationId}: ${all}`, taken, [...new Set(given)].join(", ")];
      }),
    );
    expect(lines.filter(([line]) => line?.includes(` ${ITEMS}`))).toEqual([
      [`get ${ITEMS} listItems: query limit, query after, query name, ${fields}`, "", json],
      [`post ${ITEMS} createItem: ${prefer}`, json, json],
      [`get ${ITEMS}/{id} getItem: path id, ${fields}`, "", json],
      [`put ${ITEMS}/{id} putItem: path id, ${fields}`, json, json],
      [
        `patch ${ITEMS}/{id} patchItem: path id, ${fields}`,
        `${json}, application/merge-patch+json`,
        json,
      ],
      [`delete ${ITEMS}/{id} deleteItem: path id, ${fields}`, "", json],
    ]);
    const text = JSON.stringify(await documentOf(live));
    expect(text).not.toContain("Prefer");
    const types = new Set([...text.matchAll(/"type":"(.+?)"/g)].map(([, type]) => type));
    expect([...types].sort()).toEqual(["array", "integer", "object", "string"]);
  });
});

chapter("RATE", () => {
  test("429 to each operation of a client over RATE, whomever it says it is", async () => {
    const to = await start({ RATE: "1" });
    for (const [request, asks] of operations()) {
      let error: unknown;
      while (error !== "Too many requests in this second") {
        const from = { "x-forwarded-for": crypto.randomUUID() };
        ({ error } = (await to.ask(request, { ...asks, ...from, fleeting: true })).json);
      }
    }
    expect(await to.status("OPTIONS /nowhere", PAGE)).toBe(204); // a preflight does not count
    while ((await to.status(`GET ${ITEMS}`)) === 429); // nor the next second
    await to.stop();
  });
});

// ── Failures ── caused for real ────────────────────────────────────────────────────────────────

chapter("failures", () => {
  test("500 where an item breaks its schema, and to all when the table is gone", async () => {
    const to = await start();
    for (const length of [2, 3, 4, 5, 6, 7, 8, 9]) {
      (await open(to)).socket.end(`${postOf(length)}{`); // this client is gone before its answer
      await to.ask(`GET ${ITEMS}/2`);
    }
    await outside(to.store, `update items set document = '{"id":"1","name":5}' where id = '1'`);
    for (const target of [`${ITEMS}/1`, `${ITEMS}?limit=1`])
      expect(await to.answer(`GET ${target}`)).toBe('500 {"error":"Server error"}');
    expect(await to.status(`GET ${ITEMS}?after=1`)).toBe(200);
    // Of those that share a commit, only those fail that break a rule of the table.
    const name = POSTGRES ? "(document::json ->> 'name')" : "(document ->> '$.name')";
    await outside(to.store, `create unique index one_of_a_name on items (${name})`);
    const named = (index: number) => (index % 10 ? `n${index}` : "banana");
    const writes = fifty.map((index) =>
      to.ask(`POST ${ITEMS}`, { json: fresh({ id: `${index}, shared`, name: named(index) }) }),
    );
    expect(await tally(writes)).toEqual({ 201: 45, 500: 5 });
    await outside(to.store, "drop table items");
    for (const [request, asks] of [...operations(), ...operations()])
      expect(await to.answer(request, asks)).toBe('500 {"error":"Server error"}');
    await to.stop();
    expect([...to.stderr.text.matchAll(/^GET \S+\/1: .*\n +at /gm)].length).toBeLessThan(2); // once whole
    expect(to.stderr.text).toMatch(/^GET \S+\/1: the answer breaks its schema.*\n/);
    expect(to.stderr.text).toMatch(/no such table: items|relation "items" does not exist/);
    expect(to.stdout.text + to.stderr.text).not.toMatch(/Writes|Reads|Warning/);
    expect(to.stdout.text.match(/ {2}gone {2}POST/g)).toHaveLength(8);
  });

  test("503 to a write that waits too long for a lock, and it is not made later", async () => {
    const to = await start();
    const unlock = await lock(to.store, "share");
    const writes = operations().filter(([request]) => !request.startsWith("GET"));
    const statuses = Promise.all(writes.map(([request, asks]) => to.status(request, asks)));
    if (!POSTGRES) expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    expect(await statuses).toEqual([503, 503, 503, 503]);
    expect(await to.status(`OPTIONS ${ITEMS}`)).toBe(204); // which does not say that it is over
    expect(await to.status(`DELETE ${ITEMS}/1`)).toBe(503);
    await unlock();
    expect(await to.status(`PUT ${ITEMS}/3`, { json: fresh({}) })).toBe(201);
    expect([...(await namesOf(to.store)).values()].sort()).toEqual(["apple", "banana", "cherry"]);
    await to.stop();
    expect(to.stderr.text).toMatch(/^Writes get 503: .+\.\nWrites are served again\.\n$/);
  });

  test("503 to each operation that is still asked while the server ends", async () => {
    const to = await start({ DELAY: "25000" });
    const asked = new Map<string, Awaited<ReturnType<typeof open>>>();
    for (const [request] of operations()) asked.set(request, await open(to, `${request} HT`));
    // DELAY keeps back all but a preflight; at the end, what waits is answered at once.
    const waiting = to.ask(`GET ${ITEMS}/1`);
    const first = await Promise.race([waiting, to.ask("OPTIONS /nowhere", PAGE)]);
    expect(first.status).toBe(204);
    to.child.kill("SIGTERM");
    while (await isListening(to));
    for (const [request, { answer, socket }] of asked) {
      socket.write(`TP/1.1\r\n${HOST}\r\nContent-Length: 0\r\n\r\n`);
      const { json, status } = await inspect(to, request, parse(await answer));
      expect([status, json.error]).toEqual([503, "The server is shutting down"]);
    }
    expect((await waiting).status).toBe(200);
    await to.stop();
  });

  test("HOST=0.0.0.0 prints an address that others can type, and a warning", async () => {
    const to = await start({ HOST: "0.0.0.0" });
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    await to.stop();
    expect(to.url).not.toContain("127.0.0.1");
    expect(to.stdout.text).toMatch(/^Warning: other machines can write here. Set TOKEN to .+\.$/m);
  });

  test("a .env in UTF-16, over which Bun would pass, ends the start", async () => {
    const cwd = mkdtempSync(join(FOLDER, "env-"));
    await Bun.write(join(cwd, ".env"), Buffer.from("TOKEN=s3cret\n", "utf-16le"));
    const { stderr } = await runToItsEnd({}, { cwd });
    expect(stderr).toBe(".env may only be a file of UTF-8 text.\n");
  });

  test.each([
    'PORT is "65536", but may only be a free port from 0 to 65535.',
    'HOST is "192.0.2.1", but may only be an address of this machine (this machine does not have it).',
    "DATABASE_URL may only be one that opens: sqlite://FILE, sqlite://:memory: or postgres://USER@HOST/DATABASE.",
    "TOKEN may only be visible ASCII characters without a space (it is set, but empty).",
    'ALLOWED_HOSTS is "a.test:80", but may only be hosts without a port.',
    'ALLOWED_HOSTS is ",", but may only be hosts without a port.',
    'CORS_ORIGIN is "http://a.test/", but may only be * or origins like http://a.test:81.',
    'RATE is "1000000", but may only be a whole number up to 999999.',
    'DELAY is "25001", but may only be a whole number of milliseconds up to 25000.',
    'REHEARSE is "2", but may only be 0 or 1.',
    'LOG is "1", but may only be on or off.',
  ])("a start that is refused: %s", async (sentence) => {
    const [, name = "", text = name === "TOKEN" ? "" : "sqlite://"] =
      /^(\w+)(?: is "(.*?)",)?/.exec(sentence) ?? [];
    const end = await runToItsEnd({ [name]: text });
    expect(end).toEqual({ code: 1, stderr: `${sentence}\n`, stdout: "" });
  });
});

// ── A promise ── what was acknowledged is there, and a decision is one step with its write ──────

chapter("a 2xx is a promise", () => {
  // Two processes, which start at once on an empty store.
  const started = newStore().then((DATABASE_URL) =>
    Promise.all([start({ DATABASE_URL }), start({ DATABASE_URL })]),
  );
  /** Fifty clients ask the same at once, of the one process and of the other: one wins. */
  async function race(request: string, won: number, lost: number, asks?: (name: string) => Asks) {
    const [one, two] = await started;
    const replies = fifty.map((index) =>
      (index % 2 ? one : two).ask(request, { ...asks?.(`${request} ${index}`), fleeting: true }),
    );
    expect(await tally(replies, lost)).toEqual({ [won]: 1, [lost]: 49 });
  }

  test("of fifty who create one id, one does; of fifty who hold one ETag, one wins", async () => {
    const path = `${ITEMS}/race`;
    const named = (name: string) => ({ json: fresh({ id: "race", name }) });
    await race(`POST ${ITEMS}`, 201, 400, named);
    for (const method of ["PUT", "PATCH"]) {
      const etag = (await (await started)[0].ask(`GET ${path}`)).headers.get("etag");
      await race(`${method} ${path}`, 200, 412, (name) => ({ ...named(name), "if-match": etag }));
    }
    await race(`DELETE ${path}`, 204, 404);
    await race(`PUT ${path}`, 201, 412, (name) => ({ ...named(name), "if-none-match": "*" }));
  });

  test("killed or ended under load, it starts again with all that it acknowledged", async () => {
    const DATABASE_URL = await newStore();
    const kept: string[] = [];
    for (const signal of ["SIGKILL", "SIGTERM"] as const) {
      const to = await start({ DATABASE_URL, LOG: "off" });
      // What was deleted stays deleted, also of what was there first.
      expect(await to.status(`DELETE ${ITEMS}/1`)).toBe(signal === "SIGKILL" ? 204 : 404);
      const [enough, most] = [Promise.withResolvers<void>(), kept.length + 300];
      const clients = fifty.map(async (client) => {
        for (let turn = 0; ; turn++) {
          const id = `${signal} ${client} ${turn}`;
          const status = await sent(`POST ${to.url}${ITEMS}`, fresh({ id }));
          if (status !== 201) return status;
          if (kept.push(id) === most) enough.resolve();
        }
      });
      await enough.promise;
      expect(await to.stop(signal)).toBe(signal === "SIGTERM" ? 0 : 137);
      for (const last of await Promise.all(clients)) expect([0, 503]).toContain(last);
    }
    const names = await namesOf(DATABASE_URL);
    expect([names.has("1"), ...kept.filter((id) => !names.has(id))]).toEqual([false]);
  });
});

// ── Another item ── a copy whose item has members of other kinds, which its schema alone says ───

chapter("another item", () => {
  test("keeps what its schema takes, refuses what it does not, and takes a merge patch", async () => {
    const folder = mkdtempSync(join(FOLDER, "copy-"));
    for (const name of ["package.json", "bun.lock", "bunfig.toml", "node_modules"])
      if (existsSync(beside(name))) symlinkSync(beside(name), join(folder, name));
    const members = `at: t.Optional(t.String({ format: "date-time" })), note: t.Optional(t.String()),
      size: t.Optional(t.Object({ wide: t.Number(), flat: t.Optional(t.Boolean()) })),\n`;
    const code = readFileSync(beside("server.ts"), "utf8");
    const odd = `.get("/:id/odd", ({ set }) => void (set.headers.odd = "a\\nb"))\n`;
    const copy = code.replace("  name: t.String(", `${members}$&`);
    await Bun.write(join(folder, "server.ts"), copy.replace(/(?=\n {4}\.delete\()/, `\n${odd}`));
    const env = environment({ DATABASE_URL: "sqlite://:memory:" });
    const { child, stdout } = await inTurn(async () => spawn(program(folder), folder, env));
    const url = await stdout.until(/http:\/\/\S+(?=\n)/);
    const put = (more: Members) => sent(`PUT ${url}${ITEMS}/1`, fresh(more));
    for (const at of ["2025-02-30T10:00:00Z", "2026-01-31T24:00:00Z", "2026-01-31", ""])
      expect([at, await put({ at })]).toEqual([at, 422]);
    for (const bad of [{ note: "\0" }, { note: 5 }, { size: { flat: true } }, { size: [] }])
      expect([bad, await put(bad)]).toEqual([bad, 422]);
    for (const [method, json, error] of [
      ["PUT", fresh({ note: "\0" }), "No text may hold U+0000"],
      ["PATCH", { size: { flat: true } }, "wide must be as the document says"],
    ] as const) {
      const init = { headers: { "content-type": "application/json" }, body: JSON.stringify(json) };
      const refused = await fetch(`${url}${ITEMS}/2`, { method, ...init });
      expect(await refused.json()).toEqual({ error });
    }
    expect(await sent(`GET ${url}${ITEMS}/1/odd`)).toBe(500); // no field may hold a line break
    const good = { at: "2024-02-29T23:59:59.5+01:00", note: "", size: { wide: 1.5, flat: true } };
    expect(await put(good)).toBe(200);
    const patch = { note: null, size: { flat: null, wide: 2 } };
    expect(await sent(`PATCH ${url}${ITEMS}/1`, patch)).toBe(200);
    const { items } = (await (await fetch(`${url}${ITEMS}?limit=1`)).json()) as Members;
    expect(items).toEqual([{ ...fresh({ id: "1", at: good.at }), size: { wide: 2 } }]);
    child.kill();
  });
});

// ── The document and the README ── say what is true, and the same ──────────────────────────────

chapter("the document", () => {
  test("has 401, 403 and 429 only where they are possible", async () => {
    const [all, open] = [await documentOf(guarded), await documentOf(live)];
    const possible = pairsOf(all).filter(({ status }) => ![401, 403, 429].includes(status));
    expect(pairsOf(open)).toEqual(possible);
  });

  test("has examples that are true: sent in order, each gets its first outcome", async () => {
    const to = await start();
    const { paths, servers } = await documentOf(to);
    expect(servers).toEqual([{ url: to.url }]);
    for (const [path, methods] of Object.entries(paths))
      for (const [method, { parameters, requestBody, responses }] of Object.entries(methods)) {
        const id = parameters?.find(({ name }) => name === "id");
        const target = path.replace("{id}", `${id?.schema.example ?? id?.example}`);
        for (const [type, { schema }] of Object.entries(requestBody?.content ?? { "": {} })) {
          const asks = schema ? { "content-type": type, json: exampleOf(schema) } : {};
          const status = await to.status(`${method.toUpperCase()} ${target}`, asks);
          const first = Object.keys(responses)[0] ?? "";
          expect([target, method, `${status}`]).toEqual([target, method, first]);
        }
      }
    await to.stop();
  });
});

const readme = existsSync(beside("README.md")) ? readFileSync(beside("README.md"), "utf8") : "";
const hasReadme = import.meta.main && readme.includes(`localhost:3000${ITEMS}`);
if (import.meta.main && !hasReadme)
  console.log("Skipped: the README, for none is here that is about this path.");
const hasCurl = hasReadme && can(["curl"], "the lines of the README");

chapter("the README", () => {
  const blocks = [...readme.matchAll(/^```\w+\n([^]*?)^```$/gm)].map(([, code = ""]) => code);
  const rows = rowsOf(readme);

  test.if(hasReadme)("has a row for each answer of the document, and no other", async () => {
    const document = await documentOf(guarded);
    const guards = document.info.description.matchAll(/^1\. (\d+: .+)$/gm);
    const late = ["any 500: Server error", "any 503: The store is busy or out of reach"];
    const documented = new Set([...late, ...[...guards].map(([, guard]) => `any ${guard}`)]);
    for (const { pair, when } of pairsOf(document))
      for (const sentence of when.split("; ")) documented.add(`${pair}: ${sentence}`);

    const told = new Set<string>();
    for (const { requests, sentence, status } of rows) {
      const outcome = ` ${status}: ${sentence}`;
      const all = [...documented].filter((each) => each.endsWith(outcome));
      const own = requests.filter((each) => each === "any" || each.includes(ITEMS));
      for (const request of own) told.add(request + outcome);
      const isAny = requests.includes("any");
      for (const each of all) if (isAny || each.startsWith("any")) told.add(each);
    }
    const silent = [...documented].filter((each) => each.endsWith("The server is shutting down"));
    expect([...documented.symmetricDifference(told)]).toEqual(silent);
  });

  test.if(hasReadme)("has a row for each setting that --help names, with its default", async () => {
    const { code, stdout } = await runToItsEnd({}, { args: ["--help"] });
    const help = stdout.matchAll(/^ {2}([A-Z_]+) +.+?(?: \(default: (.+)\))?$/gm);
    expect(stdout).toStartWith(
      "Settings are in the environment or in .env: PORT=3001 bun server.ts\n",
    );
    const table = readme.matchAll(/^\| (`[A-Z_]+`.*?) \| (.+?) \| .+ \|$/gm);
    const told = [...table].flatMap(([, names = "", value]) =>
      (names.match(/[A-Z_]+/g) ?? []).map((name) => [name, value]),
    );
    expect([...help].map(([, name, value = "none"]) => [name, value])).toEqual(told);
    expect([code, told.map(([name]) => name).join(" ")]).toEqual([0, SETTINGS]);
  });

  test.if(hasReadme)("says once of each code why it is not its neighbour", async () => {
    const told = rows.filter(({ why }) => why);
    const whys = new Map(told.map(({ status, why }) => [status, `${status}, ${why}`]));
    expect([told.length, whys.size]).toEqual([21, 21]);
    for (const { pair, status, why } of pairsOf(await documentOf(guarded)))
      expect([pair, why]).toEqual([pair, whys.get(status) ?? ""]);
    const code = readFileSync(beside("server.ts"), "utf8");
    for (const why of whys.values()) expect(code).toContain(`"${why}"`);
  });

  test.if(hasCurl)("has a tour that does what it says, and collects all twenty-one", async () => {
    const tour = blocks.find((code) => code.startsWith("ask()")) ?? "";
    const COMMENT = /# (\d{3} .+)$/gm;
    const comments = [...tour.matchAll(COMMENT)].map(([, comment]) => comment);
    const created = operationOf(`POST ${ITEMS}`)?.requestBody?.content["application/json"];
    expect(tour).toContain(`--json '${JSON.stringify(exampleOf(created?.schema))}'`);
    expect(comments).toEqual(rows.map(({ sentence, status }) => `${status} ${sentence}`));

    const [line = ""] = /TOKEN=\S+ ([A-Z_]+=\S+ )*bun server\.ts/.exec(readme) ?? [];
    const settings = Object.fromEntries(line.matchAll(/(\S+)=(\S+)/g).map(([, ...pair]) => pair));
    const folder = mkdtempSync(join(FOLDER, "tour-"));
    const own = { DATABASE_URL: "sqlite://items.sqlite", PORT: "0" };
    const { child, output } = onTerminal(program().slice(1), { ...settings, ...own }, folder);
    const port = Number(await output.until(/(?<=http:\/\/\S+:)\d+/));
    const printed = await run(tour.replace(COMMENT, "$&\necho '---'"), { port }, folder);
    const answers = printed.split("---\n");
    for (const [index, { sentence, status }] of rows.entries()) {
      const codes = answers[index]?.match(/(?<=^HTTP\/1\.1 )\d{3}/gm) ?? [];
      expect([sentence, codes]).toEqual([sentence, [`${status}`]]);
      if (status >= 400) expect(answers[index]).toContain(JSON.stringify({ error: sentence }));
    }
    await open({ port }, postOf(9), "{"); // who stalls, and the end is in order all the same
    child.kill("SIGTERM");
    expect(await output.until(/All were found\./)).toBe("All were found.");
    const stars = [...output.text.matchAll(/★ (\d+) of 21/g)].map(([, count]) => Number(count));
    expect(stars).toEqual(Array.from({ length: 21 }, (_, index) => index + 1));
    const coloured = [...output.text.matchAll(/\[(\d+)m([2-5])\d\d\S*\[0m {2}/g)];
    const colours = new Set(coloured.map(([, colour, digit]) => `${digit}xx ${colour}`));
    expect([...colours].sort()).toEqual(["2xx 32", "3xx 36", "4xx 33", "5xx 31"]);
  });
});

// ── In the end ── no server is left, and what was seen is what is documented ────────────────────

afterAll(async () => {
  try {
    for (const to of running) await to.stop();
  } finally {
    const dropped = databases.map((name) => admin?.unsafe(`drop database ${name} with (force)`));
    await Promise.all(dropped);
    await admin?.close();
    rmSync(FOLDER, { recursive: true });
  }

  // Of a part of the tests, asked for with -t, nothing follows about the whole.
  if (!import.meta.main || !contract || / (-t|--test-name-pattern)\b/.test(commandLine())) return;
  const pairs = pairsOf(contract).map(({ pair }) => pair);
  expect(pairs.filter((pair) => !seen.has(pair))).toEqual([]); // `inspect` refuses all others
}, 600_000);

// ── Starting servers ───────────────────────────────────────────────────────────────────────────

export type Settings = Record<string, string>;
export type Output = ReturnType<typeof reader>;
export type How = { args?: string[]; cwd?: string; folder?: string; within?: string[] };
export type Live = {
  /** The line that its log must have for each request: `404  GET  /items/9  Item not found`. */
  asked: string[];
  child: Subprocess;
  port: number;
  settings: Settings;
  stderr: Output;
  stdout: Output;
  store: string;
  url: string;
  ask: (request: string, asks?: Asks) => Promise<Reply>;
  status: (request: string, asks?: Asks) => Promise<number>;
  answer: (request: string, asks?: Asks) => Promise<string>;
  stop: (signal?: NodeJS.Signals) => Promise<number>;
};

/** A server of its own, once the document is there: it is that of a server with all guards. */
export async function start(settings: Settings = {}, folder?: string, within?: string[]) {
  documentIsThere ??= launch(GUARDS).then(async (to) => {
    contract = await documentOf((guarded = to));
  });
  await documentIsThere;
  return launch(settings, folder, within);
}

/** What `bun server.ts` starts in a folder; `within` is a command that starts another. */
async function launch(settings: Settings, folder?: string, within: string[] = []) {
  const store = settings.DATABASE_URL ?? (await newStore());
  const env = environment({ LOG: "on", ...settings, DATABASE_URL: store });
  const { child, stderr, stdout, url } = await inTurn(async () => {
    const spawned = spawn([...within, ...program(folder)], FOLDER, env);
    return { ...spawned, url: await spawned.stdout.until(/http:\/\/\S+(?=\n)/) };
  });
  if (!url) throw new Error(`The server did not start: ${stderr.text}`);
  const port = Number(new URL(url).port);
  const ask: Live["ask"] = (request, asks) => send(to, request, asks);
  const status: Live["status"] = async (...asked) => (await ask(...asked)).status;
  const answer: Live["answer"] = async (...asked) => {
    const { status, text } = await ask(...asked);
    return `${status} ${text}`;
  };
  const own = { ask, answer, asked: [], status, stop };
  const to: Live = { child, port, settings, stderr, stdout, store, url, ...own };
  running.add(to);
  void child.exited.then(() => running.delete(to));
  return to;

  /** Ends the server, with 0; it must have said where and how it runs, and have logged each request. */
  async function stop(signal: NodeJS.Signals = "SIGTERM") {
    child.kill(signal);
    const code = await child.exited;
    await Promise.all([stdout.done, stderr.done]);
    if (signal !== "SIGTERM") return code;
    expect([code, stderr.text]).toEqual([0, stderr.text]);
    const inForce = SETTINGS.split(" ").filter((name) => env[name]);
    const shown = inForce.map((name) => (/TOKEN|URL/.test(name) ? name : `${name}=${env[name]}`));
    const says = `Items  ${url}\nDocs   ${url}/swagger\nStore  as DATABASE_URL says\nWith   `;
    expect(stdout.text).toContain(`${says}${shown.join(" ")}\n`);
    // 2026-11-28T10:24:41.897Z  127.0.0.1  404  GET  /items/9  0.4 ms  Item not found
    const line = /^\S+Z {2}[\d.]+ {2}(\d{3} {2}\S+ {2}\S+) {2}[\d.]+ ms(.*)$/gm;
    const lines = [...stdout.text.matchAll(line)].map(([, asked = "", why = ""]) => asked + why);
    if (settings.LOG !== "off") expect(lines.sort()).toEqual(to.asked.sort());
    return code;
  }
}

/** Does no more at once than there are cores: many starts side by side are slow, each of them. */
export async function inTurn<Done>(work: () => Promise<Done>) {
  const core = starts++ % cores.length;
  const { promise, resolve } = Promise.withResolvers<void>();
  const before = cores[core];
  cores[core] = promise;
  await before;
  return work().finally(resolve);
}

/** Starts a process. It has a channel, and a server that has one ends with these tests. */
export function spawn(command: string[], cwd = FOLDER, env = environment()) {
  const child = Bun.spawn(command, { cwd, env, ipc() {}, stdout: "pipe", stderr: "pipe" });
  return { child, stderr: reader(child.stderr), stdout: reader(child.stdout) };
}

/** Starts Bun on a terminal, with which it ends. */
export function onTerminal(args: string[], settings: Settings = {}, cwd = FOLDER) {
  const screen = new TransformStream<Uint8Array, Uint8Array>();
  const [output, writer] = [reader(screen.readable), screen.writable.getWriter()];
  const data = (_: unknown, bytes: Uint8Array) => void writer.write(bytes.slice());
  const child = Bun.spawn([process.execPath, ...args], {
    cwd,
    env: environment({ DATABASE_URL: "sqlite://:memory:", ...settings }),
    terminal: { data, exit: () => void writer.close() },
  });
  return { child, output };
}

/** The environment of a child: of the settings, only these. */
export function environment(settings?: Settings): Record<string, string | undefined> {
  const none = Object.fromEntries(SETTINGS.split(" ").map((name) => [name, undefined]));
  return { ...Bun.env, ...none, ...(settings && { NO_COLOR: "", PORT: "0", ...settings }) };
}

/** `bun server.ts`, with its bunfig.toml: to be started where no .env is. */
export function program(folder = import.meta.dir) {
  const config = join(folder, "bunfig.toml");
  const options = existsSync(config) ? [`--config=${config}`] : [];
  return [process.execPath, ...options, join(folder, "server.ts")];
}

export function beside(name: string) {
  return join(import.meta.dir, name);
}

/** Runs the server until it ends by itself, in a folder without a .env. */
export function runToItsEnd(settings: Settings, how: How = {}) {
  const { args = [], cwd = FOLDER, folder, within = [] } = how;
  return inTurn(async () => {
    const env = environment({ DATABASE_URL: "sqlite://:memory:", ...settings });
    const { child, stderr, stdout } = spawn([...within, ...program(folder), ...args], cwd, env);
    void stdout.until(/^Items/m).then((isStarted) => isStarted && child.kill("SIGKILL"));
    await Promise.all([stdout.done, stderr.done]);
    return { code: await child.exited, stdout: stdout.text, stderr: stderr.text };
  });
}

/** Reads a stream into `text`, and lets one wait for a pattern in it. */
export function reader(stream: ReadableStream<Uint8Array>) {
  let grown = Promise.withResolvers<boolean>();
  const output = { text: "", done: read(), until };
  return output;

  async function read() {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      output.text += decoder.decode(chunk, { stream: true });
      grown.resolve(true);
      grown = Promise.withResolvers();
    }
  }
  async function until(pattern: RegExp) {
    const ended = output.done.then(() => false);
    while (!pattern.test(output.text) && (await Promise.race([grown.promise, ended])));
    return pattern.exec(output.text)?.[0] ?? "";
  }
}

/** What commands of the README print, about this server, in this folder. */
export async function run(commands: string, to: Pick<Live, "port">, folder = FOLDER) {
  const lines = commands.replaceAll("localhost:3000", `localhost:${to.port}`);
  const PATH = `${dirname(process.execPath)}:${Bun.env.PATH}`;
  const { stdout } = spawn(["sh", "-c", lines], folder, { ...environment(), PATH });
  await stdout.done;
  return stdout.text.replaceAll("\r", "");
}

/** Whether a command succeeds here; if not, says what is skipped. */
export function can(command: string[], what: string) {
  const [name = "", ...args] = command;
  const isThere = Bun.which(name) !== null;
  if (isThere && (args.length === 0 || Bun.spawnSync(command).success)) return true;
  console.log(`Skipped: ${what}, for this machine cannot \`${command.slice(0, 2).join(" ")}\`.`);
  return false;
}

/** The command that runs these tests, if this machine can tell. */
function commandLine() {
  const file = "/proc/self/cmdline";
  if (existsSync(file)) return readFileSync(file, "utf8").replaceAll("\0", " ");
  return Bun.which("ps") ? Bun.spawnSync(["ps", "-wwp", `${process.pid}`]).stdout.toString() : "";
}

// ── Stores, from outside ───────────────────────────────────────────────────────────────────────

/** A store that nobody else has: a file, or a database. */
export async function newStore(how = "lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'") {
  const name = `items_test_${process.pid}_${databases.length}`;
  databases.push(name);
  if (!admin) return `sqlite://${join(FOLDER, name)}.sqlite`;
  await admin.unsafe(`create database ${name} template template0 ${how}`);
  return Object.assign(new URL(POSTGRES), { pathname: `/${name}` }).href;
}

/** Runs a statement on a store from outside, as another process would. */
export async function outside(store: string, statement: string) {
  if (store.startsWith("sqlite")) {
    using db = new Database(store.slice("sqlite://".length));
    return db.query(statement).all() as Record<string, string>[];
  }
  await using sql = new SQL(store, { max: 1 });
  return (await sql.unsafe(statement)) as Record<string, string>[];
}

/** Locks a store, as another session would: for writes, or for reads too; gives what ends that. */
export async function lock(store: string, mode: "share" | "access exclusive") {
  if (store.startsWith("sqlite")) {
    const db = new Database(store.slice("sqlite://".length));
    db.run(mode === "share" ? "begin immediate" : "begin exclusive");
    return async () => db.close();
  }
  const session = new SQL(store, { max: 1 });
  await session.unsafe(`begin; lock table items in ${mode} mode`);
  return async () => session.close();
}

/** The names that a store has, by their ids. */
export async function namesOf(store: string) {
  const rows = await outside(store, "select id, document from items");
  return new Map(rows.map(({ id = "", document = "{}" }) => [id, JSON.parse(document).name]));
}

// ── Reading the document and the README ────────────────────────────────────────────────────────

export type Schema = { enum?: string[]; example?: unknown; properties?: Record<string, Schema> };
export type Content = Record<string, { schema?: Schema }>;
export type Operation = Record<"operationId" | "summary" | "description", string> & {
  parameters?: { in: string; name: string; example?: string; schema: Schema }[];
  requestBody?: { content: Content };
  responses: Record<string, { description: string; headers?: object; content?: Content }>;
  security?: unknown[];
};
export type Document = {
  info: { description: string };
  paths: Record<string, Record<string, Operation>>;
  servers: { url: string }[];
};
export type Members = Record<string, unknown>;

export async function documentOf(to: Live) {
  return (await to.ask("GET /swagger/json")).json as Document;
}

/** Every answer that a document has about this resource, with when it comes, and why it. */
export function pairsOf({ paths }: Document) {
  const ours = [ITEMS, `${ITEMS}/{id}`].map((path) => [path, paths[path] ?? {}] as const);
  return ours.flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, { responses }]) =>
      Object.entries(responses).map(([status, { description }]) => {
        const [when = "", why = ""] = description.split("\n\n");
        const pair = `${method.toUpperCase()} ${path} ${status}`;
        return { pair, status: Number(status), when, why };
      }),
    ),
  );
}

/** The example of a schema, or that of each of its members. */
export function exampleOf({ example, properties = {} }: Schema = {}): unknown {
  const members = Object.entries(properties).map(([name, { example }]) => [name, example]);
  return example ?? Object.fromEntries(members);
}

/** An item of the document's own examples, but for these members; it has an id if they do. */
export function fresh(members: Members): Members {
  const content = contract?.paths[ITEMS]?.post?.requestBody?.content;
  const { id: _, ...others } = exampleOf(content?.["application/json"]?.schema) as Members;
  return { ...others, ...members };
}

/** The route of a path, as the document has it. */
export function routeOf(path: string) {
  const [before, id] = path.split(/\/(?=[^/]*$)/);
  return before === ITEMS && id ? `${ITEMS}/{id}` : path;
}

/** What the document has about a request: `GET /items/9`. HEAD is a GET. */
export function operationOf(request: string) {
  const [method = "", target = ""] = request.replace(/^HEAD/, "GET").split(" ");
  return contract?.paths[routeOf(target)]?.[method.toLowerCase()];
}

/** The sentences that a refusal may say, or the messages of a success. */
export function sentencesOf(request: string, status: number) {
  const content = operationOf(request)?.responses[status]?.content;
  const { error, message } = content?.["application/json"]?.schema?.properties ?? {};
  return (error ?? message)?.enum;
}

/** The body of the refusal that says these words. */
export function says(request: string, status: number, words: string) {
  const all = sentencesOf(request, status)?.filter((each) => each.includes(words)) ?? [];
  expect([request, status, words, all.length]).toEqual([request, status, words, 1]);
  return { error: all[0] };
}

/** The words of the document about one route: for the titles of its tests, and for its refusals. */
export function wordsOf(request: string) {
  return {
    says: (status: number, words: string) => says(request, status, words),
    title: (status: number) =>
      `${status} ${operationOf(request)?.responses[status]?.description.split("\n\n", 1)[0]}`,
  };
}

/** Its rows: | `GET /items/:id` | 404 | Item not found | not 400: … |, or `any` for the request. */
export function rowsOf(readme: string) {
  const rows = readme.matchAll(/^\| (any|`[A-Z]+ \/.*?`) \| (\d{3}) \| (.+?) \| ?(.*?) ?\|$/gm);
  return [...rows].map(([, request = "", status, sentence = "", why = ""]) => {
    const requests = request.replaceAll("`", "").replaceAll(":id", "{id}").split(", ");
    return { requests, sentence, status: Number(status), why };
  });
}

// ── Asking ── and what must hold for every answer ──────────────────────────────────────────────

/** A body, as JSON or as it is, and fields. What is fleeting may be gone when it was created. */
export type Asks = {
  body?: string | Uint8Array<ArrayBuffer>;
  fleeting?: boolean;
  json?: unknown;
  [field: string]: unknown;
};
type Got = { status: number; headers: Headers; text: string };
export type Reply = Got & { json: Record<string, unknown> };

/** Sends a request such as `GET /items/1`. A body is JSON, unless a field says otherwise. */
async function send(to: Live, request: string, { body, json, fleeting, ...fields }: Asks = {}) {
  const [method = "", target = ""] = request.split(" ");
  const content = json === undefined ? body : JSON.stringify(json);
  const headers = new Headers(fields as Settings);
  if (content !== undefined && fields["content-type"] === undefined)
    headers.set("content-type", "application/json");
  if (fields["content-type"] === "") headers.delete("content-type");
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : (content ?? null);
  const init = { method, headers, body: bytes, redirect: "manual" } as const;
  const response = await fetch(to.url + target, init);
  const got = { status: response.status, headers: response.headers, text: await response.text() };
  return inspect(to, request, got, fleeting);
}

/** What must hold for every answer of this server. */
export async function inspect(to: Live, request: string, got: Got, fleeting = false) {
  const [method = "", target = ""] = request.split(" ");
  const [path = ""] = target.split(/[?#]/, 1);
  const { headers, status, text } = got;
  const isRehearsed = headers.has("preference-applied");
  if (!isRehearsed) seen.add(`${method.replace("HEAD", "GET")} ${routeOf(path)} ${status}`);
  const isJson = headers.get("content-type")?.startsWith("application/json") ?? false;
  const json = isJson && text ? JSON.parse(text) : {};
  const shown = path.replace(/[^!-~]+/g, encodeURIComponent).slice(0, 1200);
  to.asked.push(`${status}  ${method}  ${shown}${json.error ? `  ${json.error}` : ""}`);

  expect(headers.get("x-content-type-options")).toBe("nosniff");
  expect(headers.get("cache-control")).toBe("no-cache");
  expect(headers.get("vary")).toStartWith("Accept");
  expect(headers.has("date")).toBe(true);
  const { responses } = operationOf(`${method} ${path}`) ?? {};
  if (responses && !isRehearsed) {
    expect(Object.keys(responses)).toContain(`${status}`);
    // Each field of its own is documented, and each that is documented is there.
    const documented = Object.keys(responses[status]?.headers ?? {});
    const isHere = (field: string) => headers.has(field) || /^Link|^Accept/.test(field);
    expect(documented.filter((field) => !isHere(field))).toEqual([]);
    const own = "Accept Accept-Encoding ETag Link Location Retry-After WWW-Authenticate".split(" ");
    const isSilent = (field: string) => headers.has(field) && !documented.includes(field);
    expect(own.filter(isSilent)).toEqual([]);
  }
  const isEmpty = [204, 304].includes(status);
  if (isEmpty || method === "HEAD") expect(text).toBe("");
  if (isEmpty) expect(headers.get("content-length") ?? headers.get("content-type")).toBeNull();
  const sentences = sentencesOf(`${method} ${path}`, status);
  if (sentences && text && !isRehearsed) expect(sentences).toContain(json.error ?? json.message);
  if (status >= 400) {
    if (method !== "HEAD") expect(Object.keys(json)).toEqual(["error"]);
    expect(text).not.toMatch(/select |insert |SQLITE|postgres|server\.ts|node_modules/i);
    for (const field of ["etag", "link", "location"]) expect(headers.get(field)).toBeNull();
  }
  if (status === 401) expect(headers.get("www-authenticate")).toStartWith("Bearer ");
  const allowed = headers.get("allow")?.split(", ");
  if (status === 405 && !isRehearsed) expect(allowed?.includes(method)).toBe(false);
  // Exactly one of them, for what was refused is the type or the coding.
  if (status === 415) expect(headers.has("accept")).not.toBe(headers.has("accept-encoding"));
  if (status === 429 || status === 503) expect(headers.get("retry-after")).toMatch(/^[1-9]\d*$/);
  const hasItem = status < 300 && path.startsWith(ITEMS) && !/DELETE|OPTIONS/.test(method);
  if (status === 304 || hasItem) expect(headers.get("etag")).toMatch(/^"[^"]+"$/);

  // What was created is at its Location, with the ETag that came with it.
  if (status === 201 && !fleeting) {
    const { READ_TOKEN } = to.settings;
    const asks = READ_TOKEN ? { authorization: `Bearer ${READ_TOKEN}` } : {};
    const there: Reply = await to.ask(`GET ${headers.get("location")}`, asks);
    expect([there.status, there.headers.get("etag")]).toEqual([200, headers.get("etag")]);
  }
  return { ...got, json };
}

/** Sends JSON to a server that may be killed meanwhile: the status, or 0 if there is no answer. */
export async function sent(request: string, json?: unknown) {
  const [method = "", url = ""] = request.split(" ");
  const headers = { "content-type": "application/json" };
  const answered = fetch(url, { method, headers, body: JSON.stringify(json) ?? null });
  return answered.then(({ status }) => status).catch(() => 0);
}

/** How many there were of each status. Who waits too long for PostgreSQL is one of the `late`. */
export async function tally(replies: Promise<Reply>[], late = 503) {
  const statuses = (await Promise.all(replies)).map(({ status }) => status);
  const all = Map.groupBy(statuses, (status) => (POSTGRES && status === 503 ? late : status));
  return Object.fromEntries([...all].map(([status, { length }]) => [status, length]));
}

export function idsOf({ json }: Reply) {
  return (json.items as { id: string }[]).map(({ id }) => id);
}

/** Creates an item of its own for a test. */
export async function item(to = live) {
  const id = `item-${crypto.randomUUID()}`;
  const { headers } = await to.ask(`POST ${ITEMS}`, { json: fresh({ id }) });
  return { etag: headers.get("etag") ?? "", id, path: `${ITEMS}/${id}` };
}

/** One request for each operation, that would succeed if nothing were broken. */
export function operations(): [request: string, asks?: Asks][] {
  return [
    [`GET ${ITEMS}`],
    [`POST ${ITEMS}`, { json: fresh({ id: "op" }) }],
    [`GET ${ITEMS}/1`],
    [`PUT ${ITEMS}/1`, { json: fresh({ name: "x" }) }],
    [`PATCH ${ITEMS}/1`, { json: { name: "y" } }],
    [`DELETE ${ITEMS}/1`],
  ];
}

// ── Bytes on the wire ──────────────────────────────────────────────────────────────────────────

/** The head of a request, as it is written. */
export function wire(request: string, ...fields: string[]) {
  const line = request.includes(" HTTP/") ? request : `${request} HTTP/1.1`;
  return [line, ...fields.filter(Boolean), "\r\n"].join("\r\n");
}

/** The head of a POST whose body has this many bytes. */
export function postOf(length: number) {
  return wire(`POST ${ITEMS}`, HOST, JSON_TYPE, `Content-Length: ${length}`);
}

/** A body of ASCII in these chunks. */
export function chunked(...parts: string[]) {
  return [...parts, ""].map((part) => `${part.length.toString(16)}\r\n${part}\r\n`).join("");
}

/** Sends the parts of a request; `answer` is there once it is complete, or the server hangs up. */
export async function open({ port }: Pick<Live, "port">, ...parts: (string | Uint8Array)[]) {
  const { promise: answer, resolve } = Promise.withResolvers<string>();
  let text = "";
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data(_, chunk) {
        text += chunk.toString("latin1");
        const length = /^content-length: (\d+)/im.exec(text)?.[1];
        const body = text.split("\r\n\r\n")[1];
        if (body !== undefined && body.length >= Number(length ?? 0)) resolve(text);
      },
      close: () => resolve(text),
      error: () => resolve(text),
    },
  });
  for (const part of parts) socket.write(part);
  return { answer, socket };
}

/** Sends the parts of a request, and gives back the answer as it was written. */
export async function exchange(to: Pick<Live, "port">, ...parts: (string | Uint8Array)[]) {
  const { answer, socket } = await open(to, ...parts);
  return answer.finally(() => socket.end());
}

/** The same, read and inspected; `as` is the request, where the server reads it as another. */
export async function raw(bytes: string | string[], to = live, as?: string) {
  const parts = [bytes].flat();
  const [line = ""] = parts.join("").split(" HTTP/", 1);
  return inspect(to, as ?? line, parse(await exchange(to, ...parts)));
}

export function parse(answer: string): Got {
  const [head = "", text = ""] = answer.split("\r\n\r\n");
  const [line = "", ...fields] = head.split("\r\n");
  const headers = new Headers(fields.map((each) => each.split(/: (.*)/, 2) as [string, string]));
  return { status: Number(line.split(" ")[1]), headers, text };
}

/** Whether a server still takes connections. */
export function isListening({ port }: Pick<Live, "port">) {
  const connected = Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {} } });
  return connected.then((socket) => socket.terminate() === undefined).catch(() => false);
}
