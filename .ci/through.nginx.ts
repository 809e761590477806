/**
 * Puts a plain nginx between the tests of a file and each server that they `ask`:
 *
 *     bun test --preload ./.ci/through.nginx.ts ./server.test.ts
 *
 * It passes everything on, with the Host and the `Connection: close` that are its own. What nginx
 * itself answers or rewrites, a malformed target and a Host, is asked directly, as are raw bytes.
 */
import { afterAll } from "bun:test";
import { startNginx } from "./nginx";

const direct = globalThis.fetch;
const proxies = new Map<string, ReturnType<typeof startNginx>>();
const isDirect = (url: string, init?: RequestInit) =>
  init?.redirect !== "manual" || // as `ask` has it
  /%(?!(?!00)[\da-f]{2})/i.test(url) ||
  new Headers(init?.headers).has("host");

async function throughNginx(input: string | URL | Request, init?: BunFetchRequestInit) {
  const url = typeof input === "string" ? input : "";
  if (isDirect(url, init)) return direct(input, init);
  const { origin } = new URL(url);
  const proxy = proxies.get(origin) ?? startNginx(`proxy_pass ${origin};`);
  proxies.set(origin, proxy);
  return direct(url.replace(origin, (await proxy).url), init);
}
globalThis.fetch = Object.assign(throughNginx, { preconnect: direct.preconnect });

afterAll(async () => {
  for (const proxy of proxies.values()) await (await proxy).end();
});
