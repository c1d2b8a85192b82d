/**
 * Memory outside the V8 heap after a minute of full load, against after start.
 *
 * `RINGFENCE_MEMORY_SECONDS` sets how long the load lasts (60).
 */

import { setTimeout } from 'node:timers/promises';
import test from 'ava';
import { residentBytes } from '../support/figures.ts';
import { MIB } from '../support/loop.ts';
import { run } from '../support/process.ts';
import {
  type Daemon,
  exportUri,
  readMetric,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { formatDisk } from '../support/setting.ts';

/** After start, V8's heap shrinks to what the daemon needs; a short load makes it do so. */
const WARM_UP_SECONDS = 5;
const SECONDS = Number(process.env.RINGFENCE_MEMORY_SECONDS ?? 60);

async function one(daemon: Daemon, name: string): Promise<number> {
  const value = (await readMetric(daemon, name)).get('');
  if (value === undefined) throw new Error(`no metric ${name}`);
  return value;
}

/**
 * Resident memory less what V8 has taken for its heap, once V8 has given back what it only needed
 * to start: what it has taken and what of that is resident differ until then.
 */
async function outsideHeapBytes(daemon: Daemon): Promise<number> {
  const heap = () => one(daemon, 'ringfence_nodejs_nodejs_heap_size_total_bytes');
  let heapBytes = await heap();
  for (let same = 0, tries = 0; same < 3 && tries < 30; tries += 1) {
    await setTimeout(1000);
    const now = await heap();
    same = now === heapBytes ? same + 1 : 0;
    heapBytes = now;
  }
  return residentBytes(daemon.background.pid) - heapBytes;
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
  t.timeout((SECONDS + WARM_UP_SECONDS + 240) * 1000);
  const { scope, setup } = await formatDisk(t, { cacheBytes: 256 * MIB, sizeBytes: 256 * MIB });
  const daemon = await startDaemon(scope, setup);
  await load(daemon, WARM_UP_SECONDS);
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
