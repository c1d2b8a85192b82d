/** What ends a verb that stays: signals, and exceptions that nobody caught. */

import { errorFields, type Logger } from '../log.ts';

/** Signals that end a process orderly; a terminal that hangs up is one of them. */
const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;

/** What ends a process from outside its own logic. */
export interface ProcessWatch {
  /** Aborted with the reason. */
  readonly signal: AbortSignal;
  /** The exception that nobody caught, if that was it. */
  failure(): unknown;
  /** Takes the handlers away again. */
  unwatch(): void;
}

/**
 * Turns signals and uncaught exceptions into one orderly stop. After an exception the state of
 * JavaScript is unknown, but the ring's is not: attached clients finish what they asked for.
 */
export function watchProcess(log: Logger): ProcessWatch {
  const controller = new AbortController();
  let failure: unknown = null;
  const onSignal = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) log.info({ signal: name }, 'already stopping');
    controller.abort(name);
  };
  const onException = (error: unknown): void => {
    log.fatal(errorFields(error), 'an exception that nobody caught');
    failure ??= error;
    controller.abort('an exception that nobody caught');
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  // Rejections that nobody handles arrive here too.
  process.on('uncaughtException', onException);
  return {
    signal: controller.signal,
    failure: () => failure,
    unwatch: () => {
      for (const name of SIGNALS) process.off(name, onSignal);
      process.off('uncaughtException', onException);
    },
  };
}
