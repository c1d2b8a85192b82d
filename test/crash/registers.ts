/**
 * The judge of lost, stale and torn data.
 *
 * Every 512-byte sector is a register. Each write has an identity, and every sector it writes
 * names that identity and its own place, so that whatever is read tells which write it is from.
 * A logical clock orders what the clients saw: when a write was sent, when it was answered, and
 * whether a flush that was sent after that answer has itself been answered.
 *
 * A value is refused when a newer one had to be there: a write that began after the value's own
 * write was answered, and that was itself answered before the read began (while serving), or was
 * durable (after a crash). Writes that overlapped in time may be seen in either order.
 *
 * What is seen at one moment, by a read or after a crash, is refused too where it is torn: where
 * no order of the writes in it has each of them done in one step.
 */

/** Bytes of a sector, the unit of the judgement. */
export const SECTOR_BYTES = 512;
const SECTOR_WORDS = SECTOR_BYTES / 4;
const MAGIC = 0x52464348;
const HEADER_WORDS = 4;
/** The longest writes that are promised to be one step, and reads that see one moment. */
const STEP_BYTES_MAX = 1 << 20;

/** The identity of zeroes that no write has left. */
const NOBODY = 0;

/** One write, or one range of zeroes. Ticks are of the logical clock. */
export interface Write {
  readonly id: number;
  readonly zero: boolean;
  readonly firstSector: number;
  readonly sectors: number;
  readonly startTick: number;
  answeredTick: number;
  durable: boolean;
}

/** Something a disk must not show. */
export interface Violation {
  readonly sector: number;
  /** What was wrong, in a sentence. */
  readonly what: string;
}

/** A read that has begun. */
export interface PendingRead {
  readonly startTick: number;
}

/** A flush that has been sent and what it covers. */
export interface PendingFlush {
  readonly covers: readonly Write[];
}

/** The state of all sectors, as the clients know it. */
export interface Registers {
  /** A write is about to be sent. */
  beginWrite(firstSector: number, sectors: number, zero?: boolean): Write;
  /** A write was answered; `durable` for FUA. */
  answerWrite(write: Write, durable?: boolean): void;
  beginFlush(): PendingFlush;
  answerFlush(flush: PendingFlush): void;
  beginRead(): PendingRead;
  /** Judges what a read returned while the server was up. */
  answerRead(read: PendingRead, firstSector: number, data: Uint8Array): Violation[];
  /** A read that failed is forgotten. */
  dropRead(read: PendingRead): void;
  /** Judges the whole device after a crash; what is seen now is durable from now on. */
  judgeAfterCrash(data: Uint8Array): Violation[];
  /** Writes that were answered and, since the last crash, never became durable. */
  undurableWrites(): number;
  /** Such writes of which a crash has taken something, as it may. */
  lostWrites(): number;
}

function word(id: number, sector: number, index: number): number {
  const mixed = Math.imul(id, 0x9e3779b1) ^ Math.imul(sector, 0x85ebca6b);
  return Math.imul((mixed + index) | 0, 0x27d4eb2f) >>> 0;
}

/** The payload of a write; `seed` tells this run's data from an earlier life of the device. */
export function writePayload(write: Write, seed: number): Buffer {
  const buffer = Buffer.from(new ArrayBuffer(write.sectors * SECTOR_BYTES));
  const words = new Uint32Array(buffer.buffer);
  for (let index = 0; index < write.sectors; index += 1) {
    const sector = write.firstSector + index;
    const start = index * SECTOR_WORDS;
    words[start] = MAGIC;
    words[start + 1] = sector;
    words[start + 2] = write.id;
    words[start + 3] = seed;
    for (let at = HEADER_WORDS; at < SECTOR_WORDS; at += 1) {
      words[start + at] = word(write.id, sector, at);
    }
  }
  return buffer;
}

/** The words of a buffer, copied only where its start is not aligned. */
function asWords(data: Uint8Array): Uint32Array {
  const aligned = data.byteOffset % 4 === 0 ? data : new Uint8Array(data);
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}

/** The write that a sector is from: 0 for zeroes, or a sentence about what it is instead. */
function decodeSector(
  words: Uint32Array,
  start: number,
  sector: number,
  seed: number,
): number | string {
  if (words[start] === 0) {
    for (let at = 1; at < SECTOR_WORDS; at += 1) {
      if (words[start + at] !== 0) return 'is partly zero';
    }
    return 0;
  }
  if (words[start] !== MAGIC) return 'is garbage';
  if (words[start + 3] !== seed) return 'is from another life of the device';
  if (words[start + 1] !== sector) return `holds sector ${words[start + 1]}`;
  const id = words[start + 2] ?? 0;
  for (let at = HEADER_WORDS; at < SECTOR_WORDS; at += 1) {
    if (words[start + at] !== word(id, sector, at)) return `is a damaged piece of write ${id}`;
  }
  return id;
}

/** The zeroes that a device begins with: no write, so they are never seen in part. */
function nobodysZeroes(sectors: number): Write {
  return {
    ...{ id: NOBODY, zero: true, firstSector: 0, sectors },
    ...{ startTick: -1, answeredTick: 0, durable: true },
  };
}

/** Whether `newer` must hide `older` from everyone who can rely on `newer`. */
function hides(newer: Write, older: Write): boolean {
  return newer.startTick > older.answeredTick;
}

function show(write: Write): string {
  const answered = Number.isFinite(write.answeredTick) ? String(write.answeredTick) : 'never';
  const durable = write.durable ? ', durable' : '';
  return `write ${write.id} (sent ${write.startTick}, answered ${answered}${durable})`;
}

/** All that the judge knows. */
interface State {
  readonly seed: number;
  tick: number;
  lastId: number;
  /** Per sector, the writes that it may show, now or after a crash. */
  readonly candidates: Write[][];
  /** Answered, and covered by no answered flush. */
  readonly undurable: Set<Write>;
  lost: number;
  readonly reads: Set<PendingRead>;
}

function nextTick(state: State): number {
  state.tick += 1;
  return state.tick;
}

/** Forgets what neither a crash nor a read that is under way can show any more. */
function prune(state: State, write: Write): void {
  for (const read of state.reads) {
    if (write.answeredTick >= read.startTick) return;
  }
  for (let sector = write.firstSector; sector < write.firstSector + write.sectors; sector += 1) {
    const list = state.candidates[sector];
    if (list === undefined || list.length === 1) continue;
    state.candidates[sector] = list.filter((older) => older === write || !hides(write, older));
  }
}

function makeDurable(state: State, write: Write): void {
  state.undurable.delete(write);
  write.durable = true;
  prune(state, write);
}

/**
 * Judges one value: the writes that it may be from, more than one of zeroes only, or what is wrong
 * with it.
 *
 * @param seenBy tick at which the reader had its answer
 * @param counts which writes the reader can rely on
 */
function judge(
  state: State,
  sector: number,
  value: number | string,
  seenBy: number,
  counts: (write: Write) => boolean,
): readonly Write[] | string {
  if (typeof value === 'string') return value;
  const list = state.candidates[sector] ?? [];
  const matching = list.filter((write) => (value === 0 ? write.zero : write.id === value));
  if (matching.length === 0) {
    const known = list.map(show).join('; ');
    return `shows write ${value}, which was replaced; possible: ${known}`;
  }
  let wrong = '';
  const possible = matching.filter((write) => {
    const newer = list.find((other) => counts(other) && hides(other, write));
    if (newer === undefined && write.startTick <= seenBy) return true;
    wrong = newer === undefined ? 'from the future' : `although there is ${show(newer)}`;
    return false;
  });
  return possible.length > 0 ? possible : `shows ${matching.map(show).join(' or ')}, ${wrong}`;
}

/** What a range showed at one moment. */
interface Picture {
  readonly firstSector: number;
  /** Per sector, the writes that it may be from; none where it is wrong already. */
  readonly writers: readonly (readonly Write[])[];
}

/**
 * The writes that a picture shows for certain and that have to be whole. Zeroes of which one of
 * several writes may be the source show none.
 */
function shownWrites({ writers }: Picture): Set<Write> {
  const shown = new Set<Write>();
  for (const [writer, ...others] of writers) {
    if (writer === undefined || others.length > 0 || writer.id === NOBODY) continue;
    if (writer.sectors * SECTOR_BYTES <= STEP_BYTES_MAX) shown.add(writer);
  }
  return shown;
}

/**
 * The first sector in which `write` does not show though it is the last write but for those that
 * were taken away; `undefined` if there is none.
 *
 * @param left shown writes that were not taken away
 */
function firstGap(picture: Picture, write: Write, left: ReadonlySet<Write>): number | undefined {
  const { firstSector, writers } = picture;
  const end = Math.min(write.firstSector + write.sectors, firstSector + writers.length);
  for (let sector = Math.max(write.firstSector, firstSector); sector < end; sector += 1) {
    const possible = writers[sector - firstSector] ?? [];
    const [writer, ...others] = possible;
    if (writer === undefined || possible.includes(write)) continue;
    if (others.length === 0 && left.has(writer)) return sector;
    if (possible.every((other) => hides(write, other))) return sector;
  }
  return undefined;
}

/**
 * Finds what is torn: writes that show in some sectors, and in another of their sectors do not,
 * though what shows there instead is older. Concurrent writes may have come in any order, but in
 * the same one in all sectors. So a picture is good if its writes can be taken away one by one,
 * the last first, each of which shows in all of its sectors that none of those before it has
 * covered. Which of several goes first makes no difference: each that goes only helps the others.
 */
function findTorn(picture: Picture): Violation[] {
  const left = shownWrites(picture);
  const rest = [...left].sort((a, b) => a.startTick - b.startTick);
  const violations: Violation[] = [];
  for (;;) {
    const newest = rest.at(-1);
    if (newest === undefined) return violations;
    const canBeLast = (write: Write): boolean =>
      write.answeredTick >= newest.startTick && firstGap(picture, write, left) === undefined;
    let at = rest.findLastIndex(canBeLast);
    if (at < 0) {
      const sector = firstGap(picture, newest, left) ?? newest.firstSector;
      const instead = picture.writers[sector - picture.firstSector] ?? [];
      const what = `is no part of ${show(newest)}, which shows elsewhere, but of `;
      violations.push({ sector, what: what + instead.map(show).join(' or ') });
      at = rest.length - 1;
    }
    for (const taken of rest.splice(at, 1)) left.delete(taken);
  }
}

/** What a reader saw, and what was wrong with single sectors of it. */
interface Judgement {
  readonly picture: Picture;
  readonly violations: Violation[];
}

/** Judges every sector of a range on its own. */
function judgeSectors(
  state: State,
  firstSector: number,
  data: Uint8Array,
  counts: (write: Write) => boolean,
): Judgement {
  const words = asWords(data);
  const violations: Violation[] = [];
  const writers: (readonly Write[])[] = [];
  for (let index = 0; index < data.length / SECTOR_BYTES; index += 1) {
    const sector = firstSector + index;
    const value = decodeSector(words, index * SECTOR_WORDS, sector, state.seed);
    const verdict = judge(state, sector, value, state.tick, counts);
    if (typeof verdict === 'string') violations.push({ sector, what: verdict });
    writers.push(typeof verdict === 'string' ? [] : verdict);
  }
  return { picture: { firstSector, writers }, violations };
}

function beginWrite(state: State, firstSector: number, sectors: number, zero: boolean): Write {
  state.lastId += 1;
  const write: Write = {
    id: state.lastId,
    zero,
    firstSector,
    sectors,
    startTick: nextTick(state),
    answeredTick: Number.POSITIVE_INFINITY,
    durable: false,
  };
  for (let index = 0; index < sectors; index += 1) {
    state.candidates[firstSector + index]?.push(write);
  }
  return write;
}

/** Judges a read that began at `startTick` and has just been answered. */
function judgeRead(
  state: State,
  startTick: number,
  firstSector: number,
  data: Uint8Array,
): Violation[] {
  const counts = (write: Write): boolean => write.answeredTick < startTick;
  const { picture, violations } = judgeSectors(state, firstSector, data, counts);
  // A longer read is a sequence of steps: what it shows is not of one moment.
  return data.length > STEP_BYTES_MAX ? violations : [...violations, ...findTorn(picture)];
}

/** Whether a picture of the whole device shows less of a write than all that newer ones left. */
function isLost({ writers }: Picture, write: Write): boolean {
  const covered = writers.slice(write.firstSector, write.firstSector + write.sectors);
  return covered.some((possible) => {
    return possible.length > 0 && possible.every((other) => hides(write, other));
  });
}

function judgeAfterCrash(state: State, data: Uint8Array): Violation[] {
  const now = nextTick(state);
  const { picture, violations } = judgeSectors(state, 0, data, (write) => write.durable);
  violations.push(...findTorn(picture));
  for (const write of state.undurable) if (isLost(picture, write)) state.lost += 1;
  state.undurable.clear();
  // Recovery begins with a flush: what it shows it can never take back. Zeroes do not tell whose
  // they are, and it does not matter any more.
  const settled = { answeredTick: now, durable: true };
  const zeroes: Write = { ...nobodysZeroes(state.candidates.length), startTick: now, ...settled };
  const survivors = new Map<Write, Write>();
  for (const [sector, [writer]] of picture.writers.entries()) {
    if (writer === undefined) continue;
    const survivor = writer.zero ? zeroes : (survivors.get(writer) ?? { ...writer, ...settled });
    survivors.set(writer, survivor);
    state.candidates[sector] = [survivor];
  }
  return violations;
}

/** Makes the registers of a device of `sectors` sectors that read as zeroes. */
export function createRegisters(sectors: number, seed: number): Registers {
  const blank = nobodysZeroes(sectors);
  const state: State = {
    ...{ seed, tick: 0, lastId: 0 },
    candidates: Array.from({ length: sectors }, () => [blank]),
    undurable: new Set(),
    lost: 0,
    reads: new Set(),
  };
  return {
    beginWrite: (firstSector, count, zero = false) => beginWrite(state, firstSector, count, zero),
    answerWrite: (write, durable = false) => {
      write.answeredTick = nextTick(state);
      if (durable) makeDurable(state, write);
      else state.undurable.add(write);
    },
    beginFlush: () => {
      nextTick(state);
      return { covers: [...state.undurable] };
    },
    answerFlush: (flush) => {
      nextTick(state);
      for (const write of flush.covers) makeDurable(state, write);
    },
    beginRead: () => {
      const read = { startTick: nextTick(state) };
      state.reads.add(read);
      return read;
    },
    answerRead: (read, firstSector, data) => {
      nextTick(state);
      state.reads.delete(read);
      return judgeRead(state, read.startTick, firstSector, data);
    },
    dropRead: (read) => {
      state.reads.delete(read);
    },
    judgeAfterCrash: (data) => judgeAfterCrash(state, data),
    undurableWrites: () => state.undurable.size,
    lostWrites: () => state.lost,
  };
}
