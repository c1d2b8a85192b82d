/** `ringfence format`: makes a cache of a device, and destroys what is on it. */

import { type Command, Option } from 'commander';
import {
  type Device,
  deviceModel,
  deviceSignatures,
  findDevice,
  findWriter,
  refuseDeviceInUse,
  type Signature,
} from '../devices.ts';
import { ringfenceError } from '../errors.ts';
import type { CacheDescription, Native } from '../native.ts';
import { formatExactSize, formatSize, parseSizeBytes } from '../units.ts';
import type { Context } from './context.ts';
import { parsedBy } from './options.ts';
import { nativeReason } from './output.ts';

/** What the engine can format: the constants of the same names in its `limits.rs`. */
export const FORMAT_LIMITS = {
  SEGMENT_BYTES_MIN: 4n << 20n,
  SEGMENT_BYTES_DEFAULT: 16n << 20n,
  SEGMENT_BYTES_MAX: 256n << 20n,
  SEGMENTS_MIN: 12n,
  SEGMENTS_OFFSET: 1n << 20n,
} as const;

/** What to say instead of a UUID where the cache cannot be read. */
const UNREADABLE = 'unreadable';

interface FormatOptions {
  readonly yes?: boolean;
  readonly dryRun?: boolean;
  readonly segment: bigint;
  readonly discardDirty?: string;
}

/** Adds the verb. */
export function addFormatCommand(program: Command, context: Context): void {
  program
    .command('format')
    .description('make a cache of a device; destroys what is on it')
    .argument('<device>', 'a block device, or a file that stands for one')
    .option('--yes', 'do not ask')
    .option('--dry-run', 'show what would be destroyed and write nothing')
    .addOption(segmentOption())
    .option('--discard-dirty <uuid>', 'lose data of this cache that its origins lack')
    .action((path: string, options: FormatOptions) => format(path, options, context));
}

function segmentOption(): Option {
  const { SEGMENT_BYTES_DEFAULT: bytes } = FORMAT_LIMITS;
  return new Option('--segment <size>', 'size of a segment, a power of two from 4MiB to 256MiB')
    .argParser(parsedBy(parseSegmentBytes))
    .default(bytes, formatSize(bytes));
}

function parseSegmentBytes(text: string): bigint {
  const { SEGMENT_BYTES_MIN: least, SEGMENT_BYTES_MAX: most } = FORMAT_LIMITS;
  const bytes = parseSizeBytes(text);
  const isPowerOfTwo = (bytes & (bytes - 1n)) === 0n;
  if (bytes >= least && bytes <= most && isPowerOfTwo) return bytes;
  const sizes = [bytes, least, most].map(formatExactSize) as [string, string, string];
  throw ringfenceError('RF_SEGMENT', sizes);
}

/** Before anybody is asked, and in a dry run too; the engine looks again. */
function refuseSmall({ path, sizeBytes }: Device, segmentBytes: bigint): void {
  const { SEGMENTS_OFFSET, SEGMENTS_MIN } = FORMAT_LIMITS;
  const neededBytes = SEGMENTS_OFFSET + SEGMENTS_MIN * segmentBytes;
  if (sizeBytes >= neededBytes) return;
  const exact = [sizeBytes, segmentBytes, neededBytes].map(formatExactSize);
  throw ringfenceError('RF_DEVICE_SMALL', [path, ...(exact as [string, string, string])]);
}

async function format(path: string, options: FormatOptions, context: Context): Promise<void> {
  const native = context.native();
  const { device, found, text } = await look(path, options, native);
  context.write(text);
  refuseDirty(path, found, options.discardDirty);
  if (options.dryRun) {
    context.write('Nothing was written: this was a dry run.\n');
    return;
  }
  if (!options.yes) {
    const answer = await context.ask(`Destroy everything on ${path}? Type "yes": `);
    if (answer?.trim() !== 'yes') throw ringfenceError('RF_NOT_CONFIRMED', [path]);
    // A question waits for as long as it likes, and the answer was to what was shown.
    const now = await look(path, options, native);
    refuseDirty(path, now.found, options.discardDirty);
    if (now.device.identity !== device.identity || now.text !== text) {
      throw ringfenceError('RF_DEVICE_CHANGED', [path]);
    }
  }
  try {
    const cache = await native.format(device.realPath, options.segment);
    const log = `${cache.segments} segments of ${formatSize(cache.segmentBytes)}`;
    context.write(`${path} is now the cache ${cache.uuid}: ${log}.\n`);
  } catch (error) {
    throw ringfenceError('RF_FORMAT', [path, nativeReason(error, device.realPath)], error);
  }
}

/** What there is at a path, and the words for it. */
interface Look {
  readonly device: Device;
  readonly found: Found;
  readonly text: string;
}

/** Looks at what would be destroyed, and refuses what is in use or cannot become a cache. */
async function look(path: string, { segment }: FormatOptions, native: Native): Promise<Look> {
  const device = await findDevice(path, 'device');
  await refuseDeviceInUse(device, 'device');
  const writer = await findWriter(device);
  if (writer !== null) throw ringfenceError('RF_DEVICE_HELD', ['device', path, writer]);
  refuseSmall(device, segment);
  const signatures = await deviceSignatures(device);
  const found = await readCache(device.realPath, native);
  const text = deviceText(device, await deviceModel(device), signatures, found);
  return { device, found, text };
}

/** What was found of a cache: its description, that there is none, or why it cannot be read. */
type Found = CacheDescription | null | { readonly unreadable: string };

async function readCache(path: string, native: Native): Promise<Found> {
  try {
    return await native.describe(path);
  } catch (error) {
    return { unreadable: nativeReason(error, path) };
  }
}

/** Data that only this cache has is destroyed only by somebody who names the cache. */
function refuseDirty(path: string, found: Found, discard: string | undefined): void {
  if (found === null) return;
  if ('unreadable' in found) {
    if (discard === UNREADABLE) return;
    throw ringfenceError('RF_CACHE_UNREADABLE', [path, found.unreadable]);
  }
  const dirty = found.exports.filter(({ dirtyBytes }) => dirtyBytes > 0n);
  if (dirty.length === 0 || discard === found.uuid) return;
  const what = dirty
    .map(({ name, dirtyBytes }) => `${formatSize(dirtyBytes)} that the origin of "${name}" lacks`)
    .join(' and ');
  throw ringfenceError('RF_CACHE_DIRTY', [path, found.uuid, what]);
}

function deviceText(
  device: Device,
  model: string,
  signatures: readonly Signature[],
  found: Found,
): string {
  const lines = [
    `device     ${device.path}${device.path === device.realPath ? '' : ` (${device.realPath})`}`,
    `model      ${model}`,
    `size       ${formatSize(device.sizeBytes)} (${device.sizeBytes} bytes)`,
    `signatures ${signatures.map(signatureText).join(', ') || 'none'}`,
    `cache      ${cacheText(found)}`,
  ];
  return `${lines.join('\n')}\n`;
}

function signatureText({ type, label, uuid }: Signature): string {
  const details = [label === null ? '' : `"${label}"`, uuid ?? ''].filter((text) => text !== '');
  return details.length === 0 ? type : `${type} (${details.join(', ')})`;
}

function cacheText(found: Found): string {
  if (found === null) return 'none';
  if ('unreadable' in found) return `one that cannot be read: ${found.unreadable}`;
  const names = found.exports.map(({ name }) => `"${name}"`).join(', ');
  return `${found.uuid}, ${names === '' ? 'without exports' : `with the exports ${names}`}`;
}
