/**
 * PostgreSQL as operators set it up: behind a pooler or a balancer, with a replica that falls
 * silent or takes over, with passwords and TLS. Each cluster is made here, by PostgreSQL's own
 * programs, and gone at the end.
 *
 *     bun test ./.ci/cluster.test.ts     on Linux; installs what is missing, on Debian as root
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { fresh, ITEMS, type Live, lock, runToItsEnd, sent, start } from "../server.test";
import {
  addressOf,
  type Cluster,
  createDatabase,
  each,
  endAll,
  nothingRuns,
  query,
  startAddress,
  startBalancer,
  startCluster,
  startPooler,
  startReplica,
  turnOf,
  until,
} from "./clusters";

const CLIENTS = 20;
afterAll(endAll);

const nameOf = (url: string) => new URL(url).pathname;

/** Two servers on the same store: what one has acknowledged, both know. */
const startTwo = (url: string) => each(2, () => start({ DATABASE_URL: url, LOG: "off" }));

/** Asks; the status, 0 where there is no answer. */
const ask = (to: Live, request: string, json?: unknown) => {
  const [method, path] = request.split(" ");
  return sent(`${method} ${to.url}${path}`, json);
};
const post = (to: Live, id: string) => ask(to, `POST ${ITEMS}`, fresh({ id, name: "x" }));
const put = (to: Live, id: string, name: string) => ask(to, `PUT ${ITEMS}/${id}`, fresh({ name }));

/** Each client owns its items, so it knows every answer that it must get, and the table's end. */
async function readAndWrite(servers: Live[], store: string, turns: number) {
  const expected = new Map([
    ["1", "apple"],
    ["2", "banana"],
  ]);
  const wrong: string[] = [];
  let asked = 0;
  await each(CLIENTS, async (client) => {
    async function expects(answer: string, request: string, json?: unknown) {
      // The next request goes to the other server.
      const got = await turnOf(servers, asked++).answer(request, { fleeting: true, json });
      if (got !== answer) wrong.push(`${got} to ${request}, not ${answer}`);
    }
    for (let turn = 0; turn < turns; turn++) {
      const id = `${client}-${turn}`;
      const [own, is] = [`${ITEMS}/${id}`, (name: string) => `200 {"item":"${name}"}`];
      await expects('201 {"message":"Item created"}', `POST ${ITEMS}`, fresh({ id, name: "new" }));
      await expects(is("new"), `GET ${own}`);
      await expects(is("apple"), `GET ${ITEMS}/1`);
      await expects('200 {"message":"Item updated"}', `PUT ${own}`, fresh({ name: "changed" }));
      await expects(is("changed"), `GET ${own}`);
      expected.set(id, "changed");
      if (turn % 2 === 0) continue;
      await expects("204 ", `DELETE ${own}`);
      await expects('404 {"error":"Item not found"}', `GET ${own}`);
      expected.delete(id);
    }
  });
  expect(wrong).toEqual([]);
  const rows = await query(store, "select id, document from items");
  const there = rows.map(({ id = "", document = "{}" }) => [id, JSON.parse(document).name]);
  expect(Object.fromEntries(there)).toEqual(Object.fromEntries(expected));
}

/** A 503 to a write says that it was not made, and will not be once the lock is gone. */
async function writeToLocked(servers: Live[], store: string) {
  const unlock = await lock(store, "access exclusive");
  const statuses = await each(CLIENTS, (client) =>
    post(turnOf(servers, client), `locked-${client}`),
  );
  expect([...new Set(statuses)]).toEqual([503]);
  await unlock();
  // A statement that still waits in the pooler comes before these; one that runs is seen.
  for (const to of servers) await until(async () => (await put(to, "1", "apple")) === 200);
  await nothingRuns(store);
  expect(await query(store, "select id from items where id like 'locked-%'")).toHaveLength(0);
}

/** Many clients that create items, until they are told to stop. */
function load(to: Live) {
  const answers = new Map<string, number>();
  let isOver = false;
  const done = each(CLIENTS, async (client) => {
    for (let turn = 0; !isOver; turn++) {
      const status = await post(to, `${client}-${turn}`);
      answers.set(`${client}-${turn}`, status);
      if (status === 201) created++;
    }
  });
  let created = 0;
  return {
    /** Waits until so many more are created. */
    more(count: number) {
      const most = created + count;
      return until(async () => created >= most);
    },
    async stop() {
      isOver = true;
      await done;
      const idsOf = (status: number) =>
        [...answers].filter(([, each]) => each === status).map(([id]) => id);
      return { created: idsOf(201), refused: idsOf(503), statuses: [...new Set(answers.values())] };
    },
  };
}

const idsIn = async (store: string) =>
  new Set((await query(store, "select id from items")).map(({ id }) => id));

// ── A pooler ─────────────────────────────────────────────────────────────────────────────────────

describe("PgBouncer", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster();
  });

  test("directly, for comparison: no answer but the right ones", async () => {
    const store = await createDatabase(cluster.url);
    await readAndWrite(await startTwo(store), store, 3);
  });

  test.each([
    [1, "transaction"],
    [4, "transaction"],
    [5, "session"],
  ] as const)("%i connections, a %s each: right answers, none made later", async (size, mode) => {
    const store = await createDatabase(cluster.url);
    const pooler = await startPooler(cluster, size, mode);
    const servers = await startTwo(addressOf(pooler, { pathname: nameOf(store) }));
    await readAndWrite(servers, store, mode === "session" ? 1 : 3);
    await writeToLocked(servers, store);
  });
});

// ── A replica ────────────────────────────────────────────────────────────────────────────────────

describe("a synchronous replica", () => {
  test("that falls silent and goes on: what was answered 503 is not made", async () => {
    const primary = await startCluster();
    const replica = await startReplica(primary);
    const store = await createDatabase(primary.url);
    const to = await start({
      DATABASE_URL: addressOf(store, { search: "?max=4" }),
      LOG: "off",
    });
    await each(8, () => ask(to, `GET ${ITEMS}/1`));

    replica.freeze();
    const statuses = new Map<string, number>();
    const writing = each(25, async (client) => {
      statuses.set(`${client}`, await post(to, `late-${client}`));
    });
    // Four commits wait for the replica, and all others for one of their connections: in vain.
    await until(async () => statuses.size === 21);
    replica.thaw();
    await writing;
    const made = [...statuses].filter(([, status]) => status === 201).map(([id]) => `late-${id}`);
    expect([...new Set(statuses.values())].sort()).toEqual([201, 503]);
    expect(made).toHaveLength(4);
    await until(async () => (await put(to, "1", "apple")) === 200);
    await nothingRuns(store);
    const late = await query(store, "select id from items where id like 'late-%' order by id");
    expect(late.map(({ id }) => id)).toEqual(made.sort());
  });

  test("that takes over under load: no acknowledged write is lost, and writes go on", async () => {
    const primary = await startCluster();
    const store = await createDatabase(primary.url);
    const address = await startAddress(primary.port);
    const to = await start({
      DATABASE_URL: addressOf(store, { port: address.port }),
      LOG: "off",
    });
    const replica = await startReplica(primary);
    const standby = addressOf(store, { port: `${replica.port}` });

    const reading = await start({ DATABASE_URL: standby });
    expect(await reading.status(`GET ${ITEMS}/1`)).toBe(200);
    expect(await reading.status(`POST ${ITEMS}`, { json: fresh({ id: "3" }) })).toBe(503);

    const writing = load(to);
    await writing.more(500);
    primary.kill();
    await query(replica.url, "select pg_promote()");
    address.to = replica.port;
    address.cut();
    await writing.more(500);
    const { created, refused, statuses } = await writing.stop();
    const there = await idsIn(standby);
    expect(created.filter((id) => !there.has(id))).toEqual([]);
    // These were cut off between their commit and its answer: at most one a connection.
    expect(refused.filter((id) => there.has(id)).length).toBeLessThanOrEqual(8);
    // A promotion that is quick enough is waited for, and nobody is refused.
    expect(statuses.filter((status) => ![201, 503].includes(status))).toEqual([]);
    await reading.stop();
  });
});

// ── A balancer ───────────────────────────────────────────────────────────────────────────────────

test("HAProxy before it, restarted under load: what was acknowledged is there, few are refused", async () => {
  const cluster = await startCluster();
  const store = await createDatabase(cluster.url);
  const balancer = await startBalancer(cluster);
  const through = addressOf(balancer.url, { pathname: nameOf(store) });
  const to = await start({ DATABASE_URL: through, LOG: "off" });
  const writing = load(to);
  for (let turn = 0; turn < 3; turn++) {
    await writing.more(300);
    await balancer.restart();
  }
  await writing.more(300);
  const { created, refused, statuses } = await writing.stop();
  const there = await idsIn(store);
  expect(created.filter((id) => !there.has(id))).toEqual([]);
  // Of each connection, one request may have been decided when it broke.
  expect(refused.length).toBeLessThanOrEqual(3 * 8);
  expect(statuses.filter((status) => ![201, 503].includes(status))).toEqual([]);
});

// ── A password, and TLS ──────────────────────────────────────────────────────────────────────────

const RULE =
  "DATABASE_URL may only be one that opens: sqlite://FILE, sqlite://:memory: or " +
  "postgres://USER@HOST/DATABASE";

describe("a cluster that asks for a password and for TLS", () => {
  let [url, certificate] = ["", ""];
  beforeAll(async () => {
    const cluster = await startCluster();
    const store = await createDatabase(cluster.url);
    await query(
      store,
      "create role keeper login password 'right'",
      "grant all on schema public to keeper",
    );
    certificate = join(cluster.folder, "server.crt");
    const key = join(cluster.folder, "server.key");
    sh(`openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
      -addext subjectAltName=DNS:localhost -keyout ${key} -out ${certificate}`);
    sh(
      `chown --reference=${cluster.folder} ${key} && chmod 600 ${key} && chmod 644 ${certificate}`,
    );
    await Bun.write(join(cluster.folder, "pg_hba.conf"), "hostssl all all all scram-sha-256\n");
    await query(store, "alter system set ssl = on", "select pg_reload_conf()");
    // Where names are resolved, localhost may be an address on which nobody listens.
    url = addressOf(store, { username: "keeper", password: "right" });
    await until(async () => (await refusalOf(url)).includes("no encryption"));
  });

  test("no TLS: the start is refused, and says so without a name", async () => {
    const said = await refusalOf(url);
    expect(said).toBe("(no pg_hba.conf entry for host …, user …, database …, no encryption).");
  });

  test("a wrong password: the start is refused, and does not show it", async () => {
    const wrong = addressOf(url, { password: "hidden", search: "?sslmode=require" });
    expect(await refusalOf(wrong)).toBe("(password authentication failed for user …).");
  });

  test("sslmode=require: it is served, over TLS", async () => {
    const to = await start({ DATABASE_URL: addressOf(url, { search: "?sslmode=require" }) });
    expect(await to.answer(`GET ${ITEMS}/1`)).toBe('200 {"item":"apple"}');
    expect(await to.status(`PUT ${ITEMS}/1`, { json: fresh({ name: "apple" }) })).toBe(200);
  });

  test("sslmode=verify-full: with sslrootcert and the name in the certificate, and only so", async () => {
    const known = `?sslmode=verify-full&sslrootcert=${certificate}`;
    const here = Object.assign(new URL(url), { hostname: "localhost" }).href;
    const to = await start({ DATABASE_URL: addressOf(here, { search: known }) });
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    const unknown = addressOf(here, { search: "?sslmode=verify-full" });
    expect(await refusalOf(unknown)).toMatch(/^\(.*certificate\)\.$/);
    const unnamed = addressOf(url, { search: known });
    expect(await refusalOf(unnamed)).toMatch(/^\(.*does not match certificate's altnames\)\.$/);
  });

  async function refusalOf(address: string) {
    const { code, stderr } = await runToItsEnd({ DATABASE_URL: address });
    if (code !== 1) return "";
    expect(stderr.startsWith(RULE)).toBe(true);
    for (const part of ["keeper", "right", "hidden", "localhost", "127.0.0.1"])
      expect(stderr).not.toContain(part);
    return stderr.slice(RULE.length).trim();
  }
});

function sh(command: string) {
  const { exitCode, stderr } = Bun.spawnSync(["sh", "-c", command]);
  if (exitCode !== 0) throw new Error(`${command}: ${stderr}`);
}
