import test from 'ava';
import { createRegisters, SECTOR_BYTES, writePayload } from './registers.ts';

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
  const crash = () => registers.judgeAfterCrash(0, disk);
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
