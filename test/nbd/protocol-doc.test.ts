/** docs/protocol.md names a test for every rule, or says that there is none yet. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { projectRoot } from '../support/process.ts';

const lines = readFileSync(join(projectRoot, 'docs', 'protocol.md'), 'utf8').split('\n');

/** Cells of all rows below a head that begins with this word. */
function rowsOf(head: string): string[][] {
  const rows: string[][] = [];
  let inside = false;
  for (const line of lines) {
    const cells = line.split(' | ').map((cell) => cell.replaceAll(/^\| ?| ?\|$/g, '').trim());
    if (!line.startsWith('|')) inside = false;
    else if (inside && !line.startsWith('|--')) rows.push(cells);
    else if (cells[0] === head) inside = true;
  }
  return rows;
}

const files = new Map(
  rowsOf('letter').map(([letter = '', where = '']) => {
    const path = /`([^`]+)`/.exec(where)?.[1] ?? '';
    return [letter, readFileSync(join(projectRoot, path), 'utf8')];
  }),
);
const rules = [...rowsOf('rule'), ...rowsOf('way')];

test('the tables are found', (t) => {
  t.is(files.size, 12);
  t.true(rules.length > 60);
});

test('every rule has its tests, and they exist', (t) => {
  for (const row of rules) {
    const cell = row.at(-1) ?? '';
    if (cell === '*not yet*') continue;
    for (const citation of cell.split('; ')) {
      const [, letter = '', title = ''] = /^([A-Z]) \*(.+)\*$/.exec(citation) ?? [];
      const found = title !== '' && files.get(letter)?.includes(title.trim());
      t.true(found, `${row[0]}: ${citation}`);
    }
  }
});

test('every test of the codecs and of negotiation proves a rule or says what it does', (t) => {
  // Beside the rules, tests check the tests and the callers; those are named here.
  const others = [
    'the streams of these tests reach every end',
    'any split of the stream has the same effects on the client',
    'more bytes than were asked for are an error of the caller',
    'a name that is too long to be sent is an error of the caller',
    'unknown handshake flags and kinds of information are ignored',
    'a server without structured replies, and a flag that needs them',
  ];
  const cited = rules.map((row) => row.at(-1)).join('\n');
  for (const letter of ['S', 'K', 'P']) {
    const titles = [...(files.get(letter) ?? '').matchAll(/^test\('(.+)', \(t\)/gm)];
    t.true(titles.length > 0);
    for (const [, title = ''] of titles) {
      t.true(cited.includes(title) || others.includes(title), title);
    }
  }
});
