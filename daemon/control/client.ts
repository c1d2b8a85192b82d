/** The control socket's client: one request, one answer. */

import { createConnection } from 'node:net';
import { codeOf, errorFromWire, reasonOf, ringfenceError } from '../errors.ts';
import {
  type ControlRequest,
  encodeLine,
  RESPONSE_BYTES_MAX,
  RESPONSE_SCHEMA,
} from './protocol.ts';

/**
 * Asks a daemon and waits for its answer, however long it takes.
 *
 * @throws `RF_CONTROL_UNREACHABLE`, `RF_CONTROL_LOST`, and whatever error the daemon answers with
 */
export async function askDaemon(path: string, request: ControlRequest): Promise<unknown> {
  const line = await exchange(path, encodeLine(request));
  const response = parseResponse(path, line);
  if (response.ok) return response.result;
  throw errorFromWire(response.error.code, response.error.message);
}

function parseResponse(path: string, line: string) {
  try {
    return RESPONSE_SCHEMA.parse(JSON.parse(line));
  } catch (error) {
    throw ringfenceError('RF_CONTROL_LOST', [path], error);
  }
}

/** Sends a line and collects what comes until the other side ends the connection. */
function exchange(path: string, line: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path);
    let connected = false;
    let received = '';
    socket.setEncoding('utf8');
    socket.once('connect', () => {
      connected = true;
      socket.write(line);
    });
    socket.on('data', (text: string) => {
      received += text;
      if (received.length > RESPONSE_BYTES_MAX) socket.destroy();
    });
    socket.once('error', (error) => {
      reject(
        connected || codeOf(error) === 'ECONNRESET'
          ? ringfenceError('RF_CONTROL_LOST', [path], error)
          : ringfenceError('RF_CONTROL_UNREACHABLE', [path, reasonOf(error)], error),
      );
    });
    socket.once('close', () => {
      if (received.endsWith('\n')) resolve(received);
      else reject(ringfenceError('RF_CONTROL_LOST', [path]));
    });
  });
}
