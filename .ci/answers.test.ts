/**
 * An answer arrives, though its client says `Connection: close`, or nothing, and goes on sending: a
 * socket that is closed before all was read is reset, and what was on its way is lost.
 *
 *     bun test ./.ci/answers.test.ts     on SQLite, or with TEST_DATABASE_URL
 */
import { expect, test } from "bun:test";
import {
  CHUNKED,
  guarded,
  HOST,
  inspect,
  ITEMS,
  JSON_TYPE,
  open,
  parse,
  start,
  wire,
} from "../server.test";

const live = await start();
const piece = "x".repeat(25_000);
const sized = ["Content-Length: 100000", piece, piece, piece, piece];
const inChunks = [CHUNKED, ...sized.slice(1).map((each) => `61a8\r\n${each}\r\n`), "0\r\n\r\n"];

test.concurrent.each([
  [401, `POST ${ITEMS}`, JSON_TYPE],
  [401, `DELETE ${ITEMS}/1`, ""],
  [404, "POST /nowhere", JSON_TYPE],
  [404, `DELETE ${ITEMS}/9`, ""],
  [405, `POST ${ITEMS}/1`, JSON_TYPE],
  [413, `POST ${ITEMS}`, JSON_TYPE],
  [415, `PUT ${ITEMS}/1`, "Content-Type: text/plain"],
])("%d to %s", async (expected, request, type) => {
  const to = expected === 401 ? guarded : live;
  for (const [framing = "", ...pieces] of [sized, inChunks])
    for (const connection of ["close", "keep-alive"]) {
      const fields = [HOST, type, framing, `Connection: ${connection}`];
      const { answer, socket } = await open(to, wire(request, ...fields));
      for (const each of pieces) {
        await to.ask(`GET ${ITEMS}/9`); // so the server has seen what came before
        expect(socket.write(each)).toBe(each.length);
      }
      const { headers, status } = await inspect(to, request, parse(await answer));
      const said = headers.get("connection") ?? "keep-alive"; // as HTTP/1.1 has it
      expect([status, said]).toEqual([expected, connection]);
      socket.end();
    }
});
