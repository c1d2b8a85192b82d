/** What the real daemon refuses, and that a refusal harms nothing and nobody. */

import { once } from 'node:events';
import { openSync, readSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { attachLoop, loopDevice, MIB, sparseFile } from '../support/loop.ts';
import { connectNbd } from '../support/nbd-client.ts';
import { type Finished, run, runAnyway, startProcess, waitUntil } from '../support/process.ts';
import { assertRefusal } from '../support/refusal.ts';
import {
  ask,
  type Daemon,
  exportUri,
  formatCache,
  greets,
  killDaemon,
  readStatus,
  ringfenceCommand,
  serveArguments,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { formatDisk, SMALL } from '../support/setting.ts';

interface Wrong {
  readonly cache: string;
  readonly exports: readonly string[];
  readonly listen?: string;
  readonly folder: string;
}

/** What has to be changed before it can be served: a service manager does not try again. */
const OPEN_REFUSED = { exitCode: 2, code: 'RF_OPEN_REFUSED' };

/** Runs `serve` with something wrong; its socket and log are its own. */
function serveWrongly({ cache, exports, listen, folder }: Wrong): Promise<Finished> {
  const address = listen ?? `unix:${join(folder, 'wrong.sock')}`;
  return runAnyway(
    ringfenceCommand,
    [
      ...['serve', '--cache', cache, ...exports.flatMap((one) => ['--export', one])],
      ...['--listen', address, '--reserve', '128MiB', '--control', join(folder, 'wrong.control')],
      ...['--log-level', 'error'],
    ],
    { timeoutMs: 60_000 },
  );
}

/** Writes a pattern and waits until the cache device has it. */
async function writePattern(daemon: Daemon, pattern: string): Promise<void> {
  const uri = exportUri(daemon.setup, 'disk');
  await run('qemu-io', ['-f', 'raw', '-c', `write -P ${pattern} 1M 64k`, '-c', 'flush', uri]);
}

/** Writes and flushes, and kills the daemon at once: the origin cannot have the data yet. */
async function leaveDirty(daemon: Daemon, pattern: number): Promise<void> {
  const client = await connectNbd({ path: socketPath(daemon.setup) }, 'disk');
  await client.write(MIB, Buffer.alloc(64 << 10, pattern));
  await client.flush();
  await killDaemon(daemon);
  client.destroy();
}

async function hasPattern(daemon: Daemon, pattern: string): Promise<boolean> {
  const uri = exportUri(daemon.setup, 'disk');
  const { exitCode, stdout } = await runAnyway('qemu-io', [
    ...['-f', 'raw', '-c', `read -P ${pattern} 1M 64k`, uri],
  ]);
  return exitCode === 0 && !stdout.includes('Pattern verification failed');
}

test.serial('a device that is not there or is no device', async (t) => {
  const self = await formatDisk(t, SMALL);
  const exports = [`disk=${self.origin}`];
  const missing = await serveWrongly({ ...self, cache: `${self.cache}-missing`, exports });
  assertRefusal(t, missing, /cache device .*-missing does not exist/);
  const folder = await serveWrongly({ ...self, cache: self.folder, exports });
  assertRefusal(t, folder, /is a directory/);
});

test.serial('a device that is not formatted', async (t) => {
  const self = await formatDisk(t, SMALL);
  const { device } = await loopDevice(self.scope, self.folder, 'blank', 64 * MIB);
  const finished = await serveWrongly({ ...self, cache: device, exports: [`d=${self.origin}`] });
  assertRefusal(t, finished, /no ringfence cache.*ringfence format/, OPEN_REFUSED);
});

test.serial('a device that nothing is attached to yet may still get its bytes', async (t) => {
  const self = await formatDisk(t, SMALL);
  const { device } = await loopDevice(self.scope, self.folder, 'empty', 0);
  const failed = { exitCode: 1, code: 'RF_OPEN' };
  const asCache = await serveWrongly({ ...self, cache: device, exports: [`d=${self.origin}`] });
  assertRefusal(t, asCache, /cache device .* has no bytes yet/, failed);
  const asOrigin = await serveWrongly({ ...self, exports: [`disk=${device}`] });
  assertRefusal(t, asOrigin, /origin .* has no bytes yet/, failed);
});

test.serial('a device that holds something else', async (t) => {
  const self = await formatDisk(t, SMALL);
  const { device } = await loopDevice(self.scope, self.folder, 'ext4', 64 * MIB);
  await run('mkfs.ext4', ['-q', device]);
  const finished = await serveWrongly({ ...self, cache: device, exports: [`d=${self.origin}`] });
  assertRefusal(t, finished, /no ringfence cache/, OPEN_REFUSED);
  await run('fsck.ext4', ['-f', '-n', device]);
});

test.serial('a device that is too small, for format and after it', async (t) => {
  const self = await formatDisk(t, SMALL);
  const { device } = await loopDevice(self.scope, self.folder, 'small', 8 * MIB);
  const format = ['format', device, '--yes', '--segment', '4MiB'];
  const refused = await runAnyway(ringfenceCommand, format);
  const small = { exitCode: 2, code: 'RF_DEVICE_SMALL' };
  assertRefusal(t, refused, /needs at least 49 MiB: use a larger device/, small);
  const shrunk = sparseFile(self.folder, 'shrunk', 64 * MIB);
  await formatCache(shrunk);
  truncateSync(shrunk, 56 * MIB);
  const finished = await serveWrongly({ ...self, cache: shrunk, exports: [`d=${self.origin}`] });
  assertRefusal(t, finished, /was formatted with 67108864/, OPEN_REFUSED);
});

/** CRC32C of some bytes, bit by bit: the checksum of the format's structures. */
function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

test.serial('a cache that was formatted by a newer version', async (t) => {
  const self = await formatDisk(t, SMALL);
  const cache = sparseFile(self.folder, 'newer', 64 * MIB);
  await formatCache(cache);
  const file = openSync(cache, 'r+');
  for (const offset of [0, 64 << 10]) {
    const block = Buffer.alloc(4096);
    readSync(file, block, 0, block.length, offset);
    t.is(crc32c(block.subarray(4)), block.readUInt32LE(0), 'the superblock is where it should be');
    block.writeUInt32LE(block.readUInt32LE(4) + 1, 4);
    block.writeUInt32LE(crc32c(block.subarray(4)), 0);
    writeSync(file, block, 0, block.length, offset);
  }
  const finished = await serveWrongly({ ...self, cache, exports: [`disk=${self.origin}`] });
  assertRefusal(t, finished, /formatted by a newer ringfence.*use that version/, OPEN_REFUSED);
  const format = await runAnyway(ringfenceCommand, ['format', cache, '--yes', '--segment', '4MiB']);
  t.is(format.exitCode, 2);
  t.regex(format.stderr, /newer ringfence.*--discard-dirty unreadable.*\[RF_CACHE_UNREADABLE\]/);
});

test.serial('a mounted device, as cache and as origin', async (t) => {
  const self = await formatDisk(t, SMALL);
  const { device } = await loopDevice(self.scope, self.folder, 'mounted', 64 * MIB);
  await run('mkfs.ext4', ['-q', device]);
  const mountPoint = join(self.folder, 'mount');
  await run('mkdir', [mountPoint]);
  await run('mount', [device, mountPoint]);
  self.scope.defer(() => run('umount', [mountPoint]));
  const asCache = await serveWrongly({ ...self, cache: device, exports: [`d=${self.origin}`] });
  assertRefusal(t, asCache, /cache device .* is mounted on .*unmount it/);
  const asOrigin = await serveWrongly({ ...self, exports: [`disk=${device}`] });
  assertRefusal(t, asOrigin, /origin .* is mounted on .*unmount it/);
  const format = await runAnyway(ringfenceCommand, ['format', device, '--yes']);
  const mounted = { exitCode: 1, code: 'RF_DEVICE_MOUNTED' };
  assertRefusal(t, format, /is mounted on .*unmount it/, mounted);
});

test.serial('two daemons on one device: the second is refused, the first goes on', async (t) => {
  const self = await formatDisk(t, SMALL);
  const first = await startDaemon(self.scope, self.setup);
  await writePattern(first, '0x11');
  const second = await serveWrongly({ ...self, exports: [`other=${self.origin}`] });
  assertRefusal(t, second, /cache device .* is held open by another program/);
  const format = await runAnyway(ringfenceCommand, ['format', self.cache, '--yes']);
  const held = { exitCode: 1, code: 'RF_DEVICE_HELD' };
  assertRefusal(t, format, /device .* is held open by another program/, held);
  t.true(await hasPattern(first, '0x11'));
  await stopDaemon(first);
});

test.serial('two daemons on one file: the second is refused, the first goes on', async (t) => {
  const self = await formatDisk(t, SMALL);
  const cache = sparseFile(self.folder, 'cache-file', 64 * MIB);
  await formatCache(cache);
  const first = await startDaemon(self.scope, { ...self.setup, cache });
  await writePattern(first, '0x12');
  const other = sparseFile(self.folder, 'other', 16 * MIB);
  const second = await serveWrongly({ ...self, cache, exports: [`other=${other}`] });
  assertRefusal(t, second, /cache device .* is held open by the process \d+/);
  const format = await runAnyway(ringfenceCommand, ['format', cache, '--yes']);
  t.is(format.exitCode, 1);
  t.regex(format.stderr, /is held open by the process \d+/);
  t.true(await hasPattern(first, '0x12'));
});

test.serial('an origin that is missing, is the cache, or is given twice', async (t) => {
  const self = await formatDisk(t, SMALL);
  const missing = await serveWrongly({ ...self, exports: [`disk=${self.origin}-missing`] });
  assertRefusal(t, missing, /origin .*-missing does not exist/);
  const cache = await serveWrongly({ ...self, exports: [`disk=${self.cache}`] });
  assertRefusal(t, cache, /is the cache device/);
  const twice = await serveWrongly({ ...self, exports: [`a=${self.origin}`, `b=${self.origin}`] });
  assertRefusal(t, twice, /"a" and "b" share the origin/);
});

test.serial('an origin that shrank, and one that the data does not belong to', async (t) => {
  const self = await formatDisk(t, SMALL);
  const daemon = await startDaemon(self.scope, self.setup);
  await leaveDirty(daemon, 0x13);

  const other = sparseFile(self.folder, 'other', 16 * MIB);
  const wrong = await serveWrongly({ ...self, exports: [`disk=${other}`] });
  assertRefusal(t, wrong, /disk.*holds data of.*name the right origin/, OPEN_REFUSED);
  truncateSync(self.origin, 8 * MIB);
  const shrunk = await serveWrongly({ ...self, exports: [`disk=${self.origin}`] });
  assertRefusal(t, shrunk, /disk.*8388608 bytes, the cache knows it with 16777216/, OPEN_REFUSED);

  truncateSync(self.origin, 16 * MIB);
  const again = await startDaemon(self.scope, daemon.setup);
  t.true(await hasPattern(again, '0x13'), 'a refusal loses nothing');
  await ask(again, 'drain');
  t.is((await readStatus(again)).exports[0]?.dirty_bytes, 0);
});

test.serial("a cache that was formatted for another cache's export", async (t) => {
  const [ours, others] = [await formatDisk(t, SMALL), await formatDisk(t, SMALL)];
  for (const { scope, setup } of [ours, others]) {
    const daemon = await startDaemon(scope, setup);
    await writePattern(daemon, '0x15');
    await ask(daemon, 'drain');
    await stopDaemon(daemon);
  }
  // Nothing is dirty and the sizes are the same, but what is cached is another disk's.
  const swapped = await serveWrongly({
    ...ours,
    cache: others.cache,
    exports: [`disk=${ours.origin}`],
  });
  assertRefusal(
    t,
    swapped,
    /export disk: its origin is .* holds data of .*name the right origin/,
    OPEN_REFUSED,
  );
  for (const { scope, setup } of [ours, others]) {
    const again = await startDaemon(scope, setup);
    t.true(await hasPattern(again, '0x15'));
    await stopDaemon(again);
  }
});

test.serial('a daemon that is killed at any moment of its start loses nothing', async (t) => {
  const self = await formatDisk(t, SMALL);
  const first = await startDaemon(self.scope, self.setup);
  await leaveDirty(first, 0x16);
  // Later and later, until one comes too late for the start: how long that takes nobody knows.
  let serves = false;
  for (let waitMs = 0; !serves; waitMs += first.startMs / 20) {
    const args = serveArguments(self.setup);
    const starting = startProcess(self.scope, ringfenceCommand, args);
    await sleep(waitMs);
    serves = await greets(socketPath(self.setup));
    t.is(starting.ended(), null, starting.output());
    starting.signal('SIGKILL');
    await starting.wait();
  }
  const daemon = await startDaemon(self.scope, self.setup);
  t.true(await hasPattern(daemon, '0x16'));
  await stopDaemon(daemon);
});

test.serial('a cache with dirty data is formatted only by its name', async (t) => {
  const self = await formatDisk(t, SMALL);
  const daemon = await startDaemon(self.scope, self.setup);
  await leaveDirty(daemon, 0x14);
  const format = ['format', self.cache, '--yes', '--segment', '4MiB'];
  const refused = await runAnyway(ringfenceCommand, format);
  t.is(refused.exitCode, 2);
  t.regex(refused.stderr, /64 KiB that the origin of "disk" lacks.*\[RF_CACHE_DIRTY\]$/);
  const uuid = /--discard-dirty ([0-9a-f-]{36})/.exec(refused.stderr)?.[1] ?? '';
  const again = await startDaemon(self.scope, daemon.setup);
  t.true(await hasPattern(again, '0x14'));
  await killDaemon(again);
  const named = await runAnyway(ringfenceCommand, [...format, '--discard-dirty', uuid]);
  t.is(named.exitCode, 0, named.stderr);
});

test.serial('a busy port and a busy socket', async (t) => {
  const self = await formatDisk(t, SMALL);
  const server = createServer().listen(0, '127.0.0.1');
  t.teardown(() => server.close());
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' ? address?.port : null;
  const exports = [`disk=${self.origin}`];
  const busyPort = await serveWrongly({ ...self, exports, listen: `127.0.0.1:${port}` });
  assertRefusal(t, busyPort, /in use/);
  const path = join(self.folder, 'busy.sock');
  const socket = createServer().listen(path);
  t.teardown(() => socket.close());
  await once(socket, 'listening');
  const busySocket = await serveWrongly({ ...self, exports, listen: `unix:${path}` });
  assertRefusal(t, busySocket, /in use|another/);
  const daemon = await startDaemon(self.scope, self.setup);
  t.is((await readStatus(daemon)).exports.length, 1, 'and nothing of either attempt is left');
});

test.serial('a busy metrics port and a busy control socket', async (t) => {
  const self = await formatDisk(t, SMALL);
  const first = await startDaemon(self.scope, self.setup);
  const other = await formatDisk(t, SMALL);
  const metricsPort = self.setup.metricsPort;
  const busyPort = await runAnyway(
    ringfenceCommand,
    serveArguments({ ...other.setup, metricsPort }),
  );
  assertRefusal(t, busyPort, /metrics page cannot be served on .*already in use.*_METRICS_LISTEN/);
  const args = serveArguments(other.setup);
  const control = ['--control', join(self.folder, 'control.sock')];
  const busySocket = await runAnyway(ringfenceCommand, [...args, ...control]);
  assertRefusal(t, busySocket, /Another daemon answers on the control socket .*stop it/);
  t.is((await readStatus(first)).exports.length, 1, 'the first one still answers');
  await stopDaemon(await startDaemon(other.scope, other.setup));
});

test.serial('a configuration with an unknown key', async (t) => {
  const self = await formatDisk(t, SMALL);
  const file = join(self.folder, 'ringfence.toml');
  const lines = [
    `cache = "${self.cache}"`,
    `listen = "unix:${self.folder}/s"`,
    `control = "${self.folder}/c"`,
    '[[export]]',
    'name = "disk"',
    `origin = "${self.origin}"`,
  ];
  writeFileSync(file, [...lines, 'oder = "strict"', ''].join('\n'));
  const wrong = await runAnyway(ringfenceCommand, ['serve', '--config', file]);
  assertRefusal(t, wrong, /ringfence\.toml:7: unknown key "oder"; the keys known here are name, /);
  t.is(wrong.exitCode, 2);
  writeFileSync(file, [...lines, 'order = "strict"', ''].join('\n'));
  const right = startProcess(self.scope, ringfenceCommand, ['serve', '--config', file]);
  await waitUntil(() => greets(join(self.folder, 's')), right.output);
  right.signal('SIGTERM');
  t.is((await right.wait()).exitCode, 0, right.output());
});

test.serial('a reserve that is too small, and one as large as is said to be enough', async (t) => {
  const self = await formatDisk(t, SMALL);
  const serve = (reserve: string): string[] => [
    ...['serve', '--cache', self.cache, '--export', `disk=${self.origin}`, '--reserve', reserve],
    ...['--listen', `unix:${self.folder}/s`, '--control', join(self.folder, 'c')],
  ];
  const finished = await runAnyway(ringfenceCommand, serve('1MiB'));
  const sentence = /too small.*start with --reserve (\d+MiB) or more/;
  assertRefusal(t, finished, sentence, OPEN_REFUSED);
  const enough = sentence.exec(finished.stderr)?.[1] ?? '';
  const right = startProcess(self.scope, ringfenceCommand, serve(enough));
  await waitUntil(() => greets(join(self.folder, 's')), right.output);
  right.signal('SIGTERM');
  t.is((await right.wait()).exitCode, 0, right.output());
});

test.serial('results that cannot be written', async (t) => {
  const self = await formatDisk(t, SMALL);
  const check = `'${ringfenceCommand}' check '${self.cache}'`;
  const full = await runAnyway('sh', ['-c', `${check} > /dev/full`]);
  const wanted = { exitCode: 2, code: 'RF_OUTPUT' };
  assertRefusal(t, full, /what it says cannot be written/, wanted);
  const closed = await runAnyway('sh', ['-c', `{ ${check}; echo $? >&2; } | true`]);
  t.is(closed.stderr, '0', 'a reader that has gone away is no failure');
});

test.serial('a CPU that there is not', async (t) => {
  const self = await formatDisk(t, SMALL);
  const finished = await runAnyway(ringfenceCommand, [
    ...['serve', '--cache', self.cache, '--export', `disk=${self.origin}`, '--cpu', '8191'],
    ...['--listen', `unix:${self.folder}/s`, '--control', join(self.folder, 'c')],
  ]);
  assertRefusal(t, finished, /the CPU of --cpu, 8191/, OPEN_REFUSED);
});

test.serial('a loop device over a cache file that is served is not served too', async (t) => {
  const self = await formatDisk(t, SMALL);
  const cache = sparseFile(self.folder, 'behind', 64 * MIB);
  await formatCache(cache);
  await attachLoop(self.scope, cache);
  const finished = await serveWrongly({ ...self, cache, exports: [`disk=${self.origin}`] });
  assertRefusal(t, finished, /held open by the loop device/);
});
