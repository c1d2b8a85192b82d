/** One export on loop devices, as most foreign clients meet it. */

import { type LoopDevice, loopDevice, MIB, temporaryFolder } from '../support/loop.ts';
import {
  type Daemon,
  daemonSetup,
  exportUri,
  formatCache,
  startDaemon,
} from '../support/ringfence.ts';
import { type Teardown, testScope } from '../support/scope.ts';

/** What a test of a foreign client has at hand. */
export interface Setting {
  readonly daemon: Daemon;
  /** A folder for the client's own files. */
  readonly folder: string;
  readonly origin: LoopDevice;
  readonly sizeBytes: number;
  /** The export's address. */
  readonly uri: string;
}

/** The name of the export. */
export const EXPORT = 'disk';

/** Formats a cache and serves one export of an empty origin, until the test ends. */
export async function serveDisk(
  t: Teardown,
  {
    cacheBytes = 96 * MIB,
    sizeBytes = 128 * MIB,
    options = null,
  }: {
    readonly cacheBytes?: number;
    readonly sizeBytes?: number;
    readonly options?: string | null;
  } = {},
): Promise<Setting> {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const cache = await loopDevice(scope, folder, 'cache', cacheBytes);
  const origin = await loopDevice(scope, folder, 'origin', sizeBytes);
  await formatCache(cache.device);
  const setup = await daemonSetup({
    cache: cache.device,
    exports: [{ name: EXPORT, origin: origin.device, ...(options === null ? {} : { options }) }],
    folder,
  });
  const daemon = await startDaemon(scope, setup);
  return { daemon, folder, origin, sizeBytes, uri: exportUri(setup, EXPORT) };
}
