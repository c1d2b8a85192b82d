// Everything that is tested, in stages, each timed; ends with one line `N passed, N failed`.
//
//   npm test                      all stages
//   npm test -- check unit        these stages
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { check } from './check.mjs';
import { installTestPackages } from './lib/packages.mjs';
import { Refusal, root, run, runAsScript } from './lib/process.mjs';
import { cargoResults, tapResults } from './lib/results.mjs';
import { setup } from './setup.mjs';

const LOGS = join(root, 'test-results');
/** Folders of tests that are stages of their own; all others are the unit tests. */
const STAGE_FOLDERS = ['interop', 'crash', 'guest'];

/**
 * @typedef {import('./lib/results.mjs').Results} Results
 *
 * @typedef {object} Stage
 * @property {string} name
 * @property {(log: string) => Promise<Results & { last?: boolean }>} run
 * @property {(log: string) => Promise<unknown>} [early] what can be done beside the build
 */

/**
 * Nothing can be tested before the project builds: a failure here is the last stage.
 *
 * @param {() => void} begin
 */
async function build(begin) {
  try {
    await setup(begin);
    return { passed: 0, failed: 0, skipped: [] };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    process.stdout.write(`${error.message}\n`);
    return { passed: 0, failed: 1, skipped: [], last: true };
  }
}

/** @param {string} log */
async function packages(log) {
  const missing = await installTestPackages(log);
  if (missing === null) return { passed: 0, failed: 0, skipped: [] };
  process.stdout.write(`${missing}\n`);
  return { passed: 0, failed: 1, skipped: [] };
}

const WORKSPACE = ['--workspace', '--features', 'ringfence-uring/napi'];
/** A build of its own: nothing else may have the feature that breaks rules. */
const CANARIES = ['-p', 'ringfence-sim', '--features', 'canary', '--test', 'canaries'];

/**
 * A stage of tests of Rust.
 *
 * @param {string} name
 * @param {readonly string[]} chosen
 * @returns {Stage}
 */
function cargoTests(name, chosen) {
  const parameters = ['test', '--locked', '--no-fail-fast', ...chosen];
  return {
    name,
    // What does not compile is told by the stage itself.
    early: () => run('cargo', [...parameters, '--no-run'], { quiet: true }),
    run: async (log) => {
      const result = await run('cargo', parameters, { quiet: true, log });
      return shown(cargoResults(result.text, result.status), result.text);
    },
  };
}

/**
 * The folders of unit tests, from the compiled tests.
 */
function unitFolders() {
  const entries = readdirSync(join(root, 'dist', 'test'), { withFileTypes: true });
  const names = entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name);
  return names.filter((name) => !STAGE_FOLDERS.includes(name));
}

/**
 * Runs ava on folders of tests.
 *
 * @param {() => readonly string[]} folders
 * @param {readonly string[]} parameters
 * @returns {Stage['run']}
 */
function avaTests(folders, parameters) {
  return async (log) => {
    const patterns = folders().map((name) => `dist/test/${name}/**/*.test.js`);
    const ava = join('node_modules', '.bin', 'ava');
    const result = await run(ava, ['--tap', ...parameters, ...patterns], { quiet: true, log });
    return shown(tapResults(result.stdout, result.status), result.text);
  };
}

/**
 * Shows the output of a runner that failed.
 *
 * @param {Results} results
 * @param {string} text
 */
function shown(results, text) {
  if (results.failed > 0) process.stdout.write(`${text}\n`);
  for (const name of results.skipped) process.stdout.write(`skipped: ${name}\n`);
  return results;
}

// The machine has two cores and the daemons under test want both: one file at a time.
const ALONE = ['--concurrency', '1'];

/** @type {readonly Stage[]} */
const stages = [
  { name: 'packages', early: installTestPackages, run: packages },
  { name: 'check', run: async () => ({ ...(await check()), skipped: [] }) },
  cargoTests('cargo', WORKSPACE),
  cargoTests('canaries', CANARIES),
  { name: 'unit', run: avaTests(unitFolders, []) },
  { name: 'interop', run: avaTests(() => ['interop'], [...ALONE, '--timeout', '10m']) },
  { name: 'crash', run: avaTests(() => ['crash'], [...ALONE, '--timeout', '10m']) },
  { name: 'guest', run: avaTests(() => ['guest'], [...ALONE, '--timeout', '10m']) },
];

/**
 * Sets up, runs stages and prints a line for each.
 *
 * @param {readonly Stage[]} chosen
 */
async function runStages(chosen) {
  /** @param {Stage} stage */
  const logOf = (stage) => join(LOGS, `${stage.name}.log`);
  /** @type {Map<Stage, Promise<unknown>>} */
  const early = new Map();
  const begin = () => {
    for (const stage of chosen) early.set(stage, stage.early?.(logOf(stage)) ?? Promise.resolve());
  };
  /** @type {Stage} */
  const first = { name: 'setup', run: () => build(begin) };
  let passed = 0;
  let failed = 0;
  for (const stage of [first, ...chosen]) {
    process.stdout.write(`== ${stage.name}\n`);
    const startMs = performance.now();
    await early.get(stage);
    const results = await stage.run(logOf(stage));
    const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
    const counts = `${results.passed} passed, ${results.failed} failed`;
    process.stdout.write(`== ${stage.name}: ${counts}, ${seconds} s\n`);
    passed += results.passed;
    failed += results.failed;
    if (results.last) break;
  }
  return { passed, failed };
}

await runAsScript(import.meta.url, async (names) => {
  const known = ['setup', ...stages.map(({ name }) => name)];
  const unknown = names.filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    const [wrong, right] = [unknown.join(', '), known.join(', ')];
    throw new Refusal(`There is no stage ${wrong}: name some of ${right}.`);
  }
  rmSync(LOGS, { recursive: true, force: true });
  mkdirSync(LOGS, { recursive: true });
  const chosen = names.length === 0 ? stages : stages.filter(({ name }) => names.includes(name));
  const { passed, failed } = await runStages(chosen);
  process.stdout.write(`${passed} passed, ${failed} failed\n`);
  return failed === 0 ? 0 : 1;
});
