/** `ringfence doctor`: what would hold on this machine, and how to mend what would not. */

import { access, constants, readFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { CONFIG_DEFAULTS } from '../config.ts';
import {
  deviceModel,
  deviceSignatures,
  findDevice,
  programFolders,
  refuseDeviceInUse,
} from '../devices.ts';
import { ringfenceError, toRingfenceError } from '../errors.ts';
import type { Native } from '../native.ts';
import { formatSize } from '../units.ts';
import type { Context } from './context.ts';
import { guardLines, nativeReason, table } from './output.ts';

/** Programs that the daemon or its users need, and what for. */
const PROGRAMS = [
  ['wipefs', 'needed by "ringfence format": install util-linux'],
  ['lsblk', 'names the model of a device: install util-linux'],
] as const;
/** Beside the reserve there are at most 16 bytes of memory per 4 KiB of cache device, ... */
const CACHE_BYTES_PER_INDEX_BYTE = 256n;
/** ... or these, where they are more. */
const INDEX_BYTES_LEAST = 16n << 20n;
/** Where the kernel's nbd driver shows, loaded or built in. */
const NBD_DRIVER = '/sys/module/nbd';

/** Adds the verb. */
export function addDoctorCommand(program: Command, context: Context): void {
  program
    .command('doctor')
    .description('show what would hold on this machine, and how to mend what would not')
    .option('--cache <device>', 'show what is on this device too')
    .action(async (options: { cache?: string }) => {
      const native = context.native();
      const { cache } = options;
      const guards = native.probe(CONFIG_DEFAULTS.reserveBytes, await indexBytes(cache), cache);
      const show = (...lines: readonly string[]) => context.write(`${lines.join('\n')}\n`);
      show('system', ...indented(await systemLines()));
      show('', 'protections of the I/O path', ...indented(guardLines(guards)));
      if (cache !== undefined) {
        show('', 'cache device', ...indented(await cacheLines(native, cache)));
      }
      const uring = guards.find(({ measure }) => measure === 'io_uring');
      // Without the rest the daemon runs less safely; without io_uring it does not run.
      if (uring?.up === false) throw ringfenceError('RF_UNSUITABLE', [uring.advice ?? '']);
    });
}

/** What the index of this cache device has at most, unless `serve` is told otherwise. */
async function indexBytes(cache: string | undefined): Promise<bigint> {
  const device =
    cache === undefined ? null : await findDevice(cache, 'cache device').catch(() => null);
  const bytes = (device?.sizeBytes ?? 0n) / CACHE_BYTES_PER_INDEX_BYTE;
  return bytes > INDEX_BYTES_LEAST ? bytes : INDEX_BYTES_LEAST;
}

async function systemLines(): Promise<readonly string[]> {
  const rows = [
    ['kernel', release()],
    ['node', process.version],
    ['locked memory', await limit('Max locked memory')],
    ['open files', await limit('Max open files')],
  ];
  for (const [name, advice] of PROGRAMS) {
    rows.push([name, (await findProgram(name)) ?? `missing; ${advice}`]);
  }
  const driver = await access(NBD_DRIVER).then(
    () => 'loaded',
    () => 'not loaded; "ringfence attach" needs it: run "modprobe nbd" where exports are attached',
  );
  rows.push(['nbd driver', driver]);
  return table(rows);
}

/** The soft limit of this process, as `/proc/self/limits` tells it. */
async function limit(name: string): Promise<string> {
  const text = await readFile('/proc/self/limits', 'utf8');
  const line = text.split('\n').find((candidate) => candidate.startsWith(name));
  const soft = line?.slice(name.length).trim().split(/\s+/)[0] ?? 'unknown';
  return name.endsWith('memory') && /^[0-9]+$/.test(soft) ? formatSize(BigInt(soft)) : soft;
}

async function findProgram(name: string): Promise<string | null> {
  for (const folder of programFolders()) {
    const path = join(folder, name);
    const isThere = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (isThere) return path;
  }
  return null;
}

async function cacheLines(native: Native, path: string): Promise<readonly string[]> {
  const device = await findDevice(path, 'cache device');
  const used = await refuseDeviceInUse(device, 'cache device').then(
    () => 'by nobody',
    (error: unknown) => toRingfenceError(error).message,
  );
  const rows = [
    ['path', device.path],
    ['model', await deviceModel(device)],
    ['size', formatSize(device.sizeBytes)],
    ['in use', used],
  ];
  let cache: Awaited<ReturnType<Native['describe']>>;
  try {
    cache = await native.describe(path);
  } catch (error) {
    return table([...rows, ['cache', `cannot be read: ${nativeReason(error, path)}`]]);
  }
  if (cache === null) {
    const signatures = await deviceSignatures(device).then(
      (all) => all.map(({ type }) => type).join(', ') || 'no signature either',
      (error: unknown) => toRingfenceError(error).message,
    );
    return table([...rows, ['cache', `none; ${signatures}`]]);
  }
  rows.push(['cache', cache.uuid], ['format version', `${cache.formatVersion}`]);
  rows.push(['segments', `${cache.segments} of ${formatSize(cache.segmentBytes)}`]);
  rows.push(['times opened', `${cache.incarnation}`]);
  for (const one of cache.exports) {
    const sizes = `${formatSize(one.sizeBytes)}, ${formatSize(one.dirtyBytes)} dirty`;
    rows.push([`export "${one.name}"`, `${sizes}, origin ${one.originIdentity}`]);
  }
  return table(rows);
}

function indented(lines: readonly string[]): readonly string[] {
  return lines.map((line) => `  ${line}`);
}
