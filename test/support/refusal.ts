/** What a command says when it refuses something. */

import type { ExecutionContext } from 'ava';
import type { Finished } from './process.ts';

/**
 * One sentence on standard error that ends in its code, nothing on standard output, and an exit
 * code that is not 0: the one that is given, or one of those that the command has.
 */
export function assertRefusal(
  t: ExecutionContext,
  { exitCode, stdout, stderr }: Finished,
  message: RegExp,
  wanted?: { readonly exitCode: number; readonly code: string },
): void {
  const exitCodes = wanted === undefined ? [1, 2] : [wanted.exitCode];
  t.true(exitCodes.includes(exitCode), `exit code ${exitCode}: ${stderr}`);
  t.is(stdout, '');
  t.regex(stderr, message);
  const [, code] = /^ringfence: [^\n]+ \[(RF_[A-Z_]+)\]$/.exec(stderr) ?? [];
  t.truthy(code, stderr);
  if (wanted !== undefined) t.is(code, wanted.code);
}
