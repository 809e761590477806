/**
 * PostgreSQL that is small, strict or far. Each failure is caused for real: a session holds a lock,
 * a role runs out of connections, a network falls silent. None is decided by a number of
 * milliseconds: what waits for the server's own deadline ends with its answer.
 *
 *     bun test ./.ci/postgres.test.ts     on TEST_DATABASE_URL, or on 127.0.0.1:5432
 */
import { afterAll, describe, expect, test } from "bun:test";
import {
  type Asks,
  fresh,
  ITEMS,
  type Live,
  lock,
  operations,
  runToItsEnd,
  spawn,
  start,
  environment,
  program,
} from "../server.test";
import {
  addressOf,
  createDatabase,
  createRole,
  each,
  endAll,
  HERE,
  nothingRuns,
  query,
  startAddress,
  turnOf,
  until,
} from "./clusters";

const CLIENTS = 12; // few enough that none waits 3.5 s for its turn, on a busy machine too
const [version] = await query(HERE, "show server_version_num");
const hasTransactionTimeout = Number(version?.server_version_num) >= 170_000;
if (!hasTransactionTimeout)
  console.log("Skipped: transaction_timeout, for PostgreSQL has it from 17 on.");
afterAll(endAll);

const put = (name: string): Asks => ({ json: fresh({ name }) });
const post = (id: string): Asks => ({ fleeting: true, json: fresh({ id, name: "x" }) });

/** The answers of one server to one request of each kind, as `200 GET`. */
async function answersOf(to: Live) {
  const answers: string[] = [];
  for (const [request, asks] of operations())
    answers.push(`${await to.status(request, { fleeting: true, ...asks })} ${request}`);
  return answers;
}
const refused = () => operations().map(([request]) => `503 ${request}`);

/** Waits until so many sessions of a database are held up by a lock. */
const waitingIn = (store: string, count: number) =>
  until(async () => {
    const waiting = "select 1 from pg_stat_activity where datname = current_database() and";
    return (await query(store, `${waiting} wait_event_type = 'Lock'`)).length >= count;
  });

// ── Small ────────────────────────────────────────────────────────────────────────────────────────

describe("a role with few connections", () => {
  // Two processes share what is left from three on; with fewer, one of them may wait in vain.
  const one = [1, 2, 3, 20].map((limit) => [limit, 1] as const);
  const two = [3, 20].map((limit) => [limit, 2] as const);

  test.each([...one, ...two])(
    "%i of them serve all clients of %i processes",
    async (limit, count) => {
      const { owner } = await createRole(HERE, `connection limit ${limit}`);
      const servers = await each(count, () => start({ DATABASE_URL: owner }));
      const statuses = await each(CLIENTS, async (client) => {
        const to = turnOf(servers, client);
        const own = `${ITEMS}/own-${client}`;
        const answers = [await to.status(`PUT ${own}`, { fleeting: true, ...put("x") })];
        for (let turn = 1; turn <= 5; turn++) {
          answers.push(await to.status(`PUT ${own}`, put(`${turn}`)));
          answers.push(await to.status(`GET ${own}`));
        }
        return answers.join(" ");
      });
      expect([...new Set(statuses)]).toEqual([`201${" 200".repeat(10)}`]);
      for (const to of servers) {
        expect(await to.stop()).toBe(0);
        expect(to.stderr.text).toBe("");
      }
    },
  );

  test("that has none left: 503, one line with the cause and not the role, one when it is over", async () => {
    const { owner, admin, role } = await createRole(HERE, "connection limit 1");
    const to = await start({ DATABASE_URL: owner });
    await query(admin, `alter role ${role} connection limit 0`);
    await query(
      admin,
      `select pg_terminate_backend(pid) from pg_stat_activity
      where usename = '${role}'`,
    );
    expect(await answersOf(to)).toEqual(refused());
    await query(admin, `alter role ${role} connection limit 1`);
    await until(async () => (await to.status(`GET ${ITEMS}/1`)) === 200);
    await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("apple"))) === 200);
    await to.stop();
    expect(to.stderr.text).toBe(
      [
        "Reads get 503: too many connections for role ….",
        "Writes get 503: too many connections for role ….",
        "Reads are served again.",
        "Writes are served again.\n",
      ].join("\n"),
    );
  });

  test("keeps none of those for which nobody waits any more", async () => {
    const store = await createDatabase(HERE);
    const to = await start({ DATABASE_URL: addressOf(store, { search: "?max=2" }) });
    const unlock = await lock(store, "access exclusive");
    const all = () => each(100, (client) => to.status(`POST ${ITEMS}`, post(`own-${client}`)));
    expect([...new Set(await all())]).toEqual([503]);
    await unlock();
    expect([...new Set(await all())]).toEqual([201]);
    const ours = `select 1 from pg_stat_activity where datname = current_database()
      and pid <> pg_backend_pid()`;
    expect((await query(store, ours)).length).toBeLessThanOrEqual(2);
  });
});

describe("many processes", () => {
  test("start at once on an empty database; each serves the first items", async () => {
    const store = await createDatabase(HERE);
    const env = environment({ DATABASE_URL: store });
    const started = await each(10, async () => spawn(program(), undefined, env));
    const urls = await each(10, (index) => started[index]!.stdout.until(/http:\/\/\S+(?=\n)/));
    expect(started.map(({ stderr }) => stderr.text).join("")).toBe("");
    const lists = await Promise.all(urls.map((url) => fetch(`${url}${ITEMS}`)));
    const texts = await Promise.all(lists.map((list) => list.text()));
    expect([...new Set(texts)]).toEqual([expect.stringContaining("banana")]);
    for (const { child } of started) child.kill();
    expect(await Promise.all(started.map(({ child }) => child.exited))).toEqual(Array(10).fill(0));
  });

  test("of those who hold one ETag one wins; all who put one are answered", async () => {
    const store = await createDatabase(HERE);
    const servers = await each(2, () => start({ DATABASE_URL: store }));
    const { headers } = await turnOf(servers, 0).ask(`GET ${ITEMS}/1`);
    const race = each(CLIENTS, (client) => {
      const asks = { ...put(`${client}`), "if-match": headers.get("etag") };
      return turnOf(servers, client).status(`PUT ${ITEMS}/1`, asks);
    });
    expect((await race).sort()).toEqual([200, ...Array(CLIENTS - 1).fill(412)]);
    const hot = each(CLIENTS, (client) =>
      turnOf(servers, client).status(`PUT ${ITEMS}/1`, put(`${client}`)),
    );
    expect([...new Set(await hot)]).toEqual([200]);
  });
});

// ── Strict ───────────────────────────────────────────────────────────────────────────────────────

describe.concurrent("a database with strict defaults", () => {
  test.each(["serializable", "repeatable read"])("%s: no write is 503", async (level) => {
    const store = await createDatabase(HERE);
    await setOf(store, `default_transaction_isolation = '${level}'`);
    const servers = await each(2, () => start({ DATABASE_URL: store }));
    const statuses = await each(CLIENTS, async (client) => {
      const answers: number[] = [];
      for (let turn = 0; turn < 6; turn++) {
        const to = turnOf(servers, client + turn);
        answers.push(await to.status(`PUT ${ITEMS}/1`, put(`${client}`)));
        answers.push(await to.status(`PUT ${ITEMS}/own-${client}`, put(`${turn}`)));
        answers.push(await to.status(`PATCH ${ITEMS}/2`, { json: { name: `${turn}` } }));
        answers.push(await to.status(`GET ${ITEMS}/own-${client}`));
      }
      return answers.join(" ");
    });
    const [first, rest] = ["200 201 200 200", " 200 200 200 200".repeat(5)];
    expect([...new Set(statuses)]).toEqual([first + rest]);
  });

  test("read-only: reads are served; each write is 503, also one that would be 404 or 400", async () => {
    const store = await createDatabase(HERE);
    await (await start({ DATABASE_URL: store })).stop();
    await setOf(store, "default_transaction_read_only = on");
    const to = await start({ DATABASE_URL: store });
    expect(to.stdout.text).toContain("Warning: writes get 503 now: cannot execute");
    expect(await to.answer(`GET ${ITEMS}/1`)).toBe('200 {"item":"apple"}');
    expect(await to.status(`GET ${ITEMS}/9`)).toBe(404);
    expect(await to.status(`POST ${ITEMS}`, post("1"))).toBe(503);
    expect(await to.status(`DELETE ${ITEMS}/9`)).toBe(503);
    expect(await to.status(`PATCH ${ITEMS}/9`, { json: {} })).toBe(503);
    expect(await to.status(`PUT ${ITEMS}/1`, { ...put("x"), "if-match": '"other"' })).toBe(503);
    await setOf(store, "default_transaction_read_only = off");
    await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("apple"))) === 200);
    await to.stop();
    const line = /^Writes get 503: cannot execute .* in a read-only transaction\.$/m;
    expect(to.stderr.text).toMatch(line);
    expect(to.stderr.text).toContain("Writes are served again.");
  });

  test("in another order: a list is in that of code points all the same", async () => {
    const how = "locale_provider icu icu_locale 'en' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'";
    const to = await start({ DATABASE_URL: await createDatabase(HERE, how) });
    for (const id of ["b", "B", "ä", "a", "_", "🍎", "\uffee"])
      await to.ask(`POST ${ITEMS}`, post(id));
    const { json } = await to.ask(`GET ${ITEMS}`);
    const ids = (json.items as { id: string }[]).map(({ id }) => id);
    expect(ids).toEqual(["1", "2", "B", "_", "a", "b", "ä", "\uffee", "🍎"]);
  });

  test("that reads backslashes otherwise: each id is its own all the same", async () => {
    const store = await createDatabase(HERE);
    await setOf(store, "standard_conforming_strings = off");
    const to = await start({ DATABASE_URL: store });
    for (const id of ["ab", "ü", "a'b", "🍎"]) {
      expect(await to.status(`POST ${ITEMS}`, { json: fresh({ id, name: "a'b" }) })).toBe(201);
      expect(await to.status(`POST ${ITEMS}`, post(id))).toBe(400);
      expect(await to.status(`DELETE ${ITEMS}/${encodeURIComponent(id)}`)).toBe(204);
    }
  });

  /** The operator's limits, and a request that meets each: a row is locked where it says so. */
  const limits = [
    ["statement_timeout = 50", "canceling statement due to statement timeout"],
    ["lock_timeout = 50", "canceling statement due to lock timeout"],
    ...(hasTransactionTimeout
      ? [["transaction_timeout = 50", "terminating connection due to transaction timeout"]]
      : []),
  ] as [string, string][];
  test.each(limits)("with %s: 503, and then served again", async (limit, cause) => {
    const store = await createDatabase(HERE);
    const to = await start({ DATABASE_URL: store });
    const unlock = await lock(store, "share");
    await setOf(store, limit);
    expect(await to.status(`PUT ${ITEMS}/1`, put("x"))).toBe(503);
    await unlock();
    await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("y"))) === 200);
    await to.stop();
    expect(to.stderr.text).toBe(`Writes get 503: ${cause}.\nWrites are served again.\n`);
  });

  test("with idle_in_transaction_session_timeout, and a network that stops meanwhile: 503", async () => {
    const store = await createDatabase(HERE);
    const address = await startAddress(Number(new URL(store).port || 5432));
    const to = await start({ DATABASE_URL: addressOf(store, { port: address.port }) });
    await setOf(store, "idle_in_transaction_session_timeout = 50");
    // What comes after the look does not arrive, so the transaction is idle.
    address.stopAfter("for update");
    expect(await to.status(`PUT ${ITEMS}/1`, put("x"))).toBe(503);
    address.speak();
    await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("y"))) === 200);
    await to.stop();
    expect(to.stderr.text).toContain(
      "Writes get 503: terminating connection due to idle-in-transaction timeout.\n",
    );
  });

  test("with idle_session_timeout: no request meets a connection that is gone", async () => {
    const store = await createDatabase(HERE);
    await setOf(store, "idle_session_timeout = 50");
    const to = await start({ DATABASE_URL: store });
    const there = `select 1 from pg_stat_activity where datname = '${nameOf(store)}'`;
    for (let turn = 0; turn < 5; turn++) {
      expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
      expect(await to.status(`PUT ${ITEMS}/1`, put(`${turn}`))).toBe(200);
      await until(async () => (await query(HERE, there)).length === 0);
    }
    expect(to.stderr.text).toBe("");
  });
});

// ── Far ──────────────────────────────────────────────────────────────────────────────────────────

describe.concurrent("a database that is away", () => {
  test("503, with one line when it begins and one when it is over, by itself", async () => {
    const store = await createDatabase(HERE);
    const address = await startAddress(Number(new URL(store).port || 5432));
    const to = await start({ DATABASE_URL: addressOf(store, { port: address.port }) });
    const there = address.to;
    address.to = 1; // where nobody listens
    address.cut();
    const asked = [to.status(`GET ${ITEMS}/1`), to.status(`PUT ${ITEMS}/1`, put("x"))];
    expect(await Promise.all(asked)).toEqual([503, 503]);
    address.to = there;
    await until(async () => (await to.status(`GET ${ITEMS}/1`)) === 200);
    await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("apple"))) === 200);
    await to.stop();
    const said = to.stderr.text
      .trim()
      .split("\n")
      .map((line) => line.replace(/: .*\.$/, ": …."))
      .sort();
    const kinds = ["Reads", "Writes"].flatMap((each) => [
      `${each} are served again.`,
      `${each} get 503: ….`,
    ]);
    expect(said).toEqual(kinds);
  });

  test("whose network is silent: 503, and no write that was refused is made when it speaks", async () => {
    const store = await createDatabase(HERE);
    const address = await startAddress(Number(new URL(store).port || 5432));
    const to = await start({ DATABASE_URL: addressOf(store, { port: address.port }) });
    await each(20, (client) => to.status(`GET ${ITEMS}/${client}`)); // connections are open
    address.fallSilent();
    const replies = await each(CLIENTS, (client) => to.ask(`POST ${ITEMS}`, post(`${client}`)));
    expect([...new Set(replies.map(({ status }) => status))]).toEqual([503]);
    address.speak();
    await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("apple"))) === 200);
    await nothingRuns(store);
    expect((await query(store, "select id from items order by id")).map(({ id }) => id)).toEqual([
      "1",
      "2",
    ]);
  });

  test("that falls silent while a connection is opened: 503, and then served again", async () => {
    const store = await createDatabase(HERE);
    const address = await startAddress(Number(new URL(store).port || 5432));
    const to = await start({ DATABASE_URL: addressOf(store, { port: address.port }) });
    const there = `select 1 from pg_stat_activity where datname = '${nameOf(store)}'`;
    await until(async () => (await query(HERE, there)).length === 0);
    address.fallSilent();
    const asked = [to.status(`GET ${ITEMS}/1`), to.status(`PUT ${ITEMS}/1`, put("x"))];
    expect(await Promise.all(asked)).toEqual([503, 503]);
    address.speak();
    await until(async () => (await to.status(`GET ${ITEMS}/1`)) === 200);
    await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("apple"))) === 200);
  });

  test("that ends each connection: reads go on, and writes too where they were not decided", async () => {
    const store = await createDatabase(HERE);
    const to = await start({ DATABASE_URL: store });
    const end = `select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()`;
    for (let turn = 0; turn < 5; turn++) {
      await each(8, () => to.status(`GET ${ITEMS}/1`));
      await query(store, end);
      const statuses = await each(8, (client) =>
        client % 2 ? to.status(`GET ${ITEMS}/1`) : to.status(`PUT ${ITEMS}/1`, put(`${turn}`)),
      );
      expect([...new Set(statuses)]).toEqual([200]);
    }
  });
});

test("a connection that ends at the commit: 503, for nobody tries again what was decided", async () => {
  const store = await createDatabase(HERE);
  const to = await start({ DATABASE_URL: store });
  const end = "perform nextval('tries'); perform pg_terminate_backend(pg_backend_pid());";
  await query(
    store,
    "create sequence tries",
    `create function cut() returns trigger language plpgsql as
      $$ begin ${end} return null; end $$`,
    `create constraint trigger cut after update on items deferrable initially deferred
      for each row execute function cut()`,
  );
  expect(await to.status(`PUT ${ITEMS}/1`, put("x"))).toBe(503);
  expect(await query(store, "select last_value::text as count from tries")).toEqual([
    { count: "1" },
  ]);
  expect(await to.answer(`GET ${ITEMS}/1`)).toBe('200 {"item":"apple"}');
});

describe.concurrent("a table that is locked", () => {
  test("503 to each operation, and none that was refused is made later", async () => {
    const store = await createDatabase(HERE);
    const servers = await each(2, () => start({ DATABASE_URL: store }));
    const unlock = await lock(store, "access exclusive");
    const statuses = await each(CLIENTS, (client) => {
      const to = turnOf(servers, client);
      return client % 3
        ? to.status(`POST ${ITEMS}`, post(`locked-${client}`))
        : to.status(`GET ${ITEMS}/1`);
    });
    expect([...new Set(statuses)]).toEqual([503]);
    await unlock();
    for (const to of servers)
      await until(async () => (await to.status(`PUT ${ITEMS}/1`, put("apple"))) === 200);
    await nothingRuns(store);
    expect(await query(store, "select id from items where id like 'locked-%'")).toHaveLength(0);
  });

  test("SIGTERM while requests wait: each is answered, exit code 0", async () => {
    const store = await createDatabase(HERE);
    // The log is compared at the end, and a client may still be reading then.
    const to = await start({ DATABASE_URL: store, LOG: "off" });
    const unlock = await lock(store, "access exclusive");
    const waiting = each(20, (client) => to.status(`POST ${ITEMS}`, post(`${client}`)));
    await waitingIn(store, 2);
    const stopped = to.stop();
    expect([...new Set(await waiting)]).toEqual([503]);
    expect(await stopped).toBe(0);
    await unlock();
    await nothingRuns(store);
    expect(await query(store, "select id from items")).toHaveLength(2);
  });
});

// ── Refused at the start ─────────────────────────────────────────────────────────────────────────

describe.concurrent(
  "a start that is refused says what to do, and shows no part of the address",
  () => {
    const rule =
      "DATABASE_URL may only be one that opens: sqlite://FILE, sqlite://:memory: or " +
      "postgres://USER@HOST/DATABASE";

    async function refusalOf(url: string) {
      const { code, stderr, stdout } = await runToItsEnd({ DATABASE_URL: url });
      const { hostname, password, pathname, port, username } = new URL(url);
      for (const part of [hostname, password, pathname.slice(1), port, username])
        if (part.length > 3) expect(stderr.replace(rule, "")).not.toContain(part);
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr.startsWith(rule)).toBe(true);
      return stderr.slice(rule.length).trim();
    }

    test("a database that is not there", async () => {
      const url = addressOf(HERE, { pathname: "hidden_database" });
      expect(await refusalOf(url)).toBe("(database … does not exist).");
    });

    test("a role that is not there", async () => {
      const said = await refusalOf(addressOf(HERE, { username: "hidden_role" }));
      expect(said).toBe("(role … does not exist).");
    });

    test("nobody who listens", async () => {
      const url = addressOf(HERE, { port: "1", username: "hidden_role", password: "hidden_word" });
      expect(await refusalOf(url)).toMatch(/^\((?!The operation).+\)\.$/);
    });

    test("a host that has no name", async () => {
      const url = "postgres://hidden_role:hidden_word@hidden.invalid/hidden_database";
      expect(await refusalOf(url)).toMatch(/^\(.+\)\.$/);
    });

    test("a role without rights", async () => {
      const { owner, admin } = await createRole(HERE, "");
      await (await start({ DATABASE_URL: admin })).stop();
      expect(await refusalOf(owner)).toBe("(permission denied for table items).");
    });

    test("a role that may not create the table", async () => {
      const { owner } = await createRole(HERE, "");
      const foreign = addressOf(await createDatabase(HERE), { username: new URL(owner).username });
      expect(await refusalOf(foreign)).toBe("(permission denied for schema public).");
    });

    test("an encoding that does not hold every character", async () => {
      const how = "encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'";
      expect(await refusalOf(await createDatabase(HERE, how))).toMatch(/LATIN1/);
    });

    test("an empty database that takes no writes", async () => {
      const store = await createDatabase(HERE);
      await setOf(store, "default_transaction_read_only = on");
      expect(await refusalOf(store)).toMatch(
        /^\(cannot execute .+ in a read-only transaction\)\.$/,
      );
      await query(HERE, `alter database ${nameOf(store)} reset default_transaction_read_only`);
    });

    test.each(["?max=none", "?max=0", "?sslmode=loud"])(
      "what the client does not take: %s",
      async (search) => {
        const option = search.slice(1, search.indexOf("="));
        expect(await refusalOf(addressOf(HERE, { search }))).toContain(option);
      },
    );
  },
);

// ── Tools ────────────────────────────────────────────────────────────────────────────────────────

const nameOf = (store: string) => new URL(store).pathname.slice(1);

/** Sets a default of a database, and lets every connection begin anew, so that it counts. */
async function setOf(store: string, setting: string) {
  await query(HERE, `alter database ${nameOf(store)} set ${setting}`);
  await query(
    HERE,
    `select pg_terminate_backend(pid) from pg_stat_activity
    where datname = '${nameOf(store)}' and state = 'idle'`,
  );
}
