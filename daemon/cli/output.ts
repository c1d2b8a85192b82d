/** Text for people, made the same way by several verbs. */

import { reasonOf } from '../errors.ts';
import type { Guard } from '../native.ts';

/** Rows as lines, each column as wide as its widest cell. */
export function table(rows: readonly (readonly string[])[]): readonly string[] {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, cell] of row.entries()) {
      widths[column] = Math.max(widths[column] ?? 0, cell.length);
    }
  }
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  );
}

/** One line per guard; what is down says why and what to do. */
export function guardLines(guards: readonly Guard[]): readonly string[] {
  return table(
    guards.map(({ measure, up, advice }) => [
      measure,
      up ? 'up' : 'down',
      up ? '' : (advice ?? ''),
    ]),
  );
}

/** What the native side said about a device, without the path that our sentence names already. */
export function nativeReason(error: unknown, path: string): string {
  return reasonOf(error).replace(`cache device ${path}: `, '');
}
