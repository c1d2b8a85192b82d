import { readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { temporaryFolder } from '../support/loop.ts';
import { projectRoot, runAnyway } from '../support/process.ts';
import { testScope } from '../support/scope.ts';

// The scripts run before anything is compiled, so they are plain modules without declarations.
const demo: string = '#scripts/lib/demo.mjs';
const { defaultsBeside } = (await import(demo)) as {
  defaultsBeside: (given: readonly string[]) => string[];
};

test('a default is left out where the option is given, in either form', (t) => {
  const [listen, metrics] = [
    ['--listen', '127.0.0.1:10809'],
    ['--metrics', '127.0.0.1:9809'],
  ];
  t.deepEqual(defaultsBeside([]), [...listen, ...metrics]);
  t.deepEqual(defaultsBeside(['--listen', 'unix:/x']), metrics);
  t.deepEqual(defaultsBeside(['--listen=unix:/x', '--metrics=[::1]:1']), []);
});

test('a configuration file is not overridden by defaults', (t) => {
  t.deepEqual(defaultsBeside(['--config', 'ringfence.toml']), []);
  t.deepEqual(defaultsBeside(['--config=ringfence.toml', '--metrics', '[::1]:1']), []);
});

test('a script that is named through a link runs, too', async (t) => {
  const scope = testScope(t);
  const link = join(temporaryFolder(scope), 'project');
  symlinkSync(projectRoot, link);
  const script = join(link, 'scripts', 'test.mjs');
  const { exitCode, stderr } = await runAnyway(process.execPath, [script, 'nonsense']);
  t.is(exitCode, 1);
  t.regex(stderr, /nonsense/);
});

test('no script needs a package before it has been installed', (t) => {
  const folder = join(projectRoot, 'scripts');
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  const scripts = names.filter((name) => name.endsWith('.mjs'));
  t.true(scripts.includes('test.mjs') && scripts.includes('lib/demo.mjs'));
  for (const name of scripts) {
    const text = readFileSync(join(folder, name), 'utf8');
    const imported = [...text.matchAll(/^(?:import|export)\b[^;]*? from '([^']+)';/gm)];
    const packages = imported
      .map(([, from]) => from)
      .filter((from) => !/^(node:|\.)/.test(`${from}`));
    t.deepEqual(packages, [], name);
  }
});
