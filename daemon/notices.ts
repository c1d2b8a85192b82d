/** What the ring thinks an operator should know, as log lines. */

import type { Logger } from './log.ts';
import type { NativeEvent } from './native.ts';

/** Blocks whose damage is remembered, so that a client that reads one for ever logs it once. */
const REMEMBERED_MAX = 1024;

type Notice = Extract<NativeEvent, { type: 'notice' }>;
type Level = 'error' | 'warn' | 'info';

const KNOWN: Readonly<Record<string, readonly [Level, string]>> = {
  latched: [
    'error',
    'the cache device failed: writes and flushes give EIO on every export until a restart',
  ],
  origin_down: ['warn', 'an origin stopped answering; what is dirty stays in the cache'],
  origin_up: ['info', 'an origin answers again'],
  checksum_mismatch: ['error', 'a block on the cache device is damaged'],
  destage_damaged: ['error', 'destaging stands still before damaged data'],
  segment_damaged: [
    'error',
    'the cache device cannot say what its oldest segment holds: its room is not used again',
  ],
};

/** Makes the function that logs notices: what lasts, and is found again and again, once. */
export function createNoticeLog(
  log: Logger,
  exportName: (slot: number) => string | null,
): (notice: Notice) => void {
  const remembered = new Set<string>();

  /**
   * An origin goes down and up many times, and destaging may stand still many times, which the ring
   * says once each; a damaged block is damaged once.
   */
  function isRepeated({ notice, slot, detail }: Notice): boolean {
    if (['origin_down', 'origin_up', 'destage_damaged'].includes(notice)) return false;
    const key = `${notice} ${slot} ${detail}`;
    if (remembered.has(key)) return true;
    if (remembered.size >= REMEMBERED_MAX) remembered.clear();
    remembered.add(key);
    return false;
  }

  return (event) => {
    if (isRepeated(event)) return;
    const [level, text] = KNOWN[event.notice] ?? ['warn', 'the ring has something to say'];
    const name = event.slot === null ? null : exportName(event.slot);
    const fields = { notice: event.notice, detail: event.detail };
    log[level](name === null ? fields : { ...fields, export: name }, text);
  };
}
