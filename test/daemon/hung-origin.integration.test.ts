/**
 * Origins that fail or hang, with real parts: a file that nbdfuse shows stands for the origin, so
 * that stopping nbdfuse makes it hang, and an nbdkit filter behind it makes it fail.
 */

import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { makeContent } from '../support/content.ts';
import { loopDevice, MIB, sparseFile, temporaryFolder } from '../support/loop.ts';
import { connectNbd, isNbdFailure, type NbdConnection } from '../support/nbd-client.ts';
import { type Background, run, startProcess, waitUntil } from '../support/process.ts';
import {
  ask,
  type Daemon,
  daemonSetup,
  formatCache,
  killAndRestart,
  readMetric,
  readStatus,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { type Scope, testScope } from '../support/scope.ts';

const EIO = 5;
const BLOCK = 4096;

/** A file whose reads and writes go through a program that can be stopped. */
interface FuseOrigin {
  readonly path: string;
  readonly fuse: Background;
  /** Where its bytes really are. */
  readonly file: string;
}

/** Shows a file of zeroes through nbdkit, with these filters, and nbdfuse. */
async function fuseOrigin(
  scope: Scope,
  folder: string,
  sizeBytes: number,
  filters: readonly string[] = [],
  parameters: readonly string[] = [],
): Promise<FuseOrigin> {
  const file = sparseFile(folder, 'behind', sizeBytes);
  const socket = join(folder, 'behind.sock');
  startProcess(scope, 'nbdkit', [
    ...['--foreground', '--unix', socket, ...filters.map((name) => `--filter=${name}`)],
    ...['file', file, ...parameters],
  ]);
  await waitUntil(
    () => existsSync(socket),
    () => 'nbdkit does not serve',
  );
  const path = join(folder, 'shown');
  writeFileSync(path, '');
  const fuse = startProcess(scope, 'nbdfuse', [path, `nbd+unix:///?socket=${socket}`]);
  scope.defer(async () => {
    // What hangs goes on, or the folder could not be removed; unmounting ends nbdfuse.
    fuse.signal('SIGCONT');
    await run('umount', ['--lazy', path]).catch(() => undefined);
  });
  const size = async () => (await run('stat', ['--format=%s', path])).trim() === `${sizeBytes}`;
  await waitUntil(size, () => `nbdfuse shows nothing:\n${fuse.output()}`);
  return { path, fuse, file };
}

/** The state of an export's origin. */
async function stateOf(daemon: Daemon, name: string): Promise<string | undefined> {
  const { exports } = await readStatus(daemon);
  return exports.find((one) => one.name === name)?.origin.state;
}

async function untilState(daemon: Daemon, name: string, state: string): Promise<void> {
  await waitUntil(
    async () => (await stateOf(daemon, name)) === state,
    () => `the origin of ${name} does not become ${state}:\n${daemon.background.output()}`,
  );
}

/** The errno that a request was answered with; null when it was not refused. */
async function errnoOf(request: Promise<unknown>): Promise<number | null> {
  try {
    await request;
    return null;
  } catch (error) {
    if (isNbdFailure(error)) return error.nbdErrno;
    throw error;
  }
}

const range = (count: number): number[] => Array.from({ length: count }, (_, index) => index);

/** A cache with a healthy export "well" beside one whose origin is `sick`. */
async function serveBoth(
  t: ExecutionContext,
  scope: Scope,
  folder: string,
  sick: FuseOrigin,
  sickOptions = 'wait=1s,origin-timeout=500ms',
): Promise<Daemon> {
  const { device } = await loopDevice(scope, folder, 'cache', 64 * MIB);
  const well = sparseFile(folder, 'well', 64 * MIB);
  await formatCache(device);
  const exports = [
    { name: 'sick', origin: sick.path, options: sickOptions },
    { name: 'well', origin: well, options: 'wait=5s' },
  ];
  const setup = await daemonSetup({ cache: device, exports, folder });
  t.log(`cache on ${device}`);
  return startDaemon(scope, setup);
}

async function client(scope: Scope, daemon: Daemon, name: string): Promise<NbdConnection> {
  const connection = await connectNbd({ path: socketPath(daemon.setup) }, name);
  scope.defer(() => connection.destroy());
  return connection;
}

test.serial('an orderly stop ends while an origin hangs, and the cache is free', async (t) => {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const sick = await fuseOrigin(scope, folder, 16 * MIB);
  const daemon = await serveBoth(t, scope, folder, sick);
  const ill = await client(scope, daemon, 'sick');
  const data = makeContent(MIB, 2, 0);
  sick.fuse.signal('SIGSTOP');
  t.is(await errnoOf(ill.read(8 * MIB, BLOCK)), EIO);
  await ill.write(0, data);
  await untilState(daemon, 'sick', 'down');
  ill.destroy();
  await ask(daemon, 'stop');
  // The kernel may keep the process; the cache device is free for another daemon all the same.
  const [, well] = daemon.setup.exports;
  const second = { ...daemon.setup, folder: join(folder, 'second'), exports: [well ?? t.fail()] };
  await run('mkdir', [second.folder]);
  const other = await startDaemon(scope, second as Daemon['setup']);
  t.is((await readStatus(other)).exports.length, 1);
  await stopDaemon(other);
  sick.fuse.signal('SIGCONT');
  const ended = await daemon.background.wait();
  t.is(ended.exitCode, 0);
  const again = await startDaemon(scope, daemon.setup);
  const back = await client(scope, again, 'sick');
  t.deepEqual(await back.read(0, MIB), data, 'what the origin lacked is still there');
  await ask(again, 'drain', 'sick');
  await stopDaemon(again);
});

test.serial('an orderly stop ends though an origin that hangs cannot be closed', async (t) => {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  // nbdfuse knows nothing of a file's being closed; this one is asked, and waited for.
  const file = sparseFile(folder, 'behind', 16 * MIB);
  const path = join(folder, 'shown');
  writeFileSync(path, '');
  const fuse = startProcess(scope, 'qemu-storage-daemon', [
    ...['--blockdev', `driver=file,node-name=behind,filename=${file}`],
    ...['--export', `type=fuse,id=shown,node-name=behind,mountpoint=${path},writable=on`],
  ]);
  scope.defer(async () => {
    fuse.signal('SIGCONT');
    await run('umount', ['--lazy', path]).catch(() => undefined);
  });
  await waitUntil(
    async () => (await run('stat', ['--format=%s', path])).trim() === `${16 * MIB}`,
    () => `qemu-storage-daemon shows nothing:\n${fuse.output()}`,
  );
  const daemon = await serveBoth(t, scope, folder, { path, fuse, file });
  fuse.signal('SIGSTOP');
  // Its filesystem answers nothing before this has ended.
  await ask(daemon, 'stop');
  fuse.signal('SIGCONT');
  t.is((await daemon.background.wait()).exitCode, 0);
});

test.serial('files as origins are served while a file as origin hangs', async (t) => {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const sick = await fuseOrigin(scope, folder, 64 * MIB);
  const daemon = await serveBoth(t, scope, folder, sick);
  const ill = await client(scope, daemon, 'sick');
  const well = await client(scope, daemon, 'well');
  sick.fuse.signal('SIGSTOP');
  // Writes, and more reads than the origin may have with the kernel.
  for (const index of range(16)) await ill.write((2 * index + 1) * MIB, makeContent(MIB, index, 0));
  const drained = ask(daemon, 'drain', 'sick');
  const asked = range(64).map((index) => errnoOf(ill.read(index * MIB + MIB / 2, BLOCK)));
  await untilState(daemon, 'sick', 'down');
  for (const round of range(4)) {
    const reads = range(8).map((index) => errnoOf(well.read((8 * round + index) * MIB, BLOCK)));
    t.deepEqual(new Set(await Promise.all(reads)), new Set([null]), `misses of round ${round}`);
    await well.write((32 + round) * MIB, makeContent(MIB, 50 + round, 0));
    await ask(daemon, 'drain', 'well');
  }
  t.true((await Promise.all(asked)).includes(EIO));
  t.is(await stateOf(daemon, 'sick'), 'down');
  t.is(await stateOf(daemon, 'well'), 'up');
  sick.fuse.signal('SIGCONT');
  await drained;
  await stopDaemon(daemon);
});

test.serial('an origin that fails gives EIO for its blocks, and keeps what is dirty', async (t) => {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const [reads, writes] = [join(folder, 'fail-reads'), join(folder, 'fail-writes')];
  const sick = await fuseOrigin(
    scope,
    folder,
    16 * MIB,
    ['error'],
    [
      ...['error=EIO', 'error-pread-rate=100%', `error-pread-file=${reads}`],
      ...['error-pwrite-rate=100%', `error-pwrite-file=${writes}`],
    ],
  );
  const daemon = await serveBoth(t, scope, folder, sick, 'wait=1s');
  const ill = await client(scope, daemon, 'sick');
  const data = makeContent(MIB, 3, 0);
  await ill.write(0, data);

  writeFileSync(reads, '');
  t.is(await errnoOf(ill.read(8 * MIB, BLOCK)), EIO);
  t.deepEqual(await ill.read(0, MIB), data, 'what is cached is read all the same');
  const errors = await readMetric(daemon, 'ringfence_origin_errors_total');
  t.true((errors.get('{export="sick",op="read"}') ?? 0) > 1, 'it was tried more than once');
  rmSync(reads);
  t.is(await errnoOf(ill.read(8 * MIB, BLOCK)), null);

  writeFileSync(writes, '');
  await ill.write(MIB, data);
  await ill.flush();
  await untilState(daemon, 'sick', 'down');
  const dirty = await readMetric(daemon, 'ringfence_dirty_bytes');
  t.true((dirty.get('{export="sick"}') ?? 0) >= MIB);
  rmSync(writes);
  await ask(daemon, 'drain', 'sick');
  t.is(await stateOf(daemon, 'sick'), 'up');
  await stopDaemon(daemon);
  await run('cmp', ['--bytes', `${2 * MIB}`, sick.file, await expected(folder, [data, data])]);
  t.pass();
});

/** A file of these bytes. */
async function expected(folder: string, parts: readonly Buffer[]): Promise<string> {
  const path = join(folder, 'expected');
  writeFileSync(path, Buffer.concat(parts));
  return path;
}

test.serial(
  'dirty data of an absent origin is carried through laps, and over a kill',
  async (t) => {
    const scope = testScope(t);
    const folder = temporaryFolder(scope);
    const writes = join(folder, 'fail-writes');
    const sick = await fuseOrigin(
      scope,
      folder,
      16 * MIB,
      ['error'],
      [...['error=EIO', 'error-pwrite-rate=100%', `error-pwrite-file=${writes}`]],
    );
    let daemon = await serveBoth(t, scope, folder, sick);
    writeFileSync(writes, '');
    const ill = await client(scope, daemon, 'sick');
    const parts = Array.from({ length: 6 }, (_, index) => makeContent(MIB, 4 + index, 0));
    for (const [index, part] of parts.entries()) {
      await ill.write(index * MIB, part);
      await ill.flush();
    }
    await untilState(daemon, 'sick', 'down');
    const laps = async (): Promise<void> => {
      const well = await client(scope, daemon, 'well');
      // Three times the cache.
      for (let round = 0; round < 192; round += 1) {
        await well.write((round % 60) * MIB, makeContent(MIB, 100 + round, 0));
      }
      await well.flush();
    };
    await laps();
    daemon = await killAndRestart(scope, daemon);
    await laps();
    const read = await client(scope, daemon, 'sick');
    for (const [index, part] of parts.entries()) {
      t.deepEqual(await read.read(index * MIB, MIB), part, `MiB ${index}`);
    }
    const dirty = await readMetric(daemon, 'ringfence_dirty_bytes');
    t.true((dirty.get('{export="sick"}') ?? 0) >= 6 * MIB);
    rmSync(writes);
    await ask(daemon, 'drain');
    await stopDaemon(daemon);
    await run('cmp', ['--bytes', `${6 * MIB}`, sick.file, await expected(folder, parts)]);
    t.pass();
  },
);
