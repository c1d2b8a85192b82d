// What the test runners say, counted. A test that was skipped has not passed: it is named, and
// counts as failed.

/**
 * @typedef {object} Results
 * @property {number} passed
 * @property {number} failed skipped ones included
 * @property {string[]} skipped names
 */

/**
 * Counts what `cargo test` printed.
 *
 * @param {string} text standard output and error
 * @param {number} status exit status
 * @returns {Results}
 */
export function cargoResults(text, status) {
  let passed = 0;
  let failed = 0;
  for (const match of text.matchAll(/^test result: .*? (\d+) passed; (\d+) failed;/gm)) {
    passed += Number(match[1]);
    failed += Number(match[2]);
  }
  // A program that aborts says nothing of its tests; only cargo says that it failed.
  const targets = text.match(/^error: (?:doc)?test failed, to rerun pass/gm)?.length ?? 0;
  const told = text.match(/^test result: FAILED/gm)?.length ?? 0;
  failed += Math.max(0, targets - told);
  // `ignore` code blocks of the documentation are listed like tests; they are not.
  const ignored = [...text.matchAll(/^test (.+?) \.\.\. ignored/gm)].map((match) => `${match[1]}`);
  const skipped = ignored.filter((name) => !name.includes(' (line '));
  return withStatus({ passed, failed: failed + skipped.length, skipped }, status);
}

/**
 * Counts what ava printed with `--tap`.
 *
 * @param {string} text standard output
 * @param {number} status exit status
 * @returns {Results}
 */
export function tapResults(text, status) {
  let passed = 0;
  let failed = 0;
  const skipped = [];
  for (const match of text.matchAll(/^(not )?ok \d+ - (.*)$/gm)) {
    const [, not, description = ''] = match;
    const directive = /^(.*?) # (?:SKIP|TODO)\b/i.exec(description);
    if (directive) skipped.push(directive[1] ?? description);
    if (not === undefined && !directive) passed += 1;
    else failed += 1;
  }
  // The plan comes last: without it the runner broke off, and what it did not say is a failure.
  if (!/^1\.\.\d+$/m.test(text)) failed += 1;
  return withStatus({ passed, failed, skipped }, status);
}

/**
 * A runner that fails without naming a test (it does not compile, it crashed, it found none) is
 * one failure; so is one that succeeds at nothing.
 *
 * @param {Results} results
 * @param {number} status
 * @returns {Results}
 */
function withStatus(results, status) {
  const silent = results.failed === 0 && (status !== 0 || results.passed === 0);
  return silent ? { ...results, failed: 1 } : results;
}
