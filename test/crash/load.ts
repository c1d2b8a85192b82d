/** Verified load: connections that write, read and flush at random while everything is judged. */

import { createRandom } from '../support/content.ts';
import { FLAG_FUA, isNbdFailure, type NbdConnection } from '../support/nbd-client.ts';
import {
  createRegisters,
  type Registers,
  SECTOR_BYTES,
  type Violation,
  writePayload,
} from './registers.ts';

/** One device under load, over any number of connections and of its server's lives. */
export interface Judged {
  readonly registers: Registers;
  readonly seed: number;
  readonly sizeBytes: number;
  readonly violations: Violation[];
  /** Answered requests so far. */
  readonly done: { writes: number; reads: number; flushes: number; zeroes: number };
}

/** A device of zeroes that is to be judged. */
export function createJudged(sizeBytes: number, seed: number): Judged {
  return {
    registers: createRegisters(sizeBytes / SECTOR_BYTES, seed),
    seed,
    sizeBytes,
    violations: [],
    done: { writes: 0, reads: 0, flushes: 0, zeroes: 0 },
  };
}

interface Range {
  readonly firstSector: number;
  readonly sectors: number;
}

/** Mostly single blocks, some long ones, some that start and end within blocks. */
function pickRange(random: () => number, deviceSectors: number): Range {
  const kind = random() % 16;
  if (kind < 10) return { firstSector: (random() % (deviceSectors / 8)) * 8, sectors: 8 };
  const sectors = kind < 14 ? 1 + (random() % 40) : 8 * (1 + (random() % 64));
  const firstSector = random() % (deviceSectors - sectors);
  return { firstSector, sectors };
}

async function writeOnce(
  judged: Judged,
  connection: NbdConnection,
  { firstSector, sectors }: Range,
  durable: boolean,
): Promise<void> {
  const write = judged.registers.beginWrite(firstSector, sectors);
  const payload = writePayload(write, judged.seed);
  await connection.write(firstSector * SECTOR_BYTES, payload, durable ? FLAG_FUA : 0);
  judged.registers.answerWrite(write, durable);
  judged.done.writes += 1;
}

async function zeroOnce(
  judged: Judged,
  connection: NbdConnection,
  { firstSector, sectors }: Range,
): Promise<void> {
  const write = judged.registers.beginWrite(firstSector, sectors, true);
  await connection.zero(firstSector * SECTOR_BYTES, sectors * SECTOR_BYTES);
  judged.registers.answerWrite(write);
  judged.done.zeroes += 1;
}

async function readOnce(
  judged: Judged,
  connection: NbdConnection,
  { firstSector, sectors }: Range,
): Promise<void> {
  const read = judged.registers.beginRead();
  try {
    const data = await connection.read(firstSector * SECTOR_BYTES, sectors * SECTOR_BYTES);
    judged.violations.push(...judged.registers.answerRead(read, firstSector, data));
    judged.done.reads += 1;
  } catch (error) {
    judged.registers.dropRead(read);
    throw error;
  }
}

async function flushOnce(judged: Judged, connection: NbdConnection): Promise<void> {
  const flush = judged.registers.beginFlush();
  await connection.flush();
  judged.registers.answerFlush(flush);
  judged.done.flushes += 1;
}

async function oneRequest(
  judged: Judged,
  connection: NbdConnection,
  random: () => number,
): Promise<void> {
  const range = pickRange(random, judged.sizeBytes / SECTOR_BYTES);
  const kind = random() % 100;
  if (kind < 66) return writeOnce(judged, connection, range, false);
  if (kind < 70) return writeOnce(judged, connection, range, true);
  if (kind < 90) return readOnce(judged, connection, range);
  if (kind < 94) return zeroOnce(judged, connection, range);
  return flushOnce(judged, connection);
}

/**
 * Keeps `depth` requests in flight on each connection until `stop` says so or all connections
 * are gone. A broken connection is the end of its load and no failure; an answer that is an
 * error is one.
 */
export async function runLoad(
  judged: Judged,
  connections: readonly NbdConnection[],
  depth: number,
  stop: () => boolean,
): Promise<void> {
  const worker = async (connection: NbdConnection, seed: number): Promise<void> => {
    const random = createRandom(seed);
    while (!stop() && !connection.closed()) {
      try {
        await oneRequest(judged, connection, random);
      } catch (error) {
        if (isNbdFailure(error)) throw error;
        return;
      }
    }
  };
  const workers = connections.flatMap((connection, index) =>
    Array.from({ length: depth }, (_, lane) =>
      worker(connection, Math.imul(judged.done.writes + 1, 2654435761) + index * 64 + lane),
    ),
  );
  await Promise.all(workers);
}

/** Reads the whole device after a crash and judges it. */
export async function judgeAfterCrash(judged: Judged, connection: NbdConnection): Promise<void> {
  const step = 1 << 20;
  for (let offset = 0; offset < judged.sizeBytes; offset += step) {
    const data = await connection.read(offset, Math.min(step, judged.sizeBytes - offset));
    judged.violations.push(...judged.registers.judgeAfterCrash(offset / SECTOR_BYTES, data));
  }
}

/** The first few violations, one per line, for a failing test. */
export function showViolations(judged: Judged): string {
  const lines = judged.violations.slice(0, 12).map((v) => `sector ${v.sector}: ${v.what}`);
  return `${judged.violations.length} violations, seed ${judged.seed}\n${lines.join('\n')}`;
}
