/**
 * The tables of docs/operations.md are what the code says. After a change of options, metrics or
 * errors, run this test with UPDATE_DOCS=1 once and look at the difference.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { buildProgram } from '../../daemon/cli/main.ts';
import { ERRORS } from '../../daemon/errors.ts';
import { EXPORT_DEFAULTS } from '../../daemon/exports.ts';
import { METRICS } from '../../metrics/definitions.ts';
import { projectRoot } from '../support/process.ts';
import { createFakeNative } from './fake-native.ts';

const FILE = join(projectRoot, 'docs', 'operations.md');

function rows(head: readonly string[], cells: readonly (readonly string[])[]): string {
  const line = (row: readonly string[]) =>
    `| ${row.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  const rule = `|${head.map(() => '---').join('|')}|`;
  return [line(head), rule, ...cells.map(line)].join('\n');
}

function optionsOf(name: string) {
  const context = { write: () => undefined, writeError: () => undefined, ask: async () => null };
  const program = buildProgram({ ...context, native: createFakeNative });
  return program.commands.find((verb) => verb.name() === name)?.options ?? [];
}

function attachRows(): string {
  const cells = optionsOf('attach').map(
    ({ flags, description, defaultValue, defaultValueDescription }) => [
      `\`${flags}\``,
      description,
      `${defaultValueDescription ?? defaultValue ?? ''}`,
    ],
  );
  return rows(['option of `attach`', 'meaning', 'default'], cells);
}

function optionRows(): string {
  const cells = optionsOf('serve').map(({ flags, long, description }) => {
    const key = long?.slice(2).replaceAll('-', '_') ?? '';
    return [`\`${flags}\``, key === 'config' ? '' : `\`${key}\``, description];
  });
  return rows(['option of `serve`', 'key of the file', 'meaning'], cells);
}

function metricRows(): string {
  const cells = METRICS.map(({ name, type, labels, help }) => [
    `\`${name}\``,
    type,
    labels.map((label) => `\`${label}\``).join(', '),
    help,
  ]);
  return rows(['metric', 'type', 'labels', 'meaning'], cells);
}

function errorRows(): string {
  const cells = Object.entries(ERRORS).map(([code, { exitCode, sentence }]) => {
    const fields = new Array<string>(sentence.length).fill('…');
    const text = (sentence as (...values: readonly string[]) => string)(...fields);
    return [`\`${code}\``, `${exitCode}`, text];
  });
  return rows(['code', 'exit code', 'sentence'], cells);
}

const TABLES: Readonly<Record<string, () => string>> = {
  options: optionRows,
  attach: attachRows,
  metrics: metricRows,
  errors: errorRows,
};

for (const [name, make] of Object.entries(TABLES)) {
  test.serial(`the table of ${name} in docs/operations.md is what the code says`, (t) => {
    const text = readFileSync(FILE, 'utf8');
    const [begin, end] = [`<!-- begin: ${name} -->\n`, `<!-- end: ${name} -->`];
    const from = text.indexOf(begin) + begin.length;
    const to = text.indexOf(end);
    t.true(from >= begin.length && to >= from, 'the markers are there');
    const wanted = `${make()}\n`;
    if (process.env['UPDATE_DOCS'] === '1') {
      writeFileSync(FILE, `${text.slice(0, from)}${wanted}${text.slice(to)}`);
    }
    const written = readFileSync(FILE, 'utf8');
    t.is(written.slice(from, written.indexOf(end)), wanted);
  });
}

test('the documented defaults of an export are the real ones', (t) => {
  const text = readFileSync(FILE, 'utf8');
  t.is(EXPORT_DEFAULTS.waitMs, 30_000);
  t.true(text.includes('wait = "30s" '));
});
