/**
 * The docs page in a real browser: it lists each operation and tries it out, asks nobody else, can
 * be read by all, and a page of elsewhere cannot write.
 *
 *     bun test ./.ci/browser.test.ts      needs Chromium, and axe-core (bun install)
 */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import {
  beside,
  documentOf,
  exampleOf,
  fresh,
  guarded,
  can,
  type Live,
  start,
} from "../server.test";

const OPERATIONS = ["listItems", "createItem", "getItem", "putItem", "patchItem", "deleteItem"];
const chromium = ["chromium", "google-chrome"].find((name) => Bun.which(name)) ?? "chromium";
const withBrowser = test.if(can([chromium], "the tests in a browser"));
const axe = beside("node_modules/axe-core/axe.min.js");
if (!existsSync(axe)) console.log("Skipped: who can read the docs, for axe-core is not installed.");
const withAxe = existsSync(axe) ? withBrowser : test.skip;

describe("in a real browser", () => {
  withBrowser("the docs list each operation, try it out, and ask nobody else", async () => {
    const to = await start({ LOG: "off", TOKEN: "browser" });
    const { complaints, requests, view } = await browse(`${to.url}/swagger`);
    const once = (expression: string) => soon(view, expression);
    const run = (statement: string) => view.evaluate(`void ${statement}`);
    const find = (selector: string) => `document.querySelector(${JSON.stringify(selector)})`;
    const fill = (selector: string, value: string) =>
      run(`((element, value) => {
        const { set } = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(element), "value");
        set.call(element, value);
        element.dispatchEvent(new Event("input", { bubbles: true }));
        element.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
      })(${find(selector)}, ${JSON.stringify(value)})`);
    const answered = ".live-responses-table .response .response-col_status";

    async function tryOut(id: string, value = "", field = "input") {
      const root = `#operations-items-${id}`;
      const click = (button: string) => run(`${find(`${root} ${button}`)}?.click()`);
      if (!(await view.evaluate(`!!${find(`${root} .execute`)}`))) {
        await click(".opblock-summary-control");
        await once(`${find(`${root} .try-out__btn`)} && "open"`);
        await click(".try-out__btn");
      }
      await once(`${find(`${root} .execute`)} && "ready"`);
      if (value) await fill(`${root} ${field}`, value);
      await click(".btn-clear");
      await once(`!${find(`${root} .live-responses-table`)} && "clear"`);
      await click(".execute");
      return once(`${find(`${root} ${answered}`)}?.firstChild?.textContent`);
    }

    for (const id of OPERATIONS)
      expect(await once(`${find(`#operations-items-${id}`)} && "${id}"`)).toBe(id);
    expect(await tryOut("getItem")).toBe("200");
    expect(await tryOut("getItem", "*", "[placeholder=If-None-Match]")).toBe("304");
    expect(await tryOut("getItem", "9")).toBe("404");
    expect(await tryOut("createItem")).toBe("401");
    await run(`${find(".btn.authorize")}.click()`);
    await once(`${find(".auth-container input")} && "asks"`);
    await fill(".auth-container input", "browser");
    await run(`${find(".auth-btn-wrapper .authorize")}.click()`);
    await run(`${find(".auth-btn-wrapper .btn-done")}.click()`);
    const proposed = `${find("#operations-items-createItem textarea")}.value`;
    const { paths } = await documentOf(guarded);
    const example = paths["/items"]?.post?.requestBody?.content["application/json"]?.schema;
    expect(JSON.parse(await view.evaluate(proposed))).toEqual(exampleOf(example));
    expect(await tryOut("createItem")).toBe("201");
    expect(await tryOut("createItem")).toBe("400");
    expect(await tryOut("createItem", "x".repeat(65_537), "textarea")).toBe("413");
    expect(await tryOut("putItem", JSON.stringify(fresh({ id: "2" })), "textarea")).toBe("409");
    expect(await tryOut("putItem", JSON.stringify(fresh({ id: "" })), "textarea")).toBe("422");
    expect(await tryOut("deleteItem", '"old"', "[placeholder=If-Match]")).toBe("412");
    expect(await tryOut("deleteItem", "*", "[placeholder=If-Match]")).toBe("204");
    const size = `parseFloat(getComputedStyle(${find(answered)}).fontSize)`;
    expect(await view.evaluate<number>(size)).toBeGreaterThanOrEqual(32);
    expect(await view.evaluate(`!!${find("textarea[aria-label='Request body']")}`)).toBe(true);
    // The first field of each form is one of the item's.
    const first = `[...document.querySelectorAll(".parameters tbody tr")][0]?.dataset.paramName`;
    expect(await view.evaluate<string>(first)).not.toMatch(/^(If|Content)-/);

    const others = requests.filter((url) => !url.startsWith(`${to.url}/`));
    expect(others.filter((url) => !/^(data|about):/.test(url))).toEqual([]);
    expect(requests).toContain(`${to.url}/favicon.ico`);
    expect(complaints.filter((each) => !/status of 4\d\d/.test(each))).toEqual([]);
    // A script that got into the page some other way does not run.
    const ran = await view.evaluate(`(() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      return String(window.ran);
    })()`);
    expect(ran).toBe("undefined");
    view.close();
    await to.stop();
  });

  withAxe("the docs can be read by all, in any light, on a desk and on a telephone", async () => {
    const to = await start({ LOG: "off", TOKEN: "browser" });
    const { view } = await browse("about:blank");
    const all = (selector: string) => `[...document.querySelectorAll("${selector}")]`;
    const click = (selector: string) =>
      view.evaluate(`${all(selector)}.forEach((each) => each.click())`);
    const faultsIn = async (part: string) => {
      // A button that fades in is hard to read on its way, and not meant to be read then.
      await soon(view, "document.getAnimations().length === 0");
      return view.evaluate(`axe.run("${part}", { resultTypes: ["violations"] })
        .then(({ violations }) => violations.flatMap(({ id, impact, nodes }) =>
          /serious|critical/.test(impact) ? nodes.map(({ target }) => id + " " + target) : []))`);
    };
    const gaps = `${all(".response .response-col_status")}.map((each) => {
      const number = document.createRange();
      number.selectNodeContents(each);
      const text = each.nextElementSibling.getBoundingClientRect();
      return text.left - number.getBoundingClientRect().right;
    })`;

    // One of each kind: with a query, with a body, with a choice of media types.
    const some = ":is([id$=listItems], [id$=createItem], [id$=patchItem])";
    const looks: [number, string][] = [
      [1280, "light"],
      [390, "dark"],
    ];
    for (const [width, value] of looks) {
      const screen = { width, height: 900, deviceScaleFactor: 1, mobile: width === 390 };
      const features = [{ name: "prefers-color-scheme", value }];
      await view.cdp("Emulation.setDeviceMetricsOverride", screen);
      await view.cdp("Emulation.setEmulatedMedia", { features });
      await view.navigate(`${to.url}/swagger`);
      await view.cdp("Runtime.evaluate", { expression: await Bun.file(axe).text() });
      for (const button of [".opblock-summary-control", ".try-out__btn", ".execute"]) {
        await soon(view, `${all(`${some} ${button}`)}.length === 3`);
        await click(`${some} ${button}`);
      }
      await soon(view, `${all(".live-responses-table")}.length === 3`);
      expect(await faultsIn("html")).toEqual([]);
      const wide = await view.evaluate<number>("document.documentElement.scrollWidth");
      expect(wide).toBeLessThanOrEqual(width);
      expect(Math.min(...(await view.evaluate<number[]>(gaps)))).toBeGreaterThanOrEqual(8);
      await click("[data-name=model]");
      await soon(view, `${all(".model-box")}.length`);
      expect(await faultsIn(".model-box")).toEqual([]);
      await click(".btn.authorize");
      await soon(view, `${all(".auth-container input")}.length`);
      expect(await faultsIn(".dialog-ux")).toEqual([]);
    }
    view.close();
    await to.stop();
  });

  withBrowser("a page of elsewhere cannot write unless CORS_ORIGIN names it", async () => {
    const html = "<!doctype html><link rel=icon href=data:,><iframe name=f></iframe>";
    const headers = { "content-type": "text/html" };
    using page = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: () => new Response(html, { headers }),
    });
    const CORS_ORIGIN = `http://page.example:${page.port}`;
    const closed = await start({ LOG: "off" });
    const opened = await start({ LOG: "off", CORS_ORIGIN });
    const { view } = await browse(CORS_ORIGIN);

    const body = JSON.stringify(fresh({ id: "cross", name: "=" }));
    const fetched = ({ url }: Live, type: string, mode = "cors", path = "/items") =>
      view.evaluate<string>(`fetch("${url}${path}", {
        ...${JSON.stringify({ method: "POST", body, mode, headers: { "content-type": type } })}
      }).then(({ type, status }) => type + " " + status, () => "refused")`);
    const submitted = ({ url }: Live) =>
      view.evaluate(`new Promise((resolve) => {
        const form = document.body.appendChild(document.createElement("form"));
        const to = { action: "${url}/items", method: "post", enctype: "text/plain", target: "f" };
        const [name, value] = ${JSON.stringify(body.split("="))};
        Object.assign(form, to);
        form.appendChild(Object.assign(document.createElement("input"), { name, value }));
        document.querySelector("iframe").onload = () => resolve("loaded");
        form.submit();
      })`);

    await submitted(closed);
    expect(await fetched(closed, "text/plain", "no-cors")).toBe("opaque 0");
    expect(await fetched(closed, "application/json")).toBe("refused");
    await submitted(opened);
    expect(await fetched(opened, "text/plain")).toBe("cors 415");
    // It learns of its slip: of a path that is not there, the preflight still lets it in.
    expect(await fetched(opened, "application/json", "cors", "/itemz")).toBe("cors 404");
    for (const to of [closed, opened]) expect(await to.status("GET /items/cross")).toBe(404);
    expect(await fetched(opened, "application/json")).toBe("cors 201");

    // A page of this machine can: there, a front end in the making lives.
    await view.navigate(page.url.href);
    expect(await fetched(closed, "text/plain")).toBe("cors 415");
    expect(await fetched(closed, "application/json")).toBe("cors 201");
    view.close();
    await Promise.all([closed.stop(), opened.stop()]);
  });
});

/** Opens a page, and keeps what it complains of and whom it asks. */
async function browse(url: string) {
  const [complaints, requests]: [string[], string[]] = [[], []];
  const quiet = "disable-gpu disable-quic disable-background-networking disable-component-update";
  const flags = `no-sandbox disable-sync ${quiet}`.split(" ").map((flag) => `--${flag}`);
  const argv = [...flags, "--host-resolver-rules=MAP page.example 127.0.0.1"];
  const view = new Bun.WebView({
    width: 1280,
    height: 900,
    backend: { type: "chrome", path: Bun.which(chromium) ?? "", argv, url: false },
  });
  await view.navigate("about:blank");
  for (const domain of ["Network", "Runtime", "Log"]) await view.cdp(`${domain}.enable`);
  const on = (name: `${string}.${string}`, use: (detail: unknown) => unknown) =>
    view.addEventListener(name, (event) => void use((event as unknown as { data: unknown }).data));
  on("Network.requestWillBeSent", (detail) =>
    requests.push((detail as { request: Request }).request.url),
  );
  const faults = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"] as const;
  for (const name of faults) on(name, (detail) => complaints.push(JSON.stringify(detail)));
  await view.navigate(url);
  return { complaints, requests, view };
}

/** What an expression is in the page, as soon as it is something. */
function soon(view: Bun.WebView, expression: string) {
  return view.evaluate<string>(`new Promise((resolve) => {
    const look = () => {
      const found = ${expression};
      if (found) resolve(found); else requestAnimationFrame(look);
    };
    look();
  })`);
}
