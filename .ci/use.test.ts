/**
 * What the README says under "Recipes" and "Outgrowing one machine": each line is taken from it and
 * run. (What stands in front of a server is in proxies.test.ts, PostgreSQL's part in cluster.test.ts.)
 *
 *     bun test ./.ci/use.test.ts
 */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, symlinkSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import {
  beside,
  environment,
  FOLDER,
  fresh,
  can,
  program,
  run,
  spawn,
  start,
} from "../server.test";

const hasReadme = existsSync(beside("README.md"));
if (!hasReadme) console.log("Skipped: what the README says, for there is none.");
const readme = hasReadme ? readFileSync(beside("README.md"), "utf8").replaceAll("\n", " ") : "";

/** The part of the README that a pattern finds; its line breaks are spaces. */
function found(pattern: RegExp) {
  const [, text = ""] = pattern.exec(readme) ?? [];
  expect([pattern.source, text === ""]).toEqual([pattern.source, false]);
  return text;
}

/** A folder with the server in it, as one has it who took it along. */
function folderWithServer() {
  const folder = mkdtempSync(join(FOLDER, "use-"));
  for (const name of ["server.ts", "package.json", "bun.lock", "bunfig.toml", "node_modules"])
    if (existsSync(beside(name))) symlinkSync(beside(name), join(folder, name));
  return folder;
}

/** With Bun where `bun` is looked for, for the recipes say `bun`. */
function withBun() {
  return { ...environment(), PATH: `${dirname(process.execPath)}:${Bun.env.PATH}` };
}

test.if(hasReadme && can(["curl"], "the first lines"))("the first lines are true", async () => {
  const text = readFileSync(beside("README.md"), "utf8");
  const blocks = [...text.matchAll(/^```\w+\n([^]*?)^```$/gm)].map(([, code = ""]) => code);
  expect(blocks[0]).toBe("bun server.ts\n");
  const [, command = "", answer = ""] = /^\$ (curl -i .*)\n([^]+)$/.exec(blocks[1] ?? "") ?? [];
  const to = await start({ LOG: "off" });
  const printed = (await run(command, to)).split("\n");
  for (const line of answer.trim().split("\n")) expect(printed).toContain(line);
  await to.stop();
});

describe.if(hasReadme)("the recipes", () => {
  test("a fixture for bun:test starts a server, and the server ends with the tests", async () => {
    const folder = folderWithServer();
    const [, code = ""] =
      /```ts\n(const env = [^]*?)```/.exec(readFileSync(beside("README.md"), "utf8")) ?? [];
    const file = `import { expect, test } from "bun:test";\n${code}
      test("it answers", async () => {
        expect(await (await fetch(url + "/items/1")).text()).toBe('{"item":"apple"}');
        console.log("PID " + server.pid);
      });`;
    await Bun.write(join(folder, "own.test.ts"), file);
    const { child, stderr, stdout } = spawn([process.execPath, "test", "own"], folder, withBun());
    expect([await child.exited, stderr.text]).toEqual([0, stderr.text]);
    await stdout.done;
    const pid = Number(/PID (\d+)/.exec(stdout.text)?.[1]);
    expect(pid).toBeGreaterThan(0);
    await spawn(["tail", `--pid=${pid}`, "-f", "/dev/null"]).child.exited; // it ends with the server
  });

  test.if(can(["node"], "the line for vitest"))(
    "the line for vitest starts one from Node",
    async () => {
      const line = found(/in vitest `(spawn\(.*?\))`/);
      const code = `const { spawn } = require("node:child_process");
      const env = { ...process.env, PORT: "0", DATABASE_URL: "sqlite://:memory:" };
      const server = ${line};
      server.stdout.once("data", async (text) => {
        const [url] = /http:\\S+/.exec(text);
        console.log(await (await fetch(url + "/items/1")).text());
        process.exit(0);
      });`;
      const { stdout } = spawn(["node", "-e", code], folderWithServer(), withBun());
      await stdout.done;
      expect(stdout.text).toBe('{"item":"apple"}\n');
    },
  );

  test("Playwright's webServer: the command serves what its url asks for", async () => {
    const command = found(/webServer: \{ command: "(.*?)"/).replace(/PORT=\d+/, "PORT=0");
    const path = new URL(found(/url: +"(http:.*?)"/)).pathname;
    const { child, stdout } = spawn(
      ["sh", "-c", `exec env ${command}`],
      folderWithServer(),
      withBun(),
    );
    const url = await stdout.until(/http:\/\/\S+(?=\n)/);
    expect((await fetch(url + path)).status).toBe(200);
    child.kill();
    await child.exited;
  });

  test("in process, app.handle answers, and nothing listens", async () => {
    const request = found(/`app\.handle\((new Request\(".*?"\))\)`/);
    const folder = folderWithServer();
    const code = `import { app } from "./server";
      console.log(await (await app.handle(${request})).text(), app.server);
      process.exit(0);`;
    await Bun.write(join(folder, "own.ts"), code);
    const env = { ...withBun(), DATABASE_URL: "sqlite://:memory:" };
    const { stdout } = spawn([process.execPath, "own.ts"], folder, env);
    await stdout.done;
    expect(stdout.text).toBe('{"item":"apple"} null\n');
  });

  test("a backup while it runs has what was acknowledged, and goes back", async () => {
    const folder = folderWithServer();
    const DATABASE_URL = `sqlite://${join(folder, "items.sqlite")}`;
    const to = await start({ DATABASE_URL });
    expect(await to.status("PUT /items/kept", { json: fresh({}) })).toBe(201);
    expect(await run(found(/```sh (bun -e 'new .*?)```/).trim(), to, folder)).toBe("");
    expect(await to.status("DELETE /items/kept")).toBe(204);
    await to.stop();
    using copy = new Database(join(folder, "backup.sqlite"));
    expect(copy.query("select count(*) as n from items").get()).toEqual({ n: 3 });
    const again = await start({ DATABASE_URL: `sqlite://${join(folder, "backup.sqlite")}` });
    expect(await again.status("GET /items/kept")).toBe(200);
    await again.stop();
  });

  test("for a class: the address that is printed is one that others can type, and it answers", async () => {
    const settings = found(/\*\*A class of twenty\*\*: `((?:\w+=\S+ )+)bun server\.ts`/);
    const pairs = [...settings.matchAll(/(\w+)=(\S+)/g)].map(([, name, value]) => [name, value]);
    const env = {
      ...environment({ PORT: "0", DATABASE_URL: "sqlite://:memory:" }),
      ...Object.fromEntries(pairs),
    };
    const { child, stdout } = spawn(program(), FOLDER, env);
    const url = await stdout.until(/http:\/\/\S+(?=\n)/);
    expect(new URL(url).hostname).not.toBe("0.0.0.0");
    expect((await fetch(`${url}/items/1`)).status).toBe(200);
    expect((await fetch(`${url}/items/1`, { method: "DELETE" })).status).toBe(401);
    child.kill();
    expect(await child.exited).toBe(0);
  });

  test.if(can(["systemd-analyze"], "the unit file"))("the unit file is one", async () => {
    const [, unit = ""] =
      /```ini\n([^]*?)```/.exec(readFileSync(beside("README.md"), "utf8")) ?? [];
    const file = join(mkdtempSync(join(FOLDER, "unit-")), "items.service");
    const here = unit.replace(/ExecStart=\S+/, `ExecStart=${process.execPath}`);
    await Bun.write(file, here);
    const { child, stderr } = spawn(["systemd-analyze", "verify", file]);
    expect([await child.exited, stderr.text.includes(basename(file))]).toEqual([0, false]);
  });
});
