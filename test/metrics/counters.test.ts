import test from 'ava';
import { counterCount, takeSnapshot } from '../../metrics/counters.ts';
import { createFakeNative, LAYOUT, PLACES } from '../daemon/fake-native.ts';

/** Every value is its own index, so that each value read tells where it was read. */
function indexed() {
  const native = createFakeNative();
  native.counterValues.set(Array.from(native.counterValues, (_, index) => BigInt(index)));
  return takeSnapshot({ counters: (into) => into.set(native.counterValues) }, LAYOUT);
}

test('each value is read from where the layout says', (t) => {
  const snapshot = indexed();
  t.is(counterCount(LAYOUT), PLACES.total());
  for (const name of LAYOUT.engine) {
    t.is(snapshot.engine(name), BigInt(PLACES.engine(name)));
  }
  for (let slot = 0; slot < LAYOUT.exportsMax; slot += 1) {
    for (const name of LAYOUT.exportNames) {
      t.is(snapshot.ofExport(slot, name), BigInt(PLACES.ofExport(slot, name)));
    }
  }
  const write = BigInt(PLACES.operation(2, 'write'));
  t.deepEqual(snapshot.operation(2, 'write'), {
    requests: write,
    bytes: write + 1n,
    errors: write + 2n,
    durationNs: write + 3n,
    buckets: [write + 4n, write + 5n, write + 6n],
  });
  t.is(snapshot.originOperation(3, 'flush').requests, BigInt(PLACES.origin(3, 'flush')));
  const log = BigInt(PLACES.pool('log'));
  t.deepEqual(snapshot.pool('log'), { sizeBytes: log, usedBytes: log + 1n, waits: log + 2n });
});

test('the last value is the last pool', (t) => {
  t.is(indexed().pool('log').waits, BigInt(PLACES.total() - 1));
});

test('a name that the native side does not count is a mismatch', (t) => {
  const code = 'RF_NATIVE_MISMATCH';
  t.throws(() => indexed().engine('invented'), { code, message: /"invented"/ });
  t.throws(() => indexed().ofExport(0, 'invented'), { code });
  t.throws(() => indexed().pool('invented'), { code });
});
