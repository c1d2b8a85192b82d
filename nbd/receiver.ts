/** Bytes that come in pieces, handed on in the amounts that were asked for. */

/** Collects what was asked for. */
export interface Receiver {
  /** Bytes still missing; 0 when nothing is asked for. */
  missing(): number;
  /** Asks for the next bytes, once the last ones have been taken. */
  expect(length: number): void;
  /** Adds bytes; the whole amount once it is there, null before. */
  add(bytes: Uint8Array): Uint8Array | null;
}

/**
 * A receiver that asks for nothing yet.
 *
 * Adding more than is missing is an error of the caller and throws: what follows the last byte of
 * a handshake belongs to somebody else and must not have been read (CVE-2021-3716).
 */
export function createReceiver(): Receiver {
  let wanted = new Uint8Array(0);
  let filled = 0;
  return {
    missing: () => wanted.length - filled,
    expect(length) {
      if (filled !== wanted.length) throw new RangeError('bytes are still missing');
      wanted = new Uint8Array(length);
      filled = 0;
    },
    add(bytes) {
      const missing = wanted.length - filled;
      if (bytes.length > missing) {
        throw new RangeError(`received ${bytes.length} bytes, asked for ${missing}`);
      }
      if (missing === 0) return null;
      wanted.set(bytes, filled);
      filled += bytes.length;
      return filled === wanted.length ? wanted : null;
    },
  };
}
