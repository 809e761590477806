/**
 * Stores as others have left them: full, read-only, locked, with a table or a document of somebody
 * else's. A failure is caused for real, and its cause is said once, without a secret.
 *
 *     bun test ./.ci/stores.test.ts     on SQLite, or with TEST_DATABASE_URL
 */
import { describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
} from "node:fs";
import { dirname, join } from "node:path";
import {
  type Asks,
  can,
  environment,
  FOLDER,
  fresh,
  idsOf,
  ITEMS,
  type Live,
  lock,
  newStore,
  operations,
  outside,
  POSTGRES,
  program,
  runToItsEnd,
  spawn,
  start,
} from "../server.test";
import { until } from "./clusters";

const [onSqlite, onPostgres] = [test.if(!POSTGRES), test.if(!!POSTGRES)];
console.log(
  `Skipped: what only ${POSTGRES ? "SQLite" : "PostgreSQL"} does, for this is the other.`,
);

/** A command that starts another without the rights of an administrator, which know no limits. */
const ordinary =
  process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] : [];
const withLimits = test.if(!POSTGRES && can([...ordinary, "true"], "what a user may not"));

/** What Linux says of a process, nothing where it is gone. */
function contentOf(file: string) {
  return existsSync(file) ? readFileSync(file, "utf8") : "";
}
function filesOf(pid: number) {
  const folder = `/proc/${pid}/fd`;
  const names = existsSync(folder) ? readdirSync(folder) : [];
  return names.map((name) => existsSync(join(folder, name)) && readlinkSync(join(folder, name)));
}

const writes = () => operations().filter(([request]) => !request.startsWith("GET"));
const fileOf = (store: string) => store.slice("sqlite://".length);

/** Each write gets 503, also one that would have been refused; reads go on. */
async function expectNoWrites(to: Live) {
  const refused: [string, Asks?][] = [
    [`PATCH ${ITEMS}/nobody`, { json: {} }],
    [`DELETE ${ITEMS}/nobody`],
    [`DELETE ${ITEMS}/1`, { "if-match": '"x"' }],
    [`POST ${ITEMS}`, { json: fresh({ id: "1" }) }],
  ];
  for (const [request, asks] of [...writes(), ...refused])
    expect(await to.answer(request, asks)).toBe(
      '503 {"error":"The store is busy or out of reach"}',
    );
  for (const request of [`GET ${ITEMS}/1`, `GET ${ITEMS}`, `GET ${ITEMS}?name=banana`])
    expect(await to.status(request)).toBe(200);
  expect(await to.status(`GET ${ITEMS}/nobody`)).toBe(404);
}

// ── Full ── 503 while it lasts; one line when it begins, and one when it is over ─────────────────

describe.concurrent("a store that is full", () => {
  const disk = join(FOLDER, "disk");
  const balloon = `head -c 131072 /dev/zero >"${disk}/balloon"`;
  const mount = `mount -t tmpfs -o size=512k tmpfs "${disk}" && ${balloon} && exec "$0" "$@"`;
  const onDisk = ["unshare", "-rm", "sh", "-c", mount];
  mkdirSync(disk);
  const canMount = !POSTGRES && can([...onDisk, "true"], "a disk that is full");
  const ofSize = ["sh", "-c", 'ulimit -S -f 1000 && exec "$0" "$@"'];
  const canLimit = !POSTGRES && can([...ofSize, "prlimit", "--version"], "a limit of a file");

  async function fill(to: Live) {
    const post = (id: number) =>
      to.status(`POST ${ITEMS}`, { json: fresh({ id: `${id}`, name: "x".repeat(1000) }) });
    let [id, last] = [3, 201];
    while ((last = await post(id)) === 201) id++;
    expect([last, await to.status(`GET ${ITEMS}/${id}`)]).toEqual([503, 404]);
    // What needs fewer pages may still find some.
    let kept = "apple";
    const put = (name: string) => to.status(`PUT ${ITEMS}/1`, { json: fresh({ name }) });
    for (let turn = 0; (await put(`${turn}`)) === 200; turn++) kept = `${turn}`;
    expect(await to.status(`GET ${ITEMS}/${id - 1}`)).toBe(200);
    for (const [request, asks] of writes()) expect(await to.status(request, asks)).toBe(503);
    expect((await to.ask(`GET ${ITEMS}/1`)).json.item).toBe(kept);
    // What needs no page does not end it.
    await to.ask(`DELETE ${ITEMS}/nobody`);
    expect(await put("last")).toBe(503);
    return () => post(id);
  }

  test.if(canMount)("gets 503 to each write while the disk is full", async () => {
    const DATABASE_URL = `sqlite://${join(disk, "items.sqlite")}`;
    const to = await start({ DATABASE_URL, LOG: "off" }, undefined, onDisk);
    const again = await fill(to);
    rmSync(`/proc/${to.child.pid}/root${disk}/balloon`);
    expect(await again()).toBe(201);
    expect(await to.stop()).toBe(0);
    const full = "Writes get 503: database or disk is full.";
    expect(to.stderr.text).toBe(`${full}\nWrites are served again.\n`);
  });

  test.if(canLimit)("gets 503 to each write while the file may not grow", async () => {
    const to = await start({ LOG: "off" }, undefined, ofSize);
    const again = await fill(to);
    const more = ["prlimit", "--pid", `${to.child.pid}`, "--fsize=unlimited:"];
    expect(await spawn(more).child.exited).toBe(0);
    expect(await again()).toBe(201);
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text).toBe("Writes get 503: disk I/O error.\nWrites are served again.\n");
  });
});

// ── Read-only ── is served so, with a warning at the start ───────────────────────────────────────

describe.concurrent("a store that takes no writes", () => {
  const WARNING = /^Warning: writes get 503 now: [^\n]*read-?only[^\n]*\.$/m;
  const BEGIN = /^Writes get 503: [^\n]*read-?only[^\n]*\.\n$/;

  /** A store in a folder of its own that a server has left. */
  async function leftStore() {
    const folder = mkdtempSync(join(FOLDER, "left-"));
    const to = await start({ DATABASE_URL: `sqlite://${join(folder, "items.sqlite")}` });
    await to.ask(`PUT ${ITEMS}/3`, { json: fresh({ name: "banana" }) });
    await to.stop();
    return to.store;
  }

  async function expectReadOnly(DATABASE_URL: string) {
    const to = await start({ DATABASE_URL, LOG: "off" }, undefined, ordinary);
    expect(to.stdout.text).toMatch(WARNING);
    await expectNoWrites(to);
    expect(idsOf(await to.ask(`GET ${ITEMS}?name=banana`))).toEqual(["2", "3"]);
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text).toMatch(BEGIN);
  }

  withLimits("because its file is read-only", async () => {
    const store = await leftStore();
    chmodSync(fileOf(store), 0o444);
    await expectReadOnly(store);
  });

  withLimits("because its folder is, though its file is not", async () => {
    const store = await leftStore();
    chmodSync(dirname(fileOf(store)), 0o555);
    await expectReadOnly(store);
    chmodSync(dirname(fileOf(store)), 0o755);
  });

  withLimits(
    "is refused where it has a log that cannot be read: that holds what was acknowledged",
    async () => {
      const store = await leftStore();
      const before = await start({ DATABASE_URL: store });
      expect(await before.status(`DELETE ${ITEMS}/1`)).toBe(204);
      await before.stop("SIGKILL");
      rmSync(`${fileOf(store)}-shm`);
      chmodSync(dirname(fileOf(store)), 0o555);
      const { code, stderr } = await runToItsEnd({ DATABASE_URL: store }, { within: ordinary });
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(/^DATABASE_URL [^\n]+ \(.+\)\.\n$/),
      ]);
      chmodSync(dirname(fileOf(store)), 0o755);
    },
  );

  withLimits(
    "or no file at all, of the default as well, ends the start with the cause",
    async () => {
      const folder = mkdtempSync(join(FOLDER, "closed-"));
      chmodSync(folder, 0o555);
      const DATABASE_URL = `sqlite://${join(folder, "items.sqlite")}`;
      for (const settings of [{ DATABASE_URL: "" }, { DATABASE_URL }]) {
        const how = { cwd: folder, within: ordinary };
        const { code, stdout, stderr } = await runToItsEnd(settings, how);
        expect([code, stdout]).toEqual([1, ""]);
        expect(stderr).toMatch(/^DATABASE_URL may only be [^\n]+ \(unable to open[^\n]+\)\.\n$/);
      }
      chmodSync(folder, 0o755);
    },
  );

  onPostgres("because it is a replica, as it were, from now on and at the start", async () => {
    const to = await start({ LOG: "off" });
    const name = new URL(to.store).pathname.slice(1);
    await outside(POSTGRES, `alter database ${name} set default_transaction_read_only = on`);
    await disconnect(name);
    await expectNoWrites(to);
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text).toMatch(BEGIN);

    const again = await start({ DATABASE_URL: to.store, LOG: "off" });
    expect(again.stdout.text).toMatch(WARNING);
    await expectNoWrites(again);
    await outside(POSTGRES, `alter database ${name} set default_transaction_read_only = off`);
    await disconnect(name);
    // A connection that has just been ended may be one of those that are kept.
    while ((await again.status(`PUT ${ITEMS}/1`, { json: fresh({}) })) !== 200);
    expect(await again.stop()).toBe(0);
    expect(again.stderr.text).toMatch(/^Writes get 503: .*\nWrites are served again\.\n$/);
  });
});

// ── Out of reach ── said once, with the cause, and when it is over ───────────────────────────────

describe.concurrent("a store that is out of reach for a while", () => {
  onSqlite("is named once on stderr with its cause, and when it is back: a lock", async () => {
    const to = await start({ LOG: "off" });
    for (let turn = 0; turn < 2; turn++) {
      const unlock = await lock(to.store, "share");
      const waiting = writes().map(([request, asks]) => to.status(request, asks));
      expect(await Promise.all(waiting)).toEqual([503, 503, 503, 503]);
      // Neither of these says that writes are served.
      expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
      expect(await to.status(`OPTIONS ${ITEMS}/1`)).toBe(204);
      expect(await to.status(`DELETE ${ITEMS}/1`)).toBe(503);
      await unlock();
      for (const name of ["x", "y"])
        expect(await to.status(`PUT ${ITEMS}/1`, { json: fresh({ name }) })).toBe(200);
    }
    expect(await to.stop()).toBe(0);
    const lines = "Writes get 503: database is locked.\nWrites are served again.\n";
    expect(to.stderr.text).toBe(lines.repeat(2));
  });

  // Where a file has no log yet and another writes it, SQLite refuses the log at once.
  test.if(!POSTGRES && existsSync("/proc/self/io"))(
    "is waited for at the start: a lock on a file that is new",
    async () => {
      const DATABASE_URL = await newStore();
      const unlock = await lock(DATABASE_URL, "share");
      const { child, stderr, stdout } = spawn(program(), FOLDER, environment({ DATABASE_URL }));
      const readsOf = () => Number(/syscr: (\d+)/.exec(contentOf(`/proc/${child.pid}/io`))?.[1]);
      const hasFile = () => filesOf(child.pid).includes(fileOf(DATABASE_URL));
      await until(async () => child.exitCode !== null || hasFile());
      const before = readsOf();
      await until(async () => child.exitCode !== null || readsOf() > before + 20); // it has tried
      await unlock();
      expect([await stdout.until(/^Items/m), stderr.text]).toEqual(["Items", ""]);
      child.kill();
      expect(await child.exited).toBe(0);
    },
  );

  onPostgres(
    "is named once on stderr without its address: a database that lets nobody in",
    async () => {
      const url = Object.assign(new URL(await newStore()), { password: "S3CRET" });
      const to = await start({ DATABASE_URL: url.href, LOG: "off" });
      const name = url.pathname.slice(1);
      await outside(POSTGRES, `alter database ${name} allow_connections false`);
      await disconnect(name);
      for (const [request, asks] of [...operations(), ...operations()])
        expect(await to.status(request, asks)).toBe(503);
      await outside(POSTGRES, `alter database ${name} allow_connections true`);
      for (const [request, asks] of operations()) {
        // A pooler may pass on once more that the database was away.
        while ((await to.status(request, { ...asks, fleeting: true })) === 503);
      }
      expect(await to.stop()).toBe(0);
      const lines = to.stderr.text.trim().split("\n");
      expect(lines.toSorted()).toEqual([
        "Reads are served again.",
        expect.stringMatching(/^Reads get 503: .*\.$/),
        "Writes are served again.",
        expect.stringMatching(/^Writes get 503: .*\.$/),
      ]);
      expect(to.stdout.text + to.stderr.text).not.toMatch(/S3CRET|postgres:/);
    },
  );
});

// ── Made by others ── a table that cannot be read and written ends the start, as it was ──────────

describe.concurrent("a table that was there before", () => {
  /** A store with this table, made by somebody else. */
  async function storeOf(...statements: string[]) {
    const DATABASE_URL = await newStore();
    for (const each of statements) await outside(DATABASE_URL, each);
    return { DATABASE_URL };
  }
  const OURS = "create table items (id text primary key, document text not null)";

  test("works with its columns in another order, and one more, which is never shown", async () => {
    const columns = "hidden text default 'S3CRET', document text not null, id text primary key";
    const to = await start(await storeOf(`create table items (${columns})`));
    expect(idsOf(await to.ask(`GET ${ITEMS}`))).toEqual([]);
    const [put, post] = [{ json: fresh({ name: "x" }) }, { json: fresh({ id: "a" }) }];
    const requests: [status: number, request: string, asks?: Asks][] = [
      [201, `POST ${ITEMS}`, post],
      [201, `PUT ${ITEMS}/b`, put],
      [200, `PUT ${ITEMS}/b`, put],
      [200, `PATCH ${ITEMS}/a`, put],
      [400, `POST ${ITEMS}`, post],
      [200, `GET ${ITEMS}/a`],
      [200, `GET ${ITEMS}`],
      [200, `GET ${ITEMS}?name=x`],
      [204, `DELETE ${ITEMS}/b`],
      [404, `GET ${ITEMS}/b`],
    ];
    for (const [status, request, asks] of requests) {
      const reply = await to.ask(request, asks);
      expect([request, reply.status]).toEqual([request, status]);
      expect(reply.text).not.toMatch(/S3CRET|hidden/);
    }
    const rows = await outside(to.store, "select id from items");
    expect(rows.map(({ id }) => id)).toEqual(["a"]);
    await to.stop();
  });

  const apple = "insert into items values ('1', 'apple')";
  const tables: [what: string, cause: RegExp, ...statements: string[]][] = [
    [
      "the columns of a version before",
      /document/,
      "create table items (id text primary key, name text not null)",
      apple,
    ],
    [
      "the columns of somebody else",
      /"?id"?/,
      "create table items (sku integer, price real)",
      "insert into items values (1, 2)",
    ],
    [
      "an id alone",
      /document/,
      "create table items (id text primary key)",
      "insert into items values ('1')",
    ],
    ["no key", /conflict/i, OURS.replace(" primary key", ""), apple],
    [
      "an id that is a number",
      /type|integer/,
      OURS.replace("text", "integer"),
      "insert into items values (1, '{}')",
    ],
    [
      "a further column that must be there",
      /further/,
      OURS.replace(")", ", further int not null)"),
      "insert into items values ('1', '{}', 2)",
    ],
    ["no table, but a view", /view/, "create view items as select '1' as id, '{}' as document"],
  ];
  test.each(tables)(
    "is refused with %s, in one line with its cause, and left as it was",
    async (_, cause, ...made) => {
      const store = await storeOf(...made);
      const before = await outside(store.DATABASE_URL, "select * from items");
      const { code, stdout, stderr } = await runToItsEnd(store);
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toMatch(/^DATABASE_URL may only be [^\n]+ \([^\n]+\)\.\n$/);
      expect(/ \((.*)\)\.$/m.exec(stderr)?.[1]).toMatch(cause);
      expect(stderr).not.toContain(new URL(store.DATABASE_URL).pathname);
      expect(await outside(store.DATABASE_URL, "select * from items")).toEqual(before);
    },
  );

  onPostgres("is refused in a database that is not UTF-8", async () => {
    const DATABASE_URL = await newStore("encoding latin1 lc_collate 'C' lc_ctype 'C'");
    const { code, stdout, stderr } = await runToItsEnd({ DATABASE_URL });
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr).toMatch(/^DATABASE_URL may only be [^\n]+ \([^\n]*LATIN1[^\n]*\)\.\n$/);
  });
});

// ── Broken ── what cannot be shown is a 500 with a line that says so ─────────────────────────────

describe.concurrent("what somebody else has broken", () => {
  const documents: Record<string, string> = {
    list: "[]",
    number: "5",
    "without-name": '{"id":"without-name"}',
    "long-name": JSON.stringify({ id: "long-name", name: "x".repeat(1025) }),
    "name-of-another-type": '{"id":"name-of-another-type","name":5}',
  };

  test("is a 500 with a line that says so: a document; all others are served", async () => {
    const to = await start({ LOG: "off" });
    for (const [id, document] of Object.entries(documents))
      await outside(to.store, `insert into items (id, document) values ('${id}', '${document}')`);
    for (const id of Object.keys(documents))
      expect(await to.answer(`GET ${ITEMS}/${id}`)).toBe('500 {"error":"Server error"}');
    expect(await to.status(`GET ${ITEMS}`)).toBe(500);
    expect(await to.status(`GET ${ITEMS}?limit=2`)).toBe(200);
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    // What is put in its place mends it.
    for (const id of Object.keys(documents)) {
      expect(await to.status(`PUT ${ITEMS}/${id}`, { json: fresh({ name: "mended" }) })).toBe(200);
      expect((await to.ask(`GET ${ITEMS}/${id}`)).json.item).toBe("mended");
    }
    expect(await to.status(`GET ${ITEMS}`)).toBe(200);
    expect(await to.stop()).toBe(0);
    const lines = to.stderr.text.trim().split("\n");
    expect(lines.length).toBe(Object.keys(documents).length + 1);
    for (const line of lines) expect(line).toMatch(/^GET \/\S+: .*breaks its schema at \//);
  });

  test("has no member that is shown and the schema does not know", async () => {
    const to = await start();
    const document = JSON.stringify(fresh({ id: "0", hidden: "S3CRET" }));
    await outside(to.store, `insert into items (id, document) values ('0', '${document}')`);
    for (const request of [`GET ${ITEMS}`, `GET ${ITEMS}/0`])
      expect(await to.answer(request)).toMatch(/^200 (?!.*S3CRET)/);
    await to.stop();
  });

  test("is a 500 to each operation, with no word of it on the wire: the table is gone", async () => {
    const to = await start({ LOG: "off" });
    await outside(to.store, "drop table items");
    for (const [request, asks] of operations())
      expect(await to.answer(request, asks)).toBe('500 {"error":"Server error"}');
    // The last ones before the end are on stderr as well, and the same stack is not printed again.
    const all = Array.from({ length: 20 }, () => to.status(`GET ${ITEMS}/1`));
    expect(new Set(await Promise.all(all))).toEqual(new Set([500]));
    expect(await to.stop()).toBe(0);
    const lines = to.stderr.text.split("\n");
    const cause = /no such table: items|relation "items" does not exist/;
    const said = lines.filter((line) => /^[A-Z]+ \//.test(line));
    expect(said.filter((line) => cause.test(line)).length).toBe(operations().length + 20);
    const stacks = to.stderr.text.match(/(?<=: ).*(\n {4}at .*)+/g) ?? [];
    expect(new Set(stacks).size).toBe(stacks.length);
    if (!POSTGRES) expect(stacks.length).toBeGreaterThan(0);
  });

  test("is a 500 while it lasts, and no longer: the table is away for a while", async () => {
    const to = await start({ LOG: "off" });
    await outside(to.store, "alter table items rename to away");
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(500);
    await outside(to.store, "alter table away rename to items");
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    await to.stop();
  });
});

/** Ends the sessions of a database of PostgreSQL. */
async function disconnect(name: string) {
  const sessions = `from pg_stat_activity where datname = '${name}' and pid <> pg_backend_pid()`;
  await outside(POSTGRES, `select pg_terminate_backend(pid) ${sessions}`);
}
