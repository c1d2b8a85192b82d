/** `ringfence flush`: everything answered is durable on the cache device. */

import type { Command } from 'commander';
import { askDaemon } from '../control/client.ts';
import type { Context } from './context.ts';
import { controlOption, jsonOption } from './options.ts';

/** Adds the verb. */
export function addFlushCommand(program: Command, context: Context): void {
  program
    .command('flush')
    .description('make everything that was answered durable on the cache device')
    .argument('[name]', 'an export; all of them without one')
    .addOption(controlOption())
    .addOption(jsonOption())
    .action(async (name: string | undefined, options: { control: string; json?: boolean }) => {
      await askDaemon(options.control, { verb: 'flush', export: name ?? null });
      if (options.json) context.write(`${JSON.stringify({ flushed: name ?? null })}\n`);
      else context.write('Everything that was answered is durable on the cache device.\n');
    });
}
