import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { createLog } from '../../daemon/log.ts';
import { temporaryFolder } from './temporary.ts';

test('a log that cannot be written disturbs nobody', (t) => {
  // It takes nothing: no space left on the device.
  const full = openSync('/dev/full', 'w');
  t.teardown(() => closeSync(full));
  const log = createLog('info', full);
  t.notThrows(() => {
    for (let line = 0; line < 3; line += 1) log.info({ line }, 'serving');
    for (let line = 0; line < 20; line += 1) log.error({ text: 'x'.repeat(1 << 17) }, 'many');
  });
});

test('a line is a JSON object with level and time', async (t) => {
  const path = join(await temporaryFolder(t), 'log');
  const file = openSync(path, 'w');
  t.teardown(() => closeSync(file));
  const log = createLog('info', file);
  log.debug('not this');
  log.info({ export: 'disk' }, 'serving');
  const [line = '', ...rest] = readFileSync(path, 'utf8').split('\n');
  t.deepEqual(rest, ['']);
  const { time, ...fields } = JSON.parse(line) as Record<string, unknown>;
  t.false(Number.isNaN(Date.parse(`${time}`)));
  const expected = { level: 'info', name: 'ringfence', pid: process.pid };
  t.deepEqual(fields, { ...expected, export: 'disk', msg: 'serving' });
});
