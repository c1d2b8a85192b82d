/** `ringfence drain`: everything dirty is on the origin, which has been flushed. */

import type { Command } from 'commander';
import { askDaemon } from '../control/client.ts';
import type { Context } from './context.ts';
import { controlOption, jsonOption } from './options.ts';

/** Adds the verb. */
export function addDrainCommand(program: Command, context: Context): void {
  program
    .command('drain')
    .description('carry everything that is dirty now to the origin, and flush the origin')
    .argument('[name]', 'an export; all that are served without one')
    .addOption(controlOption())
    .addOption(jsonOption())
    .action(async (name: string | undefined, options: { control: string; json?: boolean }) => {
      await askDaemon(options.control, { verb: 'drain', export: name ?? null });
      if (options.json) context.write(`${JSON.stringify({ drained: name ?? null })}\n`);
      else context.write(`${origins(name)} everything that was dirty when you asked.\n`);
    });
}

function origins(name: string | undefined): string {
  if (name !== undefined) return `The origin of "${name}" has`;
  return 'The origins of all exports that are served have';
}
