/** What a machine lacks is one sentence each, which says what to install. */

import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { temporaryFolder } from '../daemon/temporary.ts';
import { projectRoot, runAnyway } from '../support/process.ts';
import { ringfenceCommand } from '../support/ringfence.ts';

// The scripts run before anything is compiled, so they are plain modules without declarations.
const scripts: string = '#scripts/lib/requirements.mjs';
const { missingRequirements } = (await import(scripts)) as {
  missingRequirements(machine: object): string[];
};

const GOOD = {
  platform: 'linux',
  node: '20.19.0',
  kernel: '6.1.0-13-amd64',
  cargo: '1.89.0',
  hasCompiler: true,
  uringDisabled: 0,
  maySetUpRings: true,
};

test('the oldest versions are enough, and so are newer ones', (t) => {
  t.deepEqual(missingRequirements(GOOD), []);
  const newer = { node: '24.0.0', kernel: '7.0.0', cargo: '1.100.0-nightly' };
  t.deepEqual(missingRequirements({ ...GOOD, ...newer }), []);
  t.deepEqual(missingRequirements({ ...GOOD, uringDisabled: 1 }), []);
});

test('whatever is missing or too old is a sentence of its own', (t) => {
  for (const [lacks, message] of [
    [{ platform: 'darwin' }, /^ringfence runs on Linux 6\.1 or later, not on darwin\.$/],
    [{ node: '20.18.3' }, /^Node 20\.18\.3 is too old: install Node 20\.19 or later from [^ ]+$/],
    [{ node: '18.20.0' }, /^Node 18\.20\.0 is too old/],
    [{ kernel: '5.15.0-91-generic' }, /^Linux 5\.15\.0-91-generic is too old.* boot a kernel 6\.1/],
    [{ cargo: null }, /^cargo is missing: install Rust 1\.\d+ or later from [^ ]+$/],
    [{ cargo: '1.63.0' }, /^cargo 1\.63\.0 is too old: install Rust/],
    [{ hasCompiler: false }, /^A C compiler is missing: install one/],
    [{ uringDisabled: 2 }, /^io_uring is switched off.*sysctl kernel\.io_uring_disabled=0/],
    [{ uringDisabled: 1, maySetUpRings: false }, /^io_uring is switched off/],
  ] as const) {
    const missing = missingRequirements({ ...GOOD, ...lacks });
    t.is(missing.length, 1, JSON.stringify(lacks));
    t.regex(missing[0] ?? '', message);
  }
  t.is(missingRequirements({ ...GOOD, node: '18.0.0', cargo: null }).length, 2);
});

const manifest = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8')) as {
  engines: { node: string };
  scripts: Record<string, string>;
};

test('npm and the command tell an old Node so before it reads what it cannot', async (t) => {
  const { sim, ...scripts } = manifest.scripts;
  t.regex(sim ?? '', /^cargo /);
  for (const script of Object.values(scripts)) {
    t.regex(script, /^node -r \.\/bin\/node-version\.cjs scripts\//);
  }
  const pretend = "Object.defineProperty(process.versions, 'node', { value: '12.22.9' });";
  const preload = join(await temporaryFolder(t), 'old.cjs');
  await writeFile(preload, pretend);
  const check = join(projectRoot, 'bin', 'node-version.cjs');
  for (const words of [
    ['-r', check, '-e', 'not a ** language'],
    [ringfenceCommand, '--version'],
  ]) {
    const { exitCode, stdout, stderr } = await runAnyway('node', ['-r', preload, ...words]);
    t.is(exitCode, 1);
    t.is(stdout, '');
    t.is(stderr, 'Node 12.22.9 is too old: install Node 20.19 or later from https://nodejs.org.');
  }
  t.is(manifest.engines.node, '>=20.19');
});
