/** By what the real daemon knows an origin again after device numbers were given out anew. */

import { mkdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { attachLoop, MIB, sparseFile } from '../support/loop.ts';
import { connectNbd } from '../support/nbd-client.ts';
import { run, runAnyway, waitUntil } from '../support/process.ts';
import { assertRefusal } from '../support/refusal.ts';
import {
  ask,
  type Daemon,
  daemonSetup,
  killDaemon,
  ringfenceCommand,
  serveArguments,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { type Disk, formatDisk, SMALL } from '../support/setting.ts';

/** Writes and flushes, and kills the daemon at once: the origin cannot have the data yet. */
async function leaveDirty(daemon: Daemon, pattern: number): Promise<void> {
  const client = await connectNbd({ path: socketPath(daemon.setup) }, 'disk');
  await client.write(MIB, Buffer.alloc(64 << 10, pattern));
  await client.flush();
  await killDaemon(daemon);
  client.destroy();
}

/** The same cache and export with another origin. */
const withOrigin = ({ cache, folder }: Disk, origin: string) =>
  daemonSetup({ cache, folder, exports: [{ name: 'disk', origin }] });

for (const kind of ['ext4', 'xfs']) {
  test.serial(`a file on ${kind}, whose device gets another number`, async (t) => {
    const self = await formatDisk(t, SMALL);
    const image = sparseFile(self.folder, 'filesystem', 320 * MIB);
    await run(`mkfs.${kind}`, ['-q', image]);
    const mountPoint = join(self.folder, 'mount');
    mkdirSync(mountPoint);
    const mount = async (device: string): Promise<void> => {
      await run('mount', [device, mountPoint]);
    };
    const first = await attachLoop(self.scope, image);
    const second = await attachLoop(self.scope, image);
    self.scope.defer(() => runAnyway('umount', ['--lazy', mountPoint]));
    await mount(first.device);
    const origin = sparseFile(mountPoint, 'origin', 16 * MIB);
    const before = statSync(origin);
    const setup = await withOrigin(self, origin);
    await leaveDirty(await startDaemon(self.scope, setup), 0x21);

    // The kernel closes what the daemon had open a little later than the daemon itself ends.
    await waitUntil(
      async () => (await runAnyway('umount', [mountPoint])).exitCode === 0,
      () => 'the filesystem stays in use',
    );
    await mount(second.device);
    t.not(statSync(origin).dev, before.dev);
    const daemon = await startDaemon(self.scope, setup);
    await ask(daemon, 'drain');
    await leaveDirty(daemon, 0x22);

    // A file in its place, of the same name and size, and of the same inode if it so happens.
    rmSync(origin);
    writeFileSync(origin, '');
    truncateSync(origin, 16 * MIB);
    const anew = await runAnyway(ringfenceCommand, serveArguments(setup));
    assertRefusal(t, anew, /export disk: its origin is .* holds data of .*name the right origin/);
  });
}

test.serial('a loop device that gets another number, and another part of its file', async (t) => {
  const self = await formatDisk(t, SMALL);
  const file = sparseFile(self.folder, 'file', 32 * MIB);
  const part = async (offset: number): Promise<string> => {
    const range = ['--offset', `${offset}`, '--sizelimit', `${16 * MIB}`];
    const device = (await run('losetup', ['--find', '--show', ...range, file])).trim();
    self.scope.defer(() => run('losetup', ['--detach', device]));
    return device;
  };
  const [first, again, other] = [await part(MIB), await part(MIB), await part(16 * MIB)];
  const daemon = await startDaemon(self.scope, await withOrigin(self, first));
  await leaveDirty(daemon, 0x23);

  const wrong = await runAnyway(ringfenceCommand, serveArguments(await withOrigin(self, other)));
  assertRefusal(t, wrong, /from byte 16777216, but the cache holds data of .* from byte 1048576:/);
  const moved = await startDaemon(self.scope, await withOrigin(self, again));
  await ask(moved, 'drain');
  await stopDaemon(moved);
});
