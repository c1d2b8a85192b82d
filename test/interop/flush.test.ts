/** A FLUSH or a FUA write that is answered has been a flush of the cache device. */

import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import test from 'ava';
import { connectNbd, FLAG_FUA } from '../support/nbd-client.ts';
import { socketPath } from '../support/ringfence.ts';
import { EXPORT, serveDisk } from '../support/setting.ts';

const TIMES = 100;

/** Flushes that the kernel has completed on a block device, by its own count. */
function deviceFlushes(device: string): number {
  const fields = readFileSync(`/sys/block/${basename(device)}/stat`, 'latin1')
    .trim()
    .split(/\s+/);
  return Number(fields[15]);
}

test.serial('each write that is flushed on its own costs a flush of the device', async (t) => {
  const { daemon } = await serveDisk(t);
  const connection = await connectNbd({ path: socketPath(daemon.setup) }, EXPORT);
  const { cache } = daemon.setup;
  const data = Buffer.alloc(4096, 1);
  const before = deviceFlushes(cache);
  for (let time = 0; time < TIMES; time += 1) {
    await connection.write(time * 4096, data);
    await connection.flush();
  }
  const between = deviceFlushes(cache);
  t.true(between - before >= TIMES, `${between - before} flushes for ${TIMES} FLUSHes`);
  for (let time = 0; time < TIMES; time += 1) {
    await connection.write(time * 4096, data, FLAG_FUA);
  }
  const after = deviceFlushes(cache);
  t.true(after - between >= TIMES, `${after - between} flushes for ${TIMES} FUA writes`);
  await connection.disconnect();
});

test.serial('flushes that wait together share flushes of the device', async (t) => {
  const { daemon } = await serveDisk(t);
  const path = socketPath(daemon.setup);
  const connections = await Promise.all(
    Array.from({ length: 16 }, () => connectNbd({ path }, EXPORT)),
  );
  const before = deviceFlushes(daemon.setup.cache);
  await Promise.all(
    connections.map(async (connection, index) => {
      for (let time = 0; time < TIMES; time += 1) {
        await connection.write((index * TIMES + time) * 4096, Buffer.alloc(4096, index));
        await connection.flush();
      }
    }),
  );
  const flushes = deviceFlushes(daemon.setup.cache) - before;
  t.true(flushes < connections.length * TIMES, `${flushes} flushes`);
  for (const connection of connections) await connection.disconnect();
});
