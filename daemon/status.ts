/** What `status --json` says: the shape is fixed, byte counts are integers. */

import { type Snapshot, segmentCounts } from '../metrics/counters.ts';
import { type Address, formatAddress } from './addresses.ts';
import type { Config } from './config.ts';
import type { Mode, Order } from './exports.ts';
import type { Guard, NativeOpened } from './native.ts';

/** An export and how far its origin is behind. */
export interface ExportStatus {
  readonly name: string;
  readonly size_bytes: number;
  readonly mode: Mode;
  readonly order: Order;
  readonly dirty_bytes: number;
  readonly cached_bytes: number;
  readonly origin: {
    readonly uri: string;
    /** `damaged`: it answers, but destaging stands still before damaged data. */
    readonly state: 'up' | 'down' | 'damaged';
  };
}

/** The whole status. */
export interface Status {
  readonly cache: {
    readonly path: string;
    readonly uuid: string;
    readonly size_bytes: number;
    readonly used_bytes: number;
    /** What the origins of exports lack that the cache knows but does not serve now. */
    readonly unserved_dirty_bytes: number;
    readonly segment_bytes: number;
    readonly segments: {
      readonly free: number;
      readonly used: number;
      readonly reclaiming: number;
    };
    /** Whether the device failed: writes and flushes give EIO until a restart. */
    readonly latched: boolean;
    /** Exports at a time, those included that are known but not served. */
    readonly exports_max: number;
    readonly recovered_records: number;
    readonly recovery_ms: number;
  };
  readonly reserve: {
    readonly size_bytes: number;
    readonly used_bytes: number;
    /** Clients at a time: each has its windows in the `receive` pool. */
    readonly connections_max: number;
    readonly pools: Readonly<
      Record<
        string,
        { readonly size_bytes: number; readonly used_bytes: number; readonly waits: number }
      >
    >;
    /** Allocations by the ring thread since it started to serve. */
    readonly ring_allocations: number;
  };
  readonly index: {
    /** Memory of all tables beside the reserve: index, checksums, admission. */
    readonly size_bytes: number;
    /** Leaves of 4 KiB, each for 512 neighbouring blocks. */
    readonly leaves: number;
    readonly leaves_used: number;
  };
  readonly guards: Readonly<
    Record<string, { readonly up: boolean; readonly advice: string | null }>
  >;
  readonly exports: readonly ExportStatus[];
  /** Where clients connect to, as bound. */
  readonly listen: readonly string[];
}

/** Puts the status together from what was configured, found at start, and counted. */
export function buildStatus(
  config: Pick<Config, 'cache' | 'exports' | 'connectionsMax'>,
  opened: NativeOpened,
  snapshot: Snapshot,
  listen: readonly Address[],
): Status {
  const segments = segmentCounts(snapshot);
  return {
    cache: {
      path: config.cache,
      uuid: opened.cacheUuid,
      size_bytes: Number(opened.deviceBytes),
      used_bytes: (segments.used + segments.reclaiming) * Number(opened.segmentBytes),
      unserved_dirty_bytes: unservedDirtyBytes(opened, snapshot),
      segment_bytes: Number(opened.segmentBytes),
      segments,
      latched: snapshot.engine('latched') !== 0n,
      exports_max: snapshot.layout.exportsMax,
      recovered_records: Number(opened.recoveredRecords),
      recovery_ms: opened.recoveryMs,
    },
    reserve: reserveStatus(snapshot, config.connectionsMax),
    index: {
      size_bytes: Number(snapshot.engine('tablesBytes')),
      leaves: Number(snapshot.engine('leavesTotal')),
      leaves_used: Number(snapshot.engine('leavesUsed')),
    },
    guards: guardStatus(opened.guards),
    exports: opened.exports.map((found) => {
      const given = config.exports.find(({ name }) => name === found.name);
      if (given === undefined) throw new Error(`an export that nobody configured: ${found.name}`);
      return {
        name: found.name,
        size_bytes: Number(found.sizeBytes),
        mode: given.mode,
        order: given.order,
        dirty_bytes: Number(snapshot.ofExport(found.slot, 'dirtyBytes')),
        cached_bytes: Number(snapshot.ofExport(found.slot, 'cachedBytes')),
        origin: { uri: given.origin, state: originState(snapshot, found.slot) },
      };
    }),
    listen: listen.map(formatAddress),
  };
}

/** Dirty data outlives the configuration of its export; `doctor --cache` names the export. */
function unservedDirtyBytes({ exports }: NativeOpened, snapshot: Snapshot): number {
  const served = new Set(exports.map(({ slot }) => slot));
  let bytes = 0n;
  for (let slot = 0; slot < snapshot.layout.exportsMax; slot += 1) {
    if (!served.has(slot)) bytes += snapshot.ofExport(slot, 'dirtyBytes');
  }
  return Number(bytes);
}

/** Guards by their measure. */
function guardStatus(guards: readonly Guard[]): Status['guards'] {
  return Object.fromEntries(guards.map(({ measure, up, advice }) => [measure, { up, advice }]));
}

function reserveStatus(snapshot: Snapshot, connectionsMax: number): Status['reserve'] {
  const pools = Object.fromEntries(
    snapshot.layout.pools.map((name) => {
      const { sizeBytes, usedBytes, waits } = snapshot.pool(name);
      const sizes = { size_bytes: Number(sizeBytes), used_bytes: Number(usedBytes) };
      return [name, { ...sizes, waits: Number(waits) }];
    }),
  );
  const all = Object.values(pools);
  return {
    size_bytes: all.reduce((sum, pool) => sum + pool.size_bytes, 0),
    used_bytes: all.reduce((sum, pool) => sum + pool.used_bytes, 0),
    connections_max: connectionsMax,
    pools,
    ring_allocations: Number(snapshot.engine('ringAllocations')),
  };
}

function originState(snapshot: Snapshot, slot: number): ExportStatus['origin']['state'] {
  if (snapshot.ofExport(slot, 'originUp') === 0n) return 'down';
  return snapshot.ofExport(slot, 'damaged') === 0n ? 'up' : 'damaged';
}
