/** What a filesystem in the guest goes through, on any NBD server that listens on TCP. */

import { setTimeout as sleep } from 'node:timers/promises';
import { waitUntil } from '../support/process.ts';
import type { Guest } from './machine.ts';

/** A server as the scenarios see it. */
export interface GuestServer {
  readonly port: number;
  readonly exportName: string;
  /** SIGKILL, and waits until it is gone. */
  kill(): Promise<void>;
  /** Starts it, again on the same port. */
  start(): Promise<void>;
}

/** The host, as the guest reaches it through qemu's user network. */
const HOST = '10.0.2.2';
const DEVICE = '/dev/nbd0';

/** Attaches with the kernel's client. Requests of a dead connection are retried after 2 s. */
async function attach(guest: Guest, server: GuestServer): Promise<void> {
  await guest.run(`
    nbd-client ${HOST} ${server.port} ${DEVICE} -name '${server.exportName}' -timeout 2
    for i in $(seq 100); do [ "$(cat /sys/block/nbd0/size)" != 0 ] && break; sleep 0.1; done
    blockdev --getsize64 ${DEVICE}`);
}

async function detach(guest: Guest): Promise<void> {
  await guest.run(`
    nbd-client -d ${DEVICE}
    for i in $(seq 100); do [ ! -e /sys/block/nbd0/pid ] && exit 0; sleep 0.1; done
    exit 1`);
}

/** Fills the mounted filesystem with files large and small; their sums go to memory. */
async function fill(guest: Guest): Promise<void> {
  await guest.run(`
    mkdir /mnt/small
    cp -r /usr/lib/python3.11/json /usr/lib/python3.11/email /mnt/small/
    dd if=/dev/urandom of=/mnt/large bs=1M count=24 status=none
    for i in $(seq 200); do echo "file $i" > /mnt/small/$i; done
    cd /mnt && find . -type f | sort | xargs sha256sum > /run/sums
    wc -l < /run/sums`);
}

const compareFiles = 'cd /mnt && sha256sum --check --quiet /run/sums && cd /';
const dropCaches = 'echo 3 > /proc/sys/vm/drop_caches';
const checkFilesystem = `fsck.ext4 -f -n ${DEVICE}`;

/** mkfs, mount, write, drop caches, remount, compare, fsck, detach. */
export async function fillAndRemount(guest: Guest, server: GuestServer): Promise<void> {
  await attach(guest, server);
  await guest.run(`mkfs.ext4 -q -E lazy_itable_init=0 ${DEVICE} && mount ${DEVICE} /mnt`);
  await fill(guest);
  await guest.run(`sync && ${dropCaches} && ${compareFiles}`);
  await guest.run(`umount /mnt && mount ${DEVICE} /mnt && ${dropCaches} && ${compareFiles}`);
  await guest.run(`umount /mnt && ${checkFilesystem}`);
  await detach(guest);
}

/** The filesystem of {@link fillAndRemount}, with the server killed between sync and remount. */
export async function killBetweenSyncAndRemount(guest: Guest, server: GuestServer): Promise<void> {
  await attach(guest, server);
  await guest.run(`
    mount ${DEVICE} /mnt
    dd if=/dev/urandom of=/mnt/after bs=1M count=8 status=none
    cd /mnt && sha256sum ./after >> /run/sums && cd /
    sync`);
  await server.kill();
  // The device is dead: what was not synced may be lost, and the kernel says so.
  await guest.runAnyway(`umount /mnt; nbd-client -d ${DEVICE}`);
  await guest.run('! mountpoint -q /mnt');
  await waitUntil(
    async () => (await guest.runAnyway('test ! -e /sys/block/nbd0/pid')).exitCode === 0,
    () => `the kernel keeps ${DEVICE}:\n${guest.console()}`,
  );
  await server.start();
  await attach(guest, server);
  await guest.run(`mount ${DEVICE} /mnt && ${compareFiles}`);
  await guest.run(`umount /mnt && ${checkFilesystem}`);
  await detach(guest);
}

/** How often the writer in the guest has written and synced a file. */
async function filesWritten(guest: Guest): Promise<number> {
  return Number(await guest.run('wc -l < /run/written'));
}

/**
 * Kills and restarts the server `kills` times while the guest writes to the mounted filesystem.
 * Nothing is remounted; every file must be there, whether it was synced or not. Returns how many
 * files the guest wrote.
 */
export async function killWhileWriting(
  guest: Guest,
  server: GuestServer,
  kills: number,
  reattachScript: string,
): Promise<number> {
  await attach(guest, server);
  await guest.run(`
    nohup /usr/bin/python3 '${reattachScript}' 0 ${HOST} ${server.port} '${server.exportName}' 600 \
      > /run/reattach.log 2>&1 &
    echo $! > /run/reattach.pid
    for i in $(seq 100); do grep -q watching /run/reattach.log && break; sleep 0.1; done
    grep watching /run/reattach.log
    dmesg --clear
    mount ${DEVICE} /mnt && mkdir -p /mnt/live && : > /run/written && : > /run/failed
    cat > /run/writer.sh <<'END'
i=0
while [ ! -e /run/enough ]; do
  i=$((i + 1))
  file=/mnt/live/$i
  head -c $((4096 + (i % 37) * 1531)) /dev/urandom > "/run/data" &&
    cp /run/data "$file" || echo "write $i" >> /run/failed
  [ $((i % 4)) = 0 ] && { sync "$file" || echo "sync $i" >> /run/failed; }
  (cd /run && sha256sum data | sed "s,data,$file,") >> /run/written
done
END
    nohup sh /run/writer.sh > /run/writer.log 2>&1 &
    echo $! > /run/writer.pid`);
  for (let kill = 1; kill <= kills; kill += 1) {
    const before = await filesWritten(guest);
    await waitUntil(
      async () => (await filesWritten(guest)) >= before + 4,
      () => `the guest stopped writing:\n${guest.console()}`,
      120_000,
    );
    await server.kill();
    await sleep(500);
    await server.start();
    await waitUntil(
      async () => Number(await guest.run('grep -c reattached /run/reattach.log || :')) >= kill,
      () => `the kernel was not attached again:\n${guest.console()}`,
    );
  }
  await guest.run(`
    touch /run/enough
    for i in $(seq 600); do kill -0 $(cat /run/writer.pid) 2>/dev/null || break; sleep 0.1; done
    ! kill -0 $(cat /run/writer.pid) 2>/dev/null
    if [ -s /run/failed ]; then cat /run/failed /run/writer.log; exit 1; fi
    sync && ${dropCaches}
    sha256sum --check --quiet /run/written && ${compareFiles}
    ! dmesg | grep -E 'I/O error|EXT4-fs error|Remounting filesystem read-only' | grep nbd0`);
  const files = await filesWritten(guest);
  await guest.run(`
    umount /mnt && ${checkFilesystem}
    kill $(cat /run/reattach.pid)`);
  await detach(guest);
  return files;
}
