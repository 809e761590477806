/**
 * Can the tests fail? Changes server.ts in one place at a time, by a rule over its text, and runs
 * `bun test` on each: how many of the changes does it see, and which ones survive?
 *
 *     bun .ci/mutants.ts                      a hundred changes; twenty minutes on two cores
 *     bun .ci/mutants.ts --from 20 --to 40    the 21st to the 40th of them
 *     bun .ci/mutants.ts --only 9,52          these two
 *     bun .ci/mutants.ts --of 300             as many as that, spread over the file in the same way
 *     bun .ci/mutants.ts --hardening          what `bun test` does not see, the tests in .ci try too
 *     TEST_DATABASE_URL=postgres://…          what it does not see on SQLite, it tries there too
 *     bun .ci/mutants.ts --list               only shows the changes
 *
 * The rule: every place where a line of code could be turned is found, in the order of the file, and
 * of those, one in so many is taken. A change that the compiler refuses, or that leaves the same
 * program, gives its turn to the next place. A run that does not end in three minutes has seen it.
 */
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { cp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

type Change = { at: number; from: string; to: string };
type Verdict = { change: Change; seenBy: string };

const AT_ONCE = 2;
const MINUTES = 3; // for one run of a suite
const ROOT = join(import.meta.dir, "..");
const POSTGRES = Bun.env.TEST_DATABASE_URL;
const SOURCE = readFileSync(join(ROOT, "server.ts"), "utf8");

/** What is turned into what. Of a line, each match is a place of its own. */
const TURNS: [pattern: RegExp, to: (found: string) => string][] = [
  [/ ===(?= )/g, () => " !=="],
  [/ !==(?= )/g, () => " ==="],
  [/ &&(?= |$)/g, () => " ||"],
  [/ \|\|(?= |$)/g, () => " &&"],
  [/ <(?= )/g, () => " <="],
  [/ <=(?= )/g, () => " <"],
  [/ >(?= )/g, () => " >="],
  [/ >=(?= )/g, () => " >"],
  [/ \+(?= [\w(`])/g, () => " -"],
  [/(?<=\bif \().*(?=\)( \S.*;| \{)?$)/g, (condition) => `!(${condition})`],
  [/(?<=[([ ])!(?=[\w(/])/g, () => ""],
  [
    /(?<![\w."'$#\\-])\d[\d_]*(?![\w."'$:-])/g,
    (number) => `${Number(number.replace("_", "")) + 1}`,
  ],
  [/\btrue\b/g, () => "false"],
  [/\bfalse\b/g, () => "true"],
  [/(?<=[ ([])"[^"\\]+"/g, (text) => `${text.slice(0, -1)}~"`],
  [/(?<=\/)[gimsu]+(?=[.,;)\]])/g, () => ""],
  [/^ +(?!return\b|const\b|let\b|type\b|import\b|export\b)[\w.[\]!, ]+( [+]?= |\().*;$/g, () => ""],
];

const { values: options } = parseArgs({
  options: {
    from: { type: "string", default: "0" },
    to: { type: "string" },
    of: { type: "string", default: "100" },
    only: { type: "string" },
    hardening: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
  },
});
const chosen = await choose(Number(options.of));
const only = options.only?.split(",").map((number) => chosen[Number(number)] as Change);
const part = only ?? chosen.slice(Number(options.from), Number(options.to ?? options.of));
if (options.list) for (const change of part) show(change);
else await judgeAll();

/** Every place that the rule finds, in the order of the text. */
function findAll(): Change[] {
  const found: Change[] = [];
  let [at, isComment] = [0, false];
  for (const line of SOURCE.split("\n")) {
    if (/^\s*\/\*/.test(line)) isComment = true;
    const code = line.replace(/(?<=^|\s)\/\/ .*$/, "");
    if (!isComment && !/^(import|type)\b/.test(line))
      for (const [pattern, to] of TURNS)
        for (const { 0: from, index } of code.matchAll(pattern))
          found.push({ at: at + index, from, to: to(from) });
    if (line.includes("*/")) isComment = false;
    at += line.length + 1;
  }
  return found.sort((a, b) => a.at - b.at);
}

/** So many of them, as far apart as they can be. */
async function choose(count: number) {
  const all = findAll();
  const original = compile(SOURCE);
  const taken: Change[] = [];
  for (let turn = 0; turn < count; turn++) {
    const next = Math.floor(((turn + 1) * all.length) / count);
    for (let place = Math.floor((turn * all.length) / count); place < next; place++) {
      const change = all[place] as Change;
      const text = apply(change);
      const compiled = compile(text);
      if (compiled === undefined || compiled === original || !(await hasTypes(text))) continue;
      taken.push(change);
      break;
    }
  }
  return taken;
}

function apply({ at, from, to }: Change) {
  return SOURCE.slice(0, at) + to + SOURCE.slice(at + from.length);
}

/** The program without its types, or nothing where it is none. */
function compile(text: string) {
  try {
    return new Bun.Transpiler({ loader: "ts", minifyWhitespace: true }).transformSync(text);
  } catch {
    return undefined;
  }
}

async function hasTypes(text: string) {
  return inCopy(text, async (folder) => {
    const command = [process.execPath, "check", "--no-script", "server.ts"];
    return (
      (await Bun.spawn(command, { cwd: folder, stdout: "ignore", stderr: "ignore" }).exited) === 0
    );
  });
}

async function judgeAll() {
  const before = await judge(SOURCE);
  if (before) throw new Error(`Without a change, this fails: ${before}.`);
  const verdicts: Verdict[] = [];
  const waiting = [...part];
  const work = async () => {
    for (let change = waiting.shift(); change; change = waiting.shift()) {
      const seenBy = await judge(apply(change));
      verdicts.push({ change, seenBy });
      show(change, seenBy || "SURVIVES");
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));

  const by = (suite: string) => verdicts.filter(({ seenBy }) => seenBy.startsWith(suite));
  const survivors = verdicts.filter(({ seenBy }) => seenBy === "");
  console.log(`\nOf ${verdicts.length}, bun test sees ${by("bun test").length}.`);
  if (POSTGRES) console.log(`Of the others, it sees ${by("PostgreSQL").length} on PostgreSQL.`);
  if (options.hardening) console.log(`The hardening suite sees ${by(".ci/").length} more.`);
  console.log(`${survivors.length} survive:`);
  for (const { change } of survivors) show(change);
}

/** The suite that fails, twice, with such a server.ts; nothing if there is none. */
function judge(text: string) {
  return inCopy(text, async (folder) => {
    if (await fails(folder, ["test", "--bail"])) return "bun test";
    if (POSTGRES && (await fails(folder, ["test"], POSTGRES))) return "PostgreSQL";
    const names = [...new Bun.Glob("*.test.ts").scanSync(join(folder, ".ci"))].sort();
    for (const name of options.hardening ? names : [])
      if (await fails(folder, ["test", "--bail", "--isolate", `./.ci/${name}`]))
        return `.ci/${name}`;
    return "";
  });
}

async function fails(...run: Parameters<typeof outcomeOf>) {
  const first = await outcomeOf(...run);
  return first === "hangs" || (first === "fails" && (await outcomeOf(...run)) !== "passes");
}

/** Runs Bun in a folder, in a group of processes of its own, of which none is left. */
async function outcomeOf(cwd: string, args: string[], url?: string) {
  const child = Bun.spawn([process.execPath, ...args], {
    cwd,
    detached: true,
    env: { ...Bun.env, TEST_DATABASE_URL: url, TMPDIR: cwd }, // what is left goes with the folder
    stdout: "ignore",
    stderr: "ignore",
  });
  let isOver = false;
  const end = setTimeout(() => {
    isOver = true;
    killAll();
  }, MINUTES * 60_000);
  function killAll() {
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // None is left.
    }
  }
  const code = await child.exited;
  clearTimeout(end);
  killAll();
  if (isOver) return "hangs";
  return code === 0 ? "passes" : "fails";
}

/** A folder with everything, and this server.ts, for as long as the work lasts. */
async function inCopy<Done>(text: string, work: (folder: string) => Promise<Done>) {
  const folder = mkdtempSync(join(tmpdir(), "items-mutant-"));
  const isCopied = (path: string) => !/\/(node_modules|\.git)$|\.sqlite/.test(path);
  await cp(ROOT, folder, { recursive: true, filter: isCopied });
  symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"));
  await Bun.write(join(folder, "server.ts"), text);
  return work(folder).finally(() => rmSync(folder, { recursive: true, force: true }));
}

function show(change: Change, verdict = "") {
  const before = SOURCE.slice(0, change.at).split("\n");
  const line = SOURCE.split("\n")[before.length - 1] ?? "";
  const [from, to] = [change.from, change.to || "(nothing)"].map((text) => text.trim());
  const number = `${chosen.indexOf(change)}`.padStart(3);
  console.log(`${number}  ${verdict.padEnd(20)}  server.ts:${before.length}  ${from} → ${to}`);
  console.log(`${" ".repeat(27)}${line.trim()}`);
}
