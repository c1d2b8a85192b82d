// Formatting, lints, types and the drift of the generated ones. Fast enough to run often.
//
//   npm run check
//   npm run check -- --accept-types     takes over the generated types, to be committed
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { findCargo, root, run, runAsScript } from './lib/process.mjs';
import { checkStyle } from './lib/style.mjs';

const TYPES = 'crates/uring/binding.d.cts';
const BINDING_FEATURE = ['--features', 'ringfence-uring/napi'];

/**
 * @typedef {object} Check
 * @property {string} name
 * @property {() => Promise<string | null>} failure what is wrong, null when all is well
 */

/**
 * A check that is a program's success.
 *
 * @param {string} name
 * @param {string} program
 * @param {readonly string[]} parameters
 * @returns {Check}
 */
function program(name, program, parameters) {
  return {
    name,
    failure: async () => {
      const result = await run(program, parameters, { quiet: true });
      return result.status === 0 ? null : result.text;
    },
  };
}

/**
 * A check with a program of the npm packages.
 *
 * @param {string} name
 * @param {string} command
 * @param {readonly string[]} parameters
 */
function tool(name, command, parameters) {
  return program(name, join('node_modules', '.bin', command), parameters);
}

/**
 * The types come out of macro expansion, and a cached build expands nothing: they are generated
 * anew, beside the committed ones, and compared. Only the addon's own profile is touched: in that
 * of the tests, everything that depends on the addon would be compiled once more.
 */
async function bindingDrift() {
  const directory = mkdtempSync(join(tmpdir(), 'ringfence-types-'));
  try {
    const parameters = ['check', '--release', '--locked', '--lib', '--quiet'];
    parameters.push('--package', 'ringfence-uring', '--features', 'napi');
    const result = await run('cargo', parameters, {
      quiet: true,
      // Where the macros write; a folder that no build has had makes them expand.
      env: { NAPI_TYPE_DEF_TMP_FOLDER: directory },
    });
    if (result.status !== 0) return result.text;
    // Not before it is needed: `npm test` installs it.
    const { generateTypeDef } = await import('@napi-rs/cli');
    const { dts } = await generateTypeDef({ typeDefDir: directory, constEnum: false, cwd: root });
    if (dts === readFileSync(join(root, TYPES), 'utf8')) return null;
    if (process.argv.includes('--accept-types')) {
      writeFileSync(join(root, TYPES), dts);
      return null;
    }
    const fresh = join(directory, 'binding.d.cts');
    writeFileSync(fresh, dts);
    const difference = await run('diff', ['-u', TYPES, fresh], { quiet: true });
    return `${difference.text}\n${TYPES} is not what the Rust sources say: see --accept-types.`;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** @type {readonly Check[]} */
const checks = [
  tool('biome', 'biome', ['check', '--error-on-warnings', '.']),
  tool('types', 'tsc', ['--project', '.', '--noEmit']),
  tool('types of scripts', 'tsc', ['--project', 'scripts']),
  {
    name: 'style',
    failure: async () => {
      const findings = checkStyle();
      return findings.length === 0 ? null : findings.join('\n');
    },
  },
  program('rustfmt', 'cargo', ['fmt', '--all', '--check']),
  program('clippy', 'cargo', [
    ...['clippy', '--workspace', '--all-targets', '--locked', '--quiet', ...BINDING_FEATURE],
    ...['--', '--deny', 'warnings'],
  ]),
  { name: 'binding types', failure: bindingDrift },
];

/**
 * Runs all checks, prints a line for each and what is wrong where something is.
 *
 * @returns {Promise<{ passed: number, failed: number }>}
 */
export async function check() {
  findCargo();
  let passed = 0;
  for (const { name, failure } of checks) {
    const startMs = performance.now();
    const wrong = await failure();
    const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
    process.stdout.write(`  ${wrong === null ? 'ok' : 'FAILED'}: ${name}, ${seconds} s\n`);
    if (wrong !== null) process.stdout.write(`${wrong}\n`);
    if (wrong === null) passed += 1;
  }
  return { passed, failed: checks.length - passed };
}

await runAsScript(import.meta.url, async () => ((await check()).failed === 0 ? 0 : 1));
