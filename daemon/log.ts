/** The daemon's log: one JSON object per line on standard error. */

import { type Logger, pino } from 'pino';
import { RingfenceError } from './errors.ts';

export type { Logger } from 'pino';

/** What is kept while the log cannot be written; newer lines are lost. */
const KEPT_BYTES_MAX = 1 << 20;

/**
 * Opens the log. Writing is synchronous: the last lines before an exit are the ones that matter,
 * and a blocked reader of the log can hold up JavaScript only, never an attached client. A log that
 * cannot be written (its disk is full, its terminal is gone) throws nothing: serving goes on.
 */
export function createLog(level: string, descriptor = 2): Logger {
  const destination = pino.destination({ fd: descriptor, sync: true, maxLength: KEPT_BYTES_MAX });
  destination.on('error', () => undefined);
  return pino(
    {
      name: 'ringfence',
      level,
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination,
  );
}

/** What a log line says of an error: the code and, for what was not foreseen, where it happened. */
export function errorFields(error: unknown): Record<string, unknown> {
  if (error instanceof RingfenceError) {
    const { cause } = error;
    return { code: error.code, cause: cause instanceof Error ? cause.message : cause };
  }
  return { err: error instanceof Error ? error.stack : String(error) };
}
