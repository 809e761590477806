/**
 * What becomes of server.ts where others make it theirs: another path, another name, a second
 * resource, a route of one's own. Each is a copy whose two chapters above the line are edited as a
 * person would; below it, only the one line in Start changes that adds a resource.
 *
 *     bun test ./.ci/copies.test.ts
 *     DOCUMENTS=/tmp/documents bun test ./.ci/copies.test.ts     leaves the documents, for linters
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  beside,
  type Document,
  GUARDS,
  newStore,
  POSTGRES,
  runToItsEnd,
  spawn,
} from "../server.test";
import {
  above,
  below,
  body,
  broken,
  copy,
  documentOf,
  edit,
  FIRST,
  leaveDocument,
  type Member,
  started,
  tell,
  typeFaults,
  withMembers,
} from "./copy";

const lent: Member[] = [["lent", "t.Optional(t.Boolean({ RULE }))"]];

// ── The first items ──────────────────────────────────────────────────────────────────────────────

describe("the first items", () => {
  test("may be none", async () => {
    const to = await started(edit(above, [[FIRST, "firstItems: Item[] = []"]]));
    expect(await tell(to, "GET /items")).toBe('200 {"items":[]}');
    expect(await tell(to, "POST /items", { id: "1", name: "apple" })).toStartWith("201");
    expect(await tell(to, "GET /items/1")).toBe('200 {"item":"apple"}');
    await to.stop();
  });

  test.each([
    ['{ id: "2", name: "" }', "name must be"],
    ['{ id: "a/b", name: "x" }', "id must be"],
    ['{ id: "2", name: "a\\0b" }', "name must be"],
    ['{ id: 2, name: "x" } as never', "id must be"],
  ])("end the start where one breaks its rule: %s", async (item, rule) => {
    const changed = edit(above, [[/\{ id: "2", name: "\w+" \}/, item]]);
    const { code, stderr, stdout } = await runToItsEnd({}, { folder: await copy(changed) });
    expect([code, stdout, stderr]).toEqual([
      1,
      "",
      expect.stringMatching(new RegExp(`^.*${rule}.*\n$`)),
    ]);
  });

  test("end the start where one breaks the rule of a member without a description", async () => {
    const size: [RegExp, string] = [/(?=  name: t\.String\()/, "  size: t.Optional(t.Number()),\n"];
    const item: [RegExp, string] = [
      /\{ id: "2", name: "\w+" \}/,
      '{ id: "2", name: "x", size: "5" }',
    ];
    const { stderr } = await runToItsEnd({}, { folder: await copy(edit(above, [size, item])) });
    expect(stderr).toBe(
      "What items begin with breaks a rule: size must be as the document says.\n",
    );
  });
});

// ── The line ── what a copy changes stands above it ──────────────────────────────────────────────

describe("below the line", () => {
  test("no word of code says item, but titles, the file and the one line in Start", () => {
    const code = below.replace(/^ *(\/\/|\/\*\*|\*).*$/gm, "").replace(/ \/\/ .*$/gm, "");
    // Of `items`, what is no text and is not asked for anything is a keyword of JSON Schema.
    const keyword = /\.items\b|(?<![`"'/])\bitems\b(?![`"'.])/g;
    const own = /"Items"|<title>Items|`Items  |items\.sqlite|routesOfItems/g;
    const words = code
      .replace(own, "")
      .replace(keyword, "")
      .match(/.*item.*/gi);
    expect(words).toBeNull();
    expect(code).not.toMatch(/\bname: t\b|apple|banana/);
  });

  test("nothing changes where `name` becomes `title`, and the filter follows", async () => {
    const to = await started(above.replace(/\bname\b/g, "title"));
    const missing = '400 {"error":"Bad request, id and title required"}';
    expect(await tell(to, "GET /items/1")).toBe('200 {"item":"apple"}');
    expect(await tell(to, "POST /items", { id: "3", name: "x" })).toBe(missing);
    expect(await tell(to, "POST /items", { id: "3", title: "x" })).toStartWith("201");
    expect(await tell(to, "PUT /items/3", { title: "" })).toMatch(/^422 {"error":"title must/);
    expect(await tell(to, "PATCH /items/3", { title: "y" })).toStartWith("200");
    expect(await tell(to, "GET /items?title=y")).toBe('200 {"items":[{"id":"3","title":"y"}]}');
    expect(await tell(to, "GET /items?name=y")).toMatch(/^400 .*limit, after and title/);
    await to.stop();
    expect(await typeFaults(above.replace(/\bname\b/g, "title"))).toBe("");
  });

  // On PostgreSQL, the suite itself runs anyway.
  const onSqlite = test.if(!POSTGRES);
  onSqlite("nothing changes where the path does: one line, and one in the tests", async () => {
    const folder = await copy(edit(above, [[/(?<=prefix: )"\/items"/, '"/things"']]));
    const tests = edit(readFileSync(beside("server.test.ts"), "utf8"), [
      [/(?<=ITEMS = )"\/items"/, '"/things"'],
    ]);
    await Bun.write(join(folder, "server.test.ts"), tests);
    const { child, stderr, stdout } = spawn([process.execPath, "test"], folder, Bun.env);
    await Promise.all([stdout.done, stderr.done]);
    const failed = stderr.text.match(/^\(fail\).*$/gm) ?? [];
    expect([await child.exited, failed]).toEqual([0, []]);
    expect(stderr.text).toMatch(/^ *\d{2,} pass$/m);
  });
});

// ── A second resource ── the two chapters once more, two words replaced, and one line in Start ────

describe("a second resource", () => {
  const chapters = above.slice(above.indexOf("// ── Item"));
  const pages = 't.Number({ description: "pages must be as agreed", multipleOf: 1, example: 9 })';
  const books = edit(chapters.replaceAll("items", "books").replaceAll("Item", "Book"), [
    [/ {2}name: t\.String\(/, (name) => `  pages: ${pages},\n${name}`],
    [/(?=name: "(apple|banana)")/g, "pages: 9, "],
  ]);
  const start = /\.use\(await routesOfItems\(\)\)/;
  const both = [
    above + books,
    edit(below, [[start, (line) => `${line}.use(await routesOfBooks())`]]),
  ] as const;
  const reads = { authorization: `Bearer ${GUARDS.READ_TOKEN}` };
  const writes = { authorization: `Bearer ${GUARDS.TOKEN}` };

  test("the lesson holds on both, each with its own words and its own items", async () => {
    const to = await started(...both);
    for (const [path, One, extra, needed] of [
      ["/items", "Item", {}, "id and name"],
      ["/books", "Book", { pages: 5 }, "id and pages and name"],
    ] as const) {
      const json = { id: "3", name: "cherry", ...extra };
      expect(await tell(to, `GET ${path}/1`)).toBe('200 {"item":"apple"}');
      expect(await tell(to, `GET ${path}/9`)).toBe(`404 {"error":"${One} not found"}`);
      expect(await tell(to, `POST ${path}`, json)).toBe(`201 {"message":"${One} created"}`);
      expect(await tell(to, `POST ${path}`, json)).toBe(`400 {"error":"${One} already exists"}`);
      for (const empty of [{}, [], null, "", 0])
        expect(await tell(to, `POST ${path}`, empty)).toBe(
          `400 {"error":"Bad request, ${needed} required"}`,
        );
      expect(await tell(to, `DELETE ${path}/1`)).toBe("204 ");
    }
    expect(await tell(to, "GET /books?name=cherry")).toBe(
      '200 {"books":[{"id":"3","pages":5,"name":"cherry"}]}',
    );
    expect(await tell(to, "PATCH /books/3", { pages: 1.5 })).toBe(broken("pages"));
    await to.stop();
    expect(await typeFaults(...both)).toBe("");
  });

  test("TOKEN and READ_TOKEN guard both, and both are in one document", async () => {
    const to = await started(...both, GUARDS);
    for (const path of ["/items", "/books"]) {
      expect(await tell(to, `GET ${path}/1`)).toStartWith("401");
      expect(await tell(to, `DELETE ${path}/1`, undefined, reads)).toStartWith("403");
      expect(await tell(to, `GET ${path}/1`, undefined, reads)).toStartWith("200");
      expect(await tell(to, `DELETE ${path}/1`, undefined, writes)).toStartWith("204");
      expect(await tell(to, `GET ${path}`, undefined, reads)).toMatch(/"id":"2"[^{]*\]\}$/);
    }
    const { paths, tags } = (await documentOf(to)) as Document & { tags: { name: string }[] };
    const ids = Object.values(paths).flatMap((each) =>
      Object.values(each).map((one) => one.operationId),
    );
    expect(Object.keys(paths)).toEqual(["/items", "/items/{id}", "/books", "/books/{id}"]);
    expect(new Set(ids).size).toBe(12);
    expect(tags.map(({ name }) => name)).toEqual(["items", "books"]);
    await leaveDocument(to, "books");
    await to.stop();
  });
});

// ── A route of one's own ─────────────────────────────────────────────────────────────────────────

describe("a route of one's own", () => {
  const route = `
    .post(
      "/:id/borrow",
      async ({ params: { id }, set }) =>
        items.change(id, ({ found, merge }) => {
          set.status = 404;
          if (!found) return { error: "Item not found" };
          set.status = 409;
          if (found.lent) return { error: "Item is lent" };
          set.status = 200;
          set.headers.etag = merge({ lent: true });
          return { message: "Item borrowed" };
        }),
      {
        ...about("borrowItem", "Borrow an item", "Lend one that is there."),
        response: { 200: Borrowed, 404: NoSuchItem, 409: Lent, ...shared(400, 401, 403, 406) },
      },
    )
`;
  const borrow = edit(withMembers(lent), [
    [/(?=\n {4}\.delete\()/, route],
    [
      / {2}const NoSuchItem = .*\n/,
      `$&  const Borrowed = t.Object(says("Item borrowed"), when("It was there", "ETag"));
  const Lent = refusal("Item is lent");\n`,
    ],
  ]);

  test("has at most 20 lines, and its types hold", async () => {
    expect(route.trim().split("\n").length + 2).toBeLessThanOrEqual(20);
    expect(await typeFaults(borrow)).toBe("");
    for (const [right, slip] of [
      ["merge({ lent: true })", "merge({ lend: true })"],
      ["found.lent", "found.lend"],
      ['error: "Item is lent"', 'eror: "Item is lent"'],
    ] as const)
      expect(await typeFaults(borrow.replace(right, slip))).toMatch(/lend|eror/);
  });

  test("takes no body, so it needs no Content-Type; it is guarded, decided and documented", async () => {
    const to = await started(borrow, below, GUARDS);
    const auth = { authorization: `Bearer ${GUARDS.TOKEN}` };
    const post = (path: string, body?: string, type?: string) => {
      const headers = { ...auth, ...(type && { "content-type": type }) };
      return fetch(to.url + path, { method: "POST", headers, body });
    };
    const first = await post("/items/1/borrow");
    expect([first.status, await first.json()]).toEqual([200, { message: "Item borrowed" }]);
    expect(first.headers.get("etag")).toBe(
      (await fetch(`${to.url}/items/1`, { headers: auth })).headers.get("etag"),
    );
    const again = await post("/items/1/borrow");
    expect([again.status, await again.json()]).toEqual([409, { error: "Item is lent" }]);
    expect((await post("/items/9/borrow")).status).toBe(404);
    expect((await post("/items/2/borrow", "x=y", "text/plain")).status).toBe(200);
    expect((await post("/items/%ff/borrow")).status).toBe(400);
    expect(await tell(to, "POST /items/1/borrow")).toStartWith("401");
    expect(await tell(to, "GET /items/1/borrow", undefined, auth)).toStartWith("405");
    const lent = '{"id":"1","name":"apple","lent":true},{"id":"2","name":"banana","lent":true}';
    expect(await body(to, "GET /items", auth)).toBe(`{"items":[${lent}]}`);
    await fetch(`${to.url}/items/3`, {
      method: "PUT",
      headers: { ...auth, "content-type": "application/json" },
      body: '{"name":"x"}',
    });
    const racers = await Promise.all(Array.from({ length: 50 }, () => post("/items/3/borrow")));
    expect(racers.filter(({ status }) => status === 200).length).toBe(1);
    expect(racers.filter(({ status }) => status === 409).length).toBe(49);
    const { paths } = await documentOf(to);
    expect(Object.keys(paths["/items/{id}/borrow"]?.post?.responses ?? {}).map(Number)).toEqual([
      200, 400, 401, 403, 404, 406, 409, 421, 429, 500, 503,
    ]);
    await leaveDocument(to, "borrow");
    await to.stop();
  });

  test("that fails in any way is 500, in our words, and all goes on", async () => {
    const failing = [
      'throw new Error("secret")',
      "throw undefined",
      'throw Object.assign(new Error("secret"), { status: 200 })',
      'throw Object.assign(new Error("secret"), { code: "NOT_FOUND" })',
      'throw { toResponse: () => new Response("secret") }',
      'throw new TypeError("secret", { cause: { toString: 1 } })',
      'set.status = 201; set.headers.etag = \'"x"\'; set.headers.location = "/x"; throw "secret"',
      'set.headers["x-odd"] = "a\\nb"; return {}',
      "return encodeURIComponent(String.fromCharCode(0xd800))",
      "return BigInt(1)",
    ];
    const routes = failing.map(
      (code, index) => `.get("/:id/${index}", ({ set }): unknown => { ${code} })\n`,
    );
    const shown =
      '.get("/:id/shown", () => ({ item: 5 }) as never, { response: { 200: t.Object(ShownItem) } })';
    const to = await started(
      edit(above, [[/(?=\n {4}\.delete\()/, `\n${routes.join("")}${shown}\n`]]),
    );
    for (const index of [...failing.keys(), "shown"]) {
      const answer = await fetch(`${to.url}/items/1/${index}`);
      const fields = ["etag", "location"].map((name) => answer.headers.get(name));
      expect([index, answer.status, await answer.text(), ...fields]).toEqual([
        index,
        500,
        '{"error":"Server error"}',
        null,
        null,
      ]);
    }
    expect(await tell(to, "GET /items/1")).toBe('200 {"item":"apple"}');
    await to.stop();
  });
});

// ── Documents from before ── a row is a document as it was written ───────────────────────────────

describe("a document that was written before a member came", () => {
  const price: Member[] = [["price", "t.Number({ RULE })"]];

  test("is read as it is where its schema takes it, and changed where its schema lets it", async () => {
    const DATABASE_URL = await newStore();
    await (await started(above, below, { DATABASE_URL })).stop();
    const to = await started(withMembers(lent), below, { DATABASE_URL });
    expect(await tell(to, "GET /items/1")).toBe('200 {"item":"apple"}');
    expect(await tell(to, "GET /items?name=banana")).toBe(
      '200 {"items":[{"id":"2","name":"banana"}]}',
    );
    expect(await tell(to, "PATCH /items/1", { lent: true })).toStartWith("200");
    await to.stop();
    expect(to.stderr.text).toBe("");

    // And the other way round: what a version before does not know hurts nobody.
    const before = await started(above, below, { DATABASE_URL });
    expect(await tell(before, "GET /items/1")).toBe('200 {"item":"apple"}');
    expect(await tell(before, "GET /items")).toStartWith("200");
    expect(await tell(before, "PATCH /items/1", { name: "pear" })).toStartWith("200");
    await before.stop();
    expect(before.stderr.text).toBe("");
  });

  test("is 500 where its schema refuses it, with a line that says so, until it is put anew", async () => {
    const DATABASE_URL = await newStore();
    await (await started(above, below, { DATABASE_URL })).stop();
    const to = await started(withMembers(price, { price: 5 }), below, { DATABASE_URL });
    expect(await tell(to, "GET /items/1")).toBe('500 {"error":"Server error"}');
    expect(await tell(to, "GET /items")).toBe('500 {"error":"Server error"}');
    expect(await tell(to, "PATCH /items/1", { name: "pear" })).toBe(broken("price"));
    expect(await tell(to, "PATCH /items/1", { price: 7 })).toStartWith("200");
    expect(await tell(to, "PUT /items/2", { name: "banana", price: 8 })).toStartWith("200");
    expect(await tell(to, "GET /items/1")).toBe('200 {"item":"apple","price":7}');
    expect(await tell(to, "GET /items")).toStartWith("200");
    await to.stop();
    const lines = to.stderr.text.trim().split("\n");
    expect(lines).toEqual([
      expect.stringMatching(/^GET \/items\/1: .*schema.*price/),
      expect.stringMatching(/^GET \/items: .*schema.*price/),
    ]);
  });
});
