/**
 * Who gets in: what a target or a Host looks like opens nothing, and a page that is let in may ask
 * with any method and any type of JSON.
 *
 *     bun test ./.ci/access.test.ts     on SQLite, or with TEST_DATABASE_URL
 */
import { expect, test } from "bun:test";
import { guarded, ITEMS, PAGE, raw, start, wire } from "../server.test";

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
