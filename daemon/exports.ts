/** Exports as the command line writes them: `NAME=ORIGIN[,mode=…][,order=…]…`. */

import { ringfenceError } from './errors.ts';
import { formatSize, parseDurationMs, parseSizeBytes } from './units.ts';

/** When the answer to a write is given. */
export const MODES = ['writeback', 'writethrough', 'readonly'] as const;
/** In which order writes reach the origin. */
export const ORDERS = ['strict', 'relaxed'] as const;

/** One of {@link MODES}. */
export type Mode = (typeof MODES)[number];
/** One of {@link ORDERS}. */
export type Order = (typeof ORDERS)[number];

/** An export that is to be served. */
export interface ExportConfig {
  readonly name: string;
  /** Path of a block device or a file. */
  readonly origin: string;
  readonly mode: Mode;
  readonly order: Order;
  /** Most dirty data in bytes; null: three quarters of the log. */
  readonly dirtyBytesMax: bigint | null;
  /** How long a write waits for room, and a miss for an origin that is away. */
  readonly waitMs: number;
  /** How long a request to the origin may take until the origin counts as down. */
  readonly originTimeoutMs: number;
}

/** What an export is that says nothing else. */
export const EXPORT_DEFAULTS = {
  mode: 'writeback',
  order: 'strict',
  dirtyBytesMax: null,
  waitMs: 30_000,
  originTimeoutMs: 30_000,
} as const satisfies Omit<ExportConfig, 'name' | 'origin'>;

/** One step of a request (`limits::STEP_BYTES_MAX`): what an export may have dirty at the least. */
const DIRTY_BYTES_LEAST = 1n << 20n;
/** Exports of one cache: a bit of a 64-bit set each (`limits::EXPORTS_MAX`). */
export const EXPORTS_MAX = 64;
/** Bytes in the name of an export: what the export table on the device has room for. */
export const EXPORT_NAME_BYTES_MAX = 255;

/**
 * Parses one `--export`.
 *
 * @throws `RF_EXPORT_SYNTAX`, `RF_EXPORT_NAME`, `RF_SIZE`, `RF_SIZE_SMALL`, `RF_DURATION`,
 *   `RF_DURATION_RANGE`
 */
export function parseExport(text: string): ExportConfig {
  const equals = text.indexOf('=');
  if (equals < 0) throw ringfenceError('RF_EXPORT_SYNTAX', [text, 'it names no origin']);
  const name = text.slice(0, equals);
  const [origin = '', ...options] = text.slice(equals + 1).split(',');
  if (origin === '') throw ringfenceError('RF_EXPORT_SYNTAX', [text, 'its origin is empty']);
  checkExportName(name);
  let parsed: ExportConfig = { name, origin, ...EXPORT_DEFAULTS };
  const seen = new Set<string>();
  for (const option of options) {
    const [key = '', value = ''] = splitOnce(option, '=');
    if (seen.has(key)) {
      throw ringfenceError('RF_EXPORT_SYNTAX', [text, `it says "${key}" twice`]);
    }
    seen.add(key);
    parsed = { ...parsed, ...parseOption(text, key, value) };
  }
  return parsed;
}

/**
 * Parses how long something of an export may take, an answer of the origin or a wait: with no time
 * at all each would be late, and each miss an error.
 *
 * @throws `RF_DURATION`, `RF_DURATION_RANGE`
 */
export function parsePatienceMs(text: string): number {
  return parseDurationMs(text, '1ms');
}

/**
 * Parses how much dirty data an export may have. Less than one step of a request would let each
 * write wait until the one before is on the origin.
 *
 * @throws `RF_SIZE`, `RF_SIZE_SMALL`
 */
export function parseDirtyBytesMax(text: string): bigint {
  const bytes = parseSizeBytes(text);
  if (bytes >= DIRTY_BYTES_LEAST) return bytes;
  throw ringfenceError('RF_SIZE_SMALL', [text, formatSize(DIRTY_BYTES_LEAST)]);
}

/**
 * Refuses names that the export table, a log line or a metric's label could not carry.
 *
 * @throws `RF_EXPORT_NAME`
 */
export function checkExportName(name: string): void {
  const problem = exportNameProblem(name);
  if (problem !== null) throw ringfenceError('RF_EXPORT_NAME', [name.slice(0, 64), problem]);
}

/** Why a name cannot be an export's, as the end of a sentence; null when it can. */
export function exportNameProblem(name: string): string | null {
  if (name === '') return 'is empty';
  if (Buffer.byteLength(name) > EXPORT_NAME_BYTES_MAX) {
    return `is longer than ${EXPORT_NAME_BYTES_MAX} bytes`;
  }
  return /\p{Cc}/u.test(name) ? 'holds a control character' : null;
}

/**
 * Refuses sets of exports that cannot be served together.
 *
 * @throws `RF_EXPORT_TWICE`, `RF_EXPORTS_TOO_MANY`
 */
export function checkExportSet(exports: readonly ExportConfig[]): void {
  if (exports.length > EXPORTS_MAX) {
    throw ringfenceError('RF_EXPORTS_TOO_MANY', [`${exports.length}`, `${EXPORTS_MAX}`]);
  }
  const names = new Set<string>();
  for (const { name } of exports) {
    if (names.has(name)) throw ringfenceError('RF_EXPORT_TWICE', [name]);
    names.add(name);
  }
}

function parseOption(text: string, key: string, value: string): Partial<ExportConfig> {
  switch (key) {
    case 'mode':
      return { mode: oneOf(text, key, value, MODES) };
    case 'order':
      return { order: oneOf(text, key, value, ORDERS) };
    case 'dirty-max':
      return { dirtyBytesMax: parseDirtyBytesMax(value) };
    case 'wait':
      return { waitMs: parsePatienceMs(value) };
    case 'origin-timeout':
      return { originTimeoutMs: parsePatienceMs(value) };
    default:
      throw ringfenceError('RF_EXPORT_SYNTAX', [
        text,
        `"${key}" is none of its options mode, order, dirty-max, wait and origin-timeout`,
      ]);
  }
}

function oneOf<Choice extends string>(
  text: string,
  key: string,
  value: string,
  choices: readonly Choice[],
): Choice {
  const choice = choices.find((candidate) => candidate === value);
  if (choice !== undefined) return choice;
  throw ringfenceError('RF_EXPORT_SYNTAX', [
    text,
    `its ${key} "${value}" is none of ${choices.join(', ')}`,
  ]);
}

function splitOnce(text: string, separator: string): readonly [string, string] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + separator.length)];
}
