/**
 * The native counters, copied once and read by name.
 *
 * `CounterLayout` says where each value lies in the copy: the engine's, a group per export, then
 * per export and operation, the same for requests to origins, and the pools of the reserve.
 */

import { ringfenceError } from '../daemon/errors.ts';
import type { CounterLayout, NativeEngine } from '../daemon/native.ts';

/** What is counted of one kind of request. */
export interface OperationCounters {
  readonly requests: bigint;
  readonly bytes: bigint;
  readonly errors: bigint;
  readonly durationNs: bigint;
  /** Requests per bucket, not cumulative; one more than there are bounds. */
  readonly buckets: readonly bigint[];
}

/** What is counted of one pool of the reserve. */
export interface PoolCounters {
  readonly sizeBytes: bigint;
  readonly usedBytes: bigint;
  readonly waits: bigint;
}

/** All counters as they were at one moment. */
export interface Snapshot {
  readonly layout: CounterLayout;
  /** @throws `RF_NATIVE_MISMATCH` for a name that the native side does not know */
  engine(name: string): bigint;
  /** @throws `RF_NATIVE_MISMATCH` for a name that the native side does not know */
  ofExport(slot: number, name: string): bigint;
  operation(slot: number, operation: string): OperationCounters;
  originOperation(slot: number, operation: string): OperationCounters;
  pool(name: string): PoolCounters;
}

/** Values per operation before its buckets: requests, bytes, errors, duration. */
const OPERATION_VALUES = 4;
/** Values per pool: bytes in all, bytes in use, waits. */
const POOL_VALUES = 3;

/** Where the groups of a layout start, in values. */
interface Offsets {
  readonly exports: number;
  readonly operationLength: number;
  readonly operations: number;
  readonly origins: number;
  readonly pools: number;
  readonly total: number;
}

function offsetsOf(layout: CounterLayout): Offsets {
  const operationLength = OPERATION_VALUES + layout.durationBucketsNs.length + 1;
  const exports = layout.engine.length;
  const operations = exports + layout.exportsMax * layout.exportNames.length;
  const origins = operations + layout.exportsMax * layout.operations.length * operationLength;
  const pools = origins + layout.exportsMax * layout.originOperations.length * operationLength;
  const total = pools + layout.pools.length * POOL_VALUES;
  return { exports, operationLength, operations, origins, pools, total };
}

/** How many values the native side copies. */
export function counterCount(layout: CounterLayout): number {
  return offsetsOf(layout).total;
}

/**
 * Copies the counters of an engine. The copy is one call and a few tens of kilobytes; the ring
 * goes on counting meanwhile and is not disturbed.
 */
export function takeSnapshot(
  engine: Pick<NativeEngine, 'counters'>,
  layout: CounterLayout,
): Snapshot {
  const offsets = offsetsOf(layout);
  const values = new BigUint64Array(offsets.total);
  engine.counters(values);
  const at = (index: number): bigint => values[index] ?? 0n;

  function operationAt(start: number): OperationCounters {
    return {
      requests: at(start),
      bytes: at(start + 1),
      errors: at(start + 2),
      durationNs: at(start + 3),
      buckets: [...values.subarray(start + OPERATION_VALUES, start + offsets.operationLength)],
    };
  }

  function operationOf(base: number, names: readonly string[], slot: number, name: string) {
    const index = slot * names.length + indexOf(names, name);
    return operationAt(base + index * offsets.operationLength);
  }

  return {
    layout,
    engine: (name) => at(indexOf(layout.engine, name)),
    ofExport: (slot, name) => {
      const group = offsets.exports + slot * layout.exportNames.length;
      return at(group + indexOf(layout.exportNames, name));
    },
    operation: (slot, name) => operationOf(offsets.operations, layout.operations, slot, name),
    originOperation: (slot, name) =>
      operationOf(offsets.origins, layout.originOperations, slot, name),
    pool: (name) => {
      const start = offsets.pools + indexOf(layout.pools, name) * POOL_VALUES;
      return { sizeBytes: at(start), usedBytes: at(start + 1), waits: at(start + 2) };
    },
  };
}

/** Segments by what they are used for; each is counted once. */
export function segmentCounts(snapshot: Snapshot) {
  const reclaiming = Number(snapshot.engine('segmentsReclaiming'));
  // The engine counts a segment that is being reclaimed among those that hold data.
  const used = Math.max(0, Number(snapshot.engine('segmentsUsed')) - reclaiming);
  return { free: Number(snapshot.engine('segmentsFree')), used, reclaiming };
}

function indexOf(names: readonly string[], name: string): number {
  const index = names.indexOf(name);
  if (index < 0) throw ringfenceError('RF_NATIVE_MISMATCH', [name]);
  return index;
}
