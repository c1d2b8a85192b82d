/** The control socket's client: one request, one answer. */

import { createConnection } from 'node:net';
import { codeOf, errorFromWire, reasonOf, ringfenceError } from '../errors.ts';
import type { ControlRequest, ControlResponse, RESPONSE_SCHEMA } from './protocol.ts';

/**
 * Asks a daemon and waits for its answer, however long it takes.
 *
 * @throws `RF_CONTROL_UNREACHABLE`, `RF_CONTROL_FORBIDDEN`, `RF_CONTROL_LOST`, and whatever error
 *   the daemon answers with
 */
export async function askDaemon(path: string, request: ControlRequest): Promise<unknown> {
  // Schemas take long to load, and most of what runs the command asks no daemon.
  const { encodeLine, RESPONSE_BYTES_MAX, RESPONSE_SCHEMA } = await import('./protocol.ts');
  const line = await exchange(path, encodeLine(request), RESPONSE_BYTES_MAX);
  const response = parseResponse(path, line, RESPONSE_SCHEMA);
  if (response.ok) return response.result;
  throw errorFromWire(response.error.code, response.error.message);
}

function parseResponse(
  path: string,
  line: string,
  schema: typeof RESPONSE_SCHEMA,
): ControlResponse {
  try {
    return schema.parse(JSON.parse(line));
  } catch (error) {
    throw ringfenceError('RF_CONTROL_LOST', [path], error);
  }
}

/** Sends a line and collects what comes until the other side ends the connection. */
function exchange(path: string, line: string, bytesMax: number): Promise<string> {
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
      if (received.length > bytesMax) socket.destroy();
    });
    socket.once('error', (error) => {
      if (connected || codeOf(error) === 'ECONNRESET') {
        reject(ringfenceError('RF_CONTROL_LOST', [path], error));
      } else if (codeOf(error) === 'EACCES') {
        reject(ringfenceError('RF_CONTROL_FORBIDDEN', [path], error));
      } else {
        reject(ringfenceError('RF_CONTROL_UNREACHABLE', [path, reasonOf(error)], error));
      }
    });
    socket.once('close', () => {
      if (received.endsWith('\n')) resolve(received);
      else reject(ringfenceError('RF_CONTROL_LOST', [path]));
    });
  });
}
