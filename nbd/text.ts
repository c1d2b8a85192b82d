/** Text of a peer in texts of our own. */

import { ECHO_LENGTH_MAX } from './constants.ts';

/**
 * A peer's text in quotes, fit for a log line and for an error: cut after
 * {@link ECHO_LENGTH_MAX} code points, so that a long name cannot overflow whoever prints it
 * (CVE-2020-10761), and without characters that would move a terminal's cursor.
 */
export function quote(text: string): string {
  // Code points beyond what can be shown need not be split off a string that may be long.
  const points = Array.from(text.slice(0, 2 * (ECHO_LENGTH_MAX + 1)));
  const cut = points.length > ECHO_LENGTH_MAX;
  const shown = points.slice(0, ECHO_LENGTH_MAX).join('');
  return `"${shown.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, '?')}${cut ? '…' : ''}"`;
}
