/**
 * Loaded into the daemon by `NODE_OPTIONS=--import`: on SIGUSR2 the JavaScript half fails in the
 * way that `RINGFENCE_TEST_FAULT` names. The daemon itself has no such hook.
 */

import { writeSync } from 'node:fs';

/** Ways for the JavaScript half to fail. */
export type Fault = 'exit' | 'throw' | 'heap' | 'block';

/** How long `block` stops the JavaScript thread. */
export const BLOCK_MS = 10_000;

/** Says something at once: nothing that is queued would get out. */
function say(what: string): void {
  writeSync(2, `fault: ${what}\n`);
}

const faults: Record<Fault, () => void> = {
  exit: () => process.exit(3),
  throw: () => {
    setImmediate(() => {
      throw new Error('a fault that the test planted');
    });
  },
  heap: () => {
    const kept: unknown[] = [];
    for (;;) kept.push(Array.from({ length: 10_000 }, (_, index) => ({ index })));
  },
  block: () => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, BLOCK_MS);
    say('end');
  },
};

const fault = process.env.RINGFENCE_TEST_FAULT;
if (fault !== undefined && fault in faults) {
  process.on('SIGUSR2', () => {
    say('begin');
    faults[fault as Fault]();
  });
}
