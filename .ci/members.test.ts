/**
 * A member of any kind follows from its schema: copies of server.ts with such members, on POST, PUT
 * and PATCH, with good and bad values, and in the document.
 *
 *     bun test ./.ci/members.test.ts
 *     DOCUMENTS=/tmp/documents bun test ./.ci/members.test.ts     leaves the documents, for linters
 */
import { describe, expect, test } from "bun:test";
import { runToItsEnd } from "../server.test";
import {
  above,
  body,
  broken,
  copy,
  documentOf,
  edit,
  FIRST,
  leaveDocument,
  type Member,
  ruleOf,
  started,
  tell,
  typeFaults,
  withMembers,
} from "./copy";

// ── Members ── one of each kind: its schema, values that keep its rule, and values that break it ──

const required: Member[] = [
  [
    "price",
    "t.Number({ RULE, multipleOf: 1, minimum: 0, maximum: 99_999, example: 25 })",
    [25, 0, 99_999],
    [19.99, -1, 100_000, "25", " 25 ", null, true, [], {}, [25], { toString: 1 }],
  ],
  ["done", "t.Boolean({ RULE, example: false })", [false, true], ["true", 0, null, {}]],
  [
    "due",
    't.String({ RULE, format: "date", example: "2026-01-31" })',
    ["2024-02-29", "2026-12-31"],
    [
      ..."2025-02-30 2025-02-29 2025-13-01 2025-00-10 2025-1-1 2025/01/01 20250101".split(" "),
      ..."2026-01-31T10:00:00Z 01-31-2026 2026-01-31x x2026-01-31".split(" "),
      "31 Jan 2026",
      "",
      20_260_131,
      null,
      {},
    ],
  ],
  [
    "sold",
    't.String({ RULE, format: "date-time", example: "2026-01-31T10:00:00Z" })',
    ["2026-01-31T10:00:00Z", "2024-02-29T23:59:59.999+02:00"],
    [
      ..."2025-02-30T10:00:00Z 2026-01-31T25:00:00Z 2026-01-31T24:00:00Z 2026-01-31".split(" "),
      ..."2026-01-31T10:00:00 2026-01-31T10:00Z 2026-01-31T10:00:00Zx 2026-01-31T".split(" "),
      "2026-01-31 10:00:00Z",
      "Sat Jan 31 2026",
      null,
    ],
  ],
  [
    "tags",
    "t.Array(t.String({ RULE, minLength: 1, maxLength: 9 }), { RULE, maxItems: 2, example: [] })",
    [["red", "blue"], []],
    [["a", "b", "c"], [""], ["much too long"], [5], [null], "red", null, {}, { 0: "red" }],
  ],
  [
    "size",
    `t.Object({
      width: t.Number({ description: "width must be as agreed", minimum: 1, example: 30 }),
      depth: t.Optional(t.Number({ description: "depth must be as agreed", example: 4 })),
    }, { RULE, example: { width: 30 } })`,
    [{ width: 30 }, { width: 1, depth: -4 }],
    [[], null, "30", 30],
  ],
  [
    "note",
    "t.Nullable(t.String({ RULE, maxLength: 9 }), { RULE, example: null })",
    ["ripe", null, ""],
    [5, "much too long", {}, [null]],
  ],
];
const others: Member[] = [
  [
    "shelf",
    't.Optional(t.String({ RULE, pattern: "^[A-Z]$", example: "A" }))',
    ["A"],
    ["a", 5, ""],
  ],
  ["stock", "t.Number({ RULE, multipleOf: 1, default: 7, example: 1 })", [3], [1.5, "3", null]],
  ["plain", "t.Optional(t.Boolean({ example: true }))", [true], ["true", 1]],
  [
    "frame",
    `t.Optional(t.Nullable(t.Object({
      colour: t.String({ description: "colour must be as agreed", example: "red" }),
    }, { RULE }), { RULE, example: null }))`,
    [{ colour: "red" }],
    [5, [], "red"],
  ],
];
const whole: Record<string, unknown> = Object.fromEntries(
  required.map(([name, , good]) => [name, good?.[0]]),
);
const all = [...required, ...others];
const first: Record<string, unknown> = { ...whole, stock: 1 };
const rich = await started(withMembers(all, first));

describe.each(all)("a member like %s", (name, _, good = [], bad = []) => {
  test("takes what keeps its rule, on POST, PUT and PATCH, and shows it", async () => {
    for (const [index, value] of good.entries()) {
      const id = `${name}-${index}`;
      const json = { ...whole, name: "x", [name]: value };
      const shown = async () => JSON.parse(await body(rich, `GET /items/${id}`))[name];
      expect(await tell(rich, "POST /items", { id, ...json })).toStartWith("201");
      expect(await shown()).toEqual(value);
      expect(await tell(rich, `PUT /items/${id}`, { ...whole, name: "x" })).toStartWith("200");
      expect(await tell(rich, `PUT /items/${id}`, json)).toStartWith("200");
      expect(await shown()).toEqual(value);
      expect(await tell(rich, `PUT /items/${id}`, { ...whole, name: "x" })).toStartWith("200");
      expect(await tell(rich, `PATCH /items/${id}`, { [name]: value })).toStartWith("200");
      expect(await shown()).toEqual(value);
    }
  });

  test.each(bad.map((value) => [value]))(
    "refuses %j with its rule, on POST, PUT and PATCH",
    async (value) => {
      const json = { ...whole, name: "x", [name]: value };
      const id = crypto.randomUUID();
      expect(await tell(rich, "POST /items", { id, ...json })).toBe(broken(name));
      expect(await tell(rich, `PUT /items/${id}`, json)).toBe(broken(name));
      expect(await tell(rich, "PATCH /items/2", { [name]: value })).toBe(broken(name));
      expect(await tell(rich, `GET /items/${id}`)).toStartWith("404");
    },
  );

  test("is in the document: in both bodies, the patch, the answers, and 422 has its rule", async () => {
    const { paths } = await documentOf(rich);
    const isIn = (schema: unknown) => expect(JSON.stringify(schema)).toContain(`"${name}":{`);
    for (const [path, methods] of Object.entries(paths))
      for (const [method, { requestBody, responses }] of Object.entries(methods)) {
        if (requestBody) isIn(requestBody.content["application/json"]?.schema?.properties);
        if (requestBody) expect(JSON.stringify(responses[422])).toContain(ruleOf(name));
        if (method === "get" && path.startsWith("/items")) isIn(responses[200]?.content);
      }
  });
});

describe("an item of many members", () => {
  test("400 names all that are required, and no other", async () => {
    const names = ["name", ...required.map(([name]) => name)].join(" and ");
    const sentence = (some: string) => `400 {"error":"Bad request, ${some} required"}`;
    expect(await tell(rich, "PUT /items/1", {})).toBe(sentence(names));
    expect(await tell(rich, "POST /items", { id: "x" })).toBe(sentence(`id and ${names}`));
    for (const left of Object.keys(whole)) {
      const json = { ...whole, name: "x", price: "bad", [left]: undefined };
      expect(await tell(rich, "PUT /items/1", json)).toBe(sentence(names));
    }
  });

  test("422 where a member of a member is missing, with that one's rule", async () => {
    for (const size of [{}, { depth: 1 }, { width: 0 }, { width: null }]) {
      const json = { ...whole, name: "x", size };
      expect(await tell(rich, "POST /items", { id: "s", ...json })).toBe(broken("width"));
      expect(await tell(rich, "PUT /items/s", json)).toBe(broken("width"));
    }
    expect(await tell(rich, "PATCH /items/2", { size: { width: 0 } })).toBe(broken("width"));
    const sizeless = { ...whole, size: { width: 1, depth: null } };
    expect(await tell(rich, "PUT /items/2", { ...sizeless, name: "x" })).toBe(broken("depth"));
  });

  test("200 to a merge patch, which reaches into a member, and removes with null", async () => {
    const json = { ...whole, name: "x", size: { width: 1, depth: 2 }, shelf: "A", note: "ripe" };
    await tell(rich, "PUT /items/merge", json);
    const after = async (patch: object) => {
      const type = { "content-type": "application/merge-patch+json" };
      expect(await tell(rich, "PATCH /items/merge", patch, type)).toStartWith("200");
      return JSON.parse(await body(rich, "GET /items/merge"));
    };
    expect((await after({ size: { width: 5 } })).size).toEqual({ width: 5, depth: 2 });
    expect((await after({ size: { depth: null, unheard: 1 } })).size).toEqual({ width: 5 });
    expect((await after({ size: {} })).size).toEqual({ width: 5 });
    expect(await after({ shelf: null })).not.toHaveProperty("shelf");
    expect(await after({ shelf: null })).not.toHaveProperty("shelf");
    expect((await after({ note: null })).note).toBeNull();
    expect((await after({ tags: ["b"] })).tags).toEqual(["b"]); // a list is replaced as a whole
    expect((await after({ frame: { colour: "red" } })).frame).toEqual({ colour: "red" });
    expect((await after({ frame: {} })).frame).toEqual({ colour: "red" });
    expect((await after({ frame: null })).frame).toBeNull();
    expect(await tell(rich, "PATCH /items/merge", { frame: {} })).toBe(broken("frame"));
  });

  test("a default is given by POST and PUT, and not by PATCH", async () => {
    const stock = async () => JSON.parse(await body(rich, "GET /items/default")).stock;
    await tell(rich, "POST /items", { id: "default", ...whole, name: "x" });
    expect(await stock()).toBe(7);
    await tell(rich, "PATCH /items/default", { stock: 3 });
    await tell(rich, "PATCH /items/default", { name: "y" });
    expect(await stock()).toBe(3);
    await tell(rich, "PUT /items/default", { ...whole, name: "z" });
    expect(await stock()).toBe(7);
  });

  test("unknown members are ignored, in a member too", async () => {
    const json = { ...whole, name: "x", size: { width: 1, unheard: 2 }, unheard: 3 };
    expect(await tell(rich, "PUT /items/unheard", json)).toStartWith("201");
    expect(await tell(rich, "PATCH /items/unheard", { unheard: 4 })).toStartWith("200");
    expect(await body(rich, "GET /items/unheard")).not.toContain("unheard");
  });

  test("U+0000, which PostgreSQL does not keep, is refused where no rule of a member does", async () => {
    for (const json of [
      { size: { ...(whole.size as object), depth: 1 }, note: "a\0b" },
      { note: "\0" },
    ]) {
      const refused = '422 {"error":"No text may hold U+0000"}';
      expect(await tell(rich, "PUT /items/nul", { ...whole, name: "x", ...json })).toBe(refused);
      expect(await tell(rich, "PATCH /items/2", json)).toBe(refused);
    }
    const text = "a\\u0000b"; // a backslash, and no U+0000
    const json = { ...whole, name: "x", note: text };
    expect(await tell(rich, "PUT /items/nul", json)).toStartWith("201");
    expect(JSON.parse(await body(rich, "GET /items/nul")).note).toBe(text);
  });

  test("has a document of OpenAPI 3.0: no type null, nothing twice in an enum", async () => {
    const text = await body(rich, "GET /swagger/json");
    for (const word of ["anyOf", '"null"']) expect(text.includes(word)).toBe(false);
    for (const methods of Object.values((await documentOf(rich)).paths))
      for (const { requestBody = {} } of Object.values(methods))
        expect(JSON.stringify(requestBody)).not.toContain("additionalProperties");
    for (const [list = ""] of text.matchAll(/(?<="enum":)\[[^\]]*\]/g))
      expect(JSON.parse(list)).toEqual([...new Set(JSON.parse(list))]);
    await leaveDocument(rich, "rich");
  });

  test("compiles, and a slip of the pen does not", async () => {
    expect(await typeFaults(withMembers(all, first))).toBe("");
    const slipped = edit(withMembers(all, first), [[/due: "2024/, 'dew: "2024']]);
    expect(await typeFaults(slipped)).toContain("dew");
  });
});

// ── Names ── of members, and what ends the start ───────────────────────────────────────────────────

describe("names", () => {
  const odd = [
    ..."patch get post paths parameters responses requestBody schema properties required".split(
      " ",
    ),
    ..."items type enum anyOf nullable default error example description additionalProperties".split(
      " ",
    ),
    ..."then toJSON length prototype status tags limits größe a-b a.b $ref $1 it's".split(" "),
    'say "so"',
    "with space",
  ];

  test("a member may have any name that not every object has", async () => {
    const to = await started(withMembers(odd.map((name) => [name, "t.Optional(t.String())"])));
    const named = Object.fromEntries(odd.map((name) => [name, `its ${name}`]));
    expect(await tell(to, "POST /items", { id: "x", name: "x", ...named })).toStartWith("201");
    expect(JSON.parse(await body(to, "GET /items/x"))).toEqual({ item: "x", ...named });
    for (const name of odd) {
      const refused = { error: `${name} must be as the document says` };
      const answer = await tell(to, "PUT /items/x", { name: "x", [name]: 5 });
      expect(answer).toBe(`422 ${JSON.stringify(refused)}`);
      expect(await tell(to, "PATCH /items/x", { [name]: null })).toStartWith("200");
    }
    expect(await body(to, "GET /items/x")).toBe('{"item":"x"}');
    const { post } = (await documentOf(to)).paths["/items"] ?? {};
    const { properties = {} } = post?.requestBody?.content["application/json"]?.schema ?? {};
    expect(Object.keys(properties).sort()).toEqual(["id", "name", ...odd].sort());
    await to.stop();
  });

  const unfit = [
    ...["constructor", "toString", "valueOf", "hasOwnProperty", "__proto__"].map(
      (name) => `["${name}"]: t.Optional(t.String())`,
    ),
    ..."Integer Numeric BooleanString Date Any Unknown BigInt File"
      .split(" ")
      .map((kind) => `odd: t.${kind}()`),
    'odd: t.Union([t.Literal("a"), t.Literal("b")])',
    'odd: t.String({ enum: ["a", "b"] })',
    'odd: t.String({ format: "unheard-of" })',
    "odd: t.Number({ multipleOf: 0.01, example: 19.99 })",
    "odd: t.Record(t.String(), t.Number())",
    "odd: t.Tuple([t.Number(), t.String()])",
    "odd: t.Intersect([t.Object({ a: t.Number() }), t.Object({ b: t.Number() })])",
    "odd: t.Array(t.Date())",
    "odd: t.Object({ odd: t.Optional(t.Integer()) })",
  ];
  test.concurrent.each(unfit)(
    "what cannot work ends the start, by its name: %s",
    async (member) => {
      const name = /\w+/.exec(member)?.[0] ?? "";
      const changed = edit(above, [
        [/( {2}name: t\.String\()/, `  ${member},\n$1`],
        [FIRST, "firstItems: Item[] = []"],
      ]);
      const { code, stderr, stdout } = await runToItsEnd({}, { folder: await copy(changed) });
      expect([code, stdout, stderr]).toEqual([
        1,
        "",
        expect.stringMatching(new RegExp(`^.*\\b${name}\\b.*\n$`)),
      ]);
    },
  );
});
