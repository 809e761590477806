/**
 * Copies of server.ts for the tests beside this file: the two chapters above the line are edited as
 * a person would, and what is below stays as it is.
 */
import { expect } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import {
  beside,
  type Document,
  FOLDER,
  type Live,
  type Settings,
  spawn,
  start,
} from "../server.test";

const source = readFileSync(beside("server.ts"), "utf8");
const line = source.indexOf("// ── Shared");
export const [above, below] = [source.slice(0, line), source.slice(line)];
export const FIRST = /firstItems: Item\[\] = \[[^\]]*\]/;

/** A member of an item: its name, its schema, values that keep its rule, and values that do not. */
export type Member = [name: string, schema: string, good?: unknown[], bad?: unknown[]];
export const ruleOf = (name: string) =>
  `${name} must be as ${name === "plain" ? "the document says" : "agreed"}`;
export const broken = (name: string) => `422 {"error":"${ruleOf(name)}"}`;

/** The chapters with these members too, in the first items too, and an item that shows them all. */
export function withMembers(members: Member[], first: object = {}) {
  const code = members.map(([name, schema]) => {
    const rule = `description: "${ruleOf(name)}"`;
    return `  ${JSON.stringify(name)}: ${schema.replaceAll("RULE", rule)},\n`;
  });
  const more = Object.entries(first).map(([name, value]) => `, ${name}: ${JSON.stringify(value)}`);
  return edit(above, [
    [/ {2}name: t\.String\(\{[^}]*\}\),\n/, (name) => name + code.join("")],
    [/(?<=\{ id: "\d", name: "\w+") \}/g, () => `${more.join("")} }`],
    [
      /const showItem = [^]*?;\nconst ShownItem = [^]*?;\n/,
      () => `const showItem = ({ id: _, name, ...others }: Item) => ({ item: name, ...others });
const { id: _, name: item, ...others } = Item.properties;
const ShownItem = { item, ...others };\n`,
    ],
  ]);
}

type Edit = [from: RegExp, to: string | ((found: string) => string)];
/** A text after these edits, each of which must find something. */
export function edit(text: string, edits: Edit[]) {
  return edits.reduce((old, [from, to]) => {
    if (old.search(from) < 0) throw new Error(`There is nothing like ${from} to be changed.`);
    return old.replace(from, to as string);
  }, text);
}

/** A folder with such a server.ts, and what it needs. */
export async function copy(chapters: string, rest = below) {
  const folder = mkdtempSync(join(FOLDER, "copy-"));
  for (const name of ["package.json", "bun.lock", "bunfig.toml", "tsconfig.json"])
    if (existsSync(beside(name))) await Bun.write(join(folder, name), Bun.file(beside(name)));
  if (existsSync(beside("node_modules")))
    symlinkSync(beside("node_modules"), join(folder, "node_modules"));
  await Bun.write(join(folder, "server.ts"), chapters + rest);
  return folder;
}

export async function started(chapters: string, rest = below, settings: Settings = {}) {
  return start({ LOG: "off", ...settings }, await copy(chapters, rest));
}

/** The status and the body of an answer. */
export async function tell(to: Live, request: string, json?: unknown, fields: HeadersInit = {}) {
  const [method = "", target = ""] = request.split(" ");
  const headers = new Headers(fields);
  if (json !== undefined && !headers.has("content-type"))
    headers.set("content-type", "application/json");
  const init = { method, headers, body: json === undefined ? null : JSON.stringify(json) };
  const answer = await fetch(to.url + target, init);
  return `${answer.status} ${await answer.text()}`;
}

/** The body of an answer that is 200. */
export async function body(to: Live, request: string, fields: HeadersInit = {}) {
  const answer = await tell(to, request, undefined, fields);
  expect(answer).toStartWith("200 ");
  return answer.slice(4);
}

export async function documentOf(to: Live) {
  return JSON.parse(await body(to, "GET /swagger/json")) as Document;
}

export async function leaveDocument(to: Live, name: string) {
  if (!Bun.env.DOCUMENTS) return;
  await Bun.write(join(Bun.env.DOCUMENTS, `${name}.json`), await body(to, "GET /swagger/json"));
}

/** What `bun check` says of such a server.ts. */
export async function typeFaults(chapters: string, rest = below) {
  const folder = await copy(chapters, rest);
  const command = [process.execPath, "check", "--no-script", "server.ts"];
  const { child, stderr, stdout } = spawn(command, folder);
  await Promise.all([child.exited, stderr.done, stdout.done]);
  return child.exitCode === 0 ? "" : stdout.text + stderr.text;
}
