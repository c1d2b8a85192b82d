/** `npm run bench`: ringfence beside its peers, in one run. */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { projectRoot } from '../test/support/process.ts';
import { createScope, type Scope } from '../test/support/scope.ts';
import { CACHE_BYTES, type Job, jobs, SMALL_CACHE_BYTES } from './jobs.ts';
import {
  benchRefusal,
  cpusOf,
  describeMachine,
  type Placement,
  placeWorkers,
  workersMask,
  workersMaskFor,
} from './machine.ts';
import { measureRound, prepare, type Round, type Setting } from './measure.ts';
import { insertResults, type Results, renderResults, type Series } from './report.ts';
import { type Devices, makeDevices, type Server, startServers, startSustained } from './servers.ts';

const PAGE = join(projectRoot, 'docs', 'benchmarks.md');
/** A round in which others used more of one CPU than this is measured again, unless told. */
const FOREIGN_SHARE_MAX = 0.1;
/** How often a round is repeated before the run gives up on a busy machine. */
const ATTEMPTS_MAX = 10;
/** What the published page needs at least. */
const ROUNDS_MIN = 5;
const SECONDS_MIN = 3;
const SUSTAINED_SECONDS = 20;

interface Options {
  readonly rounds: number;
  readonly seconds: number;
  readonly jobs: readonly Job[];
  readonly placements: readonly Placement[];
  readonly sustained: boolean;
  readonly foreign: number;
  /** Where the devices' files go. */
  readonly folder: string;
}

function say(what: string): void {
  process.stderr.write(`${what}\n`);
}

/** One round without foreign load; null when the machine never was quiet enough. */
async function quietRound(
  measure: () => Promise<Round>,
  foreignMax: number,
): Promise<{ readonly round: Round | null; readonly discarded: number }> {
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
    const round = await measure();
    if (round.foreignShare <= foreignMax) return { round, discarded: attempt };
    say(`    discarded: others used ${(100 * round.foreignShare).toFixed(0)} % of a CPU`);
  }
  return { round: null, discarded: ATTEMPTS_MAX };
}

/** All rounds of one job, the servers taking turns within each round. */
async function runJob(
  job: Job,
  servers: readonly Server[],
  placement: Placement,
  folder: string,
  options: Options,
): Promise<Series[]> {
  const setting: Setting = { cpus: cpusOf(placement), seconds: options.seconds, folder };
  for (const server of servers) await prepare(job, server, setting.cpus);
  const collected = servers.map((server) => ({ server, rounds: [] as Round[], discarded: 0 }));
  for (let turn = 0; turn < options.rounds; turn += 1) {
    for (const entry of collected) {
      const { server } = entry;
      const measure = async (): Promise<Round> => {
        await server.settle();
        const round = await measureRound(job, server, setting, turn + 1);
        await server.settle();
        return round;
      };
      const { round, discarded } = await quietRound(measure, options.foreign);
      entry.discarded += discarded;
      if (round === null) continue;
      entry.rounds.push(round);
      const cpu = round.serverCpuUs === null ? '' : `, ${round.serverCpuUs.toFixed(2)} us CPU`;
      const rate = Math.round(round.perSecond);
      say(`  ${placement} ${job.name} round ${turn + 1}: ${server.name} ${rate}/s${cpu}`);
    }
  }
  return collected.map(({ server, rounds, discarded }) => ({
    ...{ placement, job, rounds, discarded },
    server: server.name,
  }));
}

async function runPlacement(
  folder: string,
  devices: Devices,
  placement: Placement,
  options: Options,
): Promise<Series[]> {
  const scope = createScope();
  try {
    const servers = await startServers(scope, folder, cpusOf(placement), devices);
    const series: Series[] = [];
    for (const job of options.jobs) {
      series.push(...(await runJob(job, servers, placement, folder, options)));
    }
    return series;
  } finally {
    await scope.close();
  }
}

/** Random writes for long enough that the log has wrapped many times. */
async function runSustained(
  folder: string,
  devices: Devices,
  foreignMax: number,
): Promise<Results['sustained']> {
  const scope = createScope();
  const job = jobs.find(({ name }) => name === 'randwrite-32');
  if (job === undefined) throw new Error('there is no job of random writes');
  try {
    const cpus = cpusOf('pinned');
    const server = await startSustained(scope, folder, cpus, SMALL_CACHE_BYTES, devices.origin);
    const setting: Setting = { cpus, seconds: SUSTAINED_SECONDS / 2, folder };
    // The first half fills the log; only the second one counts.
    await measureRound(job, server, setting, 1);
    const { round } = await quietRound(() => measureRound(job, server, setting, 2), foreignMax);
    return round && { perSecond: round.perSecond, seconds: SUSTAINED_SECONDS };
  } finally {
    await scope.close();
  }
}

async function benchmark(scope: Scope, options: Options): Promise<Results> {
  const folder = join(options.folder, 'devices');
  // A run that was killed could not take its files away.
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  scope.defer(() => rmSync(folder, { recursive: true, force: true }));
  say('writing the devices');
  const devices = await makeDevices(scope, folder, CACHE_BYTES);
  const found = workersMask();
  scope.defer(() => placeWorkers(found));
  const series: Series[] = [];
  for (const placement of options.placements) {
    placeWorkers(workersMaskFor(placement, found));
    series.push(...(await runPlacement(folder, devices, placement, options)));
  }
  placeWorkers(workersMaskFor('pinned', found));
  const sustained = options.sustained ? await runSustained(folder, devices, options.foreign) : null;
  return {
    machine: await describeMachine(folder),
    roundsWanted: options.rounds,
    seconds: options.seconds,
    foreignMax: options.foreign,
    series,
    sustained,
  };
}

/** Whether this run may stand in the documentation. */
function isComplete(results: Results, options: Options): boolean {
  return (
    options.jobs.length === jobs.length &&
    options.placements.length === 2 &&
    options.seconds >= SECONDS_MIN &&
    results.sustained !== null &&
    results.series.every(({ rounds }) => rounds.length >= ROUNDS_MIN)
  );
}

function parsePositive(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('a number above 0, please');
  return value;
}

function parseJobs(text: string): Job[] {
  return text.split(',').map((name) => {
    const job = jobs.find((one) => one.name === name);
    if (job !== undefined) return job;
    throw new InvalidArgumentError(`known jobs: ${jobs.map((one) => one.name).join(', ')}`);
  });
}

function parsePlacements(text: string): Placement[] {
  if (text === 'both') return ['pinned', 'unpinned'];
  if (text === 'pinned' || text === 'unpinned') return [text];
  throw new InvalidArgumentError('pinned, unpinned or both');
}

function parseOptions(argv: readonly string[]): Options {
  const command = new Command('bench')
    .description('Measures ringfence beside its peers and writes docs/benchmarks.md.')
    .option('--rounds <count>', 'rounds per job and server', parsePositive, ROUNDS_MIN)
    .option('--seconds <seconds>', 'length of a round', parsePositive, SECONDS_MIN)
    .addOption(
      new Option('--jobs <names>', 'only these jobs, with commas between')
        .argParser(parseJobs)
        .default(jobs, 'all'),
    )
    .addOption(
      new Option('--placements <which>', 'pinned, unpinned or both')
        .argParser(parsePlacements)
        .default(['pinned', 'unpinned'], 'both'),
    )
    .option('--no-sustained', 'leave out the sustained job')
    .option('--foreign <share>', 'accepted CPU use of others', parsePositive, FOREIGN_SHARE_MAX)
    .option('--folder <path>', 'for the devices', join(projectRoot, '.ringfence', 'bench'));
  return command.parse(argv).opts() as Options;
}

const options = parseOptions(process.argv);
const refusal = benchRefusal();
if (refusal !== null) {
  say(refusal);
  process.exit(1);
}
const scope = createScope();
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  // The kernel ends the servers and detaches their devices with us; the files are ours to remove.
  process.once(signal, () => void scope.close().finally(() => process.exit(130)));
}
try {
  const results = await benchmark(scope, options);
  const generated = renderResults(results);
  process.stdout.write(`${generated}\n`);
  if (isComplete(results, options)) {
    writeFileSync(PAGE, insertResults(readFileSync(PAGE, 'utf8'), generated));
    say(`written into ${PAGE}`);
  } else {
    say('docs/benchmarks.md is left as it is: this run is not complete');
  }
} finally {
  await scope.close();
}
