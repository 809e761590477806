/**
 * What the README says under "Make it yours": its blocks and lines are put into copies of server.ts
 * as they stand there, and do what the sentences beside them say.
 *
 *     bun test ./.ci/recipes.test.ts
 */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beside, FOLDER, GUARDS, runToItsEnd, start } from "../server.test";
import { above, body, copy, documentOf, edit, FIRST, started, tell, typeFaults } from "./copy";

const hasReadme = existsSync(beside("README.md"));
if (!hasReadme) console.log("Skipped: what the README says, for there is none.");
const readme = hasReadme ? readFileSync(beside("README.md"), "utf8") : "";
const [, yours = ""] = /\n## Make it yours\n([^]*?)(?=\n## |$)/.exec(readme) ?? [];

/** The block of code that holds these words. */
function block(words: string) {
  const all = [...yours.matchAll(/^```\w*\n([^]*?)^```$/gm)].map(([, code = ""]) => code);
  const found = all.filter((code) => code.includes(words));
  expect([words, found.length]).toEqual([words, 1]);
  return found[0] ?? "";
}

/** The code in a row of the table, `first` being its first words. */
function row(first: string) {
  const [line = ""] = new RegExp(`^\\| ${first} \\|.*`, "m").exec(yours) ?? [];
  return [...line.matchAll(/`([^`]+)`/g)].map(([, code = ""]) => code);
}

const afterName = /(?<= {2}name: t\.String\(\{[^}]*\}\),\n)/;

describe.if(hasReadme)("Make it yours", () => {
  test("the price, put below the name, is asked for, checked, kept and documented", async () => {
    const price = block("price: t.Number");
    const [, rule = ""] = /description: "(.*)"/.exec(price) ?? [];
    const priced = edit(above, [
      [afterName, price],
      [/(?<=\{ id: "\d", name: "\w+") \}/g, ", price: 30 }"],
    ]);
    expect(await typeFaults(priced)).toBe("");
    const to = await started(priced);
    const item = { id: "3", name: "cherry" };
    const missing = '400 {"error":"Bad request, id and name and price required"}';
    expect(await tell(to, "POST /items", item)).toBe(missing);
    for (const wrong of [19.99, -1, 100_000, "25"])
      expect(await tell(to, "POST /items", { ...item, price: wrong })).toBe(
        `422 ${JSON.stringify({ error: rule })}`,
      );
    expect(await tell(to, "POST /items", { ...item, price: 1999 })).toStartWith("201");
    expect(await tell(to, "GET /items?name=cherry")).toEndWith('"name":"cherry","price":1999}]}');
    expect(JSON.stringify((await documentOf(to)).paths["/items"]?.post)).toContain(rule);
    await to.stop();
  });

  test("the choice takes what it names and nothing else", async () => {
    const [, pattern = ""] = /`(pattern: "[^`]+")`/.exec(yours) ?? [];
    const colour = `  colour: t.String({ description: "colour must be one", ${pattern} }),\n`;
    const to = await started(
      edit(above, [
        [afterName, colour],
        [FIRST, "firstItems: Item[] = []"],
      ]),
    );
    const [, ...words] = /"\^\((\w+)\|(\w+)\)\$"/.exec(pattern) ?? [];
    expect(words.length).toBe(2);
    for (const word of words)
      expect(await tell(to, `PUT /items/${word}`, { name: "x", colour: word })).toStartWith("201");
    for (const word of [`${words[0]}x`, "", "other"])
      expect(await tell(to, "PUT /items/x", { name: "x", colour: word })).toStartWith("422");
    await to.stop();
  });

  test("every kind that it names is one that members.test.ts has tried", () => {
    const kinds = new Set([...yours.matchAll(/`t\.(\w+)/g)].map(([, kind = ""]) => kind));
    const tried = readFileSync(join(import.meta.dir, "members.test.ts"), "utf8");
    for (const kind of kinds) expect(tried).toContain(`t.${kind}(`);
    expect(kinds.size).toBeGreaterThanOrEqual(5);
  });

  test("your own data: the line stands in place of the array", async () => {
    const [line = ""] = row("your own data");
    const [, file = ""] = /"\.\/(.*\.json)"/.exec(line) ?? [];
    // The import stands where the array stood: a module may have it anywhere.
    const chapters = edit(above, [[/const firstItems: Item\[\] = \[[^\]]*\];/, `${line};`]]);
    const folder = await copy(chapters);
    const items = [
      { id: "a", name: "fig" },
      { id: "b", name: "kiwi" },
    ];
    await Bun.write(join(folder, file), JSON.stringify({ items }));
    const to = await start({ LOG: "off" }, folder);
    expect(JSON.parse(await body(to, "GET /items"))).toEqual({ items });
    await to.stop();
  });

  test("the table's other rows name what stands in the files", () => {
    const [server, tests] = ["server.ts", "server.test.ts"].map((name) =>
      readFileSync(beside(name), "utf8"),
    );
    const [prefix = "", constant = ""] = row("another path");
    expect(server?.split(prefix).length).toBe(2);
    expect(tests).toMatch(new RegExp(`^export const ${constant} = `, "m"));
    const [, , , , use = ""] = row("a second resource");
    expect(server).toContain(use.replace("Books", "Items"));
    expect(row("a list without its two first")).toEqual(["const firstItems: Item[] = []"]);
  });

  test("into another project: the packages are those of package.json", async () => {
    const [, line = ""] = /`bun add ([^`]+)`/.exec(yours.replace(/\s+/g, " ")) ?? [];
    const { dependencies } = await Bun.file(beside("package.json")).json();
    const wanted = Object.entries(dependencies).map(([name, version]) => `${name}@${version}`);
    expect(line.split(" ").sort()).toEqual(wanted.sort());
  });

  test("a table of a version before is refused and stays as it is, until the two lines", async () => {
    const file = join(mkdtempSync(join(FOLDER, "before-")), "items.sqlite");
    const DATABASE_URL = `sqlite://${file}`;
    using db = new Database(file);
    db.run("create table items (id text primary key, name text not null)");
    db.run(`insert into items values ('1', 'ap"ple'), ('b', 'é\\n')`);
    const before = db.query("select * from items").all();
    const { code, stderr } = await runToItsEnd({ DATABASE_URL });
    expect([code, stderr]).toEqual([1, expect.stringMatching(/^[^\n]+\n$/)]);
    expect(db.query("select * from items").all()).toEqual(before);

    const lines = [...yours.replace(/\s+/g, " ").matchAll(/`((?:alter|update) [^`]+)`/g)];
    expect(lines.length).toBe(2);
    for (const [, line = ""] of lines) db.run(line);
    const to = await start({ DATABASE_URL, LOG: "off" });
    expect(JSON.parse(await body(to, "GET /items"))).toEqual({ items: before });
    expect(await tell(to, "PATCH /items/b", { name: "fig" })).toStartWith("200");
    await to.stop();
  });

  test("the route of one's own lends an item once, without a body or a Content-Type", async () => {
    const route = block("/borrow");
    expect(route.trim().split("\n").length).toBeLessThanOrEqual(20);
    const lent = 'lent: t.Optional(t.Boolean({ description: "lent must be true or false" })),\n';
    const lending = edit(above, [
      [afterName, `  ${lent}`],
      [/(?=\n {4}\.delete\()/, `\n${route}`],
    ]);
    expect(await typeFaults(lending)).toBe("");
    expect(await typeFaults(lending.replace("merge({ lent", "merge({ lend"))).toContain("lend");
    const to = await started(lending, undefined, GUARDS);
    const authorization = `Bearer ${GUARDS.TOKEN}`;
    const borrow = (id: string) =>
      tell(to, `POST /items/${id}/borrow`, undefined, { authorization });
    expect(await borrow("1")).toMatch(/^200 {"message":"/);
    expect(await borrow("1")).toBe('409 {"error":"Item is lent"}');
    expect(await borrow("9")).toBe('404 {"error":"Item not found"}');
    expect(await tell(to, "POST /items/2/borrow")).toStartWith("401");
    await to.stop();
    expect(to.stderr.text).toBe("");
  });
});
