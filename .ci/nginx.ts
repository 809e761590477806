/** A plain nginx in front of a server, as most have it, with a configuration that ends with it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What is started with it is ended by the kernel when these tests are, in whatever way. */
export const LEASH = Bun.which("setpriv") ? ["setpriv", "--pdeathsig", "TERM"] : [];

/** Starts nginx; `location` is what stands in front of the lines, which pass everything on. */
export async function startNginx(lines: string, location = "/", http = "") {
  const folder = mkdtempSync(join(tmpdir(), "items-nginx-"));
  const port = freePort();
  const kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  const places = kinds.map((kind) => `${kind}_temp_path ${join(folder, kind)};`).join(" ");
  const config = `daemon off; pid ${join(folder, "pid")}; error_log stderr notice;
    ${process.getuid?.() === 0 ? "user root;" : ""} worker_processes 1; events {}
    http { access_log off; ${places} ${http}
      server { listen 127.0.0.1:${port}; location ${location} { ${lines} } } }`;
  await Bun.write(join(folder, "nginx.conf"), config);
  const command = ["nginx", "-c", join(folder, "nginx.conf"), "-p", folder];
  const child = Bun.spawn([...LEASH, ...command], { stdout: "ignore", stderr: "pipe" });
  const ended = child.exited.then(() => rmSync(folder, { recursive: true }));
  async function end() {
    child.kill();
    await ended;
  }

  // It binds its port before it says that it starts to work.
  let said = "";
  for await (const chunk of child.stderr.values({ preventCancel: true })) {
    said += new TextDecoder().decode(chunk);
    if (said.includes("start worker process ")) break;
  }
  if (!said.includes("start worker process ")) throw new Error(`nginx did not start: ${said}`);
  void child.stderr.pipeTo(new WritableStream()); // or it waits for a reader
  return { end, url: `http://127.0.0.1:${port}` };
}

/** A port that nobody has at the moment. */
export function freePort() {
  using server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  return Number(server.port);
}
