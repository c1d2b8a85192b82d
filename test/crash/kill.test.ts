/**
 * The real daemon on loop devices, killed under verified load again and again, by clients of both
 * kinds: what those with simple replies were answered survives, of those with structured ones what
 * was flushed (docs/decisions/0017).
 *
 * `RINGFENCE_KILLS` sets how often (25), `RINGFENCE_SEED` which load and which moments.
 */

import { rmSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { createRandom, firstDifference } from '../support/content.ts';
import { median } from '../support/figures.ts';
import { MIB, temporaryFolder } from '../support/loop.ts';
import { connectNbd } from '../support/nbd-client.ts';
import { startProcess, waitUntil } from '../support/process.ts';
import {
  ask,
  greets,
  killDaemon,
  readMetric,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { testScope } from '../support/scope.ts';
import { formatDisk } from '../support/setting.ts';
import {
  connectBoth,
  createJudged,
  judgeAfterCrash,
  nextFlush,
  runLoad,
  showViolations,
} from './load.ts';

const KILLS = Number(process.env.RINGFENCE_KILLS ?? 25);
const SEED = Number(process.env.RINGFENCE_SEED ?? Date.now() % 0x7fffffff);
const EXPORT_BYTES = 64 * MIB;
const DEPTH = 8;

test.serial('nothing that must survive is lost or torn when the daemon is killed', async (t) => {
  t.timeout(KILLS * 30_000 + 120_000, `seed ${SEED}`);
  const { scope, setup } = await formatDisk(t, { sizeBytes: EXPORT_BYTES });
  const judged = createJudged(EXPORT_BYTES, SEED);
  const random = createRandom(SEED);
  const restartsMs: number[] = [];
  let unflushed = 0;

  let daemon = await startDaemon(scope, setup);
  for (let round = 0; round < KILLS; round += 1) {
    const connections = await connectBoth(socketPath(setup));
    const load = runLoad(judged, connections, DEPTH, () => false);
    await sleep(50 + (random() % 700));
    // What an answer to a flush that came too early puts at risk is safe a moment later.
    if (round % 2 === 0) await nextFlush(judged);
    await killDaemon(daemon);
    await load;
    unflushed += judged.registers.undurableWrites();
    daemon = await startDaemon(scope, setup);
    restartsMs.push(daemon.startMs);
    const connection = await connectNbd({ path: socketPath(setup) }, 'disk');
    await judgeAfterCrash(judged, connection);
    await connection.disconnect();
    t.is(judged.violations.length, 0, `after kill ${round + 1}: ${showViolations(judged)}`);
  }

  t.true(judged.done.flushes >= KILLS, 'the load flushed, so that there was something to lose');
  t.true(unflushed > 0, 'some kills came between a write to memory and its flush');
  await ask(daemon, 'drain');
  const served = await connectNbd({ path: socketPath(setup) }, 'disk');
  await judgeAfterCrash(judged, served);
  await served.disconnect();
  await stopDaemon(daemon);
  t.is(judged.violations.length, 0, showViolations(judged));
  t.log(
    `seed ${SEED}: ${KILLS} kills, ${judged.done.writes} writes, ${judged.done.reads} reads, ` +
      `${judged.done.flushes} flushes, ${unflushed} writes answered from memory and unflushed at ` +
      `kills, ${judged.registers.lostWrites()} of them lost; ` +
      `restart median ${median(restartsMs).toFixed(0)} ms, ` +
      `worst ${Math.max(...restartsMs).toFixed(0)} ms`,
  );
});

test.serial('the origin equals what was served once it is drained', async (t) => {
  t.timeout(120_000);
  const { scope, folder, originFile, setup } = await formatDisk(t, { sizeBytes: EXPORT_BYTES });
  const judged = createJudged(EXPORT_BYTES, SEED);
  let daemon = await startDaemon(scope, setup);
  const load = runLoad(judged, await connectBoth(socketPath(setup)), DEPTH, () => false);
  await sleep(1_000);
  await killDaemon(daemon);
  await load;
  daemon = await startDaemon(scope, setup);
  const connection = await connectNbd({ path: socketPath(setup) }, 'disk');
  const served: Buffer[] = [];
  for (let offset = 0; offset < EXPORT_BYTES; offset += MIB) {
    served.push(await connection.read(offset, MIB));
  }
  await connection.disconnect();
  await ask(daemon, 'drain');
  const dirty = await readMetric(daemon, 'ringfence_dirty_bytes');
  t.deepEqual([...dirty.values()], [0]);
  await stopDaemon(daemon);
  writeFileSync(`${folder}/served`, Buffer.concat(served));
  t.is(firstDifference(`${folder}/served`, originFile, EXPORT_BYTES), null, `seed ${SEED}`);
});

test.serial('the judge finds what a server without a log loses', async (t) => {
  t.timeout(60_000);
  const scope = testScope(t);
  const path = `${temporaryFolder(scope)}/memory.sock`;
  const start = async () => {
    const args = ['--foreground', '--unix', path, 'memory', `${EXPORT_BYTES}`];
    const server = startProcess(scope, 'nbdkit', args);
    await waitUntil(() => greets(path), server.output);
    return server;
  };
  const judged = createJudged(EXPORT_BYTES, SEED);
  const server = await start();
  const load = runLoad(judged, await connectBoth(path), DEPTH, () => false);
  await waitUntil(
    () => judged.done.flushes > 4,
    () => 'no flush was answered',
  );
  server.signal('SIGKILL');
  await server.wait();
  await load;
  t.is(judged.violations.length, 0, 'while it was up, memory is as good as any disk');
  rmSync(path, { force: true });
  await start();
  await judgeAfterCrash(judged, await connectNbd({ path }, 'disk'));
  t.true(judged.violations.length > 0);
});
