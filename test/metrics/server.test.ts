import { createServer } from 'node:net';
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
      message: /^The metrics page cannot be served on 127\.0\.0\.1:\d+: .*already in use\.$/,
    },
  );
});
