/** What a verb is given of the process it runs in, so that tests can stand in for it. */

import { createInterface } from 'node:readline/promises';
import { loadNative } from '../addon.ts';
import { codeOf } from '../errors.ts';
import type { Native } from '../native.ts';

/** The process around a command. */
export interface Context {
  /** For results: standard output. */
  write(text: string): void;
  /** Why results could not be written, once all are; null where they were, or nobody reads on. */
  written?(): Promise<Error | null>;
  /** For everything else: standard error. */
  writeError(text: string): void;
  /** Asks the operator and gives the answer; null when there is nobody to answer. */
  ask(question: string): Promise<string | null>;
  /** The native module, loaded at the first call. */
  native(): Native;
}

/** The real process. */
export function processContext(): Context {
  // A reader that has gone away, such as `head`, must not end a daemon that has clients.
  let failure: Error | null = null;
  process.stdout.on('error', (error) => {
    if (codeOf(error) !== 'EPIPE') failure ??= error;
  });
  process.stderr.on('error', () => undefined);
  return {
    write: (text) => void process.stdout.write(text),
    written: async () => {
      await new Promise((resolve) => process.stdout.write('', resolve));
      return failure;
    },
    writeError: (text) => void process.stderr.write(text),
    ask,
    native: loadNative,
  };
}

async function ask(question: string): Promise<string | null> {
  const prompt = createInterface({ input: process.stdin, output: process.stdout });
  const ended = new Promise<null>((resolve) => prompt.once('close', () => resolve(null)));
  try {
    return await Promise.race([prompt.question(question), ended]);
  } finally {
    prompt.close();
  }
}
