/** Every way in which the daemon's JavaScript half can end or stop, under load. */

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { MIB } from '../support/loop.ts';
import { connectNbd, type NbdConnection } from '../support/nbd-client.ts';
import { startProcess, waitUntil } from '../support/process.ts';
import {
  type Daemon,
  exportUri,
  readMetric,
  socketPath,
  startDaemon,
  stopDaemon,
} from '../support/ringfence.ts';
import type { Scope } from '../support/scope.ts';
import { formatDisk } from '../support/setting.ts';
import type { Fault } from './fault.ts';
import {
  connectBoth,
  createJudged,
  type Judged,
  judgeAfterCrash,
  type Requests,
  runLoad,
  showViolations,
} from './load.ts';

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
  const { scope, setup } = await formatDisk(t, { sizeBytes: EXPORT_BYTES });
  const preload = join(import.meta.dirname, 'fault.js');
  const env = {
    NODE_OPTIONS: `--import=${preload} ${nodeOptions}`,
    RINGFENCE_TEST_FAULT: fault ?? '',
  };
  return { scope, daemon: await startDaemon(scope, fault === null ? setup : { ...setup, env }) };
}

function connectAll(daemon: Daemon): Promise<readonly NbdConnection[]> {
  return connectBoth(socketPath(daemon.setup));
}

/**
 * Runs load until the daemon, told by `signal`, is gone; returns its exit. Plain writes are sent on
 * the connections that are answered from memory: the others would have it written.
 */
async function endUnderLoad(
  daemon: Daemon,
  judged: Judged,
  signal: NodeJS.Signals,
  requests: Requests = 'all',
) {
  const connections = await connectAll(daemon);
  const busy = connections.filter(({ structured }) => requests === 'all' || structured);
  const before = { ...judged.done };
  let stopping = false;
  // Requests that come after it has stopped receiving stay unanswered, which ends a lane.
  const load = runLoad(judged, busy, 8, () => false, requests).catch((error: unknown) => {
    if (!stopping) throw error;
  });
  await waitUntil(
    () =>
      judged.done.writes > before.writes + 300 &&
      (requests !== 'all' || judged.done.flushes > before.flushes + 20),
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
  t.timeout(300_000);
  const faulty = await startFaulty(t, null);
  const { scope } = faulty;
  let { daemon } = faulty;
  const judged = createJudged(EXPORT_BYTES, SEED);
  // What is in memory alone when a stop comes is little and soon written, so one stop can be lucky.
  const loads: readonly Requests[] = ['plain writes', 'all', 'plain writes', 'all'];
  for (const [stops, requests] of loads.entries()) {
    if (stops > 0) daemon = await startDaemon(scope, daemon.setup);
    const ended = await endUnderLoad(daemon, judged, 'SIGTERM', requests);
    t.is(ended.exitCode, 0, daemon.background.output());
    everythingAnsweredCounts(judged);
    await judgeRestarted(t, { scope, daemon }, judged);
  }
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
  const judged = createJudged(EXPORT_BYTES, SEED);
  const connections = await connectAll(daemon);
  daemon.background.signal('SIGUSR2');
  await waitUntil(() => output().includes('fault: begin'), output);
  // Whatever needed the thread would wait for ever: it stands still until this has ended.
  await runLoad(judged, connections, 8, () => judged.done.flushes > 200);
  t.false(output().includes('fault: end'));
  t.true(connections.every((connection) => !connection.closed()));
  daemon.background.write('\n');
  await waitUntil(() => output().includes('fault: end'), output);
  await Promise.all(connections.map((connection) => connection.disconnect()));
  await stopDaemon(daemon);
  t.is(judged.violations.length, 0, showViolations(judged));
});

test.serial('fio does not notice that the JavaScript thread stands still for 10 s', async (t) => {
  t.timeout(180_000);
  const { scope, daemon } = await startFaulty(t, 'block');
  const output = (): string => daemon.background.output();
  const fio = startProcess(scope, 'fio', [
    ...['--ioengine=nbd', `--uri=${exportUri(daemon.setup, 'disk')}`, '--name=blocked'],
    ...['--rw=randwrite', '--bsrange=4k-64k', '--iodepth=16', '--numjobs=4', '--thread=1'],
    ...['--size=12m', '--offset_increment=12m', '--fsync=64', '--time_based=1', '--runtime=16'],
    ...['--verify=crc32c', '--verify_fatal=1', '--verify_backlog=64', '--verify_state_save=0'],
  ]);
  await waitUntil(
    async () => (await readMetric(daemon, 'ringfence_connections')).get('{export="disk"}') === 4,
    () => `fio does not connect:\n${fio.output()}`,
  );
  daemon.background.signal('SIGUSR2');
  await waitUntil(() => output().includes('fault: begin'), output);
  const began = performance.now();
  // The thread stands still until fio has gone: whatever needed it would hold fio up for ever.
  t.is((await fio.wait()).exitCode, 0, fio.output());
  const stoodStillMs = performance.now() - began;
  t.true(stoodStillMs >= 10_000, `fio was there for ${stoodStillMs} ms of it only`);
  t.false(output().includes('fault: end'));
  daemon.background.write('\n');
  await waitUntil(() => output().includes('fault: end'), output);
  const errors = await readMetric(daemon, 'ringfence_request_errors_total');
  t.true(errors.size > 0, 'errors are counted');
  t.true([...errors.values()].every((count) => count === 0));
  await stopDaemon(daemon);
});
