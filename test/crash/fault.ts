/**
 * Loaded into the daemon by `NODE_OPTIONS=--import`: on SIGUSR2 the JavaScript half fails in the
 * way that `RINGFENCE_TEST_FAULT` names. The daemon itself has no such hook.
 */

import { readSync, writeSync } from 'node:fs';

/** Ways for the JavaScript half to fail. */
export type Fault = 'exit' | 'throw' | 'heap' | 'block';

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
  // Until the test writes to the standard input.
  block: () => {
    readSync(0, Buffer.alloc(1));
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
