import { execFile } from 'node:child_process';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import type { Native, NativeOpenOptions } from '../../daemon/native.ts';
import { ENGINE } from '../support/engine.ts';

const require = createRequire(import.meta.url);
const native: Native = require('#binding');

const nowhere = join(tmpdir(), 'ringfence-there-is-no-such-device');

function options(changes: Partial<NativeOpenOptions>): NativeOpenOptions {
  return {
    cachePath: nowhere,
    ...ENGINE,
    exports: [],
    ...changes,
  };
}

test('the counters have names, and each name is used once', (t) => {
  const layout = native.counterLayout();
  for (const names of [layout.engine, layout.exportNames, layout.operations, layout.pools]) {
    t.true(names.length > 0);
    t.is(new Set(names).size, names.length);
  }
  t.deepEqual(layout.operations, ['read', 'write', 'flush', 'trim', 'write_zeroes']);
  t.deepEqual(layout.originOperations, ['read', 'write', 'write_zeroes', 'flush']);
  const bounds = layout.durationBucketsNs;
  t.deepEqual(
    bounds,
    [...bounds].sort((a, b) => (a < b ? -1 : 1)),
  );
});

test('probe tells of every guard and of io_uring, with advice for those that are down', (t) => {
  const guards = native.probe(256n << 20n, 16n << 20n);
  const measures = guards.map(({ measure }) => measure);
  t.true(measures.includes('io_uring'), measures.join());
  t.true(measures.includes('memory_locked'), measures.join());
  for (const { up, advice } of guards) t.is(up, advice === null);
});

test('what does not exist cannot be formatted, described or opened, and is named', async (t) => {
  for (const attempt of [
    native.format(nowhere, 16n << 20n),
    native.describe(nowhere),
    native.open(options({}), () => {}),
  ]) {
    const error = await t.throwsAsync(attempt);
    t.true(error?.message.includes(nowhere), error?.message);
  }
});

test('what has to be changed before it can be opened is told from what may pass', async (t) => {
  const open = (cachePath: string) => native.open(options({ cachePath }), () => {});
  await t.throwsAsync(open(tmpdir()), { message: /neither a block device/, code: 'InvalidArg' });
  await t.throwsAsync(open(nowhere), { message: /No such file/, code: 'GenericFailure' });
});

test('numbers out of range are refused with the name of the argument', (t) => {
  const open = (changes: Partial<NativeOpenOptions>) => () =>
    void native.open(options(changes), () => {});
  const served = {
    name: 'a',
    originPath: nowhere,
    mode: 'writeback',
    order: 'strict',
    dirtyBytesMax: null,
    waitMs: 0,
    originTimeoutMs: 0,
  } as const;
  t.throws(open({ connectionsMax: -1 }), { message: /connectionsMax/, code: 'InvalidArg' });
  t.throws(open({ connectionsMax: 2 ** 32 }), { message: /connectionsMax/ });
  t.throws(open({ spinUs: 0.5 }), { message: /spinUs/ });
  t.throws(open({ destageHighPercent: 256 }), { message: /destageHighPercent/ });
  t.throws(open({ destageAgeMs: -1 }), { message: /destageAgeMs/ });
  t.throws(open({ cpu: Number.NaN }), { message: /cpu/ });
  t.throws(open({ reserveBytes: -1n }), { message: /reserveBytes/, code: 'InvalidArg' });
  t.throws(open({ reserveBytes: 1n << 64n }), { message: /reserveBytes/ });
  t.throws(open({ exports: [{ ...served, dirtyBytesMax: -1n }] }), { message: /dirtyBytesMax/ });
  t.throws(open({ exports: [{ ...served, waitMs: -1 }] }), { message: /waitMs/ });
  t.throws(open({ exports: [{ ...served, originTimeoutMs: -1 }] }), { message: /originTimeoutMs/ });
  t.throws(() => void native.format(nowhere, -1n), { message: /segmentBytes/ });
});

test('zero is a number like any other', async (t) => {
  const error = await t.throwsAsync(native.open(options({ reserveBytes: 0n }), () => {}));
  t.true((error?.message ?? '').length > 0);
});

test('a mode or order that there is not is refused', (t) => {
  const wrong = { ...options({}), exports: [{ name: 'a', originPath: nowhere, mode: 'sideways' }] };
  t.throws(() => void native.open(wrong as unknown as NativeOpenOptions, () => {}));
});

test('a Worker is refused with a sentence', async (t) => {
  const worker = new Worker(`require(${JSON.stringify(require.resolve('#binding'))})`, {
    eval: true,
  });
  const error = await new Promise<Error | null>((resolve) => {
    worker.once('error', resolve);
    worker.once('exit', () => resolve(null));
  });
  t.regex(error?.message ?? 'no error', /cannot be used in a Worker/);
});

test('the module is never unmapped', async (t) => {
  const addon = require.resolve('#binding').replace('binding.cjs', 'ringfence.node');
  const { stdout } = await promisify(execFile)('readelf', ['--dynamic', addon]);
  t.regex(stdout, /FLAGS_1.*NODELETE/);
});
