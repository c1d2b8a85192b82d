/** The servers that are compared, each on a device of its own and of the same kind. */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { attachLoop, type LoopDevice, loopDevice, MIB } from '../test/support/loop.ts';
import { type Background, run, startProcess, waitUntil } from '../test/support/process.ts';
import {
  ask,
  type Daemon,
  daemonSetup,
  exportUri,
  formatCache,
  greets,
  readMetric,
  startDaemon,
} from '../test/support/ringfence.ts';
import type { Scope } from '../test/support/scope.ts';
import { EXPORT_BYTES, RESERVE, type ServerName } from './jobs.ts';
import type { Cpus } from './machine.ts';

/** A server, ready to be measured. */
export interface Server {
  readonly name: ServerName;
  /** fio's arguments that choose its engine, and where that engine connects to. */
  readonly fioEngine: readonly string[];
  /** What fio calls the disk. */
  readonly fioFile: string;
  /** The process whose CPU time counts; null for the bare device. */
  readonly pid: number | null;
  /** Brings everything written so far to rest, so that nothing of it disturbs the next round. */
  settle(): Promise<void>;
  /** Bytes that were read so far; null where there is no cache. */
  readReads(): Promise<ReadBytes | null>;
  /** What the ring thread has done so far; null where there is none. */
  ringWork(): Promise<RingWork | null>;
}

/** Bytes that clients have read. */
export interface ReadBytes {
  readonly total: number;
  /** Those that the cache had. */
  readonly hit: number;
  /** What was read from the cache device, for whatever reason. */
  readonly device: number;
}

/** What a ring thread does beside requests. */
export interface RingWork {
  readonly systemCalls: number;
  readonly sleeps: number;
}

const noCache = async (): Promise<null> => null;

/** A device whose file is fully written, so that no round pays for allocating it. */
export async function writtenDevice(
  scope: Scope,
  folder: string,
  name: string,
  sizeBytes: number,
): Promise<LoopDevice> {
  const file = join(folder, name);
  const count = `count=${sizeBytes / MIB}`;
  const dd = ['if=/dev/zero', `of=${file}`, 'bs=1M', count, 'oflag=direct', 'status=none'];
  await run('dd', dd, { timeoutMs: 600_000 });
  return attachLoop(scope, file);
}

/** fio as an NBD client; to that engine the name of the disk means nothing. */
function nbdClient(uri: string): Pick<Server, 'fioEngine' | 'fioFile'> {
  return { fioEngine: ['--ioengine=nbd', `--uri=${uri}`], fioFile: 'nbd' };
}

/** Starts a peer on a Unix socket. */
async function startPeer(
  scope: Scope,
  path: string,
  cpus: Cpus,
  command: string,
  args: readonly string[],
): Promise<Background> {
  // A peer of the placement before may have left its socket behind.
  await rm(path, { force: true });
  const background = startProcess(scope, command, args, { cpus: cpus.server });
  await waitUntil(
    () => {
      if (background.ended() !== null) throw new Error(`${command}: ${background.output()}`);
      return greets(path);
    },
    () => `${command} does not serve: ${background.output()}`,
  );
  return background;
}

async function startNbdkit(
  scope: Scope,
  folder: string,
  cpus: Cpus,
  plugin: 'null' | 'memory' | 'file',
  device: string | null,
): Promise<Server> {
  const path = join(folder, `nbdkit-${plugin}.sock`);
  const what = device === null ? String(EXPORT_BYTES) : device;
  const { pid } = await startPeer(scope, path, cpus, 'nbdkit', [
    ...['--foreground', '--unix', path, plugin, what],
  ]);
  return {
    name: `nbdkit ${plugin}`,
    ...nbdClient(`nbd+unix:///?socket=${path}`),
    pid,
    settle: async () => {
      // Its writes may still be in the page cache, on their way to the disk. They stay in the
      // cache: it is this server's equal of a reserve.
      if (device !== null) await run('sync', [device]);
    },
    readReads: noCache,
    ringWork: noCache,
  };
}

async function startQemuNbd(
  scope: Scope,
  folder: string,
  cpus: Cpus,
  device: string,
): Promise<Server> {
  const path = join(folder, 'qemu-nbd.sock');
  const { pid } = await startPeer(scope, path, cpus, 'qemu-nbd', [
    ...['--persistent', '--shared=8', '--cache=none', '--aio=io_uring', '--format=raw'],
    ...[`--socket=${path}`, device],
  ]);
  return {
    name: 'qemu-nbd',
    ...nbdClient(`nbd+unix:///?socket=${path}`),
    pid,
    settle: async () => undefined,
    readReads: noCache,
    ringWork: noCache,
  };
}

function sum(values: Iterable<number>): number {
  return [...values].reduce((total, value) => total + value, 0);
}

async function readReads(daemon: Daemon): Promise<ReadBytes> {
  const samples = [...(await readMetric(daemon, 'ringfence_cache_read_bytes_total'))];
  const hits = samples.filter(([labels]) => labels.includes('result="hit"'));
  return {
    total: sum(samples.map(([, value]) => value)),
    hit: sum(hits.map(([, value]) => value)),
    device: sum((await readMetric(daemon, 'ringfence_device_read_bytes_total')).values()),
  };
}

async function ringWork(daemon: Daemon): Promise<RingWork> {
  const total = async (what: string): Promise<number> =>
    sum((await readMetric(daemon, `ringfence_ring_${what}_total`)).values());
  return { systemCalls: await total('system_calls'), sleeps: await total('sleeps') };
}

/** Formats `cache` and starts ringfence in front of `origin`. */
export async function startRingfence(
  scope: Scope,
  folder: string,
  cpus: Cpus,
  cache: LoopDevice,
  origin: LoopDevice,
): Promise<Server> {
  await formatCache(cache.device, '16MiB');
  const exports = [{ name: 'disk', origin: origin.device }];
  const setup = await daemonSetup(
    { cache: cache.device, exports, folder },
    { reserve: RESERVE, cpus: cpus.server },
  );
  const daemon = await startDaemon(scope, setup);
  return {
    name: 'ringfence',
    ...nbdClient(exportUri(setup, 'disk')),
    pid: daemon.background.pid,
    settle: async () => {
      await ask(daemon, 'drain');
    },
    readReads: () => readReads(daemon),
    ringWork: () => ringWork(daemon),
  };
}

/** The devices that all placements share. */
export interface Devices {
  readonly cache: LoopDevice;
  readonly origin: LoopDevice;
  readonly nbdkit: LoopDevice;
  readonly qemu: LoopDevice;
  readonly bare: LoopDevice;
}

/** Makes the devices. */
export async function makeDevices(
  scope: Scope,
  folder: string,
  cacheBytes: number,
): Promise<Devices> {
  const device = (name: string): Promise<LoopDevice> =>
    writtenDevice(scope, folder, name, EXPORT_BYTES);
  return {
    cache: await writtenDevice(scope, folder, 'cache', cacheBytes),
    origin: await device('origin'),
    nbdkit: await device('nbdkit'),
    qemu: await device('qemu'),
    bare: await device('bare'),
  };
}

/** Starts all servers. */
export async function startServers(
  scope: Scope,
  folder: string,
  cpus: Cpus,
  devices: Devices,
): Promise<Server[]> {
  const bare: Server = {
    name: 'bare device',
    fioEngine: ['--ioengine=io_uring', '--direct=1'],
    fioFile: devices.bare.device,
    pid: null,
    settle: async () => undefined,
    readReads: noCache,
    ringWork: noCache,
  };
  return [
    await startRingfence(scope, folder, cpus, devices.cache, devices.origin),
    await startNbdkit(scope, folder, cpus, 'null', null),
    await startNbdkit(scope, folder, cpus, 'memory', null),
    await startNbdkit(scope, folder, cpus, 'file', devices.nbdkit.device),
    await startQemuNbd(scope, folder, cpus, devices.qemu.device),
    bare,
  ];
}

/** A small cache over a sparse file, for the sustained job. */
export async function startSustained(
  scope: Scope,
  folder: string,
  cpus: Cpus,
  cacheBytes: number,
  origin: LoopDevice,
): Promise<Server> {
  const cache = await loopDevice(scope, folder, 'small-cache', cacheBytes);
  return startRingfence(scope, folder, cpus, cache, origin);
}
