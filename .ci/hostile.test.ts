/**
 * Nobody can wear the server down: hostile bodies, fields and targets, bodies without an end,
 * connections that stall, and 20,000 requests of which each has one right answer.
 *
 *     bun test ./.ci/hostile.test.ts              on SQLite, or with TEST_DATABASE_URL
 *     SEED=123 bun test ./.ci/hostile.test.ts     the same requests as a run that printed this seed
 */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, symlinkSync, truncateSync } from "node:fs";
import { join } from "node:path";
import {
  beside,
  CHUNKED,
  exchange,
  FOLDER,
  fresh,
  can,
  HOST,
  ITEMS,
  JSON_TYPE,
  type Live,
  namesOf,
  open,
  postOf,
  says,
  sent,
  spawn,
  start,
  wire,
} from "../server.test";

const SEED = Number(Bun.env.SEED ?? Date.now() % 1_000_000);

describe.concurrent("20,000 requests of sixteen clients", () => {
  test(`each gets its one right answer, and the items are those of a model (SEED=${SEED})`, async () => {
    const to = await start({ LOG: "off" });
    const clients = Array.from({ length: 16 }, (_, client) => hostileClient(to, client));
    const expected = (await Promise.all(clients)).flatMap((model) => [...model]);
    const rows = await namesOf(to.store);
    for (const id of ["1", "2"]) rows.delete(id);
    expect([...rows].toSorted()).toEqual(expected.toSorted());
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });
});

// ── Bodies ── each gets its refusal, whatever its shape, and the server goes on ──────────────────

describe.concurrent("a hostile body", () => {
  const nest = (
    first: string,
    before: string,
    after: string,
    last = "",
    inside = "",
    most = 1e6,
  ) => {
    const depth = Math.min(most, Math.floor(60_000 / (before.length + after.length)));
    return first + before.repeat(depth) + inside + after.repeat(depth) + last;
  };
  const many = (member: (index: number) => string, count: number) =>
    Array.from({ length: count }, (_, index) => member(index)).join(",");

  test("of 60 kB gets its 4xx: deep, long or many; nothing is said on stderr", async () => {
    const to = await start({ LOG: "off" });
    const whole = JSON.stringify(fresh({ id: "1" })).replace("}", ",");
    /** An item up to the value of a member. */
    const upTo = (member: string) =>
      `${JSON.stringify(fresh({ id: "5", [member]: undefined })).slice(0, -1)},"${member}":`;
    const [id, name] = [upTo("id"), upTo("name")];
    const bodies: [words: string, what: string, body: string][] = [
      ["required", "arrays", nest("", "[", "]")],
      ["JSON", "arrays without an end", "[".repeat(60_000)],
      ["required", "objects", nest("", '{"a":', "}", "", "1")],
      ["exists", "objects, each an item", nest("", `${whole}"a":`, "}", "", "1")],
      ["required", "prototypes", nest("", '{"__proto__":', "}", "", "1")],
      ["exists", "arrays below an unknown member", nest(`${whole}"x":`, "[", "]", "}")],
      ["exists", "objects below one", nest(`${whole}"x":`, '{"a":', "}", "}", "1")],
      ["exists", "half a pair below arrays", nest(`${whole}"x":`, "[", "]", "}", '"\\ud800"', 999)],
      ["JSON", "half a pair below too many", nest(`${whole}"x":`, "[", "]", "}", '"\\ud800"')],
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
      ["name must", "a half below it", nest(name, "[", "]", "}", '"\\udc00"', 999)],
      ["name must", "a long name", `${name}"${"x".repeat(60_000)}"}`],
      ["name must", "a name of 😀", `${name}"${"😀".repeat(15_000)}"}`],
      ["name must", "a name of escapes", `${name}"${"\\u0041".repeat(10_000)}"}`],
      ["name must", "a name of halves", `${name}"${"\\ud800".repeat(10_000)}"}`],
      ["name must", "a name that ends badly", `${name}"${"x".repeat(60_000)}\\u0000"}`],
      ["id must", "an id of dots", `${id}"${".".repeat(60_000)}"}`],
      ["id must", "an id of slashes", `${id}"${"/".repeat(60_000)}"}`],
      ["name must", "a name of digits", `${name}${"1".repeat(60_000)}}`],
      ["name must", "a name of members", `${name}{${many((at) => `"${at}":0`, 6500)}}}`],
      ["name must", "a name that cannot be a text", `${name}{"toString":1,"valueOf":null}}`],
    ];
    for (const [words, what, body] of bodies) {
      const status = words.endsWith("must") ? 422 : 400;
      const reply = await to.ask(`POST ${ITEMS}`, { body });
      const refusal = says(`POST ${ITEMS}`, status, words);
      expect([what, reply.status, reply.json]).toEqual([what, status, refusal]);
      if (status === 400) continue;
      // To PUT and PATCH as well, what breaks a rule is refused with it.
      for (const request of [`PUT ${ITEMS}/5`, `PATCH ${ITEMS}/1`]) {
        const other = await to.ask(request, { body });
        expect([what, other.status, other.json]).toEqual([what, 422, refusal]);
      }
    }
    expect(await to.answer(`GET ${ITEMS}/1`)).toBe('200 {"item":"apple"}');
    expect(await to.status(`GET ${ITEMS}/5`)).toBe(404);
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });

  test("that has half a character is read as what it says, or refused", async () => {
    const to = await start({ LOG: "off" });
    const bytes = (name: number[]) =>
      new Uint8Array([...Buffer.from('{"id":"h","name":"'), ...name, ...Buffer.from('"}')]);
    const bodies: [status: number, body: string | Uint8Array<ArrayBuffer>, name?: string][] = [
      [400, String.raw`{"id":"h","name":"\ud8"}"}`], // an escape cut short swallows no quote
      [400, String.raw`{"id":"h","name":"\ud80"}"}`],
      [400, String.raw`{"id":"h","name":"\ud83d\ude0"}"}`],
      [422, String.raw`{"id":"h","name":"\ud800"}`],
      [422, String.raw`{"id":"h","name":"\uDE00\uD83D"}`],
      [422, String.raw`{"id":"h\udfff","name":"x"}`],
      [422, String.raw`{"id":"h","name":"\ufffd"}`],
      [201, String.raw`{"id":"h","name":"\ud83d\ude00"}`, "😀"],
      [201, String.raw`{"id":"h","name":"\\ud800"}`, String.raw`\ud800`],
      [201, String.raw`{"id":"h","name":"x","y":"\ud800","\udc00":1}`, "x"],
      [400, bytes([0xed, 0xa0, 0x80])], // a half as UTF-8 would have it
      [400, bytes([0xf0, 0x9f, 0x98])],
      [400, bytes([0xc0, 0x80])],
    ];
    for (const [status, body, name] of bodies) {
      const whole = typeof body === "string" ? withOthers(body) : body;
      expect([body, await to.status(`POST ${ITEMS}`, { body: whole })]).toEqual([body, status]);
      if (status !== 201) continue;
      expect((await to.ask(`GET ${ITEMS}/h`)).json.item).toBe(name);
      expect(await to.status(`DELETE ${ITEMS}/h`)).toBe(204);
    }
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });

  test("422 for U+0000 in a member that has no rule of its own, on every store", async () => {
    const to = await start({ LOG: "off" }, withMember("note: t.Optional(t.String()),"));
    const put = (note: string) => sent(`PUT ${to.url}${ITEMS}/n`, fresh({ name: "x", note }));
    for (const note of ["\0", "a\0b", "\\\0", '"\0']) expect(await put(note)).toBe(422);
    expect(await sent(`GET ${to.url}${ITEMS}/n`)).toBe(404);
    const post = fresh({ id: "n", name: "x", note: "\0" });
    expect(await sent(`POST ${to.url}${ITEMS}`, post)).toBe(422);
    expect(await sent(`PATCH ${to.url}${ITEMS}/1`, { note: "\0" })).toBe(422);
    // The six characters of the escape are a text like any other.
    expect(await put("\\u0000")).toBe(201);
    expect(await put("\\\\u0000")).toBe(200);
    expect(await put("\ud800")).toBe(200);
    expect(await sent(`GET ${to.url}${ITEMS}`)).toBe(200);
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });
});

describe.concurrent("a body of 256 MiB", () => {
  const SIZE = 256 * 1024 * 1024;
  const huge = join(FOLDER, "256-mib");
  const curl = `curl -s -o /dev/null -w %{http_code} -X POST -H Content-Type:application/json -H Expect:`;
  const size = ["-H", `Content-Length: ${SIZE}`];
  const [hasCurl, hasNode] = [can(["curl"], "413 to curl"), can(["node"], "413 to Node")];
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
  const withCurl = (...more: string[]) => [...curl.split(" "), ...more, "-T", huge];
  const clients: [what: string, isHere: boolean, command: string[]][] = [
    ["curl, sized", hasCurl, withCurl()],
    ["curl, chunked", hasCurl, withCurl("-H", CHUNKED)],
    ["curl, sized twice", hasCurl, withCurl(...size, ...size)],
    ["curl, and the connection is not kept", hasCurl, withCurl("-H", "Connection: close")],
    ["curl, in HTTP/1.0", hasCurl, withCurl("-0")],
    ["Node, sized", hasNode, ["node", "-e", node(`, "content-length": ${SIZE}`)]],
    ["Node, chunked", hasNode, ["node", "-e", node("")]],
    ["Node, without an agent", hasNode, ["node", "-e", node(', "connection": "close"')]],
  ];

  test.if(hasCurl || hasNode)("is 413, which arrives, and is held by nobody", async () => {
    const to = await start({ LOG: "off" });
    await Bun.write(huge, "");
    truncateSync(huge, SIZE);
    await to.ask(`POST ${ITEMS}`, { body: " ".repeat(65_537) });
    const before = memoryPeak(to);
    for (const [what, isHere, command] of clients) {
      if (!isHere) continue;
      const { stdout } = spawn([...command, `${to.url}${ITEMS}`]);
      await stdout.done;
      expect([what, stdout.text.trim()]).toEqual([what, "413"]);
    }
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    expect(memoryPeak(to) - before).toBeLessThan(64);
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });
});

// ── Fields and targets ───────────────────────────────────────────────────────────────────────────

describe.concurrent("15 kB of a field or a target", () => {
  const spaces = " ".repeat(15_000);
  const long = (text: string) => text.repeat(Math.floor(15_000 / text.length));
  const fields: [request: string, field: string, value: string][] = [
    [`POST ${ITEMS}`, "content-type", `a${spaces}b`],
    [`POST ${ITEMS}`, "content-type", `application/json;${spaces}x`],
    [`POST ${ITEMS}`, "content-type", `application/json${long(";")}`],
    [`POST ${ITEMS}`, "content-type", `application/json${long(";charset=utf-8")}x`],
    [`GET ${ITEMS}`, "accept", `a${spaces}b`],
    [`GET ${ITEMS}`, "accept", long("*/*;q=0,")],
    [`GET ${ITEMS}`, "accept", `*/*;q=0.${long("0")}1`],
    [`GET ${ITEMS}`, "accept", `application/json${long(";")}q=1`],
    [`GET ${ITEMS}`, "accept", long(",")],
    [`GET ${ITEMS}`, "if-none-match", long('"')],
    [`GET ${ITEMS}`, "if-none-match", long('W/"')],
    [`GET ${ITEMS}`, "if-none-match", long('"x",')],
    [`GET ${ITEMS}`, "if-none-match", long("W/")],
    [`GET ${ITEMS}/1`, "if-match", `"${spaces}x`],
    [`PUT ${ITEMS}/1`, "if-match", long('W/""')],
    [`POST ${ITEMS}`, "authorization", `bearer${spaces}x y`],
    [`POST ${ITEMS}`, "authorization", `bearer ${long("x")}`],
    [`GET ${ITEMS}`, "authorization", `${spaces}bearer`],
    [`GET ${ITEMS}`, "connection", long("close,")],
    [`GET ${ITEMS}`, "prefer", long("code=")],
    [`GET ${ITEMS}`, "prefer", `code=50${spaces}3`],
    [`POST ${ITEMS}`, "content-encoding", `identity${spaces}x`],
    [`GET ${ITEMS}`, "range", `bytes=${long("0-,")}`],
    [`GET ${ITEMS}`, "origin", `http://${long("a.")}localhos`],
    [`GET ${ITEMS}`, "origin", `http://127${long(".1")}x`],
    [`GET ${ITEMS}`, "host", `${long("a.")}localhost`],
    [`GET ${ITEMS}`, "host", long("%61")],
    [`GET ${ITEMS}`, "host", `[${long(":")}]`],
    [`GET ${ITEMS}?${long("a=b&")}`, "x", "a query of many members"],
    [`GET ${ITEMS}?name=${long("%41")}`, "x", "a long member"],
    [`GET ${ITEMS}?after=${long("%00")}`, "x", "a long place to go on from"],
    [`GET ${ITEMS}?limit=${long("1")}`, "x", "a large limit"],
    [`GET ${ITEMS}/${long("%41")}`, "x", "a long id"],
    [`PUT ${ITEMS}/${long("%41")}`, "x", "a long id to create"],
    [`GET ${long("/")}`, "x", "a path of slashes"],
    [`GET ${long("/.")}`, "x", "a path of dots"],
    [`GET ${long("/..")}${ITEMS}`, "x", "a path upwards"],
  ];

  test("is answered, with no 5xx and nothing on stderr; and so is the next request", async () => {
    const settings = { TOKEN: "write", REHEARSE: "1", CORS_ORIGIN: "http://page.example" };
    const to = await start({ ...settings, LOG: "off" });
    const authorization = "Bearer write";
    for (const [request, field, value] of fields) {
      const json = request.startsWith("P") ? { json: fresh({ id: "1" }) } : {};
      const { status } = await to.ask(request, { authorization, ...json, [field]: value });
      const isFine = status >= 200 && status < 500;
      expect([request.slice(0, 20), field, value.slice(0, 20), status, isFine]).toContain(true);
      expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    }
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });
});

// ── Who stalls ── holds up nobody, and not for ever ──────────────────────────────────────────────

describe.concurrent("a client that stalls", () => {
  test("and keeps its connection gets the refusal before it has sent the body", async () => {
    const to = await start({ LOG: "off" });
    const keep = "Connection: Keep-Alive";
    const bytes = wire(`POST ${ITEMS}`, HOST, JSON_TYPE, keep, "Content-Length: 65537");
    expect((await exchange(to, bytes)).slice(0, 12)).toBe("HTTP/1.1 413");
    await to.stop();
  });

  test("holds up nobody: 500 of them send half a request, and others are answered", async () => {
    const to = await start({ LOG: "off" });
    const halves = [postOf(100) + '{"id"', `GET ${ITEMS}/1 HT`, ""];
    const all = Array.from({ length: 500 }, (_, index) => open(to, halves[index % 3] ?? ""));
    const held = await Promise.all(all);
    for (let turn = 0; turn < 10; turn++) expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    expect(await to.status(`PUT ${ITEMS}/new`, { json: fresh({}) })).toBe(201);
    for (const { socket } of held) socket.terminate();
    expect(await to.status(`GET ${ITEMS}/new`)).toBe(200);
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });

  test("is cut off by the server itself; what it has begun is not made", async () => {
    const to = await start({ LOG: "off", TOKEN: "t" });
    const token = "Authorization: Bearer t";
    const post = (...fields: string[]) => wire(`POST ${ITEMS}`, HOST, JSON_TYPE, ...fields);
    const begun = JSON.stringify(fresh({ id: "stalled" })).slice(0, -1);
    const chunk = `${Buffer.byteLength(begun).toString(16)}\r\n${begun}\r\n`;
    const stalled = [
      post(token, "Content-Length: 100") + begun,
      post(token, CHUNKED) + chunk,
      // The answer to these is known; what is left of the body is waited for, but not for ever.
      post("Content-Length: 100", "Connection: close") + begun,
      post(token, "Content-Length: 65537", "Connection: close") + begun,
      post(CHUNKED, "Connection: close") + chunk,
      wire(`DELETE ${ITEMS}/9`, HOST, token, "Content-Length: 100", "Connection: close") + begun,
    ];
    // A connection that is only kept has more time than a body: it is there when they are cut.
    const kept = await open(to, wire(`GET ${ITEMS}/1`, HOST));
    expect(await kept.answer).toStartWith("HTTP/1.1 200");
    const answers = await Promise.all(stalled.map((bytes) => exchange(to, bytes)));
    for (const answer of answers) expect(answer).not.toMatch(/^HTTP\/1\.1 (2|5)/);
    expect([...(await namesOf(to.store)).keys()].toSorted()).toEqual(["1", "2"]);
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    expect(kept.socket.readyState).toBe(1); // open
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
  });
});

// ── Machinery ────────────────────────────────────────────────────────────────────────────────────

/** The most memory that a server has had, in MiB; 0 where the system does not say. */
function memoryPeak({ child }: Live) {
  const file = `/proc/${child.pid}/status`;
  if (!existsSync(file)) {
    console.log("Skipped: a look at the memory of a server, for there is no /proc here.");
    return 0;
  }
  return Number(/^VmHWM:\s*(\d+)/m.exec(readFileSync(file, "utf8"))?.[1]) / 1024;
}

/** An item as text, with the members that it needs beside its own. */
function withOthers(item: string) {
  const { name: _, ...others } = fresh({});
  return item.replace("{", `{${JSON.stringify(others).slice(1, -1)},`).replace("{,", "{");
}

/** A folder with a server.ts whose item has one more member. */
function withMember(member: string) {
  const folder = mkdtempSync(join(FOLDER, "member-"));
  const text = readFileSync(beside("server.ts"), "utf8");
  const changed = text.replace(/^ {2}name: t\.String\(\{/m, `  ${member}\n$&`);
  if (changed === text) throw new Error("There is no name to put it before.");
  Bun.write(join(folder, "server.ts"), changed);
  for (const name of ["node_modules", "bunfig.toml", "package.json", "bun.lock"])
    if (existsSync(beside(name))) symlinkSync(beside(name), join(folder, name));
  return folder;
}

/** Numbers below a limit, the same for the same seed (mulberry32). */
function generator(state: number) {
  return (limit: number) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % limit;
  };
}

// What a client may send, and of what the model knows what it does.
const LETTERS = ["a", "b", "%", "é", "😀", "..x", "__proto__", "'? #", "no/id", "no\\id", "\0"];
const NAMES = ["x", "y", "ü", "'; drop table items; --", "😀".repeat(512)];
const BAD_NAMES = ["", "\0", "\ud800", "\ufffd", "x".repeat(1025), 5, null, undefined];
const METHODS = "GET HEAD POST POST PUT PUT PUT PATCH DELETE DELETE OPTIONS PROPFIND".split(" ");
const ELSEWHERE = `/ ${ITEMS}?limit=x ${ITEMS}/%ff /nowhere ${ITEMS}/ /swagger/json`.split(" ");
const BAD_BODIES = ["{", "", "null", "[]", '"x"', "\xff", String.raw`{"name":"\ud8"}"}`];
const MERGE_PATCH = "application/merge-patch+json";
const TYPES = [
  "application/json",
  "application/json",
  "application/json",
  "text/plain",
  MERGE_PATCH,
];
const CONDITIONS = ["", "", "", "if-match *", "if-match own", 'if-match "x"'];
const NEGATED = ["if-none-match *", "if-none-match own", 'if-none-match "x"'];

type Sent = {
  method: string;
  type: string;
  accept: string;
  /** The field, and what it names: `*`, the item's own tag, or another. */
  condition: string;
  id: string;
  /** The members of the body; a body that is none has no item. */
  item?: { id?: string; name?: unknown };
  found: boolean;
};

/** Sends 1,250 requests about items of its own, and gives back which items there should be. */
async function hostileClient(to: Live, client: number) {
  const random = generator(SEED * 16 + client);
  const pick = <Choice>(list: readonly Choice[]): Choice => list[random(list.length)] as Choice;
  const model = new Map<string, string>();
  const tags = new Map<string, string>();

  for (let turn = 0; turn < 1250; turn++) {
    const [method, type, id] = [pick(METHODS), pick(TYPES), `${client}-${pick(LETTERS)}`];
    const accept = random(20) === 0 ? "text/html" : "*/*";
    const condition = pick([...CONDITIONS, ...NEGATED]);
    const target = random(10) === 0 ? pick(ELSEWHERE) : undefined;
    // What a list has no use for, a POST may have in its query.
    const elsewhere = method === "POST" ? target?.replace("?", "/1?") : target;
    const name = random(3) === 0 ? pick(BAD_NAMES) : pick(NAMES);
    const other = pick([undefined, undefined, undefined, id, `${client}-other`, ""]);
    const given = method === "POST" ? id : other;
    const item = random(10) === 0 ? undefined : { id: given, name };
    const whole = method === "PATCH" ? item : fresh({ ...item });
    const body = item ? JSON.stringify(whole) : pick(BAD_BODIES);

    const headers = new Headers({ "content-type": type, accept });
    const [field = "", list = ""] = condition.split(" ");
    if (field) headers.set(field, list.replace("own", tags.get(id) ?? '"x"'));
    const own = method === "POST" ? ITEMS : `${ITEMS}/${encodeURIComponent(id)}`;
    const isWrite = /^P(OST|UT|ATCH)|^DELETE/.test(method);
    const init = { method, headers, body: isWrite ? body : null, redirect: "manual" } as const;
    const response = await fetch(to.url + (elsewhere ?? own), init);
    const text = await response.text();

    const found = model.has(id);
    const asked = { method, type, accept, condition, id, item, found };
    const expected = elsewhere ? statusElsewhere(elsewhere, asked) : statusOf(asked);
    if (response.status !== expected)
      throw new Error(
        `SEED=${SEED}: ${method} ${elsewhere ?? own} ${type} ${accept} ${condition} ${body} gave ${
          response.status
        }, not ${expected}`,
      );
    if (expected >= 400 && method !== "HEAD")
      expect(Object.keys(JSON.parse(text))).toEqual(["error"]);
    if (elsewhere) continue;

    const etag = response.headers.get("etag") ?? "";
    if (expected === 204 && method === "DELETE") model.delete(id);
    if (isWrite && expected < 204) {
      if (item && item.name !== undefined) model.set(id, String(item.name));
      tags.set(id, etag);
    }
    if (method === "GET" && expected === 200) {
      expect(JSON.parse(text).item).toBe(model.get(id) ?? "");
      expect(etag).toBe(tags.get(id) ?? "");
    }
  }
  return model;
}

/** The status of a request about an item, in the order of the protocol. */
function statusOf({ method, type, accept, condition, id, item, found }: Sent) {
  if (method === "PROPFIND") return 501;
  if (method === "OPTIONS") return 204;
  const isPatch = method === "PATCH";
  if (isWrite(method) && method !== "DELETE") {
    if (type !== "application/json" && !(isPatch && type === MERGE_PATCH)) return 415;
    if (!item || (item.name === undefined && !isPatch)) return 400;
    if (item.name !== undefined && !isName(item.name)) return 422;
    if (item.id !== undefined && !isId(item.id)) return 422;
  }
  if (method !== "DELETE" && accept !== "*/*") return 406;
  if (method === "POST") return found ? 400 : 201;
  if (method === "PUT" && !isId(id)) return 422;
  if (method !== "PUT" && !found) return 404;

  const [field, list] = condition.split(" ");
  const isNamed = found && list !== '"x"';
  if (field === "if-match" && !isNamed) return 412;
  if (field === "if-none-match" && isNamed) return /GET|HEAD/.test(method) ? 304 : 412;
  if (method === "DELETE") return 204;
  if (isWrite(method) && item?.id !== undefined && item.id !== id) return 409;
  return found ? 200 : 201;
}

/** The status of one that goes elsewhere. */
function statusElsewhere(target: string, { method, condition }: Sent) {
  const isRead = /GET|HEAD/.test(method);
  if (method === "PROPFIND") return 501;
  if (target.includes("%ff")) return 400;
  if (target === "/nowhere" || target === `${ITEMS}/`) return 404;
  if (method === "OPTIONS") return 204;
  if (target === "/") return isRead ? 302 : 405;
  if (!isRead) return 405;
  if (target !== "/swagger/json") return 400;
  if (condition === 'if-match "x"' || condition === "if-match own") return 412;
  return condition === "if-none-match *" ? 304 : 200;
}

const isWrite = (method: string) => /^P|^DELETE/.test(method);
const isName = (name: unknown) =>
  typeof name === "string" && /^[^\p{Cc}\ufffd]{1,1024}$/u.test(name) && name.isWellFormed();
const isId = (id: string) => id !== "" && !/[/\\\p{Cc}]/u.test(id);
