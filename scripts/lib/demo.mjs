// The embedded default: an image file as the origin, and a cache device of our own making.
import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { output } from './process.mjs';

const ORIGIN_BYTES = 1024 ** 3;
/** Written once with zeroes by format, so no larger than what shows the cache at work. */
const CACHE_BYTES = 1024 ** 3;

/**
 * @typedef {object} CacheDevice
 * @property {string} path what `serve --cache` gets
 * @property {string} words what it is, for people
 * @property {() => void} detach undoes what was attached
 */

/**
 * Makes a sparse file unless there is one.
 *
 * @param {string} path
 * @param {number} bytes
 */
function sparseFile(path, bytes) {
  if (existsSync(path)) return;
  const file = openSync(path, 'wx', 0o600);
  ftruncateSync(file, bytes);
  closeSync(file);
}

/**
 * A loop device over `file`: the one that an earlier run was killed with, or a new one; null where
 * loop devices are not permitted.
 *
 * @param {string} file
 */
function loopDevice(file) {
  if (process.getuid?.() !== 0) return null;
  const attached = output('losetup', ['--noheadings', '--output', 'NAME', '--associated', file]);
  const first = attached?.split('\n')[0]?.trim();
  if (first !== undefined && first !== '') return first;
  return output('losetup', ['--find', '--show', '--direct-io=on', file]);
}

/**
 * The origin and the cache device in `directory`, made on the first run and found on every other.
 *
 * @param {string} directory
 * @returns {{ origin: string, cache: CacheDevice }}
 */
export function demoDevices(directory) {
  mkdirSync(directory, { recursive: true });
  const origin = join(directory, 'origin.img');
  const file = join(directory, 'cache.img');
  sparseFile(origin, ORIGIN_BYTES);
  sparseFile(file, CACHE_BYTES);
  const loop = loopDevice(file);
  if (loop === null) {
    const words = `${file}, a plain file opened O_DIRECT: loop devices are not permitted here`;
    return { origin, cache: { path: file, words, detach: () => {} } };
  }
  const detach = () => {
    if (output('losetup', ['--detach', loop]) !== null || output('losetup', [loop]) === null)
      return;
    process.stderr.write(`${loop} could not be detached: try \`losetup --detach ${loop}\`.\n`);
  };
  return { origin, cache: { path: loop, words: `${loop}, a loop device over ${file}`, detach } };
}

const DEFAULTS = { '--listen': '127.0.0.1:10809', '--metrics': '127.0.0.1:9809' };

/**
 * The options of `serve` that nobody has given. With a configuration file none is added: what
 * stands on the command line would count more than what stands there.
 *
 * @param {readonly string[]} given
 */
export function defaultsBeside(given) {
  const names = given.map((one) => one.split('=', 1)[0]);
  if (names.includes('--config')) return [];
  return Object.entries(DEFAULTS).flatMap(([option, value]) =>
    names.includes(option) ? [] : [option, value],
  );
}
