/** Limits that both languages must know are the same in both. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { FORMAT_LIMITS } from '../../daemon/cli/format.ts';
import { EXPORTS_MAX } from '../../daemon/exports.ts';
import { projectRoot } from '../support/process.ts';

const LIMITS = readFileSync(join(projectRoot, 'crates', 'cache', 'src', 'limits.rs'), 'utf8');

/** The value of a Rust constant that is a number, or one shifted left. */
function rustConstant(name: string): bigint {
  const found = new RegExp(`pub const ${name}: \\w+ = (\\d+)(?: << (\\d+))?;`).exec(LIMITS);
  if (found === null) throw new Error(`no constant ${name} in limits.rs`);
  return BigInt(found[1] ?? '') << BigInt(found[2] ?? '0');
}

test('limits are those of the engine', (t) => {
  t.is(BigInt(EXPORTS_MAX), rustConstant('EXPORTS_MAX'));
  for (const [name, value] of Object.entries(FORMAT_LIMITS)) t.is(value, rustConstant(name), name);
});
