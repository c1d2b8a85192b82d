/** A peer's text in texts of our own. */

import test from 'ava';
import { quote } from '../../nbd/text.ts';

test('short text is quoted as it is', (t) => {
  t.is(quote(''), '""');
  t.is(quote('disk-ö 1'), '"disk-ö 1"');
  t.is(quote('x'.repeat(64)), `"${'x'.repeat(64)}"`);
});

test('long text is cut between characters, and shows that it was', (t) => {
  t.is(quote('x'.repeat(65)), `"${'x'.repeat(64)}…"`);
  t.is(quote('😀'.repeat(4096)), `"${'😀'.repeat(64)}…"`);
  t.is(quote(`x${'😀'.repeat(4096)}`), `"x${'😀'.repeat(63)}…"`);
});

test('nothing moves a cursor or breaks a line', (t) => {
  t.is(quote('a\n\r\t\u001b\u009b\u2028\u200e\u007fb'), '"a????????b"');
});
