/** One round: one fio job on one server, with the server's CPU time and who else was busy. */

import { join } from 'node:path';
import { startProcess } from '../test/support/process.ts';
import { createScope } from '../test/support/scope.ts';
import { EXPORT_BYTES, type Job } from './jobs.ts';
import { type Cpus, foreignSeconds, sampleLoad } from './machine.ts';
import { writeRequestList } from './replay.ts';
import type { ReadBytes, RingWork, Server } from './servers.ts';

/** What all rounds of a job have in common. */
export interface Setting {
  readonly cpus: Cpus;
  /** Length of a round. */
  readonly seconds: number;
  /** For what a round needs beside the devices. */
  readonly folder: string;
}

/** What a round showed. */
export interface Round {
  /** Requests of data per second; flushes are not counted. */
  readonly perSecond: number;
  readonly bytesPerSecond: number;
  /** Flushes per request of data. */
  readonly flushes: number;
  /** The server's CPU time per request of data in microseconds; null for the bare device. */
  readonly serverCpuUs: number | null;
  /** Latency of half and of 99 in 100 requests, in microseconds. */
  readonly medianUs: number;
  readonly p99Us: number;
  /** Share of one CPU that others used meanwhile. */
  readonly foreignShare: number;
  /** Share of the bytes read that the cache had; null where there is no cache or no read. */
  readonly hitShare: number | null;
  /** Share of them that came from the cache device; the same. */
  readonly deviceShare: number | null;
  /** What the ring thread did per request of data; null where there is none. */
  readonly ring: RingWork | null;
}

interface FioSide {
  readonly total_ios: number;
  readonly io_bytes: number;
  readonly runtime: number;
  readonly clat_ns: { readonly percentile?: Readonly<Record<string, number>> };
}

interface FioJob {
  readonly error: number;
  readonly read: FioSide;
  readonly write: FioSide;
  readonly sync: { readonly total_ios: number };
}

function fioArguments(job: Job, server: Server, setting: Setting, seed: number): string[] {
  const { seconds, folder } = setting;
  const common = [
    ...['--output-format=json', `--name=${job.name}`, ...server.fioEngine, '--thread=1'],
    ...[`--iodepth=${job.depth}`, `--size=${job.areaBytes}`, `--runtime=${seconds}`],
  ];
  if (job.replayed) {
    const list = join(folder, 'requests');
    writeRequestList(list, job, server.fioFile, seconds, seed);
    return [...common, `--read_iolog=${list}`, '--replay_no_stall=1'];
  }
  return [
    ...[...common, `--filename=${server.fioFile}`, '--time_based=1'],
    ...[`--rw=${job.pattern}`, `--bs=${job.blockBytes}`],
    ...['--norandommap=1', '--randrepeat=0', `--randseed=${seed}`],
    ...(job.flushEvery > 0 ? [`--fsync=${job.flushEvery}`] : []),
  ];
}

/** Runs fio; returns its only job and the CPU time of others meanwhile. */
async function runFio(
  args: readonly string[],
  cpus: Cpus,
  serverPid: number | null,
): Promise<{ readonly job: FioJob; readonly foreignS: number; readonly serverCpuS: number }> {
  const scope = createScope();
  try {
    const before = sampleLoad();
    const fio = startProcess(scope, 'fio', args, { cpus: cpus.client });
    const ended = await fio.wait();
    const after = sampleLoad();
    const output = fio.output();
    if (ended.exitCode !== 0) throw new Error(`fio ${args.join(' ')}:\n${output}`);
    const parsed = JSON.parse(output.slice(output.indexOf('{'), output.lastIndexOf('}') + 1));
    const job = (parsed as { jobs: readonly FioJob[] }).jobs[0];
    if (job === undefined || job.error !== 0) throw new Error(`fio failed:\n${output}`);
    const ours = new Set([process.pid, fio.pid, ...(serverPid === null ? [] : [serverPid])]);
    const ticks = (sample: typeof before): number =>
      serverPid === null ? 0 : (sample.ticks.get(serverPid) ?? Number.NaN);
    return {
      job,
      foreignS: foreignSeconds(before, after, ours),
      serverCpuS: (ticks(after) - ticks(before)) / 100,
    };
  } finally {
    await scope.close();
  }
}

function perRequest(
  before: RingWork | null,
  after: RingWork | null,
  requests: number,
): RingWork | null {
  if (before === null || after === null) return null;
  return {
    systemCalls: (after.systemCalls - before.systemCalls) / requests,
    sleeps: (after.sleeps - before.sleeps) / requests,
  };
}

/** Measures one round. */
export async function measureRound(
  job: Job,
  server: Server,
  setting: Setting,
  seed: number,
): Promise<Round> {
  const readsBefore = await server.readReads();
  const ringBefore = await server.ringWork();
  const args = fioArguments(job, server, setting, seed);
  const result = await runFio(args, setting.cpus, server.pid);
  const readsAfter = await server.readReads();
  const ringAfter = await server.ringWork();
  const reads = job.pattern === 'randread' || job.pattern === 'read';
  const side = reads ? result.job.read : result.job.write;
  const grown = (what: keyof ReadBytes): number =>
    (readsAfter?.[what] ?? 0) - (readsBefore?.[what] ?? 0);
  const shareOf = (what: keyof ReadBytes): number | null =>
    reads && grown('total') > 0 ? grown(what) / grown('total') : null;
  const percentile = side.clat_ns.percentile ?? {};
  return {
    perSecond: side.total_ios / (side.runtime / 1000),
    bytesPerSecond: side.io_bytes / (side.runtime / 1000),
    flushes: result.job.sync.total_ios / side.total_ios,
    serverCpuUs: server.pid === null ? null : (result.serverCpuS * 1e6) / side.total_ios,
    medianUs: (percentile['50.000000'] ?? Number.NaN) / 1000,
    p99Us: (percentile['99.000000'] ?? Number.NaN) / 1000,
    foreignShare: result.foreignS / (side.runtime / 1000),
    hitShare: shareOf('hit'),
    deviceShare: shareOf('device'),
    ring: perRequest(ringBefore, ringAfter, side.total_ios),
  };
}

/** Lays the data that a job wants to find. */
export async function prepare(job: Job, server: Server, cpus: Cpus): Promise<void> {
  if (job.preparation === 'none') return;
  const bytes = job.preparation === 'fill' ? EXPORT_BYTES : job.areaBytes;
  const once = (pattern: 'write' | 'read'): string[] => [
    ...['--output-format=json', '--name=prepare', ...server.fioEngine, `--rw=${pattern}`],
    ...[`--filename=${server.fioFile}`, `--size=${bytes}`],
    ...['--bs=128k', '--iodepth=8', '--thread=1'],
  ];
  await runFio(once('write'), cpus, server.pid);
  if (job.preparation === 'warm') await runFio(once('read'), cpus, server.pid);
  await server.settle();
}
