// The main job on an embedded default: makes everything ready, makes an origin and a cache device
// where there are none, and serves them until Ctrl-C. The next start finds the data of this one.
//
//   npm start                     further arguments go to `ringfence serve`:
//   npm start -- --metrics 127.0.0.1:9999
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { join, relative } from 'node:path';
import process from 'node:process';
import { defaultsBeside, demoDevices } from './lib/demo.mjs';
import { Refusal, root, run, runAsScript } from './lib/process.mjs';
import { setup } from './setup.mjs';

const DIRECTORY = join(root, '.ringfence', 'demo');
const COMMAND = join(root, 'bin', 'ringfence');

/** @param {string} path as a person in the project's directory would write it */
const shown = (path) => relative(root, path);

/**
 * Formats the cache device unless it holds a cache already.
 *
 * @param {string} path
 */
async function formatOnce(path) {
  const { describe } = createRequire(import.meta.url)('../crates/uring/binding.cjs');
  try {
    if ((await describe(path)) !== null) return false;
  } catch (error) {
    throw new Refusal(error instanceof Error ? error.message : String(error));
  }
  const result = await run(process.execPath, [COMMAND, 'format', path, '--yes'], { quiet: true });
  if (result.status !== 0) throw new Refusal(result.text.trim());
  return true;
}

/**
 * Runs the daemon until it ends, and passes on what asks it to.
 *
 * @param {readonly string[]} parameters
 * @returns {Promise<number>} its exit status
 */
function serve(parameters) {
  return new Promise((resolve, reject) => {
    // A process group of its own: a Ctrl-C reaches it once, from here, and not from the terminal
    // and from npm as well.
    const child = spawn(process.execPath, [COMMAND, 'serve', ...parameters], {
      stdio: ['ignore', 'inherit', 'inherit'],
      detached: true,
    });
    let asked = false;
    for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
      process.on(signal, () => {
        if (!asked) child.kill('SIGTERM');
        asked = true;
      });
    }
    child.on('error', reject);
    child.on('close', (status, signal) => {
      if (signal !== null) process.stderr.write(`ringfence was ended by ${signal}\n`);
      resolve(status ?? 1);
    });
  });
}

/** @param {readonly string[]} further */
async function start(further) {
  await setup();
  const { origin, cache } = demoDevices(DIRECTORY);
  const fresh = await formatOnce(cache.path);
  try {
    const lines = [
      `origin: ${shown(origin)}`,
      `cache:  ${cache.words.replace(root, '')}${fresh ? ', freshly formatted' : ''}`,
      fresh ? '' : 'The data of the last run is still there.\n',
    ];
    process.stdout.write(`${lines.join('\n')}\n`);
    const demo = ['--cache', cache.path, '--export', `demo=${origin}`];
    return await serve([...demo, ...defaultsBeside(further), ...further]);
  } finally {
    cache.detach();
  }
}

await runAsScript(import.meta.url, start);
