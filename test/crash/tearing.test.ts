/**
 * Atomicity: a write of up to 1 MiB is one step for every reader on every connection.
 *
 * `RINGFENCE_OVERLAP_READS` sets how many reads of overlapping writes are judged (a million).
 */

import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { createRandom } from '../support/content.ts';
import { KIB, MIB } from '../support/loop.ts';
import {
  connectNbd,
  isNbdFailure,
  isNbdViolation,
  type NbdConnection,
} from '../support/nbd-client.ts';
import { run } from '../support/process.ts';
import { killAndRestart, socketPath, startDaemon, stopDaemon } from '../support/ringfence.ts';
import { formatDisk } from '../support/setting.ts';
import { connectBoth } from './load.ts';

const OVERLAP_READS = Number(process.env.RINGFENCE_OVERLAP_READS ?? 1_000_000);

/** A range that all writers write whole and all readers read whole. */
interface Area {
  readonly offset: number;
  readonly length: number;
}

/** Aligned, unaligned, within one block, and the largest step at its worst offset. */
const AREAS: readonly Area[] = [
  { offset: 0, length: 64 * KIB },
  { offset: 8 * MIB + 512, length: 256 * KIB },
  { offset: 16 * MIB + 1024, length: 512 },
  { offset: 20 * MIB + 3584, length: MIB },
];

/** Whole writes carry one 32-bit number throughout, so that a mixture shows. */
function payload(length: number, id: number): Buffer {
  const buffer = Buffer.from(new ArrayBuffer(length));
  new Uint32Array(buffer.buffer).fill(id);
  return buffer;
}

/** The distinct numbers in a range; one when it is whole. */
function distinct(data: Buffer): number[] {
  const copy = new Uint8Array(data);
  return [...new Set(new Uint32Array(copy.buffer))];
}

async function whileConnected(connection: NbdConnection, step: () => Promise<void>): Promise<void> {
  try {
    for (;;) await step();
  } catch (error) {
    if (isNbdFailure(error) || isNbdViolation(error) || !connection.closed()) throw error;
  }
}

test.serial('no reader ever sees the middle of a write, across kills too', async (t) => {
  t.timeout(180_000);
  const { scope, setup } = await formatDisk(t, { sizeBytes: 64 * MIB });
  const path = socketPath(setup);
  const random = createRandom(1);
  const torn: string[] = [];
  const counts = { writes: 0, reads: 0 };
  let daemon = await startDaemon(scope, setup);
  const pickArea = (): Area => AREAS[random() % AREAS.length] ?? { offset: 0, length: 512 };
  const write = async (connection: NbdConnection): Promise<void> => {
    const { offset, length } = pickArea();
    counts.writes += 1;
    await connection.write(offset, payload(length, counts.writes));
  };
  const read = async (connection: NbdConnection): Promise<void> => {
    const { offset, length } = pickArea();
    const seen = distinct(await connection.read(offset, length));
    counts.reads += 1;
    if (seen.length !== 1) torn.push(`${length} bytes at ${offset}: writes ${seen.join(', ')}`);
  };

  for (let round = 0; round < 3; round += 1) {
    // Reads of those with structured replies come in pieces.
    const connections = await connectBoth(path, 6);
    const lanes = connections.flatMap((connection, index) =>
      Array.from({ length: 3 }, () =>
        whileConnected(connection, () => (index < 3 ? write(connection) : read(connection))),
      ),
    );
    await sleep(1_500);
    daemon = await killAndRestart(scope, daemon);
    await Promise.all(lanes);
    const after = await connectNbd({ path }, 'disk');
    for (const { offset, length } of AREAS) {
      const seen = distinct(await after.read(offset, length));
      if (seen.length !== 1) torn.push(`after kill ${round + 1}, at ${offset}: ${seen.join(', ')}`);
    }
    await after.disconnect();
  }
  await stopDaemon(daemon);
  t.true(counts.reads > 100);
  t.deepEqual(torn, []);
  t.log(`${counts.writes} writes and ${counts.reads} reads of the same ranges`);
});

test.serial('no reader ever sees a part of one of many overlapping writes', async (t) => {
  t.timeout(180_000 + OVERLAP_READS / 2);
  const { scope, setup } = await formatDisk(t, { sizeBytes: 64 * MIB });
  const daemon = await startDaemon(scope, setup);
  // A client in Rust: one in JavaScript would take most of an hour for as many reads.
  const overlaps = [
    ...['run', '--quiet', '--release', '--locked', '--package', 'ringfence-wire'],
    ...['--example', 'overlaps', '--', socketPath(setup), 'disk', `${OVERLAP_READS}`],
  ];
  const told = await run('cargo', overlaps, { timeoutMs: 180_000 + OVERLAP_READS / 2 });
  t.log(told.trim());
  t.regex(told, /none torn/);
  await stopDaemon(daemon);
});
