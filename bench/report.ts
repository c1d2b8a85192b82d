/** From rounds to a page: medians, ratios of medians, and whether each target is met. */

import type { Job, ServerName } from './jobs.ts';
import type { Placement } from './machine.ts';
import type { Round } from './measure.ts';

/** All rounds of one job on one server. */
export interface Series {
  readonly placement: Placement;
  readonly job: Job;
  readonly server: ServerName;
  readonly rounds: readonly Round[];
  /** Rounds that were measured and thrown away because others used the machine. */
  readonly discarded: number;
}

/** What is written about. */
export interface Results {
  readonly machine: readonly string[];
  readonly roundsWanted: number;
  readonly seconds: number;
  /** What others might use of one CPU in a round that is kept. */
  readonly foreignMax: number;
  readonly series: readonly Series[];
  readonly sustained: { readonly perSecond: number; readonly seconds: number } | null;
}

/** The middle value; of an even number, the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? Number.NaN)) / 2;
}

function find(results: Results, placement: Placement, job: Job, server: ServerName) {
  return results.series.find(
    (one) => one.placement === placement && one.job.name === job.name && one.server === server,
  );
}

function medianOf(series: Series | undefined, pick: (round: Round) => number | null): number {
  const values = (series?.rounds ?? []).map(pick).filter((value) => value !== null);
  return median(values);
}

/** A figure with three digits that count, or a dash for none. */
function show(value: number): string {
  if (!Number.isFinite(value)) return '–';
  if (value >= 1000) return Math.round(value).toLocaleString('en');
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}

function row(cells: readonly string[]): string {
  return `| ${cells.join(' | ')} |`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  return [row(head), row(head.map((_, index) => (index === 0 ? '---' : '--:'))), ...rows.map(row)];
}

function jobsOf(results: Results): Job[] {
  return [...new Map(results.series.map(({ job }) => [job.name, job])).values()];
}

function serversOf(results: Results): ServerName[] {
  return [...new Set(results.series.map(({ server }) => server))];
}

/** Every target with what was measured. */
function targetTable(results: Results, placement: Placement): string[] {
  const rate = (job: Job, server: ServerName): number =>
    medianOf(find(results, placement, job, server), (round) => round.perSecond);
  const cpu = (job: Job, server: ServerName): number =>
    medianOf(find(results, placement, job, server), (round) => round.serverCpuUs);
  const rows = jobsOf(results).flatMap((job) => [
    ...job.targets.map(({ peer, ratioMin }) => {
      const ratio = rate(job, 'ringfence') / rate(job, peer);
      const met = ratio >= ratioMin ? 'yes' : '**no**';
      return [job.title, `${ratioMin.toFixed(2)} of ${peer}`, show(ratio), met];
    }),
    ...job.cpuBelow.map((peer) => {
      const [own, other] = [cpu(job, 'ringfence'), cpu(job, peer)];
      const met = own < other ? 'yes' : '**no**';
      const measured = `${show(own)} against ${show(other)} µs`;
      return [`${job.title}: CPU time per request`, `below ${peer}`, measured, met];
    }),
  ]);
  return table(['job', 'target', 'measured', 'met'], rows);
}

function figureTable(
  results: Results,
  placement: Placement,
  pick: (round: Round) => number | null,
): string[] {
  const servers = serversOf(results);
  const rows = jobsOf(results).map((job) => [
    job.title,
    ...servers.map((server) => show(medianOf(find(results, placement, job, server), pick))),
  ]);
  return table(['job', ...servers], rows);
}

function spreadTable(results: Results, placement: Placement): string[] {
  const rows = jobsOf(results).map((job) => {
    const series = find(results, placement, job, 'ringfence');
    const rates = (series?.rounds ?? []).map(({ perSecond }) => perSecond);
    const percent = (pick: (round: Round) => number | null): string => {
      const share = medianOf(series, pick);
      return Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : '–';
    };
    return [
      job.title,
      show(Math.min(...rates)),
      show(median(rates)),
      show(Math.max(...rates)),
      show(medianOf(series, (round) => round.p99Us)),
      percent((round) => round.hitShare),
      percent((round) => round.deviceShare),
      show(medianOf(series, (round) => round.flushes)),
      show(medianOf(series, (round) => round.ring?.systemCalls ?? null)),
      show(medianOf(series, (round) => round.ring?.sleeps ?? null)),
    ];
  });
  const head = ['job', 'lowest', 'median', 'highest', 'p99 in µs', 'hits', 'device'];
  return table([...head, 'flushes', 'system calls', 'sleeps'], rows);
}

function placementSection(results: Results, placement: Placement): string[] {
  const title =
    placement === 'pinned'
      ? 'Client on one CPU, servers on the other'
      : 'Client and servers on any CPU';
  const rate = (round: Round): number => round.perSecond;
  return [
    ...[`### ${title}`, '', ...targetTable(results, placement), ''],
    ...['Requests per second:', '', ...figureTable(results, placement, rate), ''],
    'CPU time of the server per request, in microseconds:',
    ...['', ...figureTable(results, placement, (round) => round.serverCpuUs), ''],
    'ringfence, requests per second over the rounds, with latency, the share of what was read ' +
      'that the cache had and that came from its device, and per request the flushes, the ' +
      'system calls of its ring thread and how often that slept:',
    ...['', ...spreadTable(results, placement), ''],
  ];
}

/** The generated part of the page. */
export function renderResults(results: Results): string {
  const placements = [...new Set(results.series.map(({ placement }) => placement))];
  const kept = results.series.flatMap(({ rounds }) => rounds);
  const foreign = kept.map((round) => round.foreignShare);
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
  const discarded = results.series.reduce((total, one) => total + one.discarded, 0);
  const sustained =
    results.sustained === null
      ? []
      : [
          `Sustained: random writes at depth 32 for ${results.sustained.seconds} s through a log ` +
            'that is a small part of what is written, so that each write waits for an older one ' +
            `to reach the origin: ${show(results.sustained.perSecond)} per second over the ` +
            'second half.',
          '',
        ];
  return [
    ...results.machine.map((fact) => `- ${fact}`),
    `- ${results.roundsWanted} interleaved rounds of ${results.seconds} s; ${kept.length} kept, ` +
      `in which others used ${percent(median(foreign))} of a CPU (median; at most ` +
      `${percent(Math.max(...foreign))}); ${discarded} discarded at more than ` +
      percent(results.foreignMax),
    ...['', ...sustained],
    ...placements.flatMap((placement) => placementSection(results, placement)),
  ].join('\n');
}

const BEGIN = '<!-- results: written by `npm run bench` -->';
const END = '<!-- end of results -->';

/** Puts the generated part between its marks in the page. */
export function insertResults(page: string, generated: string): string {
  const [begin, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error('the page has no marks for the results');
  return `${page.slice(0, begin + BEGIN.length)}\n\n${generated.trim()}\n\n${page.slice(end)}`;
}
