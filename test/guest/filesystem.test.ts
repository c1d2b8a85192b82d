/**
 * A filesystem on the guest kernel's NBD client, served by the daemon on the host's loop devices:
 * used, killed between sync and remount, and killed, stopped and restarted while mounted and
 * written to.
 *
 * `RINGFENCE_GUEST_KILLS` sets how often it is killed under the mounted filesystem (3), and how
 * often it is stopped after that.
 */

import { join } from 'node:path';
import test from 'ava';
import { firstDifference } from '../support/content.ts';
import { MIB } from '../support/loop.ts';
import { run, startProcess } from '../support/process.ts';
import {
  ask,
  type Daemon,
  exportUri,
  freePort,
  killDaemon,
  readMetric,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { formatDisk } from '../support/setting.ts';
import { startGuest } from './machine.ts';
import {
  fillAndRemount,
  type GuestServer,
  giveNothingToAnother,
  killBetweenSyncAndRemount,
  outlastDeadTimeout,
  restartSupervisor,
  restartWhileWriting,
} from './scenarios.ts';

const KILLS = Number(process.env.RINGFENCE_GUEST_KILLS ?? 3);
const ORIGIN_BYTES = 192 * MIB;

// One test, since each scenario goes on with the filesystem that the one before it left.
test.serial(
  'a filesystem survives use, a kill before remount, and kills and restarts while mounted',
  async (t) => {
    t.timeout(600_000);
    const disk = await formatDisk(t, { sizeBytes: ORIGIN_BYTES });
    const { scope, folder } = disk;
    const setup = { ...disk.setup, tcpPort: await freePort() };
    let daemon: Daemon = await startDaemon(scope, setup);
    const server: GuestServer = {
      port: setup.tcpPort,
      exportName: 'disk',
      kill: () => killDaemon(daemon),
      stop: () => stopDaemon(daemon),
      start: async () => {
        daemon = await startDaemon(scope, setup);
      },
    };
    const guest = await startGuest(scope, folder);
    const began = performance.now();
    const mark = (what: string): void => {
      t.log(`${what}, ${((performance.now() - began) / 1000).toFixed(1)} s after boot`);
    };

    await fillAndRemount(guest, server);
    mark('filled, remounted, compared, checked, detached');
    await killBetweenSyncAndRemount(guest, server);
    mark('killed between sync and remount, compared, checked');
    const files = await restartWhileWriting(guest, server, { kills: KILLS, stops: KILLS });
    mark(`killed and stopped ${KILLS} times each while mounted; ${files} files compared, checked`);
    await restartSupervisor(guest, server);
    mark('ringfence attach killed, started again, and ended');
    await outlastDeadTimeout(guest, server, async () => {
      const connections = await readMetric(daemon, 'ringfence_connections');
      return connections.get('{export="disk"}') ?? 0;
    });
    await server.start();
    mark('four connections replaced; requests failed after the dead timeout; detached by force');

    const otherPort = await freePort();
    startProcess(scope, 'nbdkit', [
      ...['--foreground', '--port', String(otherPort), '--ipaddr', '127.0.0.1'],
      ...['data', '0xee*4', `size=${ORIGIN_BYTES}`],
    ]);
    await giveNothingToAnother(guest, server, otherPort);
    mark("its number became another disk's, which got nothing");

    const served = join(folder, 'served');
    await run('nbdcopy', [exportUri(setup, 'disk'), served]);
    await ask(daemon, 'drain');
    t.is(
      firstDifference(served, disk.originFile, ORIGIN_BYTES),
      null,
      'the drained origin is equal',
    );
    t.regex(await run('fsck.ext4', ['-f', '-n', disk.originFile]), /Pass 5/);
  },
);
