/**
 * A 2xx is a promise: what was acknowledged is on the disk, whoever writes beside it, and whenever
 * the server ends. Of those who race for one item, each gets a right answer.
 *
 *     bun test ./.ci/durable.test.ts     on SQLite, or with TEST_DATABASE_URL
 */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import {
  type Asks,
  environment,
  exchange,
  FOLDER,
  fresh,
  HOST,
  idsOf,
  ITEMS,
  JSON_TYPE,
  type Live,
  lock,
  namesOf,
  newStore,
  operations,
  outside,
  parse,
  POSTGRES,
  program,
  says,
  sent,
  spawn,
  start,
  tally,
  wire,
} from "../server.test";
import { turnOf } from "./clusters";

const FIFTY = Array.from({ length: 50 }, (_, index) => index);
const [onSqlite, onPostgres] = [test.if(!POSTGRES), test.if(!!POSTGRES)];
console.log(
  `Skipped: what only ${POSTGRES ? "SQLite" : "PostgreSQL"} does, for this is the other.`,
);

// ── The end ── whenever it comes, what was acknowledged is kept ──────────────────────────────────

describe.concurrent("what was acknowledged is kept", () => {
  test("after kill -9 at a random moment", async () => {
    const store = await newStore();
    /** What each item is, once acknowledged; a list while it is not known which of them. */
    const known = new Map<string, (string | null)[]>();
    for (let round = 0; round < 3; round++) {
      const to = await start({ DATABASE_URL: store, LOG: "off" });
      let acknowledged = 0;
      const enough = Promise.withResolvers<void>();
      const limit = 200 + random(400);
      const clients = Array.from({ length: 32 }, async (_, client) => {
        for (let turn = 0; ; turn++) {
          const id = `c${client}-${turn % 5}`;
          const name = random(3) === 0 ? null : `r${round}-${turn}`;
          const before = known.get(id) ?? [null];
          known.set(id, [...before, name]);
          const status = await sent(
            `${name === null ? "DELETE" : "PUT"} ${to.url}${ITEMS}/${id}`,
            name === null ? undefined : fresh({ name }),
          );
          if (status === 0) return;
          // Who waits too long for PostgreSQL gets 503, and nothing was made.
          const isRefused = POSTGRES !== "" && status === 503;
          if (!isRefused) expect([200, 201, 204, 404]).toContain(status);
          known.set(id, isRefused ? before : [name]);
          if (!isRefused && ++acknowledged === limit) enough.resolve();
        }
      });
      await enough.promise;
      to.child.kill("SIGKILL");
      await Promise.all(clients);
      await to.child.exited;

      const rows = await namesOf(store);
      for (const [id, names] of known) {
        expect(names).toContain(rows.get(id) ?? null);
        known.set(id, [rows.get(id) ?? null]);
      }
      if (!POSTGRES)
        expect(await outside(store, "pragma integrity_check")).toEqual([{ integrity_check: "ok" }]);
    }
  });

  test("after SIGTERM under load, and every write that was taken is answered", async () => {
    const to = await start({ LOG: "off" });
    const kept: string[] = [];
    const enough = Promise.withResolvers<void>();
    const clients = Array.from({ length: 32 }, async (_, client) => {
      for (let turn = 0; ; turn++) {
        const id = `s${client}-${turn}`;
        await sent(`GET ${to.url}${ITEMS}/${id}`);
        const status = await sent(`POST ${to.url}${ITEMS}`, fresh({ id }));
        if (status !== 201) return { id, status };
        if (kept.push(id) === 300) enough.resolve();
      }
    });
    await enough.promise;
    expect([await to.stop(), to.stderr.text]).toEqual([0, ""]);
    const rows = await namesOf(to.store);
    // What was not answered was not taken, and what was refused was not made.
    for (const { id, status } of await Promise.all(clients))
      expect([[0, 503].includes(status), rows.has(id)]).toEqual([true, false]);
    expect(kept.filter((id) => !rows.has(id))).toEqual([]);
  });

  test("where three servers start at once on an empty store; a first item that was deleted stays so", async () => {
    const store = { DATABASE_URL: await newStore(), LOG: "off" };
    const starting = [1, 2, 3].map(async () => {
      const { child, stderr, stdout } = spawn(program(), FOLDER, environment(store));
      return { child, stderr, url: await stdout.until(/http:\/\/\S+(?=\n)/) };
    });
    const servers = await Promise.all(starting);
    for (const { url, stderr } of servers) {
      expect(stderr.text).toBe("");
      const list = await fetch(url + ITEMS);
      expect((await list.json()).items).toMatchObject([{ id: "1" }, { id: "2" }]);
    }
    expect(await sent(`DELETE ${servers[0]?.url}${ITEMS}/1`)).toBe(204);
    for (const { child } of servers) child.kill("SIGTERM");
    for (const { child } of servers) expect(await child.exited).toBe(0);

    const again = await start(store);
    expect(idsOf(await again.ask(`GET ${ITEMS}`))).toEqual(["2"]);
    await again.ask(`DELETE ${ITEMS}/2`);
    await again.stop();
    const empty = await start(store);
    expect(idsOf(await empty.ask(`GET ${ITEMS}`))).toEqual([]);
    await empty.stop();
  });
});

// ── Races ── a write decides once, on what is there under the lock: in one process and in two ────

// PostgreSQL commits them one by one: there, who waits too long gets 503, which is a promise too.
describe.concurrent("a race for one item", () => {
  /** Runs a race against one server, and against two on one store. */
  async function inOneAndInTwo(race: (servers: Live[]) => Promise<void>) {
    const [alone, one] = await Promise.all([start({ LOG: "off" }), start({ LOG: "off" })]);
    const two = await start({ LOG: "off", DATABASE_URL: one.store });
    for (const servers of [[alone], [one, two]]) await race(servers);
    for (const to of [alone, one, two]) {
      expect(await to.stop()).toBe(0);
      const waited = /^Writes (get 503: .*|are served again\.)\n/gm;
      expect(POSTGRES ? to.stderr.text.replace(waited, "") : to.stderr.text).toBe("");
    }
  }

  test("of fifty who create one id, one does; of fifty who hold one ETag, one wins", async () => {
    await inOneAndInTwo(async (servers) => {
      const all = (request: string, late: number, asks: (name: string) => Asks = () => ({})) =>
        tally(
          FIFTY.map((n) => turnOf(servers, n).ask(request, asks(`n${n}`))),
          late,
        );
      const create = (name: string) => ({ json: fresh({ id: "race", name }) });
      expect(await all(`POST ${ITEMS}`, 400, create)).toEqual({ 201: 1, 400: 49 });

      const { headers } = await turnOf(servers, 0).ask(`GET ${ITEMS}/race`);
      const put = (name: string) => ({ json: fresh({ name: `${name}, put` }), fleeting: true });
      const over = (name: string) => ({ ...put(name), "if-match": headers.get("etag") });
      expect(await all(`PUT ${ITEMS}/race`, 412, over)).toEqual({ 200: 1, 412: 49 });
      const free = (name: string) => ({ ...put(name), "if-none-match": "*" });
      expect(await all(`PUT ${ITEMS}/kept`, 412, free)).toEqual({ 201: 1, 412: 49 });
      expect(await all(`PUT ${ITEMS}/free`, 200, put)).toEqual({ 200: 49, 201: 1 });
      expect(await all(`DELETE ${ITEMS}/race`, 404)).toEqual({ 204: 1, 404: 49 });
    });
  });

  test("of 800 who put one item at once, each is answered, with the tag of what it has put", async () => {
    const count = POSTGRES ? 200 : 800; // there it would take a minute
    await inOneAndInTwo(async (servers) => {
      const puts = Array.from({ length: count }, async (_, index) => {
        const [name, to] = [`name ${index}`, turnOf(servers, index)];
        const body = JSON.stringify(fresh({ name }));
        const length = `Content-Length: ${Buffer.byteLength(body)}`;
        const head = wire(`PUT ${ITEMS}/hot`, HOST, JSON_TYPE, length);
        const { headers, status } = parse(await exchange(to, head + body));
        return { etag: headers.get("etag"), name, status };
      });
      const all = await Promise.all(puts);
      const answers = all.filter(({ status }) => !(POSTGRES && status === 503));
      const statuses = answers.map(({ status }) => status).toSorted();
      expect(statuses).toEqual([...Array(answers.length - 1).fill(200), 201]);
      expect(new Set(answers.map(({ etag }) => etag)).size).toBe(answers.length);

      const last = await turnOf(servers, 0).ask(`GET ${ITEMS}/hot`);
      const winner = answers.find(({ name }) => name === last.json.item);
      expect(winner?.etag).toBe(last.headers.get("etag"));
    });
  });

  test("fifty who create, put, change and delete one id get only right answers", async () => {
    const required = new Set(["POST 201", "POST 400", "DELETE 204", "DELETE 404", "PUT 200"]);
    const possible = new Set([...required, "PUT 201", "PATCH 200", "PATCH 404"]);
    for (const method of POSTGRES ? ["POST", "PUT", "PATCH", "DELETE"] : [])
      possible.add(`${method} 503`);
    await inOneAndInTwo(async (servers) => {
      const seen = new Map<string, number>();
      // First the two that look alike before and after, then the others as well.
      for (const methods of [
        ["POST", "DELETE"],
        ["POST", "DELETE", "PUT", "PATCH"],
      ])
        await Promise.all(
          FIFTY.map(async (client) => {
            for (let turn = 0; turn < (POSTGRES ? 8 : 20); turn++) {
              const method = methods[random(methods.length)] ?? "";
              const path = method === "POST" ? ITEMS : `${ITEMS}/storm`;
              const json = method === "DELETE" ? undefined : fresh({ id: "storm", name: "same" });
              const to = turnOf(servers, client + turn);
              const reply = await to.ask(`${method} ${path}`, { json, fleeting: true });
              const pair = `${method} ${reply.status}`;
              seen.set(pair, (seen.get(pair) ?? 0) + 1);
              if (reply.status === 400)
                expect(reply.json).toEqual(says(`POST ${ITEMS}`, 400, "exists"));
              // What was refused names nothing that was made, and what was made does.
              const hasLocation = reply.headers.has("location");
              expect([pair, hasLocation]).toEqual([pair, reply.status === 201]);
            }
          }),
        );

      expect([...new Set(seen.keys()).difference(possible)]).toEqual([]);
      expect([...required.difference(new Set(seen.keys()))]).toEqual([]);
      const count = (...pairs: string[]) =>
        pairs.reduce((sum, pair) => sum + (seen.get(pair) ?? 0), 0);
      const left = count("POST 201", "PUT 201") - count("DELETE 204");
      for (const to of servers)
        expect(await to.status(`GET ${ITEMS}/storm`)).toBe(left === 1 ? 200 : 404);
      expect([0, 1]).toContain(left);
    });
  });

  test("no count is lost: who reads, adds one and puts it back if nobody else has", async () => {
    const own = POSTGRES ? 4 : 10; // there each try waits for the disk alone
    await inOneAndInTwo(async (servers) => {
      await turnOf(servers, 0).ask(`PUT ${ITEMS}/count`, { json: fresh({ name: "0" }) });
      const clients = Array.from({ length: 8 }, async (_, client) => {
        for (let added = 0, turn = 0; added < own; turn++) {
          const [reader, writer] = [turnOf(servers, turn), turnOf(servers, client + turn)];
          const { headers, json } = await reader.ask(`GET ${ITEMS}/count`);
          const asks = { json: { name: `${Number(json.item) + 1}` } };
          const fields = { "if-match": headers.get("etag") };
          const status = await writer.status(`PATCH ${ITEMS}/count`, { ...asks, ...fields });
          expect(POSTGRES ? [200, 412, 503] : [200, 412]).toContain(status);
          if (status === 200) added += 1;
        }
      });
      await Promise.all(clients);
      expect((await turnOf(servers, 1).ask(`GET ${ITEMS}/count`)).json.item).toBe(`${8 * own}`);
    });
  });
});

// ── Reads ── may share a snapshot, never one that is older than the last acknowledged write ──────

describe.concurrent("a read", () => {
  test("after an acknowledged write sees it, in the same process and in another", async () => {
    const one = await start({ LOG: "off" });
    const two = await start({ LOG: "off", DATABASE_URL: one.store });
    const clients = Array.from({ length: 16 }, async (_, client) => {
      const [writer, reader] = client % 2 ? [one, two] : [two, one];
      // A new connection may be accepted and read late in a turn, and turns are made long.
      const connection = client < 8 ? "close" : "keep-alive";
      for (let turn = 0; turn < 25; turn++) {
        const [path, name] = [`${ITEMS}/client-${client}`, `${client}, ${turn}`];
        const json = fresh({ name, more: Array(5000).fill([]) });
        const isLate = (status: number) => POSTGRES !== "" && status === 503;
        const written = await writer.status(`PUT ${path}`, { json });
        if (isLate(written)) continue;
        expect([200, 201]).toContain(written);
        const reads = [one, two, reader].map((to) => to.ask(`GET ${path}`, { connection }));
        for (const { json, status } of await Promise.all(reads))
          if (!isLate(status)) expect(json.item).toBe(name);
      }
    });
    await Promise.all(clients);
    await Promise.all([one.stop(), two.stop()]);
  });

  onSqlite(
    "leaves no snapshot open, whatever it met: others write, and empty the log",
    async () => {
      const to = await start({ LOG: "off" });
      using other = new Database(to.store.slice("sqlite://".length));
      other.run("pragma busy_timeout = 1000");
      const emptied = { busy: 0, log: 0, checkpointed: 0 };
      const all = () => FIFTY.map((n) => to.ask(n % 2 ? `GET ${ITEMS}/1` : `GET ${ITEMS}`));
      async function reads(status: number) {
        expect(await tally(all())).toEqual({ [status]: 50 });
        other.run("create table if not exists notes (note text)");
        other.run("insert into notes values ('x')");
        expect(other.query("pragma wal_checkpoint(truncate)").get()).toEqual(emptied);
      }
      await reads(200);
      other.run("begin immediate");
      expect(await tally(all())).toEqual({ 200: 50 });
      other.run("rollback");
      other.run("alter table items rename to gone");
      await reads(500);
      other.run("alter table gone rename to items");
      await reads(200);
      expect(await to.stop()).toBe(0);
    },
  );
});

// ── A lock ── is waited for, up to the time of the request; a 503 is a promise too ───────────────

describe.concurrent("a write that meets a lock of another process", () => {
  onSqlite("waits for a short one; reads do not", async () => {
    const to = await start();
    const unlock = await lock(to.store, "share");
    const write = to.status(`DELETE ${ITEMS}/1`);
    expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
    await unlock();
    expect(await write).toBe(204);
    await to.stop();
  });

  onSqlite(
    "gets 503 from a long one, and is not made, also not later; later ones are",
    async () => {
      const to = await start({ DELAY: "10" });
      const unlock = await lock(to.store, "share");
      const writes = operations().filter(([request]) => !request.startsWith("GET"));
      const early = Promise.all(writes.map(([request, asks]) => to.status(request, asks)));
      let isOver = false;
      void early.then(() => (isOver = true));
      // A late one overtakes nobody, and has a time of its own.
      const late: Promise<number>[] = [];
      while (!isOver) {
        late.push(to.status(`DELETE ${ITEMS}/2`));
        expect(await to.status(`GET ${ITEMS}/1`)).toBe(200);
      }
      await unlock();
      expect(await early).toEqual([503, 503, 503, 503]);
      const statuses = await Promise.all(late);
      expect(statuses.at(-1)).not.toBe(503);
      expect(statuses.filter((status) => status === 204).length).toBe(1);
      expect([...(await namesOf(to.store))]).toEqual([["1", "apple"]]);
      await to.stop();
    },
  );
});

// ── What no race explains ── a write that changes nothing is an error, and nobody tries for ever ─

describe.concurrent("a write that fails", () => {
  const name = POSTGRES ? "(document::json ->> 'name')" : "(document ->> '$.name')";
  const unique = [`create unique index one_of_a_name on items (${name})`];

  test("hurts none that share its commit", async () => {
    const to = await start({ LOG: "off" });
    for (const each of unique) await outside(to.store, each);
    const writes = FIFTY.map((index) =>
      index % 10 === 5
        ? to.ask(`PATCH ${ITEMS}/1`, { json: { name: "banana" } })
        : to.ask(`POST ${ITEMS}`, { json: fresh({ id: `shared-${index}`, name: `${index}` }) }),
    );
    expect(await tally(writes)).toEqual({ 201: 45, 500: 5 });
    const rows = await namesOf(to.store);
    expect([rows.size, rows.get("1")]).toEqual([47, "apple"]);
    await to.stop();
  });

  // Bun's tests connect as a superuser, whom no policy binds: so the sessions take another role.
  const policies = [
    "create policy seen on items for select using (true)",
    "alter table items owner to pg_database_owner",
    "alter table items enable row level security",
    "alter table items force row level security",
    `do $$ begin
      execute format('alter database %I set role = pg_database_owner', current_database());
      perform pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid();
    end $$`,
  ];
  type Obstacle = [what: string, methods: string, statements: string[], cause?: RegExp];
  const obstacles: Obstacle[] = [
    ["a unique index on the name", "PUT PATCH", unique, /UNIQUE|unique/],
    ["a trigger that ignores updates", "PUT PATCH", ignoring("update")],
    ["a trigger that ignores deletions", "DELETE", ignoring("delete")],
  ];
  if (POSTGRES) obstacles.push(["a policy against it", "PUT", policies, /row-level security/]);
  test.each(obstacles)("is 500 with %s; one line says what to look for", async (...obstacle) => {
    const [, methods, statements, cause = /look for a trigger, a rule or a policy/] = obstacle;
    const to = await start({ LOG: "off" });
    for (const each of statements) await outside(to.store, each);
    while ((await to.status(`GET ${ITEMS}/1`)) !== 200);
    for (const method of methods.split(" ")) {
      const asks = method === "DELETE" ? {} : { json: fresh({ name: "banana" }) };
      expect(await to.answer(`${method} ${ITEMS}/1`, asks)).toBe('500 {"error":"Server error"}');
      // What changes nothing is no obstacle, nor is another item.
      expect(await to.status(`DELETE ${ITEMS}/9`)).toBe(404);
    }
    expect(await to.status(`GET ${ITEMS}/2`)).toBe(200);
    expect((await namesOf(to.store)).get("1")).toBe("apple");
    expect(await to.stop()).toBe(0);
    // PUT /items/1: Error: a write changed no row: look for a trigger, …
    const lines = to.stderr.text.split("\n").filter((line) => /^[A-Z]+ \//.test(line));
    const said = lines.filter((line) => cause.test(line)).map((line) => line.split(" ", 1)[0]);
    expect([said, lines.length]).toEqual([methods.split(" "), said.length]);
  });

  test("is 500, not 400, to POST where a trigger ignores what is new", async () => {
    const to = await start({ LOG: "off" });
    for (const each of ignoring("insert")) await outside(to.store, each);
    expect(await to.status(`PUT ${ITEMS}/new`, { json: fresh({}) })).toBe(500);
    expect(await to.status(`POST ${ITEMS}`, { json: fresh({ id: "new" }) })).toBe(500);
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text).toContain("look for a trigger");
  });

  onPostgres("only at its commit is 500 too, without the fields of a success", async () => {
    const to = await start({ LOG: "off" });
    const statements = [
      "create function refuse() returns trigger language plpgsql as $$ begin raise 'late'; end $$",
      `create constraint trigger refusing after insert or update or delete on items
        deferrable initially deferred for each row execute function refuse()`,
    ];
    for (const each of statements) await outside(to.store, each);
    for (const [request, asks] of operations()) {
      const isRead = request.startsWith("GET");
      expect([request, await to.status(request, asks)]).toEqual([request, isRead ? 200 : 500]);
    }
    expect([...(await namesOf(to.store)).keys()].toSorted()).toEqual(["1", "2"]);
    expect(await to.stop()).toBe(0);
    expect(to.stderr.text).toContain("late");
  });
});

/** The statements that make a trigger which ignores an insert, update or delete. */
function ignoring(event: string) {
  const trigger = `create trigger ignoring_${event} before ${event} on items`;
  if (!POSTGRES) return [`${trigger} begin select raise(ignore); end`];
  const body = "returns trigger language plpgsql as 'begin return null; end'";
  return [
    `create or replace function ignore() ${body}`,
    `${trigger} for each row execute function ignore()`,
  ];
}

function random(limit: number) {
  return Math.floor(Math.random() * limit);
}
