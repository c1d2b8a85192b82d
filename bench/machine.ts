/** The machine under the benchmark: what it is, and who else is using it. */

import {
  accessSync,
  constants,
  existsSync,
  readdirSync,
  readFileSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { delimiter, join } from 'node:path';
import { run } from '../test/support/process.ts';

/** Where client and servers run. */
export type Placement = 'pinned' | 'unpinned';

/** CPUs as `taskset` takes them. */
export interface Cpus {
  readonly client: string;
  readonly server: string;
}

/** One CPU for the client, another for the servers; or all for both. */
export function cpusOf(placement: Placement): Cpus {
  const all = `0-${cpus().length - 1}`;
  return placement === 'pinned' ? { client: '0', server: '1' } : { client: all, server: all };
}

/** The CPUs of the kernel's own workers that are bound to none: loop devices work in them. */
const WORKERS_MASK = '/sys/devices/virtual/workqueue/cpumask';

/** The mask of the kernel's workers as it is, in hexadecimal. */
export function workersMask(): string {
  return readFileSync(WORKERS_MASK, 'latin1').trim();
}

/**
 * The mask that the kernel's workers get where `found` is what they had. What they do is done for
 * servers, and belongs where those run: the kernel would put part of it on the client's CPU, which
 * the client lacks then.
 */
export function workersMaskFor(placement: Placement, found: string): string {
  return placement === 'pinned' ? (1 << Number(cpusOf(placement).server)).toString(16) : found;
}

/** Has the kernel's workers run on the CPUs of a mask. */
export function placeWorkers(mask: string): void {
  writeFileSync(WORKERS_MASK, mask);
}

function canPlaceWorkers(): boolean {
  try {
    accessSync(WORKERS_MASK, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** What is measured beside ringfence, and what it takes to make devices and pin processes. */
const PROGRAMS = ['fio', 'nbdkit', 'qemu-nbd', 'losetup', 'taskset', 'setpriv'];
/** Where programs for root lie; not everybody's `PATH` has them. */
const ROOT_FOLDERS = ['/usr/sbin', '/sbin'];

function isInstalled(program: string): boolean {
  const folders = [...(process.env.PATH ?? '').split(delimiter), ...ROOT_FOLDERS];
  return folders.some((folder) => existsSync(join(folder, program)));
}

/** Why this machine cannot run the benchmark, in one sentence that says what to do; or null. */
export function benchRefusal({
  isRoot = process.getuid?.() === 0,
  cpuCount = cpus().length,
  hasProgram = isInstalled,
  hasWorkers = canPlaceWorkers(),
} = {}): string | null {
  if (!isRoot) return 'The benchmark makes loop devices: run it as root.';
  if (cpuCount < 2) return 'The benchmark needs two CPUs, one for the client: use another machine.';
  if (!hasWorkers) {
    return `The benchmark places the kernel's workers: make ${WORKERS_MASK} writable.`;
  }
  const missing = PROGRAMS.filter((program) => !hasProgram(program));
  if (missing.length === 0) return null;
  return (
    `The benchmark needs ${missing.join(', ')}: install what is missing, on Debian with ` +
    '`apt-get install fio nbdkit qemu-utils mount util-linux`.'
  );
}

/**
 * CPU time of a process, its threads, and its children that have ended, in clock ticks of 10 ms:
 * programs that come and go within a round are seen in whoever waits for them.
 */
function processTicks(pid: number): { readonly ticks: number; readonly parent: number } | null {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    // It ended since the list was made.
    return null;
  }
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const ticks = fields.slice(11, 15).reduce((total, field) => total + Number(field), 0);
  return { ticks, parent: Number(fields[1]) };
}

/** CPU time used so far by everyone, by process, and time that the hypervisor took away. */
export interface LoadSample {
  readonly ticks: ReadonlyMap<number, number>;
  readonly stolenTicks: number;
}

/** The kernel's own threads work for whoever does I/O: they are the children of kthreadd (2). */
const KTHREADD = 2;

/** Samples the CPU time of all processes but the kernel's own threads. */
export function sampleLoad(): LoadSample {
  const ticks = new Map<number, number>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const pid = Number(name);
    const found = pid === KTHREADD ? null : processTicks(pid);
    if (found !== null && found.parent !== KTHREADD) ticks.set(pid, found.ticks);
  }
  const total = readFileSync('/proc/stat', 'latin1').split('\n')[0]?.trim().split(/\s+/) ?? [];
  return { ticks, stolenTicks: Number(total[8]) };
}

/** CPU time that others used between two samples, in seconds; `ours` are the processes measured. */
export function foreignSeconds(
  before: LoadSample,
  after: LoadSample,
  ours: ReadonlySet<number>,
): number {
  let ticks = after.stolenTicks - before.stolenTicks;
  for (const [pid, now] of after.ticks) {
    if (!ours.has(pid)) ticks += now - (before.ticks.get(pid) ?? 0);
  }
  return ticks / 100;
}

/** Type of a filesystem whose files are memory, as `statfs` tells it. */
const TMPFS = 0x0102_1994;

/** What the devices are whose files lie in a folder. */
export function describeDevices(folder: string): string {
  const place = statfsSync(folder).type === TMPFS ? 'in memory (tmpfs)' : 'on the same disk';
  return `loop devices with direct I/O over preallocated files ${place}`;
}

/** What the report says about the machine, one fact per line. */
export async function describeMachine(folder: string): Promise<string[]> {
  const version = async (command: string, flag = '--version'): Promise<string> =>
    (await run(command, [flag])).split('\n')[0]?.trim() ?? command;
  return [
    `${cpus().length} × ${cpus()[0]?.model.trim()}, ${Math.round(totalmem() / (1 << 30))} GiB`,
    `Linux ${release().split('-')[0]}, Node ${process.versions.node}`,
    `${await version('fio')}, ${await version('nbdkit')}, ${await version('qemu-nbd')}`,
    describeDevices(folder),
  ];
}
