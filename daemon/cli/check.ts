/** `ringfence check`: reads a cache that nobody serves, compares everything, and writes nothing. */

import type { Command } from 'commander';
import { findDevice, refuseDeviceInUse } from '../devices.ts';
import { reasonOf, ringfenceError } from '../errors.ts';
import type { CheckFinding, CheckReport } from '../native.ts';
import { formatSize } from '../units.ts';
import type { Context } from './context.ts';
import { jsonOption } from './options.ts';
import { nativeReason, table } from './output.ts';

/** Adds the verb. */
export function addCheckCommand(program: Command, context: Context): void {
  program
    .command('check')
    .description('read a cache that is not being served, compare everything, write nothing')
    .argument('<device>', 'the cache device, or a file that holds a copy of one')
    .addOption(jsonOption())
    .action((path: string, options: { json?: boolean }) => check(path, options, context));
}

async function check(path: string, options: { json?: boolean }, context: Context): Promise<void> {
  const report = await read(path, context);
  const damage = report.findings.filter(({ severity }) => severity === 'damage').length;
  context.write(options.json ? `${toJson(path, report)}\n` : reportText(path, report));
  if (!report.clean) {
    const places = damage === 1 ? 'one place' : `${damage} places`;
    throw ringfenceError('RF_CHECK_DAMAGED', [path, places]);
  }
}

/** All that keeps a cache from being read is one kind of failure here: exit code 1 is damage. */
async function read(path: string, context: Context): Promise<CheckReport> {
  try {
    const native = context.native();
    const device = await findDevice(path, 'device');
    await refuseDeviceInUse(device, 'device');
    return await native.check(path);
  } catch (error) {
    const reason = nativeReason(error, path).replace(`The device ${path} `, 'it ');
    throw ringfenceError('RF_CHECK_IMPOSSIBLE', [path, reason || reasonOf(error)], error);
  }
}

/** The report as `--json` gives it: numbers where they are exact, names as in `status --json`. */
export function toJson(path: string, report: CheckReport): string {
  const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const plain = (value: unknown): unknown => {
    if (typeof value === 'bigint') return Number(value);
    if (Array.isArray(value)) return value.map(plain);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [snake(key), plain(one)]));
  };
  return JSON.stringify({ path, ...(plain(report) as object) }, null, 2);
}

/** A report for people. */
export function reportText(path: string, report: CheckReport): string {
  const { log } = report;
  const states = (copies: CheckReport['superblocks']) =>
    copies.map(({ state }) => state).join(' and ');
  const rows = [
    ['cache', `${path}, ${report.uuid}, format ${report.formatVersion}`],
    ['opened', `${report.incarnation} times`],
    ['superblocks', states(report.superblocks)],
    ['export table', states(report.exportTables)],
    ['segments', `${log.segmentsUsed} in use of ${report.segments}, ${walkedText(report)}`],
    ['records', `${log.records}, from ${log.tail} to ${log.nextSequence - 1n}`],
    ['durable', `at least up to ${log.durable}`],
    ['payload', `${formatSize(log.payloadBlocks * 4096n)} compared with its checksums`],
  ];
  const heads = ['export', 'size', 'cached', 'dirty', 'damaged clean', 'damaged dirty', 'origin'];
  const exports = report.exports.map((one) => [
    one.name,
    formatSize(one.sizeBytes),
    formatSize(one.liveBytes),
    formatSize(one.dirtyBytes),
    formatSize(one.damagedCleanBlocks * 4096n),
    formatSize(one.damagedDirtyBlocks * 4096n),
    one.originIdentity,
  ]);
  const lines = [...table(rows), ''];
  if (exports.length > 0) lines.push(...table([heads, ...exports]), '');
  if (log.recordsDropped > 0n) {
    lines.push(`${log.recordsDropped} records lie behind the end and do not count.`);
  }
  lines.push(...report.findings.map(findingText));
  if (report.clean) lines.push('Nothing is damaged.');
  return `${lines.join('\n')}\n`;
}

function walkedText({ log }: CheckReport): string {
  return `${log.segmentsWalked} of them without a footer`;
}

function findingText(finding: CheckFinding): string {
  const { severity, structure, offsetBytes, firstBlock, blockCount } = finding;
  const where = offsetBytes === null ? '' : ` at byte ${offsetBytes}`;
  const whose =
    finding.export === null || firstBlock === null || blockCount === null
      ? ''
      : `, export "${finding.export}" ${blocksText(firstBlock, blockCount)}`;
  return `${severity}: ${structure}${where}${whose}: ${finding.problem}: ${finding.meaning}.`;
}

function blocksText(first: bigint, count: bigint): string {
  return count === 1n ? `block ${first}` : `blocks ${first}-${first + count - 1n}`;
}
