/** The control socket's server. Only the daemon's own user may connect. */

import { randomBytes } from 'node:crypto';
import { chmod, link, lstat, mkdir, rename, stat, unlink } from 'node:fs/promises';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { UNIX_PATH_BYTES_MAX } from '../addresses.ts';
import { codeOf, reasonOf, ringfenceError, toRingfenceError } from '../errors.ts';
import {
  type ControlRequest,
  type ControlResponse,
  encodeLine,
  REQUEST_BYTES_MAX,
  REQUEST_SCHEMA,
} from './protocol.ts';

/** Operators at a time; a drain may hold its connection for hours. */
const CONNECTIONS_MAX = 64;
/** How long a client may take to send its request, and then to take its answer and to close. */
const PATIENCE_MS = 10_000;

/** Does what a request asks and answers with its result; a thrown error goes to the client. */
export type ControlHandler = (request: ControlRequest) => Promise<unknown>;

/** A running server. */
export interface ControlServer {
  /** Stops listening, waits for the answers that are being made, and lets them go out. */
  close(): Promise<void>;
}

/**
 * Listens on a Unix socket; one that nobody serves any more is replaced.
 *
 * @throws `RF_CONTROL_BUSY` where another daemon answers, `RF_CONTROL_LISTEN`
 */
export async function startControlServer(
  path: string,
  handle: ControlHandler,
  patienceMs = PATIENCE_MS,
): Promise<ControlServer> {
  if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
    const reason = `its path is longer than ${UNIX_PATH_BYTES_MAX} bytes`;
    throw ringfenceError('RF_CONTROL_LISTEN', [path, reason]);
  }
  const sockets = new Set<Socket>();
  const answers = new Set<Promise<void>>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    serveOne(socket, patienceMs, (line, respond) => {
      const answered = answer(line, handle)
        .then(respond)
        .finally(() => answers.delete(answered));
      answers.add(answered);
    });
  });
  server.maxConnections = CONNECTIONS_MAX;
  // Where the system is short of descriptors or memory, an operator is turned away.
  server.on('error', () => undefined);
  try {
    await makeFolder(path);
    await removeStale(path);
    await listen(server, path);
    await chmod(path, 0o600);
  } catch (error) {
    server.close();
    if (codeOf(error)?.startsWith('RF_')) throw error;
    throw ringfenceError('RF_CONTROL_LISTEN', [path, reasonOf(error)], error);
  }
  return {
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      await Promise.all(answers);
      for (const socket of sockets) socket.destroySoon();
      await closed;
    },
  };
}

/** Reads one line, answers it, ends. A client that goes away early takes nothing with it. */
function serveOne(
  socket: Socket,
  patienceMs: number,
  handleLine: (line: string, respond: (response: ControlResponse) => void) => void,
): void {
  let received = '';
  // Not the socket's own timeout, which every byte would start anew.
  const limit = () => setTimeout(() => socket.destroy(), patienceMs);
  let deadline = limit();
  socket.once('close', () => clearTimeout(deadline));
  const respond = (response: ControlResponse): void => {
    if (!socket.writable) return;
    clearTimeout(deadline);
    deadline = limit();
    socket.end(encodeLine(response));
  };
  const refuse = (problem: string) =>
    respond(failure(ringfenceError('RF_CONTROL_REQUEST', [problem])));
  const onData = (text: string) => {
    received += text;
    const end = received.indexOf('\n');
    if (end < 0 && received.length <= REQUEST_BYTES_MAX) return;
    socket.off('data', onData);
    socket.off('end', onEnd);
    // However long it takes to make the answer.
    clearTimeout(deadline);
    // Read on, so that the end of the client is noticed, and throw away what comes.
    socket.resume();
    if (end < 0) refuse(`it is longer than ${REQUEST_BYTES_MAX} bytes`);
    else handleLine(received.slice(0, end), respond);
  };
  const onEnd = () => refuse('it ended before its line did');
  socket.setEncoding('utf8');
  socket.on('error', () => socket.destroy());
  socket.on('data', onData);
  socket.on('end', onEnd);
}

async function answer(line: string, handle: ControlHandler): Promise<ControlResponse> {
  try {
    return { ok: true, result: await handle(parseRequest(line)) };
  } catch (error) {
    return failure(error);
  }
}

function parseRequest(line: string): ControlRequest {
  let message: unknown;
  try {
    message = JSON.parse(line);
  } catch (error) {
    throw ringfenceError('RF_CONTROL_REQUEST', ['it is not JSON'], error);
  }
  const parsed = REQUEST_SCHEMA.safeParse(message);
  if (parsed.success) return parsed.data;
  const { path, message: problem } = parsed.error.issues[0] ?? { path: [], message: 'unknown' };
  throw ringfenceError('RF_CONTROL_REQUEST', [`${path.join('.') || 'the request'}: ${problem}`]);
}

function failure(error: unknown): ControlResponse {
  const { code, message } = toRingfenceError(error);
  return { ok: false, error: { code, message } };
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** Makes the socket's folder, and refuses one in which another user could put his own socket. */
async function makeFolder(path: string): Promise<void> {
  const folder = dirname(path);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const { uid, mode } = await stat(folder);
  if (uid !== 0 && uid !== process.getuid?.()) {
    throw ringfenceError('RF_CONTROL_LISTEN', [path, 'its folder belongs to another user']);
  }
  if ((mode & 0o002) !== 0) {
    throw ringfenceError('RF_CONTROL_LISTEN', [path, 'everybody may write to its folder']);
  }
}

/**
 * Removes a socket that a killed daemon left, after asking whether somebody answers on it. Another
 * daemon that starts now may have put its own there meanwhile, so what is removed is looked at
 * once more, under a name that nobody else knows.
 */
async function removeStale(path: string): Promise<void> {
  const status = await lstat(path, { bigint: true }).catch(() => null);
  if (status === null) return;
  if (!status.isSocket()) {
    throw ringfenceError('RF_CONTROL_LISTEN', [path, 'something that is no socket is there']);
  }
  if (await isServed(path)) throw ringfenceError('RF_CONTROL_BUSY', [path]);
  const aside = `${path}.${randomBytes(4).toString('hex')}`;
  const isGone = (error: unknown) => {
    if (codeOf(error) !== 'ENOENT') throw error;
    return true;
  };
  if (await rename(path, aside).catch(isGone)) return;
  const moved = await lstat(aside, { bigint: true });
  const isFresh = moved.ino !== status.ino || moved.mtimeNs !== status.mtimeNs;
  if (isFresh) await link(aside, path);
  await unlink(aside);
  if (isFresh) throw ringfenceError('RF_CONTROL_BUSY', [path]);
}

function isServed(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    // A full queue of connections (EAGAIN) means that somebody listens.
    socket.once('error', (error) =>
      resolve(!['ECONNREFUSED', 'ENOENT'].includes(codeOf(error) ?? '')),
    );
  });
}
