/**
 * Settings: one that makes no sense ends the start with one line that names it, what it was and
 * what it may be; what may hold a secret is never shown; the start says what is in force.
 *
 *     bun test ./.ci/settings.test.ts     on SQLite, or with TEST_DATABASE_URL
 */
import { describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import {
  beside,
  can,
  environment,
  FOLDER,
  ITEMS,
  program,
  runToItsEnd,
  type Settings,
  spawn,
  start,
} from "../server.test";

/** A command that starts another without the rights of an administrator, which know no limits. */
const ordinary =
  process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] : [];
const canBeOrdinary = can([...ordinary, "true"], "what an ordinary user may not");

/** What each setting may be, as `--help` has it. */
const help = await endOf([...program(), "--help"]);
const mayBe: Settings = Object.fromEntries(
  [...help.stdout.matchAll(/^ {2}([A-Z_]+) +(.+?)( \(default: .+\))?$/gm)].map(([, name, rule]) => [
    name,
    rule,
  ]),
);
const NAMES =
  "PORT HOST DATABASE_URL TOKEN READ_TOKEN ALLOWED_HOSTS CORS_ORIGIN RATE DELAY REHEARSE LOG";

// ── One that makes no sense ──────────────────────────────────────────────────────────────────────

describe.concurrent("a setting that makes no sense", () => {
  const foreign = join(FOLDER, "foreign");
  writeFileSync(foreign, "this is not a database, but a file of somebody else's\n".repeat(99));
  const bad: Record<string, string[]> = {
    PORT: ["x", "65536", "-1", "1.5", "0x10", " 1"],
    HOST: ["not a host", "two\nlines\x1b[31m", "256.1.1.1", "192.0.2.1", "web", "nope.invalid"],
    TOKEN: ["", "two words", "é", "tab\t", "line\n"],
    ALLOWED_HOSTS: [
      "a.example:80 .example.com *.example.com a.test;b.test 'a.test' a..test ,".split(" "),
      ["http://a.test", "a.test/x"],
    ].flat(),
    CORS_ORIGIN: [
      "page.example http://*.example.com http://a.test/path http://a.test/ http://a.test?x",
      "http://a.test:80 http://b.test,https://a.test:443 http://a;b http://a.test:0 , *x null",
    ].flatMap((text) => text.split(" ")),
    RATE: ["fast", "-1", "1.5", "1000000"],
    DELAY: ["1.5", "25001", "36000", "-1"],
    REHEARSE: ["yes", "2", "on"],
    LOG: ["true", "1", "ON"],
    DATABASE_URL: [
      "mysql://h/d sqlite:// sqlite://:memory:x sqlite://items.sqlite?mode=ro items.sqlite",
      `sqlite://file:items.sqlite sqlite:///no/such/folder/items.sqlite sqlite://${foreign}`,
      `sqlite://${FOLDER} sqlite:items.sqlite postgres://u:p@h:x/d`,
    ].flatMap((text) => text.split(" ")),
  };
  bad.DATABASE_URL?.push("sqlite:// ", "sqlite:// items.sqlite");

  for (const [name, texts] of Object.entries(bad))
    test.each(texts)(`ends the start with one line that names it: ${name}=%j`, async (text) => {
      const { code, stdout, stderr } = await runToItsEnd({ [name]: text });
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toMatch(/^[ -~…]+\n$/);
      const isSecret = /TOKEN|DATABASE/.test(name);
      const is = isSecret ? "" : `is ${JSON.stringify(text)}, but `;
      expect(stderr).toStartWith(`${name} ${is}may only be ${mayBe[name]}`);
      if (isSecret && text) expect(stderr.replace(mayBe[name] ?? "", "")).not.toContain(text);
      expect(stderr).toMatch(/(?<! \(.*)\.\n$| \([^()]+\)\.\n$/);
    });

  test.each([
    ["without TOKEN", { READ_TOKEN: "alone" }],
    ["the same", { TOKEN: "s3cret", READ_TOKEN: "s3cret" }],
    ["set, but empty", { TOKEN: "s3cret", READ_TOKEN: "" }],
    ["two words", { TOKEN: "s3cret", READ_TOKEN: "two words" }],
  ])("is a read token that is %s", async (_, settings) => {
    const { code, stdout, stderr } = await runToItsEnd(settings);
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toStartWith(`READ_TOKEN may only be ${mayBe.READ_TOKEN}`);
    expect(stderr).not.toMatch(/s3cret|alone/);
  });

  const unshare = ["unshare", "-rn"];
  const canUnshare = can([...unshare, "true"], "a HOST that is none, without a network");
  test.if(canUnshare)("is a HOST that is none, without a network too", async () => {
    for (const HOST of ["256.1.1.1", "web", "nope.invalid"]) {
      const { code, stderr } = await runToItsEnd({ HOST }, { within: unshare });
      expect(code).toBe(1);
      expect(stderr).toStartWith(`HOST is "${HOST}", but may only be ${mayBe.HOST}`);
    }
  });

  test("is a port that is taken", async () => {
    const to = await start();
    const { code, stderr } = await runToItsEnd({ PORT: `${to.port}` });
    const says = `PORT is "${to.port}", but may only be ${mayBe.PORT} (it is in use).\n`;
    expect([code, stderr]).toEqual([1, says]);
    await to.stop();
  });

  const free = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
  const isGuarded = canBeOrdinary && can(["test", "-r", free], "a port below 1024");
  const with80 = test.if(isGuarded && Number(readFileSync(free, "utf8")) > 80);
  with80("is a port that only an administrator may take", async () => {
    const { code, stdout, stderr } = await runToItsEnd({ PORT: "80" }, { within: ordinary });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^PORT is "80", but may only be [^\n]+ \(only root [^\n]+\)\.\n$/);
  });
});

// ── The address of a store ── is never shown, for it may hold a secret ───────────────────────────

describe.concurrent("the address of a store that cannot be opened", () => {
  const odd = [
    "host=h password=S3CRET",
    "host=h password='my S3CRET' user=u",
    "postgres:///S3CRET?password=S3CRET",
    "jdbc:postgresql://h/d?user=u&password=S3CRET",
    "postgres://user:S3CRET",
    "postgres://u:S3CRET@127.0.0.1:1/d",
    "postgresql://u:S3CRET@127.0.0.1:1/d",
    "postgres://u@127.0.0.1:1/d?password=S3CRET",
    "postgres://u@127.0.0.1:1/d#password=S3CRET",
    "postgres://u:S3CRET@127.0.0.1:x/d",
    "postgres://u:S3CRET @127.0.0.1:1/d",
    "mysql://u:S3CRET@127.0.0.1/d",
    "//u:S3CRET@127.0.0.1/d",
    "u:S3CRET@127.0.0.1/d",
    "postgres://u:123/S3CRET@127.0.0.1/d",
    "postgres://u@127.0.0.1:1/d&password=S3CRET",
    "postgres://u%3AS3CRET@127.0.0.1:1/d",
    "postgres://u;password=S3CRET@127.0.0.1:1/d",
    "postgres://u@127.0.0.1:1/d?sslmode=disable;password=S3CRET",
    "postgres://user=u%20password=S3CRET",
    "postgres://u@S3CRET.invalid/d",
    "postgres://u:S3CRET@[::1]:1/d",
    "sqlite://u:S3CRET@127.0.0.1/d",
  ];
  test("is not shown, in no form", async () => {
    // Most wait until the time for a connection is over, so they do it side by side.
    const ends = odd.map(async (DATABASE_URL) => {
      const { child, stderr, stdout } = spawn(program(), FOLDER, environment({ DATABASE_URL }));
      await Promise.all([stdout.done, stderr.done]);
      return [DATABASE_URL, await child.exited, stdout.text, stderr.text] as const;
    });
    for (const [url, code, stdout, stderr] of await Promise.all(ends)) {
      expect([url, code, stdout]).toEqual([url, 1, ""]);
      expect([url, stderr]).toEqual([
        url,
        expect.stringMatching(/^DATABASE_URL may only be .*\.\n$/),
      ]);
      expect([url, stderr]).toEqual([url, expect.not.stringMatching(/S3CRET|127\.0\.0\.1|::1/)]);
    }
  });
});

// ── .env ── what got lost on its way is missed ───────────────────────────────────────────────────

describe.concurrent(".env", () => {
  /** A folder with this .env in it. */
  function folderWith(text: string | Uint8Array) {
    const cwd = mkdtempSync(join(FOLDER, "env-"));
    writeFileSync(join(cwd, ".env"), text);
    return cwd;
  }

  test.each(["TOKEN=$ecret", "TOKEN='$ecret'", 'TOKEN="$ecret"', "TOKEN=${ecret}", "TOKEN="])(
    "that has lost its token ends the start: %s",
    async (line) => {
      const { code, stdout, stderr } = await runToItsEnd({}, { cwd: folderWith(`${line}\n`) });
      const says = `TOKEN may only be ${mayBe.TOKEN} (it is set, but empty).\n`;
      expect([code, stdout, stderr]).toEqual([1, "", says]);
    },
  );

  test("has a $ as \\$", async () => {
    const to = await startWith("TOKEN=\\$ecret\n");
    const authorization = "Bearer $ecret";
    const url = `${to.url}${ITEMS}/1`;
    expect((await fetch(url, { method: "DELETE" })).status).toBe(401);
    expect((await fetch(url, { method: "DELETE", headers: { authorization } })).status).toBe(204);
    await to.end();
  });

  test.each([
    ["little-endian, as PowerShell's > writes it", "utf-16le", "\ufeffTOKEN=s3cret\r\n"],
    ["little-endian, without its mark", "utf-16le", "TOKEN=s3cret\r\n"],
    ["big-endian", "utf-16be", "\ufeffTOKEN=s3cret\r\n"],
    ["big-endian, without its mark", "utf-16be", "TOKEN=s3cret\r\n"],
  ])("in UTF-16 ends the start: %s", async (_, encoding, text) => {
    const bytes = Buffer.from(text, "utf-16le");
    const cwd = folderWith(encoding === "utf-16be" ? bytes.swap16() : bytes);
    const { code, stdout, stderr } = await runToItsEnd({}, { cwd });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^\.env may only be [^\n]*UTF-8[^\n]*\.\n$/);
  });

  test("in another encoding ends the start, with the mark of UTF-8 it does not", async () => {
    const latin1 = folderWith(Buffer.from("# für\nTOKEN=s3cret\n", "latin1"));
    const { code, stderr } = await runToItsEnd({}, { cwd: latin1 });
    expect([code, stderr]).toEqual([1, expect.stringMatching(/^\.env may only be .*UTF-8.*\.\n$/)]);
    const to = await startWith("\ufeffTOKEN=s3cret\n");
    expect((await fetch(`${to.url}${ITEMS}/1`, { method: "DELETE" })).status).toBe(401);
    await to.end();
  });

  test.if(canBeOrdinary)("that cannot be read ends the start in one line", async () => {
    const cwd = folderWith("TOKEN=s3cret\n");
    chmodSync(join(cwd, ".env"), 0);
    const { code, stdout, stderr } = await runToItsEnd({}, { cwd, within: ordinary });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^\.env may only be [^\n]+\n$/);
  });

  /** Starts a server with this .env, and nothing else set but where to listen. */
  async function startWith(text: string) {
    const env = environment({ DATABASE_URL: "sqlite://:memory:" });
    const { child, stdout } = spawn(program(), folderWith(text), env);
    const url = await stdout.until(/http:\/\/\S+(?=\n)/);
    return { end: () => (child.kill("SIGTERM"), child.exited), url };
  }
});

// ── RATE ── counts what a client asks in a second, and starts anew with the next ─────────────────

test("RATE=3 answers three of a second, and no preflight is one of them", async () => {
  const to = await start({ RATE: "3" });
  const preflight = { origin: "http://localhost", "access-control-request-method": "PUT" };
  // On a busy machine a second may end meanwhile: then it is the next one that is counted.
  for (let answered = 0; answered !== 3;) {
    while ((await to.status(`GET ${ITEMS}`)) === 429);
    expect(await to.status("OPTIONS /nowhere", preflight)).toBe(204);
    for (answered = 1; (await to.status(`GET ${ITEMS}`)) !== 429; answered++);
  }
  await to.stop();
});

// ── The start ── says where, and what is in force ────────────────────────────────────────────────

describe.concurrent("the start", () => {
  test("says where, what counts, and warns when others can write; items.sqlite is where it was started", async () => {
    const folder = mkdtempSync(join(FOLDER, "start-"));
    await Bun.write(join(folder, ".env"), "PORT=0\nHOST=0.0.0.0\n");
    const { child, stdout } = spawn(program(), folder);
    await stdout.until(/Warning.*\n/);
    const [items = "", docs, store, inForce, warning, ...more] = stdout.text.split("\n");
    const address = /^Items {2}(http:\/\/\S+:\d+)$/.exec(items)?.[1];
    expect(docs).toBe(`Docs   ${address}/swagger`);
    expect(store).toBe("Store  items.sqlite; to start over, stop and delete it");
    expect(inForce).toBe("With   PORT=0 HOST=0.0.0.0");
    expect(warning).toStartWith("Warning: other machines can write here. Set TOKEN");
    expect(more).toEqual([""]);
    // What it prints is what others in the room can type, and they are let in.
    const ours = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
    const others = ours.filter(({ family, internal }) => family === "IPv4" && !internal);
    const known = others.length > 0 ? others.map((each) => each.address) : ["localhost"];
    expect(known).toContain(new URL(address ?? "").hostname);
    expect(await (await fetch(`${address}${ITEMS}/1`)).text()).toBe('{"item":"apple"}');

    expect(existsSync(join(folder, "items.sqlite"))).toBe(true);
    child.kill("SIGINT");
    expect(await child.exited).toBe(0);
    expect([...new Bun.Glob("items*").scanSync(folder)]).toEqual(["items.sqlite"]);
  });

  // In a network of its own, where every port is free.
  const apart = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"];
  test.if(can([...apart, "true"], "a start with nothing set"))("with nothing set", async () => {
    const folder = mkdtempSync(join(FOLDER, "nothing-set-"));
    const { child, stdout } = spawn([...apart, ...program()], folder);
    await stdout.until(/Store.*\n/);
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
    await stdout.done;
    expect(stdout.text.split("\n")).toEqual([
      "Items  http://127.0.0.1:3000",
      "Docs   http://127.0.0.1:3000/swagger",
      "Store  items.sqlite; to start over, stop and delete it",
      "",
    ]);
  });

  const loopback = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  const hasV6 = loopback.some(({ address }) => address === "::1");
  if (!hasV6) console.log("Skipped: HOST=[::1], for this machine has no such address.");
  test.if(hasV6)("takes HOST=[::1] as it prints it, and warns of nobody", async () => {
    for (const HOST of ["[::1]", "::1"]) {
      const to = await start({ HOST, LOG: "off" });
      expect(to.url).toBe(`http://[::1]:${to.port}`);
      expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
      await to.stop();
      expect(to.stdout.text).not.toContain("Warning");
    }
  });

  test("names each setting that is in force, in the order of the table; a secret by its name alone", async () => {
    const settings = {
      HOST: "0.0.0.0",
      TOKEN: "s3cret",
      READ_TOKEN: "l00k",
      ALLOWED_HOSTS: "[::1],A.test",
      CORS_ORIGIN: "http://[::1]:81,http://a.test",
      RATE: "999999",
      DELAY: "25000",
      REHEARSE: "1",
      LOG: "on",
    };
    const to = await start(settings);
    expect(await to.stop()).toBe(0);
    const order = NAMES.split(" ");
    const shown = order.map((name) => {
      const text = { PORT: "0", ...settings }[name];
      return /TOKEN|DATABASE/.test(name) ? name : `${name}=${text}`;
    });
    expect(to.stdout.text).toContain(`\nWith   ${shown.join(" ")}\n`);
    // With TOKEN there is nothing to be warned of.
    expect(to.stdout.text).not.toContain("Warning");
    const said = to.stdout.text + to.stderr.text;
    expect(said).not.toMatch(/s3cret|l00k/);
    expect(said).not.toContain(to.store);
  });

  test("takes what is empty for what is not set, but for a token", async () => {
    const empty = "HOST ALLOWED_HOSTS CORS_ORIGIN RATE DELAY REHEARSE LOG";
    const to = await start(Object.fromEntries(empty.split(" ").map((name) => [name, ""])));
    await to.stop("SIGINT");
    expect(to.stdout.text).toContain("\nWith   PORT=0 DATABASE_URL\n");
    expect(to.stdout.text).toContain(`Items  http://127.0.0.1:${to.port}\n`);
  });

  test.each(["*", " * ", "http://a.test:81 , https://b.test"])(
    "takes CORS_ORIGIN=%j",
    async (text) => {
      const to = await start({ CORS_ORIGIN: text });
      expect(await to.status(`GET ${ITEMS}/1`, { origin: "https://b.test" })).toBe(200);
      await to.stop();
    },
  );
});

// ── --help ── there are no options: any argument prints the settings ─────────────────────────────

describe.concurrent("an argument", () => {
  function expectHelp({ stdout, stderr }: Awaited<ReturnType<typeof endOf>>, name: string) {
    expect(stderr).toBe("");
    expect(stdout).toStartWith(`Settings are in the environment or in .env: PORT=3001 ${name}\n\n`);
    expect(stdout).toMatch(/^[ -~\n]+$/);
    const shown = stdout.split("\n\n")[1]?.trim().split("\n") ?? [];
    expect(shown.map((line) => line.trim().split(/ +/, 1)[0])).toEqual(NAMES.split(" "));
    for (const line of shown) expect(line).toMatch(/^ *[A-Z_]+ +\S.+/);
    for (const rule of Object.values(mayBe)) expect(stdout).toContain(rule ?? "");
  }
  const asked = [["--help"], ["-h"]];
  const others = [
    ["--version"],
    ["--port", "4304"],
    ["-p", "4304"],
    ["--read-token=S3CRET"],
    ["postgres://u:S3CRET"],
    ["db.json"],
    ["--what\n\x1b[31m"],
    [""],
  ];
  test.each([...asked, ...others])("prints the settings with their rules: %j", async (...args) => {
    const end = await endOf([...program(), ...args]);
    expectHelp(end, "bun server.ts");
    expect(end.code).toBe(asked.flat().includes(args[0] ?? "") ? 0 : 1);
    expect(end.stdout).not.toContain("S3CRET");
  });

  const isInstalled = existsSync(beside("node_modules"));
  if (!isInstalled) console.log("Skipped: the executable, for nothing is installed to make it of.");
  test.if(isInstalled)(
    "to the executable does so with its own name; it needs no other file",
    async () => {
      const folder = mkdtempSync(join(FOLDER, "executable-"));
      const make = ["build", "--compile", "--bytecode", "--format=esm", beside("server.ts")];
      const built = spawn([process.execPath, ...make, "--outfile", join(folder, "items")]);
      expect([await built.child.exited, built.stderr.text]).toEqual([0, expect.anything()]);
      const items = join(folder, "items");
      for (const arg of ["--help", "-h", "x"]) expectHelp(await endOf([items, arg]), "./items");
      const lost = await endOf([items], { TOKEN: "" }, folder);
      expect([lost.code, lost.stderr]).toEqual([
        1,
        expect.stringContaining("(it is set, but empty)"),
      ]);
      const started = await endOf([items], {}, folder);
      expect([started.code, started.stderr]).toEqual([0, ""]);
      expect(started.stdout).toMatch(/^Items {2}http:.*\nDocs.*\nStore {2}items\.sqlite;/);
    },
  );
});

/** Runs a server until it ends by itself, or says that it has started. */
async function endOf(command: string[], settings: Settings = {}, folder = FOLDER) {
  const { child, stderr, stdout } = spawn(command, folder, environment(settings));
  void stdout.until(/^Store.*\n/m).then((line) => line && child.kill("SIGTERM"));
  await Promise.all([stdout.done, stderr.done]);
  return { code: await child.exited, stdout: stdout.text, stderr: stderr.text };
}
