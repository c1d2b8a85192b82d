import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import {
  codeOf,
  ERRORS,
  errorFromWire,
  RingfenceError,
  reasonOf,
  ringfenceError,
  toRingfenceError,
} from '../../daemon/errors.ts';
import { projectRoot } from '../support/process.ts';

test('every code of the registry is used', (t) => {
  const sources = ['daemon', 'metrics'].flatMap((folder) =>
    readdirSync(join(projectRoot, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts') && name !== 'errors.ts')
      .map((name) => readFileSync(join(projectRoot, folder, name), 'utf8')),
  );
  const own = ['RF_INTERNAL'];
  for (const code of Object.keys(ERRORS).filter((name) => !own.includes(name))) {
    t.true(
      sources.some((text) => text.includes(`ringfenceError('${code}'`)),
      code,
    );
  }
});

test('an error has a code, one line, and keeps its cause', (t) => {
  const cause = new Error('below');
  const error = ringfenceError('RF_CONTROL_LISTEN', ['/x', 'two\n  lines'], cause);
  t.is(error.message, 'The control socket /x cannot be used: two lines; give another --control.');
  t.is(error.code, 'RF_CONTROL_LISTEN');
  t.is(error.cause, cause);
  t.is(toRingfenceError(error), error);
});

test('what is no error of the registry becomes an internal one', (t) => {
  const error = toRingfenceError(new TypeError('x is not a function'));
  t.is(error.code, 'RF_INTERNAL');
  t.regex(error.message, /x is not a function/);
  t.is(toRingfenceError('thrown text').code, 'RF_INTERNAL');
  t.is(errorFromWire('RF_INVENTED', 'later').code, 'RF_INTERNAL');
  t.is(errorFromWire('RF_ACTION', 'as it was').message, 'as it was');
  t.true(errorFromWire('toString', 'x') instanceof RingfenceError);
  t.is(errorFromWire('toString', 'x').code, 'RF_INTERNAL');
});

test("the system's reasons are told in words", (t) => {
  const busy = Object.assign(new Error('listen EADDRINUSE: address already in use 127.0.0.1:1'), {
    code: 'EADDRINUSE',
  });
  t.is(reasonOf(busy), 'the address is already in use');
  t.is(reasonOf(new Error('something else.')), 'something else');
  t.is(codeOf(busy), 'EADDRINUSE');
  t.is(codeOf(null), null);
});
