import { once } from 'node:events';
import { access, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type Config, completeConfig } from '../../daemon/config.ts';
import { askDaemon } from '../../daemon/control/client.ts';
import { parseExport } from '../../daemon/exports.ts';
import { type Daemon, startDaemon } from '../../daemon/lifecycle.ts';
import { createFakeNative, type FakeNative, PLACES } from './fake-native.ts';
import { type LogLine, recordedLog } from './recorded-log.ts';
import { temporaryFolder } from './temporary.ts';

interface Setting {
  readonly folder: string;
  readonly config: Config;
  readonly native: FakeNative;
  readonly controller: AbortController;
  readonly lines: LogLine[];
  start(): Promise<Daemon>;
}

/** Real files and sockets around a fake engine. */
async function setting(t: ExecutionContext, change: Partial<Config> = {}): Promise<Setting> {
  const folder = await temporaryFolder(t);
  for (const name of ['cache', 'disk', 'image']) {
    await writeFile(join(folder, name), '');
    await truncate(join(folder, name), 1 << 20);
  }
  const config = completeConfig(
    {
      cache: join(folder, 'cache'),
      exports: [
        parseExport(`disk=${join(folder, 'disk')}`),
        parseExport(`image=${join(folder, 'image')},mode=readonly,order=relaxed`),
      ],
      listen: [`unix:${join(folder, 'nbd.sock')}`, '127.0.0.1:0'],
      metrics: '127.0.0.1:0',
      control: join(folder, 'control.sock'),
    },
    change,
  );
  const native = createFakeNative();
  const controller = new AbortController();
  const { log, lines } = recordedLog();
  return {
    ...{ folder, config, native, controller, lines },
    start: async () => {
      const daemon = await startDaemon(config, { native, log, signal: controller.signal });
      t.teardown(() => daemon.stop('the test is over').catch(() => undefined));
      return daemon;
    },
  };
}

function callNames({ native }: Setting): readonly string[] {
  return native.calls.map(([name]) => name);
}

async function get(daemon: Daemon, path: string): Promise<readonly [number, string]> {
  const { metrics } = daemon.endpoints;
  const response = await fetch(`http://127.0.0.1:${metrics?.port}${path}`);
  return [response.status, await response.text()];
}

test('a daemon listens only after the cache is open, and says where', async (t) => {
  const self = await setting(t);
  const daemon = await self.start();
  t.is(daemon.state(), 'serving');
  t.deepEqual(callNames(self), ['open', 'listen', 'listen']);
  t.deepEqual(daemon.endpoints.nbd, [
    { kind: 'unix', path: join(self.folder, 'nbd.sock') },
    { kind: 'tcp', host: '127.0.0.1', port: 10_809 },
  ]);
  t.true((daemon.endpoints.metrics?.port ?? 0) > 0);
});

test('whoever may connect to a socket is let in by its mode', async (t) => {
  const self = await setting(t, { socketMode: 0o660 });
  const { message } = await t.throwsAsync(self.start(), { code: 'RF_SOCKET_MODE_SET' });
  t.regex(message, /^The mode of .*nbd\.sock cannot be set: it does not exist\.$/);
  const path = join(self.folder, 'nbd.sock');
  await writeFile(path, '', { mode: 0o600 });
  await self.start();
  t.is((await stat(path)).mode & 0o777, 0o660);
});

test('the engine is given what was configured', async (t) => {
  const destage = { destageHighPercent: 7, destageAgeMs: 8, destageIdleMs: 9 };
  const ring = { reserveBytes: 5n << 20n, spinUs: 0, cpu: 1 };
  const self = await setting(t, { ...ring, ...destage, acceptLoss: true, indexBytes: 4096n });
  await self.start();
  const { exports, ...rest } = self.native.opened() ?? { exports: [] };
  t.deepEqual(rest, {
    cachePath: self.config.cache,
    reserveBytes: 5n << 20n,
    connectionsMax: self.config.connectionsMax,
    spinUs: 0,
    cpu: 1,
    ...destage,
    acceptLoss: true,
    indexBytes: 4096n,
    memoryTierPercent: 10,
  });
  t.deepEqual(exports[1], {
    name: 'image',
    originPath: join(self.folder, 'image'),
    mode: 'readonly',
    order: 'relaxed',
    dirtyBytesMax: null,
    waitMs: 30_000,
    originTimeoutMs: 30_000,
  });
});

test('the status has its fixed shape, with integers for bytes', async (t) => {
  const self = await setting(t);
  self.native.guards = [{ measure: 'io_flusher', up: false, advice: 'Give it a capability.' }];
  self.native.counterValues[PLACES.engine('segmentsUsed')] = 3n;
  self.native.counterValues[PLACES.ofExport(0, 'dirtyBytes')] = 8192n;
  self.native.counterValues[PLACES.ofExport(3, 'dirtyBytes')] = 4096n;
  self.native.counterValues[PLACES.ofExport(0, 'originUp')] = 1n;
  self.native.counterValues[PLACES.ofExport(0, 'damaged')] = 1n;
  self.native.counterValues[PLACES.pool('log')] = 64n;
  await self.start();
  const status = await askDaemon(self.config.control, { verb: 'status' });
  t.like(status, {
    cache: { size_bytes: 64 << 20, used_bytes: 12 << 20, unserved_dirty_bytes: 4096 },
    reserve: { size_bytes: 64, used_bytes: 0 },
    guards: { io_flusher: { up: false, advice: 'Give it a capability.' } },
  });
  t.deepEqual((status as { exports: unknown }).exports, [
    {
      name: 'disk',
      size_bytes: 1 << 30,
      mode: 'writeback',
      order: 'strict',
      dirty_bytes: 8192,
      cached_bytes: 0,
      origin: { uri: join(self.folder, 'disk'), state: 'damaged' },
    },
    {
      name: 'image',
      size_bytes: 1 << 30,
      mode: 'readonly',
      order: 'relaxed',
      dirty_bytes: 0,
      cached_bytes: 0,
      origin: { uri: join(self.folder, 'image'), state: 'down' },
    },
  ]);
});

test('a guard that is down is logged once, in plain words', async (t) => {
  const self = await setting(t);
  self.native.guards = [
    { measure: 'memory_locked', up: true, advice: null },
    { measure: 'io_flusher', up: false, advice: 'Give it a capability.' },
  ];
  await self.start();
  const warnings = self.lines.filter(({ level }) => level === 40);
  t.deepEqual(
    warnings.map(({ measure, advice }) => [measure, advice]),
    [['io_flusher', 'Give it a capability.']],
  );
});

test('flush and drain wait for the engine and name the right export', async (t) => {
  const self = await setting(t);
  await self.start();
  const { control } = self.config;
  const flush = askDaemon(control, { verb: 'flush', export: null });
  const drain = askDaemon(control, { verb: 'drain', export: 'image' });
  const asked = async () => self.native.calls.filter(([name]) => name === 'control');
  while ((await asked()).length < 2) await new Promise((resolve) => setImmediate(resolve));
  const calls = await asked();
  const token = (action: string) => Number(calls.find((call) => call[2] === action)?.[1]);
  t.is(calls.find((call) => call[2] === 'drain')?.[3], 1);
  t.is(calls.find((call) => call[2] === 'flush')?.[3], null);
  self.native.emit(
    { type: 'controlDone', token: token('drain'), error: 'the origin is away' },
    { type: 'controlDone', token: token('flush'), error: null },
  );
  t.is(await flush, null);
  await t.throwsAsync(drain, { code: 'RF_ACTION', message: /drain failed: the origin is away/ });
  await t.throwsAsync(askDaemon(control, { verb: 'drain', export: 'nothing' }), {
    code: 'RF_EXPORT_UNKNOWN',
    message: /"nothing".*"disk", "image"/,
  });
});

test('stop answers once the engine has flushed, and leaves no socket', async (t) => {
  const self = await setting(t);
  const daemon = await self.start();
  let release = (): void => undefined;
  self.native.shutdownGate = new Promise((resolve) => {
    release = resolve;
  });
  let isAnswered = false;
  const answer = askDaemon(self.config.control, { verb: 'stop' }).then(() => {
    isAnswered = true;
  });
  while (daemon.state() !== 'stopping') await new Promise((resolve) => setImmediate(resolve));
  const second = askDaemon(self.config.control, { verb: 'stop' });
  // What came later was answered: the second one was heard, too.
  await t.throwsAsync(askDaemon(self.config.control, { verb: 'status' }), {
    code: 'RF_NOT_READY',
    message: /stopping/,
  });
  t.is((await get(daemon, '/healthz'))[0], 503);
  t.false(isAnswered);
  release();
  await answer;
  t.is(await second, null);
  await daemon.stopped;
  t.is(callNames(self).filter((name) => name === 'shutdown').length, 1);
  await t.throwsAsync(access(self.config.control), { code: 'ENOENT' });
  await t.throwsAsync(get(daemon, '/healthz'));
});

test('a signal stops the daemon, also one that comes while it starts', async (t) => {
  const running = await setting(t);
  const daemon = await running.start();
  running.controller.abort('SIGTERM');
  await daemon.stopped;
  t.is(daemon.state(), 'stopped');

  const early = await setting(t);
  let release = (): void => undefined;
  early.native.openGate = new Promise((resolve) => {
    release = resolve;
  });
  const starting = early.start();
  early.controller.abort('SIGTERM');
  release();
  const stopped = await starting;
  await stopped.stopped;
  t.deepEqual(callNames(early), ['open', 'shutdown']);
});

test('a damaged export is named by a drain that fails, and resolved alone', async (t) => {
  const self = await setting(t);
  await self.start();
  const { control } = self.config;
  const asked = () => self.native.calls.filter(([name]) => name === 'control');
  const resolve = (name: string) =>
    askDaemon(control, { verb: 'resolve', export: name, accept_loss: true });
  await t.throwsAsync(resolve('disk'), { code: 'RF_NOT_DAMAGED' });
  t.is(asked().length, 0);
  self.native.counterValues[PLACES.ofExport(1, 'damaged')] = 1n;
  const drain = askDaemon(control, { verb: 'drain', export: null });
  while (asked().length < 1) await new Promise((done) => setImmediate(done));
  self.native.emit({ type: 'controlDone', token: Number(asked()[0]?.[1]), error: 'I/O error' });
  await t.throwsAsync(drain, { code: 'RF_DAMAGED', message: /ringfence resolve image --accept/ });
  await t.throwsAsync(resolve('disk'), { code: 'RF_NOT_DAMAGED' });
  const resolved = resolve('image');
  while (asked().length < 2) await new Promise((done) => setImmediate(done));
  t.deepEqual(asked()[1]?.slice(2), ['resolve', 1]);
  self.native.emit({ type: 'controlDone', token: Number(asked()[1]?.[1]), error: null });
  t.is(await resolved, null);
});

test('a drain on the way fails when the daemon stops', async (t) => {
  const self = await setting(t);
  const daemon = await self.start();
  const drain = askDaemon(self.config.control, { verb: 'drain', export: null });
  while (!callNames(self).includes('control')) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all([
    t.throwsAsync(drain, { code: 'RF_ACTION', message: /the daemon stopped first/ }),
    daemon.stop('test'),
  ]);
});

test('a last flush that fails is the end of the daemon, loudly', async (t) => {
  const self = await setting(t);
  self.native.failures.set('shutdown', new Error('the last flush failed: see the log.'));
  const daemon = await self.start();
  const said = {
    code: 'RF_STOP',
    message:
      'The daemon stopped, but the last flush failed: see the log; ' +
      'what was not flushed before may be lost.',
  };
  await t.throwsAsync(askDaemon(self.config.control, { verb: 'stop' }), said);
  await t.throwsAsync(daemon.stop('test'), said);
  await t.throwsAsync(daemon.stopped, said);
  await t.throwsAsync(access(self.config.control), { code: 'ENOENT' });
});

test('a cache that cannot be opened leaves nothing behind', async (t) => {
  const self = await setting(t);
  self.native.failures.set('open', new Error('cache device x: formatted by a newer version.'));
  await t.throwsAsync(self.start(), {
    code: 'RF_OPEN',
    message: 'The cache cannot be served: cache device x: formatted by a newer version.',
  });
  await t.throwsAsync(access(self.config.control), { code: 'ENOENT' });
  t.deepEqual(callNames(self), ['open']);
  t.is((await self.start()).state(), 'serving', 'and it can be started again');
});

test('what has to be changed before a cache can be opened is a refusal', async (t) => {
  const self = await setting(t);
  const refusal = Object.assign(new Error('cache device x: no cache.'), { code: 'InvalidArg' });
  self.native.failures.set('open', refusal);
  await t.throwsAsync(self.start(), {
    code: 'RF_OPEN_REFUSED',
    message: 'The cache cannot be served as asked: cache device x: no cache.',
  });
});

test('an address that cannot be listened on ends the engine again', async (t) => {
  const self = await setting(t);
  self.native.failures.set('listen', new Error('cannot listen on x: the address is in use.'));
  await t.throwsAsync(self.start(), { code: 'RF_LISTEN', message: /the address is in use\.$/ });
  t.deepEqual(callNames(self), ['open', 'listen', 'shutdown']);
});

test('a busy metrics port stops the start before the cache is touched', async (t) => {
  const server = createServer().listen(0, '127.0.0.1');
  t.teardown(() => server.close());
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' ? address?.port : 0;
  const self = await setting(t, { metrics: `127.0.0.1:${port}` });
  await t.throwsAsync(self.start(), { code: 'RF_METRICS_LISTEN' });
  t.deepEqual(self.native.calls, []);
});

test('two daemons on one control socket: the second is refused, the first goes on', async (t) => {
  const self = await setting(t);
  const daemon = await self.start();
  await t.throwsAsync(self.start(), { code: 'RF_CONTROL_BUSY' });
  t.is(daemon.state(), 'serving');
  const status = await askDaemon(self.config.control, { verb: 'status' });
  t.like(status, { cache: { path: self.config.cache } });
});

test('devices are looked at before anything is opened', async (t) => {
  const self = await setting(t);
  const disk = join(self.folder, 'disk');
  const alias = join(self.folder, 'alias');
  await symlink(disk, alias);
  const wrong: readonly (readonly [Partial<Config>, string, RegExp])[] = [
    [{ cache: `${disk}-missing` }, 'RF_DEVICE_MISSING', /cache device .*-missing does not exist/],
    [{ cache: self.folder }, 'RF_DEVICE_KIND', /cache device .* is a directory/],
    [{ cache: '/dev/null' }, 'RF_DEVICE_KIND', /is a character device/],
    [{ exports: [parseExport(`a=${disk}-missing`)] }, 'RF_DEVICE_MISSING', /origin .*-missing/],
    [{ exports: [parseExport(`a=${self.folder}`)] }, 'RF_DEVICE_KIND', /origin .* is a directory/],
    [{ exports: [parseExport(`a=${self.config.cache}`)] }, 'RF_ORIGIN_IS_CACHE', /"a"/],
    [
      { exports: [parseExport(`a=${disk}`), parseExport(`b=${alias}`)] },
      'RF_ORIGIN_TWICE',
      /"a" and "b" share the origin/,
    ],
  ];
  for (const [change, code, message] of wrong) {
    const { log } = recordedLog();
    const config = { ...self.config, ...change };
    const { native, controller } = self;
    const error = await t.throwsAsync(
      startDaemon(config, { native, log, signal: controller.signal }),
      { code, message },
    );
    t.notRegex(error?.message ?? '', /\n/);
  }
  t.deepEqual(self.native.calls, []);
});

test('the page and the health follow the engine', async (t) => {
  const self = await setting(t);
  const daemon = await self.start();
  self.native.counterValues[PLACES.ofExport(0, 'dirtyBytes')] = 4096n;
  t.regex((await get(daemon, '/metrics'))[1], /^ringfence_dirty_bytes\{export="disk"\} 4096$/m);
  t.deepEqual(await get(daemon, '/healthz'), [200, 'serving\n']);
  self.native.counterValues[PLACES.engine('latched')] = 1n;
  const [status, text] = await get(daemon, '/healthz');
  t.is(status, 503);
  t.regex(text, /cache device failed/);
});

test('events that came before the engine was ready are heard', async (t) => {
  const self = await setting(t);
  const { log, lines } = recordedLog();
  const notice = { type: 'notice', notice: 'origin_down', slot: 0, detail: 'x' } as const;
  self.native.emit(notice);
  const { native, controller } = self;
  const daemon = await startDaemon(self.config, { native, log, signal: controller.signal });
  t.true(lines.some(({ notice: what, export: name }) => what === 'origin_down' && name === 'disk'));
  await daemon.stop('test');
});
