/** What readers are told of parts: before the rest is there, and when a block is damaged. */

import {
  chmodSync,
  closeSync,
  fsyncSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { loopDevice, MIB, sparseFile, temporaryFolder } from '../support/loop.ts';
import { connectNbd } from '../support/nbd-client.ts';
import {
  type Finished,
  projectRoot,
  run,
  runAnyway,
  startProcess,
  waitUntil,
} from '../support/process.ts';
import {
  ask,
  type Daemon,
  daemonSetup,
  exportUri,
  formatCache,
  killAndRestart,
  killDaemon,
  readMetric,
  readStatus,
  ringfenceCommand,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { testScope } from '../support/scope.ts';

const PYTHON = '/usr/bin/python3';
const BLOCK = 4096;

async function python(script: string, ...more: readonly string[]): Promise<string> {
  return run(PYTHON, ['-B', join(projectRoot, 'test', 'interop', 'python', script), ...more]);
}

/** An nbdkit plugin of 64 MiB of 0xee whose reads wait for a file. */
function gatedPlugin(gate: string): string {
  return `#!/bin/sh
case "$1" in
  thread_model) echo parallel ;;
  get_size) echo ${64 * MIB} ;;
  can_write | can_flush) exit 0 ;;
  pread)
    while [ ! -e '${gate}' ]; do sleep 0.02; done
    dd if=/dev/zero bs="$3" count=1 status=none | tr '\\0' '\\356' ;;
  pwrite) cat > /dev/null ;;
  flush) exit 0 ;;
  *) exit 2 ;;
esac
`;
}

test.serial('the cached half of a read comes before the origin has answered', async (t) => {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const [gate, plugin, origin] = ['gate', 'plugin.sh', 'origin'].map((name) => join(folder, name));
  if (gate === undefined || plugin === undefined || origin === undefined) throw new Error('names');
  writeFileSync(plugin, gatedPlugin(gate));
  chmodSync(plugin, 0o755);
  writeFileSync(origin, '');
  scope.defer(() => run('umount', ['--lazy', origin]));
  const fuse = startProcess(scope, 'nbdfuse', [origin, '--command', 'nbdkit', '-s', 'sh', plugin]);
  const mounted = () => readFileSync('/proc/self/mounts', 'utf8').includes(` ${origin} `);
  await waitUntil(mounted, () => `nbdfuse does not mount:\n${fuse.output()}`);
  const { device } = await loopDevice(scope, folder, 'cache', 64 * MIB);
  await formatCache(device);
  // Once the file is there, what hangs on it can end, however the test ends.
  scope.defer(() => writeFileSync(gate, ''));
  const setup = await daemonSetup({ cache: device, exports: [{ name: 'disk', origin }], folder });
  const daemon = await startDaemon(scope, setup);
  t.regex(await python('pieces.py', exportUri(setup, 'disk'), gate), /^\d+ checks passed$/m);
  await stopDaemon(daemon);
});

interface Chunks {
  readonly structured: string | null;
  readonly simple: string | null;
  readonly chunks: readonly {
    readonly kind: string;
    readonly offset: number;
    readonly length: number;
    readonly first?: number;
    readonly error?: string;
  }[];
}

async function chunks(daemon: Daemon, block: number, blocks: number): Promise<Chunks> {
  const range = [block * BLOCK, blocks * BLOCK].map(String);
  return JSON.parse(await python('chunks.py', exportUri(daemon.setup, 'disk'), ...range)) as Chunks;
}

/** Changes a byte in every block of a device's file that is filled with one byte. */
function damage(file: string, byte: number): void {
  const content = readFileSync(file);
  const block = Buffer.alloc(BLOCK, byte);
  const device = openSync(file, 'r+');
  let found = 0;
  for (let at = MIB; at < content.length; at += BLOCK) {
    if (!content.subarray(at, at + BLOCK).equals(block)) continue;
    writeSync(device, Buffer.from([byte ^ 1]), 0, 1, at + 100);
    found += 1;
  }
  fsyncSync(device);
  closeSync(device);
  if (found === 0) throw new Error(`no block of ${byte} in ${file}`);
}

function tell(daemon: Daemon, ...words: readonly string[]): Promise<Finished> {
  const control = join(daemon.setup.folder, 'control.sock');
  return runAnyway(ringfenceCommand, [...words, '--control', control], { timeoutMs: 60_000 });
}

async function originState(daemon: Daemon): Promise<string | undefined> {
  return (await readStatus(daemon)).exports[0]?.origin.state;
}

/** Blocks 0 to 7 of bytes 0xd0 to 0xd7, dirty and durable; block 3 is damaged. */
async function damagedDaemon(t: ExecutionContext): Promise<{ daemon: Daemon; tmpfs: string }> {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const { device, file } = await loopDevice(scope, folder, 'cache', 64 * MIB);
  await formatCache(device);
  // An origin without room for anything keeps the data dirty.
  const tmpfs = temporaryFolder(scope);
  await run('mount', ['-t', 'tmpfs', '-o', 'size=4k', 'ringfence-test', tmpfs]);
  scope.defer(() => run('umount', [tmpfs]));
  const origin = sparseFile(tmpfs, 'origin', 16 * MIB);
  const exports = [{ name: 'disk', origin }];
  const daemon = await startDaemon(scope, await daemonSetup({ cache: device, exports, folder }));
  const client = await connectNbd({ path: socketPath(daemon.setup) }, 'disk');
  const eight = Array.from({ length: 8 }, (_, index) => Buffer.alloc(BLOCK, 0xd0 + index));
  await client.write(0, Buffer.concat(eight));
  await client.flush();
  // The header of this one says that the others were flushed.
  await client.write(32 * BLOCK, Buffer.alloc(BLOCK, 0xe1));
  await client.flush();
  client.destroy();
  await killDaemon(daemon);
  damage(file, 0xd3);
  return { daemon: await startDaemon(scope, daemon.setup), tmpfs };
}

test.serial(
  'a damaged dirty block is an error for that block, until it is overwritten',
  async (t) => {
    const { daemon: first, tmpfs } = await damagedDaemon(t);
    const scope = testScope(t);
    const seen = await chunks(first, 0, 8);
    t.is(seen.structured, 'EIO');
    t.is(seen.simple, 'EIO');
    t.deepEqual(
      seen.chunks.map(({ kind, offset, length, first, error }) => [
        ...[kind, offset / BLOCK, length / BLOCK, first ?? error],
      ]),
      [
        ['data', 0, 3, 0xd0],
        ['error', 3, 0, 'EIO'],
        ['data', 4, 4, 0xd4],
      ],
    );
    const beside = await chunks(first, 4, 4);
    t.deepEqual([beside.structured, beside.simple, beside.chunks.length], [null, null, 1]);
    const errors = await readMetric(first, 'ringfence_checksum_errors_total');
    t.is(errors.get('{export="disk",kind="dirty"}'), 1);

    // The origin has room again, but strict order cannot go on.
    await run('mount', ['-o', 'remount,size=32m', tmpfs]);
    const drain = await tell(first, 'drain');
    t.is(drain.exitCode, 1);
    t.regex(
      drain.stderr,
      /"disk" is damaged.*ringfence resolve disk --accept-loss.*\[RF_DAMAGED\]/,
    );
    t.is(await originState(first), 'damaged');

    // A restart, orderly or not, brings the block back neither from the device nor from the origin.
    await stopDaemon(first);
    let daemon = await startDaemon(scope, first.setup);
    t.is((await chunks(daemon, 3, 1)).simple, 'EIO');
    t.is((await tell(daemon, 'drain')).exitCode, 1);
    t.is((await tell(daemon, 'resolve', 'disk')).exitCode, 2, 'the loss has to be accepted');
    t.is((await tell(daemon, 'resolve', 'disk', '--accept-loss')).exitCode, 0);
    await ask(daemon, 'drain');
    t.is(await originState(daemon), 'up');
    const block = (number: number) =>
      readFileSync(join(tmpfs, 'origin')).subarray(number * BLOCK, (number + 1) * BLOCK);
    t.deepEqual(block(2), Buffer.alloc(BLOCK, 0xd2));
    t.deepEqual(block(3), Buffer.alloc(BLOCK, 0), 'the origin keeps what it has');
    t.deepEqual(block(32), Buffer.alloc(BLOCK, 0xe1));
    const again = await tell(daemon, 'resolve', 'disk', '--accept-loss');
    t.regex(again.stderr, /RF_NOT_DAMAGED/);

    daemon = await killAndRestart(scope, daemon);
    t.is((await chunks(daemon, 3, 1)).structured, 'EIO', 'never the older content of the origin');
    const client = await connectNbd({ path: socketPath(daemon.setup) }, 'disk');
    await client.write(3 * BLOCK, Buffer.alloc(BLOCK, 0xf3));
    client.destroy();
    t.is((await chunks(daemon, 0, 8)).structured, null);
    await ask(daemon, 'drain');
    t.deepEqual(block(3), Buffer.alloc(BLOCK, 0xf3));
    await stopDaemon(daemon);
  },
);
