/**
 * What a start after a kill reads, and how long it takes beside fio reading the same footers.
 *
 * `RINGFENCE_RECOVERY_MIB` sets the size of the cache (256), `RINGFENCE_RECOVERY_WRITTEN_MIB` how
 * much is written to it in blocks of 4 KiB (five eighths of it); both devices lie in `TMPDIR`.
 */

import { closeSync, openSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { median, residentBytes } from '../support/figures.ts';
import { bytesRead, KIB, MIB } from '../support/loop.ts';
import { run } from '../support/process.ts';
import {
  type Daemon,
  exportUri,
  killDaemon,
  readMetric,
  startDaemon,
} from '../support/ringfence.ts';
import { formatDisk } from '../support/setting.ts';

const CACHE_MIB = Number(process.env.RINGFENCE_RECOVERY_MIB ?? 256);
const WRITTEN_MIB = Number(process.env.RINGFENCE_RECOVERY_WRITTEN_MIB ?? (CACHE_MIB / 8) * 5);
/** The default, unless that made few segments. */
const SEGMENT_MIB = CACHE_MIB < 4096 ? 4 : 16;
const TIMEOUT_MS = 120_000 + CACHE_MIB * 50;
/** Recoveries and runs of fio, of which the median counts. */
const TIMES = 3;

/** Nothing is carried unless a write waits for room: what a start reads is recovery's alone. */
const NO_DESTAGE = ['--destage-high', '100', '--destage-age', '60m', '--destage-idle', '60m'];

// As docs/format.md has it.
const BLOCK = 4 * KIB;
const SEGMENTS_OFFSET = MIB;
const SEGMENTS = Math.floor((CACHE_MIB - 1) / SEGMENT_MIB);
const FOOTER = { bytes: 1152, magic: 'rffo', magicAt: 4, summaryBytesAt: 88 };
const SEGMENTS_WITHOUT_FOOTER = 4;
/** Superblocks and export table. */
const UNRELATED_BYTES = MIB;
/** What looking behind the end of the log reads at most (docs/decisions/0013). */
const SEARCHED_SEGMENTS = 2;

/** A part of the cache device. */
interface Piece {
  readonly offset: number;
  readonly length: number;
}

/** The footers, each as long as it was written. */
function findFooters(file: string): readonly Piece[] {
  const descriptor = openSync(file, 'r');
  const start = Buffer.alloc(BLOCK);
  const footers: Piece[] = [];
  for (let segment = 0; segment < SEGMENTS; segment += 1) {
    const end = SEGMENTS_OFFSET + (segment + 1) * SEGMENT_MIB * MIB;
    const offset = end - (SEGMENT_MIB * MIB) / 64;
    readSync(descriptor, start, 0, BLOCK, offset);
    if (start.toString('latin1', FOOTER.magicAt, FOOTER.magicAt + 4) !== FOOTER.magic) continue;
    const used = FOOTER.bytes + start.readUInt32LE(FOOTER.summaryBytesAt);
    footers.push({ offset, length: Math.ceil(used / BLOCK) * BLOCK });
  }
  closeSync(descriptor);
  return footers;
}

/** What fio's JSON says, as far as it is read here. */
interface FioResult {
  readonly jobs: readonly [
    {
      readonly error: number;
      readonly read: { readonly io_bytes: number; readonly runtime: number };
    },
  ];
}

/** Reads pieces of a device as recovery may: 32 at a time, in order. Returns milliseconds. */
async function fioReads(folder: string, device: string, pieces: readonly Piece[]): Promise<number> {
  const log = join(folder, 'footers.log');
  // fio tells whole milliseconds: enough rounds that these do not matter.
  const rounds = Math.ceil(8192 / pieces.length);
  const round = pieces.map(({ offset, length }) => `${device} read ${offset} ${length}`);
  const lines = Array.from({ length: rounds }, () => round).flat();
  const frame = [`${device} add`, `${device} open`, ...lines];
  writeFileSync(log, `fio version 2 iolog\n${frame.join('\n')}\n`);
  const printed = await run(
    'fio',
    [
      ...['--output-format=json', '--name=footers', '--readonly', '--direct=1'],
      ...['--ioengine=io_uring', '--iodepth=32', `--read_iolog=${log}`, '--replay_no_stall=1'],
    ],
    { timeoutMs: TIMEOUT_MS },
  );
  const { error, read } = (JSON.parse(printed.slice(printed.indexOf('{'))) as FioResult).jobs[0];
  const bytes = pieces.reduce((sum, { length }) => sum + length, 0);
  // Not counted is what is in flight when the log ends.
  if (error !== 0 || read.io_bytes < 0.9 * rounds * bytes) throw new Error(`fio:\n${printed}`);
  return (read.runtime * bytes) / read.io_bytes;
}

/** Writes every block of the first part of the export once, in random order; or verifies it. */
async function fioBlocks(daemon: Daemon, ...args: readonly string[]): Promise<void> {
  await run(
    'fio',
    [
      ...['--ioengine=nbd', `--uri=${exportUri(daemon.setup, 'disk')}`, '--name=blocks'],
      ...['--bs=4k', '--iodepth=32', `--size=${WRITTEN_MIB}m`],
      ...[
        '--verify=pattern',
        '--verify_pattern=%o',
        '--verify_fatal=1',
        '--verify_state_save=0',
        ...args,
      ],
    ],
    { timeoutMs: TIMEOUT_MS },
  );
}

test.serial('a start reads the footers, and records only of the newest segments', async (t) => {
  t.timeout(4 * TIMEOUT_MS);
  const bytes = CACHE_MIB * MIB;
  const segment = `${SEGMENT_MIB}MiB`;
  const disk = await formatDisk(t, { cacheBytes: bytes, segment, sizeBytes: bytes });
  const { scope, folder, cache } = disk;
  const setup = { ...disk.setup, extra: NO_DESTAGE };
  let daemon = await startDaemon(scope, setup);
  await fioBlocks(daemon, '--rw=randwrite', '--do_verify=0', '--end_fsync=1');

  /** Kills the daemon and starts it again: what it read by then, and how long recovery took. */
  async function recover(): Promise<{ readonly bytes: number; readonly ms: number }> {
    await killDaemon(daemon);
    const before = bytesRead(cache);
    daemon = await startDaemon(scope, setup);
    const bytes = bytesRead(cache) - before;
    const seconds = await readMetric(daemon, 'ringfence_recovery_duration_seconds');
    return { bytes, ms: (seconds.get('') ?? Number.NaN) * 1000 };
  }

  const first = await recover();
  // It has given footers to the segments that lacked them: now there is nothing else to read.
  const later: Awaited<ReturnType<typeof recover>>[] = [];
  for (let time = 0; time < TIMES; time += 1) later.push(await recover());
  const resident = residentBytes(daemon.background.pid);
  await fioBlocks(daemon, '--rw=read');
  await killDaemon(daemon);

  const footers = findFooters(disk.cacheFile);
  const footerBytes = footers.reduce((sum, { length }) => sum + length, 0);
  const fioRuns: number[] = [];
  for (let time = 0; time < TIMES; time += 1) {
    fioRuns.push(await fioReads(folder, cache, footers));
  }
  const laterBytes = later.map(({ bytes }) => bytes);
  const [laterMs, fioMs] = [median(later.map(({ ms }) => ms)), median(fioRuns)];
  const inMib = (bytes: number) => `${(bytes / MIB).toFixed(1)} MiB`;
  t.log(
    `${footers.length} of ${SEGMENTS} segments of ${SEGMENT_MIB} MiB have footers, ` +
      `${inMib(footerBytes)}: fio reads them in ${fioMs.toFixed(1)} ms`,
  );
  t.log(`first start after the kill: ${inMib(first.bytes)} read, ${first.ms} ms`);
  t.log(
    `${TIMES} more: ${laterBytes.map((bytes) => bytes / BLOCK)} blocks read, ` +
      `${footerBytes / BLOCK} of footers, ${laterMs} ms (${later.map(({ ms }) => ms)}), ` +
      `${(laterMs / fioMs).toFixed(2)} of fio; ${inMib(resident)} resident`,
  );

  const written = Math.min(WRITTEN_MIB, CACHE_MIB / 2);
  t.true(footers.length * SEGMENT_MIB >= written, 'segments that are full have footers');
  // Two blocks of every segment tell whether it has a footer.
  const most = footerBytes + SEGMENTS * 2 * BLOCK + UNRELATED_BYTES;
  const searched = SEARCHED_SEGMENTS * SEGMENT_MIB * MIB;
  for (const bytes of laterBytes) {
    t.true(bytes <= most + searched, `${bytes} bytes read, and ${most + searched} would do`);
  }
  // Records are read from header to header, and again to compare checksums.
  const walked = 2 * SEGMENTS_WITHOUT_FOOTER * SEGMENT_MIB * MIB;
  t.true(first.bytes <= most + walked, `${first.bytes} bytes read, ${most + walked} would do`);
});
