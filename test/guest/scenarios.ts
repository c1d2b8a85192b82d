/** What a filesystem in the guest goes through, on any NBD server that listens on TCP. */

import { setTimeout as sleep } from 'node:timers/promises';
import { waitUntil } from '../support/process.ts';
import { type Guest, ringfencePrelude } from './machine.ts';

/** A server as the scenarios see it. */
export interface GuestServer {
  readonly port: number;
  readonly exportName: string;
  /** SIGKILL, and waits until it is gone. */
  kill(): Promise<void>;
  /** SIGTERM, and waits until it has ended well. */
  stop(): Promise<void>;
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
    find /mnt -type f | sort | xargs sha256sum > /run/sums
    wc -l < /run/sums`);
}

const compareFiles = 'sha256sum --check --quiet /run/sums';
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
    sha256sum /mnt/after >> /run/sums
    sync`);
  await server.kill();
  // The device is dead: what was not synced may be lost, and the kernel says so.
  await guest.runAnyway(`umount /mnt; nbd-client -d ${DEVICE}`);
  await guest.run('never mountpoint -q /mnt');
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

/** Attaches as `ringfence serve` says, and stays. What was on its way is sent again after 2 s. */
export async function attachForGood(
  guest: Guest,
  place: string,
  name: string,
  options = '',
): Promise<void> {
  await guest.run(`${ringfencePrelude}
    nohup node "$RINGFENCE" attach '${name}' ${DEVICE} --connect '${place}' --resend 2s ${options} \
      > /run/attach.log 2>&1 &
    echo $! > /run/attach.pid
    for i in $(seq 600); do
      grep -q "^${DEVICE} " /run/attach.log && exit 0
      kill -0 $(cat /run/attach.pid) || break
      sleep 0.1
    done
    cat /run/attach.log
    exit 1`);
}

/** Ends `ringfence attach` with a signal; resolves with what it said since it was started. */
export async function endAttach(guest: Guest, signal: 'TERM' | 'KILL'): Promise<string> {
  return guest.run(`
    kill -${signal} $(cat /run/attach.pid)
    for i in $(seq 200); do kill -0 $(cat /run/attach.pid) 2>/dev/null || break; sleep 0.1; done
    never kill -0 $(cat /run/attach.pid) 2>/dev/null
    cat /run/attach.log`);
}

/**
 * Starts a writer that writes and syncs files on the mounted filesystem until it is ended, and
 * beside it one that keeps 16 requests in flight, so that a restart always finds some, that reads
 * back what it wrote 256 blocks at a time, and that gives up at the first error or difference.
 */
export async function startWriter(guest: Guest): Promise<void> {
  await guest.run(`
    dmesg --clear
    rm -f /run/enough /run/heavy.json
    mkdir -p /mnt/live
    : > /run/written
    : > /run/failed
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
    echo $! > /run/writer.pid
    # fio tells a block of an earlier pass only if it counts passes (time_based does not), and one
    # of an earlier run only if each run has an order of its own (randrepeat).
    nohup fio --name=heavy --filename=/mnt/heavy --size=16m --rw=randwrite --bs=4k --direct=1 \
      --overwrite=1 --ioengine=libaio --iodepth=16 --loops=1000000 --randrepeat=0 \
      --verify=crc32c --verify_fatal=1 --verify_backlog=256 --verify_state_save=0 \
      --output-format=json --output=/run/heavy.json > /run/heavy.log 2>&1 &
    echo $! > /run/heavy.pid`);
}

/** Waits until the writer has gone on for some files. */
async function writerGoesOn(guest: Guest): Promise<void> {
  const written = async () => Number(await guest.run('wc -l < /run/written'));
  const before = await written();
  await waitUntil(
    async () => (await written()) >= before + 4,
    () => `the guest stopped writing:\n${guest.console()}`,
    120_000,
  );
}

/** Waits until `ringfence attach` has said so often that the kernel has a new connection. */
async function attachedAgain(guest: Guest, times: number): Promise<void> {
  const count = "grep -c 'attached again' /run/attach.log || :";
  await waitUntil(
    async () => Number(await guest.run(count)) >= times,
    () => `the kernel was not attached again:\n${guest.console()}`,
    60_000,
  );
}

/** The error number that fio's only job ended with, and how much it read back. */
function heavyResult(output: string): { readonly error: number; readonly readBytes: number } {
  const { jobs } = JSON.parse(output.slice(output.indexOf('{'))) as {
    jobs: readonly { error: number; read: { io_bytes: number } }[];
  };
  const [job] = jobs;
  if (job === undefined) throw new Error(`fio tells of no job:\n${output}`);
  return { error: job.error, readBytes: job.read.io_bytes };
}

/** Ends the writer: nothing failed, every file reads back from the device, no error was logged. */
export async function endWriter(guest: Guest): Promise<number> {
  await guest.run(`
    kill -INT $(cat /run/heavy.pid) || { cat /run/heavy.log; dmesg | tail -n 20; exit 1; }
    touch /run/enough
    for pid in $(cat /run/writer.pid /run/heavy.pid); do
      for i in $(seq 600); do kill -0 $pid 2>/dev/null || break; sleep 0.1; done
    done
    never kill -0 $(cat /run/heavy.pid) 2>/dev/null
    never kill -0 $(cat /run/writer.pid) 2>/dev/null
    if [ -s /run/failed ]; then cat /run/failed /run/writer.log; dmesg | tail -n 20; exit 1; fi
    sync
    ${dropCaches}
    sha256sum --check --quiet /run/written
    dmesg > /run/dmesg
    errors='I/O error|EXT4-fs error|Remounting filesystem read-only'
    grep nbd0 /run/dmesg | never grep -E "$errors"`);
  const { error, readBytes } = heavyResult(await guest.run('cat /run/heavy.json'));
  if (error !== 0 || readBytes === 0) {
    const log = await guest.run('cat /run/heavy.log');
    throw new Error(`fio ended with ${error}, and read ${readBytes} bytes back:\n${log}`);
  }
  return Number(await guest.run('wc -l < /run/written'));
}

/**
 * Takes the server away and brings it back `kills` times by SIGKILL and `stops` times in the
 * orderly way, while the guest writes to the mounted filesystem. Nothing is remounted; every file
 * must be there, whether it was synced or not. Returns how many files the guest wrote.
 */
export async function restartWhileWriting(
  guest: Guest,
  server: GuestServer,
  { kills, stops }: { readonly kills: number; readonly stops: number },
): Promise<number> {
  await attachForGood(guest, `${HOST}:${server.port}`, server.exportName);
  await guest.run(`mount ${DEVICE} /mnt`);
  await startWriter(guest);
  for (let restart = 1; restart <= kills + stops; restart += 1) {
    await writerGoesOn(guest);
    if (restart <= kills) await server.kill();
    else await server.stop();
    await sleep(500);
    await server.start();
    await attachedAgain(guest, restart);
  }
  await writerGoesOn(guest);
  const files = await endWriter(guest);
  await guest.run(`${compareFiles} && umount /mnt && ${checkFilesystem}`);
  return files;
}

/**
 * With the filesystem of {@link restartWhileWriting}, still attached: whoever looks after the
 * device is killed together with the server, started again, told to end while the device is in
 * use, and told to end when it is not.
 */
export async function restartSupervisor(guest: Guest, server: GuestServer): Promise<void> {
  const place = `${HOST}:${server.port}`;
  await guest.run(`mount ${DEVICE} /mnt`);
  await startWriter(guest);
  await writerGoesOn(guest);
  await endAttach(guest, 'KILL');
  await server.kill();
  await server.start();
  await attachForGood(guest, place, server.exportName);
  await guest.run("grep 'was attached already' /run/attach.log");
  await writerGoesOn(guest);
  const twice = await guest.runAnyway(`${ringfencePrelude}
    node "$RINGFENCE" attach '${server.exportName}' --connect '${place}'`);
  if (twice.exitCode !== 1 || !twice.output.includes('looked after by another')) {
    throw new Error(`a second supervisor was not refused: ${twice.output}`);
  }
  const said = await endAttach(guest, 'TERM');
  if (!said.includes('RF_STAYS_ATTACHED')) throw new Error(`detached under a mount: ${said}`);
  await writerGoesOn(guest);
  await endWriter(guest);
  await attachForGood(guest, place, server.exportName);
  await guest.run(`umount /mnt && ${checkFilesystem}`);
  const end = await endAttach(guest, 'TERM');
  if (!end.includes('is detached.')) throw new Error(`not detached: ${end}`);
  await guest.run('test ! -e /sys/block/nbd0/pid');
}

/**
 * Several connections, all of them replaced when the server comes back; then a server that is away
 * for longer than requests wait for it, and a device that is detached by force, while it is in use.
 * The server is not started again.
 *
 * @param count tells how many clients the server has
 */
export async function outlastDeadTimeout(
  guest: Guest,
  server: GuestServer,
  count: () => Promise<number>,
): Promise<void> {
  const place = `${HOST}:${server.port}`;
  const connections = 4;
  const counted = async (): Promise<void> =>
    waitUntil(
      async () => (await count()) === connections,
      () => `not ${connections} connections:\n${guest.console()}`,
    );
  const options = `--connections ${connections} --dead-timeout 3s`;
  await attachForGood(guest, place, server.exportName, options);
  await counted();
  // Without a journal to replay later, since this mount will be cut off.
  await guest.run(`mount -o ro ${DEVICE} /mnt`);
  await server.kill();
  await server.start();
  await attachedAgain(guest, connections);
  await counted();
  await guest.run(`${dropCaches} && ${compareFiles}`);

  await server.kill();
  const read = `dd if=${DEVICE} of=/run/read bs=4096 count=1 iflag=direct`;
  const { exitCode, output } = await guest.runAnyway(read, 60_000);
  if (exitCode === 0 || !output.includes('Input/output error')) {
    throw new Error(`no error without a server: ${output}`);
  }
  // The kernel counts for itself, and the supervisor tells of it with its next attempt.
  await waitUntil(
    async () => (await guest.runAnyway("grep 'fail from now on' /run/attach.log")).exitCode === 0,
    () => `the supervisor did not say that requests fail:\n${guest.console()}`,
  );
  // The kernel keeps the device, and with it its supervisor, for those who have it open.
  const said = await guest.run(`${ringfencePrelude}
    node "$RINGFENCE" detach --force ${DEVICE}
    umount /mnt
    for i in $(seq 200); do kill -0 $(cat /run/attach.pid) 2>/dev/null || break; sleep 0.1; done
    never kill -0 $(cat /run/attach.pid) 2>/dev/null
    test ! -e /sys/block/nbd0/pid
    cat /run/attach.log`);
  if (!said.includes('detached by somebody else')) throw new Error(`attach said: ${said}`);
}

/**
 * The device is detached while its server is away, and its number is another disk's at once: the
 * supervisor must give that disk nothing. The server runs again afterwards.
 *
 * @param otherPort where the other disk is served on the host, four bytes of 0xee at its start
 */
export async function giveNothingToAnother(
  guest: Guest,
  server: GuestServer,
  otherPort: number,
): Promise<void> {
  await attachForGood(guest, `${HOST}:${server.port}`, server.exportName);
  await server.kill();
  await guest.run(`
    for i in $(seq 100); do grep -q 'cannot be reached' /run/attach.log && break; sleep 0.1; done
    grep 'cannot be reached' /run/attach.log
    nbd-client -d ${DEVICE} && nbd-client ${HOST} ${otherPort} ${DEVICE}`);
  await server.start();
  const said = await guest.run(`
    for i in $(seq 200); do kill -0 $(cat /run/attach.pid) 2>/dev/null || break; sleep 0.1; done
    cat /run/attach.log
    never kill -0 $(cat /run/attach.pid) 2>/dev/null
    dd if=${DEVICE} bs=1 count=4 status=none | od -An -tx1`);
  if (!said.includes('detached by somebody else')) throw new Error(`attach said: ${said}`);
  if (!said.includes('ee ee ee ee')) throw new Error(`not the other disk: ${said}`);
  await detach(guest);
}
