/**
 * Who gets in: what a target, a Host or an origin looks like opens nothing, and a page that is let in
 * may ask with any method and any type of JSON.
 *
 *     bun test ./.ci/access.test.ts     on SQLite, or with TEST_DATABASE_URL
 */
import { expect, test } from "bun:test";
import {
  exchange,
  fresh,
  guarded,
  HOST,
  inspect,
  ITEMS,
  PAGE,
  parse,
  raw,
  start,
  wire,
} from "../server.test";

const live = await start();

test("a read needs a token whatever its query and Host look like", async () => {
  const get = (target: string) => raw(wire(`GET ${target}`, "Host: a.localhost"), guarded);
  for (const query of ["", "?/favicon.ico", "?x=/swagger", "/1?/swagger/ui.js"])
    expect((await get(ITEMS + query)).status).toBe(401);
  for (const path of ["/x?", "/favicon.ico"]) expect((await get(path + ITEMS)).status).toBe(404);
});

test("400, so not 415, where the type is JSON in UTF-8, however it is written", async () => {
  const types = `Application/JSON|application/json;charset="utf-8"|application/json ; x=y`;
  for (const type of types.split("|"))
    expect(await live.status(`POST ${ITEMS}`, { "content-type": type, body: "{}" })).toBe(400);
});

test("204 to each preflight, also on a path that is none; kept for long", async () => {
  for (const path of [ITEMS, `${ITEMS}/1`, "/nowhere", `${ITEMS}/%`]) {
    const { headers, status } = await live.ask(`OPTIONS ${path}`, PAGE);
    expect([status, headers.get("access-control-max-age")]).toEqual([204, "7200"]);
    expect(headers.get("access-control-allow-methods")).toBe("*");
    expect(headers.get("access-control-allow-headers")).toBe("*, Authorization");
  }
  const other = await live.ask("OPTIONS /nowhere", { ...PAGE, origin: "http://evil.example" });
  expect([other.status, other.headers.has("access-control-max-age")]).toEqual([404, false]);
});

test.each([0x80, 0xe9, 0xff])("400 to a target with a byte that is no UTF-8: %d", async (byte) => {
  const bytes = Buffer.from(wire(`PUT ${ITEMS}/${String.fromCharCode(byte)}`, HOST), "latin1");
  const reply = parse(await exchange(live, bytes));
  expect((await inspect(live, `PUT ${ITEMS}/\ufffd`, reply)).status).toBe(400);
});

const near = "http://localhost https://localhost:5173 http://app.localhost:3000 http://[::1]:81";
const far = "http://page.example http://10.0.0.1 http://localhost:123456 ftp://localhost null";
const posing = "http://localhost.evil.example http://evillocalhost http://127.0.0.1.evil.example";
test.each([
  ["the pages of this machine", `${near} http://127.0.0.1:8080 https://127.1.2.3`, true],
  ["no other", `${far} ${posing}`, false],
])("without CORS_ORIGIN, %s may read", async (_, origins, isOpen) => {
  for (const origin of origins.split(" ")) {
    const { headers } = await live.ask(`GET ${ITEMS}/1`, { origin });
    expect(headers.get("access-control-allow-origin")).toBe(isOpen ? origin : null);
  }
});

test("201 with a member given twice, of which the last counts; a pair may be two escapes", async () => {
  const twice = '"name":"first","name":"\\ud83d\\ude00"';
  const body = JSON.stringify(fresh({ id: "twice", name: "" })).replace('"name":""', twice);
  const { headers } = await live.ask(`POST ${ITEMS}`, { body });
  expect(await live.answer(`GET ${headers.get("location")}`)).toBe('200 {"item":"😀"}');
});
