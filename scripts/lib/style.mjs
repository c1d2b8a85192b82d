// The house rules that no formatter keeps: how long a file and a line may be.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { output, root } from './process.mjs';

const FILE_LINES_MAX = 800;
const LINE_COLUMNS_MAX = 100;
/** An address, and a line that is one text: to be found, they stay in one piece. */
const UNBROKEN = /:\/\/|^\s*(\w+: )?(["'`]).*\2,?$/;

/**
 * What is wrong with a source file, one line each, beginning with `path:line`.
 *
 * @param {string} path named in the findings
 * @param {string} text
 * @returns {string[]}
 */
export function styleFindings(path, text) {
  const lines = text.split('\n');
  const findings = lines.flatMap((line, index) => {
    if ([...line].length <= LINE_COLUMNS_MAX || UNBROKEN.test(line)) return [];
    return [`${path}:${index + 1}: longer than ${LINE_COLUMNS_MAX} columns`];
  });
  if (lines.length > FILE_LINES_MAX + 1) {
    findings.push(`${path}:${lines.length - 1}: longer than ${FILE_LINES_MAX} lines`);
  }
  return findings;
}

/**
 * The findings in all sources that git knows or would add.
 *
 * @returns {string[]}
 */
export function checkStyle() {
  const listed = output('git', [
    'ls-files',
    '--cached',
    '--others',
    '--exclude-standard',
    '--deduplicate',
  ]);
  if (listed === null) return ['git is missing, or this is no clone: the sources cannot be listed'];
  return listed
    .split('\n')
    .filter((path) => /\.(rs|ts|mjs|cjs)$/.test(path) && existsSync(join(root, path)))
    .flatMap((path) => styleFindings(path, readFileSync(join(root, path), 'utf8')));
}
