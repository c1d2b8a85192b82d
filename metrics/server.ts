/** The HTTP server for `/metrics` and `/healthz`. */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { type Address, formatAddress } from '../daemon/addresses.ts';
import { reasonOf, ringfenceError } from '../daemon/errors.ts';
import type { MetricsPage } from './registry.ts';

/** What clients can hold of the server. */
export interface MetricsLimits {
  /** Scrapers and health checks at a time; more wait in the kernel's queue or are turned away. */
  readonly connectionsMax: number;
  /** A client that does not have its answer by then, for whatever reason, is disconnected. */
  readonly connectionMs: number;
}

const LIMITS: MetricsLimits = { connectionsMax: 32, connectionMs: 30_000 };
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
  limits = LIMITS,
): Promise<MetricsServer> {
  const shared = { ...page, render: oneAtATime(page.render) };
  const asked = new WeakSet<Socket>();
  const server = createServer((request, response) => {
    const { socket } = request;
    // One request a connection: who sends many without reading would have a page made for each.
    if (asked.has(socket)) {
      socket.destroy();
      return;
    }
    asked.add(socket);
    response.setHeader('connection', 'close');
    void answer(request, response, shared, health);
  });
  server.on('connection', (socket) => {
    const deadline = setTimeout(() => socket.destroy(), limits.connectionMs);
    socket.once('close', () => clearTimeout(deadline));
  });
  server.maxConnections = limits.connectionsMax;
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

/** Whoever asks while a page is being made gets that one: a crowd costs no more than a scraper. */
function oneAtATime(render: MetricsPage['render']): MetricsPage['render'] {
  let underWay: Promise<string> | null = null;
  return () => {
    underWay ??= render().finally(() => {
      underWay = null;
    });
    return underWay;
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
