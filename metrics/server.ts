/** The HTTP server for `/metrics` and `/healthz`. */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Address, formatAddress } from '../daemon/addresses.ts';
import { reasonOf, ringfenceError } from '../daemon/errors.ts';
import type { MetricsPage } from './registry.ts';

/** Scrapers and health checks at a time; more wait in the kernel's queue or are turned away. */
const CONNECTIONS_MAX = 32;
/** A client that has not sent its request by then is disconnected. */
const REQUEST_TIMEOUT_MS = 10_000;

/** Whether the daemon serves, and in one line how it is. */
export interface Health {
  readonly healthy: boolean;
  readonly text: string;
}

/** A running server. */
export interface MetricsServer {
  /** Where it listens: the port is the real one. */
  readonly address: Address & { kind: 'tcp' };
  /** Ends all connections and stops listening. */
  close(): Promise<void>;
}

/**
 * Starts the server.
 *
 * @throws `RF_METRICS_LISTEN`
 */
export async function startMetricsServer(
  address: Address & { kind: 'tcp' },
  page: MetricsPage,
  health: () => Health,
): Promise<MetricsServer> {
  const server = createServer((request, response) => {
    void answer(request, response, page, health);
  });
  server.maxConnections = CONNECTIONS_MAX;
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.headersTimeout = REQUEST_TIMEOUT_MS;
  // Where the system is short of descriptors or memory, a scrape is lost.
  server.on('error', () => undefined);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => {
      reject(ringfenceError('RF_METRICS_LISTEN', [formatAddress(address), reasonOf(error)], error));
    });
    server.listen(address.port, address.host, resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    address: { ...address, port },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  page: MetricsPage,
  health: () => Health,
): Promise<void> {
  const path = request.url?.split('?', 1)[0];
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('allow', 'GET, HEAD');
    send(response, 405, 'Only GET and HEAD are answered here.\n');
  } else if (path === '/metrics') {
    try {
      const text = await page.render();
      send(response, 200, text, page.contentType);
    } catch (error) {
      send(response, 500, `The metrics could not be read: ${reasonOf(error)}.\n`);
    }
  } else if (path === '/healthz') {
    const { healthy, text } = health();
    send(response, healthy ? 200 : 503, `${text}\n`);
  } else {
    send(response, 404, 'There is /metrics and /healthz here.\n');
  }
}

function send(
  response: ServerResponse,
  status: number,
  text: string,
  contentType = 'text/plain; charset=utf-8',
): void {
  // node:http leaves the body out where the request was HEAD.
  response.writeHead(status, {
    'content-type': contentType,
    'content-length': Buffer.byteLength(text),
    'cache-control': 'no-store',
  });
  response.end(text);
}
