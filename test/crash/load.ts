/** Verified load: connections that write, read and flush at random while everything is judged. */

import { createRandom } from '../support/content.ts';
import {
  connectNbd,
  FLAG_FUA,
  isNbdFailure,
  isNbdViolation,
  type NbdConnection,
} from '../support/nbd-client.ts';
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
  /** Who waits for the next answer to a flush. */
  readonly flushWaiters: (() => void)[];
}

/** A device of zeroes that is to be judged. */
export function createJudged(sizeBytes: number, seed: number): Judged {
  return {
    registers: createRegisters(sizeBytes / SECTOR_BYTES, seed),
    seed,
    sizeBytes,
    violations: [],
    done: { writes: 0, reads: 0, flushes: 0, zeroes: 0 },
    flushWaiters: [],
  };
}

/**
 * Connects as clients of both kinds do: every other connection negotiates structured replies, and
 * is answered from memory that dies with the daemon (docs/decisions/0017).
 */
export function connectBoth(path: string, connections = 4): Promise<NbdConnection[]> {
  const connect = (_: unknown, index: number): Promise<NbdConnection> =>
    connectNbd({ path }, 'disk', { structured: index % 2 === 1 });
  return Promise.all(Array.from({ length: connections }, connect));
}

/**
 * Whether what a connection was answered outlives the daemon without a flush. The judge calls that
 * durable: the tests that use this end the daemon, and never the machine.
 */
function outlivesDaemon(connection: NbdConnection): boolean {
  return !connection.structured;
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
  fua: boolean,
): Promise<void> {
  const write = judged.registers.beginWrite(firstSector, sectors);
  const payload = writePayload(write, judged.seed);
  await connection.write(firstSector * SECTOR_BYTES, payload, fua ? FLAG_FUA : 0);
  judged.registers.answerWrite(write, fua || outlivesDaemon(connection));
  judged.done.writes += 1;
}

async function zeroOnce(
  judged: Judged,
  connection: NbdConnection,
  { firstSector, sectors }: Range,
): Promise<void> {
  const write = judged.registers.beginWrite(firstSector, sectors, true);
  await connection.zero(firstSector * SECTOR_BYTES, sectors * SECTOR_BYTES);
  judged.registers.answerWrite(write, outlivesDaemon(connection));
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
  for (const wake of judged.flushWaiters.splice(0)) wake();
}

/** Resolves as soon as the load has the next answer to a flush. */
export function nextFlush(judged: Judged): Promise<void> {
  return new Promise((resolve) => judged.flushWaiters.push(resolve));
}

/** What a load consists of: requests of all kinds, or nothing that makes a write durable. */
export type Requests = 'all' | 'plain writes';

async function oneRequest(
  judged: Judged,
  connection: NbdConnection,
  random: () => number,
  requests: Requests,
): Promise<void> {
  const range = pickRange(random, judged.sizeBytes / SECTOR_BYTES);
  const kind = random() % 100;
  if (kind < 66 || requests === 'plain writes') return writeOnce(judged, connection, range, false);
  if (kind < 70) return writeOnce(judged, connection, range, true);
  if (kind < 90) return readOnce(judged, connection, range);
  if (kind < 94) return zeroOnce(judged, connection, range);
  return flushOnce(judged, connection);
}

/**
 * Keeps `depth` requests in flight on each connection until `stop` says so or all connections
 * are gone. A broken connection is the end of its load and no failure; an answer that is an
 * error, or that no server may send, is one.
 */
export async function runLoad(
  judged: Judged,
  connections: readonly NbdConnection[],
  depth: number,
  stop: () => boolean,
  requests: Requests = 'all',
): Promise<void> {
  const worker = async (connection: NbdConnection, seed: number): Promise<void> => {
    const random = createRandom(seed);
    while (!stop() && !connection.closed()) {
      try {
        await oneRequest(judged, connection, random, requests);
      } catch (error) {
        if (isNbdFailure(error) || isNbdViolation(error) || !connection.closed()) throw error;
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
  const parts: Buffer[] = [];
  for (let offset = 0; offset < judged.sizeBytes; offset += step) {
    parts.push(await connection.read(offset, Math.min(step, judged.sizeBytes - offset)));
  }
  // Appended one by one: there can be more than fit into the arguments of a call.
  for (const found of judged.registers.judgeAfterCrash(Buffer.concat(parts))) {
    judged.violations.push(found);
  }
}

/** The first few violations, one per line, for a failing test. */
export function showViolations(judged: Judged): string {
  const lines = judged.violations.slice(0, 12).map((v) => `sector ${v.sector}: ${v.what}`);
  return `${judged.violations.length} violations, seed ${judged.seed}\n${lines.join('\n')}`;
}
