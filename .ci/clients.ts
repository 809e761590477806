/**
 * Compiled by `.ci/run`, never run: do three clients know each answer and refuse a slip of the pen,
 * from the types of server.ts (Eden) and from its document (openapi-fetch, over what
 * openapi-typescript makes of it, and what Hey API makes of it with zod)?
 */
import { treaty } from "@elysiajs/eden";
import createClient from "openapi-fetch";
import type { z } from "zod";
import type { paths } from "./document";
import { createItem, getItem, listItems, patchItem } from "./hey";
import { zCreateItemBody, type zListItemsQuery } from "./hey/zod.gen";
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
// @ts-expect-error: the name is misspelt
await eden.items.post({ id: "3", nmae: "cherry" });
// @ts-expect-error: and it is there, but so is another
await eden.items.post({ id: "3", name: "cherry", nmae: "cherry" });
await eden.items.get({ query: { limit: 10, after: "1" } });
// @ts-expect-error: the limit is a number
await eden.items.get({ query: { limit: "10" } });
// @ts-expect-error: the name is misspelt
await eden.items.get({ query: { nmae: "cherry" } });

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
// @ts-expect-error: the name is misspelt
await client.POST("/items", { body: { id: "3", nmae: "cherry" } });
await client.PATCH("/items/{id}", { params: { path: { id: "1" } }, body: { name: "x" } });
await client.GET("/items", { params: { query: { limit: 10 } } });
// @ts-expect-error: the limit is a number
await client.GET("/items", { params: { query: { limit: "10" } } });
// @ts-expect-error: the name is misspelt
await client.GET("/items", { params: { query: { nmae: "cherry" } } });

await listItems({ query: { limit: 10 } });
// @ts-expect-error: the limit is a number
await listItems({ query: { limit: "10" } });
await createItem({ body: zCreateItemBody.parse({ id: "3", name: "cherry" }) });
// @ts-expect-error: the name is misspelt
await createItem({ body: { id: "3", nmae: "cherry" } });
await patchItem({ path: { id: "1" }, body: { name: "x" }, headers: { "If-Match": "*" } });
// @ts-expect-error: the name is misspelt
await patchItem({ path: { id: "1" }, body: { nmae: "x" } });
const got = await getItem({ path: { id: "1" } });
if (got.data) is<Same<typeof got.data.item, string>>();
is<Same<z.infer<typeof zListItemsQuery>["limit"], number | undefined>>();
