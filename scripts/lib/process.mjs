// Running other programs: one way to do it, with output shown, kept or both.
import { spawn, spawnSync } from 'node:child_process';
import { createWriteStream, existsSync, realpathSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

/** The project's directory. */
export const root = fileURLToPath(new URL('../..', import.meta.url));

/**
 * A failure whose message is the whole story: printed without a stack.
 */
export class Refusal extends Error {}

/**
 * What `program` prints with `parameters`, or null when there is no such program or it fails.
 *
 * @param {string} program
 * @param {readonly string[]} parameters
 * @returns {string | null}
 */
export function output(program, parameters) {
  const result = spawnSync(program, parameters, { cwd: root, encoding: 'utf8' });
  return result.status === 0 ? result.stdout.trim() : null;
}

/**
 * @typedef {object} RunOptions
 * @property {NodeJS.ProcessEnv} [env] added to the environment
 * @property {boolean} [quiet] keep the output, do not show it
 * @property {string} [log] path of a file that gets the output too
 *
 * @typedef {object} RunResult
 * @property {number} status exit status; 1 when a signal ended it or it could not be started
 * @property {string} stdout
 * @property {string} text standard output and error, as they came
 */

/**
 * Runs a program in the project's directory and waits for its end. Never throws for a failure.
 *
 * @param {string} program
 * @param {readonly string[]} parameters
 * @param {RunOptions} [options]
 * @returns {Promise<RunResult>}
 */
export function run(program, parameters, options = {}) {
  const { env = {}, quiet = false, log } = options;
  return new Promise((resolve) => {
    const file = log === undefined ? null : createWriteStream(log, { flags: 'a' });
    const child = spawn(program, parameters, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let text = '';
    /** @param {NodeJS.WriteStream} show @param {string} chunk */
    const take = (show, chunk) => {
      text += chunk;
      file?.write(chunk);
      if (!quiet) show.write(chunk);
    };
    child.stdout.setEncoding('utf8').on('data', (/** @type {string} */ chunk) => {
      stdout += chunk;
      take(process.stdout, chunk);
    });
    child.stderr.setEncoding('utf8').on('data', (/** @type {string} */ chunk) => {
      take(process.stderr, chunk);
    });
    child.on('error', (error) => {
      take(process.stderr, `${program} cannot be started: ${error.message}\n`);
      resolve({ status: 1, stdout, text });
    });
    child.on('close', (code) => {
      file?.end();
      resolve({ status: code ?? 1, stdout, text });
    });
  });
}

/**
 * The programs of rustup stand in a directory that a shell knows only after its next start.
 */
export function findCargo() {
  const directory = join(homedir(), '.cargo', 'bin');
  if (output('cargo', ['--version']) === null && existsSync(join(directory, 'cargo'))) {
    process.env['PATH'] = `${directory}${delimiter}${process.env['PATH'] ?? ''}`;
  }
}

/**
 * Runs a script's main function when the script itself was started, not imported.
 *
 * @param {string} moduleUrl `import.meta.url` of the script
 * @param {(parameters: string[]) => Promise<number>} main gives the exit status
 */
export async function runAsScript(moduleUrl, main) {
  if (process.argv[1] === undefined || fileURLToPath(moduleUrl) !== realpathSync(process.argv[1]))
    return;
  try {
    process.exitCode = await main(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  }
}
