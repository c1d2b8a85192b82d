import test from 'ava';

interface Results {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: readonly string[];
}

type Counter = (text: string, status: number) => Results;

// The scripts run before anything is compiled, so they are plain modules without declarations.
const scripts: string = '#scripts/lib/results.mjs';
const { cargoResults, tapResults } = (await import(scripts)) as Record<
  'cargoResults' | 'tapResults',
  Counter
>;

const CARGO = `running 3 tests
test a::b ... ok
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test src/lib.rs - open (line 12) ... ignored
test result: FAILED. 4 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out
`;

test('cargo: the results of all programs are added up', (t) => {
  t.deepEqual(cargoResults(CARGO, 101), { passed: 6, failed: 3, skipped: [] });
});

test('cargo: an ignored test is named and counts as failed', (t) => {
  const text = `test slow::one ... ignored, too slow\n${CARGO}`;
  t.deepEqual(cargoResults(text, 101), { passed: 6, failed: 4, skipped: ['slow::one'] });
});

test('cargo: a program that aborts is a failure beside those that are told', (t) => {
  const rerun = 'error: test failed, to rerun pass `-p x`\n';
  const { failed } = cargoResults(`${CARGO}${rerun}${rerun}`, 101);
  t.is(failed, 4);
});

test('cargo: what does not compile is one failure', (t) => {
  t.deepEqual(cargoResults('', 101), { passed: 0, failed: 1, skipped: [] });
});

test('ava: tests are counted, skipped ones and intended ones as failed', (t) => {
  const text = `TAP version 13
ok 1 - nbd › a
not ok 2 - nbd › b
  ---
    message: ok 7 - not a result
  ...
ok 3 - nbd › c # SKIP
not ok 4 - nbd › d # TODO
ok 5 - nbd › e # 3 is no directive
1..5
`;
  const skipped = ['nbd › c', 'nbd › d'];
  t.deepEqual(tapResults(text, 1), { passed: 2, failed: 3, skipped });
});

test('ava: a crash without a failed test, and a run without any test, are one failure', (t) => {
  t.deepEqual(tapResults('ok 1 - a\n1..1\n', 1), { passed: 1, failed: 1, skipped: [] });
  t.deepEqual(tapResults('TAP version 13\n1..0\n', 0), { passed: 0, failed: 1, skipped: [] });
});

test('ava: a run that breaks off is a failure of its own', (t) => {
  t.deepEqual(tapResults('ok 1 - a\nnot ok 2 - b\n', 1), { passed: 1, failed: 2, skipped: [] });
});
