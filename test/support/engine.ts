/** How tests open an engine. */

import type { NativeOpenOptions } from '../../daemon/native.ts';

/** What every engine is told, in a small reserve; a test changes what it is about. */
export const ENGINE: Omit<NativeOpenOptions, 'cachePath' | 'exports'> = {
  reserveBytes: 64n << 20n,
  connectionsMax: 8,
  spinUs: 0,
  cpu: null,
  destageHighPercent: 50,
  destageAgeMs: 5_000,
  destageIdleMs: 500,
  acceptLoss: false,
  indexBytes: null,
  memoryTierPercent: 10,
};
