/** Sizes and durations as people write them: parsed in one place, shown in one place. */

import { ringfenceError } from './errors.ts';

const SIZE_FACTORS: Readonly<Record<string, bigint>> = {
  '': 1n,
  B: 1n,
  K: 1n << 10n,
  KiB: 1n << 10n,
  M: 1n << 20n,
  MiB: 1n << 20n,
  G: 1n << 30n,
  GiB: 1n << 30n,
  T: 1n << 40n,
  TiB: 1n << 40n,
};

/** Largest size that any part of the system can express: a signed 64-bit number of bytes. */
const SIZE_BYTES_MAX = (1n << 63n) - 1n;

const DURATION_FACTORS_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000 };

/** Longest duration that fits the 32-bit milliseconds of a deadline, with room to spare. */
const DURATION_MAX = '1440m';
const DURATION_MS_MAX = 1440 * 60_000;

/**
 * Bytes in a text like `16MiB`, `1GiB`, `512K` or `4096`. Units are binary.
 *
 * @throws `RF_SIZE` for anything else: a fraction, a sign, "MB", which means two things.
 */
export function parseSizeBytes(text: string): bigint {
  const match = /^([0-9]{1,19}) ?([A-Za-z]*)$/.exec(text.trim());
  const factor = match === null ? undefined : SIZE_FACTORS[match[2] ?? ''];
  if (match === null || factor === undefined) throw ringfenceError('RF_SIZE', [text]);
  const bytes = BigInt(match[1] ?? '') * factor;
  if (bytes > SIZE_BYTES_MAX) throw ringfenceError('RF_SIZE', [text]);
  return bytes;
}

/** Bytes as a person reads them: the largest unit, with one decimal where it is not whole. */
export function formatSize(bytes: bigint): string {
  const units = ['TiB', 'GiB', 'MiB', 'KiB'] as const;
  for (const unit of units) {
    const factor = SIZE_FACTORS[unit] ?? 1n;
    if (bytes < factor) continue;
    const tenths = (bytes * 10n) / factor;
    return tenths % 10n === 0n
      ? `${tenths / 10n} ${unit}`
      : `${tenths / 10n}.${tenths % 10n} ${unit}`;
  }
  return `${bytes} bytes`;
}

/** Bytes in the largest unit that divides them: for sizes that are compared with each other. */
export function formatExactSize(bytes: bigint): string {
  const divides = (factor: bigint) => bytes >= factor && bytes % factor === 0n;
  const units = ['TiB', 'GiB', 'MiB', 'KiB'] as const;
  const unit = units.find((each) => divides(SIZE_FACTORS[each] ?? 1n));
  return unit === undefined ? `${bytes} bytes` : `${bytes / (SIZE_FACTORS[unit] ?? 1n)} ${unit}`;
}

/**
 * Milliseconds in a text like `500ms`, `30s` or `5m`.
 *
 * @param least the shortest duration that will do, as text
 * @throws `RF_DURATION` for anything else, `RF_DURATION_RANGE` for less than that and for more than
 *   a day
 */
export function parseDurationMs(text: string, least = '0ms'): number {
  const milliseconds = millisecondsIn(text);
  if (milliseconds >= millisecondsIn(least) && milliseconds <= DURATION_MS_MAX) return milliseconds;
  throw ringfenceError('RF_DURATION_RANGE', [text, least, DURATION_MAX]);
}

function millisecondsIn(text: string): number {
  const match = /^([0-9]{1,9}) ?(ms|s|m)$/.exec(text.trim());
  const factor = DURATION_FACTORS_MS[match?.[2] ?? ''];
  if (match === null || factor === undefined) throw ringfenceError('RF_DURATION', [text]);
  return Number(match[1]) * factor;
}
