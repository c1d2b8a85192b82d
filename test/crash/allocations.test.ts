/** The C library's allocator is not called on the ring thread while it serves, by anybody. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { MIB } from '../support/loop.ts';
import { projectRoot, run } from '../support/process.ts';
import { exportUri, readMetric, startDaemon, stopDaemon } from '../support/ringfence.ts';
import { formatDisk } from '../support/setting.ts';

test.serial('nothing calls malloc or free on the ring thread while it serves', async (t) => {
  t.timeout(300_000);
  const disk = await formatDisk(t, { cacheBytes: 128 * MIB, sizeBytes: 256 * MIB });
  const { scope, folder } = disk;
  const library = join(folder, 'count-allocations.so');
  const source = join(projectRoot, 'test', 'crash', 'count-allocations.c');
  await run('cc', ['-shared', '-fPIC', '-O2', '-Wall', '-Werror', '-o', library, source]);
  const counts = join(folder, 'counts');
  writeFileSync(counts, Buffer.alloc(4096));
  const count = (): bigint => readFileSync(counts).readBigUInt64LE(0);

  const env = { LD_PRELOAD: library, COUNT_ALLOCATIONS_IN: counts };
  const daemon = await startDaemon(scope, { ...disk.setup, env });
  const atStart = count();
  // What the thread allocates before it serves shows that its calls are seen at all.
  t.true(atStart > 0n, 'the ring thread was seen starting');

  // Twice the cache's size: hits, misses, destage, reclaim; two connections that come and go.
  await run('fio', [
    ...['--ioengine=nbd', `--uri=${exportUri(disk.setup, 'disk')}`, '--name=mixed', '--rw=randrw'],
    ...['--bsrange=512-128k', '--bs_unaligned=1', '--iodepth=16', '--numjobs=2', '--thread=1'],
    ...['--size=128m', '--fsync=64', '--group_reporting'],
  ]);
  t.is(count(), atStart);
  t.true(
    ((await readMetric(daemon, 'ringfence_destaged_bytes_total')).get('{export="disk"}') ?? 0) > 0,
  );
  await stopDaemon(daemon);
});
