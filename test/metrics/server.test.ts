import { once } from 'node:events';
import { createConnection, createServer, type Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import test, { type ExecutionContext } from 'ava';
import { type Health, startMetricsServer } from '../../metrics/server.ts';

const ANY_PORT = { kind: 'tcp', host: '127.0.0.1', port: 0 } as const;
const PAGE = { contentType: 'text/plain; version=0.0.4', render: async () => 'x 1\n' };

async function serve(
  t: ExecutionContext,
  page: typeof PAGE,
  health: () => Health,
): Promise<(path: string, method?: string) => Promise<Response>> {
  const server = await startMetricsServer(ANY_PORT, page, health);
  t.teardown(() => server.close());
  const { host, port } = server.address;
  return (path, method = 'GET') => fetch(`http://${host}:${port}${path}`, { method });
}

test('the page and the health are served, and nothing else', async (t) => {
  let health: Health = { healthy: true, text: 'serving' };
  const get = await serve(t, PAGE, () => health);
  const page = await get('/metrics?a=b');
  t.deepEqual([page.status, await page.text()], [200, 'x 1\n']);
  t.is(page.headers.get('content-type'), PAGE.contentType);
  const healthy = await get('/healthz');
  t.deepEqual([healthy.status, await healthy.text()], [200, 'serving\n']);
  health = { healthy: false, text: 'stopping' };
  const unhealthy = await get('/healthz');
  t.deepEqual([unhealthy.status, await unhealthy.text()], [503, 'stopping\n']);
  t.is((await get('/')).status, 404);
  t.is((await get('/metrics', 'POST')).status, 405);
  const head = await get('/metrics', 'HEAD');
  t.deepEqual([head.status, await head.text()], [200, '']);
});

test('a page that cannot be made is an error and not an empty page', async (t) => {
  const page = {
    ...PAGE,
    render: async () => {
      throw new Error('the ring has stopped');
    },
  };
  const get = await serve(t, page, () => ({ healthy: true, text: '' }));
  const response = await get('/metrics');
  t.is(response.status, 500);
  t.regex(await response.text(), /the ring has stopped/);
});

/** A client that sends all of it at once, and reads nothing by itself. */
async function client(t: ExecutionContext, port: number, requests: string): Promise<Socket> {
  const socket = createConnection(port, '127.0.0.1').pause();
  socket.on('error', () => undefined);
  t.teardown(() => socket.destroy());
  await once(socket, 'connect');
  socket.write(requests);
  return socket;
}

/** The health, once there is room for somebody who asks for it. */
async function healthOf(port: number): Promise<string> {
  const untilMs = Date.now() + 30_000;
  for (;;) {
    try {
      return await (await fetch(`http://127.0.0.1:${port}/healthz`)).text();
    } catch (error) {
      if (Date.now() > untilMs) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

const SERVING = (): Health => ({ healthy: true, text: 'serving' });

test('clients that pipeline and never read have no page made for each request', async (t) => {
  let pages = 0;
  const page = {
    ...PAGE,
    render: async () => {
      pages += 1;
      return 'x'.repeat(100_000);
    },
  };
  const limits = { connectionsMax: 32, connectionMs: 60_000 };
  const server = await startMetricsServer(ANY_PORT, page, SERVING, limits);
  t.teardown(() => server.close());
  const { port } = server.address;
  for (const version of ['1.1', '1.0']) {
    const request = `GET /metrics HTTP/${version}\r\nhost: x\r\nconnection: keep-alive\r\n\r\n`;
    for (let count = 0; count < 32; count += 1) {
      await client(t, port, request.repeat(200));
    }
    t.is(await healthOf(port), 'serving\n', `HTTP/${version}`);
  }
  t.true(pages <= 64, `${pages} pages`);
});

test('a client that does not take its answer loses its place', async (t) => {
  // More than the kernel's buffers of both ends take.
  const page = { ...PAGE, render: async () => 'x'.repeat(32 << 20) };
  const limits = { connectionsMax: 2, connectionMs: 500 };
  const server = await startMetricsServer(ANY_PORT, page, SERVING, limits);
  t.teardown(() => server.close());
  const { port } = server.address;
  const request = 'GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n';
  for (let count = 0; count < 2; count += 1) await client(t, port, request);
  t.is(await healthOf(port), 'serving\n');
});

test('who asks while a page is being made shares it', async (t) => {
  let pages = 0;
  let release = (): void => undefined;
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  const page = {
    ...PAGE,
    render: async () => {
      pages += 1;
      await gate;
      return `x ${pages}\n`;
    },
  };
  const server = await startMetricsServer(ANY_PORT, page, SERVING);
  t.teardown(() => server.close());
  const { port } = server.address;
  const request = 'GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n';
  const first = await client(t, port, request);
  const second = await client(t, port, request);
  // What was sent before this was asked has arrived when it is answered.
  await healthOf(port);
  release();
  t.regex(await text(first), /\r\n\r\nx 1\n$/);
  t.regex(await text(second), /\r\n\r\nx 1\n$/);
  t.regex(await text(await client(t, port, request)), /\r\n\r\nx 2\n$/, 'the next one is new');
});

test('a busy port is one sentence', async (t) => {
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
  t.teardown(() => other.close());
  const address = other.address();
  if (address === null || typeof address === 'string') return t.fail('no port');
  const busy = { ...ANY_PORT, port: address.port };
  await t.throwsAsync(
    startMetricsServer(busy, PAGE, () => ({ healthy: true, text: '' })),
    {
      code: 'RF_METRICS_LISTEN',
      message:
        /^The metrics page cannot be served on 127\.0\.0\.1:\d+: .* in use; stop what has it/,
    },
  );
});
