import test from 'ava';
import fc from 'fast-check';
import { formatSize, parseDurationMs, parseSizeBytes } from '../../daemon/units.ts';

test('sizes: binary units, alone for bytes', (t) => {
  const sizes: readonly (readonly [string, bigint])[] = [
    ['0', 0n],
    ['4096', 4096n],
    ['4096B', 4096n],
    ['512K', 512n << 10n],
    ['16MiB', 16n << 20n],
    ['16 MiB', 16n << 20n],
    ['1GiB', 1n << 30n],
    ['3T', 3n << 40n],
  ];
  for (const [text, bytes] of sizes) t.is(parseSizeBytes(text), bytes, text);
});

test('sizes: what is ambiguous, fractional, negative or beyond 63 bits is refused', (t) => {
  for (const text of ['', 'x', '1MB', '1.5GiB', '-1', '1e9', '0x10', '8388608TiB', '1GiB1']) {
    t.throws(() => parseSizeBytes(text), { code: 'RF_SIZE' }, text);
  }
});

test('sizes: what is shown without a fraction reads back as the same', (t) => {
  const sizes = fc.tuple(fc.integer({ min: 1, max: 1023 }), fc.integer({ min: 0, max: 4 }));
  fc.assert(
    fc.property(sizes, ([count, power]) => {
      const bytes = BigInt(count) << BigInt(power * 10);
      t.is(parseSizeBytes(formatSize(bytes).replace(' bytes', 'B')), bytes);
    }),
  );
  t.is(formatSize(1536n), '1.5 KiB');
});

test('durations: with a unit, a day at most', (t) => {
  t.is(parseDurationMs('500ms'), 500);
  t.is(parseDurationMs('30s'), 30_000);
  t.is(parseDurationMs('5m'), 300_000);
  for (const text of ['', '30', '1h', '1.5s', '-1s']) {
    t.throws(() => parseDurationMs(text), { code: 'RF_DURATION' }, text);
  }
  const message = '"1441m" is out of range: write a duration from 0ms to 1440m.';
  t.throws(() => parseDurationMs('1441m'), { code: 'RF_DURATION_RANGE', message });
  t.is(parseDurationMs('1s', '1s'), 1000);
  t.throws(() => parseDurationMs('999ms', '1s'), { message: /from 1s to 1440m/ });
});
