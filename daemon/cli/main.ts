/** The command: parses the verb and turns every failure into one sentence and an exit code. */

import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { EXIT_REFUSED, reasonOf, ringfenceError, toRingfenceError } from '../errors.ts';
import { addAttachCommand } from './attach.ts';
import { addCheckCommand } from './check.ts';
import { type Context, processContext } from './context.ts';
import { addDetachCommand } from './detach.ts';
import { addDoctorCommand } from './doctor.ts';
import { addDrainCommand } from './drain.ts';
import { addFlushCommand } from './flush.ts';
import { addFormatCommand } from './format.ts';
import { addResolveCommand } from './resolve.ts';
import { addServeCommand } from './serve.ts';
import { addStatusCommand } from './status.ts';
import { addStopCommand } from './stop.ts';

/** The whole command line, for `main` and for the test that compares it with its documentation. */
export function buildProgram(context: Context): Command {
  const program = new Command('ringfence')
    .description('A persistent write-back cache for block devices, served over NBD.')
    .version(packageVersion())
    .exitOverride()
    .configureOutput({
      writeOut: (text) => context.write(text),
      writeErr: (text) => context.writeError(text),
      outputError: (text, write) => write(text.replace(/^error: /, 'ringfence: ')),
    })
    .showSuggestionAfterError(true);
  addFormatCommand(program, context);
  addServeCommand(program, context);
  addStatusCommand(program, context);
  addFlushCommand(program, context);
  addDrainCommand(program, context);
  addResolveCommand(program, context);
  addStopCommand(program, context);
  addAttachCommand(program, context);
  addDetachCommand(program, context);
  addDoctorCommand(program, context);
  addCheckCommand(program, context);
  return program;
}

/** Verbs that stay until they are stopped. */
const LASTING = new Set(['serve', 'attach']);

/**
 * Runs the command with `process.argv` as it is.
 *
 * @returns the exit code: 0, 1 where trying again may help, 2 where the input has to change; of
 * `check` 1 for damage alone
 */
export async function main(
  argv: readonly string[],
  context: Context = processContext(),
): Promise<number> {
  try {
    await buildProgram(context).parseAsync([...argv]);
    const failure = (await context.written?.()) ?? null;
    // What runs for long has said its results long ago, and ends as it should.
    if (failure !== null && !LASTING.has(argv[2] ?? ''))
      throw ringfenceError('RF_OUTPUT', [reasonOf(failure)], failure);
    return 0;
  } catch (error) {
    // Commander has already said what was wrong.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_REFUSED;
    const { code, message, exitCode, cause } = toRingfenceError(error);
    context.writeError(`ringfence: ${message} [${code}]\n`);
    if (code === 'RF_INTERNAL' && cause instanceof Error) context.writeError(`${cause.stack}\n`);
    // Whoever asks whether a cache is damaged must not take any other failure for a yes.
    return argv[2] === 'check' && code !== 'RF_CHECK_DAMAGED' ? EXIT_REFUSED : exitCode;
  }
}

function packageVersion(): string {
  const manifest = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(manifest) as { version: string }).version;
}
