/** The real daemon from format to stop, as an operator meets it. */

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { writeContentFile } from '../support/content.ts';
import { loopDevice, MIB, temporaryFolder } from '../support/loop.ts';
import { projectRoot, run, runAnyway, startProcess, waitUntil } from '../support/process.ts';
import {
  ask,
  type Daemon,
  exportUri,
  killAndRestart,
  readMetric,
  readStatus,
  ringfenceCommand,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { testScope } from '../support/scope.ts';
import { formatDisk, SMALL, serveDisk } from '../support/setting.ts';

/** All keys of a value, those of its parts included: `a`, `a.b`, `a.0.b`. */
function keysOf(value: unknown, prefix = ''): readonly string[] {
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, part]) => [
    `${prefix}${key}`,
    ...keysOf(part, `${prefix}${key}.`),
  ]);
}

/** Fills the export with content; the file that it came from. */
async function fill(daemon: Daemon): Promise<string> {
  const source = join(daemon.setup.folder, 'source');
  writeContentFile(source, 16 * MIB, 7);
  await run('nbdcopy', ['--flush', source, exportUri(daemon.setup, 'disk')]);
  return source;
}

function digest(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

test.serial('flush, drain, status, metrics and stop work on the real thing', async (t) => {
  const { daemon } = await serveDisk(t, SMALL);
  const source = await fill(daemon);
  t.regex(await ask(daemon, 'flush'), /durable on the cache device/);
  await ask(daemon, 'drain', 'disk');
  const origin = daemon.setup.exports[0]?.origin ?? '';
  t.is(digest(origin), digest(source), 'the origin has everything');

  const status = await readStatus(daemon);
  t.is(status.cache.size_bytes, 64 * MIB);
  t.true(status.cache.used_bytes >= 16 * MIB);
  t.like(status.exports[0], { name: 'disk', size_bytes: 16 * MIB, dirty_bytes: 0 });
  t.deepEqual(status.exports[0]?.origin, { uri: origin, state: 'up' });
  t.like(status.exports[0], { mode: 'writeback', order: 'strict' });
  t.regex(await ask(daemon, 'status'), /^disk +16 MiB +writeback +strict/m);

  const written = await readMetric(daemon, 'ringfence_request_bytes_total');
  t.is(written.get('{export="disk",op="write"}'), 16 * MIB);
  const destaged = await readMetric(daemon, 'ringfence_destaged_bytes_total');
  t.is(destaged.get('{export="disk"}'), 16 * MIB);
  const up = await readMetric(daemon, 'ringfence_origin_up');
  t.is(up.get('{export="disk"}'), 1);
  const requests = await readMetric(daemon, 'ringfence_requests_total');
  const counts = await readMetric(daemon, 'ringfence_request_duration_seconds_count');
  for (const [labels, count] of counts) t.is(requests.get(labels), count, labels);

  await ask(daemon, 'stop');
  t.deepEqual(await daemon.background.wait(), { exitCode: 0, signal: null });
});

test.serial('the status of the operations page is the real one', async (t) => {
  const { daemon } = await serveDisk(t, SMALL);
  const page = readFileSync(join(projectRoot, 'docs', 'operations.md'), 'utf8');
  const example = /^## Status\n.*?```json\n(.*?)```/ms.exec(page)?.[1] ?? '';
  const variable = /^(guards|reserve\.pools)\.\w+/;
  const keys = (status: unknown) => keysOf(status).filter((key) => !variable.test(key));
  t.deepEqual(keys(await readStatus(daemon)).toSorted(), keys(JSON.parse(example)).toSorted());
});

test.serial('format asks on a pipe too, and takes only "yes" for an answer', async (t) => {
  const scope = testScope(t);
  const { device } = await loopDevice(scope, temporaryFolder(scope), 'cache', 64 * MIB);
  const words = ['format', device, '--segment', '4MiB'];
  const no = await runAnyway(ringfenceCommand, words, { input: 'no\n' });
  t.is(no.exitCode, 2);
  t.regex(no.stderr, /was left as it is.*\[RF_NOT_CONFIRMED\]$/);
  t.regex(no.stdout, /^model +loop$/m);
  const nobody = await runAnyway(ringfenceCommand, words);
  t.is(nobody.exitCode, 2);
  t.regex((await runAnyway(ringfenceCommand, ['doctor', '--cache', device])).stdout, /cache +none/);
  const yes = await runAnyway(ringfenceCommand, words, { input: 'yes\n' });
  t.is(yes.exitCode, 0, yes.stderr);
  t.regex(yes.stdout, /is now the cache [0-9a-f-]{36}: 15 segments of 4 MiB\.$/);
});

test.serial('promtool finds nothing wrong with the page of a daemon that has served', async (t) => {
  const { daemon } = await serveDisk(t, SMALL);
  await fill(daemon);
  const page = await fetch(`http://127.0.0.1:${daemon.setup.metricsPort}/metrics`);
  const { status, stdout, stderr, error } = spawnSync('promtool', ['check', 'metrics'], {
    input: await page.text(),
    encoding: 'utf8',
  });
  t.is(error, undefined);
  t.is(`${stdout}${stderr}`.trim(), '');
  t.is(status, 0);
  const health = await fetch(`http://127.0.0.1:${daemon.setup.metricsPort}/healthz`);
  t.deepEqual([health.status, await health.text()], [200, 'serving\n']);
});

test.serial(
  'a second start finds the data of the first, after SIGTERM and after SIGKILL',
  async (t) => {
    const scope = testScope(t);
    const { daemon } = await serveDisk(t, SMALL);
    const source = await fill(daemon);
    const copy = join(daemon.setup.folder, 'copy');
    const uri = exportUri(daemon.setup, 'disk');
    await stopDaemon(daemon);
    const second = await startDaemon(scope, daemon.setup);
    await run('nbdcopy', [uri, copy]);
    t.is(digest(copy), digest(source));
    await killAndRestart(scope, second);
    await run('nbdcopy', [uri, copy]);
    t.is(digest(copy), digest(source));
  },
);

test.serial('the printed addresses are where it listens', async (t) => {
  const { daemon } = await serveDisk(t, SMALL);
  const output = daemon.background.output();
  const uri = /^ {2}(nbd\+unix:\S+)$/m.exec(output)?.[1] ?? '';
  t.regex(await run('nbdinfo', ['--size', uri]), /^16777216$/m);
  const attach = `${ringfenceCommand} attach disk --connect unix:${socketPath(daemon.setup)}\n`;
  t.true(output.includes(attach), output);
  const page = /^metrics: (http:\S+)$/m.exec(output)?.[1] ?? '';
  t.is((await fetch(page)).status, 200);
});

test.serial('a read-only export says so and takes no writes', async (t) => {
  const { daemon } = await serveDisk(t, { ...SMALL, options: 'mode=readonly' });
  const uri = exportUri(daemon.setup, 'disk');
  t.is((await runAnyway('nbdinfo', ['--is', 'read-only', uri])).exitCode, 0);
  t.like((await readStatus(daemon)).exports[0], { mode: 'readonly' });
});

test.serial(
  'doctor names what is on the device of a stopped and of a running daemon',
  async (t) => {
    const { daemon } = await serveDisk(t, SMALL);
    await fill(daemon);
    const { cache } = await readStatus(daemon);
    const uuid = (cache as unknown as { uuid: string }).uuid;
    const doctor = () => run(ringfenceCommand, ['doctor', '--cache', daemon.setup.cache]);
    t.regex(await doctor(), /^ +in use +The cache device .* held open/m);
    await stopDaemon(daemon);
    const text = await doctor();
    t.true(text.includes(uuid));
    t.regex(text, /export "disk" +16 MiB, /);
    t.regex(text, /^ +io_uring +up$/m);
  },
);

test.serial('a daemon whose output nobody reads any more goes on', async (t) => {
  const { scope, folder, cache, origin, setup } = await formatDisk(t, SMALL);
  const words = ['serve', '--cache', cache, '--export', `disk=${origin}`, '--reserve', '128MiB'];
  const listen = ['--listen', `unix:${socketPath(setup)}`, '--control', `${folder}/control.sock`];
  const command = [ringfenceCommand, ...words, ...listen].join(' ');
  startProcess(scope, 'bash', ['-c', `exec ${command} > >(exec true) 2> >(exec true)`]);
  const uri = exportUri(setup, 'disk');
  const info = async () => (await runAnyway('nbdinfo', ['--size', uri])).exitCode === 0;
  await waitUntil(info, () => 'it does not serve');
  t.true(await info());
  await run(ringfenceCommand, ['stop', '--control', `${folder}/control.sock`]);
});

test.serial('qemu holds a device through a restart, as the operations page says', async (t) => {
  const scope = testScope(t);
  const { daemon } = await serveDisk(t, SMALL);
  const { folder } = daemon.setup;
  const held = join(folder, 'held.sock');
  const image = `driver=nbd,server.type=unix,server.path=${socketPath(daemon.setup)}`;
  startProcess(scope, 'qemu-nbd', [
    ...['--socket', held, '--persistent', '--image-opts'],
    `${image},export=disk,reconnect-delay=60`,
  ]);
  const uri = `nbd+unix:///?socket=${held}`;
  const answers = async () => (await runAnyway('nbdinfo', ['--size', uri])).exitCode === 0;
  await waitUntil(answers, () => 'qemu-nbd does not serve');
  const io = (...commands: readonly string[]) =>
    run('qemu-io', ['-f', 'raw', ...commands.flatMap((one) => ['-c', one]), uri]);
  await io('write -P 0x21 0 64k', 'flush');
  await stopDaemon(daemon);
  const waiting = io('read -P 0x21 0 64k', 'write -P 0x22 64k 64k', 'flush');
  const again = await startDaemon(scope, daemon.setup);
  t.notRegex(await waiting, /failed/);
  const direct = await run('qemu-io', [
    ...['-f', 'raw', '-c', 'read -P 0x22 64k 64k', exportUri(again.setup, 'disk')],
  ]);
  t.notRegex(direct, /failed/);
});
