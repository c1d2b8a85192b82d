// A step is skipped when what it was made from, and what it made, are as it left them.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { root } from './process.mjs';

const stampDirectory = join(root, '.ringfence', 'stamps');

/**
 * All files under `path` (a file or a directory, from the project's directory), in a fixed order.
 *
 * @param {string} path
 * @param {RegExp} wanted tested against the path
 * @returns {string[]}
 */
export function filesUnder(path, wanted) {
  const full = join(root, path);
  if (!existsSync(full)) return [];
  const entries = readdirSync(full, { withFileTypes: true });
  return entries
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const inner = `${path}/${entry.name}`;
      if (entry.isDirectory()) return filesUnder(inner, wanted);
      return wanted.test(inner) ? [inner] : [];
    });
}

/**
 * @typedef {object} Step
 * @property {string} name names its stamp
 * @property {readonly string[]} inputs paths from the project's directory
 * @property {readonly string[]} facts versions and settings that matter as well
 * @property {readonly string[]} outputs one of them gone: the step is done again
 */

/**
 * @param {readonly string[]} facts
 * @param {readonly string[]} paths
 */
function digest(facts, paths) {
  const hash = createHash('sha256');
  for (const fact of facts) hash.update(`${fact}\0`);
  for (const path of paths) hash.update(`${path}\0`).update(readFileSync(join(root, path)));
  return hash.digest('hex');
}

/**
 * Does `work` unless the step's inputs and outputs are as after the last time.
 *
 * @param {Step} step
 * @param {() => Promise<void>} work
 */
export async function unlessUnchanged(step, work) {
  const stamp = join(stampDirectory, step.name);
  // Taken before the work: a file that changes meanwhile makes the next run do it again.
  const before = digest(step.facts, step.inputs);
  const after = () => `${before} ${digest([], step.outputs)}\n`;
  const made = step.outputs.every((path) => existsSync(join(root, path)));
  if (made && existsSync(stamp) && readFileSync(stamp, 'utf8') === after()) return;
  rmSync(stamp, { force: true });
  await work();
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, after());
}
