/** What can be served, as negotiation sees it, and how an export describes itself. */

import { TRANSMISSION_FLAG } from './constants.ts';

/** An export, as a client hears of it. Nothing here touches the origin. */
export interface ExportDescription {
  /** UTF-8, 1 to 4096 bytes, without NUL. */
  readonly name: string;
  /** One line for people; empty for none. At most 4096 bytes. */
  readonly description: string;
  readonly sizeBytes: bigint;
  readonly readOnly: boolean;
}

/** All exports that a client may ask for. */
export interface ExportCatalogue {
  /** In the order that clients are shown; the first one is the default export. */
  list(): readonly ExportDescription[];
  /** The export of exactly this name, or null. */
  find(name: string): ExportDescription | null;
}

/** The export that a client means: the empty name is the default export's. */
export function resolveExport(catalogue: ExportCatalogue, name: string): ExportDescription | null {
  return name === '' ? (catalogue.list()[0] ?? null) : catalogue.find(name);
}

/**
 * The transmission flags of an export, for every way to learn of them.
 *
 * FUA and FLUSH stand on read-only exports too: a client that uses them there is right. Several
 * connections share one cache, so a flush on one covers the others. `NBD_FLAG_SEND_DF` must not be
 * shown unless structured replies were negotiated.
 */
export function transmissionFlags(
  description: ExportDescription,
  structuredReplies: boolean,
): number {
  const always =
    TRANSMISSION_FLAG.hasFlags |
    TRANSMISSION_FLAG.sendFlush |
    TRANSMISSION_FLAG.sendFua |
    TRANSMISSION_FLAG.canMultiConn;
  const access = description.readOnly
    ? TRANSMISSION_FLAG.readOnly
    : TRANSMISSION_FLAG.sendTrim | TRANSMISSION_FLAG.sendWriteZeroes;
  return always | access | (structuredReplies ? TRANSMISSION_FLAG.sendDf : 0);
}
