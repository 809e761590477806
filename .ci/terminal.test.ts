/**
 * What whoever runs the server sees and does: the log on a terminal and beside it, pipes that
 * nobody reads, signals in every phase, and a parent that goes away.
 *
 *     bun test ./.ci/terminal.test.ts     on SQLite, or with TEST_DATABASE_URL
 */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, symlinkSync } from "node:fs";
import { open as openFile } from "node:fs/promises";
import { join } from "node:path";
import {
  beside,
  environment,
  exchange,
  FOLDER,
  fresh,
  GUARDS,
  can,
  HOST,
  isListening,
  ITEMS,
  type Live,
  lock,
  namesOf,
  onTerminal,
  open,
  operations,
  outside,
  parse,
  postOf,
  program,
  sent,
  type Settings,
  spawn,
  start,
  wire,
} from "../server.test";

const hasTerminal = process.platform !== "win32";
if (!hasTerminal)
  console.log("Skipped: the log on a terminal, for Windows has no such thing here.");
const withTerminal = test.if(hasTerminal);
const CTRL_C = "\x03";
const LATE = '{"id":"late","name":"x"}';
const ALL = "200 201 204 302 304 400 404 405 406 409 412 413 415 421 422 500 501 503";

// ── On a terminal ── it is on, in colour, and collects the codes ─────────────────────────────────

describe.concurrent("the log on a terminal", () => {
  async function startOnTerminal(settings: Settings = {}) {
    const to = onTerminal(program().slice(1), settings);
    return { ...to, url: await to.output.until(/http:\/\/[\d.:]+/) };
  }
  const linesOf = (text: string) =>
    text.replaceAll("\r", "").replace(/(?<= {2})[\d.]+ ms/g, "TIME");

  withTerminal.each([
    ["in colour", "", (code: number, colour: number) => `\x1b[${colour}m${code}\x1b[0m`],
    ["without, for NO_COLOR is respected", "1", (code: number) => `${code}`],
  ])(
    "is on and %s; a code that is new has its star, before the reason",
    async (_, NO_COLOR, shown) => {
      const { child, output, url } = await startOnTerminal({ NO_COLOR, REHEARSE: "1" });
      const get = (path: string, init: RequestInit = {}) =>
        fetch(url + path, { redirect: "manual", ...init });
      for (const path of ["/items/9", "/items/8", "/items/1", "/"]) await get(path);
      await get("/items/1", { headers: { prefer: "code=503" } });
      await get("/items", { method: "PROPFIND" });
      await output.until(/PROPFIND.*\r\n/);
      child.terminal?.write(CTRL_C);
      await output.until(/Still to be found.*\r\n/);
      expect(await child.exited).toBe(0);
      const lines = linesOf(output.text);
      for (const line of [
        `${shown(404, 33)}  GET  /items/9  TIME  ★ 1 of 18  Item not found\n`,
        `${shown(404, 33)}  GET  /items/8  TIME  Item not found\n`,
        `${shown(200, 32)}  GET  /items/1  TIME  ★ 2 of 18\n`,
        `${shown(302, 36)}  GET  /  TIME  ★ 3 of 18\n`,
        // What is only rehearsed is not found.
        `${shown(503, 31)}  GET  /items/1  TIME  Rehearsed, because Prefer asks for it\n`,
        `${shown(501, 31)}  PROPFIND  /items  TIME  ★ 4 of 18  This server does not have this method\n`,
        `Still to be found: ${ALL.replace(/(200|302|404|501) /g, "")}\n`,
      ])
        expect(lines).toContain(line);
      if (NO_COLOR) expect(output.text).not.toContain("\x1b");
    },
  );

  withTerminal("counts to 21 with TOKEN, READ_TOKEN and RATE", async () => {
    const { child, output, url } = await startOnTerminal(GUARDS);
    await fetch(`${url}/items/9`, { headers: { authorization: "Bearer look" } });
    expect(await output.until(/GET.*\r\n/)).toEndWith("★ 1 of 21  Item not found\r\n");
    child.terminal?.write(CTRL_C);
    const missing = ALL.replace("400", "400 401 403").replace("422", "422 429").replace("404 ", "");
    expect(await output.until(/Still to be found.*/)).toStartWith(`Still to be found: ${missing}`);
    expect(await child.exited).toBe(0);
  });

  withTerminal("says at the end that all were found", async () => {
    const store = `sqlite://${join(FOLDER, "all.sqlite")}`;
    const { child, output, url } = await startOnTerminal({ DATABASE_URL: store, NO_COLOR: "1" });
    const ask = async (request: string, json?: unknown, fields = {}) => {
      const [method = "", path = ""] = request.split(" ");
      const body = json === undefined ? null : JSON.stringify(json);
      const headers = { "content-type": "application/json", ...fields };
      return (await fetch(url + path, { method, body, headers, redirect: "manual" })).status;
    };
    const found = [
      await ask("GET /items/1"),
      await ask("PUT /items/3", { name: "x" }),
      await ask("DELETE /items/3"),
      await ask("GET /"),
      await ask("GET /items/1", undefined, { "if-none-match": "*" }),
      await ask("GET /items?limit=0"),
      await ask("GET /items/9"),
      await ask("DELETE /items"),
      await ask("GET /items/1", undefined, { accept: "text/html" }),
      await ask("PUT /items/1", { id: "2", name: "x" }),
      await ask("DELETE /items/1", undefined, { "if-match": '"x"' }),
      await ask("POST /items", { name: "x".repeat(65_536) }),
      await ask("POST /items", {}, { "content-type": "text/plain" }),
      await ask("GET /items", undefined, { host: "evil.example" }),
      await ask("PUT /items/1", { name: "" }),
    ];
    await outside(store, "alter table items rename to away");
    found.push(await ask("GET /items/1"), await ask("PROPFIND /items"));
    await outside(store, "alter table away rename to items");
    const unlock = await lock(store, "share");
    found.push(await ask("DELETE /items/1"));
    await unlock();
    expect(found.join(" ")).toBe(ALL);
    await output.until(/DELETE .* busy .*\r\n/);
    child.terminal?.write(CTRL_C);
    expect(await output.until(/(All|Still) .*\r\n/)).toBe("All were found.\r\n");
    expect(await child.exited).toBe(0);
    const stars = [...output.text.matchAll(/^(\d+) .*★ (\d+) of 18/gm)];
    expect(stars.map(([, code]) => code)).toEqual(ALL.split(" "));
    expect(stars.map(([, , count]) => Number(count))).toEqual(stars.map((_, at) => at + 1));
  });

  withTerminal("is off where LOG says so", async () => {
    const { child, output, url } = await startOnTerminal({ LOG: "off" });
    expect((await fetch(`${url}/items/9`)).status).toBe(404);
    child.terminal?.write(CTRL_C);
    expect(await child.exited).toBe(0);
    child.terminal?.close();
    expect(output.text).not.toMatch(/^\d+ |★|found/m);
  });
});

// ── Beside a terminal ── a time and the client's address in each line ────────────────────────────

describe.concurrent("the log that goes elsewhere", () => {
  const TIME = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/.source;

  test("has a time, the client's address and the reason, no stars and no farewell", async () => {
    const before = new Date().toISOString();
    const to = await start();
    for (const path of ["/9", "/1", "?limit=0&x=S3CRET"]) await to.ask(`GET ${ITEMS}${path}`);
    await to.stop();
    const log = to.stdout.text.split("\n").slice(4);
    const line = (rest: string) =>
      expect.stringMatching(new RegExp(`^${TIME}  127\\.0\\.0\\.1  ${rest}$`));
    expect(log).toEqual([
      line(`404  GET  ${ITEMS}/9  [\\d.]+ ms  Item not found`),
      line(`200  GET  ${ITEMS}/1  [\\d.]+ ms`),
      line(`400  GET  ${ITEMS}  [\\d.]+ ms  .*`),
      "",
    ]);
    for (const time of log.slice(0, -1).map((each) => each.slice(0, 24)))
      expect(time >= before && time <= new Date().toISOString()).toBe(true);
    expect(to.stdout.text).not.toMatch(/★|found:|S3CRET|\x1b/); // oxlint-disable-line no-control-regex
    expect(to.stderr.text).toBe("");
  });

  test("is off unless LOG says otherwise", async () => {
    const to = await start({ LOG: "" });
    expect((await fetch(`${to.url}${ITEMS}/9`)).status).toBe(404);
    expect(await to.stop("SIGINT")).toBe(0);
    expect(to.stdout.text.split("\n").length).toBe(5);
  });

  test("has a line of who went away before the answer, and nothing of it on stderr", async () => {
    const to = await start();
    for (const bytes of [postOf(9) + "{", wire(`DELETE ${ITEMS}/9`, HOST, "Content-Length: 9")]) {
      const { socket } = await open(to, bytes);
      await to.ask(`GET ${ITEMS}/7`);
      socket.terminate();
    }
    await to.stdout.until(/(gone.*\n[^]*){2}/);
    await to.stop();
    const gone = to.stdout.text.split("\n").filter((line) => line.includes("gone"));
    for (const line of gone)
      expect(line).toMatch(
        new RegExp(`^${TIME}  127\\.0\\.0\\.1  gone  [A-Z]+  /\\S+  [\\d.]+ ms$`),
      );
    expect([gone.length, to.stderr.text]).toEqual([2, ""]);
  });

  test("has a line of 1.3 kB for a path of 12 kB, and for one of characters that take nine", async () => {
    const to = await start();
    await to.ask(`GET ${ITEMS}/${"x".repeat(12_000)}`);
    await exchange(to, wire(`GET /${"é".repeat(6000)}`, HOST, "Connection: close"));
    await exchange(to, wire(`GET /${"😀".repeat(3000)} HTTP/1.0`));
    expect(await to.stop("SIGINT")).toBe(0);
    const lines = to.stdout.text.split("\n").filter((line) => /^20\d\d-/.test(line));
    expect(lines.map((line) => line.split("  ")[2])).toEqual(["404", "404", "404"]);
    for (const line of lines) expect(line.length).toBeLessThan(1300);
  });

  test("has no control character of a request, nor has stderr", async () => {
    const to = await start();
    await outside(to.store, "drop table items");
    // Bun itself refuses what is below U+0020; and of a Host that is none, nothing is encoded.
    const targets = ["/\x1b[31m\x07", "/x?\x1b[0m", "/\u009b31m", "/%1b[2J%0a", "?after=\u009b%1b"];
    for (const host of [HOST, "Host: localhost:99999", "Host: \x1b[2J"])
      for (const target of targets)
        await exchange(to, wire(`GET ${ITEMS}${target}`, host, "Connection: close"));
    expect(await to.stop("SIGINT")).toBe(0);
    expect(to.stderr.text).toStartWith(`GET ${ITEMS}: `);
    // oxlint-disable-next-line no-control-regex
    expect(to.stdout.text + to.stderr.text).not.toMatch(/[\0-\x09\x0b-\x1f\x7f-\x9f]/);
  });
});

// ── Pipes ── that nobody reads, and whose reader has gone away ───────────────────────────────────

describe.concurrent("a pipe", () => {
  const withPipe = test.if(can(["mkfifo"], "a pipe that nobody reads"));

  /** A server whose log and errors go to a pipe; who reads it decides when. */
  async function startOnPipe(name: string) {
    const file = join(FOLDER, name);
    Bun.spawnSync(["mkfifo", file]);
    const [pipe, end] = [await openFile(file, "r+"), await openFile(file, "w")];
    const store = `sqlite://${file}.sqlite`;
    const env = environment({ LOG: "on", DATABASE_URL: store });
    const [stdout, stderr] = [end.fd, end.fd];
    const child = Bun.spawn(program(), { cwd: FOLDER, env, ipc() {}, stdout, stderr });
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
    async function askMany(id: string, status: number) {
      for (let turn = 0; turn < 60; turn++) {
        const fifty = Array.from({ length: 50 }, () => sent(`GET ${url}${ITEMS}/${id}`));
        expect(new Set(await Promise.all(fifty))).toEqual(new Set([status]));
      }
    }
    async function endIt() {
      child.kill("SIGTERM");
      expect(await child.exited).toBe(0);
    }
    return { askMany, end: endIt, pipe, read, store };
  }
  const LONG = "x".repeat(1000);

  withPipe(
    "that is read late: 3,000 are answered, and it says how many lines are lost",
    async () => {
      const { askMany, end, pipe, read } = await startOnPipe("read-late");
      await askMany(LONG, 404);
      const reading = read(/the end/);
      await end();
      await pipe.write("the end");
      const text = await reading;
      await pipe.close();
      const shown = text.match(/ {2}404 {2}GET/g)?.length ?? 0;
      const counts = [...text.matchAll(/^… and (\d+) lines more$/gm)].map(([, count]) =>
        Number(count),
      );
      expect(shown).toBeLessThan(2500);
      expect(counts.reduce((sum, count) => sum + count, shown)).toBe(3000);
    },
  );

  withPipe("that nobody ever reads: the end comes with 0 all the same", async () => {
    const { askMany, end, pipe } = await startOnPipe("read-never");
    await askMany(LONG, 404);
    await end();
    await pipe.close();
  });

  withPipe("that nobody reads, for errors too: 3,000 are answered", async () => {
    const { askMany, end, pipe, store } = await startOnPipe("errors");
    await outside(store, "alter table items rename to away");
    await askMany("1", 500);
    await end();
    await pipe.close();
  });

  withPipe("whose reader goes away: all goes on without it, and the end comes with 0", async () => {
    const { askMany, end, pipe, store } = await startOnPipe("closed");
    await pipe.close();
    await askMany("1", 200);
    await outside(store, "alter table items rename to away");
    await askMany("1", 500);
    await end();
  });
});

// ── Signals ── in every phase: what is in flight is answered, and the end comes with 0 ───────────

describe.concurrent("a signal", () => {
  /** A request in flight that the server has read the beginning of. */
  async function sendHalf(to: Pick<Live, "port" | "url">) {
    const { answer, socket } = await open(to, postOf(LATE.length), LATE.slice(0, 1));
    await sent(`GET ${to.url}${ITEMS}/9`);
    return { finish: () => (socket.write(LATE.slice(1)), answer), socket };
  }

  test("straight after the start, or after a read, ends with 0 and says nothing", async () => {
    const ends = [1, 2, 3, 4, 5, 6].map(async (n) => {
      const to = await start({ LOG: "off" });
      const reads = Array.from({ length: n % 2 ? 8 : 0 }, () => sent(`GET ${to.url}${ITEMS}`));
      await reads[0];
      expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
      await Promise.all(reads);
    });
    await Promise.all(ends);
  });

  test.each(["SIGTERM", "SIGKILL"] as const)(
    "%s while the table is made leaves a store that opens",
    async (signal) => {
      const file = join(FOLDER, `${signal}.sqlite`);
      const store = { DATABASE_URL: `sqlite://${file}`, LOG: "off" };
      const { child } = spawn(program(), FOLDER, environment(store));
      while (!existsSync(file)) await new Promise(setImmediate);
      child.kill(signal);
      await child.exited;
      const to = await start(store);
      expect([...(await namesOf(to.store))]).toEqual([
        ["1", "apple"],
        ["2", "banana"],
      ]);
      await to.stop();
    },
  );

  test.each(["SIGTERM", "SIGINT"] as const)(
    "%s: what is begun is answered, what comes now gets 503",
    async (signal) => {
      const to = await start({ LOG: "off" });
      const inFlight = await sendHalf(to);
      const begun = operations().map(async ([request]) => open(to, `${request} HT`));
      const half = await Promise.all(begun);
      await sent(`GET ${to.url}${ITEMS}/9`);
      to.child.kill(signal);
      while (await isListening(to));
      for (const { answer, socket } of half) {
        socket.write(`TP/1.1\r\n${HOST}\r\nContent-Length: 0\r\n\r\n`);
        const { headers, status, text } = parse(await answer);
        expect([status, text]).toEqual([503, '{"error":"The server is shutting down"}']);
        expect(headers.get("retry-after")).toBe("1");
      }
      expect((await inFlight.finish()).slice(0, 12)).toBe("HTTP/1.1 201");
      expect([await to.child.exited, to.stderr.text]).toEqual([0, ""]);
      expect((await namesOf(to.store)).has("late")).toBe(true);
    },
  );

  withTerminal("ends in order though somebody stalls in the middle of a body", async () => {
    const slow = await start({ LOG: "off", DELAY: "25000" });
    const { child, output } = onTerminal(program().slice(1));
    const url = await output.until(/http:\/\/[\d.:]+/);
    await sendHalf({ port: Number(new URL(url).port), url });
    child.kill("SIGTERM");
    // It ends sooner than another server gives an answer that it delays for 25 seconds.
    expect(await Promise.race([child.exited, sent(`GET ${slow.url}${ITEMS}/1`)])).toBe(0);
    expect(await output.until(/Still to be found/)).toBe("Still to be found");
    await slow.stop();
  });

  test("that comes twice at once is one: what is in flight is answered, exit code 0", async () => {
    const to = await start({ LOG: "off" });
    const inFlight = await sendHalf(to);
    // Two of a kind may arrive as one.
    to.child.kill("SIGINT");
    to.child.kill("SIGTERM");
    while (await isListening(to));
    expect((await inFlight.finish()).slice(0, 12)).toBe("HTTP/1.1 201");
    expect(await to.child.exited).toBe(0);
  });

  test("that comes once more ends at once, though a request is in flight", async () => {
    const to = await start({ LOG: "off" });
    const { socket } = await sendHalf(to);
    const begin = performance.now();
    to.child.kill("SIGINT");
    while (await isListening(to));
    // One that comes at once may be the same Ctrl-C, passed on by `bun run`.
    for (; to.child.exitCode === null; await isListening(to)) to.child.kill("SIGINT");
    expect(await to.child.exited).toBe(130);
    expect(performance.now() - begin).toBeGreaterThanOrEqual(499);
    socket.end();
  });

  const canRun = hasTerminal && existsSync(beside("package.json"));
  test.if(canRun)(
    "of Ctrl-C under `bun run start`, which passes it on once more, answers what is in flight",
    async () => {
      const folder = mkdtempSync(join(FOLDER, "run-"));
      for (const name of ["package.json", "bunfig.toml", "bun.lock", "node_modules", "server.ts"])
        if (existsSync(beside(name))) symlinkSync(beside(name), join(folder, name));
      const { child, output } = onTerminal(["run", "start"], {}, folder);
      const url = await output.until(/http:\/\/[\d.:]+/);
      const to = { port: Number(new URL(url).port), url };
      const inFlight = await sendHalf(to);
      child.terminal?.write(CTRL_C);
      while (await isListening(to));
      expect((await inFlight.finish()).slice(0, 12)).toBe("HTTP/1.1 201");
      await output.until(/Still to be found/);
      expect(await child.exited).toBe(0);
    },
  );
});

// ── Parents ── a server with a channel to its parent ends with it, and leaves nothing behind ─────

describe.concurrent("a parent that goes away", () => {
  const rest = `stdio: ["ignore", "inherit", "inherit"`;
  const parents: [name: string, command: string, start: string][] = [
    ["Bun", process.execPath, `Bun.spawn(all, { ipc() {}, ${rest}] })`],
    [
      "Node",
      "node",
      `require("node:child_process").spawn(all[0], all.slice(1), { ${rest}, "ipc"] })`,
    ],
  ];
  for (const [name, command, begin] of parents)
    test.if(can([command], `a parent that is ${name}`))(
      `takes the server with it: ${name}, killed`,
      async () => {
        const code = `const all = JSON.parse(process.argv[1]); ${begin}; setInterval(() => {}, 1000);`;
        const env = environment({ DATABASE_URL: "sqlite://:memory:" });
        const parent = spawn([command, "-e", code, JSON.stringify(program())], FOLDER, env);
        const url = await parent.stdout.until(/http:\/\/\S+(?=\n)/);
        expect(await sent(`GET ${url}${ITEMS}/1`)).toBe(200);
        parent.child.kill("SIGKILL");
        // It holds the other end of this pipe as long as it lives.
        await parent.stdout.done;
        expect(await isListening({ port: Number(new URL(url).port) })).toBe(false);
      },
    );

  test("ends it with 0 where it closes the channel, and what is in flight is answered", async () => {
    const to = await start({ LOG: "off" });
    const { answer, socket } = await open(to, postOf(LATE.length), LATE.slice(0, 1));
    await to.ask(`GET ${ITEMS}/1`);
    to.child.disconnect();
    while (await isListening(to));
    socket.write(LATE.slice(1));
    expect((await answer).slice(0, 12)).toBe("HTTP/1.1 201");
    expect(await to.child.exited).toBe(0);
  });
});

// ── DELAY ── slows answers down, and nothing else ────────────────────────────────────────────────

describe.concurrent("DELAY", () => {
  test("is the least that each answer takes", async () => {
    const to = await start({ DELAY: "300" });
    for (const path of [`${ITEMS}/1`, `${ITEMS}/9`, "/nowhere"]) {
      const begin = performance.now();
      await to.ask(`GET ${path}`);
      expect(performance.now() - begin).toBeGreaterThanOrEqual(299);
    }
    await to.stop();
  });

  test("delays no preflight; and what is in flight at the end is answered at once, and kept", async () => {
    const to = await start({ DELAY: "25000", LOG: "off" });
    const put = to.answer(`PUT ${ITEMS}/late`, { json: fresh({}), fleeting: true });
    const read = to.answer(`GET ${ITEMS}/1`);
    const asks = { origin: "http://localhost:5173", "access-control-request-method": "PUT" };
    while (!(await namesOf(to.store)).has("late"));
    expect(await Promise.race([read, to.status(`OPTIONS ${ITEMS}/late`, asks)])).toBe(204);
    // If it still waited then, it would be cut off before its time is over.
    expect(await to.stop()).toBe(0);
    expect([await put, await read]).toEqual([
      '201 {"message":"Item created"}',
      '200 {"item":"apple"}',
    ]);
  });
});
