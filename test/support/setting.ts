/** A cache on a loop device with one export: what most tests of the real daemon need. */

import { attachLoop, loopDevice, MIB, sparseFile, temporaryFolder } from './loop.ts';
import {
  type Daemon,
  type DaemonSetup,
  daemonSetup,
  exportUri,
  formatCache,
  startDaemon,
} from './ringfence.ts';
import { type Scope, type Teardown, testScope } from './scope.ts';

/** The name of the export. */
export const EXPORT = 'disk';

/** What can be chosen of a disk. */
export interface DiskOptions {
  readonly cacheBytes?: number;
  readonly segment?: string;
  readonly sizeBytes?: number;
  /** Whether the origin is a file, and not a loop device over one. */
  readonly fileOrigin?: boolean;
  /** Of the export, for example `mode=readonly`. */
  readonly options?: string;
}

/** For tests that are about something else than data. */
export const SMALL: DiskOptions = {
  cacheBytes: 64 * MIB,
  sizeBytes: 16 * MIB,
  fileOrigin: true,
};

/** A formatted cache and an empty origin; everything goes when the test ends. */
export interface Disk {
  readonly scope: Scope;
  /** Where sockets and files are, the test's own too. */
  readonly folder: string;
  /** The cache's loop device, and the file behind it. */
  readonly cache: string;
  readonly cacheFile: string;
  /** What the daemon is given as origin, and the file that holds its data. */
  readonly origin: string;
  readonly originFile: string;
  readonly sizeBytes: number;
  /** How to serve it. */
  readonly setup: DaemonSetup;
}

/** Formats a cache, for one export of an empty origin. */
export async function formatDisk(
  t: Teardown,
  {
    cacheBytes = 96 * MIB,
    segment = '4MiB',
    sizeBytes = 128 * MIB,
    fileOrigin = false,
    options,
  }: DiskOptions = {},
): Promise<Disk> {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const { device: cache, file: cacheFile } = await loopDevice(scope, folder, 'cache', cacheBytes);
  const originFile = sparseFile(folder, 'origin', sizeBytes);
  const origin = fileOrigin ? originFile : (await attachLoop(scope, originFile)).device;
  await formatCache(cache, segment);
  const exports = [{ name: EXPORT, origin, ...(options === undefined ? {} : { options }) }];
  const setup = await daemonSetup({ cache, exports, folder });
  return { scope, folder, cache, cacheFile, origin, originFile, sizeBytes, setup };
}

/** A disk that is served. */
export interface ServedDisk extends Disk {
  readonly daemon: Daemon;
  /** The export's address. */
  readonly uri: string;
}

/** Formats a cache and serves one export of an empty origin, until the test ends. */
export async function serveDisk(t: Teardown, options: DiskOptions = {}): Promise<ServedDisk> {
  const disk = await formatDisk(t, options);
  const daemon = await startDaemon(disk.scope, disk.setup);
  return { ...disk, daemon, uri: exportUri(disk.setup, EXPORT) };
}
