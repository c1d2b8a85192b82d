/**
 * The other side of a handshake, for tests: messages put together and taken apart by hand, with
 * nothing of what is tested, and a driver that hands in bytes as a socket would.
 */

import type { ExportCatalogue, ExportDescription } from '../../nbd/catalogue.ts';

/** An effect of either role, as far as the driver looks at it. */
type Effect =
  | { readonly type: 'send'; readonly bytes: Uint8Array }
  | { readonly type: 'receive'; readonly length: number }
  | { readonly type: 'begin' }
  | { readonly type: 'close'; readonly reason: string };

/** Either role's machine. */
interface Machine<E extends Effect> {
  start(): E[];
  onBytes(bytes: Uint8Array): E[];
}

/** How a conversation went. */
export interface Conversation<E extends Effect> {
  /** Everything that was sent, in one piece. */
  readonly sent: Buffer;
  /** The sizes of the pieces it was sent in. */
  readonly sends: readonly number[];
  /** `begin` or `close`; null while more bytes are wanted. */
  readonly end: Extract<E, { type: 'begin' | 'close' }> | null;
  /** Bytes still wanted. */
  readonly wanted: number;
  /** Bytes of the stream that were taken. */
  readonly taken: number;
  /** The most bytes that were ever asked for at once. */
  readonly mostWanted: number;
}

/**
 * Hands `stream` to the machine, never more than it asks for; `pieces`, used in turn, cut what it
 * asks for into smaller parts.
 */
export function converse<E extends Effect>(
  machine: Machine<E>,
  stream: Uint8Array,
  pieces: readonly number[] = [],
): Conversation<E> {
  const sent: Uint8Array[] = [];
  let [end, wanted, taken, mostWanted, turn] = [null as Conversation<E>['end'], 0, 0, 0, 0];
  const apply = (effects: readonly E[]): void => {
    wanted = 0;
    effects.forEach((effect, index) => {
      const last = index === effects.length - 1;
      if ((effect.type === 'send') === last) throw new Error('effects in the wrong order');
      if (effect.type === 'send') sent.push(effect.bytes);
      else if (effect.type === 'receive') wanted = effect.length;
      else end = effect as Extract<E, { type: 'begin' | 'close' }>;
    });
    if (wanted === 0 && end === null) throw new Error('neither an end nor a wish');
    mostWanted = Math.max(mostWanted, wanted);
  };
  apply(machine.start());
  while (end === null && taken < stream.length) {
    const piece = pieces.length > 0 ? (pieces[turn % pieces.length] ?? 1) : wanted;
    turn += 1;
    const length = Math.min(piece, wanted, stream.length - taken);
    const part = Uint8Array.from(stream.subarray(taken, taken + length));
    taken += length;
    apply(machine.onBytes(part));
    // Whoever hands in bytes may use the memory again.
    part.fill(0xee);
  }
  const sends = sent.map((bytes) => bytes.length);
  return { sent: Buffer.concat(sent), sends, end, wanted, taken, mostWanted };
}

/** Numbers, strings and bytes in network order: `[size in bytes, value]`, or as they are. */
export function pack(
  ...fields: readonly (readonly [number, number | bigint] | string | Uint8Array)[]
): Buffer {
  return Buffer.concat(
    fields.map((field) => {
      if (typeof field === 'string') return Buffer.from(field, 'utf8');
      if (field instanceof Uint8Array) return field;
      const [size, value] = field;
      return Buffer.from(value.toString(16).padStart(2 * size, '0'), 'hex');
    }),
  );
}

/** The server's greeting. */
export const GREETING = pack('NBDMAGIC', 'IHAVEOPT', [2, 3]);

/** Client flags: fixed newstyle, no zeroes. */
export const CLIENT_FLAGS = pack([4, 3]);

/** An option as a client sends it. */
export function option(code: number, data: Uint8Array | string = ''): Buffer {
  const bytes = Buffer.from(data);
  return pack('IHAVEOPT', [4, code], [4, bytes.length], bytes);
}

/** The data of INFO and GO. */
export function infoData(name: string, kinds: readonly number[] = []): Buffer {
  const bytes = Buffer.from(name);
  const list = kinds.map((kind) => pack([2, kind]));
  return pack([4, bytes.length], bytes, [2, kinds.length], ...list);
}

/** A reply to an option as a server sends it. */
export function reply(code: number, type: number, data: Uint8Array | string = ''): Buffer {
  const bytes = Buffer.from(data);
  return pack([8, 0x3e889045565a9n], [4, code], [4, type], [4, bytes.length], bytes);
}

/** A reply, taken apart. */
export interface ParsedReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** All replies of a stream; throws when it is not made of whole replies. */
export function parseReplies(stream: Buffer): ParsedReply[] {
  const replies: ParsedReply[] = [];
  let rest = stream;
  while (rest.length > 0) {
    if (rest.readBigUInt64BE(0) !== 0x3e889045565a9n) throw new Error('a bad magic number');
    const end = 20 + rest.readUInt32BE(16);
    if (rest.length < end) throw new Error('half a reply');
    const data = rest.subarray(20, end);
    replies.push({ option: rest.readUInt32BE(8), type: rest.readUInt32BE(12), data });
    rest = rest.subarray(end);
  }
  return replies;
}

/** An export of a test. */
export function exportOf(
  name: string,
  more: Partial<Omit<ExportDescription, 'name'>> = {},
): ExportDescription {
  return { name, description: '', sizeBytes: 1n << 30n, readOnly: false, ...more };
}

/** A catalogue of a test. */
export function catalogueOf(...exports: readonly ExportDescription[]): ExportCatalogue {
  return {
    list: () => exports,
    find: (name) => exports.find((candidate) => candidate.name === name) ?? null,
  };
}
