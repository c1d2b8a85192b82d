/** A native module without a ring: it records what it is asked and says what a test wants heard. */

import type {
  CacheDescription,
  CheckReport,
  CounterLayout,
  Guard,
  Native,
  NativeEngine,
  NativeEvent,
  NativeOpenOptions,
} from '../../daemon/native.ts';

/** The real names, with few enough buckets to check by hand. */
export const LAYOUT: CounterLayout = {
  engine: [
    'deviceWrittenBytes',
    'deviceReadBytes',
    'deviceFlushes',
    'segmentsFree',
    'segmentsUsed',
    'segmentsReclaiming',
    'summaryErrors',
    'latched',
    'leavesUsed',
    'leavesTotal',
    'tablesBytes',
    'tierHits',
    'ringAllocations',
    'ringPageFaults',
    'ringTurns',
    'ringSystemCalls',
    'ringSleeps',
    'ringYields',
    'ringSpinHits',
    'ringSpinMisses',
  ],
  exportNames: [
    'hitBytes',
    'missBytes',
    'cachedBytes',
    'dirtyBytes',
    'oldestDirtyNs',
    'destagedBytes',
    'originUp',
    'originLate',
    'checksumErrorsClean',
    'checksumErrorsDirty',
    'damaged',
    'connections',
  ],
  exportsMax: 4,
  operations: ['read', 'write', 'flush', 'trim', 'write_zeroes'],
  durationBucketsNs: [1_000n, 1_000_000n],
  originOperations: ['read', 'write', 'write_zeroes', 'flush'],
  pools: ['receive', 'log'],
};

const OPERATION_LENGTH = 4 + LAYOUT.durationBucketsNs.length + 1;

/** Where values lie, worked out apart from the code under test. */
export const PLACES = {
  engine: (name: string) => LAYOUT.engine.indexOf(name),
  ofExport: (slot: number, name: string) =>
    LAYOUT.engine.length + slot * LAYOUT.exportNames.length + LAYOUT.exportNames.indexOf(name),
  operation: (slot: number, operation: string) =>
    LAYOUT.engine.length +
    LAYOUT.exportsMax * LAYOUT.exportNames.length +
    (slot * LAYOUT.operations.length + LAYOUT.operations.indexOf(operation)) * OPERATION_LENGTH,
  origin: (slot: number, operation: string) =>
    PLACES.operation(LAYOUT.exportsMax, 'read') +
    (slot * LAYOUT.originOperations.length + LAYOUT.originOperations.indexOf(operation)) *
      OPERATION_LENGTH,
  pool: (name: string) => PLACES.origin(LAYOUT.exportsMax, 'read') + LAYOUT.pools.indexOf(name) * 3,
  total: () => PLACES.pool('receive') + LAYOUT.pools.length * 3,
};

/** One call of the engine, with its arguments. */
export type Call = readonly [name: string, ...values: unknown[]];

/** What tests turn and look at. */
export interface FakeNative extends Native {
  readonly calls: Call[];
  readonly counterValues: BigUint64Array;
  /** Makes events heard. */
  emit(...events: readonly NativeEvent[]): void;
  /** The options of the last `open`. */
  opened(): NativeOpenOptions | null;
  guards: Guard[];
  description: CacheDescription | null;
  /** What `check` finds. */
  checked: CheckReport;
  /** Thrown by the next call of that name. */
  readonly failures: Map<string, Error>;
  /** What `shutdown` waits for. */
  shutdownGate: Promise<void>;
  /** What `open` waits for. */
  openGate: Promise<void>;
}

/** A cache on a device, without exports. */
export const DESCRIPTION: CacheDescription = {
  uuid: '01234567-89ab-cdef-0123-456789abcdef',
  formatVersion: 1,
  deviceBytes: 64n << 20n,
  segmentBytes: 4n << 20n,
  segments: 15,
  incarnation: 3n,
  exports: [],
};

/** What a check of it finds: nothing. */
export const CHECKED: CheckReport = {
  clean: true,
  uuid: DESCRIPTION.uuid,
  formatVersion: 1,
  deviceBytes: DESCRIPTION.deviceBytes,
  segmentBytes: DESCRIPTION.segmentBytes,
  segments: 15n,
  incarnation: 3n,
  superblocks: [
    { offsetBytes: 0n, state: 'intact' },
    { offsetBytes: 65_536n, state: 'intact' },
  ],
  exportTables: [
    { offsetBytes: 131_072n, state: 'intact' },
    { offsetBytes: 196_608n, state: 'intact' },
  ],
  log: {
    tail: 1n,
    durable: 8n,
    nextSequence: 11n,
    records: 10n,
    payloadBlocks: 64n,
    segmentsUsed: 2n,
    segmentsWalked: 1n,
    segmentsLeft: 0n,
    recordsDropped: 0n,
  },
  exports: [],
  findings: [],
};

/** Makes one. */
export function createFakeNative(): FakeNative {
  const queue: NativeEvent[] = [];
  let ring: () => void = () => undefined;
  let openedWith: NativeOpenOptions | null = null;

  function call(name: string, ...values: readonly unknown[]): void {
    native.calls.push([name, ...values]);
    const failure = native.failures.get(name);
    native.failures.delete(name);
    if (failure !== undefined) throw failure;
  }

  const native: FakeNative = {
    calls: [],
    counterValues: new BigUint64Array(PLACES.total()),
    failures: new Map(),
    guards: [{ measure: 'memory_locked', up: true, advice: null }],
    description: DESCRIPTION,
    checked: CHECKED,
    shutdownGate: Promise.resolve(),
    openGate: Promise.resolve(),
    emit: (...events) => {
      queue.push(...events);
      ring();
    },
    opened: () => openedWith,
    counterLayout: () => LAYOUT,
    probe: (reserveBytes, indexBytes) => {
      call('probe', reserveBytes, indexBytes);
      return native.guards;
    },
    check: async (path) => {
      call('check', path);
      return native.checked;
    },
    describe: async (path) => {
      call('describe', path);
      return native.description;
    },
    format: async (path, segmentBytes) => {
      call('format', path, segmentBytes);
      return { ...DESCRIPTION, segmentBytes };
    },
    connectNbd: async (address) => {
      call('connectNbd', address);
      throw new Error(`${address} cannot be reached: nobody is there`);
    },
    attachNbd: async (_link, options) => {
      call('attachNbd', options);
      throw new Error('there is no nbd driver here');
    },
    detachNbd: async (index) => call('detachNbd', index),
    open: async (options, bell) => {
      openedWith = options;
      call('open', options);
      await native.openGate;
      ring = bell;
      return createEngine(native, options, queue, call);
    },
  };
  return native;
}

function createEngine(
  native: FakeNative,
  options: NativeOpenOptions,
  queue: NativeEvent[],
  call: (name: string, ...values: readonly unknown[]) => void,
): NativeEngine {
  const exports = options.exports.map(({ name }, slot) => ({
    slot,
    name,
    sizeBytes: 1n << 30n,
    originIdentity: `fake origin ${slot}`,
    known: false,
  }));
  let listeners = 0;
  return {
    opened: {
      cacheUuid: DESCRIPTION.uuid,
      deviceBytes: DESCRIPTION.deviceBytes,
      segmentBytes: DESCRIPTION.segmentBytes,
      segments: DESCRIPTION.segments,
      recoveredRecords: 7n,
      recoveryMs: 12,
      lostRecords: null,
      exports,
      guards: native.guards,
    },
    listen: (address) => {
      call('listen', address);
      listeners += 1;
      return { listener: listeners - 1, address: address.replace(/:0$/, ':10809') };
    },
    receive: (...values) => call('receive', ...values),
    send: (...values) => call('send', ...values),
    beginTransmission: (...values) => call('beginTransmission', ...values),
    close: (...values) => call('close', ...values),
    control: (...values) => call('control', ...values),
    drainEvents: () => queue.splice(0),
    counters: (into) => {
      call('counters');
      into.set(native.counterValues);
    },
    shutdown: async () => {
      call('shutdown');
      await native.shutdownGate;
    },
  };
}
