/** The daemon itself in the guest, where every guard is permitted, under the guest's own client. */

import test from 'ava';
import { MIB, sparseFile, temporaryFolder } from '../support/loop.ts';
import type { Status } from '../support/ringfence.ts';
import { testScope } from '../support/scope.ts';
import { type Guest, ringfencePrelude, startGuest } from './machine.ts';
import { endWriter, startWriter } from './scenarios.ts';

const PRELUDE = `${ringfencePrelude}
ringfence() { node "$RINGFENCE" "$@"; }
`;
const CONTROL = '--control /run/ringfence/control.sock';

async function startInside(guest: Guest): Promise<void> {
  await guest.run(`${PRELUDE}
    nohup node "$RINGFENCE" serve --cache /dev/vda --export disk=/dev/vdb \
      --listen unix:/run/nbd.sock --listen unix:/run/unused.sock \
      --metrics 127.0.0.1:9100 ${CONTROL} --reserve 128MiB \
      > /run/daemon.log 2>&1 &
    echo $! > /run/daemon.pid
    for i in $(seq 1200); do
      [ -S /run/nbd.sock ] && nbdinfo --size 'nbd+unix:///disk?socket=/run/nbd.sock' && exit 0
      kill -0 $(cat /run/daemon.pid) || break
      sleep 0.1
    done
    cat /run/daemon.log
    exit 1`);
}

/** The guards in `status`, whatever detail stands beside each. */
function guardsDown(status: Status): string[] {
  return Object.entries(status.guards)
    .filter(([, guard]) => {
      const up = typeof guard === 'object' && guard !== null && 'up' in guard ? guard.up : guard;
      return up !== true;
    })
    .map(([measure, guard]) => `${measure}: ${JSON.stringify(guard)}`);
}

/** The kernel's count of sockets while clients connect, and go without another word. */
async function disconnectMany(guest: Guest, clients: number): Promise<void> {
  await guest.run(`${PRELUDE}
    cat > /run/clients.mjs <<'END'
import { once } from 'node:events';
import { connect } from 'node:net';
for (let client = 0; client < ${clients}; client += 1) {
  const socket = connect('/run/nbd.sock');
  await once(socket, 'data');
  socket.destroy();
  await once(socket, 'close');
}
END
    used() { sed -n 's/^sockets: used //p' /proc/net/sockstat; }
    before=$(used)
    node /run/clients.mjs
    for i in $(seq 100); do [ $(used) -le $((before + 10)) ] && exit 0; sleep 0.1; done
    echo "$(used) sockets, $before before"
    exit 1`);
}

/**
 * Runs the attach command as `serve` printed it, and restarts the daemon, once by SIGKILL and once
 * by SIGTERM, under a mounted filesystem that is written to.
 */
async function restartUnderPrintedCommand(guest: Guest): Promise<void> {
  await guest.run(`${PRELUDE}
    grep -E '^  .* attach disk --connect ' /run/daemon.log | tail -n 1 > /run/printed
    test -s /run/printed
    nohup sh /run/printed > /run/attach.log 2>&1 &
    echo $! > /run/attach.pid
    for i in $(seq 600); do grep -q 'is attached' /run/attach.log && break; sleep 0.1; done
    grep '^/dev/nbd0 is attached' /run/attach.log
    never grep 'not in place' /run/attach.log
    mount /dev/nbd0 /mnt`);
  await startWriter(guest);
  for (const signal of ['KILL', 'TERM']) {
    await guest.run(`
      sleep 2
      kill -${signal} $(cat /run/daemon.pid)
      for i in $(seq 600); do kill -0 $(cat /run/daemon.pid) 2>/dev/null || exit 0; sleep 0.1; done
      cat /run/daemon.log; exit 1`);
    await startInside(guest);
    // What was on its way when the connection broke is sent again when its time is over.
    await guest.run(`
      n=$(wc -l < /run/written)
      for i in $(seq 1200); do [ $(wc -l < /run/written) -gt $((n + 4)) ] && exit 0; sleep 0.1; done
      cat /run/attach.log; dmesg | tail -n 20; exit 1`);
  }
  await endWriter(guest);
  await guest.run(`
    sha256sum --check --quiet /run/sums
    umount /mnt
    fsck.ext4 -f -n /dev/nbd0
    kill -TERM $(pgrep -f 'ringfence attach')
    for i in $(seq 200); do [ -e /sys/block/nbd0/pid ] || exit 0; sleep 0.1; done
    cat /run/attach.log; exit 1`);
}

test.serial('in the guest every guard is up, and a filesystem works on the daemon', async (t) => {
  t.timeout(600_000);
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const disks = [sparseFile(folder, 'vda', 128 * MIB), sparseFile(folder, 'vdb', 128 * MIB)];
  const guest = await startGuest(scope, folder, disks);
  t.is((await guest.runAnyway('exit 3')).exitCode, 3, 'a failing command shows');

  // The reserve wants huge pages, which a machine must have set aside.
  await guest.run(`echo 96 > /proc/sys/vm/nr_hugepages; grep HugePages_Free /proc/meminfo`);
  await guest.run(`${PRELUDE} ringfence format /dev/vda --yes --segment 4MiB`);
  await startInside(guest);
  const status = JSON.parse(
    await guest.run(`${PRELUDE} ringfence status --json ${CONTROL}`),
  ) as Status;
  t.true('io_flusher' in status.guards && 'memory_locked' in status.guards);
  t.deepEqual(guardsDown(status), []);

  // One listener has no client, ever: what the kernel holds for it must not hold anything else.
  await disconnectMany(guest, 200);

  await guest.run(`
    nbd-client -unix /run/nbd.sock /dev/nbd0 -name disk
    for i in $(seq 100); do [ "$(cat /sys/block/nbd0/size)" != 0 ] && break; sleep 0.1; done
    mkfs.ext4 -q /dev/nbd0
    mount /dev/nbd0 /mnt
    dd if=/dev/urandom of=/mnt/large bs=1M count=24 status=none
    sha256sum /mnt/large > /run/sums
    umount /mnt
    echo 3 > /proc/sys/vm/drop_caches
    mount /dev/nbd0 /mnt
    sha256sum --check --quiet /run/sums
    umount /mnt
    nbd-client -d /dev/nbd0`);
  await restartUnderPrintedCommand(guest);
  await guest.run(`${PRELUDE}
    ringfence drain ${CONTROL}
    kill -TERM $(cat /run/daemon.pid)
    for i in $(seq 200); do kill -0 $(cat /run/daemon.pid) 2>/dev/null || break; sleep 0.1; done
    never kill -0 $(cat /run/daemon.pid) 2>/dev/null
    mount -o ro /dev/vdb /mnt
    sha256sum --check --quiet /run/sums
    umount /mnt
    fsck.ext4 -f -n /dev/vdb`);
});
