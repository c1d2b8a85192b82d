/**
 * The control socket's language: a client sends one line of JSON, the daemon answers with one line
 * when it is done, and the connection ends.
 */

import { z } from 'zod';

/** The longest line that either side reads; a request names at most one export. */
export const REQUEST_BYTES_MAX = 64 << 10;
/** The longest answer: a status of 64 exports is a few tens of kilobytes. */
export const RESPONSE_BYTES_MAX = 1 << 20;

/** What a client can ask. `export` is a name, or null for all. */
export const REQUEST_SCHEMA = z.discriminatedUnion('verb', [
  z.strictObject({ verb: z.literal('status') }),
  z.strictObject({ verb: z.literal('flush'), export: z.string().nullable() }),
  z.strictObject({ verb: z.literal('drain'), export: z.string().nullable() }),
  z.strictObject({ verb: z.literal('resolve'), export: z.string(), accept_loss: z.literal(true) }),
  z.strictObject({ verb: z.literal('stop') }),
]);

/** One of them. */
export type ControlRequest = z.infer<typeof REQUEST_SCHEMA>;

/** What comes back. */
export const RESPONSE_SCHEMA = z.discriminatedUnion('ok', [
  z.strictObject({ ok: z.literal(true), result: z.unknown() }),
  z.strictObject({
    ok: z.literal(false),
    error: z.strictObject({ code: z.string(), message: z.string() }),
  }),
]);

/** One of them. */
export type ControlResponse = z.infer<typeof RESPONSE_SCHEMA>;

/** A message as it goes over the socket. */
export function encodeLine(message: ControlRequest | ControlResponse): string {
  return `${JSON.stringify(message)}\n`;
}
