/** `ringfence attach`: an export as a block device that survives restarts of the daemon. */

import { type Command, Option } from 'commander';
import { type Address, nbdUri, parseAddress, reachable } from '../addresses.ts';
import { parseNbdDevice } from '../attach/devices.ts';
import { attachExport, BLOCK_BYTES_DEFAULT, SYSTEM } from '../attach/supervision.ts';
import { type Config, LOG_LEVELS } from '../config.ts';
import { askDaemon } from '../control/client.ts';
import { ringfenceError } from '../errors.ts';
import { createLog } from '../log.ts';
import type { Status } from '../status.ts';
import { parseDurationMs } from '../units.ts';
import type { Context } from './context.ts';
import { controlOption, oneOf, parsedBy, wholeNumber } from './options.ts';
import { watchProcess } from './watch.ts';

/** Sockets that the native part gives a device at most (`attach::SOCKETS_MAX`). */
const CONNECTIONS_MAX = 16;
/** Short enough to go unnoticed; the kernel logs a line for each request that takes longer. */
const RESEND_SECONDS_DEFAULT = 10;
const DEAD_TIMEOUT_SECONDS_DEFAULT = 600;
const BLOCK_SIZES = ['512', '1024', '2048', '4096'] as const;

interface AttachOptions {
  readonly connect?: Address;
  readonly control: string;
  readonly connections: number;
  readonly resend: number;
  readonly deadTimeout: number;
  readonly blockSize: (typeof BLOCK_SIZES)[number];
  readonly logLevel: Config['logLevel'];
}

/** Adds the verb. */
export function addAttachCommand(program: Command, context: Context): void {
  program
    .command('attach')
    .description('attach an export as a block device, and stay to mend its connection; needs root')
    .argument('<name>', 'the export')
    .argument('[device]', '/dev/nbdN; the kernel chooses without it', parsedBy(parseNbdDevice))
    .option(
      '--connect <address>',
      'unix:PATH or HOST:PORT of the server; the daemon behind --control without it',
      parsedBy(parseAddress),
    )
    .addOption(controlOption())
    .option(
      '--connections <number>',
      'connections to the server',
      wholeNumber(1, CONNECTIONS_MAX),
      1,
    )
    .addOption(
      durationOption(
        '--resend <duration>',
        'how long what was on its way over a broken connection waits before it is sent again',
        RESEND_SECONDS_DEFAULT,
      ),
    )
    .addOption(
      durationOption(
        '--dead-timeout <duration>',
        'how long requests wait for a new connection before they fail',
        DEAD_TIMEOUT_SECONDS_DEFAULT,
      ),
    )
    .option(
      '--block-size <bytes>',
      `logical block size of the device: ${BLOCK_SIZES.join(', ')}`,
      oneOf(BLOCK_SIZES),
      `${BLOCK_BYTES_DEFAULT}`,
    )
    .option('--log-level <level>', LOG_LEVELS.join(', '), oneOf(LOG_LEVELS), 'info')
    .action((name: string, index: number | undefined, options: AttachOptions) =>
      attach(name, index ?? null, options, context),
    );
}

/** An option in whole seconds, which is how the kernel counts. */
function durationOption(flags: string, description: string, seconds: number): Option {
  const parse = (text: string) => Math.ceil(parseDurationMs(text, '1s') / 1000);
  return new Option(flags, description).argParser(parsedBy(parse)).default(seconds, `${seconds}s`);
}

async function attach(
  exportName: string,
  index: number | null,
  options: AttachOptions,
  context: Context,
): Promise<void> {
  const address = reachable(options.connect ?? (await askForAddress(options.control)));
  const log = createLog(options.logLevel);
  const life = watchProcess(log);
  try {
    const request = {
      address,
      exportName,
      index,
      connections: options.connections,
      resendSeconds: options.resend,
      deadTimeoutSeconds: options.deadTimeout,
      blockBytes: Number(options.blockSize),
    };
    const dependencies = { native: context.native(), log, signal: life.signal, ...SYSTEM };
    const { path, tookOver, stay } = await attachExport(request, dependencies);
    const how = tookOver ? 'was attached already, and is looked after again' : 'is attached';
    context.write(`${path} ${how}: "${exportName}" of ${nbdUri(address, exportName)}\n`);
    await stay();
    context.write(`${path} is detached.\n`);
  } finally {
    life.unwatch();
  }
  const failure = life.failure();
  if (failure !== null) throw failure;
}

/** Where the daemon of this machine listens; a Unix socket before anything else. */
async function askForAddress(control: string): Promise<Address> {
  const { listen } = (await askDaemon(control, { verb: 'status' })) as Status;
  const addresses = listen.map(parseAddress);
  const found = addresses.find(({ kind }) => kind === 'unix') ?? addresses[0];
  if (found === undefined) throw ringfenceError('RF_NOT_READY', ['listening nowhere']);
  return found;
}
