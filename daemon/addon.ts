/** Loads the native module: late, so that `--help` and a wrong option need no build. */

import { createRequire } from 'node:module';
import { reasonOf, ringfenceError } from './errors.ts';
import type { Native } from './native.ts';

/**
 * The native module.
 *
 * @throws `RF_NATIVE_MISSING` where it was not built, or for another system
 */
export function loadNative(): Native {
  const require = createRequire(import.meta.url);
  try {
    return require('#binding') as Native;
  } catch (error) {
    throw ringfenceError('RF_NATIVE_MISSING', [reasonOf(error)], error);
  }
}
