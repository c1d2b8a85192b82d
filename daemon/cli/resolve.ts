/** `ringfence resolve`: gives up what is damaged, so that destaging goes on. */

import type { Command } from 'commander';
import { askDaemon } from '../control/client.ts';
import type { Context } from './context.ts';
import { controlOption, jsonOption } from './options.ts';

/** Adds the verb. */
export function addResolveCommand(program: Command, context: Context): void {
  program
    .command('resolve')
    .description('let destaging of a damaged export go on')
    .argument('<name>', 'the export')
    .requiredOption(
      '--accept-loss',
      'give up the damaged blocks: the origin keeps what it has there, and reading them fails ' +
        'until they are overwritten',
    )
    .addOption(controlOption())
    .addOption(jsonOption())
    .action(async (name: string, options: { control: string; json?: boolean }) => {
      await askDaemon(options.control, { verb: 'resolve', export: name, accept_loss: true });
      if (options.json) context.write(`${JSON.stringify({ resolved: name })}\n`);
      else {
        context.write(
          `What destaging has found damaged of "${name}" is given up, and it tries again: ` +
            '`ringfence status` shows whether it goes on.\n',
        );
      }
    });
}
