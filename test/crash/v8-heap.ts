/**
 * Loaded into the daemon by `NODE_OPTIONS=--import`: on SIGUSR2 it collects garbage and says how
 * much memory V8's heap has in use by then. The daemon itself has no such hook.
 */

import { writeSync } from 'node:fs';
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

process.on('SIGUSR2', () => {
  collectGarbage();
  // What V8 has taken from the kernel, but not what it has never touched of that.
  writeSync(2, `v8 heap: ${getHeapStatistics().total_physical_size} bytes\n`);
});
