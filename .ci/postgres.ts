#!/usr/bin/env bun
/**
 * server.ts on PostgreSQL as it is met in the field, on Linux.
 *
 *     bun .ci/postgres.ts pooler      fifty clients, then the whole suite, through PgBouncer
 *     bun .ci/postgres.ts failover    a primary is killed under load, and its replica promoted
 *
 * Nothing here is a mock. The databases are made by PostgreSQL's own programs in a temporary
 * folder, on free ports, and are gone at the end; no other database is touched. As root on Debian
 * it installs PostgreSQL and PgBouncer where they are missing. The last two lines are those of
 * `bun test`, the suite counted in; the exit code is 0 where nothing failed.
 */
import { SQL } from "bun";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const CLIENTS = 50;
const TIME_LIMIT = 60_000; // of one command, the suite aside

// ── Through a pooler ── one server connection, then four, for fifty clients of two servers ───────

/** In transaction mode each transaction may run on another connection to the database. */
async function pooler() {
  const primary = await startPrimary();
  const direct = await createDatabase(primary, "direct");
  await readAndWrite([await startServer(direct), await startServer(direct)], direct, "directly");

  for (const size of [1, 4]) {
    const where = `through a pool of ${size}`;
    const store = await createDatabase(primary, `pool_${size}`);
    const through = { ...store, port: await startPooler(primary, size) };
    const servers = [await startServer(through), await startServer(through)];
    await readAndWrite(servers, store, where);
    await writeToLocked(servers, store, where);
    if (size === 4) await suite(url({ ...through, name: "postgres" }));
  }
}

/** Each client owns its items, so it knows every answer that it must get, and the table's end. */
async function readAndWrite(servers: Server[], store: Database, where: string) {
  const expected: Record<string, string> = { 1: "apple", 2: "banana" };
  const wrong: string[] = [];
  let answers = 0;
  const begin = performance.now();
  await clients(async (client) => {
    async function expects(status: number, item: string, ...[method, path, json]: Request) {
      // The next request goes to the other server: what one has acknowledged, both know.
      const server = servers[answers++ % servers.length] as Server;
      const reply = await ask(server, method, path, json);
      const isRight = reply.status === status && reply.item === item;
      if (!isRight) wrong.push(`${reply.status} to ${method} ${path && "/:id"}`);
      return isRight;
    }
    for (let turn = 0; performance.now() < begin + 3000; turn++) {
      const id = `${client}-${turn}`;
      if (!(await expects(201, "", "POST", "", { id, name: "new" }))) continue;
      expected[id] = "new";
      await expects(200, "new", "GET", `/${id}`);
      await expects(200, "apple", "GET", "/1");
      if (await expects(200, "", "PUT", `/${id}`, { name: "changed" })) expected[id] = "changed";
      await expects(200, "changed", "GET", `/${id}`);
      await expects(200, "banana", "GET", "/2");
      if (turn % 2 === 0) continue;
      if (await expects(204, "", "DELETE", `/${id}`)) delete expected[id];
      await expects(404, "", "GET", `/${id}`);
    }
  });
  const seconds = (performance.now() - begin) / 1000;

  const rows = await query(store, "select id, name from items");
  const there: Record<string, string> = Object.fromEntries(rows.map(({ id, name }) => [id, name]));
  const ids = Object.keys({ ...expected, ...there });
  const differing = ids.filter((id) => expected[id] !== there[id]);
  console.log(`${where}: ${Math.round(answers / seconds)} requests a second`);
  check(
    `${where}: no answer but the right ones`,
    wrong.length === 0,
    `of ${answers}: ${tally(wrong)}`,
  );
  check(
    `${where}: the table holds what the answers said`,
    differing.length === 0,
    `${differing.length} of ${ids.length} items differ, the first is ${differing[0]}`,
  );
}

/** A 503 to a write says that it was not made, and will not be once the lock is gone. */
async function writeToLocked(servers: Server[], store: Database, where: string) {
  await using sql = new SQL(url(store), { max: 2 });
  const lock = await sql.reserve();
  await lock.unsafe("begin; lock table items in access exclusive mode");
  const begin = performance.now();
  const statuses = await clients(async (client) => {
    const server = servers[client % servers.length] as Server;
    return (await ask(server, "POST", "", { id: `locked-${client}`, name: "x" })).status;
  });
  const seconds = (performance.now() - begin) / 1000;
  await lock.unsafe("commit");
  await lock.release();

  // A statement that still waits in the pooler comes before these; one that runs is seen.
  const works = async (server: Server) =>
    (await ask(server, "PUT", "/1", { name: "apple" })).status === 200;
  for (const server of servers) await until(() => works(server), "A write after the lock");
  const busy = `select from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'`;
  await until(async () => (await sql.unsafe(busy)).length === 0, "The end of every statement");
  const made = await sql.unsafe("select id from items where id like 'locked-%'");
  check(
    `${where}: 503 within five seconds while the table is locked`,
    statuses.every((status) => status === 503) && seconds < 5,
    `${tally(statuses)} in ${seconds.toFixed(1)} s`,
  );
  check(
    `${where}: no write that was answered 503 is made later`,
    made.length === 0,
    `${made.length} of ${CLIENTS} were`,
  );
}

/** The suite makes its databases through the pooler too. */
async function suite(address: string) {
  clearTimeout(limit);
  const child = Bun.spawn([process.execPath, "test"], {
    cwd: dirname(import.meta.dir),
    env: { ...Bun.env, TEST_DATABASE_URL: address },
    stderr: "pipe",
  });
  running.defer(() => child.kill());
  let text = "";
  for await (const chunk of child.stderr) {
    process.stderr.write(chunk);
    text += new TextDecoder().decode(chunk);
  }
  const [pass, fail] = ["pass", "fail"].map((word) => RegExp(`^ *(\\d+) ${word}$`, "m").exec(text));
  passed += Number(pass?.[1] ?? 0);
  // One that ends without its summary has failed.
  failed += Number(fail?.[1] ?? 1);
}

// ── Failover ── what was acknowledged outlives the machine, and writes go on by themselves ───────

async function failover() {
  const primary = await startPrimary();
  const store = await createDatabase(primary, "failover");
  const address = await startAddress(primary.port);
  const server = await startServer({ ...store, port: address.port });
  const replica = await startReplica(primary);
  await askReplica({ ...store, port: replica.port });

  const acknowledged: string[] = [];
  const refused: string[] = [];
  const statuses: number[] = [];
  let [isOver, promoted, first] = [false, 0, 0];
  const writing = clients(async (client) => {
    for (let turn = 0; !isOver; turn++) {
      const id = `${client}-${turn}`;
      const { status } = await ask(server, "POST", "", { id, name: "x" });
      statuses.push(status);
      (status === 201 ? acknowledged : refused).push(id);
      if (promoted && status === 201) first ||= performance.now();
      // Retry-After asks for a second; asked more often, the answer is found to the millisecond.
      if (status !== 201) await Bun.sleep(20);
    }
  });

  await Bun.sleep(3000);
  const before = acknowledged.length;
  primary.kill();
  await Bun.sleep(2000);
  await query({ ...replica, name: "postgres" }, "select pg_promote()");
  address.to = replica.port;
  promoted = performance.now();
  await until(() => first > 0, "A write after the promotion");
  await Bun.sleep(2000);
  isOver = true;
  await writing;

  const rows = await query({ ...store, port: replica.port }, "select id from items");
  const there = new Set(rows.map(({ id }) => id));
  const lost = acknowledged.filter((id) => !there.has(id));
  const kept = refused.filter((id) => there.has(id));
  const milliseconds = Math.round(first - promoted);
  console.log(`failover: ${tally(statuses)}; ${before} acknowledged before the primary was killed`);
  console.log(`failover: the first write ${milliseconds} ms after the promotion`);
  console.log(`failover: ${kept.length} answered 503 are there: cut off between commit and answer`);
  check(
    "failover: no acknowledged write is lost",
    before > 0 && lost.length === 0,
    `${lost.length} of ${acknowledged.length} are, the first is ${lost[0]}`,
  );
  check(
    "failover: nothing but 201 and 503, and no connection that breaks",
    statuses.every((status) => status === 201 || status === 503),
    tally(statuses),
  );
  check(
    "failover: writes go on within five seconds, without a restart",
    milliseconds < 5000,
    `the first came after ${milliseconds} ms`,
  );
}

/** A replica that is not promoted takes no writes, but it can read. */
async function askReplica(store: Database) {
  try {
    const server = await startServer(store);
    const read = await ask(server, "GET", "/1");
    const write = await ask(server, "POST", "", { id: "replica", name: "x" });
    const answers = [read.status, write.status, (await ask(server, "GET", "/1")).status];
    check("a replica: 200 to reads, 503 to writes", `${answers}` === "200,503,200", `${answers}`);
  } catch (error) {
    check("a replica: 200 to reads, 503 to writes", false, `${error}`);
  }
}

// ── What is started ── each in the temporary folder and on a free port; ended in reverse ─────────

type Database = { port: number; name: string };
type Server = { url: string };

const running = new AsyncDisposableStack();
const FOLDER = mkdtempSync(join(tmpdir(), "items-postgres-"));
running.defer(() => rmSync(FOLDER, { recursive: true, force: true }));

async function startPrimary() {
  const folder = join(FOLDER, "primary");
  await run("initdb", "-D", folder, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale");
  return startPostgres(folder);
}

/** A copy that follows the primary. From here on a commit waits until both of them have it. */
async function startReplica(primary: { port: number }) {
  const folder = join(FOLDER, "replica");
  const source = `host=127.0.0.1 port=${primary.port} user=postgres`;
  await run("pg_basebackup", "-D", folder, "-d", source, "-c", "fast", "-R");
  const replica = await startPostgres(folder);
  // Set after the copy was made: once promoted, it waits for nobody.
  const admin = { ...primary, name: "postgres" };
  await query(admin, "alter system set synchronous_standby_names = '*'");
  await query(admin, "select pg_reload_conf()");
  const synchronous = "select from pg_stat_replication where sync_state = 'sync'";
  await until(async () => (await query(admin, synchronous)).length === 1, "The replica");
  return replica;
}

async function startPostgres(folder: string) {
  const port = await freePort();
  const settings = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=300",
  ];
  const options = settings.flatMap((each) => ["-c", each]);
  const child = start("postgres", "-D", folder, "-p", `${port}`, ...options);
  await until(() => isUp(port), "PostgreSQL");

  /** As a power cut does: all its processes at once, none of which says or writes another byte. */
  function kill() {
    const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
    const shared = readFileSync(join(folder, "postmaster.pid"), "utf8").split("\n")[6] ?? "";
    Bun.spawnSync(["kill", "-KILL", `${child.pid}`, ...children.trim().split(" ")]);
    // The one thing that would be left of it on this machine: `key id` of its shared memory.
    Bun.spawnSync(["ipcrm", "-m", shared.trim().split(/ +/)[1] ?? ""]);
  }
  return { port, kill };
}

async function startPooler({ port: database }: { port: number }, size: number) {
  const port = await freePort();
  const file = join(FOLDER, `pgbouncer-${size}.ini`);
  // Of its own accord it tries a database that was away only every 15 seconds, and lets a client
  // wait two minutes for one that is gone; the suite has both, and asks whether the server is back.
  const settings = `[databases]
    * = host=127.0.0.1 port=${database} user=postgres
    [pgbouncer]
    listen_addr = 127.0.0.1
    listen_port = ${port}
    unix_socket_dir =
    auth_type = any
    pool_mode = transaction
    default_pool_size = ${size}
    max_client_conn = 1000
    server_login_retry = 0.1
    query_wait_timeout = 6`;
  await Bun.write(file, settings.replace(/^ +/gm, ""));
  start("pgbouncer", file);
  await until(() => isUp(port), "PgBouncer");
  return port;
}

/** What an operator can point to another machine: a virtual address, a proxy, a name. */
async function startAddress(to: number) {
  const listener = createServer((client) => {
    const target = connect(address.to, "127.0.0.1");
    client.pipe(target).pipe(client);
    client.on("error", () => target.destroy());
    target.on("error", () => client.destroy());
  });
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const address = { port: (listener.address() as AddressInfo).port, to };
  return address;
}

/** `bun server.ts`, every setting empty (so that no .env counts) but these. */
async function startServer(store: Database): Promise<Server> {
  const none = "HOST TOKEN READ_TOKEN ALLOWED_HOSTS CORS_ORIGIN RATE DELAY REHEARSE LOG".split(" ");
  const empty = Object.fromEntries(none.map((name) => [name, ""]));
  const log = Bun.file(join(FOLDER, `server-${serial++}.log`));
  const child = Bun.spawn([process.execPath, "server.ts"], {
    cwd: dirname(import.meta.dir),
    env: { ...Bun.env, ...empty, PORT: "0", DATABASE_URL: url(store) },
    stdout: log,
    stderr: log,
  });
  endWithUs(child);
  let address: string | undefined;
  await until(async () => {
    address = /http:\/\/\S+(?=\n)/.exec(await log.text())?.[0];
    return address !== undefined || child.exitCode !== null;
  }, "The server");
  if (!address) throw new Error(`it did not start: ${(await log.text()).trim()}`);
  return { url: address };
}
let serial = 0;

async function createDatabase({ port }: { port: number }, name: string): Promise<Database> {
  await query({ port, name: "postgres" }, `create database ${name}`);
  return { port, name };
}

// ── Tools ── programs, requests, counts ──────────────────────────────────────────────────────────

/** The path of a program; Debian keeps PostgreSQL's own out of PATH, a folder for each version. */
function program(name: string) {
  const folders = [
    ...new Bun.Glob("postgresql/*/bin").scanSync({ cwd: "/usr/lib", onlyFiles: false }),
  ];
  const byVersion = new Intl.Collator("en", { numeric: true }).compare;
  const newest = folders
    .sort(byVersion)
    .reverse()
    .map((folder) => `/usr/lib/${folder}`);
  return Bun.which(name, { PATH: [Bun.env.PATH, ...newest, "/usr/sbin"].join(":") });
}

/** Installs what is missing. Both programs refuse to run as root: there, postgres runs them. */
async function prepare() {
  const missing = Object.entries({ initdb: "postgresql", pgbouncer: "pgbouncer" })
    .filter(([name]) => !program(name))
    .map(([, debian]) => debian);
  if (missing.length > 0) {
    const command = `apt-get install -y ${missing.join(" ")}`;
    if (!isRoot) throw new Error(`To be installed first: ${command}`);
    const { exitCode, stderr } = Bun.spawnSync(["sh", "-c", `apt-get update && ${command}`]);
    if (exitCode !== 0) throw new Error(`${command}: ${stderr}`);
  }
  if (isRoot) Bun.spawnSync(["chown", "postgres", FOLDER]);
}
const isRoot = process.getuid?.() === 0;

/** Starts a program in the folder, with a log of its own. */
function start(name: string, ...options: string[]) {
  const user = isRoot ? ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] : [];
  const log = Bun.file(join(FOLDER, `${name}-${serial++}.log`));
  const command = [...user, program(name) ?? name, ...options];
  const child = Bun.spawn(command, { cwd: FOLDER, stdout: log, stderr: log });
  endWithUs(child);
  return child;
}

async function run(name: string, ...options: string[]) {
  if ((await start(name, ...options).exited) !== 0) throw new Error(`${name} failed`);
}

/** SIGQUIT ends all of them at once; PostgreSQL still gives its shared memory back. */
const endWithUs = (child: Bun.Subprocess) =>
  running.defer(async () => {
    child.kill("SIGQUIT");
    await child.exited;
  });

async function until(isSo: () => boolean | Promise<boolean>, what: string) {
  for (const end = performance.now() + 20_000; !(await isSo()); await Bun.sleep(10))
    if (performance.now() > end) throw new Error(`${what} did not come within 20 seconds`);
}

/** A port that was free a moment ago, for programs that cannot pick one themselves. */
async function freePort() {
  const listener = createServer();
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const { port } = listener.address() as AddressInfo;
  await new Promise((resolve) => listener.close(resolve));
  return port;
}

const url = ({ port, name }: Database) => `postgres://postgres@127.0.0.1:${port}/${name}`;

async function query(store: Database, statement: string) {
  await using sql = new SQL(url(store), { max: 1, connectionTimeout: 2 });
  return (await sql.unsafe(statement)) as Record<string, string>[];
}

const isUp = (port: number) =>
  query({ port, name: "postgres" }, "select").then(
    () => true,
    () => false,
  );

type Request = [method: string, path: string, json?: Record<string, string>];

/** Status and item of an answer; a connection that breaks counts as status 0. */
async function ask(server: Server, ...[method, path, json]: Request) {
  const headers = { "content-type": "application/json" };
  const body = json && JSON.stringify(json);
  try {
    const response = await fetch(`${server.url}/items${path}`, { method, headers, body });
    const text = await response.text();
    return { status: response.status, item: String((text && JSON.parse(text).item) ?? "") };
  } catch {
    return { status: 0, item: "" };
  }
}

const clients = <T>(each: (client: number) => Promise<T>) =>
  Promise.all(Array.from({ length: CLIENTS }, (_, client) => each(client)));

/** How often each came: `201 ×17867, 503 ×8`. */
const tally = (each: (string | number)[]) =>
  [...Map.groupBy(each, String)].map(([text, { length }]) => `${text} ×${length}`).join(", ");

function check(title: string, isSo: boolean, otherwise: string) {
  console.log(isSo ? `(pass) ${title}` : `(fail) ${title}: ${otherwise}`);
  if (isSo) passed++;
  else failed++;
}
let [passed, failed] = [0, 0];

// ── Start ── whatever happens, everything that was started is ended ──────────────────────────────

async function end(reason = "") {
  if (reason) check("it runs to its end", false, reason);
  await running.disposeAsync();
  console.log(`\n ${passed} pass\n ${failed} fail`);
  process.exit(failed === 0 ? 0 : 1);
}
const limit = setTimeout(end, TIME_LIMIT, `not done within ${TIME_LIMIT / 1000} seconds`);
process.on("SIGINT", () => end("interrupted")).on("SIGTERM", () => end("interrupted"));

const command = { pooler, failover }[process.argv[2] ?? ""];
if (!command) await end("say which: bun .ci/postgres.ts pooler, or failover");
else
  await prepare()
    .then(command)
    .then(
      () => end(),
      ({ message }) => end(message),
    );
