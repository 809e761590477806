/**
 * Compiled by `.ci/run`, never run: do two clients know each answer, from the types of server.ts
 * (Eden) and from its document (openapi-fetch, over what openapi-typescript makes of it)?
 */
import { treaty } from "@elysiajs/eden";
import createClient from "openapi-fetch";
import type { paths } from "./document";
import type { App } from "./server";

type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const is = <_ extends true>() => {};

const eden = treaty<App>("127.0.0.1:3000");
const one = await eden.items({ id: "1" }).get();
if (one.error === null) is<Same<typeof one.data.item, string>>();
if (one.error?.status === 404) is<Same<typeof one.error.value.error, string>>();
// @ts-expect-error: there is no such status
if (one.error?.status === 418) is<true>();
const made = await eden.items.post({ id: "3", name: "cherry" });
if (made.error?.status === 422) is<Same<typeof made.error.value.error, string>>();
// @ts-expect-error: the name is missing
await eden.items.post({ id: "3" });

const client = createClient<paths>({ baseUrl: "http://127.0.0.1:3000" });
const item = await client.GET("/items/{id}", { params: { path: { id: "1" } } });
if (item.data) is<Same<typeof item.data.item, string>>();
type Get = paths["/items/{id}"]["get"]["responses"];
is<Same<keyof Get, 200 | 304 | 400 | 401 | 404 | 406 | 412 | 421 | 429 | 500 | 503>>();
is<Same<Get[404]["content"]["application/json"]["error"], "Item not found">>();
type Post = paths["/items"]["post"]["responses"];
is<Same<keyof Post, 201 | 400 | 401 | 403 | 406 | 413 | 415 | 421 | 422 | 429 | 500 | 503>>();
is<Same<Post[201]["content"]["application/json"]["message"], "Item created">>();
// @ts-expect-error: the name is missing
await client.POST("/items", { body: { id: "3" } });
await client.PATCH("/items/{id}", { params: { path: { id: "1" } }, body: { name: "x" } });
