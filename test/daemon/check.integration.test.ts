/** `ringfence check` over caches of the real daemon: clean, after a kill, and damaged. */

import { createHash } from 'node:crypto';
import { copyFileSync, openSync, readFileSync, readSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { MIB, sparseFile, temporaryFolder } from '../support/loop.ts';
import { connectNbd } from '../support/nbd-client.ts';
import { type Finished, run, runAnyway } from '../support/process.ts';
import { assertRefusal } from '../support/refusal.ts';
import {
  ask,
  type Daemon,
  type DaemonSetup,
  killDaemon,
  ringfenceCommand,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import type { Scope } from '../support/scope.ts';
import { formatDisk, SMALL } from '../support/setting.ts';

const BLOCK = 4096;
/** The first record header of the first segment. */
const FIRST_HEADER = MIB;

/** Blocks 0 to 7 clean, 8 to 15 dirty, everything flushed. */
async function fill(daemon: Daemon): Promise<void> {
  const client = await connectNbd({ path: socketPath(daemon.setup) }, 'disk');
  await client.write(0, Buffer.alloc(8 * BLOCK, 0xc1));
  await client.flush();
  await ask(daemon, 'drain');
  await client.write(8 * BLOCK, Buffer.alloc(8 * BLOCK, 0xd1));
  await client.flush();
  // The header of this one says that the other was flushed.
  await client.write(32 * BLOCK, Buffer.alloc(BLOCK, 0xe1));
  await client.flush();
  client.destroy();
}

interface Killed {
  readonly scope: Scope;
  /** How to serve the copy. */
  readonly setup: DaemonSetup;
  readonly image: string;
}

/** A copy of the device of a cache that was filled and whose daemon was killed. */
async function killedCache(t: ExecutionContext): Promise<Killed> {
  const all = await formatDisk(t, SMALL);
  // An origin that has room for what is to be clean and for no more, so that the rest stays dirty.
  const full = temporaryFolder(all.scope);
  await run('mount', ['-t', 'tmpfs', '-o', 'size=40k', 'ringfence-test', full]);
  all.scope.defer(() => run('umount', [full]));
  const exports = [{ name: 'disk', origin: sparseFile(full, 'origin', 16 * MIB) }];
  const daemon = await startDaemon(all.scope, { ...all.setup, exports });
  await fill(daemon);
  await killDaemon(daemon);
  const image = join(all.folder, 'image');
  copyFileSync(all.cacheFile, image);
  return { scope: all.scope, setup: { ...daemon.setup, cache: image }, image };
}

async function killedImage(t: ExecutionContext): Promise<string> {
  return (await killedCache(t)).image;
}

function check(path: string, ...more: readonly string[]): Promise<Finished> {
  return runAnyway(ringfenceCommand, ['check', path, ...more], { timeoutMs: 60_000 });
}

interface Report {
  readonly clean: boolean;
  readonly superblocks: readonly { readonly state: string }[];
  readonly log: Readonly<Record<string, number>>;
  readonly exports: readonly Readonly<Record<string, number | string>>[];
  readonly findings: readonly {
    readonly severity: string;
    readonly structure: string;
    readonly offset_bytes: number | null;
    readonly export: string | null;
    readonly first_block: number | null;
    readonly block_count: number | null;
    readonly meaning: string;
  }[];
}

function report(finished: Finished): Report {
  return JSON.parse(finished.stdout) as Report;
}

const digest = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Flips one bit of a file. */
function flip(path: string, offset: number): void {
  const file = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, offset);
  writeSync(file, Buffer.from([(byte[0] ?? 0) ^ 4]), 0, 1, offset);
}

/** Where a block filled with one byte lies on a device. */
function findBlock(path: string, byte: number): number {
  const at = readFileSync(path).indexOf(Buffer.alloc(BLOCK, byte), FIRST_HEADER);
  if (at < 0) throw new Error(`no block of ${byte} in ${path}`);
  return at;
}

/** Damage is found, named, and read without a write. */
async function assertDamage(t: ExecutionContext, image: string): Promise<Report> {
  const before = digest(image);
  const finished = await check(image, '--json');
  t.is(finished.exitCode, 1, finished.stderr);
  t.regex(finished.stderr, /^ringfence: [^\n]+ \[RF_CHECK_DAMAGED\]$/);
  t.is(digest(image), before, 'a check writes nothing');
  const found = report(finished);
  t.false(found.clean);
  return found;
}

/** One sentence, and the exit code that says that nothing was checked. */
function assertImpossible(t: ExecutionContext, finished: Finished, message: RegExp): void {
  assertRefusal(t, finished, message, { exitCode: 2, code: 'RF_CHECK_IMPOSSIBLE' });
}

test.serial('clean: after format, after a stop, and after a kill', async (t) => {
  const all = await formatDisk(t, SMALL);
  const fresh = await check(all.cache);
  t.is(fresh.exitCode, 0, fresh.stderr);
  t.regex(fresh.stdout, /Nothing is damaged/);
  const daemon = await startDaemon(all.scope, all.setup);
  await fill(daemon);
  await stopDaemon(daemon);
  const before = digest(all.cacheFile);
  const stopped = await check(all.cache, '--json');
  t.is(stopped.exitCode, 0, stopped.stderr);
  const found = report(stopped);
  t.deepEqual(found.findings, []);
  t.is(found.exports[0]?.name, 'disk');
  t.is(found.exports[0]?.live_bytes, 17 * BLOCK);
  t.is(found.log.payload_blocks, 17);
  t.is(digest(all.cacheFile), before, 'a check writes nothing');
  const again = await startDaemon(all.scope, all.setup);
  const client = await connectNbd({ path: socketPath(again.setup) }, 'disk');
  await client.write(64 * BLOCK, Buffer.alloc(BLOCK, 1));
  await client.flush();
  await killDaemon(again);
  const killed = await check(all.cache);
  t.is(killed.exitCode, 0, `${killed.stdout}${killed.stderr}`);
});

test.serial('payload: a dirty block is lost, a clean one is not', async (t) => {
  const image = await killedImage(t);
  const dirty = findBlock(image, 0xd1);
  flip(image, dirty + 100);
  flip(image, dirty + BLOCK + 7);
  flip(image, findBlock(image, 0xc1));
  const found = await assertDamage(t, image);
  const payload = found.findings.map((one) => [
    one.structure,
    one.export,
    one.first_block,
    one.block_count,
    one.meaning.split(':', 1)[0],
  ]);
  t.deepEqual(payload, [
    ['payload', 'disk', 0, 1, 'clean'],
    ['payload', 'disk', 8, 2, 'dirty'],
  ]);
  t.is(found.findings[1]?.offset_bytes, dirty);
  t.is(found.exports[0]?.damaged_dirty_blocks, 2);
  t.is(found.exports[0]?.damaged_clean_blocks, 1);
  const text = await check(image);
  t.is(text.exitCode, 1);
  t.regex(text.stdout, /damage: payload at byte \d+, export "disk" blocks 8-9: .*: dirty: lost/);
});

test.serial('a damaged superblock costs nothing while the other copy is good', async (t) => {
  const image = await killedImage(t);
  flip(image, 65_536 + 50);
  const found = await assertDamage(t, image);
  t.deepEqual(
    found.superblocks.map(({ state }) => state),
    ['intact', 'damaged'],
  );
  t.regex(found.findings[0]?.meaning ?? '', /other copy is good: nothing is lost/);
  flip(image, 50);
  assertImpossible(t, await check(image), /both superblocks are damaged/);
});

test.serial('a damaged header costs nothing once its segment has a footer', async (t) => {
  const all = await formatDisk(t, SMALL);
  const daemon = await startDaemon(all.scope, all.setup);
  await fill(daemon);
  await killDaemon(daemon);
  // Recovery gives the segment a footer.
  await stopDaemon(await startDaemon(all.scope, all.setup));
  const image = join(all.folder, 'image');
  copyFileSync(all.cacheFile, image);
  flip(image, FIRST_HEADER + 200);
  const found = await assertDamage(t, image);
  t.is(found.findings.length, 1);
  t.like(found.findings[0], { structure: 'record header', offset_bytes: FIRST_HEADER });
  t.regex(found.findings[0]?.meaning ?? '', /footer's copy is good: nothing is lost/);
});

test.serial('a damaged header without a footer is lost data, and no end of the log', async (t) => {
  const image = await killedImage(t);
  flip(image, FIRST_HEADER + 200);
  const found = await assertDamage(t, image);
  t.is(found.findings.length, 1, 'and is not called the end of the log beside that');
  t.like(found.findings[0], { structure: 'log', offset_bytes: FIRST_HEADER });
  t.regex(found.findings[0]?.meaning ?? '', /serve refuses to start/);
});

test.serial('durable data that is damaged is lost only where that is accepted', async (t) => {
  const { scope, setup, image } = await killedCache(t);
  flip(image, FIRST_HEADER + 200);
  const before = digest(image);
  await t.throwsAsync(startDaemon(scope, setup), {
    message: /records 1 to \d+ were durable and cannot be read.*--accept-loss.*\[RF_OPEN_REFUSED\]/,
  });
  t.is(digest(image), before, 'a refusal writes nothing');
  const daemon = await startDaemon(scope, { ...setup, extra: ['--accept-loss'] });
  t.regex(daemon.background.output(), /"first_record":1,"last_record":\d+,.*data is lost/);
  const client = await connectNbd({ path: socketPath(setup) }, 'disk');
  t.is((await client.read(0, BLOCK))[0], 0xc1, 'the origin has what was clean');
  await client.disconnect();
  await stopDaemon(daemon);
});

test.serial('what cannot be read is one sentence', async (t) => {
  const all = await formatDisk(t, SMALL);
  const missing = join(all.folder, 'missing');
  assertImpossible(t, await check(missing), /it does not exist/);
  assertImpossible(t, await check(all.origin), /holds no ringfence cache/);
  assertImpossible(t, await check(all.folder), /is a directory/);
  const small = join(all.folder, 'small');
  copyFileSync(all.cacheFile, small);
  truncateSync(small, 32 * MIB);
  assertImpossible(t, await check(small), /was formatted with 67108864/);
  truncateSync(small, 1000);
  assertImpossible(t, await check(small), /holds no ringfence cache/);
  const daemon = await startDaemon(all.scope, all.setup);
  assertImpossible(t, await check(all.cache), /is (in use|held open)/);
  await stopDaemon(daemon);
});
