/** `ringfence status`: what the daemon serves, how full it is, and what protects it. */

import type { Command } from 'commander';
import { askDaemon } from '../control/client.ts';
import type { Status } from '../status.ts';
import { formatSize } from '../units.ts';
import type { Context } from './context.ts';
import { controlOption, jsonOption } from './options.ts';
import { guardLines, table } from './output.ts';

/** Adds the verb. */
export function addStatusCommand(program: Command, context: Context): void {
  program
    .command('status')
    .description('show the cache, the exports and the protections of the I/O path')
    .addOption(controlOption())
    .addOption(jsonOption())
    .action(async (options: { control: string; json?: boolean }) => {
      const status = (await askDaemon(options.control, { verb: 'status' })) as Status;
      context.write(options.json ? `${JSON.stringify(status, null, 2)}\n` : statusText(status));
    });
}

/** A status for people. */
export function statusText(status: Status): string {
  const { cache, reserve, index, guards, exports } = status;
  const heads = ['export', 'size', 'mode', 'order', 'dirty', 'cached', 'origin', 'state'];
  const rows = exports.map((one) => [
    one.name,
    size(one.size_bytes),
    one.mode,
    one.order,
    size(one.dirty_bytes),
    size(one.cached_bytes),
    one.origin.uri,
    one.origin.state,
  ]);
  const measures = Object.entries(guards).map(([measure, guard]) => ({ measure, ...guard }));
  const lines = [
    `cache    ${cache.path}, ${size(cache.used_bytes)} of ${size(cache.size_bytes)} in use`,
    `         ${cache.uuid}`,
    `reserve  ${size(reserve.used_bytes)} of ${size(reserve.size_bytes)} in use`,
    `index    ${size(index.size_bytes)}, ${index.leaves_used} of ${index.leaves} leaves in use`,
    '',
    ...table([heads, ...rows]),
    '',
    ...guardLines(measures),
  ];
  if (cache.unserved_dirty_bytes > 0) {
    const dirty = size(cache.unserved_dirty_bytes);
    lines.push(
      '',
      `The cache holds ${dirty} for exports that are not served: serve and drain them.`,
    );
  }
  if (cache.latched) {
    lines.push('', 'The cache device failed: writes and flushes give EIO until a restart.');
  }
  return `${lines.join('\n')}\n`;
}

function size(bytes: number): string {
  return formatSize(BigInt(bytes));
}
