/**
 * Other servers that do the same work, each as its documentation would have it, for
 * `bun server.bench.ts --peers`: what is installed, how it is started, and its program.
 */

/** What the four share: an SQLite file that keeps what it has acknowledged. */
const STORE = `
  const db = new Database(process.env.FILE);
  db.exec("pragma journal_mode = wal; pragma synchronous = full");
  db.exec("create table if not exists items (id text primary key, name text not null)");
  db.exec("insert or ignore into items values ('1', 'apple'), ('2', 'banana')");
  const list = db.prepare("select * from items order by id limit 20");
  const find = db.prepare("select * from items where id = ?");
  const insert = db.prepare("insert into items values (?, ?) on conflict do nothing");
  const update = db.prepare("update items set name = ? where id = ?");
  const remove = db.prepare("delete from items where id = ?");
  const at = (id) => "/items/" + encodeURIComponent(id);`;
const ON_BUN = `import { Database } from "bun:sqlite";${STORE}`;
const ON_NODE = `import Database from "better-sqlite3";${STORE}`;
const NODE = "node@26.10.0"; // better-sqlite3 and json-server want a newer one than many have
const BETTER_SQLITE = "better-sqlite3@13.2.0";

export type Peer = { packages: string[]; run: string; program?: string };
export const PEERS: Peer[] = [
  {
    packages: ["hono@4.13.19"],
    run: "exec bun server.js",
    program: `${ON_BUN}
      import { Hono } from "hono";
      import { etag } from "hono/etag";
      import { validator } from "hono/validator";

      const body = (...members) => validator("json", (value, c) =>
        members.every((each) => typeof value[each] === "string") ? value : c.text("Invalid!", 400));

      const app = new Hono();
      app.use("/items/*", etag());
      app.get("/items", (c) => c.json(list.all()));
      app.get("/items/:id", (c) => {
        const item = find.get(c.req.param("id"));
        return item ? c.json(item) : c.notFound();
      });
      app.post("/items", body("id", "name"), (c) => {
        const { id, name } = c.req.valid("json");
        if (!insert.run(id, name).changes) return c.json({ error: "Taken" }, 409);
        return c.json({ message: "Created!" }, 201, { Location: at(id) });
      });
      app.put("/items/:id", body("name"), (c) => {
        const { changes } = update.run(c.req.valid("json").name, c.req.param("id"));
        return changes ? c.json({ message: "Updated!" }) : c.notFound();
      });
      app.delete("/items/:id", (c) =>
        remove.run(c.req.param("id")).changes ? c.body(null, 204) : c.notFound());
      export default { fetch: app.fetch, hostname: "127.0.0.1", port: process.env.PORT };`,
  },
  {
    packages: ["fastify@5.12.8", "@fastify/etag@6.2.0", BETTER_SQLITE, NODE],
    run: "exec node server.js",
    program: `${ON_NODE}
      import Fastify from "fastify";
      import etag from "@fastify/etag";

      const body = (...required) => ({ schema: { body: { type: "object", required,
        properties: { id: { type: "string" }, name: { type: "string" } } } } });

      const fastify = Fastify();
      await fastify.register(etag);
      fastify.get("/items", () => list.all());
      fastify.get("/items/:id", (request, reply) =>
        find.get(request.params.id) ?? reply.callNotFound());
      fastify.post("/items", body("id", "name"), (request, reply) => {
        const { id, name } = request.body;
        if (!insert.run(id, name).changes) return reply.code(409).send({ error: "Taken" });
        return reply.code(201).header("Location", at(id)).send({ message: "Created" });
      });
      fastify.put("/items/:id", body("name"), (request, reply) => {
        const { changes } = update.run(request.body.name, request.params.id);
        return changes ? { message: "Updated" } : reply.callNotFound();
      });
      fastify.delete("/items/:id", (request, reply) =>
        remove.run(request.params.id).changes ? reply.code(204).send() : reply.callNotFound());
      await fastify.listen({ port: process.env.PORT });`,
  },
  {
    packages: ["express@5.3.0", BETTER_SQLITE, NODE],
    run: "exec node server.js",
    program: `${ON_NODE}
      import express from "express";

      const body = (...members) => (req, res, next) =>
        members.every((each) => typeof req.body?.[each] === "string") ? next() : res.sendStatus(400);

      const app = express();
      app.use(express.json());
      app.get("/items", (req, res) => res.json(list.all()));
      app.get("/items/:id", (req, res) => {
        const item = find.get(req.params.id);
        return item ? res.json(item) : res.sendStatus(404);
      });
      app.post("/items", body("id", "name"), (req, res) => {
        const { id, name } = req.body;
        if (!insert.run(id, name).changes) return res.sendStatus(409);
        res.status(201).location(at(id)).json({ message: "Created" });
      });
      app.put("/items/:id", body("name"), (req, res) =>
        res.sendStatus(update.run(req.body.name, req.params.id).changes ? 200 : 404));
      app.delete("/items/:id", (req, res) =>
        res.sendStatus(remove.run(req.params.id).changes ? 204 : 404));
      app.listen(process.env.PORT, "127.0.0.1");`,
  },
  {
    packages: ["elysia@1.4.30"],
    run: "exec bun server.js",
    program: `${ON_BUN}
      import { Elysia, t } from "elysia";

      new Elysia()
        .get("/items", () => list.all())
        .get("/items/:id", ({ params, status }) => find.get(params.id) ?? status(404))
        .post("/items", ({ body: { id, name }, set, status }) => {
          if (!insert.run(id, name).changes) return status(409);
          set.headers.location = at(id);
          return status(201, { message: "Created" });
        }, { body: t.Object({ id: t.String(), name: t.String() }) })
        .put("/items/:id", ({ body, params, status }) =>
          update.run(body.name, params.id).changes ? { message: "Updated" } : status(404),
          { body: t.Object({ name: t.String() }) })
        .delete("/items/:id", ({ params, status }) =>
          status(remove.run(params.id).changes ? 204 : 404))
        .listen({ hostname: "127.0.0.1", port: process.env.PORT });`,
  },
  ...["json-server@0.17.4", "json-server@1.0.0-beta.15"].map((version) => ({
    packages: [version, NODE],
    run: `echo '{"items":[{"id":"1","name":"apple"},{"id":"2","name":"banana"}]}' > "$FILE.json"
      exec json-server "$FILE.json" --port "$PORT" --host 127.0.0.1`,
  })),
];
