/** `ringfence stop`: requests in flight finish, the log is flushed, the daemon exits. */

import type { Command } from 'commander';
import { askDaemon } from '../control/client.ts';
import type { Context } from './context.ts';
import { controlOption, jsonOption } from './options.ts';

/** Adds the verb. */
export function addStopCommand(program: Command, context: Context): void {
  program
    .command('stop')
    .description('stop the daemon; what is dirty stays in the cache and needs no draining')
    .addOption(controlOption())
    .addOption(jsonOption())
    .action(async (options: { control: string; json?: boolean }) => {
      await askDaemon(options.control, { verb: 'stop' });
      if (options.json) context.write(`${JSON.stringify({ stopped: true })}\n`);
      else context.write('The daemon has flushed its log and stopped.\n');
    });
}
