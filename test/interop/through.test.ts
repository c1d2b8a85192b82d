/** Four times the cache's size passes through it, and the origin ends up with every byte. */

import test from 'ava';
import {
  createRandom,
  firstDifference,
  makeContent,
  writeContentFile,
} from '../support/content.ts';
import { KIB, MIB } from '../support/loop.ts';
import { connectNbd, type NbdConnection } from '../support/nbd-client.ts';
import { run } from '../support/process.ts';
import { ask, readMetric, socketPath, stopDaemon } from '../support/ringfence.ts';
import { EXPORT, type ServedDisk, serveDisk } from '../support/setting.ts';

const CACHE_BYTES = 64 * MIB;
const TOTAL_BYTES = 4 * CACHE_BYTES;
const SEED = 20;
const CONNECTIONS = 4;

/** Cuts `[0, total)` into pieces of mixed sizes, in an order that is random within 16 MiB. */
function pieces(total: number): { offset: number; length: number }[] {
  const random = createRandom(SEED);
  const all: { offset: number; length: number }[] = [];
  for (let start = 0; start < total; start += 16 * MIB) {
    const group: { offset: number; length: number }[] = [];
    const end = Math.min(start + 16 * MIB, total);
    for (let offset = start; offset < end; ) {
      const wanted = [4, 8, 64, 256, 1024, 2048][random() % 6] ?? 4;
      const length = Math.min(wanted * KIB, end - offset);
      group.push({ offset, length });
      offset += length;
    }
    for (let index = group.length - 1; index > 0; index -= 1) {
      const other = random() % (index + 1);
      const [left, right] = [group[index], group[other]];
      if (left === undefined || right === undefined) continue;
      [group[index], group[other]] = [right, left];
    }
    all.push(...group);
  }
  return all;
}

async function onAll<T>(
  connections: readonly NbdConnection[],
  items: readonly T[],
  action: (connection: NbdConnection, item: T) => Promise<void>,
): Promise<void> {
  let next = 0;
  const lane = async (connection: NbdConnection): Promise<void> => {
    for (let item = items[next++]; item !== undefined; item = items[next++]) {
      await action(connection, item);
    }
  };
  await Promise.all(connections.flatMap((connection) => [lane(connection), lane(connection)]));
}

async function connectAll({ daemon }: ServedDisk): Promise<NbdConnection[]> {
  const path = socketPath(daemon.setup);
  return Promise.all(Array.from({ length: CONNECTIONS }, () => connectNbd({ path }, EXPORT)));
}

for (const order of ['strict', 'relaxed'] as const) {
  test.serial(`four times the cache's size passes through it (${order})`, async (t) => {
    t.timeout(300_000);
    const setting = await serveDisk(t, {
      cacheBytes: CACHE_BYTES,
      sizeBytes: TOTAL_BYTES,
      options: `order=${order}`,
    });
    const { daemon, folder, originFile } = setting;
    const connections = await connectAll(setting);
    const all = pieces(TOTAL_BYTES);
    let written = 0;
    await onAll(connections, all, async (connection, { offset, length }) => {
      await connection.write(offset, makeContent(length, SEED, offset));
      written += 1;
      if (written % 200 === 0) await connection.flush();
    });
    const different: number[] = [];
    await onAll(connections, all, async (connection, { offset, length }) => {
      const data = await connection.read(offset, length);
      if (!data.equals(makeContent(length, SEED, offset))) different.push(offset);
    });
    t.deepEqual(different, []);
    for (const connection of connections) await connection.disconnect();

    await ask(daemon, 'drain');
    const dirty = await readMetric(daemon, 'ringfence_dirty_bytes');
    t.deepEqual([...dirty.values()], [0]);
    const device = await readMetric(daemon, 'ringfence_device_written_bytes_total');
    t.true((device.get('') ?? 0) >= TOTAL_BYTES, 'all of it went through the log');
    await stopDaemon(daemon);

    const expected = `${folder}/expected`;
    writeContentFile(expected, TOTAL_BYTES, SEED);
    t.is(firstDifference(expected, originFile, TOTAL_BYTES), null);
  });
}

test.serial('a full log reaches the origin in large epochs when nobody flushes', async (t) => {
  t.timeout(300_000);
  const { daemon, uri } = await serveDisk(t, { cacheBytes: CACHE_BYTES, sizeBytes: TOTAL_BYTES });
  await run('fio', [
    ...['--ioengine=nbd', `--uri=${uri}`, '--name=full', '--rw=randwrite', '--bs=4k'],
    ...['--iodepth=8', `--size=${TOTAL_BYTES / 2}`, '--io_size=128m', '--randseed=1'],
  ]);
  const requests = await readMetric(daemon, 'ringfence_origin_requests_total');
  const flushes = requests.get(`{export="${EXPORT}",op="flush"}`) ?? 0;
  const writes = (await readMetric(daemon, 'ringfence_requests_total')).get(
    `{export="${EXPORT}",op="write"}`,
  );
  t.log(`${writes} writes, ${flushes} flushes of the origin`);
  t.true(flushes > 0, 'the log was too small for all of it');
  t.true((writes ?? 0) / flushes > 200, 'epochs are not cut short while older ones wait');
  await stopDaemon(daemon);
});
