/**
 * Memory outside the V8 heap after a minute of full load, against after start.
 *
 * `RINGFENCE_MEMORY_SECONDS` sets how long the load lasts (60).
 */

import { join } from 'node:path';
import test from 'ava';
import { residentBytes } from '../support/figures.ts';
import { MIB } from '../support/loop.ts';
import { run, waitUntil } from '../support/process.ts';
import {
  type Daemon,
  exportUri,
  readMetric,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { formatDisk } from '../support/setting.ts';

const SECONDS = Number(process.env.RINGFENCE_MEMORY_SECONDS ?? 60);

async function one(daemon: Daemon, name: string): Promise<number> {
  const value = (await readMetric(daemon, name)).get('');
  if (value === undefined) throw new Error(`no metric ${name}`);
  return value;
}

/**
 * Resident memory less what of it is V8's heap. What V8 has taken for it (the metric) would not do:
 * some of that is not resident, more or less by chance.
 */
async function outsideHeapBytes({ background }: Daemon): Promise<number> {
  const said = () => [...background.output().matchAll(/^v8 heap: (\d+) bytes$/gm)];
  const before = said().length;
  background.signal('SIGUSR2');
  await waitUntil(() => said().length > before, background.output);
  return residentBytes(background.pid) - Number(said().at(-1)?.[1]);
}

async function load(daemon: Daemon, seconds: number): Promise<void> {
  await run(
    'fio',
    [
      ...['--ioengine=nbd', `--uri=${exportUri(daemon.setup, 'disk')}`, '--name=full'],
      ...['--rw=randrw', '--bsrange=4k-64k', '--iodepth=32', '--numjobs=2', '--thread=1'],
      ...['--size=256m', '--fsync=256', '--time_based=1', `--runtime=${seconds}`],
    ],
    { timeoutMs: (seconds + 60) * 1000 },
  );
}

test.serial('memory outside the V8 heap does not grow under full load', async (t) => {
  t.timeout((SECONDS + 240) * 1000);
  const { scope, setup } = await formatDisk(t, { cacheBytes: 256 * MIB, sizeBytes: 256 * MIB });
  const env = { NODE_OPTIONS: `--import=${join(import.meta.dirname, 'v8-heap.js')}` };
  const daemon = await startDaemon(scope, { ...setup, env });
  const faultsBefore = await one(daemon, 'ringfence_ring_page_faults_total');
  const before = await outsideHeapBytes(daemon);
  await load(daemon, SECONDS);
  const after = await outsideHeapBytes(daemon);
  const faultsAfter = await one(daemon, 'ringfence_ring_page_faults_total');
  const growth = after / before - 1;
  t.log(
    `outside the heap ${(before / MIB).toFixed(1)} MiB after start, ${(after / MIB).toFixed(1)} ` +
      `MiB after ${SECONDS} s of load (${(100 * growth).toFixed(2)} %)`,
  );
  t.true(growth < 0.02);
  t.is(await one(daemon, 'ringfence_ring_allocations_total'), 0);
  t.is(faultsAfter, faultsBefore, 'page faults of the ring thread');
  await stopDaemon(daemon);
});
