/**
 * A small NBD client of the tests' own: it knows when each request left and when its answer came,
 * which the checker of lost and stale data needs and no foreign client tells. It shares no code
 * with the server. Simple replies only; structured replies are left to libnbd and qemu.
 */

import { connect as connectSocket, type Socket } from 'node:net';

const OPTION_MAGIC = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
const OPTION_GO = 7;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const INFO_EXPORT = 0;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;

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

/** A connection in the transmission phase. Requests reject when it breaks. */
export interface NbdConnection {
  readonly sizeBytes: bigint;
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

async function negotiate(socket: Socket, reader: ExactReader, name: string): Promise<bigint> {
  const greeting = await reader.take(18);
  if (greeting.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT') {
    throw new Error('this is no newstyle NBD server');
  }
  const exportName = Buffer.from(name);
  const go = Buffer.alloc(4 + 16 + 4 + exportName.length + 2);
  go.writeUInt32BE(3, 0); // fixed newstyle, no zeroes
  go.writeBigUInt64BE(OPTION_MAGIC, 4);
  go.writeUInt32BE(OPTION_GO, 12);
  go.writeUInt32BE(4 + exportName.length + 2, 16);
  go.writeUInt32BE(exportName.length, 20);
  exportName.copy(go, 24);
  socket.write(go);
  let sizeBytes: bigint | null = null;
  for (;;) {
    const header = await reader.take(20);
    if (header.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) throw new Error('bad option reply magic');
    const type = header.readUInt32BE(12);
    const length = header.readUInt32BE(16);
    const data = length > 0 ? await reader.take(length) : Buffer.alloc(0);
    if (type === REPLY_INFO && data.readUInt16BE(0) === INFO_EXPORT) {
      sizeBytes = data.readBigUInt64BE(2);
    } else if (type === REPLY_ACK) {
      if (sizeBytes === null) throw new Error('GO was acknowledged without a size');
      return sizeBytes;
    } else if (type !== REPLY_INFO) {
      throw new Error(`GO was refused: 0x${type.toString(16)} ${data.toString()}`);
    }
  }
}

interface Pending {
  readonly readLength: number;
  readonly resolve: (data: Buffer) => void;
  readonly reject: (error: Error) => void;
}

async function receiveReplies(
  socket: Socket,
  reader: ExactReader,
  pending: Map<number, Pending>,
): Promise<void> {
  try {
    for (;;) {
      const header = await reader.take(16);
      if (header.readUInt32BE(0) !== SIMPLE_REPLY_MAGIC) throw new Error('bad reply magic');
      const errno = header.readUInt32BE(4);
      const cookie = Number(header.readBigUInt64BE(8));
      const request = pending.get(cookie);
      if (request === undefined) throw new Error(`reply to an unknown request ${cookie}`);
      const data =
        errno === 0 && request.readLength > 0
          ? await reader.take(request.readLength)
          : Buffer.alloc(0);
      pending.delete(cookie);
      if (errno === 0) request.resolve(data);
      else request.reject(Object.assign(new Error(`NBD error ${errno}`), { nbdErrno: errno }));
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
      const readLength = command === COMMAND.read ? length : 0;
      pending.set(lastCookie, { readLength, resolve, reject });
      socket.cork();
      socket.write(requestHeader(command, flags, lastCookie, offset, length));
      if (payload !== null) socket.write(payload);
      socket.uncork();
    });
}

/** Connects to an export. */
export async function connectNbd(address: NbdAddress, name: string): Promise<NbdConnection> {
  const socket = connectSocket(
    'path' in address ? { path: address.path } : { host: '127.0.0.1', port: address.port },
  );
  socket.setNoDelay(true);
  const reader = readExactly(socket);
  const sizeBytes = await negotiate(socket, reader, name).catch((error) => {
    socket.destroy();
    throw error;
  });
  const pending = new Map<number, Pending>();
  const request = createRequester(socket, pending);
  void receiveReplies(socket, reader, pending);
  return {
    sizeBytes,
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
