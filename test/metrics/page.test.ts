import { spawnSync } from 'node:child_process';
import test from 'ava';
import type { Guard } from '../../daemon/native.ts';
import { takeSnapshot } from '../../metrics/counters.ts';
import { histogramSamples, METRICS, type MetricSource } from '../../metrics/definitions.ts';
import { createMetricsPage } from '../../metrics/registry.ts';
import { createFakeNative, LAYOUT, PLACES } from '../daemon/fake-native.ts';

const GUARDS: readonly Guard[] = [
  { measure: 'memory_locked', up: true, advice: null },
  { measure: 'io_flusher', up: false, advice: 'Give it CAP_SYS_RESOURCE.' },
];

/** A source whose counters a test sets by place. */
function source(values: Readonly<Record<number, bigint>> = {}): MetricSource {
  const native = createFakeNative();
  for (const [place, value] of Object.entries(values)) native.counterValues[Number(place)] = value;
  const counters = (into: BigUint64Array) => into.set(native.counterValues);
  return {
    snapshot: takeSnapshot({ counters }, LAYOUT),
    exports: [
      { slot: 0, name: 'disk' },
      { slot: 2, name: 'a "strange"\\name' },
    ],
    guards: GUARDS,
    recoveryMs: 1250,
  };
}

/** Metrics that the operator was promised, with their labels. */
const PROMISED: Readonly<Record<string, readonly string[]>> = {
  ringfence_requests_total: ['export', 'op'],
  ringfence_request_bytes_total: ['export', 'op'],
  ringfence_request_errors_total: ['export', 'op'],
  ringfence_request_duration_seconds: ['export', 'op'],
  ringfence_cache_read_bytes_total: ['export', 'result'],
  ringfence_cached_bytes: ['export'],
  ringfence_dirty_bytes: ['export'],
  ringfence_oldest_dirty_timestamp_seconds: ['export'],
  ringfence_destaged_bytes_total: ['export'],
  ringfence_origin_up: ['export'],
  ringfence_origin_requests_total: ['export', 'op'],
  ringfence_origin_request_duration_seconds: ['export', 'op'],
  ringfence_recovery_duration_seconds: [],
  ringfence_device_written_bytes_total: [],
  ringfence_segments: ['state'],
  ringfence_reserve_bytes: ['pool', 'state'],
  ringfence_reserve_waits_total: ['pool'],
  ringfence_guard: ['measure'],
  ringfence_ring_allocations_total: [],
  ringfence_checksum_errors_total: ['export', 'kind'],
  ringfence_connections: ['export'],
  ringfence_ring_page_faults_total: [],
};

test('every promised metric is there with its labels', (t) => {
  for (const [name, labels] of Object.entries(PROMISED)) {
    const found = METRICS.find((metric) => metric.name === name);
    t.deepEqual(found?.labels, labels, name);
  }
});

test('every sample has exactly the labels of its metric', (t) => {
  for (const { name, type, labels, samples } of METRICS) {
    const made = samples(source());
    t.true(made.length > 0, name);
    for (const sample of made) {
      const own = Object.keys(sample.labels).filter((label) => label !== 'le');
      t.deepEqual(own, [...labels], name);
      t.is('le' in sample.labels, sample.metricName === `${name}_bucket`, name);
      t.is(sample.metricName !== undefined, type === 'histogram', name);
    }
  }
});

test('values are in base units and under the right labels', async (t) => {
  const page = createMetricsPage(() =>
    source({
      [PLACES.operation(0, 'write')]: 3n,
      [PLACES.operation(0, 'write') + 1]: 12_288n,
      [PLACES.operation(2, 'read') + 2]: 1n,
      [PLACES.origin(2, 'write_zeroes')]: 4n,
      [PLACES.ofExport(0, 'oldestDirtyNs')]: 1_700_000_000_500_000_000n,
      [PLACES.ofExport(2, 'missBytes')]: 4096n,
      [PLACES.ofExport(0, 'checksumErrorsDirty')]: 2n,
      [PLACES.pool('log')]: 100n,
      [PLACES.pool('log') + 1]: 30n,
      [PLACES.engine('segmentsUsed')]: 5n,
      [PLACES.engine('segmentsReclaiming')]: 1n,
    }),
  );
  const text = await page.render();
  const lines = text.split('\n');
  for (const line of [
    'ringfence_requests_total{export="disk",op="write"} 3',
    'ringfence_request_bytes_total{export="disk",op="write"} 12288',
    'ringfence_request_errors_total{export="a \\"strange\\"\\\\name",op="read"} 1',
    'ringfence_origin_requests_total{export="a \\"strange\\"\\\\name",op="write_zeroes"} 4',
    'ringfence_oldest_dirty_timestamp_seconds{export="disk"} 1700000000.5',
    'ringfence_cache_read_bytes_total{export="a \\"strange\\"\\\\name",result="miss"} 4096',
    'ringfence_checksum_errors_total{export="disk",kind="dirty"} 2',
    'ringfence_reserve_bytes{pool="log",state="used"} 30',
    'ringfence_reserve_bytes{pool="log",state="free"} 70',
    'ringfence_recovery_duration_seconds 1.25',
    'ringfence_segments{state="used"} 4',
    'ringfence_segments{state="reclaiming"} 1',
    'ringfence_guard{measure="memory_locked"} 1',
    'ringfence_guard{measure="io_flusher"} 0',
    'ringfence_ring_allocations_total 0',
  ]) {
    t.true(lines.includes(line), line);
  }
});

test('a histogram has cumulative buckets, a sum in seconds and a count', (t) => {
  const samples = histogramSamples(
    'x',
    { op: 'read' },
    { buckets: [2n, 0n, 3n], durationNs: 1_500_000_000n },
    [1_000n, 1_000_000n],
  );
  t.deepEqual(samples, [
    { metricName: 'x_bucket', labels: { op: 'read', le: '0.000001' }, value: 2 },
    { metricName: 'x_bucket', labels: { op: 'read', le: '0.001' }, value: 2 },
    { metricName: 'x_bucket', labels: { op: 'read', le: '+Inf' }, value: 5 },
    { metricName: 'x_sum', labels: { op: 'read' }, value: 1.5 },
    { metricName: 'x_count', labels: { op: 'read' }, value: 5 },
  ]);
});

test('the counters are copied once per scrape', async (t) => {
  let copies = 0;
  const page = createMetricsPage(() => {
    copies += 1;
    return source({ [PLACES.engine('deviceWrittenBytes')]: BigInt(copies) });
  });
  t.is(copies, 0);
  const first = page.render();
  const second = page.render();
  t.regex(await first, /^ringfence_device_written_bytes_total 1$/m);
  t.regex(await second, /^ringfence_device_written_bytes_total 2$/m);
  t.is(copies, 2);
});

test('before the cache is open the page shows the process alone', async (t) => {
  const text = await createMetricsPage(() => null).render();
  t.regex(text, /^# TYPE ringfence_requests_total counter$/m);
  t.notRegex(text, /^ringfence_requests_total\{/m);
  t.regex(text, /^ringfence_nodejs_process_cpu_seconds_total [0-9]/m);
});

test('promtool finds nothing wrong with the page', async (t) => {
  for (const made of [source(), null]) {
    const text = await createMetricsPage(() => made).render();
    const { status, stdout, stderr, error } = spawnSync('promtool', ['check', 'metrics'], {
      input: text,
      encoding: 'utf8',
    });
    t.is(error, undefined, 'promtool has to be installed: it is in the package prometheus');
    t.is(status, 0, `${stdout}${stderr}`);
    t.is(`${stdout}${stderr}`.trim(), '');
  }
});

test('promtool finds what is wrong, so that its silence means something', (t) => {
  const { status } = spawnSync('promtool', ['check', 'metrics'], {
    input: '# TYPE wrong_total gauge\nwrong_total 1\n',
    encoding: 'utf8',
  });
  t.not(status, 0);
});
