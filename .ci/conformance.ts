/**
 * HTTP's own rules, asked of server.ts and of a bare Bun.serve beside it, byte by byte:
 *
 *     bun .ci/conformance.ts
 *
 * The first table has the 33 kinds of requests that uNetworking/h1spec sends: whole, in pieces,
 * wrong. The second has 100 of the 106 rules of "Who's Breaking the Rules? Studying Conformance to
 * the HTTP Specifications" (cispa/http-conformance, 2024), by the names that they have there: all
 * that apply to HTTP/1 without TLS. It fails where server.ts does worse than EXCEPTIONS, or better.
 */
import { connect } from "node:net";
import { join } from "node:path";

const EXCEPTIONS: Record<string, string> = {
  allow_crlf_start: "Bun answers 400 to an empty line before the request, before any code runs",
  code_405_blocked_methods: "501: no path of this server has TRACE or CONNECT (RFC 9110 §15.6.2)",
  code_413_retry_after: "a body that is too large is so for good: another try will not help",
  redirect_after_upgrade_insecure_requests: "there is no TLS to redirect to: a proxy has it",
};

const PATHS = ["/items", "/items/1", "/items/9", "/swagger", "/swagger/json", "/nowhere"];
const PATIENCE = 10_000; // milliseconds of silence, after which a server is left

type Verdict = boolean | undefined;
export type Row = { name: string; came: string; holds: Verdict };
export type Conformance = { kinds: Row[]; rules: Row[] };

/** What a server makes of both tables. It changes what is kept there. */
export async function checkConformance(url: string, paths = PATHS): Promise<Conformance> {
  const { hostname, port } = new URL(url);
  const to: Target = { hostname, port: Number(port), host: `Host: ${new URL(url).host}` };
  const kinds = [...(await checkPieces(to)), ...(await checkKinds(to))];
  return { kinds, rules: [...(await checkDirect(to, paths)), ...(await checkRules(to, paths))] };
}

/** One line: `33 of 33, 1 rules broken: allow_crlf_start`. */
export function summaryOf({ kinds, rules }: Conformance) {
  const broken = rules.filter(({ holds }) => holds === false).map(({ name }) => name);
  const held = kinds.filter(({ holds }) => holds).length;
  return `${held} of ${kinds.length}, ${broken.length} rules broken: ${broken.join(", ") || "none"}`;
}

// ── The kinds ── 15 requests that stop somewhere, and 18 that are whole ────────────────────────

/** Where a GET stops, at each `|`: nothing may come before the rest has come. */
const PIECES = "G|ET |/items| |HTTP|/1.1|\r|\n|Hos|t:| |HOST|\r|\n|\r|\n".split("|");

async function checkPieces(to: Target) {
  const parts = PIECES.map((part) => part.replace("HOST", to.host.slice("Host: ".length)));
  return Promise.all(
    parts.slice(0, -1).map(async (part, index): Promise<Row> => {
      const [piece, rest] = [parts.slice(0, index + 1), parts.slice(index + 1)];
      const { ended, received, socket } = await open(to, piece.join(""));
      // What was sent before is read before: when this has its answer, the piece was looked at.
      await answerOnce(to, request("GET /items", to.host));
      const early = received();
      socket.write(rest.join(""));
      const { status } = parse(await ended.finally(() => socket.destroy()));
      const holds = early === "" && status >= 200 && status < 300;
      const came = early ? "an answer, too early" : `${status} after the rest`;
      return { name: `waits after ${JSON.stringify(part)}, part ${index + 1}`, came, holds };
    }),
  );
}

/** What may come to these lines; `item` is a body of its own. */
type Kind = [name: string, mayCome: string, line: string, ...lines: string[]];
const kindsOf = ({ host }: Target, item: string): Kind[] => {
  const [json, length] = ["Content-Type: application/json", `Content-Length: ${item.length}`];
  const [get, post] = ["GET /items HTTP/1.1", "POST /items HTTP/1.1"];
  const chunked = "Transfer-Encoding: chunked";
  const chunks = `${item.length.toString(16)}\r\n${item}\r\n0\r\n\r\n`;
  return [
    ["a line without a version", "4xx 5xx", "GET /items ", ""],
    ["a wish for 100 Continue", "100 2xx", get, host, "Expect: 100-continue", ""],
    ["a GET", "2xx", get, host, ""],
    ["a tab, odd letters, no value", "2xx", get, host.replace("Host: ", "hoSt:\t"), "empty:", ""],
    ["brackets in a field's name", "4xx", get, host, "X-Wrong[]: 1", ""],
    ["no Host", "4xx", get, "Content-Length: 5", ""],
    ["Host twice, unlike", "4xx", get, host, "Host: example.org", ""],
    ["a huge length below zero", "4xx", get, host, `Content-Length: -${"9".repeat(27)}`, ""],
    ["a length below zero", "4xx", get, host, "Content-Length: -5", ""],
    ["a length in letters", "4xx", get, host, "Content-Length: five", ""],
    ["a field with a space for a value", "2xx", get, host, "X-Empty: ", ""],
    ["a bell in a value", "4xx", get, host, "X-Bell: ding\x07", ""],
    ["a version of the future", "4xx 5xx", "GET /items HTTP/9.9", host, ""],
    ["words before the method", "4xx 5xx", `Some words${get}`, host, ""],
    ["a CR that ends no line", "4xx", get, `${host}\r\n\rX-After: 1`, ""],
    ["a POST with its length", "2xx", post, host, json, length, "", item],
    ["a POST in chunks", "2xx", post, host, json, chunked, "", chunks],
    ["length and chunks", "2xx 4xx", post, host, json, length, chunked, "", chunks],
  ];
};

async function checkKinds(to: Target) {
  const rows: Row[] = [];
  for (const [index] of kindsOf(to, "").entries()) {
    const item = `{"id":"kind-${index}","name":"cherry"}`;
    const [name = "", mayCome = "", ...lines] = kindsOf(to, item)[index] ?? [];
    const bytes = lines.join("\r\n") + (lines.at(-1) === "" ? "\r\n" : "");
    const { statuses, status } = parse(await answerOnce(to, bytes));
    const isIn = (range: string) => RegExp(`^${range.replace("xx", "..")}$`).test(`${status}`);
    const holds = mayCome.split(" ").some(isIn);
    rows.push({ name, came: statuses.join(", ") || "closed", holds });
  }
  return rows;
}

// ── The rules about requests ── bytes that are sent as they are, to each path ──────────────────

/** What is sent: a method, perhaps a target, and lines; and the status that must come, or more. */
type Direct = [sends: string[], judge: number | ((all: Answer[]) => Verdict)];
const tunnelWithout = (field: string) => (answers: Answer[]) =>
  answers.every(({ fields, status }) => status >= 300 || status < 200 || !fields.has(field));

const direct: Record<string, Direct> = {
  continue_before_upgrade: [
    ["GET|HOST|Connection: upgrade|Upgrade: h2c|Expect: 100-continue"],
    ([{ statuses } = parse("")]) => (statuses.includes(101) ? statuses[0] === 100 : undefined),
  ],
  reject_fields_contaning_cr_lf_nul: [
    ["GET|HOST|X-Wrong: a\rb", "GET|HOST|X-Wrong: a\nb", "GET|HOST|X-Wrong: a\0b"],
    400,
  ],
  code_400_after_bad_host_request: [["GET", "GET|HOST|HOST", "GET|Host: ###"], 400],
  code_501_unknown_methods: [["ABC|HOST"], 501],
  code_405_blocked_methods: [["TRACE|HOST", "CONNECT|HOST"], 405],
  content_head_request: [["HEAD|HOST|Connection: close"], ([answer]) => answer?.body === ""],
  allow_crlf_start: [["\r\nGET|HOST"], ([answer]) => /^[23]..$|^404$/.test(`${answer?.status}`)],
  reject_msgs_with_whitespace_between_startline_and_first_header_field: [
    ["GET| HOST| X-After: 1"],
    400,
  ],
  code_400_if_msg_with_whitespace_between_header_field_and_colon: [["GET|HOST|X-Space : 1"], 400],
  content_length_2XX_connect: [["CONNECT AUTHORITY|HOST"], tunnelWithout("content-length")],
  transfer_encoding_2XX_connect: [["CONNECT AUTHORITY|HOST"], tunnelWithout("transfer-encoding")],
};

async function checkDirect(to: Target, paths: string[]) {
  const authority = to.host.slice("Host: ".length);
  async function send(text: string, path: string) {
    const words = text.replace("AUTHORITY", authority).replaceAll("HOST", to.host);
    const [line = "", ...lines] = words.split("|");
    const bytes = request(line.includes(" ") ? line : `${line} ${path}`, ...lines);
    // Where the connection is not closed, the end of the head must do.
    const isClosed = text.endsWith("close");
    return parse(await (isClosed ? answerWhole : answerOnce)(to, bytes));
  }
  const rows: Row[] = [];
  for (const [name, [sends, judge]] of Object.entries(direct)) {
    const verdicts: Verdict[] = [];
    const came: string[] = [];
    for (const path of paths) {
      const answers = await Promise.all(sends.map((text) => send(text, path)));
      const statuses = answers.map(({ status }) => status);
      // Who closes without an answer has refused.
      const isRight = (status: number) => status === judge || status === 0;
      verdicts.push(typeof judge === "number" ? statuses.every(isRight) : judge(answers));
      if (verdicts.at(-1) === false)
        came.push(`${statuses.join(", ").replace(/^0$/, "closed")} from ${path}`);
    }
    rows.push(rowOf(name, verdicts, came));
  }
  return rows;
}

// ── The rules about answers ── asked of every answer to every probe ────────────────────────────

/** What a probe may have beside its method and Host. A server that rehearses shows all codes. */
const SETS = [
  "|Upgrade-Insecure-Requests: 1|Range: bytes=0-10|If-Match: *|If-None-Match: *",
  "|If-Modified-Since: NOW|If-Range: NOW|Early-Data: 1|Early-Data: x",
  "|Accept: text/turtle|Origin: http://localhost:5173|Authorization: Basic YTpi",
  ...[401, 405, 407, 413, 415, 416, 426, 429, 503].map((code) => `|Prefer: code=${code}`),
];
const BODIES: [method: string, type: string, body: string][] = [
  ["PATCH", "Content-Type: application/json", '{"name":"cherry"}'],
  ["POST", "Content-Type: text/plain", "x"],
  ["POST", "Content-Type: application/json\r\nContent-Encoding: gzip", "x"],
  ["POST", "Content-Type: application/json", `"${"x".repeat(200_000)}"`],
  ["PUT", "Content-Type: application/json", '{"name":"cherry"}'],
];
// What deletes is last, for a rule may need what is there.
const METHODS = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "PATCH", "ABC", "DELETE"];

type Seen = Answer & Record<"method" | "path" | "asked" | "version", string> & { answers: Seen[] };
type Rule = (seen: Seen) => Verdict;

const TOKEN = "[!#$%&'*+.^_`|~\\w-]+";
const QUOTED = '"(?:[^"\\\\]|\\\\.)*"';
const MEDIA = `${TOKEN}/${TOKEN}(?:\\s*;\\s*${TOKEN}=(?:${TOKEN}|${QUOTED}))*`;
const DATE = "[MTWFS][a-z]{2}, \\d\\d [JFMASOND][a-z]{2} \\d{4} \\d\\d:\\d\\d:\\d\\d GMT";
const ORIGIN = "[a-z][\\w+.-]*://[\\w.:[\\]-]+";
const list = (one: string) => `(?:${one})(?:\\s*,\\s*(?:${one}))*`;
const PRODUCT = `${TOKEN}(?:/${TOKEN})?`;
const POLICY = "[\\w-]+(?: [!-:<-~]+)*(?:;\\s*(?:[\\w-]+(?: [!-:<-~]+)*)?)*";
const REFERENCE = "[\\w:/?#[\\]@!$&'()*+,;=.~%-]+";

/** Fields that a server may send, and the form of their values. */
type Form = [field: string, form: string];
const FORMS: Record<string, Form> = {
  cookie_grammar: ["set-cookie", `${TOKEN}=[!-:<-~]*(?:;\\s*[^;]+)*`],
  duplicate_cookie_attribute: ["set-cookie", "(?!.*;\\s*([\\w-]+)[^;]*;(?:.*;)?\\s*\\1\\b).*"],
  cookie_IMF_fixdate: ["set-cookie", `(?!.*expires=(?!${DATE})).*`],
  coep_grammar: ["cross-origin-embedder-policy", "(?:unsafe-none|require-corp|credentialless).*"],
  corp_grammar: ["cross-origin-resource-policy", "same-origin|same-site|cross-origin"],
  csp_grammar: ["content-security-policy", POLICY],
  csp_ro_grammar: ["content-security-policy-report-only", POLICY],
  permissions_policy_grammar: ["permissions-policy", list("[a-z-]+=(?:\\*|self|\\([^()]*\\))")],
  xcto_grammar: ["x-content-type-options", "nosniff"],
  sts_grammar: ["strict-transport-security", `${TOKEN}(?:=[^;]+)?(?:;\\s*${TOKEN}(?:=[^;]+)?)*`],
  sts_directives_only_allowed_once: [
    "strict-transport-security",
    "(?!.*\\b([\\w-]+)\\b.*;\\s*\\1\\b).*",
  ],
  sts_max_age: ["strict-transport-security", ".*max-age=.*"],
  xfo_grammar: ["x-frame-options", "deny|sameorigin"],
  coop_grammar: ["cross-origin-opener-policy", "(?:unsafe-none|(?:same-origin|noopener)[a-z-]*).*"],
  access_control_allow_origin_grammar: ["access-control-allow-origin", `\\*|null|${ORIGIN}`],
  access_control_allow_credentials_grammar: ["access-control-allow-credentials", "true"],
  access_control_expose_headers_grammar: ["access-control-expose-headers", list(TOKEN)],
  access_control_max_age_grammar: ["access-control-max-age", "\\d+"],
  access_control_allow_methods_grammar: ["access-control-allow-methods", list(TOKEN)],
  access_control_allow_headers_grammar: ["access-control-allow-headers", list(TOKEN)],
  age_grammar: ["age", "\\d+"],
  cache_control_grammar: ["cache-control", list(`${TOKEN}(?:=(?:${TOKEN}|${QUOTED}))?`)],
  response_directive_no_cache: ["cache-control", '(?!.*no-cache=[^"]).*'],
  response_directive_private: ["cache-control", '(?!.*private=[^"]).*'],
  response_directive_max_age: ["cache-control", '(?!.*\\bmax-age=").*'],
  response_directive_s_maxage: ["cache-control", '(?!.*s-maxage=").*'],
  server_header_long: ["server", ".{0,100}"],
  server_grammar: ["server", `${PRODUCT}(?: (?:\\(.*\\)|${PRODUCT}))*`],
  retry_after_grammar: ["retry-after", `\\d+|${DATE}`],
  proxy_authorization_grammar: ["proxy-authorization", `${TOKEN}(?: .+)?`],
  location_header_grammar: ["location", REFERENCE],
  last_modified_grammar: ["last-modified", DATE],
  expires_grammar: ["expires", DATE],
  etag_grammar: ["etag", '(?:W/)?"[!#-~\\x80-\\xff]*"'],
  date_grammar: ["date", DATE],
  content_type_grammar: ["content-type", MEDIA],
  range_grammar: ["content-range", `${TOKEN} (?:\\d+-\\d+/(?:\\d+|\\*)|\\*/\\d+)`],
  content_length_grammar: ["content-length", "\\d+"],
  content_language_grammar: ["content-language", list("[a-z]{1,8}(?:-[a-z\\d]{1,8})*")],
  content_encoding_grammar: ["content-encoding", list(TOKEN)],
  connection_grammar: ["connection", list(TOKEN)],
  allow_grammar: ["allow", `|${list(TOKEN)}`],
  accept_ranges_grammar: ["accept-ranges", list(TOKEN)],
  accept_encoding_grammar: ["accept-encoding", `|${list(`${TOKEN}(?:;\\s*q=[01.]+)?`)}`],
  accept_patch_grammar: ["accept-patch", list(MEDIA)],
  transfer_encoding_grammar: ["transfer-encoding", list(TOKEN)],
  vary_grammar: ["vary", list(TOKEN)],
};
type Owed = [status: number, field: string, form?: string];
const OWED: Record<string, Owed> = {
  send_upgrade_101: [101, "upgrade"],
  send_upgrade_426: [426, "upgrade"],
  code_401_www_authenticate: [401, "www-authenticate"],
  code_405_allow: [405, "allow"],
  code_407_proxy_authenticate: [407, "proxy-authenticate"],
  code_413_retry_after: [413, "retry-after"],
  code_416_content_range: [416, "content-range", `${TOKEN} \\*/\\d+`],
};
for (const code of [300, 301, 302, 303, 307, 308])
  OWED[`code_${code}_location`] = [code, "location", REFERENCE];

/** A field whose every value has this form. */
const like =
  ([field, form]: Form): Rule =>
  ({ lines }) => {
    const values = lines.filter(([name]) => name === field).map(([, value]) => value);
    const isFine = (value: string) => new RegExp(`^(?:${form})$`, "i").test(value);
    return values.length === 0 ? undefined : values.every(isFine);
  };
const all = <Entry>(table: Record<string, Entry>, ruleOf: (entry: Entry) => Rule) =>
  Object.fromEntries(Object.entries(table).map(([name, entry]) => [name, ruleOf(entry)]));
const owes =
  ([status, field, form = ".+"]: Owed): Rule =>
  (seen) =>
    seen.status === status ? seen.fields.has(field) && like([field, form])(seen) : undefined;
/** Where a field is there at all, it must hold. */
const where =
  (field: string, holds: (value: string, seen: Seen) => boolean): Rule =>
  (seen) =>
    seen.fields.has(field) ? holds(seen.fields.get(field) ?? "", seen) : undefined;
const single = (field: string) =>
  where(field, (_, { lines }) => lines.filter(([name]) => name === field).length === 1);
const empty =
  (code: number): Rule =>
  ({ body, status }) =>
    status === code ? body === "" : undefined;
const isMultipart = (fields: Map<string, string>) =>
  /^multipart\/byteranges/i.test(fields.get("content-type") ?? "");
const isBodiless = (status: number) => status < 200 || status === 204;
/** The answer to the same, but for another method or without its fields. */
const twin = ({ answers, asked, path }: Seen, method: string, fields = asked) =>
  answers.find((each) => each.method === method && each.path === path && each.asked === fields);
const areUnlike = (names: string[]) => new Set(names).size === names.length;
/** Of these, two would contradict each other. */
const SINGLES = `age content-type content-length content-range date etag expires last-modified
  location retry-after server strict-transport-security x-content-type-options x-frame-options
  access-control-allow-origin access-control-allow-credentials access-control-max-age`.split(/\s+/);
/** What a 200 says of these, a 206 and a 304 say too. */
const KEPT = ["cache-control", "content-location", "date", "etag", "expires", "vary"];
const keeps =
  (status: number): Rule =>
  (seen) => {
    const whole = twin(seen, "GET", "");
    if (seen.status !== status || seen.method !== "GET" || whole?.status !== 200) return undefined;
    return KEPT.every((field) => seen.fields.has(field) || !whole.fields.has(field));
  };

const rules: Record<string, Rule> = {
  ...all(FORMS, like),
  ...all(OWED, owes),
  code_204_no_additional_content: empty(204),
  code_205_no_content_allowed: empty(205),
  code_304_no_content: empty(304),
  duplicate_csp: single("content-security-policy"),
  duplicate_csp_ro: single("content-security-policy-report-only"),
  only_one_sts_header_allowed: single("strict-transport-security"),
  duplicate_fields: ({ lines }) =>
    areUnlike(lines.map(([name]) => name).filter((name) => SINGLES.includes(name))),
  content_length_1XX_204: ({ fields, status }) =>
    isBodiless(status) ? !fields.has("content-length") : undefined,
  no_transfer_encoding_1xx_204: ({ fields, status }) =>
    isBodiless(status) ? !fields.has("transfer-encoding") : undefined,
  switch_protocol_without_client: ({ asked, status }) =>
    status === 101 ? /upgrade:/i.test(asked) : undefined,
  duplicate_cookies: where("set-cookie", (_, { head }) =>
    areUnlike(head.match(/(?<=^set-cookie:\s*)[^=]+/gim) ?? []),
  ),
  redirect_after_upgrade_insecure_requests: ({ asked, fields }) =>
    /Upgrade-I/.test(asked) ? /https:/.test(`${fields.get("location")}`) : undefined,
  content_type_header_required: ({ body, fields }) =>
    body === "" ? undefined : fields.has("content-type"),
  sts_header_http: ({ fields }) => !fields.has("strict-transport-security"),
  date_header_required: ({ fields, status }) =>
    status >= 200 && status < 500 ? fields.has("date") : undefined,
  transfer_encoding_http11: where("transfer-encoding", (_, { version }) => version === "1.1"),
  // Rehearsed, any code comes to anything: it was asked for.
  post_invalid_response_codes: ({ asked, method, status }) =>
    method === "POST" && !/Prefer/.test(asked) ? !/206|304|416/.test(`${status}`) : undefined,
  close_option_in_final_response: ({ fields }) => /\bclose\b/i.test(fields.get("connection") ?? ""),
  no_bare_cr: ({ head }) => !/\r(?!\n)/.test(head),
  code_300_metadata: ({ body, method, status }) =>
    status === 300 && method !== "HEAD" ? body !== "" : undefined,
  code_415_unsupported_media_type: ({ fields, status }) =>
    status === 415 ? fields.has("accept") || fields.has("accept-encoding") : undefined,
  code_206_content_range: ({ fields, status }) =>
    status === 206 ? fields.has("content-range") || isMultipart(fields) : undefined,
  code_206_content_range_of_multiple_part_response: where(
    "content-range",
    (_, { fields }) => !isMultipart(fields),
  ),
  content_length_same_head_get: (seen) => {
    const length = seen.method === "HEAD" ? seen.fields.get("content-length") : undefined;
    return length ? length === twin(seen, "GET")?.fields.get("content-length") : undefined;
  },
  content_length_same_304_200: (seen) => {
    const length = seen.status === 304 ? seen.fields.get("content-length") : undefined;
    const whole = twin(seen, seen.method, "");
    return length ? length === whole?.fields.get("content-length") : undefined;
  },
  accept_patch_presence: (seen) =>
    seen.method === "PATCH" && seen.status === 200
      ? twin(seen, "OPTIONS", "")?.fields.has("accept-patch") === true
      : undefined,
  head_get_headers: (seen) => {
    const same = seen.method === "HEAD" ? twin(seen, "GET") : undefined;
    const namesOf = ({ fields }: Answer) =>
      `${[...fields.keys()].filter((name) => !/^(content-|transfer-|vary)/.test(name)).sort()}`;
    return same && same.status === seen.status && namesOf(same) === namesOf(seen);
  },
  code_206_headers: keeps(206),
  code_304_headers: keeps(304),
};

async function checkRules(to: Target, paths: string[]) {
  const answers: Seen[] = [];
  const now = new Date().toUTCString();
  async function probe(method: string, path: string, asked: string, body = "", version = "1.1") {
    const length = body && `Content-Length: ${body.length}`;
    // With `close` the answer ends where the connection does, and nothing can hide behind it.
    const lines = [to.host, asked.replace("NOW", now), length, "Connection: close"];
    const head = request(`${method} ${path}`, ...lines.filter(Boolean));
    const bytes = head.replace("HTTP/1.1", `HTTP/${version}`) + body;
    const answer = parse(await answerWhole(to, bytes));
    if (answer.status > 0) answers.push({ ...answer, method, path, asked, version, answers });
  }
  for (const path of paths) {
    for (const [method, type, body] of BODIES) await probe(method, path, type, body);
    await probe("GET", path, "", "", "1.0");
    for (const method of METHODS)
      for (const set of SETS.join("").split("|")) await probe(method, path, set);
  }
  return Object.entries(rules).map(([name, judge]) => {
    const verdicts = answers.map((seen) => judge(seen));
    const broken = answers.filter((_, index) => verdicts[index] === false);
    const cases = broken.map(
      (seen) => `${seen.status} to ${seen.method} ${seen.path} ${seen.asked}`,
    );
    return rowOf(name, verdicts, cases);
  });
}

function rowOf(name: string, verdicts: Verdict[], came: string[]): Row {
  const applied = verdicts.filter((verdict) => verdict !== undefined);
  if (applied.length === 0) return { name, came: "does not apply", holds: undefined };
  if (applied.every(Boolean)) return { name, came: "holds", holds: true };
  return { name, came: `broken by ${came.length} of ${applied.length}: ${came[0]}`, holds: false };
}

// ── On the wire ────────────────────────────────────────────────────────────────────────────────

type Target = { hostname: string; port: number; host: string };
type Answer = ReturnType<typeof parse>;

function request(line: string, ...lines: string[]) {
  return [`${line} HTTP/1.1`, ...lines, "\r\n"].join("\r\n");
}

/** Sends bytes; `ended` is all that came, when it is enough, or the connection is closed. */
async function open({ hostname, port }: Target, bytes: string, isEnough = hasStatus) {
  const { promise: ended, resolve } = Promise.withResolvers<string>();
  const socket = connect(port, hostname).setEncoding("latin1");
  let text = "";
  const end = () => resolve(text);
  socket.setTimeout(PATIENCE, () => socket.destroy());
  socket.on("close", end).on("error", end);
  socket.on("data", (chunk: string) => {
    text += chunk;
    if (isEnough(text)) end();
  });
  await new Promise((sent) => socket.write(bytes, "latin1", sent));
  return { ended, received: () => text, socket };
}
const isNever = (_text: string) => false;
const hasStatus = (text: string) => /^HTTP\/1\.\d (?!1\d\d)[\s\S]*\r\n\r\n/m.test(text);

async function answerWhole(to: Target, bytes: string) {
  return (await open(to, bytes, isNever)).ended;
}

/** The same, where a server need not close: up to the first head that is none of 1xx. */
async function answerOnce(to: Target, bytes: string) {
  const { ended, socket } = await open(to, bytes);
  return ended.finally(() => socket.destroy());
}

function parse(text: string) {
  const [interim = ""] = /^(HTTP\/1\.\d 1\d\d[^]*?\r\n\r\n(?=HTTP))*/.exec(text) ?? [];
  const [head = "", ...rest] = text.slice(interim.length).split("\r\n\r\n");
  const lines = head.split("\r\n").map((line): [string, string] => {
    const [, name = "", value = ""] = /^([^:\s]+):\s*(.*?)\s*$/s.exec(line) ?? [];
    return [name.toLowerCase(), value];
  });
  const codes = `${interim}${head}`.match(/(?<=^HTTP\/1\.\d )\d{3}/gm) ?? [];
  const [statuses, status] = [codes.map(Number), Number(codes.at(-1) ?? 0)];
  return { status, statuses, head, lines, fields: new Map(lines), body: rest.join("\r\n\r\n") };
}

// ── Both servers, side by side ─────────────────────────────────────────────────────────────────

/** server.ts with rehearsals, so that what its other codes owe is seen too, where no .env is. */
async function startItems() {
  const root = join(import.meta.dir, "..");
  const program = [`--config=${join(root, "bunfig.toml")}`, join(root, "server.ts")];
  const { PATH, HOME, TMPDIR } = Bun.env;
  const env = { PATH, HOME, TMPDIR, PORT: "0", DATABASE_URL: "sqlite://:memory:", REHEARSE: "1" };
  const options = { cwd: import.meta.dir, env, ipc() {}, stdout: "pipe" } as const;
  const child = Bun.spawn([process.execPath, ...program], options);
  const { value } = await child.stdout.getReader().read(); // the first lines come together
  const [url = ""] = /http:\S+/.exec(new TextDecoder().decode(value)) ?? [];
  return { child, url };
}

async function main() {
  const { child, url } = await startItems();
  using bare = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("Hello") });
  const [items, beside] = [await checkConformance(url), await checkConformance(bare.url.href)];
  child.kill();
  const wrong: string[] = [];
  for (const part of ["kinds", "rules"] as const)
    for (const [index, { name, came, holds }] of items[part].entries()) {
      console.log(`${name}\n    items: ${came}\n    bare:  ${beside[part][index]?.came}`);
      const reason = EXCEPTIONS[name];
      if (holds === false && reason) console.log(`    known: ${reason}`);
      if (holds === false && !reason) wrong.push(`${name}: ${came}`);
      if (holds !== false && reason) wrong.push(`${name} is an exception no more`);
    }
  console.log(`\nitems: ${summaryOf(items)}\nbare:  ${summaryOf(beside)}\n`);
  if (wrong.length > 0) console.log(`(fail) ${wrong.join("\n(fail) ")}`);
  const held = [...items.kinds, ...items.rules].filter(({ holds }) => holds);
  console.log(` ${held.length} pass\n ${wrong.length} fail`);
  process.exit(wrong.length > 0 ? 1 : 0);
}

if (import.meta.main) await main();
