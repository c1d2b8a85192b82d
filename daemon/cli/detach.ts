/** `ringfence detach`: lets go of a device, unless somebody uses it. */

import type { Command } from 'commander';
import { nbdDevicePath, parseNbdDevice } from '../attach/devices.ts';
import { SYSTEM } from '../attach/supervision.ts';
import { reasonOf, ringfenceError } from '../errors.ts';
import type { Context } from './context.ts';
import { parsedBy } from './options.ts';

/** Adds the verb. */
export function addDetachCommand(program: Command, context: Context): void {
  program
    .command('detach')
    .description('detach a block device that "attach" made; needs root')
    .argument('<device>', '/dev/nbdN', parsedBy(parseNbdDevice))
    .option('--force', 'even while it is in use: whoever uses it gets errors')
    .action(async (index: number, options: { force?: boolean }) => {
      const path = nbdDevicePath(index);
      const use = options.force ? null : await SYSTEM.use(path);
      if (use !== null) throw ringfenceError('RF_DETACH', [path, use]);
      try {
        await context.native().detachNbd(index);
      } catch (error) {
        throw ringfenceError('RF_DETACH', [path, reasonOf(error)], error);
      }
      context.write(`${path} is detached.\n`);
    });
}
