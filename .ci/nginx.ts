/**
 * A plain nginx in front of a server, as most have it: it passes everything on, with the Host and the
 * `Connection: close` that are its own. It prints where it listens, and ends with whoever began it.
 *
 *     bun .ci/nginx.ts http://127.0.0.1:3000
 *     TEST_PROXY="bun .ci/nginx.ts" bun test     the suite, with one in front of each server
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

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
  const child = Bun.spawn(command, { stdout: "ignore", stderr: "pipe" });
  void child.exited.then(() => rmSync(folder, { recursive: true, force: true }));

  // It binds its port before it says that it starts to work.
  let said = "";
  for await (const chunk of child.stderr.values({ preventCancel: true })) {
    said += new TextDecoder().decode(chunk);
    if (said.includes("start worker process ")) break;
  }
  if (child.exitCode !== null) throw new Error(`nginx did not start: ${said}`);
  void child.stderr.pipeTo(new WritableStream()); // or it waits for a reader
  return { child, url: `http://127.0.0.1:${port}` };
}

/** A port that nobody has at the moment. */
export function freePort() {
  using server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  return Number(server.port);
}

if (import.meta.main) {
  const { child, url } = await startNginx(`proxy_pass ${Bun.argv[2]};`);
  const end = () => child.kill();
  process.on("SIGINT", end).on("SIGTERM", end).on("disconnect", end);
  console.log(url);
  await child.exited;
}
