/** Every metric of the cache: name, meaning, labels, and where its values come from. */

import type { Guard } from '../daemon/native.ts';
import { type OperationCounters, type Snapshot, segmentCounts } from './counters.ts';

/** Labels of a sample. */
export type Labels = Readonly<Record<string, string>>;

/** One value of a metric; of a histogram, one line of its exposition. */
export interface Sample {
  readonly labels: Labels;
  readonly value: number;
  /** With its suffix, for the lines of a histogram. */
  readonly metricName?: string;
}

/** What samples are made from: the counters of one moment, and what was fixed at start. */
export interface MetricSource {
  readonly snapshot: Snapshot;
  readonly exports: readonly { readonly slot: number; readonly name: string }[];
  readonly guards: readonly Guard[];
  readonly recoveryMs: number;
}

/** A metric. */
export interface MetricDefinition {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly labels: readonly string[];
  readonly samples: (source: MetricSource) => readonly Sample[];
}

const NANOSECONDS_PER_SECOND = 1e9;

function seconds(nanoseconds: bigint): number {
  return Number(nanoseconds) / NANOSECONDS_PER_SECOND;
}

/** A value of the whole engine. */
function engineSample(counter: string): MetricDefinition['samples'] {
  return ({ snapshot }) => [{ labels: {}, value: Number(snapshot.engine(counter)) }];
}

/** A value of each export. */
function exportSamples(
  counter: string,
  convert: (value: bigint) => number = Number,
): MetricDefinition['samples'] {
  return ({ snapshot, exports }) =>
    exports.map(({ slot, name }) => ({
      labels: { export: name },
      value: convert(snapshot.ofExport(slot, counter)),
    }));
}

/** Two or more counters of each export under one name, told apart by a label. */
function exportSamplesBy(
  label: string,
  counters: Readonly<Record<string, string>>,
): MetricDefinition['samples'] {
  return ({ snapshot, exports }) =>
    exports.flatMap(({ slot, name }) =>
      Object.entries(counters).map(([value, counter]) => ({
        labels: { export: name, [label]: value },
        value: Number(snapshot.ofExport(slot, counter)),
      })),
    );
}

/** Which side of an export requests are counted on. */
type Side = 'client' | 'origin';

function operationsOf(side: Side, source: MetricSource) {
  const { snapshot, exports } = source;
  const operations =
    side === 'client' ? snapshot.layout.operations : snapshot.layout.originOperations;
  return exports.flatMap(({ slot, name }) =>
    operations.map((op) => ({
      labels: { export: name, op },
      counters:
        side === 'client' ? snapshot.operation(slot, op) : snapshot.originOperation(slot, op),
    })),
  );
}

function operationSamples(
  side: Side,
  field: 'requests' | 'bytes' | 'errors',
): MetricDefinition['samples'] {
  return (source) =>
    operationsOf(side, source).map(({ labels, counters }) => ({
      labels,
      value: Number(counters[field]),
    }));
}

function durationSamples(side: Side, name: string): MetricDefinition['samples'] {
  return (source) =>
    operationsOf(side, source).flatMap(({ labels, counters }) =>
      histogramSamples(name, labels, counters, source.snapshot.layout.durationBucketsNs),
    );
}

/**
 * The lines of one histogram: cumulative buckets up to `+Inf`, sum and count. The count is the
 * last bucket and not the counter of requests, which the ring may have raised in between.
 */
export function histogramSamples(
  name: string,
  labels: Labels,
  counters: Pick<OperationCounters, 'buckets' | 'durationNs'>,
  boundsNs: readonly bigint[],
): readonly Sample[] {
  let cumulative = 0n;
  const samples: Sample[] = counters.buckets.map((count, index) => {
    cumulative += count;
    const bound = boundsNs[index];
    const le = bound === undefined ? '+Inf' : `${seconds(bound)}`;
    return { metricName: `${name}_bucket`, labels: { ...labels, le }, value: Number(cumulative) };
  });
  samples.push({ metricName: `${name}_sum`, labels, value: seconds(counters.durationNs) });
  samples.push({ metricName: `${name}_count`, labels, value: Number(cumulative) });
  return samples;
}

const REQUEST_DURATION = 'ringfence_request_duration_seconds';
const ORIGIN_REQUEST_DURATION = 'ringfence_origin_request_duration_seconds';

const CLIENT_METRICS: readonly MetricDefinition[] = [
  {
    name: 'ringfence_requests_total',
    help: 'Requests of NBD clients that were answered.',
    type: 'counter',
    labels: ['export', 'op'],
    samples: operationSamples('client', 'requests'),
  },
  {
    name: 'ringfence_request_bytes_total',
    help: 'Bytes that those of them covered that did not fail.',
    type: 'counter',
    labels: ['export', 'op'],
    samples: operationSamples('client', 'bytes'),
  },
  {
    name: 'ringfence_request_errors_total',
    help: 'Requests of NBD clients that were answered with an error.',
    type: 'counter',
    labels: ['export', 'op'],
    samples: operationSamples('client', 'errors'),
  },
  {
    name: REQUEST_DURATION,
    help: 'Time from a whole request to its answer.',
    type: 'histogram',
    labels: ['export', 'op'],
    samples: durationSamples('client', REQUEST_DURATION),
  },
  {
    name: 'ringfence_connections',
    help: 'Connections in the transmission phase.',
    type: 'gauge',
    labels: ['export'],
    samples: exportSamples('connections'),
  },
];

const CACHE_METRICS: readonly MetricDefinition[] = [
  {
    name: 'ringfence_cache_read_bytes_total',
    help: 'Bytes of the 4 KiB blocks that reads touched, by whether the cache had them.',
    type: 'counter',
    labels: ['export', 'result'],
    samples: exportSamplesBy('result', { hit: 'hitBytes', miss: 'missBytes' }),
  },
  {
    name: 'ringfence_cached_bytes',
    help: 'Bytes of the export that the cache holds.',
    type: 'gauge',
    labels: ['export'],
    samples: exportSamples('cachedBytes'),
  },
  {
    name: 'ringfence_dirty_bytes',
    help: 'Bytes that the origin lacks, versions overwritten since included.',
    type: 'gauge',
    labels: ['export'],
    samples: exportSamples('dirtyBytes'),
  },
  {
    name: 'ringfence_oldest_dirty_timestamp_seconds',
    help: 'When the oldest data that the origin lacks was written; 0 when it lacks none.',
    type: 'gauge',
    labels: ['export'],
    samples: exportSamples('oldestDirtyNs', seconds),
  },
  {
    name: 'ringfence_destaged_bytes_total',
    help: 'Bytes carried to the origin.',
    type: 'counter',
    labels: ['export'],
    samples: exportSamples('destagedBytes'),
  },
  {
    name: 'ringfence_destage_damaged',
    help: '1 while destaging stands still before damaged data, otherwise 0.',
    type: 'gauge',
    labels: ['export'],
    samples: exportSamples('damaged'),
  },
  {
    name: 'ringfence_checksum_errors_total',
    help: 'Times that a block of the cache device was wrong or could not be read.',
    type: 'counter',
    labels: ['export', 'kind'],
    samples: exportSamplesBy('kind', {
      clean: 'checksumErrorsClean',
      dirty: 'checksumErrorsDirty',
    }),
  },
];

const ORIGIN_METRICS: readonly MetricDefinition[] = [
  {
    name: 'ringfence_origin_up',
    help: '1 while the origin answers, otherwise 0.',
    type: 'gauge',
    labels: ['export'],
    samples: exportSamples('originUp'),
  },
  {
    name: 'ringfence_origin_late_requests',
    help: 'Requests that the origin has not answered within the limit of the export.',
    type: 'gauge',
    labels: ['export'],
    samples: exportSamples('originLate'),
  },
  {
    name: 'ringfence_origin_requests_total',
    help: 'Requests to the origin.',
    type: 'counter',
    labels: ['export', 'op'],
    samples: operationSamples('origin', 'requests'),
  },
  {
    name: 'ringfence_origin_errors_total',
    help: 'Requests that the origin failed.',
    type: 'counter',
    labels: ['export', 'op'],
    samples: operationSamples('origin', 'errors'),
  },
  {
    name: ORIGIN_REQUEST_DURATION,
    help: 'Time that the origin took for a request.',
    type: 'histogram',
    labels: ['export', 'op'],
    samples: durationSamples('origin', ORIGIN_REQUEST_DURATION),
  },
];

const DEVICE_METRICS: readonly MetricDefinition[] = [
  {
    name: 'ringfence_recovery_duration_seconds',
    help: 'How long recovery took when the daemon started.',
    type: 'gauge',
    labels: [],
    samples: ({ recoveryMs }) => [{ labels: {}, value: recoveryMs / 1000 }],
  },
  {
    name: 'ringfence_device_written_bytes_total',
    help: 'Bytes written to the cache device.',
    type: 'counter',
    labels: [],
    samples: engineSample('deviceWrittenBytes'),
  },
  {
    name: 'ringfence_device_read_bytes_total',
    help: 'Bytes read from the cache device.',
    type: 'counter',
    labels: [],
    samples: engineSample('deviceReadBytes'),
  },
  {
    name: 'ringfence_device_flushes_total',
    help: 'Flushes of the cache device.',
    type: 'counter',
    labels: [],
    samples: engineSample('deviceFlushes'),
  },
  {
    name: 'ringfence_segment_read_errors_total',
    help: 'Times that neither the footer nor all record headers of a segment could be read.',
    type: 'counter',
    labels: [],
    samples: engineSample('summaryErrors'),
  },
  {
    name: 'ringfence_device_latched',
    help: '1 after the cache device failed a write or a flush, until a restart; otherwise 0.',
    type: 'gauge',
    labels: [],
    samples: engineSample('latched'),
  },
  {
    name: 'ringfence_segments',
    help: 'Segments of the log by what they are used for.',
    type: 'gauge',
    labels: ['state'],
    samples: ({ snapshot }) =>
      Object.entries(segmentCounts(snapshot)).map(([state, value]) => ({
        labels: { state },
        value,
      })),
  },
];

const RESERVE_METRICS: readonly MetricDefinition[] = [
  {
    name: 'ringfence_memory_tier_hits_total',
    help: 'Blocks of reads that the memory tier had; the cache counts them as hits.',
    type: 'counter',
    labels: [],
    samples: engineSample('tierHits'),
  },
  {
    name: 'ringfence_reserve_bytes',
    help: 'Memory of the reserve by pool and by whether it is in use.',
    type: 'gauge',
    labels: ['pool', 'state'],
    samples: ({ snapshot }) =>
      snapshot.layout.pools.flatMap((pool) => {
        const { sizeBytes, usedBytes } = snapshot.pool(pool);
        return [
          { labels: { pool, state: 'used' }, value: Number(usedBytes) },
          { labels: { pool, state: 'free' }, value: Number(sizeBytes - usedBytes) },
        ];
      }),
  },
  {
    name: 'ringfence_reserve_waits_total',
    help: 'Times that something waited for memory of a pool; of log, for room in log or index, too.',
    type: 'counter',
    labels: ['pool'],
    samples: ({ snapshot }) =>
      snapshot.layout.pools.map((pool) => ({
        labels: { pool },
        value: Number(snapshot.pool(pool).waits),
      })),
  },
  {
    name: 'ringfence_guard',
    help: '1 where a protection of the I/O path holds, otherwise 0.',
    type: 'gauge',
    labels: ['measure'],
    samples: ({ guards }) =>
      guards.map(({ measure, up }) => ({ labels: { measure }, value: up ? 1 : 0 })),
  },
  {
    name: 'ringfence_ring_allocations_total',
    help: 'Allocations by the ring thread since it started to serve; must stay 0.',
    type: 'counter',
    labels: [],
    samples: engineSample('ringAllocations'),
  },
  {
    name: 'ringfence_ring_page_faults_total',
    help: 'Page faults of the ring thread; must not grow while it serves.',
    type: 'counter',
    labels: [],
    samples: engineSample('ringPageFaults'),
  },
  {
    name: 'ringfence_ring_turns_total',
    help: 'Times that the ring thread went around its loop.',
    type: 'counter',
    labels: [],
    samples: engineSample('ringTurns'),
  },
  {
    name: 'ringfence_ring_system_calls_total',
    help: 'System calls of the ring thread for sockets and devices.',
    type: 'counter',
    labels: [],
    samples: engineSample('ringSystemCalls'),
  },
  {
    name: 'ringfence_ring_sleeps_total',
    help: 'Times that the ring thread had nothing to do and slept.',
    type: 'counter',
    labels: [],
    samples: engineSample('ringSleeps'),
  },
  {
    name: 'ringfence_ring_yields_total',
    help: 'Times that the ring thread gave the CPU to whoever carries out reads of the cache device.',
    type: 'counter',
    labels: [],
    samples: engineSample('ringYields'),
  },
  {
    name: 'ringfence_ring_spins_total',
    help: 'Times that the ring thread looked for work instead of sleeping, and whether it came.',
    type: 'counter',
    labels: ['result'],
    samples: ({ snapshot }) => [
      { labels: { result: 'hit' }, value: Number(snapshot.engine('ringSpinHits')) },
      { labels: { result: 'miss' }, value: Number(snapshot.engine('ringSpinMisses')) },
    ],
  },
];

/** All of them, in the order of the page. */
export const METRICS: readonly MetricDefinition[] = [
  ...CLIENT_METRICS,
  ...CACHE_METRICS,
  ...ORIGIN_METRICS,
  ...DEVICE_METRICS,
  ...RESERVE_METRICS,
];
