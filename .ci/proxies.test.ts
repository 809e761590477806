/**
 * What stands in between, for real: each program is started here, on a free port and with the
 * configuration that is written here, and ends with these tests.
 *
 *     bun test --isolate ./.ci/proxies.test.ts
 *
 * nginx, Caddy, HAProxy, Squid and Varnish are Debian's packages, http-proxy is npm's. One that is
 * missing is skipped with a line; where CI=true its tests fail.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  can,
  isListening,
  type Live,
  newStore,
  reader,
  type Settings,
  start,
} from "../server.test";
import { freePort, LEASH, startNginx } from "./nginx";

const isCI = Bun.env.CI === "true";
const needs = (name: string, what: string) => test.if(can([name], what) || isCI);
const withNginx = needs("nginx", "a plain nginx");
const withCaddy = needs("caddy", "TLS and a prefix by Caddy");
const withHaproxy = needs("haproxy", "HAProxy, its check and a restart under load");
const withSquid = needs("squid", "Squid's cache");
const withVarnish = needs("varnishd", "Varnish's cache");
const withPython = needs("python3", "Python's urllib");
const httpProxy = join(import.meta.dir, "../node_modules/http-proxy");
const hasHttpProxy = existsSync(httpProxy) && can(["node"], "http-proxy");
if (!existsSync(httpProxy)) console.log("Skipped: http-proxy, for it is not installed.");
const withHttpProxy = test.if(hasHttpProxy || isCI);
const chromium = ["chromium", "google-chrome"].find((name) => Bun.which(name)) ?? "chromium";
const hasAll = [chromium, "nginx", "caddy"].every((name) =>
  can([name], "the docs page behind them"),
);
const withBrowser = test.if(hasAll || isCI);

const FOLDER = mkdtempSync(join(tmpdir(), "items-proxies-"));
const ends: (() => Promise<unknown>)[] = [];
afterAll(async () => {
  for (const end of ends) await end();
  rmSync(FOLDER, { recursive: true });
});

// ── An answer reaches the client ── also one who closes, and is still sending when it is there ──

/** What is refused, or has no use for a body: of each size the client must see this status. */
const SIZES = [30_000, 70_000, 300_000];
const AUTHORIZED = "Authorization: Bearer write";
const JSON_TYPE = "Content-Type: application/json";
const UNREAD: [status: number, request: string, ...fields: string[]][] = [
  [200, "GET /items/1"],
  [204, "OPTIONS /items"],
  [400, "POST /items?%", JSON_TYPE],
  [401, "POST /items", JSON_TYPE],
  [404, "POST /nowhere"],
  [404, "DELETE /items/9", AUTHORIZED],
  [405, "PUT /items"],
  [413, "POST /items", JSON_TYPE, AUTHORIZED],
  [415, "POST /items", "Content-Type: text/plain", AUTHORIZED],
];
const statusOf = (status: number, size: number) => (status === 413 && size < 65_537 ? 400 : status);

/** Asks a port all of them, ten at a time, and gives what came and was not right. */
async function askAll(port: number, version: string, isChunked = false, closing = true) {
  const asked = UNREAD.flatMap(([status, request, ...fields]) =>
    SIZES.flatMap((size) => Array.from({ length: 4 }, () => ({ fields, request, size, status }))),
  );
  const wrong: string[] = [];
  async function work() {
    for (let next = asked.pop(); next; next = asked.pop()) {
      const { fields, request, size, status } = next;
      const close = closing ? "Connection: close" : "";
      const head = [`${request} ${version}`, `Host: 127.0.0.1:${port}`, ...fields, close];
      const came = await statusAt(port, head.filter(Boolean), size, isChunked);
      if (came !== statusOf(status, size)) wrong.push(`${came} to ${request}, ${size} bytes`);
    }
  }
  await Promise.all(Array.from({ length: 10 }, work));
  return wrong;
}

/** Sends a body in parts, to its end or until nobody takes more; 0 if no answer comes. */
async function statusAt(port: number, head: string[], size: number, isChunked: boolean) {
  const framing = isChunked ? "Transfer-Encoding: chunked" : `Content-Length: ${size}`;
  const { promise, resolve } = Promise.withResolvers<string>();
  const socket = connect(port, "127.0.0.1").setEncoding("latin1");
  let text = "";
  socket.on("error", () => {}).on("close", () => resolve(text));
  socket.on("data", (chunk: string) => {
    text += chunk;
    if (text.includes("\r\n\r\n")) resolve(text);
  });
  const write = (bytes: string) => new Promise((sent) => socket.write(bytes, sent));
  await write([...head, framing, "\r\n"].join("\r\n"));
  for (let left = size; left > 0 && !socket.destroyed; left -= 10_000)
    await write(isChunked ? `2710\r\n${"x".repeat(10_000)}\r\n` : "x".repeat(10_000));
  if (isChunked) await write("0\r\n\r\n");
  const answer = await promise;
  socket.destroy();
  return Number(/^HTTP\/1\.1 (\d{3})/.exec(answer)?.[1] ?? 0);
}

describe("an answer reaches who is still sending", () => {
  test("on a socket, with HTTP/1.1 and 1.0, with a length and in chunks", async () => {
    const { port } = await start({ TOKEN: "write", LOG: "off" });
    expect(await askAll(port, "HTTP/1.1")).toEqual([]);
    expect(await askAll(port, "HTTP/1.1", true)).toEqual([]);
    expect(await askAll(port, "HTTP/1.0")).toEqual([]);
    expect(await askAll(port, "HTTP/1.0", false, false)).toEqual([]);
    expect(await askAll(port, "HTTP/1.1", false, false)).toEqual([]);
  });

  withNginx("through a plain nginx, which collects a body or passes it on", async () => {
    const { url } = await start({ TOKEN: "write", LOG: "off" });
    for (const more of ["", "proxy_request_buffering off;"]) {
      const port = await nginx(`proxy_pass ${url}; ${more}`);
      expect(await askAll(port, "HTTP/1.1")).toEqual([]);
      expect(await askAll(port, "HTTP/1.1", true)).toEqual([]);
    }
  });

  withHttpProxy("through http-proxy, which front-end tools have", async () => {
    const { url } = await start({ TOKEN: "write", LOG: "off" });
    const code = `const proxy = require(process.argv[1]).createProxyServer({ target: "${url}" });
      proxy.on("error", (error, request, response) => response.writeHead(502).end());
      const server = require("http").createServer((request, response) => proxy.web(request, response));
      server.listen(0, "127.0.0.1", () => console.log(server.address().port + ";"));`;
    const { said } = launch(["node", "-e", code, httpProxy]);
    const port = Number(await said.until(/\d+(?=;)/));
    expect(await askAll(port, "HTTP/1.1")).toEqual([]);
  });

  withPython("to Python's urllib", async () => {
    const { url } = await start({ TOKEN: "write", LOG: "off" });
    const code = `import json, sys, urllib.error, urllib.request
for status, request, fields, size in json.loads(sys.argv[1]):
    method, path = request.split(" ")
    headers = dict(field.split(": ") for field in fields)
    body = b"x" * size
    to = urllib.request.Request("${url}" + path, data=body, method=method, headers=headers)
    try: came = urllib.request.urlopen(to).status
    except urllib.error.HTTPError as error: came = error.code
    except Exception as error: came = repr(error)
    if came != status: print(came, request, size)
print("asked")`;
    const asked = UNREAD.flatMap(([status, request, ...fields]) =>
      [...SIZES, 2_000_000].map((size) => [statusOf(status, size), request, fields, size]),
    );
    const { stdout, stderr } = Bun.spawnSync(["python3", "-c", code, JSON.stringify(asked)]);
    expect([stdout.toString(), stderr.toString()]).toEqual(["asked\n", ""]);
  });
});

// ── What a proxy changes ── TLS, a prefix, Host, compression ───────────────────────────────────

describe("what a proxy changes", () => {
  withCaddy("TLS and a prefix, by Caddy: the redirect of / stays below it", async () => {
    const { ca, url } = await caddy(await start({ LOG: "off" }));
    const ask = (path: string, init: RequestInit = {}) =>
      fetch(url + path, { ...init, redirect: "manual", tls: { ca } });
    expect(await (await ask("/items/1")).text()).toBe('{"item":"apple"}');
    const { headers, status } = await ask("/");
    const { href } = new URL(headers.get("location") ?? "", `${url}/`);
    expect([status, href]).toEqual([302, `${url}/swagger`]);
    const body = '{"id":"3","name":"cherry"}';
    const made = await ask("/items", { method: "POST", body, headers: JSON_FIELDS });
    // A path, as the server itself has it: the README says what a prefix does to it.
    expect([made.status, made.headers.get("location")]).toEqual([201, "/items/3"]);
    const tag = made.headers.get("etag") ?? "";
    expect((await ask("/items/3", { headers: { "if-none-match": tag } })).status).toBe(304);
  });

  withNginx("a prefix, by nginx, which puts it before Location", async () => {
    const { url } = await start({ LOG: "off" });
    const port = await nginx(`proxy_pass ${url}/; proxy_redirect / /shop/;`, "/shop/");
    const to = `http://127.0.0.1:${port}/shop`;
    const made = await post(`${to}/items`, "3");
    // nginx makes it absolute, as it does with all that it rewrites.
    expect([made.status, made.headers.get("location")]).toEqual([201, `${to}/items/3`]);
  });

  withNginx("compression, by nginx: a tag is weak then, and good for reads only", async () => {
    const { url } = await start({ LOG: "off" });
    const zip = "gzip on; gzip_types application/json; gzip_min_length 1; gzip_proxied any;";
    const port = await nginx(`proxy_pass ${url};`, "/", zip);
    const to = `http://127.0.0.1:${port}/items/1`;
    const { headers } = await fetch(to, { headers: { "accept-encoding": "gzip" } });
    expect(headers.get("content-encoding")).toBe("gzip");
    const tag = headers.get("etag") ?? "";
    expect(tag).toStartWith('W/"');
    expect((await fetch(to, { headers: { "if-none-match": tag } })).status).toBe(304);
    const write = { method: "PUT", body: '{"name":"x"}' };
    const put = (match: string) =>
      fetch(to, { ...write, headers: { ...JSON_FIELDS, "if-match": match } });
    expect((await put(tag)).status).toBe(412);
    expect((await put(tag.slice(2))).status).toBe(200);
  });

  withNginx("Host, kept by nginx: a name that ALLOWED_HOSTS has, and 421 without", async () => {
    const host = { host: "items.example" };
    for (const ALLOWED_HOSTS of ["items.example", ""]) {
      const { url } = await start({ LOG: "off", ALLOWED_HOSTS });
      const port = await nginx(`proxy_pass ${url}; proxy_set_header Host $http_host;`);
      const answer = await fetch(`http://127.0.0.1:${port}/items/1`, { headers: host });
      expect(answer.status).toBe(ALLOWED_HOSTS ? 200 : 421);
    }
  });

  withBrowser("the docs page, executed behind both", async () => {
    const to = await start({ LOG: "off" });
    const port = await nginx(`proxy_pass ${to.url};`);
    const { url } = await caddy(to);
    expect(await execute(`http://127.0.0.1:${port}`)).toEqual(["200", "201"]);
    expect((await post(`${to.url}/items`, "3")).status).toBe(400); // it is there
    expect((await fetch(`${to.url}/items/3`, { method: "DELETE" })).status).toBe(204);
    expect(await execute(url)).toEqual(["200", "201"]);
  });
});

// ── A balancer ── its check, and a restart under load ──────────────────────────────────────────

describe("HAProxy", () => {
  withHaproxy("its check, without Host, passes with tokens and RATE too", async () => {
    const plain = await start({ LOG: "off" });
    const guarded = await start({ TOKEN: "write", READ_TOKEN: "look", RATE: "1" });
    const { said } = await haproxy([plain, guarded]);
    await said.until(/server items\/s0 succeeded.*code: 200/);
    await said.until(/server items\/s1 succeeded.*code: 401/);
    await guarded.stdout.until(/429 {2}GET {2}\/items/); // it is asked five times a second
    expect(said.text).not.toContain("failed");
    // One that is gone does not pass.
    await plain.stop();
    expect(await said.until(/Server items\/s0 is DOWN/)).not.toBe("");
    expect(said.text).not.toContain("items/s1 is DOWN");
    await guarded.stop("SIGKILL");
  });

  withHaproxy("a restart under load loses nothing that was acknowledged", async () => {
    const DATABASE_URL = await newStore();
    const settings: Settings = { DATABASE_URL, LOG: "off" };
    const [first, second] = [await start(settings), await start(settings)];
    const { said, url } = await haproxy([first, second]);
    const [made, refused, unsure]: [string[], string[], string[]] = [[], [], []];
    const reads = new Set<number>();
    let isOver = false;
    async function work(client: number) {
      for (let count = 0; !isOver; count += 1) {
        const id = `${client}-${count}`;
        const status = await post(`${url}/items`, id).then(
          ({ status }) => status,
          () => 0,
        );
        const list = status === 201 ? made : status === 503 ? refused : unsure;
        list.push(id);
        const { status: seen } = await fetch(`${url}/items/1`);
        reads.add(seen);
      }
    }
    const load = Array.from({ length: 8 }, (_, client) => work(client));
    expect(await first.stop()).toBe(0);
    await said.until(/Server items\/s0 is DOWN/);
    const again = await start({ ...settings, PORT: `${first.port}` });
    await said.until(/Server items\/s0 is UP/);
    isOver = true;
    await Promise.all(load);

    expect(made.length).toBeGreaterThan(0);
    expect([...reads]).toEqual([200]);
    const isThere = async (id: string) => (await again.status(`GET /items/${id}`)) === 200;
    for (const id of made) expect([id, await isThere(id)]).toEqual([id, true]);
    for (const id of refused) expect([id, await isThere(id)]).toEqual([id, false]);
    // A restart may reset a connection: few, and each is there or not, but answered 502.
    expect(unsure.length).toBeLessThan(made.length / 10);
    await Promise.all([again.stop(), second.stop()]);
  });
});

// ── Shared caches ── they keep an answer, ask whether it still holds, and are never emptied ─────

describe("a shared cache is right", () => {
  withSquid("Squid, after HEAD, 304, PUT, PATCH and DELETE", async () => {
    const port = freePort();
    const folder = mkdtempSync(join(FOLDER, "squid-"));
    const to = await start({ LOG: "off" });
    const config = `http_port 127.0.0.1:${port} accel defaultsite=localhost no-vhost
      cache_peer 127.0.0.1 parent ${to.port} 0 no-query originserver
      http_access allow all
      cache_mem 16 MB
      visible_hostname squid.test
      pinger_enable off
      shutdown_lifetime 0 seconds
      pid_filename none
      access_log none
      cache_log /dev/null
      coredump_dir none`;
    await Bun.write(join(folder, "squid.conf"), config);
    const name = `items${process.pid}`; // or two of them would share their memory
    const command = ["squid", "-N", "-d1", "-n", name, "-f", join(folder, "squid.conf")];
    await launch(command).until(() => isListening({ port }));
    await checkCache(`http://127.0.0.1:${port}`);
  });

  withVarnish("Varnish, after HEAD, 304, PUT, PATCH and DELETE", async () => {
    const port = freePort();
    const to = await start({ LOG: "off" });
    const command = `varnishd -F -j none -s malloc,16m -n ${mkdtempSync(join(FOLDER, "varnish-"))}`;
    const ports = ["-a", `127.0.0.1:${port}`, "-b", `127.0.0.1:${to.port}`];
    await launch([...command.split(" "), ...ports]).until(() => isListening({ port }));
    await checkCache(`http://127.0.0.1:${port}`);
  });
});

/** What any cache must keep to, for an item, a list and a part of the docs page. */
async function checkCache(url: string) {
  const ask = async (request: string, headers: Record<string, string> = {}, body?: string) => {
    const [method, path] = request.split(" ");
    const answer = await fetch(url + path, { method, headers, body });
    return { status: answer.status, text: await answer.text(), fields: answer.headers };
  };
  const write = (request: string, name: string) =>
    ask(request, JSON_FIELDS, JSON.stringify({ name }));
  const read = async (path = "/items/c") => (await ask(`GET ${path}`)).text;
  expect((await write("PUT /items/c", "one")).status).toBe(201);
  for (const path of ["/items/c", "/items?limit=1", "/swagger/ui.js"]) {
    const { fields, text } = await ask(`GET ${path}`);
    const tag = { "if-none-match": fields.get("etag") ?? "" };
    expect(await read(path)).toBe(text);
    expect((await ask(`HEAD ${path}`)).status).toBe(200);
    expect(await read(path)).toBe(text);
    // With the tag of what is there, a cache may answer either.
    expect([200, 304]).toContain((await ask(`HEAD ${path}`, tag)).status);
    expect(await read(path)).toBe(text);
    expect([200, 304]).toContain((await ask(`GET ${path}`, tag)).status);
    expect(await read(path)).toBe(text);
  }
  const { fields } = await ask("GET /items/c");
  expect((await write("PUT /items/c", "two")).status).toBe(200);
  expect(await read()).toBe('{"item":"two"}');
  const stale = await ask("GET /items/c", { "if-none-match": fields.get("etag") ?? "" });
  expect([stale.status, stale.text]).toEqual([200, '{"item":"two"}']);
  expect((await write("PATCH /items/c", "three")).status).toBe(200);
  expect(await read()).toBe('{"item":"three"}');
  // Vary: what one client is told is not told to another.
  expect((await ask("GET /items/c", { accept: "text/html" })).status).toBe(406);
  expect(await read()).toBe('{"item":"three"}');
  for (const origin of ["http://localhost:1", "http://localhost:2"]) {
    const { fields: theirs } = await ask("GET /items/c", { origin });
    expect(theirs.get("access-control-allow-origin")).toBe(origin);
  }
  expect((await ask("DELETE /items/c")).status).toBe(204);
  expect((await ask("GET /items/c")).status).toBe(404);
  expect((await ask("HEAD /items/c")).status).toBe(404);
  expect((await write("PUT /items/c", "four")).status).toBe(201);
  expect(await read()).toBe('{"item":"four"}');
}

// ── Starting the programs ──────────────────────────────────────────────────────────────────────

const JSON_FIELDS = { "content-type": "application/json" };

function post(url: string, id: string) {
  const body = JSON.stringify({ id, name: "cherry" });
  return fetch(url, { method: "POST", body, headers: JSON_FIELDS });
}

/** Starts a program, which ends with these tests; `said` is all that it prints. */
function launch(command: string[]) {
  const together = ["sh", "-c", 'exec "$@" 2>&1', "sh"];
  const env = { ...Bun.env, XDG_DATA_HOME: FOLDER, XDG_CONFIG_HOME: FOLDER };
  const child = Bun.spawn([...LEASH, ...together, ...command], {
    cwd: FOLDER,
    env,
    stdout: "pipe",
  });
  ends.push(() => (child.kill(), child.exited));
  const said = reader(child.stdout);
  return { child, said, until };

  /** Waits until it can be asked: what it prints may come a moment before. */
  async function until(isReady: () => Promise<boolean>) {
    while (!(await isReady())) if (child.exitCode !== null) throw new Error(said.text);
  }
}

async function nginx(...lines: Parameters<typeof startNginx>) {
  const { end, url } = await startNginx(...lines);
  ends.push(end);
  return Number(new URL(url).port);
}

/** Caddy with a certificate of its own, in front of a server, under /shop. */
async function caddy({ port }: Live) {
  const folder = mkdtempSync(join(FOLDER, "caddy-"));
  const address = `https://localhost:${freePort()}`;
  const config = `{
    admin off
    skip_install_trust
    auto_https disable_redirects
    storage file_system ${folder}
  }
  ${address} {
    tls internal
    handle_path /shop/* {
      reverse_proxy 127.0.0.1:${port}
    }
  }`;
  await Bun.write(join(folder, "Caddyfile"), config);
  const command = ["caddy", "run", "--adapter", "caddyfile", "--config", join(folder, "Caddyfile")];
  const options = { tls: { rejectUnauthorized: false } };
  const isReady = () =>
    fetch(address, options)
      .then(() => true)
      .catch(() => false);
  await launch(command).until(isReady);
  const ca = await Bun.file(join(folder, "pki/authorities/local/root.crt")).text();
  return { ca, url: `${address}/shop` };
}

async function haproxy(servers: Live[]) {
  const folder = mkdtempSync(join(FOLDER, "haproxy-"));
  const port = freePort();
  const config = `global
  log stdout format raw local0
defaults
  mode http
  log global
  timeout connect 5s
  timeout client 2m
  timeout server 2m
  timeout check 5s
frontend items
  bind 127.0.0.1:${port}
  default_backend items
backend items
  option httpchk GET /items?limit=1
  http-check expect ! rstatus ^5
  option log-health-checks
  retry-on conn-failure empty-response response-timeout 503
  http-request disable-l7-retry unless METH_GET
  option redispatch
  default-server check inter 200ms rise 1
${servers.map((to, index) => `  server s${index} 127.0.0.1:${to.port}`).join("\n")}
`;
  await Bun.write(join(folder, "haproxy.cfg"), config);
  const { said, until } = launch(["haproxy", "-db", "-f", join(folder, "haproxy.cfg")]);
  await until(() => isListening({ port }));
  return { said, url: `http://127.0.0.1:${port}` };
}

/** On the docs page at an address, executes a GET and a POST; gives the statuses that it shows. */
async function execute(url: string) {
  const flags =
    "--no-sandbox --disable-gpu --ignore-certificate-errors --disable-background-networking";
  const argv = flags.split(" ");
  const backend = { type: "chrome", path: Bun.which(chromium) ?? "", argv, url: false } as const;
  const view = new Bun.WebView({ width: 1280, height: 900, backend });
  await view.navigate(`${url}/swagger`);
  const find = (selector: string) => `document.querySelector(${JSON.stringify(selector)})`;
  const soon = (expression: string) =>
    view.evaluate<string>(`new Promise((resolve) => {
      const look = () => {
        const found = ${expression};
        if (found) resolve(found); else requestAnimationFrame(look);
      };
      look();
    })`);
  const shown: string[] = [];
  for (const operation of ["getItem", "createItem"]) {
    const root = `#operations-items-${operation}`;
    for (const button of [".opblock-summary-control", ".try-out__btn", ".execute"])
      await soon(
        `${find(`${root} ${button}`)} && (${find(`${root} ${button}`)}.click(), "clicked")`,
      );
    const answered = `${root} .live-responses-table .response .response-col_status`;
    shown.push(await soon(`${find(answered)}?.firstChild?.textContent`));
  }
  view.close();
  return shown;
}
