/** Big-endian numbers, strings and their concatenation: the one codec below all messages. */

import { STRING_BYTES_MAX } from './constants.ts';

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A number as 2 bytes. */
export function u16(value: number): Uint8Array {
  const bytes = new Uint8Array(2);
  viewOf(bytes).setUint16(0, value);
  return bytes;
}

/** A number as 4 bytes. */
export function u32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value);
  return bytes;
}

/** A number as 8 bytes. */
export function u64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  viewOf(bytes).setBigUint64(0, value);
  return bytes;
}

/** A string as UTF-8. */
export function utf8(text: string): Uint8Array {
  return encoder.encode(text);
}

/** All parts, one after the other. */
export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** The 2 bytes at `at`. Throws a RangeError outside of `bytes`, like the others. */
export function readU16(bytes: Uint8Array, at: number): number {
  return viewOf(bytes).getUint16(at);
}

/** The 4 bytes at `at`. */
export function readU32(bytes: Uint8Array, at: number): number {
  return viewOf(bytes).getUint32(at);
}

/** The 8 bytes at `at`. */
export function readU64(bytes: Uint8Array, at: number): bigint {
  return viewOf(bytes).getBigUint64(at);
}

/**
 * A string of the protocol: UTF-8 of at most 4096 bytes without NUL; null when it is none.
 */
export function decodeString(bytes: Uint8Array): string | null {
  if (bytes.length > STRING_BYTES_MAX || bytes.includes(0)) return null;
  try {
    return decoder.decode(bytes);
  } catch {
    return null;
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
