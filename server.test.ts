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
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
} from "node:fs";
import { open as openFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

setDefaultTimeout(60_000); // Side by side, each test may take as long as all.
const POSTGRES = Bun.env.TEST_DATABASE_URL ?? "";
const FOLDER = mkdtempSync(join(tmpdir(), "items-"));
const admin = POSTGRES ? new SQL(POSTGRES, { max: 20 }) : undefined;
const keeper = keep();
const databases: string[] = [];
const seen = new Set<string>(); // every answer: `GET /items/{id} 404`
/** Side by side where it can be: PostgreSQL has no more than a hundred connections to give. */
const together = POSTGRES ? describe : describe.concurrent;

/** A command that starts another without the rights of an administrator, which know no limits. */
const ordinary =
  process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] : [];
const canBeOrdinary = can([...ordinary, "true"], "what an ordinary user may not");

const HOST = "Host: localhost";
const JSON_TYPE = "Content-Type: application/json";
const CHUNKED = "Transfer-Encoding: chunked";
const OPERATIONS = ["listItems", "createItem", "getItem", "putItem", "patchItem", "deleteItem"];
const GUARDS = { TOKEN: "write", READ_TOKEN: "look", RATE: "999999" };
const [live, guarded] = await Promise.all([start(), start(GUARDS)]);
const contract = await documentOf(guarded);
const { answer, ask, status } = live;

// ── The lesson ── five answers that nobody changes by accident ─────────────────────────────────

describe("the lesson, HTTP status codes for APIs, to the letter", () => {
  test("200 to GET of an item that exists", async () => {
    expect(await answer("GET /items/1")).toBe('200 {"item":"apple"}');
    expect(await answer("GET /items/2")).toBe('200 {"item":"banana"}');
  });

  test("404 to GET of one that does not", async () => {
    expect(await answer("GET /items/9")).toBe('404 {"error":"Item not found"}');
  });

  test("201 to POST of a new id and a name, 400 to the same once more", async () => {
    const json = { id: "3", name: "cherry" };
    expect(await answer("POST /items", { json })).toBe('201 {"message":"Item created"}');
    expect(await answer("POST /items", { json })).toBe('400 {"error":"Item already exists"}');
  });

  test("400 to POST without an id or a name", async () => {
    const required = '400 {"error":"Bad request, id and name required"}';
    for (const json of [{ id: "4" }, { name: "x" }, {}, [], null, "", 0])
      expect(await answer("POST /items", { json })).toBe(required);
  });
});

// ── Routes ── in the order of the file, the statuses ascending ─────────────────────────────────

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
      await to.ask("POST /items", { json: fresh({ id, name: id === "b" ? "banana" : "x" }) });
    const ids = ["1", "10", "2", "B", "a", "b", "z", "é", "\uff5e", "😀"];
    const all = await to.ask("GET /items");
    expect(idsOf(all)).toEqual(ids);
    expect(all.headers.has("link")).toBe(false);

    // Paging by Link, three at a time, finds exactly what is there.
    const paged: string[] = [];
    for (let next: string | undefined = "/items?limit=3"; next;) {
      const page: Reply = await to.ask(`GET ${next}`);
      paged.push(...idsOf(page));
      next = /^<([^>]+)>; rel="next"$/.exec(page.headers.get("link") ?? "")?.[1];
    }
    expect(paged).toEqual(ids);

    expect((await to.ask("GET /items?name=banana")).json.items).toMatchObject([
      { id: "2", name: "banana" },
      { id: "b", name: "banana" },
    ]);
    const link = async (query: string) => (await to.ask(`GET /items?${query}`)).headers.get("link");
    const next = '</items?name=banana&limit=1&after=2>; rel="next"';
    expect(await link("name=banana&limit=1")).toBe(next);
    expect(await link("limit=10")).toBeNull();
    expect(await link("limit=9")).not.toBeNull();
    await to.stop();
  });

  test.each([
    ["after something that is not there", "after=%F0%9F%98%81", []],
    ["after U+0000", "name=banana&after=%00", ["2"]],
    ["a name with U+0000", "name=banana%00", []],
    ["an empty name", "name=", []],
    ["all three members", "limit=100&after=1&name=banana", ["2"]],
  ])("200 with %s", async (_, query, ids) => {
    expect(idsOf(await ask(`GET /items?${query}`))).toEqual(ids);
  });

  test(title("GET /items", 304), async () => {
    const etag = (await ask("GET /items?limit=1")).headers.get("etag") ?? "";
    const get = (field: string) => status("GET /items?limit=1", { "if-none-match": field });
    for (const field of [etag, `W/${etag}`, `"x", ${etag}`, "*"])
      expect(await get(field)).toBe(304);
    expect(await get('"x"')).toBe(200);
  });

  const limits = "limit= limit=0 limit=05 limit=101 limit=1.0 limit=-1 limit=1e1 limit=%2B1";
  const repeated = "limit=1&limit=1 name=a&name=b after=a&after=b";
  const unknown = "nmae=x name=banana&x=1 x=1&x=2 limit=1&Limit=1 __proto__=1 constructor=2";
  test.each(`${limits} ${repeated} ${unknown}`.split(" "))("400 ?%s", async (query) => {
    expect(await status(`GET /items?${query}`)).toBe(400);
  });

  test(title("GET /items", 406), async () => {
    expect(await status("GET /items", { accept: "text/html" })).toBe(406);
  });

  test(title("GET /items", 412), async () => {
    const etag = (await ask("GET /items?limit=1")).headers.get("etag") ?? "";
    const get = (field: string) => status("GET /items?limit=1", { "if-match": field });
    for (const field of [etag, "*"]) expect(await get(field)).toBe(200);
    for (const field of [`W/${etag}`, '"x"']) expect(await get(field)).toBe(412);
  });
});

describe("POST /items", () => {
  test(title("POST /items", 201), async () => {
    const reply = await ask("POST /items", { json: fresh({ id: "new", unheard: "of" }) });
    expect([reply.status, reply.text]).toEqual([201, '{"message":"Item created"}']);
    expect(reply.headers.get("location")).toBe("/items/new");
  });

  const long = ["x".repeat(128), "😀".repeat(64)]; // 128 UTF-16 units
  const odd = `x a/b % %2F ? # ' " \\ &=+; ... ..a :id * <b> __proto__ constructor`.split(" ");
  const far = ["a b", "e\u0301", "👩‍👩‍👧‍👦", "\u2028", "\ufeff", "\ufffd"];
  test.each([...long, ...odd, ...far])(
    "201 with an id of %j, found at its Location",
    async (id) => {
      const reply = await ask("POST /items", { json: fresh({ id, name: id }) });
      const location = reply.headers.get("location") ?? "";
      expect([reply.status, decodeURIComponent(location)]).toEqual([201, `/items/${id}`]);
      expect((await ask(`GET ${location}`)).json.item).toBe(id);
      expect(await status(`DELETE ${location}`)).toBe(204);
    },
  );

  test("201 with a member given twice: the last counts", async () => {
    const body = JSON.stringify(fresh({ id: "twice", name: "last" }));
    expect(await status("POST /items", { body: body.replace("{", '{"name":"first",') })).toBe(201);
    expect((await ask("GET /items/twice")).json.item).toBe("last");
  });

  test.each([
    ["not JSON", "{"],
    ["nothing", ""],
    ["two values", "{}{}"],
    ["not UTF-8", new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d])],
    ["very deep", "[".repeat(60_000)],
  ])("400 with a body that is %s", async (_, body) => {
    expect((await ask("POST /items", { body })).json).toEqual(says("POST /items", 400, "JSON"));
  });

  test("400 what is required: a missing member comes before a bad value", async () => {
    const required = says("POST /items", 400, "required");
    for (const json of [{ id: 5 }, { name: "" }, { id: "\0" }, [fresh({ id: "a" })]])
      expect((await ask("POST /items", { json })).json).toEqual(required);
  });

  test("400 Item already exists, for __proto__ as for any other", async () => {
    const item = JSON.stringify(fresh({ id: "__proto__x" }));
    const body = item.replace(/}$/, ',"__proto__":{"id":"1"}}');
    expect(await status("POST /items", { body })).toBe(201);
    expect((await ask("POST /items", { body })).json).toEqual(says("POST /items", 400, "exists"));
  });

  test.each([
    "Application/JSON",
    "application/json;charset=UTF-8",
    'application/json; charset="utf-8"',
    "application/json ; x=y",
  ])("400, so not 415, with a Content-Type of %s", async (type) => {
    expect(await status("POST /items", { "content-type": type, body: "{}" })).toBe(400);
  });

  test(title("POST /items", 406), async () => {
    const json = fresh({ id: "x" });
    expect(await status("POST /items", { json, accept: "text/html" })).toBe(406);
    expect(await status("GET /items/x")).toBe(404);
  });

  test(title("POST /items", 413), async () => {
    const body = JSON.stringify(fresh({ id: "as large as may be" }));
    expect(await status("POST /items", { body: body.padEnd(65_537) })).toBe(413);
    expect(await status("POST /items", { body: body.padEnd(65_536) })).toBe(201);
  });

  test.each([
    ["none", ""],
    ["a form", "application/x-www-form-urlencoded"],
    ["text", "text/plain"],
    ["multipart", "multipart/form-data; boundary=x"],
    ["application/jsonp", "application/jsonp"],
    ["merge patch", "application/merge-patch+json"],
    ["problem+json", "application/problem+json"],
    ["another charset", "application/json; charset=latin1"],
  ])("415 with a Content-Type that is %s", async (_, type) => {
    const json = fresh({ id: "415" });
    const reply = await ask("POST /items", { "content-type": type, json });
    expect([reply.status, reply.headers.get("accept")]).toEqual([415, "application/json"]);
  });

  test("415 with a Content-Encoding", async () => {
    const body = Bun.gzipSync(JSON.stringify(fresh({ id: "zip" })));
    const reply = await ask("POST /items", { "content-encoding": "gzip", body });
    expect([reply.status, reply.headers.get("accept-encoding")]).toEqual([415, "identity"]);
  });

  const bad: [what: string, members: Members][] = [
    ["an empty id", { id: "" }],
    ["129 characters", { id: "x".repeat(129) }],
    ["an id that is a number", { id: 5 }],
    ["an id that is null", { id: null }],
    ["an id of .", { id: "." }],
    ["an id of ..", { id: ".." }],
    ["U+0000", { id: "a\0b" }],
    ["U+0085", { id: "a\u0085b" }],
    ["a newline", { id: "a\nb" }],
    ["a lone surrogate", { id: "\ud800" }],
    ["a surrogate pair the wrong way round", { id: "\udc00\ud800" }],
    ["an empty name", { name: "" }],
    ["a name of 1025 characters", { name: "x".repeat(1025) }],
    ["a name that is a list", { name: ["x"] }],
    ["U+007F in the name", { name: "\x7f" }],
    ["a name that cannot be made a text", { name: { toString: 1 } }],
    ["an id that cannot be made a text", { id: { toString: 1, valueOf: null } }],
  ];
  test.each(bad)("422 with %s", async (_, members) => {
    const reply = await ask("POST /items", { json: fresh({ id: "422", ...members }) });
    expect(reply.status).toBe(422);
    const rule = Object.keys(members)[0] ?? "";
    expect(reply.json).toEqual(says("POST /items", 422, `${rule} must`));
  });
});

describe("GET /items/{id}", () => {
  test(title("GET /items/{id}", 200), async () => {
    const { text, json } = await ask("GET /items/1");
    expect(json.item).toBe("apple");
    expect(await answer("GET /items/%31")).toBe(`200 ${text}`);
  });

  test("200 with a query, which only the list has: here it is ignored, as on every other route", async () => {
    const { path } = await item();
    expect(await status(`GET ${path}?nmae=x&nmae=y&limit=0&__proto__=1`)).toBe(200);
    expect(await status(`PUT ${path}?x=1`, { json: fresh({}) })).toBe(200);
    expect(await status(`PATCH ${path}?x=1`, { json: {} })).toBe(200);
    expect(await status(`DELETE ${path}?x=1`)).toBe(204);
    expect(await status("POST /items?x=1", { json: fresh({ id: "queried" }) })).toBe(201);
    for (const route of ["/swagger", "/swagger/json"])
      expect(await status(`GET ${route}?x=1`)).toBe(200);
  });

  test("200 to HEAD, with the fields of GET and no body", async () => {
    const list = ["/items/1", "/items", "/items?limit=1", "/items/9", "/nowhere", "/swagger"];
    for (const path of list) {
      const [get, head] = [await ask(`GET ${path}`), await ask(`HEAD ${path}`)];
      expect(head.status).toBe(get.status);
      for (const field of ["etag", "content-type", "link"])
        expect(head.headers.get(field)).toBe(get.headers.get(field));
      expect(head.headers.get("content-length")).toBe(`${Buffer.byteLength(get.text)}`);
    }
  });

  const broad = "*/*|application/*|application/json|APPLICATION/JSON;Q=0.1|text/html, */*;q=0.1|";
  test.each(broad.split("|"))("200 with Accept: %s", async (accept) => {
    expect(await status("GET /items/1", { accept })).toBe(200);
  });

  test(title("GET /items/{id}", 304), async () => {
    const { etag, path } = await item();
    const get = (field: string) => ask(`GET ${path}`, { "if-none-match": field });
    for (const field of [etag, `W/${etag}`, `"a,b" , ${etag}`, "*"])
      expect((await get(field)).status).toBe(304);
    for (const field of ['"x"', "x", etag.slice(1, -1), ""])
      expect((await get(field)).status).toBe(200);
    expect((await get(etag)).headers.get("etag")).toBe(etag);
    await ask(`PUT ${path}`, { json: fresh({ name: "other" }) });
    expect((await get(etag)).status).toBe(200);
  });

  const nowhere = "9 a%00b __proto__ constructor %EF%BF%BD %2F '%20or%20''='".split(" ");
  test.each([...nowhere, "x".repeat(129)])("404 Item not found: %s", async (id) => {
    expect((await raw(wire(`GET /items/${id}`, HOST))).status).toBe(404);
  });

  test("302 to GET of /items/.%2E, which is / before a guard or the router sees it", async () => {
    expect((await raw(wire("GET /items/.%2E", HOST), live, "GET /")).status).toBe(302);
  });

  const none = "application/json;q=0|application/json;q=0.000, */*|*/*;q=0|application/*;q=0, */*";
  const others = "text/html|application/jsonp";
  test.each(`${none}|${others}`.split("|"))("406 with Accept: %s", async (accept) => {
    expect(await status("GET /items/1", { accept })).toBe(406);
  });

  test(title("GET /items/{id}", 412), async () => {
    const { etag, path } = await item();
    const get = (field: string) => status(`GET ${path}`, { "if-match": field });
    for (const field of [etag, "*", `"x", ${etag}`]) expect(await get(field)).toBe(200);
    for (const field of [`W/${etag}`, '"x"']) expect(await get(field)).toBe(412);
    expect(await status(`GET ${path}`, { "if-match": '"x"', "if-none-match": etag })).toBe(412);
    expect(await status("GET /items/9", { "if-match": "*" })).toBe(404);
  });
});

describe("PUT /items/{id}", () => {
  test(title("PUT /items/{id}", 200), async () => {
    const { etag, id, path } = await item();
    const json = fresh({ id, name: "new" });
    const reply = await ask(`PUT ${path}`, { json, "if-match": etag });
    expect([reply.status, reply.text]).toEqual([200, '{"message":"Item updated"}']);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(reply.headers.get("etag"));
    expect(await status(`PUT ${path}`, { json, "if-none-match": etag })).toBe(200);
  });

  test(title("PUT /items/{id}", 201), async () => {
    const json = fresh({ name: "new" });
    const reply = await ask("PUT /items/a%2Fput", { json, "if-none-match": "*" });
    expect([reply.status, reply.text]).toEqual([201, '{"message":"Item created"}']);
    expect(reply.headers.get("location")).toBe("/items/a%2Fput");
  });

  test(title("PUT /items/{id}", 400), async () => {
    const required = says("PUT /items/{id}", 400, "required");
    for (const json of [null, [], {}, "", { id: 5 }, { id: "1" }])
      expect((await ask("PUT /items/1", { json })).json).toEqual(required);
    expect(await status("PUT /items/1", { body: "x" })).toBe(400);
    // The name is missing, and the id of the path breaks a rule: what is missing comes first.
    expect(await status(`PUT /items/${"x".repeat(129)}`, { json: {} })).toBe(400);
  });

  test(title("PUT /items/{id}", 406), async () => {
    expect(await status("PUT /items/1", { json: fresh({}), accept: "image/*" })).toBe(406);
  });

  test(title("PUT /items/{id}", 409), async () => {
    expect(await status("PUT /items/1", { json: fresh({ id: "2" }) })).toBe(409);
    expect(await status("PUT /items/no-such", { json: fresh({ id: "2" }) })).toBe(409);
    expect(await status("GET /items/no-such")).toBe(404);
  });

  test(title("PUT /items/{id}", 412), async () => {
    const { etag, path } = await item();
    const json = fresh({ name: "x" });
    // What is not a list of entity tags names none of them.
    const lists = [`x${etag}`, `${etag}x`, `w/${etag}`, `W/ ${etag}`, `"x" ${etag}`, `*, ${etag}`];
    for (const list of lists)
      expect(await status(`PUT ${path}`, { json, "if-match": list })).toBe(412);
    expect(await status("PUT /items/free", { json, "if-match": "*" })).toBe(412);
    expect(await status("PUT /items/free", { json, "if-match": etag })).toBe(412);
    expect(await status(`PUT ${path}`, { json, "if-none-match": "*" })).toBe(412);
    expect(await status(`PUT ${path}`, { json, "if-none-match": `W/${etag}` })).toBe(412);
    expect(await status(`PUT ${path}`, { json, "if-match": `W/${etag}` })).toBe(412);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(etag);
    expect(await status(`PUT ${path}`, { json, "if-match": ` ,W/"x", ,${etag} ,` })).toBe(200);
  });

  test("413, 415 and 422, as POST does", async () => {
    const merge = { "content-type": "application/merge-patch+json" };
    expect(await status("PUT /items/1", { body: " ".repeat(65_537) })).toBe(413);
    expect(await status("PUT /items/1", { ...merge, body: "{}" })).toBe(415);
    expect(await status("PUT /items/1", { json: fresh({ name: "\0" }) })).toBe(422);
    expect(await status("PUT /items/1", { json: fresh({ id: "" }) })).toBe(422);
    expect(await status("PUT /items/5", { json: fresh({ name: { toString: 1 } }) })).toBe(422);
    expect(await status(`PUT /items/${"x".repeat(129)}`, { json: fresh({}) })).toBe(422);
    expect(await status("PUT /items/a%00b", { json: fresh({}) })).toBe(422);
  });
});

describe("PATCH /items/{id}", () => {
  test(title("PATCH /items/{id}", 200), async () => {
    const { etag, id, path } = await item();
    const nothing = await ask(`PATCH ${path}`, { json: {}, "if-match": etag });
    expect([nothing.status, nothing.text]).toEqual([200, '{"message":"Item updated"}']);
    expect(nothing.headers.get("etag")).toBe(etag);
    const merge = { "content-type": "application/merge-patch+json" };
    const json = { id, name: "patched", unheard: null };
    expect(await status(`PATCH ${path}`, { ...merge, json })).toBe(200);
    expect((await ask(`GET ${path}`)).json.item).toBe("patched");
  });

  test(title("PATCH /items/{id}", 400), async () => {
    for (const json of [null, [], "", 0])
      expect(await status("PATCH /items/1", { json })).toBe(400);
    expect(await status("PATCH /items/1", { body: "{" })).toBe(400);
  });

  test(title("PATCH /items/{id}", 404), async () => {
    for (const json of [{}, { name: "x" }, { id: "2", name: "x" }])
      expect(await status("PATCH /items/9", { json, "if-match": '"x"' })).toBe(404);
    expect(await status(`PATCH /items/${"x".repeat(129)}`, { json: {} })).toBe(404);
  });

  test("406, 409, 412, 413, 415 and 422, in the words of the document", async () => {
    const { etag, path } = await item();
    const patch = (json: unknown, fields = {}) => status(`PATCH ${path}`, { json, ...fields });
    expect(await patch({ name: "x" }, { accept: "text/html" })).toBe(406);
    expect(await patch({ id: "other" })).toBe(409);
    expect(await patch({ id: "other" }, { "if-match": '"x"' })).toBe(412);
    expect(await patch({}, { "if-none-match": etag })).toBe(412);
    expect(await patch({ name: "x".repeat(65_536) })).toBe(413);
    const { headers } = await ask(`PATCH ${path}`, { "content-type": "text/json", body: "{}" });
    expect(headers.get("accept")).toBe("application/merge-patch+json, application/json");
    expect(await patch({ name: null })).toBe(422);
    expect(await patch({ id: "" })).toBe(422);
    expect(await patch({ name: { toString: 1 } })).toBe(422);
    expect((await ask(`GET ${path}`)).headers.get("etag")).toBe(etag);
  });
});

describe("DELETE /items/{id}", () => {
  test(title("DELETE /items/{id}", 204), async () => {
    const [one, other] = [await item(), await item()];
    const fields = { "if-match": one.etag, accept: "text/html" };
    expect(await status(`DELETE ${one.path}`, fields)).toBe(204);
    expect(await status(`GET ${one.path}`)).toBe(404);
    const text = { "content-type": "text/plain", body: "not read" };
    expect(await status(`DELETE ${other.path}`, text)).toBe(204);
  });

  test(title("DELETE /items/{id}", 404), async () => {
    expect(await status("DELETE /items/9", { "if-match": "*" })).toBe(404);
  });

  test(title("DELETE /items/{id}", 412), async () => {
    const { etag, path } = await item();
    expect(await status(`DELETE ${path}`, { "if-match": '"x"' })).toBe(412);
    expect(await status(`DELETE ${path}`, { "if-none-match": etag })).toBe(412);
    expect(await status(`GET ${path}`)).toBe(200);
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
  test.each([
    ["no Host, whose path would be found by mistake", "GET /aaaaaaaaaaa/items/1 HTTP/1.0", ""],
    ["an empty Host", "GET /items", "Host:"],
    ["two Hosts", "GET /items", `${HOST}\r\nHost: evil.example`],
    ["the same Host twice", "GET /items", `${HOST}\r\n${HOST}`],
    ["a Host with a path", "GET /items", "Host: localhost/x"],
    ["a Host with a user", "GET /items", "Host: a@localhost"],
    ["a Host with a space", "GET /items", "Host: local host"],
    ["a character as it is, without a Host", "GET /😀 HTTP/1.0", ""],
    ["a fragment in the target", "GET /items/1#x", HOST],
    ["% in the path", "GET /items/%", HOST],
    ["%zz in the query", "GET /items?x=%zz", HOST],
    ["half a character", "GET /items/%E0%A4%A", HOST],
    ["a surrogate", "PUT /items/%ED%A0%80", `${HOST}\r\nContent-Length: 0`],
  ])("400: %s", async (_, request, fields) => {
    expect((await raw(wire(request, fields))).status).toBe(400);
  });

  test.each(["localhost:99999", "xn--a.localhost"])("400 on every path: Host: %s", async (host) => {
    const paths = "/ /items /items/1 /items/😀 /swagger /swagger/json /swagger/ui.js /nowhere";
    for (const path of paths.split(" "))
      expect((await raw(wire(`GET ${path}`, `Host: ${host}`))).status).toBe(400);
    const put = wire("PUT /items/😀", `Host: ${host}`, JSON_TYPE, "Content-Length: 12");
    expect((await raw(put + '{"name":"x"}')).status).toBe(400);
    expect(await status("GET /items/😀")).toBe(404);
  });

  test.each([
    ["another Host", "Host: evil.example"],
    ["a Host that only begins like ours", "Host: localhost.evil.example:80"],
    ["a Host that only ends like ours", "Host: evillocalhost"],
  ])("421: %s", async (_, host) => {
    expect((await raw(wire("GET /items", host))).status).toBe(421);
  });

  test.each([
    ["a subdomain of localhost", "Host: a.LOCALHOST:9"],
    ["any address", "Host: [::1]:80"],
  ])("200: %s", async (_, host) => {
    expect((await raw(wire("GET /items/1", host))).status).toBe(200);
  });

  test.each([
    ["a trailing slash", "/items/"],
    ["a double slash", "//items"],
    ["an encoded name of a path", "/%69tems"],
    ["a path beneath an item", "/items/1/2"],
    ["any character for a dot", "/faviconXico"],
    ["a slash for a dot", "/swagger/ui/js"],
    ["a path in another case", "/ITEMS"],
    ["a path as an expression", "/.*"],
    ["a path without its dot", "/swagger/uicss"],
    ["the name of a parameter", "/:id"],
  ])("404: %s", async (_, path) => {
    expect((await raw(wire(`GET ${path}`, HOST))).status).toBe(404);
  });

  test.each("/swagger/ui.js /swagger/ui.css /swagger /favicon.ico /items/1".split(" "))(
    "200 with the whole of %s, though Range asks for a part",
    async (path) => {
      const whole = (await ask(`GET ${path}`)).text;
      for (const range of ["bytes=0-9", "bytes=-1", "bytes=999999999-"]) {
        const { headers, ...reply } = await ask(`GET ${path}`, { range });
        expect([reply.status, reply.text === whole]).toEqual([200, true]);
        expect(headers.has("content-range")).toBe(false);
      }
    },
  );

  test.each(["TRACE /items", "CONNECT /items", "PROPFIND /nowhere"])("501: %s", async (request) => {
    expect((await raw(wire(request, HOST))).status).toBe(501);
  });

  test.each([
    ["", "an unknown method token", wire("BREW /items", HOST)],
    ["HTTP/1.1 400", "no Host", wire("GET /items")],
    ["HTTP/1.1 400", "two lengths", wire("POST /", HOST, "Content-Length: 1", CHUNKED)],
    ["HTTP/1.1 431", "large fields", wire("GET /", HOST, `X: ${"x".repeat(20_000)}`)],
    ["HTTP/1.1 505", "a malformed line", `GET /items\r\n${HOST}\r\n\r\n`],
  ])("Bun itself says '%s' to %s, as the README has it", async (line, _, bytes) => {
    expect((await exchange(live, bytes)).slice(0, 12)).toBe(line);
  });

  test("413 for a chunked body as soon as it is too large, and the next request is answered", async () => {
    const chunk = `8000\r\n${"x".repeat(0x8000)}\r\n`;
    const reply = await raw([wire("POST /items", HOST, JSON_TYPE, CHUNKED), chunk, chunk, chunk]);
    expect(reply.status).toBe(413);
    expect(await status("GET /items/1")).toBe(200);
  });

  test("201 with Content-Length twice, if it is the same", async () => {
    const json = JSON.stringify(fresh({ id: "sized twice" }));
    const head = postOf(json.length).replace(/(Content-Length: .*)/, "$1\r\n$1");
    expect((await raw([head, json])).status).toBe(201);
  });

  test("201 for a chunked body of 65,536 bytes", async () => {
    const json = JSON.stringify(fresh({ id: "chunked" })).padEnd(65_536);
    const chunks = [json.slice(0, 0x8000), json.slice(0x8000)].map((each) => `8000\r\n${each}\r\n`);
    const head = wire("POST /items", HOST, JSON_TYPE, CHUNKED);
    expect((await raw([head, ...chunks, "0\r\n\r\n"])).status).toBe(201);
  });
});

describe("when a request has several faults, the first in the order of the protocol wins", () => {
  const form = { "content-type": "application/x-www-form-urlencoded" };
  const writer = { authorization: "Bearer write" };
  const reader = { authorization: "bEaReR look" };
  const html = { accept: "text/html" };
  const stale = { "if-match": '"x"' };
  const big = { body: "x".repeat(65_537) };
  const whole = { json: fresh({}) };
  const clash = { json: fresh({ id: "2" }) };
  const worse = { json: fresh({ id: "2", name: "" }) };

  const faults: [status: number, faults: string, request: string, asks: Asks][] = [
    [421, "Host, method", "PROPFIND /items", { host: "evil.example" }],
    [421, "Host, target", "GET /items/%", { host: "evil.example" }],
    [501, "method, target", "PROPFIND /items/%", {}],
    [501, "method, path", "PROPFIND /nowhere", {}],
    [400, "target, path", "GET /nowhere/%", {}],
    [400, "target, token", "POST /items/%", {}],
    [404, "path, token", "POST /nowhere", { authorization: "Bearer wrong" }],
    [405, "method of the path, token", "POST /items/1", {}],
    [204, "OPTIONS needs no token", "OPTIONS /items", {}],
    [401, "token, type", "POST /items", { ...form, body: "a=b" }],
    [401, "token, size", "POST /items", big],
    [401, "token, JSON", "PUT /items/1", { authorization: "Bearer wrong", body: "{" }],
    [401, "token, item", "DELETE /items/9", { authorization: "Basic write" }],
    [401, "read token, query", "GET /items?limit=0", {}],
    [401, "read token, Accept", "GET /items/9", html],
    [403, "token that may only read, type", "POST /items", { ...form, ...reader, body: "a=b" }],
    [403, "token that may only read, item", "DELETE /items/9", { ...reader, ...stale }],
    [415, "type, size", "POST /items", { ...form, ...writer, ...big }],
    [415, "type, JSON", "PATCH /items/9", { ...form, ...writer, body: "{" }],
    [413, "size, JSON", "PUT /items/9", { ...writer, ...html, ...big }],
    [400, "JSON, Accept", "POST /items", { ...writer, ...html, body: "{" }],
    [400, "JSON, item", "PATCH /items/9", { ...writer, ...stale, body: "{" }],
    [400, "missing name, Accept", "PUT /items/1", { ...writer, ...html, json: {} }],
    [400, "missing name, bad id", "POST /items", { ...writer, json: { id: 5 } }],
    [400, "query, Accept", "GET /items?limit=0", { ...reader, ...html }],
    [400, "query twice, Accept", "GET /items?limit=1&limit=1", { ...reader, ...html }],
    [400, "query unknown, Accept", "GET /items?nmae=x", { ...reader, ...html }],
    [422, "value, Accept", "POST /items", { ...writer, ...html, json: fresh({ id: "" }) }],
    [422, "value, item", "PATCH /items/9", { ...writer, json: { name: "" } }],
    [422, "value, condition, id", "PUT /items/1", { ...writer, ...stale, ...worse }],
    [406, "Accept, item", "GET /items/9", { ...reader, ...html }],
    [406, "Accept, condition", "PUT /items/1", { ...writer, ...html, ...stale, ...whole }],
    [406, "Accept, taken", "POST /items", { ...writer, ...html, json: fresh({ id: "1" }) }],
    [404, "item, condition", "DELETE /items/9", { ...writer, ...stale }],
    [404, "item, id", "PATCH /items/9", { ...writer, json: { id: "1" } }],
    [412, "condition, id", "PATCH /items/1", { ...writer, ...stale, json: { id: "2" } }],
    [412, "condition, free id", "PUT /items/free", { ...writer, "if-match": "*", ...clash }],
    [409, "id", "PATCH /items/1", { ...writer, json: { id: "2" } }],
  ];
  for (const [expected, what, request, asks] of faults)
    test(`${expected}: ${what}`, async () => {
      expect(await guarded.status(request, asks)).toBe(expected);
    });
});

// ── Who gets in ────────────────────────────────────────────────────────────────────────────────

together("TOKEN and READ_TOKEN", () => {
  test("401 with the challenge of RFC 6750, 403 for a write with the read token; never printed", async () => {
    const to = await start({ TOKEN: "s3cret", READ_TOKEN: "l00k" });
    const json = fresh({ id: "t" });
    const post = (fields: Asks) => to.status("POST /items", { json, ...fields });
    expect(await post({})).toBe(401);
    for (const authorization of ["Bearer wrong", "s3cret", "Bearer s3cre", "Bearer s3cret, x"])
      expect(await post({ authorization })).toBe(401);
    expect(await post({ authorization: "Bearer l00k" })).toBe(403);
    expect(await post({ authorization: "BEARER  s3cret" })).toBe(201);

    for (const [request, asks] of operations()) {
      expect(await to.status(request, asks)).toBe(401);
      const allowed = request.startsWith("GET") ? 200 : 403;
      expect(await to.status(request, { ...asks, authorization: "Bearer l00k" })).toBe(allowed);
    }
    const get = (authorization: string) => to.status("GET /items/1", { authorization });
    expect(await get("")).toBe(401);
    for (const each of ["Bearer l00k", "bearer s3cret"]) expect(await get(each)).toBe(200);
    expect(await to.status("GET /swagger")).toBe(200);
    expect(await to.stop()).toBe(0);
    expect(to.stdout.text + to.stderr.text).not.toMatch(/s3cret|l00k/);
  });

  test("a read needs a token whatever the Host and the query look like; so does what is not there", async () => {
    const to = await start({ TOKEN: "w", READ_TOKEN: "r", ALLOWED_HOSTS: "api" });
    const get = (target: string, ...fields: string[]) =>
      raw(wire(`GET ${target}`, "Host: api", ...fields), to);
    const inside = "/items /items?/favicon.ico /items?x=/swagger /items/1?/swagger/ui.js";
    for (const target of inside.split(" ")) expect((await get(target)).status).toBe(401);
    const nowhere =
      "/faviconXico?/items /x?/items /swaggerXjson?/items /swagger/uiXjs?/items /x?/items/1 " +
      "/faviconXico /swagger/ui/js /swagger/jsonX /favicon.ico/items /;/items /swagger/..%2Fitems";
    for (const target of nowhere.split(" ")) expect((await get(target)).status).toBe(404);
    for (const target of "/?/items /swagger?/items /favicon.ico?/items".split(" "))
      expect((await get(target)).text).not.toContain("apple");

    const reader = "Authorization: Bearer r";
    expect((await get("/items?limit=0&after=/x", reader)).status).toBe(400);
    expect(idsOf(await get("/items?limit=1&after=/x", reader))).toEqual(["1"]);
    expect((await get("/items/1?/items", reader)).json.item).toBe("apple");
    await to.stop();
  });

  test("reads are open with TOKEN alone", async () => {
    const to = await start({ TOKEN: "s3cret" });
    expect(await to.status("GET /items/1")).toBe(200);
    expect(await to.status("DELETE /items/1")).toBe(401);
    await to.stop();
  });
});

together("ALLOWED_HOSTS, CORS_ORIGIN and RATE", () => {
  async function cors(to: Live, request: string, origin: string) {
    const { headers } = await to.ask(request, { origin });
    return [headers.get("access-control-allow-origin"), headers.get("vary")];
  }

  test("421 for a Host that is not allowed; any port of one that is", async () => {
    const to = await start({ ALLOWED_HOSTS: "items.example, Other.example" });
    for (const host of ["items.example:99", "other.EXAMPLE", "127.0.0.1"])
      expect(await to.status("GET /items/1", { host })).toBe(200);
    expect(await to.status("GET /items/1", { host: "evil.example" })).toBe(421);
    await to.stop();
  });

  const near =
    "http://localhost https://localhost:5173 http://app.localhost:3000 http://[::1]:5173";
  const ours = `${near} http://127.0.0.1:8080 https://127.1.2.3`.split(" ");
  test.each(ours)("a page of this machine is let in without CORS_ORIGIN: %s", async (origin) => {
    expect(await cors(live, "GET /items/1", origin)).toEqual([origin, "Origin"]);
  });

  const far = "http://page.example http://10.0.0.1 http://[::2] ftp://localhost null";
  const posing = "http://localhost.evil.example http://evillocalhost http://127.0.0.1.evil.example";
  test.each(`${far} ${posing}`.split(" "))("another is not: %s", async (origin) => {
    const { headers } = await ask("GET /items/1", { origin });
    const fields = [...headers.keys()].filter((name) => name.startsWith("access-control"));
    expect([fields, headers.get("vary")]).toEqual([[], "Origin"]);
  });

  test("CORS_ORIGIN: right on every answer, refusals, 304 and preflights included", async () => {
    const to = await start({ CORS_ORIGIN: "http://page.example, http://b.example:81", TOKEN: "t" });
    const requests: [status: number, request: string, asks?: Asks][] = [
      [200, "GET /items/1"],
      [200, "GET /swagger"],
      [204, "OPTIONS /items/1"],
      [304, "GET /items/1", { "if-none-match": "*" }],
      [400, "GET /items/%"],
      [401, "DELETE /items/1"],
      [404, "GET /items/9"],
      [404, "GET /nowhere"],
      [405, "PATCH /items"],
      [421, "GET /items/1", { host: "evil.example" }],
      [501, "PROPFIND /items"],
    ];
    const open = ["http://page.example", "http://b.example:81", "http://localhost:5173"];
    for (const [status, request, asks] of requests) {
      expect((await to.ask(request, asks)).headers.get("vary")).toBe("Origin");
      for (const origin of [...open, "http://evil.example", "http://page.example:81", "null"]) {
        const { headers, ...reply } = await to.ask(request, { ...asks, origin });
        expect([reply.status, headers.get("vary")]).toEqual([status, "Origin"]);
        const isOpen = open.includes(origin);
        expect(headers.get("access-control-allow-origin")).toBe(isOpen ? origin : null);
        expect(headers.get("access-control-allow-credentials")).toBeNull();
        if (status === 204)
          expect(headers.get("access-control-allow-methods")).toBe(isOpen ? "*" : null);
      }
    }
    await to.stop();
  });

  test("CORS_ORIGIN=*: every page, so the answer varies with none", async () => {
    const to = await start({ CORS_ORIGIN: "*" });
    for (const origin of ["http://page.example", "http://localhost:5173"])
      for (const request of ["GET /items/1", "GET /items/9", "OPTIONS /items", "GET /nowhere"])
        expect(await cors(to, request, origin)).toEqual(["*", null]);
    await to.stop();
  });

  test("429 once a client is over RATE, whomever it says it is; the next second is a new one", async () => {
    const to = await start({ RATE: "5", DELAY: "20" });
    const clients = Array.from({ length: 10 }, (_, index) => ({
      "x-forwarded-for": `10.0.0.${index}`,
    }));
    const tenAtOnce = () => Promise.all(clients.map((each) => to.status("GET /items/1", each)));
    const statuses = await tenAtOnce();
    while (!statuses.includes(429)) statuses.push(...(await tenAtOnce()));
    expect(statuses.filter((status) => status === 200).length).toBeGreaterThanOrEqual(5);
    while ((await to.status("GET /items/1")) === 429);
    await to.stop();
  });
});

// ── Failures, caused for real ──────────────────────────────────────────────────────────────────

const [onSqlite, onPostgres] = [test.if(!POSTGRES), test.if(!!POSTGRES)];

together("failures", () => {
  test("500 when the table is gone, with no word of it on the wire; logged whole on stderr", async () => {
    const to = await start();
    await outside(to.store, "drop table items");
    for (const [request, asks] of operations())
      expect(await to.answer(request, asks)).toBe('500 {"error":"Server error"}');
    await to.stop();
    expect(to.stderr.text).toMatch(/no such table: items|relation "items" does not exist/);
  });

  test("500 that was the last answer before the end is on stderr as well", async () => {
    const to = await start({ LOG: "off" });
    await outside(to.store, "drop table items");
    const all = await Promise.all(Array.from({ length: 20 }, () => to.status("GET /items/1")));
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text.match(/^GET \/items\/1: /gm)?.length).toBe(all.length);
  });

  test("500 when an answer breaks its own schema, instead of the answer", async () => {
    const to = await start();
    await to.ask("POST /items", { json: fresh({ id: "0" }) });
    await outside(to.store, `update items set name = '${"x".repeat(1025)}' where id = '0'`);
    expect(await to.answer("GET /items")).toBe('500 {"error":"Server error"}');
    expect(await to.status("GET /items?after=0")).toBe(200);
    await to.stop();
    expect(to.stderr.text).not.toBe("");
  });

  test("503 on each operation while the server shuts down, to those who are still asking", async () => {
    const to = await start();
    const body = JSON.stringify(fresh({ id: "last" }));
    const inFlight = await open(to, postOf(body.length), body.slice(0, 9));
    const half = await Promise.all(
      operations().map(async ([request]) => ({ request, ...(await open(to, `${request} HT`)) })),
    );
    await to.ask("GET /items/1");
    to.child.kill("SIGTERM");
    while (await isListening(to));

    for (const { answer, request, socket } of half) {
      socket.write(`TP/1.1\r\n${HOST}\r\nContent-Length: 0\r\n\r\n`);
      const reply = await inspect(to, request, parse(await answer));
      expect([reply.status, reply.json.error]).toEqual([503, "The server is shutting down"]);
    }
    inFlight.socket.write(body.slice(9));
    expect((await inFlight.answer).slice(0, 12)).toBe("HTTP/1.1 201");
    to.asked.push("201  POST  /items");
    expect(await to.child.exited).toBe(0);
    await to.stop();
  });

  test("421, 400 and 429 on each operation", async () => {
    const to = await start({ RATE: "1", REHEARSE: "1" });
    for (const [request, asks] of operations()) {
      expect(await to.status(request, { ...asks, host: "evil.example" })).toBe(421);
      const malformed = wire(`${request}?%zz`, HOST, "Content-Length: 0");
      expect((await raw(malformed, to)).status).toBe(400);
      const ask = () => to.ask(request, { ...asks, fleeting: true });
      let reply = await ask();
      while (reply.status !== 429) reply = await ask();
      expect(reply.json.error).toBe("Too many requests in this second");
    }
    await to.stop();
  });

  onSqlite(
    "503 to a write that waits a second for a lock; not to later ones or reads",
    async () => {
      const to = await start({ DELAY: "10" });
      const lock = new Database(to.store.slice("sqlite://".length));
      lock.run("begin exclusive");
      const writes = operations().filter(([request]) => !request.startsWith("GET"));
      const early = Promise.all(writes.map(([request, asks]) => to.status(request, asks)));
      let isOver = false;
      void early.then(() => (isOver = true));
      // A late one overtakes nobody, and has a second of its own.
      const late: Promise<number>[] = [];
      while (!isOver) {
        late.push(to.status("DELETE /items/2"));
        expect(await to.status("GET /items/1")).toBe(200);
      }
      lock.run("rollback");
      lock.close();
      expect(await early).toEqual([503, 503, 503, 503]);
      const statuses = await Promise.all(late);
      expect(statuses.at(-1)).not.toBe(503);
      expect(statuses).toContain(204);
      await to.stop();
    },
  );

  onSqlite("a write waits for a short lock", async () => {
    const to = await start();
    const lock = new Database(to.store.slice("sqlite://".length));
    lock.run("begin immediate");
    const write = to.status("DELETE /items/1");
    expect(await to.status("GET /items/1")).toBe(200);
    lock.run("commit");
    lock.close();
    expect(await write).toBe(204);
    await to.stop();
  });

  onPostgres("503 within five seconds while the database is away; then it recovers", async () => {
    const to = await start();
    const name = new URL(to.store).pathname.slice(1);
    expect(await to.status("GET /items/1")).toBe(200);
    await admin?.unsafe(`alter database ${name} allow_connections false`);
    await disconnect(name);
    for (const [request, asks] of operations()) {
      const begin = performance.now();
      expect(await to.status(request, asks)).toBe(503);
      expect(performance.now() - begin).toBeLessThan(5000);
    }
    await admin?.unsafe(`alter database ${name} allow_connections true`);
    // A pooler may pass on once more that the database was away.
    while ((await to.status("GET /items/1")) !== 200);
    await to.stop();
  });

  onPostgres("503 within five seconds while the database keeps silent", async () => {
    const to = await start();
    const unlock = await lock(to.store, "access exclusive");
    const begin = performance.now();
    expect(await to.status("GET /items/1")).toBe(503);
    expect(performance.now() - begin).toBeLessThan(5000);
    await unlock();
    expect(await to.status("GET /items/1")).toBe(200);
    await to.stop();
  });

  onPostgres("503 to a write means that it is not made, also not later", async () => {
    const to = await start();
    const unlock = await lock(to.store, "share");
    const ids = Array.from({ length: 40 }, (_, index) => `late-${index}`);
    const writes = ids.map((id) => to.status("POST /items", { json: fresh({ id }) }));
    // Meanwhile, reads are answered; but a pooler may have let in all that it lets in.
    const [server] = (await admin?.unsafe("select inet_server_port() as port")) ?? [];
    if (server?.port === Number(new URL(POSTGRES).port || 5432))
      expect(await tally(ids.map(() => to.ask("GET /items/1")))).toEqual({ 200: 40 });
    expect(await Promise.all(writes)).toEqual(ids.map(() => 503));
    await unlock();
    expect(await to.status("POST /items", { json: fresh({ id: "3" }) })).toBe(201);
    expect([...(await namesOf(to.store)).keys()].sort()).toEqual(["1", "2", "3"]);
    await to.stop();
  });

  onPostgres("503 to each who waits for a statement at SIGTERM; exit code 0 in time", async () => {
    const to = await start();
    const unlock = await lock(to.store, "access exclusive");
    const waiting = Array.from({ length: 30 }, () => to.status("GET /items/1"));
    // A pooler lets four through, of which one holds the lock.
    const name = new URL(to.store).pathname.slice(1);
    const blocked = `from pg_stat_activity where datname = '${name}' and wait_event_type = 'Lock'`;
    while ((await admin?.unsafe(`select 1 ${blocked}`))?.length < 3);
    expect(await to.status("GET /nowhere")).toBe(404);
    const begin = performance.now();
    const code = to.stop();
    expect(await Promise.all(waiting)).toEqual(waiting.map(() => 503));
    expect(await code).toBe(0);
    expect(performance.now() - begin).toBeLessThan(5000);
    await unlock();
  });

  onPostgres("503 where the network falls silent; new connections get over it", async () => {
    const store = new URL(await newStore());
    const way = wayTo(store.hostname, Number(store.port || 5432));
    const address = Object.assign(new URL(store), { hostname: "127.0.0.1", port: way.port });
    const to = await start({ DATABASE_URL: address.href });
    const many = () => Promise.all(Array.from({ length: 16 }, () => to.status("GET /items/1")));
    expect(new Set(await many())).toEqual(new Set([200]));
    way.fallSilent();
    const begin = performance.now();
    expect(await many()).toContain(503);
    while ((await to.status("GET /items/1")) !== 200);
    expect(performance.now() - begin).toBeLessThan(20_000);
    await to.stop();
    way.close();
  });
});

// ── What no race explains ── a write that changes nothing is an error, and nobody tries for ever ────

together("a write that does nothing, though nobody else writes", () => {
  type Obstacle = [what: string, requests: string, statements: string[], cause?: RegExp];
  const badName = ["update items set name = cast(x'ff' as text) where id = '1'"];
  const unique = ["create unique index one_of_a_name on items (name)"];
  // Bun's tests connect as a superuser, whom no policy binds: so the sessions take another role.
  const policies = [
    "create policy seen on items for select using (true)",
    "alter table items owner to pg_database_owner",
    "alter table items enable row level security",
    "alter table items force row level security",
    `do $$ begin
      execute format('alter database %I set role = pg_database_owner', current_database());
      perform pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid();
    end $$`,
  ];
  const all = "PUT PATCH DELETE";
  const obstacles: Obstacle[] = [
    ["a unique index on the name", "PUT PATCH", unique, /UNIQUE|unique/],
    ["a trigger that ignores updates", "PUT PATCH", ignoring("update")],
    ["a trigger that ignores deletions", "DELETE", ignoring("delete")],
    ...(POSTGRES
      ? [["a policy that hides the row from writes", all, policies] satisfies Obstacle]
      : [["a name that is not UTF-8", all, badName] satisfies Obstacle]),
  ];
  test.each(obstacles)(
    "500 at once with %s; one line says what to look for",
    async (...obstacle) => {
      const [, methods, statements, cause = /look for a trigger, a policy/] = obstacle;
      const to = await start();
      for (const each of statements) await outside(to.store, each);
      // A session keeps the role that it began with, so it is ended.
      if (POSTGRES) await disconnect(new URL(to.store).pathname.slice(1));
      while ((await to.status("GET /items/1")) !== 200);
      const requests = methods.split(" ").map((method) => `${method} /items/1`);
      const times: number[] = [];
      for (const request of requests) {
        const asks = request.startsWith("DELETE") ? {} : { json: fresh({ name: "banana" }) };
        const begin = performance.now();
        expect(await to.answer(request, asks)).toBe('500 {"error":"Server error"}');
        times.push(performance.now() - begin);
      }
      expect(Math.min(...times)).toBeLessThan(1000);
      expect(await to.status("GET /items/2")).toBe(200);
      expect(await to.stop()).toBe(0);
      const lines = to.stderr.text.trim().split("\n");
      expect(lines.filter((line) => cause.test(line)).length).toBe(requests.length);
      expect(lines.length).toBeLessThanOrEqual(10 * requests.length);
    },
  );

  test("500, not 400, to POST where a trigger ignores what is new", async () => {
    const to = await start();
    for (const each of ignoring("insert")) await outside(to.store, each);
    expect(await to.status("PUT /items/new", { json: fresh({}) })).toBe(500);
    expect(await to.status("POST /items", { json: fresh({ id: "new" }) })).toBe(500);
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text).toContain("look for a trigger");
  });
});

together("a store that takes no writes", () => {
  const writes = () => operations().filter(([request]) => !request.startsWith("GET"));
  async function refuses(to: Live) {
    for (const [request, asks] of writes())
      expect((await to.ask(request, asks)).json.error).toBe("The store is busy or out of reach");
    for (const request of ["GET /items/1", "GET /items"])
      expect(await to.status(request)).toBe(200);
    expect(await to.status("PATCH /items/nobody", { json: {} })).toBe(404);
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text).toBe("");
  }

  const disk = join(FOLDER, "disk");
  const mount = `mount -t tmpfs -o size=512k tmpfs "${disk}" && exec "$0" "$@"`;
  const onDisk = ["unshare", "-rm", "sh", "-c", mount];
  mkdirSync(disk);
  const canMount = !POSTGRES && can([...onDisk, "true"], "a disk that is full");
  const ofSize = ["sh", "-c", 'ulimit -f 1000 && exec "$0" "$@"'];
  const canLimit = !POSTGRES && can([...ofSize, "true"], "a file that may not grow");
  const full: [what: string, can: boolean, within: string[], file: string][] = [
    ["disk is full", canMount, onDisk, join(disk, "items.sqlite")],
    ["file may not grow", canLimit, ofSize, join(FOLDER, "limited.sqlite")],
  ];
  for (const [what, isPossible, within, file] of full)
    test.if(isPossible)(`503 to each write while the ${what}; reads go on`, async () => {
      const settings = { DATABASE_URL: `sqlite://${file}`, LOG: "off" };
      const to = await start(settings, import.meta.dir, within);
      const post = (id: number) =>
        to.status("POST /items", { json: fresh({ id: `${id}`, name: "x".repeat(1000) }) });
      let [id, last] = [3, 201];
      while ((last = await post(id)) === 201) id++;
      expect([last, await to.status(`GET /items/${id}`)]).toEqual([503, 404]);
      // What needs fewer pages may still find some.
      while ((await to.status("PUT /items/1", { json: fresh({}) })) === 200);
      expect(await to.status(`GET /items/${id - 1}`)).toBe(200);
      await refuses(to);
    });

  test.if(!POSTGRES && canBeOrdinary)("503 to each write while the file is read-only", async () => {
    const before = await start();
    await before.stop();
    chmodSync(before.store.slice("sqlite://".length), 0o444);
    const to = await start({ DATABASE_URL: before.store }, import.meta.dir, ordinary);
    expect(to.stdout.text).toMatch(/^Warning: .* no writes/m);
    await refuses(to);
  });

  onPostgres("503 to each write while the database is read-only, as a replica is", async () => {
    const to = await start();
    const name = new URL(to.store).pathname.slice(1);
    await admin?.unsafe(`alter database ${name} set default_transaction_read_only = on`);
    await disconnect(name);
    await refuses(to);
  });

  onPostgres("a server that starts on a read-only database says so, and serves reads", async () => {
    const before = await start();
    await before.stop();
    const name = new URL(before.store).pathname.slice(1);
    await admin?.unsafe(`alter database ${name} set default_transaction_read_only = on`);
    const to = await start({ DATABASE_URL: before.store });
    expect(to.stdout.text).toMatch(/^Warning: .* no writes/m);
    await refuses(to);
  });
});

// ── A promise: durable and atomic ──────────────────────────────────────────────────────────────

together("a 2xx is a promise", () => {
  const fifty = Array.from({ length: 50 }, (_, index) => index);

  test("of fifty who create one id, one does; of fifty who hold one ETag, one wins: in one process and in two", async () => {
    const [one, two] = await Promise.all([start(), start()]);
    const second = await start({ DATABASE_URL: one.store });
    for (const servers of [[two], [one, second]]) {
      const all = (request: string, asks: (name: string) => Asks = () => ({})) =>
        tally(fifty.map((n) => (servers[n % servers.length] as Live).ask(request, asks(`n${n}`))));
      const create = (name: string) => ({ json: fresh({ id: "race", name }) });
      expect(await all("POST /items", create)).toEqual({ 201: 1, 400: 49 });

      const etag = (await servers[0]?.ask("GET /items/race"))?.headers.get("etag") ?? "";
      const put = (name: string) => ({ json: fresh({ name: `${name}, put` }), fleeting: true });
      const putOver = (name: string) => ({ ...put(name), "if-match": etag });
      expect(await all("PUT /items/race", putOver)).toEqual({ 200: 1, 412: 49 });
      expect(await all("PUT /items/free", put)).toEqual({ 200: 49, 201: 1 });
      expect(await all("DELETE /items/race")).toEqual({ 204: 1, 404: 49 });
    }
    await Promise.all([second.stop(), two.stop()]);
    await one.stop();
  });

  test("a read after an acknowledged write sees it, in the same process and in another", async () => {
    const one = await start({ LOG: "off" });
    const two = await start({ LOG: "off", DATABASE_URL: one.store });
    const clients = Array.from({ length: 16 }, async (_, client) => {
      const [writer, reader] = client % 2 ? [one, two] : [two, one];
      // A new connection may be accepted and read late in a turn, and turns are made long.
      const connection = client < 8 ? "close" : "keep-alive";
      for (let turn = 0; turn < 25; turn++) {
        const [path, name] = [`/items/client-${client}`, `${client}, ${turn}`];
        const json = fresh({ name, more: Array(5000).fill([]) });
        expect(await writer.status(`PUT ${path}`, { json })).toBe(turn === 0 ? 201 : 200);
        const reads = [one, two, reader].map((to) => to.ask(`GET ${path}`, { connection }));
        for (const { json } of await Promise.all(reads)) expect(json.item).toBe(name);
      }
    });
    await Promise.all(clients);
    await Promise.all([one.stop(), two.stop()]);
  });

  onSqlite(
    "a snapshot ends with its turn, whatever its reads have met: others write, and empty the log",
    async () => {
      const to = await start();
      using other = new Database(to.store.slice("sqlite://".length));
      other.run("pragma busy_timeout = 1000");
      const emptied = { busy: 0, log: 0, checkpointed: 0 };
      async function reads(status: number) {
        const all = fifty.map((n) => to.ask(n % 2 ? "GET /items/1" : "GET /items"));
        expect(await tally(all)).toEqual({ [status]: 50 });
        other.run("create table if not exists notes (note text)");
        other.run("insert into notes values ('x')");
        expect(other.query("pragma wal_checkpoint(truncate)").get()).toEqual(emptied);
      }
      await reads(200);
      other.run("begin immediate");
      const all = fifty.map((n) => to.ask(n % 2 ? "GET /items/1" : "GET /items"));
      expect(await tally(all)).toEqual({ 200: 50 });
      other.run("rollback");
      other.run("alter table items rename to gone");
      await reads(500);
      other.run("alter table gone rename to items");
      await reads(200);
      expect(await to.stop()).toBe(0);
    },
  );

  test("a write that fails does not hurt those that share its commit", async () => {
    const to = await start();
    await outside(to.store, "create unique index one_of_a_name on items (name)");
    const writes = fifty.map((index) =>
      index % 10 === 5
        ? to.ask("PATCH /items/1", { json: { name: "banana" } })
        : to.ask("POST /items", { json: fresh({ id: `shared-${index}`, name: `${index}` }) }),
    );
    expect(await tally(writes)).toEqual({ 201: 45, 500: 5 });
    await to.stop();
  });

  test("three servers that start at once on an empty store all come up, with the lesson's items", async () => {
    const store = { DATABASE_URL: await newStore() };
    const servers = await Promise.all([start(store), start(store), start(store)]);
    for (const to of servers) expect(idsOf(await to.ask("GET /items"))).toEqual(["1", "2"]);
    await servers[0].ask("DELETE /items/1");
    await Promise.all(servers.map((to) => to.stop()));
    const again = await start(store);
    expect(idsOf(await again.ask("GET /items"))).toEqual(["2"]);
    await again.stop();
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
          known.set(id, [...(known.get(id) ?? [null]), name]);
          const status = await sent(
            `${name === null ? "DELETE" : "PUT"} ${to.url}/items/${id}`,
            name === null ? undefined : fresh({ name }),
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

      const rows = await namesOf(store);
      for (const [id, names] of known) {
        expect(names).toContain(rows.get(id) ?? null);
        known.set(id, [rows.get(id) ?? null]);
      }
      if (!POSTGRES)
        expect(await outside(store, "pragma integrity_check")).toEqual([{ integrity_check: "ok" }]);
    }
  });

  test("SIGTERM straight after the start, or after a read, ends with 0 and says nothing", async () => {
    const ends = fifty.slice(0, 6).map(async (n) => {
      const to = await start({ LOG: "off" });
      const reads = fifty.slice(0, n % 2 ? 8 : 0).map(() => sent(`GET ${to.url}/items`));
      await reads[0];
      expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
      await Promise.all(reads);
    });
    await Promise.all(ends);
  });

  test("SIGTERM under load: every write that was taken is answered and kept, exit code 0 in time", async () => {
    const to = await start({ LOG: "off" });
    const kept: string[] = [];
    const enough = Promise.withResolvers<void>();
    const clients = Array.from({ length: 32 }, async (_, client) => {
      for (let turn = 0; ; turn++) {
        const id = `s${client}-${turn}`;
        await sent(`GET ${to.url}/items/${id}`);
        const status = await sent(`POST ${to.url}/items`, fresh({ id }));
        if (status !== 201) return status;
        if (kept.push(id) === 300) enough.resolve();
      }
    });
    await enough.promise;
    const begin = performance.now();
    expect(await to.stop()).toBe(0);
    expect(performance.now() - begin).toBeLessThan(5000);
    for (const last of await Promise.all(clients)) expect([0, 503]).toContain(last);
    const rows = await namesOf(to.store);
    expect(kept.filter((id) => !rows.has(id))).toEqual([]);
  });
});

// ── Nobody can wear it down ────────────────────────────────────────────────────────────────────

const hasCurl = has("curl", "the README's lines, and 413 to curl");
const hasNode = has("node", "413 to Node");
const withProc = test.if(can(["test", "-r", "/proc/self/stat"], "what a request costs"));
const withCurl = test.if(hasCurl);
const withClient = test.if(hasCurl || hasNode);

together("nobody can wear it down", () => {
  const SIZE = 256 * 1024 * 1024;
  const huge = join(FOLDER, "256-mib");
  const curl = `curl -s -o /dev/null -w %{http_code} -X POST -H Content-Type:application/json -H Expect:`;
  const size = ["-H", `Content-Length: ${SIZE}`];
  const node = (fields: string) => `
    const headers = { "content-type": "application/json"${fields} };
    const request = require("node:http").request(process.argv[1], { method: "POST", headers });
    const chunk = Buffer.alloc(65536);
    let sent = 0;
    function send() {
      while (sent < ${SIZE} && !request.destroyed) {
        sent += chunk.length;
        if (!request.write(chunk)) return request.once("drain", send);
      }
      request.end();
    }
    request.on("response", ({ statusCode }) => { console.log(statusCode); process.exit(0); });
    request.on("error", (error) => console.log(error.code));
    send();`;
  const clients: [what: string, isHere: boolean, command: string[]][] = [
    ["curl, sized", hasCurl, [...curl.split(" "), "-T", huge]],
    ["curl, chunked", hasCurl, [...curl.split(" "), "-H", "Transfer-Encoding:chunked", "-T", huge]],
    ["curl, sized twice", hasCurl, [...curl.split(" "), ...size, ...size, "-T", huge]],
    ["Node, sized", hasNode, ["node", "-e", node(`, "content-length": ${SIZE}`)]],
    ["Node, chunked", hasNode, ["node", "-e", node("")]],
  ];

  withClient(
    "413 for 256 MiB, sized once and twice and chunked, arrives; no memory is held",
    async () => {
      const to = await start();
      await Bun.write(huge, "");
      truncateSync(huge, SIZE);
      await to.ask("POST /items", { body: " ".repeat(65_537) });
      const before = residentMemory(to);
      for (const [what, isHere, command] of clients) {
        if (!isHere) continue;
        const { stdout } = spawn([...command, `${to.url}/items`], FOLDER);
        await stdout.done;
        expect([what, stdout.text.trim()]).toEqual([what, "413"]);
        to.asked.push("413  POST  /items");
      }
      expect(await to.status("GET /items/1")).toBe(200);
      expect(residentMemory(to) - before).toBeLessThan(16);
      await to.stop();
    },
  );

  test("20,000 requests, valid, almost valid and hostile: nothing outside the contract, and the items of a model", async () => {
    const seed = Number(Bun.env.SEED ?? Date.now() % 1_000_000);
    const to = await start({ LOG: "off" });
    const clients = Array.from({ length: 16 }, (_, client) => hostileClient(to, client, seed));
    const expected = (await Promise.all(clients)).flatMap((model) => [...model]);
    const rows = await namesOf(to.store);
    for (const id of ["1", "2"]) rows.delete(id);
    expect([seed, [...rows].toSorted()]).toEqual([seed, expected.toSorted()]);
    expect(await to.stop()).toBe(0);
    expect([seed, to.stderr.text]).toEqual([seed, ""]);
  });

  const nest = (first: string, open: string, close: string, last = "", inside = "") => {
    const depth = Math.floor(60_000 / (open.length + close.length));
    return first + open.repeat(depth) + inside + close.repeat(depth) + last;
  };
  const whole = JSON.stringify(fresh({ id: "1" })).replace("}", ",");
  /** An item up to the value of a member. */
  const upTo = (member: string) =>
    `${JSON.stringify(fresh({ id: "5", [member]: undefined })).slice(0, -1)},"${member}":`;
  const [id, name] = [upTo("id"), upTo("name")];
  const many = (member: (index: number) => string, count: number) =>
    Array.from({ length: count }, (_, index) => member(index)).join(",");
  const hostile: [words: string, what: string, body: string][] = [
    ["required", "arrays", nest("", "[", "]")],
    ["JSON", "arrays without an end", "[".repeat(60_000)],
    ["required", "objects", nest("", '{"a":', "}", "", "1")],
    ["exists", "objects, each an item", nest("", `${whole}"a":`, "}", "", "1")],
    ["required", "prototypes", nest("", '{"__proto__":', "}", "", "1")],
    ["exists", "arrays below an unknown member", nest(`${whole}"x":`, "[", "]", "}")],
    ["exists", "objects below one", nest(`${whole}"x":`, '{"a":', "}", "}", "1")],
    ["exists", "half a pair below arrays", nest(`${whole}"x":`, "[", "]", "}", '"\\ud800"')],
    ["exists", "halves in an array", `${whole}"x":[${many(() => '"\\ud800"', 6000)}]}`],
    ["exists", "a half among numbers", `${whole}"x":["\\ud800",${many(() => "1", 29_000)}]}`],
    ["required", "many members", `{${many((index) => `"${index}":0`, 6500)}}`],
    ["required", "one member many times", `{${many(() => '"id":"1"', 6500)}}`],
    ["required", "many items", `[${many(() => '{"id":"1","name":"x"}', 2700)}]`],
    ["required", "a string", `"${"x".repeat(60_000)}"`],
    ["JSON", "a string without an end", `"${"x".repeat(60_000)}`],
    ["JSON", "backslashes without an end", `"${"\\".repeat(60_001)}`],
    ["JSON", "spaces", " ".repeat(60_000)],
    ["required", "digits", "1".repeat(60_000)],
    ["name must", "arrays below the name", nest(name, "[", "]", "}")],
    ["name must", "objects below the name", nest(name, '{"a":', "}", "}", "1")],
    ["id must", "arrays below the id", nest(id, "[", "]", "}")],
    ["name must", "a half below it", nest(name, "[", "]", "}", '"\\udc00"')],
    ["name must", "a long name", `${name}"${"x".repeat(60_000)}"}`],
    ["name must", "a name of 😀", `${name}"${"😀".repeat(15_000)}"}`],
    ["name must", "a name of escapes", `${name}"${"\\u0041".repeat(10_000)}"}`],
    ["name must", "a name of halves", `${name}"${"\\ud800".repeat(10_000)}"}`],
    ["name must", "a name that ends badly", `${name}"${"x".repeat(60_000)}\\u0000"}`],
    ["id must", "an id of dots", `${id}"${".".repeat(60_000)}"}`],
    ["name must", "a name of digits", `${name}${"1".repeat(60_000)}}`],
    ["name must", "a name of members", `${name}{${many((at) => `"${at}":0`, 6500)}}}`],
  ];
  withProc(
    "a body of 60 kB costs at most 20 ms, whatever its shape, and gets its 4xx",
    async () => {
      const to = await start({ LOG: "off" });
      const wrong: unknown[] = [];
      for (const [words, what, body] of hostile) {
        const { cost, answers } = await costOf(to, "POST /items", { body });
        const other = answers.find(({ json }) => !`${json.error}`.includes(words));
        if (other || cost > 20) wrong.push([what, words, other?.text, cost]);
      }
      expect(wrong).toEqual([]);
      // To PUT and PATCH as well, what breaks a rule is refused with it.
      for (const [words, what, body] of hostile.filter(([words]) => words.endsWith("must")))
        for (const request of ["PUT /items/5", "PATCH /items/1"])
          expect([what, (await to.ask(request, { body })).json]).toEqual([
            what,
            says("POST /items", 422, words),
          ]);
      await to.stop();
      expect(to.stderr.text).toBe("");
    },
  );

  const spaces = " ".repeat(15_000);
  const long = (text: string) => text.repeat(Math.floor(15_000 / text.length));
  const fields: [request: string, field: string, value: string][] = [
    ["POST /items", "content-type", `a${spaces}b`],
    ["POST /items", "content-type", `application/json;${spaces}x`],
    ["POST /items", "content-type", `application/json${long(";")}`],
    ["POST /items", "content-type", `application/json${long(";charset=utf-8")}x`],
    ["GET /items", "accept", `a${spaces}b`],
    ["GET /items", "accept", long("*/*;q=0,")],
    ["GET /items", "accept", `*/*;q=0.${long("0")}1`],
    ["GET /items", "accept", `application/json${long(";")}q=1`],
    ["GET /items", "accept", long(",")],
    ["GET /items", "if-none-match", long('"')],
    ["GET /items", "if-none-match", long('W/"')],
    ["GET /items", "if-none-match", long('"x",')],
    ["GET /items", "if-none-match", long("W/")],
    ["GET /items/1", "if-match", `"${spaces}x`],
    ["PUT /items/1", "if-match", long('W/""')],
    ["POST /items", "authorization", `bearer${spaces}x y`],
    ["POST /items", "authorization", `bearer ${long("x")}`],
    ["GET /items", "authorization", `${spaces}bearer`],
    ["GET /items", "prefer", long("code=")],
    ["GET /items", "prefer", `code=50${spaces}3`],
    ["POST /items", "content-encoding", `identity${spaces}x`],
    ["GET /items", "origin", `http://${long("a.")}localhos`],
    ["GET /items", "origin", `http://127${long(".1")}x`],
    ["GET /items", "host", `${long("a.")}localhost`],
    ["GET /items", "host", long("%61")],
    ["GET /items", "host", `[${long(":")}]`],
    [`GET /items?${long("a=b&")}`, "x", "a query of many members"],
    [`GET /items?name=${long("%41")}`, "x", "a long member"],
    [`GET /items?limit=${long("1")}`, "x", "a large limit"],
    [`GET /items/${long("%41")}`, "x", "a long id"],
    [`GET ${long("/")}`, "x", "a path of slashes"],
    [`GET ${long("/.")}`, "x", "a path of dots"],
    [`GET ${long("/..")}/items`, "x", "a path upwards"],
  ];
  withProc("15 kB of a field or a target cost at most 5 ms, and no 5xx", async () => {
    const settings = { TOKEN: "write", REHEARSE: "1", CORS_ORIGIN: "http://page.example" };
    const to = await start({ ...settings, LOG: "off" });
    const authorization = "Bearer write";
    const wrong: unknown[] = [];
    for (const [request, field, value] of fields) {
      const json = request.startsWith("P") ? { json: fresh({ id: "1" }) } : {};
      const asks = { authorization, ...json, [field]: value };
      const { cost, answers } = await costOf(to, request, asks);
      const failed = answers.filter(({ status }) => status >= 500);
      if (failed.length > 0 || cost > 5)
        wrong.push([request.slice(0, 20), field, value.slice(0, 20), failed, cost]);
    }
    expect(wrong).toEqual([]);
    await to.stop();
    expect(to.stderr.text).toBe("");
  });

  withProc(
    "?name= costs what a page costs among 200,000 items, be it rare, common or nobody's",
    async () => {
      const to = await start({ LOG: "off" });
      const [row = {}] = await outside(to.store, "select * from items where id = '1'");
      const name = "case when i < 100000 then 'n' || i else 'common' end";
      const values: Row = { id: "'k' || (1000000 + i)", name };
      const columns = Object.keys(row).map((column) => `"${column}"`);
      const rows = Object.keys(row).map((column) => values[column] ?? `"${column}"`);
      await outside(
        to.store,
        `insert into items (${columns}) with recursive numbers(i) as
        (select 1 union all select i + 1 from numbers where i < 200000)
        select ${rows} from numbers, (select * from items where id = '1') as one`,
      );
      const lists = "limit=20 after=k1199970 name=n7 name=n99999 name=nobody name=common";
      const queries = `${lists} name=common&after=k1199970 name=apple&after=1`.split(" ");
      // To look at every item takes seven milliseconds or more: here, or in PostgreSQL.
      const slow: unknown[] = [];
      for (const query of queries) {
        const { answers, cost, fastest } = await costOf(to, `GET /items?${query}`);
        expect([query, answers[0]?.status]).toEqual([query, 200]);
        if (Math.max(cost, POSTGRES ? fastest : 0) > 5) slow.push([query, cost, fastest]);
      }
      expect(slow).toEqual([]);
      await to.stop();
    },
  );

  test("500 connections that send half a request and stop hold up nobody", async () => {
    const to = await start();
    const half = Array.from({ length: 500 }, () => open(to, postOf(100), '{"id"'));
    const held = await Promise.all(half);
    const times: number[] = [];
    while (times.length < 10) {
      const begin = performance.now();
      expect(await to.status("GET /items/1")).toBe(200);
      times.push(performance.now() - begin);
    }
    // The fastest, in milliseconds, for this machine may be busy with other tests.
    expect(Math.min(...times)).toBeLessThan(100);
    for (const { socket } of held) socket.end();
    await to.stop("SIGKILL");
  });
});

// ── At the terminal ────────────────────────────────────────────────────────────────────────────

together("settings", () => {
  const foreign = join(FOLDER, "foreign");
  const bad: [name: string, value: string, mayBe: RegExp][] = [
    ["PORT", "x", /a free port from 0 to 65535/],
    ["PORT", "65536", /a free port from 0 to 65535/],
    ["PORT", "-1", /a free port/],
    ["HOST", "not a host", /an address of this machine/],
    ["HOST", "two\nlines\x1b[31m", /an address of this machine/],
    ["HOST", "256.1.1.1", /an address of this machine/],
    ["HOST", "192.0.2.1", /an address of this machine/],
    ["DATABASE_URL", "mysql://h/d", /sqlite:\/\/FILE, sqlite:\/\/:memory: or postgres:/],
    ["DATABASE_URL", "sqlite://", /sqlite:\/\/FILE/],
    ["DATABASE_URL", "sqlite:// ", /sqlite:\/\/FILE/],
    ["DATABASE_URL", "sqlite:// items.sqlite", /sqlite:\/\/FILE/],
    ["DATABASE_URL", "sqlite://:memory:x", /sqlite:\/\/FILE/],
    ["DATABASE_URL", "sqlite://items.sqlite?mode=ro", /sqlite:\/\/FILE/],
    ["DATABASE_URL", "sqlite://file:items.sqlite", /sqlite:\/\/FILE/],
    ["DATABASE_URL", "sqlite:///no/such/folder/items.sqlite", /one that opens/],
    ["DATABASE_URL", `sqlite://${foreign}`, /one that opens/],
    ["TOKEN", "two words", /visible ASCII/],
    ["READ_TOKEN", "alone", /beside TOKEN and unlike it/],
    ["ALLOWED_HOSTS", "a.example:80", /hosts without a port/],
    ["CORS_ORIGIN", "page.example", /origins like/],
    ["RATE", "fast", /whole number/],
    ["ALLOWED_HOSTS", ".example.com", /hosts without a port/],
    ["ALLOWED_HOSTS", "*.example.com", /hosts without a port/],
    ["CORS_ORIGIN", "http://*.example.com", /origins like/],
    ["CORS_ORIGIN", "http://a.test/path", /origins like/],
    ["CORS_ORIGIN", "http://a.test/", /origins like/],
    ["CORS_ORIGIN", "http://a.test?x", /origins like/],
    ["CORS_ORIGIN", "http://a.test:80", /origins like/],
    ["CORS_ORIGIN", "http://b.test, https://a.test:443", /origins like/],
    ["ALLOWED_HOSTS", "a.test;b.test", /hosts without a port/],
    ["ALLOWED_HOSTS", "'a.test'", /hosts without a port/],
    ["ALLOWED_HOSTS", ",", /hosts without a port/],
    ["CORS_ORIGIN", "http://a;b", /origins like/],
    ["CORS_ORIGIN", "http://a.test:0", /origins like/],
    ["CORS_ORIGIN", ",", /origins like/],
    ["DELAY", "1.5", /whole number of milliseconds/],
    ["DELAY", "36000", /whole number of milliseconds up to 2\d000/],
    ["REHEARSE", "yes", /0 or 1/],
    ["LOG", "true", /on or off/],
  ];
  test.each(bad)("%s=%j ends the start and says what may be", async (name, value, mayBe) => {
    const text = "this is not a database, but a file of somebody else's\n";
    await Bun.write(foreign, text.repeat(99));
    const { code, stdout, stderr } = await runToItsEnd({ [name]: value });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^[^\n]+\n$/);
    expect(stderr).toStartWith(`${name} is `);
    expect(stderr).toMatch(mayBe);
    expect(stderr.includes(JSON.stringify(value))).toBe(!name.endsWith("TOKEN"));
  });

  test("a read token that is the write token as well", async () => {
    const { code, stderr } = await runToItsEnd({ TOKEN: "same", READ_TOKEN: "same" });
    const rule = "visible ASCII characters without a space, beside TOKEN and unlike it";
    expect([code, stderr]).toEqual([1, `READ_TOKEN is something else, but may only be ${rule}.\n`]);
  });

  test.each([
    "host=h password=S3CRET",
    "host=h password='my S3CRET' user=u",
    "postgres:///d?password=S3CRET",
    "jdbc:postgresql://h/d?user=u&password=S3CRET",
    "postgres://user:S3CRET",
    "postgres://u:S3CRET@127.0.0.1:1/d",
    "postgresql://u:S3CRET@127.0.0.1:1/d",
    "postgres://u@127.0.0.1:1/d?password=S3CRET",
    "postgres://u@127.0.0.1:1/d#password=S3CRET",
    "postgres://u:S3CRET@127.0.0.1:x/d",
    "postgres://u:S3CRET @127.0.0.1:1/d",
    "mysql://u:S3CRET@127.0.0.1/d",
    "//u:S3CRET@127.0.0.1/d",
    "u:S3CRET@127.0.0.1/d",
    "postgres://u:123/S3CRET@127.0.0.1/d",
    "postgres://u@127.0.0.1:1/d&password=S3CRET",
    "postgres://u%3AS3CRET@127.0.0.1:1/d",
    "postgres://u;password=S3CRET@127.0.0.1:1/d",
    "postgres://u@127.0.0.1:1/d?sslmode=disable;password=S3CRET",
    "postgres://user=u%20password=S3CRET",
    "sqlite://u:S3CRET@127.0.0.1/d",
  ])("DATABASE_URL=%j ends the start without its password", async (DATABASE_URL) => {
    const { code, stdout, stderr } = await runToItsEnd({ DATABASE_URL });
    expect([code, stdout, stderr.split("\n").length]).toEqual([1, "", 2]);
    expect(stderr).toStartWith("DATABASE_URL is ");
    expect(stderr).not.toContain("S3CRET");
  });

  onPostgres("a store that opens is named without its password", async () => {
    const url = Object.assign(new URL(await newStore()), { password: "S3CRET" });
    const to = await start({ DATABASE_URL: url.href });
    await to.stop();
    expect(to.stdout.text).toContain(`Store  postgres://${url.host}${url.pathname}\n`);
    expect(to.stdout.text + to.stderr.text).not.toContain("S3CRET");
  });

  const withLimits = test.if(canBeOrdinary);
  withLimits(
    "a folder that cannot be written to is the cause, of the default as well",
    async () => {
      const folder = mkdtempSync(join(FOLDER, "closed-"));
      chmodSync(folder, 0o555);
      const DATABASE_URL = `sqlite://${join(folder, "items.sqlite")}`;
      for (const settings of [{ DATABASE_URL: "" }, { DATABASE_URL }]) {
        const how = { cwd: folder, within: ordinary };
        const { code, stdout, stderr } = await runToItsEnd(settings, how);
        expect([code, stdout]).toEqual([1, ""]);
        expect(stderr).toMatch(
          /^DATABASE_URL is "sqlite:.*items\.sqlite".* \(unable to open.*\)\.\n$/,
        );
      }
    },
  );

  const free = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
  const isGuarded = canBeOrdinary && can(["test", "-r", free], "a port below 1024");
  const with80 = test.if(isGuarded && Number(readFileSync(free, "utf8")) > 80);
  with80("a port that only an administrator may take", async () => {
    const { code, stdout, stderr } = await runToItsEnd({ PORT: "80" }, { within: ordinary });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^PORT is "80", [^\n]+\n$/);
  });

  test.each([
    [["--port", "4304"], "PORT=4304"],
    [["--port=4304"], "PORT=4304"],
    [["-p", "4304"], "PORT=4304"],
    [["--host", "0.0.0.0"], "HOST="],
    [["--delay", "9"], "DELAY="],
    [["--read-token=S3CRET"], "READ_TOKEN="],
    [["", "--cors-origin", "x"], "CORS_ORIGIN="],
    [["postgres://u:S3CRET"], "DATABASE_URL="],
    [["db.json"], "DATABASE_URL="],
    [["--what\n\x1b[31m"], "DATABASE_URL="],
  ])("options %j are none: the setting is shown", async (args, setting) => {
    const { code, stdout, stderr } = await runToItsEnd({}, { args });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^[ -~…]+\n$/);
    expect(stderr).toContain(setting);
    expect(stderr).not.toContain("S3CRET");
    expect(stderr).toContain("bun server.ts");
  });

  test("a port that is taken", async () => {
    const { code, stderr } = await runToItsEnd({ PORT: `${live.port}` });
    const says = `PORT is "${live.port}", but may only be a free port from 0 to 65535 (it is in use).\n`;
    expect([code, stderr]).toEqual([1, says]);
  });

  test("the start says where, and warns when others can write; .env counts; items.sqlite is where it was started", async () => {
    const folder = mkdtempSync(join(FOLDER, "start-"));
    await Bun.write(join(folder, ".env"), "PORT=0\nHOST=0.0.0.0\n");
    const { child, stdout } = spawn(elsewhere(), folder, environment());
    await stdout.until(/Warning.*\n/);
    expect(stdout.text).toMatch(
      /^Items {2}http:\/\/localhost:\d+\nDocs {3}http:\/\/localhost:\d+\/swagger\nStore {2}items\.sqlite; to start over, stop and delete it\nWarning: other machines can write here\. Set TOKEN/,
    );
    expect(existsSync(join(folder, "items.sqlite"))).toBe(true);
    child.kill("SIGINT");
    expect(await child.exited).toBe(0);
    expect([...new Bun.Glob("items*").scanSync(folder)]).toEqual(["items.sqlite"]);
  });

  test("DELAY slows every answer down, but what is in flight at the end is answered at once", async () => {
    const to = await start({ DELAY: "300" });
    const sent = performance.now();
    const body = JSON.stringify(fresh({ id: "late" }));
    const late = await open(to, postOf(body.length), body.slice(0, 1));
    await to.ask("GET /items/1");
    expect(performance.now() - sent).toBeGreaterThanOrEqual(299);
    to.child.kill("SIGTERM");
    const begin = performance.now();
    late.socket.write(body.slice(1));
    expect((await late.answer).slice(0, 12)).toBe("HTTP/1.1 201");
    to.asked.push("201  POST  /items");
    expect(await to.child.exited).toBe(0);
    expect(performance.now() - begin).toBeLessThan(5000);
    await to.stop();
    expect((await namesOf(to.store)).has("late")).toBe(true);
  });

  test("REHEARSE: Prefer gets the code that it asks for, with what the code owes; without the setting it does not", async () => {
    const to = await start({ REHEARSE: "1" });
    for (const code of [400, 401, 405, 415, 418, 429, 500, 503, 599]) {
      const reply = await to.ask("GET /items/1", { prefer: `respond-async, code=${code}` });
      const applied = reply.headers.get("preference-applied");
      expect([reply.status, applied]).toEqual([code, `code=${code}`]);
    }
    for (const prefer of ["code=200", "code=600", "code=5030"])
      expect(await to.status("GET /items/1", { prefer })).toBe(200);
    await to.stop();
    expect(to.stdout.text).not.toContain("418  GET  /items/1  ★");
    expect(await status("GET /items/1", { prefer: "code=503" })).toBe(200);
  });
});

together("a table that was there before", () => {
  /** A store with this table, made by somebody else. */
  async function storeOf(...statements: string[]) {
    const DATABASE_URL = await newStore();
    for (const each of statements) await outside(DATABASE_URL, each);
    return { DATABASE_URL };
  }

  /** The table that a server makes, as SQL, but for these columns. */
  function tableOf(changes: Row = {}) {
    const members = Object.entries(fresh({}));
    const columns = members.map(([name, value]) => [
      name,
      `${typeof value === "number" ? "double precision" : "text"} not null`,
    ]);
    const all = { ...Object.fromEntries(columns), id: "text primary key", ...changes };
    return `create table items (${Object.entries(all).map(([name, type]) => `"${name}" ${type}`)})`;
  }

  test("works with its columns in another order; what the server does not know is never shown", async () => {
    const to = await start(await storeOf(tableOf({ hidden: "text default 'S3CRET'" })));
    const empty = await to.ask("GET /items");
    expect(idsOf(empty)).toEqual([]);
    const [put, post] = [{ json: fresh({}) }, { json: fresh({ id: "a" }) }];
    const requests: [status: number, request: string, asks?: Asks][] = [
      [201, "POST /items", post],
      [201, "PUT /items/b", put],
      [200, "PUT /items/b", put],
      [200, "PATCH /items/a", put],
      [400, "POST /items", post],
      [200, "GET /items/a"],
      [200, "GET /items"],
      [200, `GET /items?name=${post.json.name}`],
      [204, "DELETE /items/b"],
      [404, "GET /items/b"],
    ];
    for (const [status, request, asks] of requests) {
      const reply = await to.ask(request, asks);
      expect([request, reply.status]).toEqual([request, status]);
      expect(reply.text).not.toMatch(/S3CRET|hidden/);
    }
    expect([...(await namesOf(to.store))]).toEqual([["a", `${post.json.name}`]]);
    await to.stop();
  });

  const caseless = POSTGRES
    ? [
        "create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
      ]
    : [];
  const rewriting = POSTGRES
    ? [
        "create function shout() returns trigger language plpgsql as $$ begin update items set name = upper(new.name) where id = new.id and name <> upper(name); return new; end $$",
        "create trigger shouts after insert on items for each row execute function shout()",
      ]
    : [
        "create trigger shouts after insert on items begin update items set name = upper(new.name) where id = new.id; end",
      ];
  const tables: [what: string, cause: RegExp, ...statements: string[]][] = [
    ["no id that is unique", /conflict/i, tableOf({ id: "text" })],
    ["another column", /name/, tableOf().replace('"name"', '"title"')],
    ["a further column that must be there", /further/, tableOf({ further: "int not null" })],
    ["an id that is a number", /type|integer/, tableOf({ id: "integer primary key" })],
    ["a name that is a number", /./, tableOf({ name: "integer" })],
    [
      "ids that are equal in another case",
      /./,
      ...caseless,
      tableOf({ id: "text collate nocase primary key" }),
    ],
    ["an id that may become a number", /./, tableOf({ id: "numeric primary key" })],
    [
      "ids that are equal but for a space",
      /./,
      tableOf({ id: POSTGRES ? "bpchar primary key" : "text collate rtrim primary key" }),
    ],
    ["a trigger that rewrites what is kept", /keep/, tableOf(), ...rewriting],
    ["no table, but a view", /view/, "create view items as select '1' as id, 'x' as name"],
    ["a trigger that ignores what is new", /keep/, tableOf(), ...ignoring("insert")],
    ["a trigger that ignores updates", /keep/, tableOf(), ...ignoring("update")],
    ["a trigger that ignores deletions", /keep/, tableOf(), ...ignoring("delete")],
  ];
  test.each(tables)(
    "is refused with %s: the cause is named in one line",
    async (_, cause, ...made) => {
      const { code, stdout, stderr } = await runToItsEnd(await storeOf(...made));
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toMatch(/^DATABASE_URL is "[^"]+", but [^\n]+ \([^\n]+\)\.\n$/);
      expect(stderr).toMatch(cause);
    },
  );

  onPostgres("is refused with a constraint that would wait for the commit", async () => {
    const name = "text not null references names deferrable initially deferred";
    const made = ["create table names (name text primary key)", tableOf({ name })];
    const { code, stderr } = await runToItsEnd(await storeOf(...made));
    expect(code).toBe(1);
    expect(stderr).toMatch(/^DATABASE_URL is [^\n]+ \([^\n]+foreign key[^\n]+\)\.\n$/);
  });

  onPostgres("is refused in a database that is not UTF-8", async () => {
    const DATABASE_URL = await newStore("encoding latin1 lc_collate 'C' lc_ctype 'C'");
    const { code, stdout, stderr } = await runToItsEnd({ DATABASE_URL });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^DATABASE_URL is "[^"]+", but [^\n]+LATIN1[^\n]+\n$/);
  });
});

together("the log", () => {
  test("the words of a refusal, the collection, the farewell; nothing of a client that went away but that it did", async () => {
    const to = await start();
    for (const path of ["/items/9", "/items/8", "/items/1"]) await to.ask(`GET ${path}`);
    const { socket } = await open(to, postOf(9), "{");
    await to.ask("GET /items/7");
    socket.terminate();
    await to.stdout.until(/gone {2}POST/);
    await to.stop();
    const log = to.stdout.text.replace(/(?<= {2})[\d.]+ ms/g, "TIME");
    expect(log).toContain("404  GET  /items/9  TIME  Item not found  ★ 1 of 18\n");
    expect(log).toContain("404  GET  /items/8  TIME  Item not found\n");
    expect(log).toContain("200  GET  /items/1  TIME  ★ 2 of 18\n");
    expect(log).toContain("gone  POST  /items  TIME\n");
    const missing = "201 204 302 304 400 405 406 409 412 413 415 421 422 500 501 503";
    expect(log).toEndWith(`Still to be found: ${missing}\n`);
    expect(to.stderr.text).toBe("");
  });

  test("with TOKEN, READ_TOKEN and RATE the collection has all twenty-one", async () => {
    const to = await start(GUARDS);
    await to.ask("GET /items/9", { authorization: "Bearer look" });
    await to.stop();
    expect(to.stdout.text).toContain("Item not found  ★ 1 of 21\n");
    const missing = "200 201 204 302 304 400 401 403 405 406 409 412 413 415 421 422 429 500 501";
    expect(to.stdout.text).toEndWith(`Still to be found: ${missing} 503\n`);
  });

  test("a path of 12 kB gives a line of 1.3 kB, as does one of characters that take nine", async () => {
    const to = await start();
    await to.ask(`GET /items/${"x".repeat(12_000)}`);
    await exchange(to, wire(`GET /${"é".repeat(6000)}`, HOST, "Connection: close"));
    await exchange(to, wire(`GET /${"😀".repeat(3000)} HTTP/1.0`));
    await to.stdout.until(/^400 .*\n/m);
    await to.stop("SIGKILL");
    const lines = to.stdout.text.split("\n").filter((line) => /^\d/.test(line));
    expect(lines.map((line) => line.slice(0, 3))).toEqual(["404", "404", "400"]);
    for (const line of lines) expect(line.length).toBeLessThan(1300);
  });

  /** A server whose log goes to a pipe; who reads it decides when. */
  async function startOnPipe(name: string) {
    const file = join(FOLDER, name);
    Bun.spawnSync(["mkfifo", file]);
    const [pipe, end] = [await openFile(file, "r+"), await openFile(file, "r+")];
    const env = environment({ LOG: "on", DATABASE_URL: await newStore() });
    const options = { cwd: import.meta.dir, env, stdout: end.fd } as const;
    const child = Bun.spawn([process.execPath, "server.ts"], options);
    register(child);
    await end.close();
    let text = "";
    async function read(pattern: RegExp) {
      while (!pattern.test(text)) {
        const { buffer, bytesRead } = await pipe.read(Buffer.alloc(65_536));
        text += buffer.toString("utf8", 0, bytesRead);
      }
      return text;
    }
    const url = /http:\S+/.exec(await read(/Store.*\n/))?.[0];
    const path = "x".repeat(1000);
    for (let turn = 0; turn < 60; turn++) {
      const fifty = Array.from({ length: 50 }, () => sent(`GET ${url}/items/${path}`));
      expect(new Set(await Promise.all(fifty))).toEqual(new Set([404]));
    }
    return { child, pipe, read };
  }
  const withPipe = test.if(has("mkfifo", "a log that nobody reads"));

  withPipe(
    "3,000 requests are answered while nobody reads it; then it says how many lines are lost",
    async () => {
      const { child, pipe, read } = await startOnPipe("read-late");
      const before = residentMemory({ child });
      const reading = read(/the end/);
      child.kill("SIGTERM");
      expect(await child.exited).toBe(0);
      await pipe.write("the end");
      const text = await reading;
      await pipe.close();
      const shown = text.match(/^404 {2}GET/gm)?.length ?? 0;
      const lost = Number(/^… and (\d+) lines more$/m.exec(text)?.[1] ?? 0);
      expect(shown).toBeLessThan(2500);
      // The farewell may be one of them.
      expect([3000, 3001]).toContain(shown + lost);
      expect(before).toBeLessThan(400);
    },
  );

  withPipe("SIGTERM ends with 0, in time, though nobody reads it", async () => {
    const { child, pipe } = await startOnPipe("read-never");
    const begin = performance.now();
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
    expect(performance.now() - begin).toBeLessThan(5000);
    await pipe.close();
  });

  test("a page of elsewhere may not read an answer: said once, with what would let it", async () => {
    const to = await start();
    for (const origin of [to.url, "http://localhost:5173", "http://a.test", "http://b.test"])
      expect(await to.status("GET /items/1", { origin })).toBe(200);
    await to.stop();
    expect(to.stdout.text.match(/CORS_ORIGIN=\S+/g)).toEqual(["CORS_ORIGIN=http://a.test"]);
  });

  test("no control character of a request reaches the terminal", async () => {
    const to = await start();
    await exchange(to, wire("GET /items/\x1b[31m\x07?\x1b[0m", HOST, "Connection: close"));
    await exchange(to, wire("GET /\x1b]0;x\x07", "Host: \x1b[2J"));
    await to.stop("SIGKILL");
    // oxlint-disable-next-line no-control-regex
    expect(to.stdout.text + to.stderr.text).not.toMatch(/[\0-\x09\x0b-\x1f\x7f-\x9f]/);
  });

  test.if(process.platform !== "win32").each([
    ["in colour", "", "\x1b[33m404\x1b[0m  GET"],
    ["without, for NO_COLOR is respected", "1", "404  GET"],
  ])("on a terminal it is on, and %s; Ctrl-C ends it", async (_, NO_COLOR, expected) => {
    const { child, output } = onTerminal(["server.ts"], { NO_COLOR });
    const url = await output.until(/http:\/\/[\d.:]+/);
    await fetch(`${url}/items/9`);
    await output.until(/★ 1 of \d+/);
    child.terminal?.write("\x03");
    await output.until(/Still to be found/);
    expect(await child.exited).toBe(0);
    for (const each of [expected, "★ 1 of 18"]) expect(output.text).toContain(each);
  });

  test.if(process.platform !== "win32" && existsSync(beside("package.json")))(
    "Ctrl-C under `bun run start`, which passes it on once more, answers what is in flight",
    async () => {
      const { child, output } = onTerminal(["run", "start"]);
      const url = await output.until(/http:\/\/[\d.:]+/);
      const port = Number(new URL(url).port);
      const body = JSON.stringify(fresh({ id: "late" }));
      const inFlight = await open({ port }, postOf(body.length), body.slice(0, 1));
      await fetch(`${url}/items/9`);
      child.terminal?.write("\x03");
      while (await isListening({ port }));
      inFlight.socket.write(body.slice(1));
      expect((await inFlight.answer).slice(0, 12)).toBe("HTTP/1.1 201");
      await output.until(/Still to be found/);
      expect(await child.exited).toBe(0);
    },
  );

  test("two signals at once are one: what is in flight is answered, exit code 0", async () => {
    const to = await start();
    const body = JSON.stringify(fresh({ id: "late" }));
    const inFlight = await open(to, postOf(body.length), body.slice(0, 1));
    await to.ask("GET /items/1");
    // Two of a kind may arrive as one.
    to.child.kill("SIGINT");
    to.child.kill("SIGTERM");
    while (await isListening(to));
    inFlight.socket.write(body.slice(1));
    expect((await inFlight.answer).slice(0, 12)).toBe("HTTP/1.1 201");
    to.asked.push("201  POST  /items");
    expect(await to.child.exited).toBe(0);
    await to.stop();
  });

  test("a second SIGINT ends at once, though a request is in flight", async () => {
    const to = await start({ DELAY: "0" });
    const { socket } = await open(to, postOf(9), "{");
    await to.ask("GET /items/1");
    const begin = performance.now();
    to.child.kill("SIGINT");
    while (await isListening(to));
    // One that comes at once may be the same Ctrl-C, passed on by `bun run`.
    for (; to.child.exitCode === null; await isListening(to)) to.child.kill("SIGINT");
    expect(await to.child.exited).toBe(130);
    expect(performance.now() - begin).toBeGreaterThanOrEqual(499);
    socket.end();
    await to.stop("SIGKILL");
  });
});

// ── The docs page ──────────────────────────────────────────────────────────────────────────────

together("the document", () => {
  const operationsOf = ({ paths }: Document) =>
    Object.values(paths).flatMap(Object.values<Operation>);
  const statusesOf = (document: Document) =>
    operationsOf(document).map(({ responses }) => Object.keys(responses).map(Number));

  test("has an operationId, a summary, a description and true outcomes for each operation", () => {
    const all = operationsOf(contract);
    expect(all.map(({ operationId }) => operationId)).toEqual(OPERATIONS);
    for (const { description, summary } of all) expect([description, summary]).not.toContain("");
    expect(statusesOf(contract)).toEqual([
      [200, 304, 400, 401, 406, 412, 421, 429, 500, 503],
      [201, 400, 401, 403, 406, 413, 415, 421, 422, 429, 500, 503],
      [200, 304, 400, 401, 404, 406, 412, 421, 429, 500, 503],
      [200, 201, 400, 401, 403, 406, 409, 412, 413, 415, 421, 422, 429, 500, 503],
      [200, 400, 401, 403, 404, 406, 409, 412, 413, 415, 421, 422, 429, 500, 503],
      [204, 400, 401, 403, 404, 412, 421, 429, 500, 503],
    ]);
  });

  test("has 401, 403 and 429 only where TOKEN, READ_TOKEN and RATE are set", async () => {
    const open = (statuses: number[]) => statuses.filter((each) => ![401, 403, 429].includes(each));
    expect(statusesOf(await documentOf(live))).toEqual(statusesOf(contract).map(open));
  });

  test("has examples that are true: sent in order, each gets its first outcome", async () => {
    const to = await start();
    for (const [path, methods] of Object.entries((await documentOf(to)).paths))
      for (const [method, { parameters, requestBody, responses }] of Object.entries(methods)) {
        const id = parameters?.find(({ name }) => name === "id");
        const target = path.replace("{id}", id?.schema.example ?? id?.example ?? "");
        for (const [type, { schema }] of Object.entries(requestBody?.content ?? { "": {} })) {
          const asks = schema ? { "content-type": type, json: exampleOf(schema) } : {};
          const { headers, ...reply } = await to.ask(`${method.toUpperCase()} ${target}`, asks);
          const [first] = Object.keys(responses);
          expect([target, method, `${reply.status}`]).toEqual([target, method, first ?? ""]);
          for (const field of Object.keys(responses[reply.status]?.headers ?? {}))
            if (field !== "Link") expect(headers.has(field)).toBe(true);
        }
      }
    await to.stop();
  });

  test("is what other programs take: whole numbers, portable patterns, no word of its own", async () => {
    const text = JSON.stringify(contract);
    expect(text).not.toMatch(/"(additionalProperties|anyOf|default)":|"error":"/);
    for (const [, pattern = ""] of text.matchAll(/"pattern":("(?:[^"\\]|\\.)*")/g))
      expect(JSON.parse(pattern)).not.toMatch(/\(\?|\p{Cc}/u);
    const limit = contract.paths["/items"]?.get?.parameters?.find(({ name }) => name === "limit");
    expect(limit?.schema).toMatchObject({ type: "integer", minimum: 1, maximum: 100 });
    expect(contract.servers).toEqual([{ url: guarded.url }]);
  });

  test("has an example for each member and field of a success", () => {
    for (const { responses } of operationsOf(contract))
      for (const { content, headers } of Object.values(responses).slice(0, 1)) {
        const schemas = Object.values({ ...content }).flatMap(({ schema }) => leavesOf(schema));
        const fields = Object.values({ ...headers }).map(({ schema }) => schema);
        for (const { example } of [...schemas, ...fields]) expect(example).toBeDefined();
      }
  });

  test("has each field that leads to an answer as a parameter, and Prefer only to rehearse", async () => {
    const to = await start({ REHEARSE: "1" });
    const fieldsOf = (document: Document) =>
      operationsOf(document).map(({ parameters = [] }) =>
        parameters.flatMap((each) => (each.in === "header" ? each.name : [])),
      );
    const reads = ["If-Match", "If-None-Match"];
    const writes = [...reads, "Content-Encoding"];
    const all = [reads, ["Content-Encoding"], reads, writes, writes, reads];
    expect(fieldsOf(contract)).toEqual(all);
    expect(fieldsOf(await documentOf(to))).toEqual(all.map((each) => [...each, "Prefer"]));
    await to.stop();
  });

  test("shows a lock only where a token is needed", async () => {
    const to = await start({ TOKEN: "t" });
    const locksOf = ({ components, paths, security }: Document) => [
      security.length,
      paths["/items"]?.get?.security?.length,
      paths["/items"]?.post?.security?.length,
      Object.keys(components),
    ];
    const withLock = ["securitySchemes", "schemas"];
    expect(locksOf(await documentOf(live))).toEqual([0, 0, undefined, ["schemas"]]);
    expect(locksOf(await documentOf(to))).toEqual([1, 0, undefined, withLock]);
    expect(locksOf(contract)).toEqual([1, undefined, undefined, withLock]);
    await to.stop();
  });
});

const chromium = ["chromium", "google-chrome"].find((name) => Bun.which(name)) ?? "chromium";
const withBrowser = test.if(has(chromium, "the tests in a browser"));
const axe = beside("node_modules/axe-core/axe.min.js");
const hasAxe = existsSync(axe);
if (!hasAxe) console.log("Skipped: who can read the docs, for axe-core is not installed.");
const withAxe = hasAxe ? withBrowser : test.skip;

together("in a real browser", () => {
  withBrowser("the docs list each operation, try it out, and ask nobody else", async () => {
    const to = await start({ LOG: "off", TOKEN: "browser" });
    const { complaints, requests, view } = await browse(`${to.url}/swagger`);
    const once = (expression: string) => soon(view, expression);
    const run = (statement: string) => view.evaluate(`void ${statement}`);
    const find = (selector: string) => `document.querySelector(${JSON.stringify(selector)})`;
    const fill = (selector: string, value: string) =>
      run(`((element, value) => {
        const { set } = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(element), "value");
        set.call(element, value);
        element.dispatchEvent(new Event("input", { bubbles: true }));
        element.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
      })(${find(selector)}, ${JSON.stringify(value)})`);
    const answered = ".live-responses-table .response .response-col_status";

    async function tryOut(id: string, value = "", field = "input") {
      const root = `#operations-items-${id}`;
      const click = (button: string) => run(`${find(`${root} ${button}`)}?.click()`);
      if (!(await view.evaluate(`!!${find(`${root} .execute`)}`))) {
        await click(".opblock-summary-control");
        await once(`${find(`${root} .try-out__btn`)} && "open"`);
        await click(".try-out__btn");
      }
      await once(`${find(`${root} .execute`)} && "ready"`);
      if (value) await fill(`${root} ${field}`, value);
      await click(".btn-clear");
      await once(`!${find(`${root} .live-responses-table`)} && "clear"`);
      await click(".execute");
      return once(`${find(`${root} ${answered}`)}?.firstChild?.textContent`);
    }

    for (const id of OPERATIONS)
      expect(await once(`${find(`#operations-items-${id}`)} && "${id}"`)).toBe(id);
    expect(await tryOut("getItem")).toBe("200");
    expect(await tryOut("getItem", "*", "[placeholder=If-None-Match]")).toBe("304");
    expect(await tryOut("getItem", "9")).toBe("404");
    expect(await tryOut("createItem")).toBe("401");
    await run(`${find(".btn.authorize")}.click()`);
    await once(`${find(".auth-container input")} && "asks"`);
    await fill(".auth-container input", "browser");
    await run(`${find(".auth-btn-wrapper .authorize")}.click()`);
    await run(`${find(".auth-btn-wrapper .btn-done")}.click()`);
    const proposed = `${find("#operations-items-createItem textarea")}.value`;
    const example =
      contract.paths["/items"]?.post?.requestBody?.content["application/json"]?.schema;
    expect(JSON.parse(await view.evaluate(proposed))).toEqual(exampleOf(example));
    expect(await tryOut("createItem")).toBe("201");
    expect(await tryOut("createItem")).toBe("400");
    const bare = "x".repeat(65_537);
    expect(await tryOut("createItem", bare, "textarea")).toBe("413");
    expect(await tryOut("createItem", "gzip", "[placeholder=Content-Encoding]")).toBe("415");
    expect(await tryOut("putItem", JSON.stringify(fresh({ id: "2" })), "textarea")).toBe("409");
    expect(await tryOut("putItem", JSON.stringify(fresh({ id: "" })), "textarea")).toBe("422");
    expect(await tryOut("deleteItem", '"old"', "[placeholder=If-Match]")).toBe("412");
    expect(await tryOut("deleteItem", "*", "[placeholder=If-Match]")).toBe("204");
    const size = `parseFloat(getComputedStyle(${find(answered)}).fontSize)`;
    expect(await view.evaluate<number>(size)).toBeGreaterThanOrEqual(32);

    const others = requests.filter((url) => !url.startsWith(`${to.url}/`));
    expect(others.filter((url) => !/^(data|about):/.test(url))).toEqual([]);
    expect(requests).toContain(`${to.url}/favicon.ico`);
    expect(complaints.filter((each) => !/status of 4\d\d/.test(each))).toEqual([]);
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
  });

  withAxe("the docs can be read by all, in any light, on a desk and on a telephone", async () => {
    const to = await start({ LOG: "off", TOKEN: "browser" });
    const { view } = await browse("about:blank");
    const all = (selector: string) => `[...document.querySelectorAll("${selector}")]`;
    const click = (selector: string) =>
      view.evaluate(`${all(selector)}.forEach((each) => each.click())`);
    const faultsIn = async (part: string) => {
      // A button that fades in is hard to read on its way, and not meant to be read then.
      await soon(view, "document.getAnimations().length === 0");
      return view.evaluate(`axe.run("${part}", { resultTypes: ["violations"] })
        .then(({ violations }) => violations.flatMap(({ id, impact, nodes }) =>
          /serious|critical/.test(impact) ? nodes.map(({ target }) => id + " " + target) : []))`);
    };
    const gaps = `${all(".response .response-col_status")}.map((each) => {
      const number = document.createRange();
      number.selectNodeContents(each);
      const text = each.nextElementSibling.getBoundingClientRect();
      return text.left - number.getBoundingClientRect().right;
    })`;
    const single = `${all("select")}.filter((each) => each.checkVisibility() && !each[1]).length`;

    // One of each kind: with a query, with a body, with a choice of media types.
    const some = ":is([id$=listItems], [id$=createItem], [id$=patchItem])";
    const looks: [number, string][] = [
      [1280, "light"],
      [390, "dark"],
    ];
    for (const [width, value] of looks) {
      const screen = { width, height: 900, deviceScaleFactor: 1, mobile: width === 390 };
      const features = [{ name: "prefers-color-scheme", value }];
      await view.cdp("Emulation.setDeviceMetricsOverride", screen);
      await view.cdp("Emulation.setEmulatedMedia", { features });
      await view.navigate(`${to.url}/swagger`);
      await view.cdp("Runtime.evaluate", { expression: await Bun.file(axe).text() });
      for (const button of [".opblock-summary-control", ".try-out__btn", ".execute"]) {
        await soon(view, `${all(`${some} ${button}`)}.length === 3`);
        await click(`${some} ${button}`);
      }
      await soon(view, `${all(".live-responses-table")}.length === 3`);
      expect(await faultsIn("html")).toEqual([]);
      const wide = await view.evaluate<number>("document.documentElement.scrollWidth");
      expect(wide).toBeLessThanOrEqual(width);
      expect(Math.min(...(await view.evaluate<number[]>(gaps)))).toBeGreaterThanOrEqual(8);
      // Where one can choose, there is a choice.
      expect(await view.evaluate(single)).toBe(0);

      await click("[data-name=model]");
      await soon(view, `${all(".model-box")}.length`);
      expect(await faultsIn(".model-box")).toEqual([]);
      await click(".btn.authorize");
      await soon(view, `${all(".auth-container input")}.length`);
      expect(await faultsIn(".dialog-ux")).toEqual([]);
    }
    view.close();
    await to.stop();
  });

  withBrowser("a page of elsewhere cannot write unless CORS_ORIGIN names it", async () => {
    const html = "<!doctype html><link rel=icon href=data:,><iframe name=f></iframe>";
    const headers = { "content-type": "text/html" };
    const fetch = () => new Response(html, { headers });
    using page = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch });
    const CORS_ORIGIN = `http://page.example:${page.port}`;
    const closed = await start({ LOG: "off" });
    const opened = await start({ LOG: "off", CORS_ORIGIN });
    const { view } = await browse(CORS_ORIGIN);

    const body = JSON.stringify(fresh({ id: "cross", name: "=" }));
    const fetched = ({ url }: Live, type: string, mode = "cors") =>
      view.evaluate<string>(`fetch("${url}/items", {
        ...${JSON.stringify({ method: "POST", body, mode, headers: { "content-type": type } })}
      }).then(({ type, status }) => type + " " + status, () => "refused")`);
    const submitted = ({ url }: Live) =>
      view.evaluate(`new Promise((resolve) => {
        const form = document.body.appendChild(document.createElement("form"));
        const to = { action: "${url}/items", method: "post", enctype: "text/plain", target: "f" };
        const [name, value] = ${JSON.stringify(body.split("="))};
        Object.assign(form, to);
        form.appendChild(Object.assign(document.createElement("input"), { name, value }));
        document.querySelector("iframe").onload = () => resolve("loaded");
        form.submit();
      })`);

    await submitted(closed);
    expect(await fetched(closed, "text/plain", "no-cors")).toBe("opaque 0");
    expect(await fetched(closed, "application/json")).toBe("refused");
    await submitted(opened);
    expect(await fetched(opened, "text/plain")).toBe("cors 415");
    for (const to of [closed, opened]) expect(await to.status("GET /items/cross")).toBe(404);
    expect(await fetched(opened, "application/json")).toBe("cors 201");

    // A page of this machine can: there, a front end in the making lives.
    await view.navigate(page.url.href);
    expect(await fetched(closed, "text/plain")).toBe("cors 415");
    expect(await fetched(closed, "application/json")).toBe("cors 201");
    view.close();
    await Promise.all([closed.stop(), opened.stop()]);
  });
});

// ── The README ─────────────────────────────────────────────────────────────────────────────────

const hasReadme = existsSync(beside("README.md"));
if (!hasReadme) console.log("Skipped: what the README says, for there is no README.md here.");

(hasReadme ? together : describe.skip)("the README", () => {
  const readme = hasReadme ? readFileSync(beside("README.md"), "utf8") : "";
  const rows = rowsOf(readme);
  const yours = readme.slice(readme.indexOf("## Make it yours"), readme.indexOf("## Outgrowing"));

  withCurl("has each command run by line 9, and a real answer by line 20", async () => {
    expect(readme.split("\n").indexOf("bun server.ts")).toBeLessThan(9);
    const to = await start();
    const [, command = "", shown = ""] = /^\$ (curl .*)\n([^`]*)```/m.exec(readme) ?? [];
    expect(readme.slice(0, readme.indexOf(command)).split("\n").length).toBeLessThanOrEqual(20);
    const printed = (await run(command, to, FOLDER)).split("\n");
    to.asked.push("200  GET  /items/1");
    for (const line of shown.trim().split("\n")) expect(printed).toContain(line);
    await to.stop();
  });

  test("has a line for every answer of the document, and no other", () => {
    const pairs = pairsOf(contract);
    const told = rows.flatMap(({ request, routes, sentence, status }) =>
      request === "any"
        ? pairs.filter((each) => each.status === status && each.description.includes(sentence))
        : routes.map((route) => ({ pair: `${route} ${status}` })),
    );
    const beside = ["GET / 302", "GET /swagger 200", "GET /swagger/json 200"];
    const documented = [...pairs.map(({ pair }) => pair), ...beside];
    expect([...new Set(told.map(({ pair }) => pair))].sort()).toEqual(documented.sort());

    const refusals = pairs.filter(({ status }) => status >= 400);
    const sentences = new Set(refusals.flatMap(({ description }) => description.split("; ")));
    for (const { sentence, status } of rows) if (status >= 400) sentences.delete(sentence);
    expect([...sentences]).toEqual(["The server is shutting down"]);
    for (const { routes, sentence, status } of rows)
      for (const route of routes.filter((each) => each.includes("/items"))) {
        const documented = pairs.find(({ pair }) => pair === `${route} ${status}`);
        expect(documented?.description.split("; ")).toContain(sentence);
      }
  });

  withCurl("has lines that do what they say, and collect all twenty-one codes", async () => {
    const folder = mkdtempSync(join(FOLDER, "readme-"));
    const DATABASE_URL = `sqlite://${join(folder, "items.sqlite")}`;
    const codes = new Set<number>();
    const second = rows.findIndex(({ status }) => status === 401);
    const [line = ""] = /^([A-Z_]+=\S+ )+bun server\.ts$/m.exec(readme) ?? [];
    const settings = Object.fromEntries(line.matchAll(/(\S+)=(\S+)/g).map(([, ...pair]) => pair));
    for (const section of [rows.slice(0, second), rows.slice(second)]) {
      rmSync(join(folder, "items.sqlite"), { force: true });
      const to = await start({ DATABASE_URL, ...(section[0] === rows[0] ? {} : settings) });
      for (const { command, sentence, status } of section) {
        const printed = await run(command, to, folder);
        const statuses = printed.match(/(?<=HTTP\/1\.1 )\d{3}/g)?.map(Number) ?? [];
        expect([command, statuses]).toEqual([command, expect.arrayContaining([status])]);
        if (status !== 429) expect([command, statuses.length]).toEqual([command, 1]);
        const error = status < 400 ? "" : JSON.stringify({ error: sentence });
        expect([command, printed]).toEqual([command, expect.stringContaining(error)]);
        codes.add(status);
      }
      await to.stop("SIGKILL");
    }
    const all = [
      200, 201, 204, 302, 304, 400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 421, 422,
    ];
    expect([...codes].sort()).toEqual([...all, 429, 500, 501, 503]);
  });

  /** A folder with the server as the README's edits make it, and as `change` goes on from there. */
  async function patched(change?: (source: string) => string) {
    const folder = mkdtempSync(join(FOLDER, "price-"));
    for (const name of ["server.ts", "package.json", "bunfig.toml", "bun.lock"])
      if (existsSync(beside(name))) await Bun.write(join(folder, name), Bun.file(beside(name)));
    const [, diff = ""] = /```diff\n([^`]*(?:`[^`]+)*?)```\n/.exec(yours) ?? [];
    await Bun.write(join(folder, "price.diff"), diff);
    expect(await spawn(["patch", "-p0", "-i", "price.diff"], folder).child.exited).toBe(0);
    const file = join(folder, "server.ts");
    const source = await Bun.file(file).text();
    const changed = change?.(source);
    if (changed === source) throw new Error("There is nothing to change.");
    await Bun.write(file, changed ?? source);
    return folder;
  }

  /** The same, started, and what asks it: `POST /items`, its JSON, gives the status and the body. */
  async function startPatched(change?: (source: string) => string, settings: Settings = {}) {
    const to = await start({ LOG: "off", ...settings }, await patched(change));
    async function ask(request: string, json?: unknown) {
      const [method = "", target = ""] = request.split(" ");
      const body = json === undefined ? null : JSON.stringify(json);
      const init = { method, headers: IS_JSON, body, redirect: "manual" } as const;
      const response = await fetch(to.url + target, init);
      return `${response.status} ${await response.text()}`;
    }
    return { ask, to };
  }
  const IS_JSON = { "content-type": "application/json" };
  const PRICE = /\bprice: (t\.\w+\(\{[^}]*\}\))/;
  const PRICE_RULE = "price must be cents, from 0 to 99999";
  const isEdited = "price" in fresh({});
  if (isEdited) console.log("Skipped: the README's edits, for they are made here already.");
  const hasPatch = !isEdited && has("patch", "the README's edits");
  const withPatch = test.if(hasPatch);

  test.if(hasCurl && hasPatch)(
    "has edits that make an item with a price, and they do what it shows",
    async () => {
      const folder = await patched();
      const DATABASE_URL = `sqlite://${join(folder, "items.sqlite")}`;
      const to = await start({ DATABASE_URL, LOG: "off" }, folder);
      const shown = [...yours.matchAll(/^\$ (curl .*)\n(.*)$/gm)];
      expect(shown.length).toBe(3);
      for (const [, command = "", answer = ""] of shown)
        expect(await run(command, to, folder)).toBe(answer);
      await to.stop();
    },
  );

  withPatch(
    "a price that breaks its rule is 422 with it on each write, and documented so",
    async () => {
      const { ask, to } = await startPatched();
      const broken = `422 {"error":"${PRICE_RULE}"}`;
      const writes = ["POST /items", "PUT /items/new", "PUT /items/1", "PATCH /items/1"];
      const numbers = ["25", " 25 ", "0x10", 1.5, -1, 100_000, "100000", 1e300];
      for (const price of [...numbers, null, true, [], {}, { toString: 1 }, [25]])
        for (const request of writes) {
          const json = { ...(request === "POST /items" && { id: "new" }), name: "x", price };
          expect([request, price, await ask(request, json)]).toEqual([request, price, broken]);
        }
      expect(await ask("GET /items/new")).toStartWith("404");
      const document = JSON.parse((await ask("GET /swagger/json")).slice(4)) as Document;
      const refusals = pairsOf(document).filter(({ status }) => status === 422);
      expect(refusals.length).toBe(3);
      for (const { description } of refusals) expect(description.split("; ")).toContain(PRICE_RULE);

      expect(await ask("PUT /items/1", { name: "x" })).toMatch(/^400 .*name and price required/);
      expect(await ask("POST /items", { id: "new" })).toMatch(
        /^400 .*id and name and price required/,
      );
      for (const price of [0, 99_999, 25]) {
        expect(await ask("PUT /items/1", { name: "x", price })).toStartWith("200");
        expect(await ask("PATCH /items/1", { name: "y" })).toStartWith("200");
        expect(await ask("GET /items/1")).toBe(`200 ${JSON.stringify({ item: "y", price })}`);
      }
      expect(await ask("PATCH /items/1", { price: 7 })).toStartWith("200");
      expect(await ask("GET /items/1")).toBe('200 {"item":"y","price":7}');
      await to.stop();
      expect(to.stderr.text).toBe("");
    },
  );

  withPatch(
    "a price that may be left out: PUT without it removes it, PATCH leaves it",
    async () => {
      const { ask, to } = await startPatched((text) =>
        text.replace(PRICE, "price: t.Optional($1)"),
      );
      expect(await ask("POST /items", { id: "free", name: "x" })).toStartWith("201");
      expect(await ask("GET /items/free")).toBe('200 {"item":"x"}');
      expect(await ask("PUT /items/1", { name: "x", price: 5 })).toStartWith("200");
      expect(await ask("PATCH /items/1", { name: "y" })).toStartWith("200");
      expect(await ask("GET /items/1")).toBe('200 {"item":"y","price":5}');
      expect(await ask("PUT /items/1", { name: "z" })).toStartWith("200");
      expect(await ask("GET /items/1")).toBe('200 {"item":"z"}');
      expect(await ask("PATCH /items/1", { price: 6 })).toStartWith("200");
      expect(await ask("GET /items?name=z")).toContain('"items":[{"id":"1","name":"z","price":6}]');
      expect(await ask("DELETE /items/free")).toStartWith("204");
      await to.stop();
      expect(to.stderr.text).toBe("");
    },
  );

  withPatch("a price with a default: PATCH of the name leaves it", async () => {
    const withDefault = (text: string) =>
      text.replace(PRICE, (all) => all.replace("maximum:", "default: 7, maximum:"));
    const { ask, to } = await startPatched(withDefault);
    expect(await ask("PUT /items/1", { name: "x", price: 5 })).toStartWith("200");
    expect(await ask("PATCH /items/1", { name: "y" })).toStartWith("200");
    expect(await ask("PATCH /items/1", {})).toStartWith("200");
    expect(await ask("GET /items/1")).toBe('200 {"item":"y","price":5}');
    expect(await ask("POST /items", { id: "new", name: "x" })).toStartWith("201");
    expect(await ask("GET /items/new")).toBe('200 {"item":"x","price":7}');
    await to.stop();
  });

  withPatch(
    "a representation that its schema does not know is 500, with a line that says so",
    async () => {
      const { ask, to } = await startPatched((text) =>
        text.replace("item: name, price", "$&, cents: price"),
      );
      const lines = () => to.stderr.text.split("\n").filter(Boolean);
      expect(await ask("GET /items/1")).toBe('500 {"error":"Server error"}');
      expect(await ask("GET /items")).toStartWith("200");
      await to.stop();
      expect(lines()).toEqual([expect.stringMatching(/represent.*cents/)]);
    },
  );

  withPatch("a store of the shape before is refused at the start, in one line", async () => {
    const before = await start();
    await before.stop();
    const settings = { DATABASE_URL: before.store };
    const within = [process.execPath, "server.ts"];
    const { child, stderr, stdout } = spawn(within, await patched(), environment(settings));
    await Promise.all([stdout.done, stderr.done]);
    expect([await child.exited, stdout.text]).toEqual([1, ""]);
    expect(stderr.text).toMatch(/^DATABASE_URL is [^\n]+price[^\n]+\n$/);
  });

  withPatch("a resource under another path is guarded as it was", async () => {
    const renamed = (text: string) => text.replaceAll('"/items', '"/things');
    const { ask, to } = await startPatched(renamed, { TOKEN: "w", READ_TOKEN: "r" });
    for (const request of ["GET /things", "GET /things/1", "DELETE /things/1"])
      expect(await ask(request)).toStartWith("401");
    expect(await ask("GET /items/1")).toStartWith("404");
    expect(await ask("GET /swagger")).toStartWith("200");
    const headers = { authorization: "Bearer r" };
    expect(await (await fetch(`${to.url}/things/1`, { headers })).text()).toContain("apple");
    await to.stop();
  });

  test("names the settings that the server has, and the scripts of package.json", async () => {
    const code = readFileSync(beside("server.ts"), "utf8");
    const used = [...code.matchAll(/setting\(\s*"([A-Z_]+)"/g)].map(([, name]) => name);
    const table = readme.slice(readme.indexOf("## Settings"), readme.indexOf("## Outgrowing"));
    const named = [...table.matchAll(/`([A-Z_]+)`(?=.*\|.*\|.*\|)/g)].map(([, name]) => name);
    expect(named.slice(0, used.length)).toEqual(used);
    if (!existsSync(beside("package.json"))) return;
    const scripts = Object.keys((await Bun.file(beside("package.json")).json()).scripts);
    for (const [, name = ""] of readme.matchAll(/bun run (\w+)/g)) expect(scripts).toContain(name);
  });
});

// ── In the end ── no server is left, and what was seen is what is documented ────────────────────

afterAll(async () => {
  try {
    await Promise.all([live.stop(), guarded.stop()]);
  } finally {
    await keeper.stdin.end();
    await keeper.exited;
    // Each waits for a checkpoint, and those that are dropped together share one.
    const dropped = databases.map((name) => admin?.unsafe(`drop database ${name} with (force)`));
    await Promise.all(dropped);
    await admin?.close();
  }

  // Of a part of the tests, asked for with -t, nothing follows about the whole.
  if (/ (-t|--test-name-pattern)\b/.test(commandLine())) return;
  const pairs = pairsOf(contract);
  const documented = new Set(pairs.map(({ pair }) => pair));
  const routes = new Set(pairs.map(({ route }) => route));
  const missing = [...documented].filter((pair) => !seen.has(pair));
  const extra = [...seen].filter(
    (pair) => routes.has(pair.replace(/ \d+$/, "")) && !documented.has(pair),
  );
  expect({ missing, extra }).toEqual({ missing: [], extra: [] });
}, 240_000); // the last checkpoint may be long

// ── Starting servers ───────────────────────────────────────────────────────────────────────────

type Settings = Record<string, string>;
type Live = {
  /** The line that its log must have for each request: `404  GET  /items/9`. */
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
  /** The status and the body. */
  answer: (request: string, asks?: Asks) => Promise<string>;
  stop: (signal?: NodeJS.Signals) => Promise<number>;
};

/** What `bun server.ts` starts, with these settings; `within` is a command that starts another. */
async function start(settings: Settings = {}, folder = import.meta.dir, within: string[] = []) {
  const store = settings.DATABASE_URL ?? (await newStore());
  const env = environment({ LOG: "on", ...settings, DATABASE_URL: store });
  const command = [...within, process.execPath, "server.ts"];
  const { child, stderr, stdout } = spawn(command, folder, env);
  const url = await stdout.until(/http:\/\/\S+(?=\n)/);
  if (!url) throw new Error(`The server did not start: ${stderr.text}`);
  const { port } = new URL(url);
  const to: Live = {
    asked: [],
    child,
    port: Number(port),
    settings,
    stderr,
    stdout,
    store,
    url,
    stop,
    ask: (request, asks) => send(to, request, asks),
    status: async (request, asks) => (await send(to, request, asks)).status,
    async answer(request, asks) {
      const { status, text } = await send(to, request, asks);
      return `${status} ${text}`;
    },
  };
  return to;

  /** Ends the server, with 0; its log must have exactly one line for each request, with its status. */
  async function stop(signal: NodeJS.Signals = "SIGTERM") {
    child.kill(signal);
    const code = await child.exited;
    await Promise.all([stdout.done, stderr.done]);
    const lines: string[] = stdout.text.match(/^\d{3} {2}\S+ {2}\S+(?= {2}[\d.]+ ms)/gm) ?? [];
    if (signal === "SIGTERM") expect([code, stderr.text]).toEqual([0, stderr.text]);
    if (signal === "SIGTERM" && settings.LOG !== "off")
      expect(lines.sort()).toEqual(to.asked.sort());
    return code;
  }
}

/** Starts a process, which ends with these tests at the latest. */
function spawn(command: string[], cwd: string, env = environment()) {
  const child = Bun.spawn(command, { cwd, env, stdout: "pipe", stderr: "pipe" });
  register(child);
  return { child, stderr: reader(child.stderr), stdout: reader(child.stdout) };
}

/** Starts Bun on a terminal. */
function onTerminal(args: string[], settings: Settings = {}) {
  const screen = new TransformStream<Uint8Array, Uint8Array>();
  const [output, writer] = [reader(screen.readable), screen.writable.getWriter()];
  const child = Bun.spawn([process.execPath, ...args], {
    cwd: import.meta.dir,
    env: environment({ DATABASE_URL: "sqlite://:memory:", ...settings }),
    terminal: { data: (_, bytes) => void writer.write(bytes.slice()) },
  });
  register(child);
  return { child, output };
}

/** Tells the keeper of a process, so that it ends with these tests. */
function register({ exited, pid }: Subprocess) {
  const tell = (line: string) => void (keeper.stdin.write(line), keeper.stdin.flush());
  tell(`+${pid}\n`);
  void exited.then(() => tell(`-${pid}\n`));
}

/** When these tests end, in whatever way, this kills what they left and removes their folder. */
function keep() {
  const code = `
    process.on("SIGINT", () => {});
    const running = new Set();
    for await (const line of console)
      running[line[0] === "+" ? "add" : "delete"](Number(line.slice(1)));
    for (const pid of running) try { process.kill(pid, "SIGKILL"); } catch {}
    require("node:fs").rmSync(process.argv[1], { recursive: true });`;
  return Bun.spawn([process.execPath, "-e", code, FOLDER], { stdin: "pipe" });
}

/** The environment of a child: other settings are empty, so that no .env counts; or not there. */
function environment(settings?: Settings): Record<string, string | undefined> {
  const names =
    "PORT HOST DATABASE_URL TOKEN READ_TOKEN ALLOWED_HOSTS CORS_ORIGIN RATE DELAY REHEARSE LOG";
  const none = names.split(" ").map((name) => [name, settings ? "" : undefined]);
  const rest = settings && { NO_COLOR: "", PORT: "0", ...settings };
  return { ...Bun.env, ...Object.fromEntries(none), ...rest };
}

/** `bun server.ts`, with the same bunfig.toml, from another folder. */
function elsewhere() {
  const config = existsSync(beside("bunfig.toml")) ? [`--config=${beside("bunfig.toml")}`] : [];
  return [process.execPath, ...config, beside("server.ts")];
}

/** A file in the folder of these tests. */
function beside(name: string) {
  return join(import.meta.dir, name);
}

type How = { args?: string[]; cwd?: string; within?: string[] };

/** Runs the server until it ends by itself, in a folder without a .env. */
async function runToItsEnd(settings: Settings, { args = [], cwd = FOLDER, within = [] }: How = {}) {
  const env = environment({ DATABASE_URL: "sqlite://:memory:", ...settings });
  const { child, stderr, stdout } = spawn([...within, ...elsewhere(), ...args], cwd, env);
  void stdout.until(/http:/).then((isStarted) => isStarted && child.kill("SIGKILL"));
  await Promise.all([stdout.done, stderr.done]);
  return { code: await child.exited, stdout: stdout.text, stderr: stderr.text };
}

type Output = ReturnType<typeof reader>;

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

/** What a line of the README prints, about this server, in this folder. */
async function run(command: string, to: Live, folder: string) {
  const line = command.replaceAll("localhost:3000", `127.0.0.1:${to.port}`);
  const PATH = `${dirname(process.execPath)}:${Bun.env.PATH}`;
  const { stdout } = spawn(["sh", "-c", line], folder, { ...environment(), PATH });
  await stdout.done;
  return stdout.text.replaceAll("\r", "");
}

/** Whether a command succeeds here; if not, says what is skipped. */
function can(command: string[], what: string) {
  const isThere = Bun.which(command[0] ?? "") !== null;
  if (isThere && Bun.spawnSync(command, { stderr: "ignore" }).success) return true;
  console.log(`Skipped: ${what}, for this machine cannot \`${command.slice(0, 2).join(" ")}\`.`);
  return false;
}

/** Whether this machine has a program; if not, says what is skipped. */
function has(program: string, what: string) {
  if (Bun.which(program)) return true;
  console.log(`Skipped: ${what}, for there is no ${program} here.`);
  return false;
}

/** The command that runs these tests, if this machine can tell. */
function commandLine() {
  if (existsSync("/proc/self/cmdline"))
    return readFileSync("/proc/self/cmdline", "utf8").replaceAll("\0", " ");
  return has("ps", "a look at the options of this run") ? ps("args=", process.pid) : "";
}

/** The resident memory of a server, in MiB. */
function residentMemory({ child }: Pick<Live, "child">) {
  const file = `/proc/${child.pid}/status`;
  const kibibytes = existsSync(file)
    ? /^VmRSS:\s*(\d+)/m.exec(readFileSync(file, "utf8"))?.[1]
    : has("ps", "a look at the memory of a server") && ps("rss=", child.pid);
  return Number(kibibytes) / 1024;
}

/** Ten times the same: the answers, the CPU time of each, and the fastest, in milliseconds. */
async function costOf(to: Live, request: string, asks?: Asks) {
  const spent = () => {
    const fields = readFileSync(`/proc/${to.child.pid}/stat`, "utf8").split(") ")[1]?.split(" ");
    return 10 * (Number(fields?.[11]) + Number(fields?.[12])); // in ticks, of 10 ms each
  };
  const answers = [await to.ask(request, asks)];
  const [times, before]: [number[], number] = [[], spent()];
  while (times.length < 10) {
    const begin = performance.now();
    answers.push(await to.ask(request, asks));
    times.push(performance.now() - begin);
  }
  return { answers, cost: (spent() - before) / 10, fastest: Math.min(...times) };
}

function ps(column: string, pid: number) {
  return Bun.spawnSync(["ps", "-o", column, "-p", `${pid}`]).stdout.toString();
}

// ── Stores, from outside ───────────────────────────────────────────────────────────────────────

type Row = Record<string, string>;

/** A store that nobody else has: a file, or a database. */
async function newStore(how = "lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'") {
  const name = `items_test_${process.pid}_${databases.length}`;
  databases.push(name);
  if (!admin) return `sqlite://${join(FOLDER, name)}.sqlite`;
  await admin.unsafe(`create database ${name} template template0 ${how}`);
  return Object.assign(new URL(POSTGRES), { pathname: `/${name}` }).href;
}

/** Runs a statement on a store from outside, as another process would. */
async function outside(store: string, statement: string) {
  if (store.startsWith("sqlite")) {
    using db = new Database(store.slice("sqlite://".length));
    return db.query(statement).all() as Row[];
  }
  await using sql = new SQL(store, { max: 1 });
  return (await sql.unsafe(statement)) as Row[];
}

/** Ends the sessions of a database of PostgreSQL. */
async function disconnect(name: string) {
  const sessions = `from pg_stat_activity where datname = '${name}' and pid <> pg_backend_pid()`;
  await admin?.unsafe(`select pg_terminate_backend(pid) ${sessions}`);
}

/** The statements that make a trigger which ignores an insert, update or delete. */
function ignoring(event: string) {
  const trigger = `create trigger ignoring_${event} before ${event} on items`;
  if (!POSTGRES) return [`${trigger} begin select raise(ignore); end`];
  const body = "returns trigger language plpgsql as 'begin return null; end'";
  return [
    `create or replace function ignore() ${body}`,
    `${trigger} for each row execute function ignore()`,
  ];
}

/** Locks the table, as another session would; gives what ends that. */
async function lock(store: string, mode: "share" | "access exclusive") {
  const sql = new SQL(store, { max: 1 });
  const session = await sql.reserve();
  await session.unsafe("begin");
  await session.unsafe(`lock table items in ${mode} mode`);
  return async () => {
    await session.unsafe("rollback");
    session.release();
    await sql.close();
  };
}

/** A way to a port that can fall silent on the connections that it has; new ones work. */
function wayTo(hostname: string, port: number) {
  type Way = { age: number; up: Promise<Bun.Socket> };
  let age = 0;
  const server = Bun.listen<Way>({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open(down) {
        const born = age;
        const data = (_: Bun.Socket, chunk: Buffer) => void (born === age && down.write(chunk));
        const close = () => void (born === age && down.end());
        down.data = { age: born, up: Bun.connect({ hostname, port, socket: { close, data } }) };
      },
      async data({ data: { age: born, up } }, chunk) {
        const copy = Buffer.from(chunk);
        if (born === age) (await up).write(copy);
      },
      close: async ({ data: { up } }) => void (await up).end(),
    },
  });
  return { close: () => server.stop(true), fallSilent: () => age++, port: `${server.port}` };
}

/** The names that a store has, by their ids. */
async function namesOf(store: string) {
  const rows = await outside(store, "select id, name from items");
  return new Map(rows.map(({ id = "", name = "" }) => [id, name]));
}

// ── The document ───────────────────────────────────────────────────────────────────────────────

type Answer = {
  description: string;
  headers?: Record<string, { schema: Leaf }>;
  content?: Record<string, { schema: Schema }>;
};
type Leaf = { enum?: string[]; example?: unknown; items?: Schema };
type Schema = { example?: object; properties: Record<string, Leaf> };
type Operation = {
  operationId: string;
  summary: string;
  description: string;
  parameters?: { in: string; name: string; example?: string; schema: { example?: string } }[];
  requestBody?: { content: Record<string, { schema?: Schema }> };
  responses: Record<string, Answer>;
  security?: unknown[];
};
type Document = {
  components: object;
  paths: Record<string, Record<string, Operation>>;
  security: unknown[];
  servers: { url: string }[];
};
type Members = Record<string, unknown>;

async function documentOf(to: Live) {
  return (await to.ask("GET /swagger/json")).json as Document;
}

/** An item of the document's own examples, but for these members; it has an id if they do. */
function fresh(members: Members): Members {
  const examples = [contract.paths["/items"]?.post, contract.paths["/items/{id}"]?.put].map(
    (operation) => exampleOf(operation?.requestBody?.content["application/json"]?.schema),
  );
  const { id: _, ...others }: Members = Object.assign({}, ...examples);
  return { ...others, ...members };
}

/** The example of a schema, or that of each of its members. */
function exampleOf(schema?: Schema) {
  const members = Object.entries(schema?.properties ?? {});
  const examples = members.map(([name, { example }]) => [name, example]);
  return schema?.example ?? Object.fromEntries(examples);
}

/** The members of a schema that are not made of others. */
function leavesOf({ properties }: Schema): Leaf[] {
  return Object.values(properties).flatMap((each) => (each.items ? leavesOf(each.items) : each));
}

/** The route of a path, as the document has it. */
function routeOf(path: string) {
  return /^\/items\/[^/]+$/.test(path) ? "/items/{id}" : path;
}

/** The method of an operation, as the document has it: HEAD is a GET. */
function methodOf(method: string) {
  return method === "HEAD" ? "get" : method.toLowerCase();
}

/** What the document has about an answer: `GET /items/{id}`, 404. */
function documented(request: string, status: number): Answer | undefined {
  const [method = "", target = ""] = request.split(" ");
  return contract.paths[routeOf(target)]?.[method.toLowerCase()]?.responses[status];
}

/** When a request gets a status, in the words of the document. */
function title(request: string, status: number) {
  return `${status} ${documented(request, status)?.description ?? "(not documented)"}`;
}

/** The sentences that a refusal may say. */
function sentencesOf(request: string, status: number) {
  return documented(request, status)?.content?.["application/json"]?.schema.properties.error?.enum;
}

/** The body of the refusal that says these words. */
function says(request: string, status: number, words: string) {
  const all = sentencesOf(request, status)?.filter((each) => each.includes(words)) ?? [];
  expect([request, status, words, all.length]).toEqual([request, status, words, 1]);
  return { error: all[0] };
}

/** Every answer that a document has. */
function pairsOf({ paths }: Document) {
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, { responses }]) =>
      Object.entries(responses).map(([status, { description }]) => {
        const route = `${method.toUpperCase()} ${path}`;
        return { description, pair: `${route} ${status}`, route, status: Number(status) };
      }),
    ),
  );
}

// ── Asking ── and what must hold for every answer ────────────────────────────────────────────────

/** A body, as JSON or as it is, and fields. What is fleeting may be gone when it was created. */
type Asks = {
  body?: string | Uint8Array<ArrayBuffer>;
  fleeting?: boolean;
  json?: unknown;
  [field: string]: unknown;
};
type Reply = { status: number; headers: Headers; text: string; json: Record<string, unknown> };

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
  const text = await response.text();
  return inspect(
    to,
    request,
    { status: response.status, headers: response.headers, text },
    fleeting,
  );
}

/** What must hold for every answer of this server. */
async function inspect(to: Live, request: string, answer: Omit<Reply, "json">, fleeting = false) {
  const [method = "", target = ""] = request.split(" ");
  const [path = ""] = target.split(/[?#]/, 1);
  const { headers, status, text } = answer;
  const isRehearsed = headers.has("preference-applied");
  to.asked.push(`${status}  ${method}  ${path.replace(/[^!-~]+/g, encodeURIComponent)}`);
  if (!isRehearsed) seen.add(`${methodOf(method).toUpperCase()} ${routeOf(path)} ${status}`);
  const isJson = headers.get("content-type")?.startsWith("application/json") ?? false;
  const json = isJson && text ? JSON.parse(text) : {};

  expect(headers.get("x-content-type-options")).toBe("nosniff");
  if (path.startsWith("/items")) expect(headers.get("cache-control")).toBe("no-cache");
  if (method === "HEAD" || [204, 304].includes(status)) expect(text).toBe("");
  if ([204, 304].includes(status)) expect(headers.get("content-type")).toBeNull();
  if (status >= 400 && method !== "HEAD") {
    expect(Object.keys(json)).toEqual(["error"]);
    expect(text).not.toMatch(/select |insert |SQLITE|postgres|server\.ts|node_modules/i);
    const sentences = sentencesOf(`${method} ${path}`, status);
    if (sentences && !isRehearsed) expect(sentences).toContain(json.error);
    expect(headers.get("etag")).toBeNull();
    expect(headers.get("location")).toBeNull();
  }
  if (status === 401) expect(headers.get("www-authenticate")).toStartWith("Bearer ");
  if (status === 405) expect(headers.get("allow")).not.toBeNull();
  if (status === 405 && !isRehearsed)
    expect(headers.get("allow")?.split(", ")).not.toContain(method);
  if (status === 415) expect(headers.has("accept") && headers.has("accept-encoding")).toBe(true);
  if (status === 429 || status === 503)
    expect(Number(headers.get("retry-after"))).toBeGreaterThan(0);
  const hasItem = status < 300 && path.startsWith("/items") && !/DELETE|OPTIONS/.test(method);
  if (status === 304 || hasItem) expect(headers.get("etag")).toMatch(/^"[^"]+"$/);

  // What was created is at its Location, with the ETag that came with it.
  if (status === 201 && !fleeting) {
    const { READ_TOKEN } = to.settings;
    const asks = READ_TOKEN ? { authorization: `Bearer ${READ_TOKEN}` } : {};
    const there: Reply = await to.ask(`GET ${headers.get("location")}`, asks);
    expect([there.status, there.headers.get("etag")]).toEqual([200, headers.get("etag")]);
  }
  return { ...answer, json };
}

/** Sends JSON to a server that may be killed meanwhile: the status, or 0 if there is no answer. */
async function sent(request: string, json?: unknown) {
  const [method = "", url = ""] = request.split(" ");
  const headers = { "content-type": "application/json" };
  const body = json === undefined ? null : JSON.stringify(json);
  return fetch(url, { method, headers, body }).then(
    ({ status }) => status,
    () => 0,
  );
}

/** How many answers there were of each status. */
async function tally(replies: Promise<Reply>[]) {
  const all = Map.groupBy(await Promise.all(replies), ({ status }) => status);
  return Object.fromEntries([...all].map(([status, { length }]) => [status, length]));
}

function idsOf({ json }: Reply) {
  return (json.items as { id: string }[]).map(({ id }) => id);
}

/** Creates an item of its own for a test. */
async function item() {
  const id = `item-${crypto.randomUUID()}`;
  const { headers } = await ask("POST /items", { json: fresh({ id }) });
  return { etag: headers.get("etag") ?? "", id, path: `/items/${id}` };
}

/** One request for each operation, that would succeed if nothing were broken. */
function operations(): [request: string, asks?: Asks][] {
  return [
    ["GET /items"],
    ["POST /items", { json: fresh({ id: "op" }) }],
    ["GET /items/1"],
    ["PUT /items/1", { json: fresh({ name: "x" }) }],
    ["PATCH /items/1", { json: { name: "y" } }],
    ["DELETE /items/1"],
  ];
}

// ── Bytes on the wire ──────────────────────────────────────────────────────────────────────────

/** The head of a request, as it is written. */
function wire(request: string, ...fields: string[]) {
  const line = request.includes(" HTTP/") ? request : `${request} HTTP/1.1`;
  return [line, ...fields.filter(Boolean), "\r\n"].join("\r\n");
}

/** The head of a POST whose body has this many bytes. */
function postOf(length: number) {
  return wire("POST /items", HOST, JSON_TYPE, `Content-Length: ${length}`);
}

/** Sends the parts of a request; `answer` is there once it is complete, or the server hangs up. */
async function open({ port }: Pick<Live, "port">, ...parts: string[]) {
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
async function exchange(to: Live, ...parts: string[]) {
  const { answer, socket } = await open(to, ...parts);
  return answer.finally(() => socket.end());
}

/** The same, read and inspected; `as` is the request, where the server reads it as another. */
async function raw(bytes: string | string[], to = live, as?: string) {
  const parts = [bytes].flat();
  const [line = ""] = parts.join("").split(" HTTP/", 1);
  return inspect(to, as ?? line, parse(await exchange(to, ...parts)));
}

function parse(answer: string) {
  const [head = "", text = ""] = answer.split("\r\n\r\n");
  const [line = "", ...fields] = head.split("\r\n");
  const headers = new Headers(fields.map((each) => each.split(": ") as [string, string]));
  return { status: Number(line.split(" ")[1]), headers, text };
}

/** Whether a server still takes connections. */
function isListening({ port }: Pick<Live, "port">) {
  return Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {} } }).then(
    (socket) => socket.terminate() === undefined,
    () => false,
  );
}

// ── A browser ──────────────────────────────────────────────────────────────────────────────────

/** Opens a page, and keeps what it complains of and whom it asks. */
async function browse(url: string) {
  const [complaints, requests]: [string[], string[]] = [[], []];
  const quiet = "disable-gpu disable-quic disable-background-networking disable-component-update";
  const flags = `no-sandbox disable-sync ${quiet}`.split(" ").map((flag) => `--${flag}`);
  const argv = [...flags, "--host-resolver-rules=MAP page.example 127.0.0.1"];
  const view = new Bun.WebView({
    width: 1280,
    height: 900,
    backend: { type: "chrome", path: Bun.which(chromium) ?? "", argv, url: false },
  });
  await view.navigate("about:blank");
  for (const domain of ["Network", "Runtime", "Log"]) await view.cdp(`${domain}.enable`);
  const on = (name: `${string}.${string}`, use: (data: unknown) => unknown) =>
    view.addEventListener(name, (event) => void use((event as unknown as { data: unknown }).data));
  on("Network.requestWillBeSent", (data) =>
    requests.push((data as { request: Request }).request.url),
  );
  const faults = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"] as const;
  for (const name of faults) on(name, (data) => complaints.push(JSON.stringify(data)));
  await view.navigate(url);
  return { complaints, requests, view };
}

/** What an expression is in the page, as soon as it is something. */
function soon(view: Bun.WebView, expression: string) {
  return view.evaluate<string>(`new Promise((resolve) => {
    const look = () => {
      const found = ${expression};
      if (found) resolve(found); else requestAnimationFrame(look);
    };
    look();
  })`);
}

// ── Reading the README ─────────────────────────────────────────────────────────────────────────

/** The rows of the tables of outcomes, with the operations that each stands for. */
function rowsOf(readme: string) {
  const rows = readme.match(/^\| (any|`[A-Z]+ \/).*\|$/gm) ?? [];
  return rows.map((row) => {
    const [, request = "", status = "", sentence = "", line = ""] = row.split(/(?<!\\) ?\| ?/);
    const routes = [...request.matchAll(/`(\S+) ([^`]+)`/g)].map(
      ([, method, path]) => `${method} ${path?.replace(":id", "{id}")}`,
    );
    const command = line.slice(1, -1).replaceAll("\\|", "|");
    return { command, request, routes, sentence, status: Number(status) };
  });
}

// ── A hostile client ───────────────────────────────────────────────────────────────────────────

/** Numbers below a limit, the same for the same seed (mulberry32). */
function generator(state: number) {
  return (limit: number) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % limit;
  };
}

/** Sends 1,250 requests about items of its own, and gives back which items there should be. */
async function hostileClient(to: Live, client: number, seed: number) {
  const random = generator(seed * 16 + client);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
  const model = new Map<string, string>();
  const ids = ["a", "b/c", "%", "é", "😀", "..x", "__proto__"].map((id) => `${client}-${id}`);
  const fine = ["x", "y", "ü", "'; drop table items; --"];
  const names = [...fine, "", "\0", "\ud800", "x".repeat(1025), 5, null, undefined];
  const methods = "GET POST PUT PATCH DELETE DELETE PUT POST PUT OPTIONS HEAD PROPFIND".split(" ");
  const targets = "/ /items?limit=x /items/%ff /nowhere /items/ /swagger/json".split(" ");
  const [json, merge] = ["application/json", "application/merge-patch+json"];
  const types = [json, json, json, json, "text/plain", merge];
  const conditions = ["", "", "", "if-match *", "if-none-match *", 'if-match "x"'];

  for (let turn = 0; turn < 1250; turn++) {
    const [id, name, method, type] = [pick(ids), pick(names), pick(methods), pick(types)];
    const [kind, condition] = [random(10), pick(conditions)];
    const accept = random(20) === 0 ? "text/html" : "*/*";
    const own = method === "POST" ? "/items" : `/items/${encodeURIComponent(id)}`;
    const other = pick(targets).replace(/^\/items\?/, method === "POST" ? "/x?" : "$&");
    const target = kind === 0 ? other : own;
    const item =
      method === "PATCH" ? { name } : method === "POST" ? fresh({ id, name }) : fresh({ name });
    const body = kind === 1 ? pick(["{", "", "null", "[]", '"x"', "\xff"]) : JSON.stringify(item);
    const isWrite = /^(POST|PUT|PATCH|DELETE)$/.test(method);
    const headers = new Headers({ "content-type": type, accept });
    const [field = "", value = ""] = condition.split(" ");
    if (field) headers.set(field, value);
    const init = { method, headers, body: isWrite ? body : null, redirect: "manual" } as const;
    const response = await fetch(to.url + target, init);
    const [status, text] = [response.status, await response.text()];
    const what = `${seed}: ${method} ${target} ${body} ${type} ${condition}`;

    const path = target.split("?", 1)[0] ?? "";
    const documented = contract.paths[routeOf(path)]?.[methodOf(method)]?.responses;
    const allowed = Object.keys(documented ?? { 200: 1, 302: 1, 404: 1 }).map(Number);
    if (![...allowed, 204, 400, 405, 501].includes(status) || status === 500 || status === 503)
      throw new Error(`${what} gave ${status}`);
    if (status >= 400 && method !== "HEAD")
      expect(Object.keys(JSON.parse(text))).toEqual(["error"]);

    // What the model expects of a request that changes something.
    if (!isWrite || kind === 0 || (kind === 1 && method !== "DELETE")) continue;
    const exists = model.has(id);
    const expected = expectedOf({ method, type, name, accept, condition, exists });
    if (status !== expected) throw new Error(`${what} gave ${status}, not ${expected}`);
    if (status === 204) model.delete(id);
    if (status < 204 && name !== undefined) model.set(id, name as string);
  }
  return model;
}

type Write = Record<"method" | "type" | "accept" | "condition", string>;

/** The status of a write, in the order of the protocol. */
function expectedOf(write: Write & { name: unknown; exists: boolean }) {
  const { method, type, accept, condition, name, exists } = write;
  const isMergePatch = method === "PATCH" && type === "application/merge-patch+json";
  if (method !== "DELETE") {
    if (type !== "application/json" && !isMergePatch) return 415;
    if (name === undefined && method !== "PATCH") return 400;
    if (name !== undefined && !isFine(name)) return 422;
    if (accept !== "*/*") return 406;
  }
  if (method === "POST") return exists ? 400 : 201;
  if (method !== "PUT" && !exists) return 404;
  if (condition === 'if-match "x"' || (condition === "if-match *" && !exists)) return 412;
  if (condition === "if-none-match *" && exists) return 412;
  if (method === "DELETE") return 204;
  return exists ? 200 : 201;
}

function isFine(name: unknown) {
  return typeof name === "string" && /^\P{Cc}{1,1024}$/u.test(name) && name.isWellFormed();
}
