/** Every way in which the daemon's JavaScript half can end or stop, under load. */

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { loopDevice, MIB, temporaryFolder } from '../support/loop.ts';
import { connectNbd } from '../support/nbd-client.ts';
import { run, waitUntil } from '../support/process.ts';
import {
  type Daemon,
  daemonSetup,
  exportUri,
  formatCache,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import { type Scope, testScope } from '../support/scope.ts';
import { BLOCK_MS, type Fault } from './fault.ts';
import { createJudged, type Judged, judgeAfterCrash, runLoad, showViolations } from './load.ts';

const EXPORT_BYTES = 64 * MIB;
const SEED = Number(process.env.RINGFENCE_SEED ?? Date.now() % 0x7fffffff);

interface Faulty {
  readonly scope: Scope;
  readonly daemon: Daemon;
}

/** A daemon whose JavaScript half fails on SIGUSR2. */
async function startFaulty(
  t: ExecutionContext,
  fault: Fault | null,
  nodeOptions = '',
): Promise<Faulty> {
  const scope = testScope(t);
  const folder = temporaryFolder(scope);
  const cache = await loopDevice(scope, folder, 'cache', 96 * MIB);
  const origin = await loopDevice(scope, folder, 'origin', EXPORT_BYTES);
  await formatCache(cache.device);
  const preload = join(import.meta.dirname, 'fault.js');
  const env = {
    NODE_OPTIONS: `--import=${preload} ${nodeOptions}`,
    RINGFENCE_TEST_FAULT: fault ?? '',
  };
  const setup = await daemonSetup(
    { cache: cache.device, exports: [{ name: 'disk', origin: origin.device }], folder },
    fault === null ? {} : { env },
  );
  return { scope, daemon: await startDaemon(scope, setup) };
}

/** Runs load until the daemon, told by `signal`, is gone; returns its exit. */
async function endUnderLoad(daemon: Daemon, judged: Judged, signal: NodeJS.Signals) {
  const path = socketPath(daemon.setup);
  const connections = await Promise.all(
    Array.from({ length: 4 }, () => connectNbd({ path }, 'disk')),
  );
  let stopping = false;
  // Requests that come after it has stopped receiving stay unanswered, which ends a lane.
  const load = runLoad(judged, connections, 8, () => false).catch((error: unknown) => {
    if (!stopping) throw error;
  });
  await waitUntil(
    () => judged.done.flushes > 20,
    () => 'the load makes no progress',
  );
  await sleep(200);
  stopping = true;
  daemon.background.signal(signal);
  const ended = await daemon.background.wait();
  for (const connection of connections) connection.destroy();
  await Promise.all(connections.map((connection) => connection.gone()));
  await load;
  return ended;
}

async function judgeRestarted(
  t: ExecutionContext,
  { scope, daemon }: Faulty,
  judged: Judged,
): Promise<void> {
  const { NODE_OPTIONS: _, ...env } = daemon.setup.env;
  const again = await startDaemon(scope, { ...daemon.setup, env });
  const connection = await connectNbd({ path: socketPath(daemon.setup) }, 'disk');
  await judgeAfterCrash(judged, connection);
  await connection.disconnect();
  await stopDaemon(again);
  t.is(judged.violations.length, 0, showViolations(judged));
}

/** After an orderly end everything that was answered is durable, flushed by a client or not. */
function everythingAnsweredCounts(judged: Judged): void {
  judged.registers.answerFlush(judged.registers.beginFlush());
}

test.serial('SIGTERM under load: exit 0, and nothing that was answered is lost', async (t) => {
  const faulty = await startFaulty(t, null);
  const judged = createJudged(EXPORT_BYTES, SEED);
  const ended = await endUnderLoad(faulty.daemon, judged, 'SIGTERM');
  t.is(ended.exitCode, 0, faulty.daemon.background.output());
  everythingAnsweredCounts(judged);
  await judgeRestarted(t, faulty, judged);
});

test.serial('a thrown error under load: logged, the orderly way out, not 0', async (t) => {
  const faulty = await startFaulty(t, 'throw');
  const judged = createJudged(EXPORT_BYTES, SEED);
  const ended = await endUnderLoad(faulty.daemon, judged, 'SIGUSR2');
  t.not(ended.exitCode, 0);
  t.regex(faulty.daemon.background.output(), /a fault that the test planted/);
  everythingAnsweredCounts(judged);
  await judgeRestarted(t, faulty, judged);
});

test.serial('process.exit under load: nothing flushed is lost', async (t) => {
  const faulty = await startFaulty(t, 'exit');
  const judged = createJudged(EXPORT_BYTES, SEED);
  const ended = await endUnderLoad(faulty.daemon, judged, 'SIGUSR2');
  t.is(ended.exitCode, 3, faulty.daemon.background.output());
  await judgeRestarted(t, faulty, judged);
});

test.serial('an exhausted V8 heap under load: nothing flushed is lost', async (t) => {
  const faulty = await startFaulty(t, 'heap', '--max-old-space-size=64');
  const judged = createJudged(EXPORT_BYTES, SEED);
  const ended = await endUnderLoad(faulty.daemon, judged, 'SIGUSR2');
  t.not(ended.exitCode, 0);
  t.regex(faulty.daemon.background.output(), /heap out of memory/);
  await judgeRestarted(t, faulty, judged);
});

test.serial('no attached client notices that the JavaScript thread stands still', async (t) => {
  const { daemon } = await startFaulty(t, 'block');
  const output = (): string => daemon.background.output();
  const seconds = BLOCK_MS / 1000 + 4;
  const fio = run('fio', [
    ...['--output-format=json', '--ioengine=nbd', `--uri=${exportUri(daemon.setup, 'disk')}`],
    ...['--name=attached', '--rw=randrw', '--bs=4k', '--iodepth=8', '--numjobs=2', '--thread=1'],
    ...['--size=48m', '--fsync=64', '--time_based=1', `--runtime=${seconds}`],
  ]);
  await sleep(1_500);
  daemon.background.signal('SIGUSR2');
  await waitUntil(() => output().includes('fault: begin'), output);
  const result = await fio;
  t.true(output().includes('fault: end'), 'the thread stood still within the run');
  const jobs = (
    JSON.parse(result.slice(result.indexOf('{'))) as {
      jobs: { error: number; read: FioSide; write: FioSide }[];
    }
  ).jobs;
  for (const { error, read, write } of jobs) {
    t.is(error, 0);
    const longestMs = Math.max(read.lat_ns.max, write.lat_ns.max) / 1e6;
    t.true(longestMs < BLOCK_MS / 2, `a request took ${longestMs.toFixed(0)} ms`);
    t.true(read.total_ios > 0 && write.total_ios > 0);
  }
  await stopDaemon(daemon);
});

interface FioSide {
  readonly total_ios: number;
  readonly lat_ns: { readonly max: number };
}
