/** A log that keeps its lines for a test to look at. */

import { pino } from 'pino';
import type { Logger } from '../../daemon/log.ts';

/** One line of it. */
export interface LogLine {
  readonly level: number;
  readonly msg: string;
  readonly [field: string]: unknown;
}

/** The log and what it has been told. */
export interface RecordedLog {
  readonly log: Logger;
  readonly lines: LogLine[];
}

/** Makes one that keeps everything. */
export function recordedLog(): RecordedLog {
  const lines: LogLine[] = [];
  const log = pino({ level: 'trace' }, { write: (text) => void lines.push(JSON.parse(text)) });
  return { log, lines };
}
