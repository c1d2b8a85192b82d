/**
 * A small NBD client of the tests' own: it knows when each request left and when its answer came,
 * which the checker of lost and stale data needs and no foreign client tells. It shares no code
 * with the server. It gets simple replies, or structured ones where a test asks for them.
 */

import { connect as connectSocket, type Socket } from 'node:net';

const OPTION_MAGIC = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
const OPTION_GO = 7;
const OPTION_STRUCTURED_REPLY = 8;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const INFO_EXPORT = 0;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** What both kinds of reply begin with: up to the cookie. */
const REPLY_START_BYTES = 16;
const CHUNK_DONE = 1;
const CHUNK = { none: 0, data: 1, hole: 2, error: 0x8001, errorOffset: 0x8002 } as const;

/** Command numbers of the transmission phase. */
export const COMMAND = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4, zero: 6 } as const;
/** The flag that makes a write durable before it is answered. */
export const FLAG_FUA = 1;

/** The server answered a request with an error. */
export interface NbdFailure extends Error {
  readonly nbdErrno: number;
}

/** Whether a request ended with an answer that says no, and not with a broken connection. */
export function isNbdFailure(error: unknown): error is NbdFailure {
  return error instanceof Error && 'nbdErrno' in error;
}

/** The server broke the protocol, which is no way for a connection to end. */
export interface NbdViolation extends Error {
  readonly nbdViolation: true;
}

/** Whether a request ended because the server broke the protocol. */
export function isNbdViolation(error: unknown): error is NbdViolation {
  return error instanceof Error && 'nbdViolation' in error;
}

function violation(message: string): NbdViolation {
  return Object.assign(new Error(message), { nbdViolation: true as const });
}

/** What a test asks for when it connects. */
export interface NbdOptions {
  /** Whether to negotiate structured replies: reads come in chunks then. */
  readonly structured?: boolean;
}

/** A connection in the transmission phase. Requests reject when it breaks. */
export interface NbdConnection {
  readonly sizeBytes: bigint;
  /** Whether structured replies were negotiated. */
  readonly structured: boolean;
  read(offset: number, length: number): Promise<Buffer>;
  write(offset: number, data: Uint8Array, flags?: number): Promise<void>;
  flush(): Promise<void>;
  trim(offset: number, length: number): Promise<void>;
  zero(offset: number, length: number): Promise<void>;
  /** Whether the connection has broken or was closed. */
  closed(): boolean;
  /** Resolves when the connection is gone, whoever closed it. */
  gone(): Promise<void>;
  /** Says goodbye and closes. */
  disconnect(): Promise<void>;
  /** Closes without a word. */
  destroy(): void;
  /** Sends bytes that are no whole request; nothing waits for an answer to them. */
  sendRaw(bytes: Uint8Array): void;
  /** Stops reading what the server sends. */
  stall(): void;
}

/** Where to connect: a Unix socket's path or a TCP port of this machine. */
export type NbdAddress = { readonly path: string } | { readonly port: number };

/** Bytes of a stream, taken in exact amounts. */
interface ByteQueue {
  push(chunk: Buffer): void;
  take(length: number): Buffer | null;
}

function createByteQueue(): ByteQueue {
  let chunks: Buffer[] = [];
  let available = 0;
  return {
    push: (chunk) => {
      chunks.push(chunk);
      available += chunk.length;
    },
    take: (length) => {
      if (available < length) return null;
      const first = chunks[0];
      if (first !== undefined && first.length > length) {
        chunks[0] = first.subarray(length);
        available -= length;
        return first.subarray(0, length);
      }
      const all = chunks.length === 1 && first !== undefined ? first : Buffer.concat(chunks);
      chunks = all.length > length ? [all.subarray(length)] : [];
      available -= length;
      return all.subarray(0, length);
    },
  };
}

/** Reads exact amounts one after the other; rejects when the stream ends. */
interface ExactReader {
  take(length: number): Promise<Buffer>;
}

function readExactly(socket: Socket): ExactReader & { readonly gone: Promise<void> } {
  const queue = createByteQueue();
  let waiting: { length: number; resolve: (b: Buffer) => void; reject: (e: Error) => void } | null =
    null;
  let broken: Error | null = null;
  const serve = (): void => {
    if (waiting === null) return;
    const bytes = queue.take(waiting.length);
    if (bytes === null && broken === null) return;
    const { resolve, reject } = waiting;
    waiting = null;
    if (bytes !== null) resolve(bytes);
    else reject(broken ?? new Error('connection closed'));
  };
  socket.on('data', (chunk) => {
    queue.push(chunk);
    serve();
  });
  const gone = new Promise<void>((resolve) => {
    socket.on('error', (error) => {
      broken = error;
    });
    socket.on('close', () => {
      broken ??= new Error('connection closed');
      serve();
      resolve();
    });
  });
  return {
    gone,
    take: (length) =>
      new Promise((resolve, reject) => {
        waiting = { length, resolve, reject };
        serve();
      }),
  };
}

function encodeOption(option: number, data: Uint8Array): Buffer {
  const header = Buffer.alloc(16);
  header.writeBigUInt64BE(OPTION_MAGIC, 0);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

interface OptionReply {
  readonly type: number;
  readonly data: Buffer;
}

async function receiveOptionReply(reader: ExactReader): Promise<OptionReply> {
  const header = await reader.take(20);
  if (header.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) throw violation('bad option reply magic');
  const length = header.readUInt32BE(16);
  const data = length > 0 ? await reader.take(length) : Buffer.alloc(0);
  return { type: header.readUInt32BE(12), data };
}

async function askForStructuredReplies(socket: Socket, reader: ExactReader): Promise<void> {
  socket.write(encodeOption(OPTION_STRUCTURED_REPLY, Buffer.alloc(0)));
  const { type, data } = await receiveOptionReply(reader);
  if (type !== REPLY_ACK) {
    throw new Error(`structured replies were refused: 0x${type.toString(16)} ${data.toString()}`);
  }
}

async function negotiate(
  socket: Socket,
  reader: ExactReader,
  name: string,
  structured: boolean,
): Promise<bigint> {
  const greeting = await reader.take(18);
  if (greeting.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT') {
    throw new Error('this is no newstyle NBD server');
  }
  const clientFlags = Buffer.alloc(4);
  clientFlags.writeUInt32BE(3, 0); // fixed newstyle, no zeroes
  socket.write(clientFlags);
  if (structured) await askForStructuredReplies(socket, reader);
  const exportName = Buffer.from(name);
  const go = Buffer.alloc(4 + exportName.length + 2);
  go.writeUInt32BE(exportName.length, 0);
  exportName.copy(go, 4);
  socket.write(encodeOption(OPTION_GO, go));
  let sizeBytes: bigint | null = null;
  for (;;) {
    const { type, data } = await receiveOptionReply(reader);
    if (type === REPLY_INFO && data.readUInt16BE(0) === INFO_EXPORT) {
      sizeBytes = data.readBigUInt64BE(2);
    } else if (type === REPLY_ACK) {
      if (sizeBytes === null) throw violation('GO was acknowledged without a size');
      return sizeBytes;
    } else if (type !== REPLY_INFO) {
      throw new Error(`GO was refused: 0x${type.toString(16)} ${data.toString()}`);
    }
  }
}

/** Content that a chunk told. */
interface Piece {
  readonly offset: number;
  readonly content: Buffer;
}

interface Pending {
  readonly isRead: boolean;
  readonly offset: number;
  readonly readLength: number;
  /** What the chunks so far have told. */
  readonly pieces: Piece[];
  /** The first error that a chunk told, or 0. */
  errno: number;
  readonly resolve: (data: Buffer) => void;
  readonly reject: (error: Error) => void;
}

function finish(request: Pending, errno: number, data: Buffer): void {
  if (errno === 0) request.resolve(data);
  else request.reject(Object.assign(new Error(`NBD error ${errno}`), { nbdErrno: errno }));
}

/** What chunks have told of a read's range, which must be every byte, once. */
function assemble({ offset, readLength, pieces }: Pending): Buffer {
  pieces.sort((a, b) => a.offset - b.offset);
  let end = offset;
  for (const piece of pieces) {
    if (piece.offset !== end) throw violation(`chunks meet at ${piece.offset}, not at ${end}`);
    end += piece.content.length;
  }
  if (end !== offset + readLength) throw violation(`chunks end at ${end}, which is not the end`);
  return Buffer.concat(pieces.map(({ content }) => content));
}

/** Notes what a chunk tells of its request. */
function noteChunk(request: Pending, kind: number, payload: Buffer): void {
  const offset = (at: number): number => Number(payload.readBigUInt64BE(at));
  if (kind === CHUNK.none && payload.length === 0) return;
  if (kind === CHUNK.data && payload.length > 8) {
    request.pieces.push({ offset: offset(0), content: payload.subarray(8) });
  } else if (kind === CHUNK.hole && payload.length === 12) {
    request.pieces.push({ offset: offset(0), content: Buffer.alloc(payload.readUInt32BE(8)) });
  } else if (kind === CHUNK.error || kind === CHUNK.errorOffset) {
    const afterMessage = 6 + payload.readUInt16BE(4);
    const rest = kind === CHUNK.errorOffset ? 8 : 0;
    if (payload.length !== afterMessage + rest) throw violation('an error chunk of a wrong length');
    request.errno ||= payload.readUInt32BE(0);
    if (request.errno === 0) throw violation('an error chunk without an error');
  } else {
    throw violation(`a chunk of kind ${kind} with ${payload.length} bytes`);
  }
}

/** Receives a chunk behind its start; returns whether it was the last of its reply. */
async function receiveChunk(
  start: Buffer,
  reader: ExactReader,
  request: Pending,
): Promise<boolean> {
  const length = (await reader.take(4)).readUInt32BE(0);
  const payload = length > 0 ? await reader.take(length) : Buffer.alloc(0);
  noteChunk(request, start.readUInt16BE(6), payload);
  if ((start.readUInt16BE(4) & CHUNK_DONE) === 0) return false;
  finish(request, request.errno, request.errno === 0 ? assemble(request) : Buffer.alloc(0));
  return true;
}

/** Receives what belongs to a simple reply behind its start. */
async function receiveSimple(start: Buffer, reader: ExactReader, request: Pending): Promise<void> {
  const errno = start.readUInt32BE(4);
  const hasData = errno === 0 && request.readLength > 0;
  finish(request, errno, hasData ? await reader.take(request.readLength) : Buffer.alloc(0));
}

async function receiveReplies(
  socket: Socket,
  reader: ExactReader,
  pending: Map<number, Pending>,
  structured: boolean,
): Promise<void> {
  try {
    for (;;) {
      const start = await reader.take(REPLY_START_BYTES);
      const magic = start.readUInt32BE(0);
      const cookie = Number(start.readBigUInt64BE(8));
      const request = pending.get(cookie);
      if (request === undefined) throw violation(`reply to an unknown request ${cookie}`);
      if (structured && magic === STRUCTURED_REPLY_MAGIC) {
        if (await receiveChunk(start, reader, request)) pending.delete(cookie);
      } else if (magic === SIMPLE_REPLY_MAGIC && !(structured && request.isRead)) {
        await receiveSimple(start, reader, request);
        pending.delete(cookie);
      } else {
        throw violation(`reply magic 0x${magic.toString(16)}`);
      }
    }
  } catch (error) {
    const reason = error instanceof Error ? error : new Error(String(error));
    // First, so that nothing new is sent that nobody would hear the answer of.
    socket.destroy();
    for (const request of pending.values()) request.reject(reason);
    pending.clear();
  }
}

/** A request's 28 bytes. */
export function requestHeader(
  command: number,
  flags: number,
  cookie: number,
  offset: number,
  length: number,
): Buffer {
  const header = Buffer.allocUnsafe(28);
  header.writeUInt32BE(REQUEST_MAGIC, 0);
  header.writeUInt16BE(flags, 4);
  header.writeUInt16BE(command, 6);
  header.writeBigUInt64BE(BigInt(cookie), 8);
  header.writeBigUInt64BE(BigInt(offset), 16);
  header.writeUInt32BE(length, 24);
  return header;
}

/** Sends a request and resolves with what it reads. */
type Requester = (
  command: number,
  flags: number,
  offset: number,
  length: number,
  payload: Uint8Array | null,
) => Promise<Buffer>;

function createRequester(socket: Socket, pending: Map<number, Pending>): Requester {
  let lastCookie = 0;
  return (command, flags, offset, length, payload) =>
    new Promise((resolve, reject) => {
      if (socket.destroyed) {
        reject(new Error('connection closed'));
        return;
      }
      lastCookie += 1;
      const isRead = command === COMMAND.read;
      const readLength = isRead ? length : 0;
      const reply = { isRead, offset, readLength, pieces: [], errno: 0 };
      pending.set(lastCookie, { ...reply, resolve, reject });
      socket.cork();
      socket.write(requestHeader(command, flags, lastCookie, offset, length));
      if (payload !== null) socket.write(payload);
      socket.uncork();
    });
}

/** Connects to an export. */
export async function connectNbd(
  address: NbdAddress,
  name: string,
  { structured = false }: NbdOptions = {},
): Promise<NbdConnection> {
  const socket = connectSocket(
    'path' in address ? { path: address.path } : { host: '127.0.0.1', port: address.port },
  );
  socket.setNoDelay(true);
  const reader = readExactly(socket);
  const sizeBytes = await negotiate(socket, reader, name, structured).catch((error) => {
    socket.destroy();
    throw error;
  });
  const pending = new Map<number, Pending>();
  const request = createRequester(socket, pending);
  void receiveReplies(socket, reader, pending, structured);
  return {
    sizeBytes,
    structured,
    read: (offset, length) => request(COMMAND.read, 0, offset, length, null),
    write: async (offset, data, flags = 0) => {
      await request(COMMAND.write, flags, offset, data.length, data);
    },
    flush: async () => {
      await request(COMMAND.flush, 0, 0, 0, null);
    },
    trim: async (offset, length) => {
      await request(COMMAND.trim, 0, offset, length, null);
    },
    zero: async (offset, length) => {
      await request(COMMAND.zero, 0, offset, length, null);
    },
    closed: () => socket.destroyed,
    gone: () => reader.gone,
    disconnect: async () => {
      if (!socket.destroyed) {
        socket.end(requestHeader(COMMAND.disconnect, 0, 0, 0, 0));
        await reader.gone;
      }
    },
    destroy: () => {
      socket.destroy();
    },
    sendRaw: (bytes) => {
      socket.write(bytes);
    },
    stall: () => {
      socket.pause();
    },
  };
}
