import test from 'ava';
import { createRandom } from '../support/content.ts';
import {
  createRegisters,
  type PendingRead,
  SECTOR_BYTES,
  type Violation,
  type Write,
  writePayload,
} from './registers.ts';

const SEED = 7;

/** A device that is a buffer, its judge, and how to write to both. */
function world() {
  const registers = createRegisters(64, SEED);
  const disk = Buffer.from(new ArrayBuffer(64 * SECTOR_BYTES));
  const write = (firstSector: number, sectors: number) => {
    const begun = registers.beginWrite(firstSector, sectors);
    return { begun, payload: writePayload(begun, SEED) };
  };
  const put = (firstSector: number, sectors: number): Buffer => {
    const { begun, payload } = write(firstSector, sectors);
    payload.copy(disk, firstSector * SECTOR_BYTES);
    registers.answerWrite(begun);
    return payload;
  };
  const flush = (): void => registers.answerFlush(registers.beginFlush());
  const crash = () => registers.judgeAfterCrash(disk);
  return { registers, disk, write, put, flush, crash };
}

test('a fresh device of zeroes and what was flushed are accepted', (t) => {
  const { put, flush, crash } = world();
  put(0, 8);
  flush();
  t.deepEqual(crash(), []);
});

test('an unflushed write may be there or not', (t) => {
  const { put, disk, crash } = world();
  put(0, 8);
  disk.fill(0);
  t.deepEqual(crash(), []);
});

test('a lost flushed write is found', (t) => {
  const { put, flush, disk, crash } = world();
  put(0, 8);
  flush();
  disk.fill(0, 0, SECTOR_BYTES);
  t.is(crash().length, 1);
});

test('a write sent before the flush but answered after it may be lost', (t) => {
  const { registers, write, crash } = world();
  const { begun } = write(0, 8);
  const flush = registers.beginFlush();
  registers.answerWrite(begun);
  registers.answerFlush(flush);
  t.deepEqual(crash(), []);
});

test('a flushed write replaced by an older one is found', (t) => {
  const { put, flush, disk, crash } = world();
  const old = put(0, 8);
  put(0, 8);
  flush();
  old.copy(disk, 0);
  t.is(crash().length, 8);
});

test('what was seen after a crash may not be taken back by the next one', (t) => {
  const { put, disk, crash } = world();
  put(0, 8);
  t.deepEqual(crash(), []);
  disk.fill(0);
  t.is(crash().length, 8);
});

test('a lost FUA write is found', (t) => {
  const { registers, write, crash } = world();
  registers.answerWrite(write(0, 1).begun, true);
  t.is(crash().length, 1);
});

test('garbage, another sector, another life and a damaged sector are found', (t) => {
  const { put, disk, crash, write } = world();
  put(0, 4);
  disk.fill(0xff, 0, SECTOR_BYTES);
  disk.copy(disk, SECTOR_BYTES, 2 * SECTOR_BYTES, 3 * SECTOR_BYTES);
  disk[3 * SECTOR_BYTES + 300] = 1;
  writePayload(write(4, 1).begun, SEED + 1).copy(disk, 4 * SECTOR_BYTES);
  const found = crash().map(({ what }) => what);
  t.is(found.length, 4);
  t.regex(found[0] ?? '', /garbage/);
  t.regex(found[1] ?? '', /holds sector 2/);
  t.regex(found[2] ?? '', /damaged/);
  t.regex(found[3] ?? '', /another life/);
});

test('a stale read is found, and one that overlaps the write is not stale', (t) => {
  const { registers, disk, write, put } = world();
  put(0, 8);
  const old = Buffer.from(disk);
  const early = registers.beginRead();
  const { begun, payload } = write(0, 8);
  registers.answerWrite(begun, true);
  t.deepEqual(registers.answerRead(early, 0, old.subarray(0, 8 * SECTOR_BYTES)), []);
  const late = registers.beginRead();
  t.is(registers.answerRead(late, 0, old.subarray(0, 8 * SECTOR_BYTES)).length, 8);
  t.deepEqual(registers.answerRead(registers.beginRead(), 0, payload), []);
});

/** Puts some sectors of a write that begins at `firstSector` on a disk. */
function copySectors(
  payload: Buffer,
  disk: Buffer,
  { firstSector, from, to }: { firstSector: number; from: number; to: number },
): void {
  const start = (from - firstSector) * SECTOR_BYTES;
  payload.copy(disk, from * SECTOR_BYTES, start, (to - firstSector) * SECTOR_BYTES);
}

test('an unanswered write that survives a crash in part is found', (t) => {
  const { put, write, disk, crash } = world();
  put(0, 8);
  const { payload } = write(0, 8);
  copySectors(payload, disk, { firstSector: 0, from: 2, to: 4 });
  const found = crash();
  t.is(found.length, 1, 'a write is torn once, in however many sectors');
  t.is(found[0]?.sector, 0);
  t.regex(found[0]?.what ?? '', /no part of write 2 .*but of write 1/);
});

test('an unanswered write that survives as a whole, or not at all, is not torn', (t) => {
  const { put, write, disk, crash } = world();
  put(0, 8);
  write(2, 4);
  t.deepEqual(crash(), []);
  const { payload } = write(2, 4);
  copySectors(payload, disk, { firstSector: 2, from: 2, to: 6 });
  t.deepEqual(crash(), []);
});

test('a write that survives beside zeroes that were there before it is torn', (t) => {
  const { write, disk, crash } = world();
  const { payload } = write(8, 8);
  copySectors(payload, disk, { firstSector: 8, from: 8, to: 15 });
  t.deepEqual(
    crash().map(({ sector }) => sector),
    [15],
  );
});

test('zeroes that survive in part are found, and whole ones are not', (t) => {
  for (const torn of [true, false]) {
    const { registers, put, flush, disk, crash } = world();
    put(0, 8);
    flush();
    registers.beginWrite(2, 4, true);
    disk.fill(0, 2 * SECTOR_BYTES, (torn ? 5 : 6) * SECTOR_BYTES);
    t.deepEqual(
      crash().map(({ sector }) => sector),
      torn ? [5] : [],
    );
  }
});

test('zeroes that several writes may have left say of none that it is torn', (t) => {
  const { registers, put, flush, disk, crash } = world();
  registers.answerWrite(registers.beginWrite(0, 2, true));
  flush();
  put(0, 2);
  registers.beginWrite(0, 1, true);
  disk.fill(0, 0, SECTOR_BYTES);
  t.deepEqual(crash(), []);
  t.deepEqual(crash(), [], 'nor do they after the crash');
});

test('a newer write over a part of an older one is not a tear', (t) => {
  const { put, write, registers, disk, crash } = world();
  put(0, 8);
  put(2, 2);
  // Unanswered, and there: it may have come before or after any that had no answer before it.
  const { payload } = write(3, 8);
  copySectors(payload, disk, { firstSector: 3, from: 3, to: 11 });
  const read = registers.beginRead();
  t.deepEqual(registers.answerRead(read, 0, disk), []);
  t.deepEqual(crash(), []);
});

test('a read that sees a part of a write is told from one that sees it below a newer one', (t) => {
  const { registers, put, disk, write } = world();
  put(0, 8);
  const { begun, payload } = write(0, 16);
  const read = registers.beginRead();
  copySectors(payload, disk, { firstSector: 0, from: 4, to: 16 });
  registers.answerWrite(begun);
  const newer = put(6, 1);
  t.is(newer.length, SECTOR_BYTES);
  const first = registers.answerRead(read, 0, disk.subarray(0, 16 * SECTOR_BYTES));
  t.deepEqual(
    first.map(({ sector }) => sector),
    [0],
  );
});

test('a read is judged by what it covers of a write', (t) => {
  const { registers, put, disk, write } = world();
  put(0, 8);
  const { payload } = write(0, 8);
  copySectors(payload, disk, { firstSector: 0, from: 4, to: 8 });
  const see = (from: number, to: number) => {
    const data = disk.subarray(from * SECTOR_BYTES, to * SECTOR_BYTES);
    return registers.answerRead(registers.beginRead(), from, data).length;
  };
  t.is(see(0, 4), 0);
  t.is(see(4, 8), 0);
  t.is(see(3, 5), 1);
});

test('concurrent writes may come in any order, but in one', (t) => {
  const orders = [
    { shows: ['a', 'a', 'b', 'b', 'b', 'b'], torn: false },
    { shows: ['a', 'a', 'a', 'a', 'b', 'b'], torn: false },
    { shows: ['a', 'a', 'a', 'b', 'b', 'b'], torn: true },
    { shows: ['a', 'a', 'b', 'a', 'b', 'b'], torn: true },
  ];
  for (const { shows, torn } of orders) {
    const { registers, disk, write, crash } = world();
    const a = write(0, 4);
    const b = write(2, 4);
    for (const [sector, name] of shows.entries()) {
      const payload = name === 'a' ? a.payload : b.payload;
      copySectors(payload, disk, {
        firstSector: name === 'a' ? 0 : 2,
        from: sector,
        to: sector + 1,
      });
    }
    const seen = registers.answerRead(registers.beginRead(), 0, disk);
    t.is(seen.length, torn ? 1 : 0, shows.join(''));
    t.is(crash().length, torn ? 1 : 0, shows.join(''));
  }
});

test('writes are found in a circle that no two of them show', (t) => {
  for (const torn of [true, false]) {
    const { registers, disk, write, put } = world();
    const { payload } = write(0, 5);
    const over = put(0, 1);
    put(4, 2);
    // The long one lies below the first of the short ones and above the second, which is newer.
    payload.copy(disk);
    over.copy(disk);
    if (!torn) {
      const last = write(4, 1);
      last.payload.copy(disk, 4 * SECTOR_BYTES);
    }
    t.is(registers.answerRead(registers.beginRead(), 0, disk).length, torn ? 1 : 0);
  }
});

test('what is longer than a step need not be whole', (t) => {
  const sectors = 4096;
  const registers = createRegisters(sectors, SEED);
  const disk = Buffer.from(new ArrayBuffer(sectors * SECTOR_BYTES));
  const payload = writePayload(registers.beginWrite(0, 2049), SEED);
  copySectors(payload, disk, { firstSector: 0, from: 0, to: 1024 });
  t.deepEqual(registers.judgeAfterCrash(disk), []);
  const short = writePayload(registers.beginWrite(2048, 2048), SEED);
  copySectors(short, disk, { firstSector: 2048, from: 2048, to: 3000 });
  t.deepEqual(registers.answerRead(registers.beginRead(), 0, disk), [], 'nor a longer read');
  t.is(registers.judgeAfterCrash(disk).length, 1);
});

test('writes that a crash has taken are counted', (t) => {
  const { registers, put, flush, disk, crash } = world();
  put(0, 8);
  flush();
  const before = Buffer.from(disk);
  put(0, 4);
  put(8, 2);
  t.is(registers.undurableWrites(), 2);
  before.copy(disk, 0, 0, 4 * SECTOR_BYTES);
  t.deepEqual(crash(), []);
  t.is(registers.lostWrites(), 1);
  t.is(registers.undurableWrites(), 0);
});

/** A write, zeroes or a read on its way through a simulated server. */
interface Running {
  readonly write: Write | null;
  readonly read: PendingRead | null;
  readonly firstSector: number;
  readonly sectors: number;
  /** The steps that it still has to make. */
  readonly steps: { readonly from: number; readonly to: number }[];
  seen: Buffer | null;
}

/**
 * Runs a random history against a server in memory, which does each write in one step, or in two
 * if it tears them. A crash takes everything from some step on, but nothing durable. Returns what
 * was found.
 */
function randomHistory(seed: number, tears: boolean): Violation[] {
  const SECTORS = 16;
  const random = createRandom(seed);
  const registers = createRegisters(SECTORS, SEED);
  const empty = () => Buffer.from(new ArrayBuffer(SECTORS * SECTOR_BYTES));
  let disk = empty();
  let log: { write: Write; from: number; to: number }[] = [];
  let running: Running[] = [];
  const found: Violation[] = [];

  const apply = ({ write, from, to }: { write: Write; from: number; to: number }): void => {
    if (write.zero) disk.fill(0, from * SECTOR_BYTES, to * SECTOR_BYTES);
    else copySectors(writePayload(write, SEED), disk, { ...write, from, to });
  };
  const begin = (): void => {
    const sectors = 1 + (random() % 6);
    const firstSector = random() % (SECTORS - sectors + 1);
    const isRead = random() % 3 === 0;
    const write = isRead ? null : registers.beginWrite(firstSector, sectors, random() % 4 === 0);
    const read = isRead ? registers.beginRead() : null;
    const end = firstSector + sectors;
    const middle = tears && !isRead && sectors > 1 ? firstSector + 1 : end;
    const steps = [
      { from: firstSector, to: middle },
      { from: middle, to: end },
    ];
    const due = steps.filter(({ from, to }) => from < to);
    running.push({ write, read, firstSector, sectors, steps: due, seen: null });
  };
  const advance = (): void => {
    const one = running[random() % running.length];
    const step = one?.steps.shift();
    if (one === undefined) return;
    const { write, read, firstSector, sectors } = one;
    if (step !== undefined && write !== null) {
      log.push({ write, ...step });
      apply({ write, ...step });
    } else if (step !== undefined) {
      const start = firstSector * SECTOR_BYTES;
      one.seen = Buffer.from(disk.subarray(start, start + sectors * SECTOR_BYTES));
    } else {
      if (write !== null) registers.answerWrite(write, random() % 4 === 0);
      if (read !== null && one.seen !== null) {
        found.push(...registers.answerRead(read, firstSector, one.seen));
      }
      running = running.filter((other) => other !== one);
    }
  };
  const crash = (): void => {
    const durable = log.findLastIndex(({ write }) => write.durable) + 1;
    log = log.slice(0, durable + (random() % (log.length - durable + 1)));
    disk = empty();
    log.forEach(apply);
    for (const { read } of running) if (read !== null) registers.dropRead(read);
    running = [];
    found.push(...registers.judgeAfterCrash(disk));
    // What was seen after a crash cannot be taken by the next one.
    for (const { write } of log) write.durable = true;
  };
  for (let event = 0; event < 120; event += 1) {
    const kind = random() % 40;
    if (kind === 0) crash();
    else if (kind === 1) registers.answerFlush(registers.beginFlush());
    else if (kind < 14 && running.length < 6) begin();
    else advance();
  }
  crash();
  return found;
}

test('of random histories those that tear writes are found, and no others', (t) => {
  let torn = 0;
  for (let seed = 1; seed <= 400; seed += 1) {
    const found = randomHistory(seed, false).map(({ what }) => what);
    t.deepEqual(found, [], `seed ${seed}`);
    torn += randomHistory(seed, true).length > 0 ? 1 : 0;
  }
  t.log(`${torn} of 400 found`);
  t.true(torn > 200);
});
